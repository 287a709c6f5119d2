// Threads as users and machines set them: teams smaller than asked for, and how long threads wait.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "gradus_process.h"
#include "metrics_lines.h"
#include "support/temp_dir.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using test::GradusProcess;
using test::ProcessResult;
using testing::HasSubstr;
using testing::Not;

class Threads : public testing::Test {
 protected:
  void SetUp() override {
    test::write_file(folder() / "config.yaml",
                     "model: {layers: 2, channels: 48, heads: 3, context: 32}\n"
                     "data: {train: [data], tokenizer: bytes}\n"
                     "optim: {warmup_steps: 0}\n"
                     "train: {steps: 5, micro_batch: 4, global_batch: 4, threads: 3}\n"
                     "eval: {every: 0}\n"
                     "log: {every: 1}\n");
  }

  const fs::path& folder() const { return dir_.path(); }
  /// `env ENVIRONMENT WORDS…`, without what ctest sets for this test.
  ProcessResult command(const std::string& environment, const std::string& words) const {
    return GradusProcess::shell(
               folder(), "env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT " + environment + " " + words)
        .wait();
  }
  ProcessResult gradus(const std::string& environment, const std::string& arguments) const {
    return command(environment, test::gradus_binary() + " " + arguments);
  }

 private:
  test::TempDir dir_;
};

TEST_F(Threads, ASmallerTeamThanAskedForTrainsTheSameAndIsSaid) {
  test::prepare_text(folder(), test::some_text(6000), "bytes");
  for (const char* precision : {"fp32", "bf16"}) {
    std::vector<nlohmann::json> expected;
    for (const char* environment : {"", "OMP_THREAD_LIMIT=1", "OMP_THREAD_LIMIT=2",
                                    "OMP_MAX_ACTIVE_LEVELS=0", "OMP_DYNAMIC=true"}) {
      SCOPED_TRACE(fmt::format("{} {}", precision, environment));
      const std::string run = fmt::format("{}-{}", precision, environment);
      const ProcessResult result =
          gradus(environment,
                 fmt::format("train config.yaml run.dir='{}' train.precision={}", run, precision));
      ASSERT_EQ(result.exit_code, 0) << result.text();
      std::vector<nlohmann::json> losses;
      for (const nlohmann::json& line : test::metrics_of(folder() / run, "train")) {
        losses.push_back({line.at("loss"), line.at("grad_norm")});
      }
      ASSERT_EQ(losses.size(), 5U);
      if (expected.empty()) expected = losses;
      EXPECT_EQ(losses, expected);
      const std::string variable =
          std::string(environment).substr(0, std::string(environment).find('='));
      if (variable == "OMP_THREAD_LIMIT" || variable == "OMP_MAX_ACTIVE_LEVELS") {
        EXPECT_THAT(result.text(), HasSubstr("3 threads were asked for and OpenMP gives"));
        EXPECT_THAT(result.text(), HasSubstr(variable + " is "));
      } else {
        EXPECT_THAT(result.text(), Not(HasSubstr("were asked for")));
      }
    }
  }
}

// What libgomp uses, not what the environment says.
TEST_F(Threads, WaitMicrosecondsUnlessTheUserSaysOtherwise) {
  const auto shown = [this](const std::string& environment) {
    return gradus("OMP_DISPLAY_ENV=verbose " + environment, "info");
  };
  const ProcessResult plain = shown("");
  EXPECT_EQ(plain.exit_code, 0) << plain.text();
  EXPECT_THAT(plain.err, HasSubstr("GOMP_SPINCOUNT = '1000'"));
  const ProcessResult own_count = shown("GOMP_SPINCOUNT=77");
  EXPECT_THAT(own_count.err, HasSubstr("GOMP_SPINCOUNT = '77'"));
  EXPECT_THAT(own_count.err, Not(HasSubstr("GOMP_SPINCOUNT = '1000'")));
  for (const char* policy : {"active", "passive"}) {
    const ProcessResult own_policy = shown(fmt::format("OMP_WAIT_POLICY={}", policy));
    EXPECT_EQ(own_policy.exit_code, 0);
    EXPECT_THAT(own_policy.err, Not(HasSubstr("GOMP_SPINCOUNT = '1000'")));
  }
}

/// The first line of `gradus info` that counts cores.
std::string cores_line(const ProcessResult& info) {
  const size_t at = info.out.find(" for this process");
  return info.out.substr(info.out.rfind('\n', at) + 1, at - info.out.rfind('\n', at));
}

TEST_F(Threads, BindingTheInitialThreadHidesNoCores) {
  const std::string expected = cores_line(gradus("", "info"));
  ASSERT_THAT(expected, HasSubstr("core"));
  for (const char* environment : {"OMP_PROC_BIND=true", "OMP_PROC_BIND=close", "OMP_PLACES=cores",
                                  "OMP_PROC_BIND=spread GOMP_SPINCOUNT=7"}) {
    EXPECT_EQ(cores_line(gradus(environment, "info")), expected) << environment;
  }
}

TEST_F(Threads, MoreThanThereAreCoresAreSaid) {
  test::prepare_text(folder(), test::some_text(6000), "bytes");
  const ProcessResult result =
      gradus("", "train config.yaml run.dir=many train.steps=1 train.threads=1000");
  EXPECT_EQ(result.exit_code, 0) << result.text();
  EXPECT_THAT(result.out, HasSubstr("1000 threads for "));
}

TEST_F(Threads, WaitMicrosecondsOnEveryRank) {
  if (test::mpirun().empty()) GTEST_SKIP() << "this build has no MPI";
  const ProcessResult result = command(
      "OMP_DISPLAY_ENV=verbose", fmt::format("{} -np 2 {} bench step config.yaml --steps 1 "
                                             "--warmup 0 model.vocab_size=300 train.micro_batch=2",
                                             test::mpirun(), test::gradus_binary()));
  EXPECT_EQ(result.exit_code, 0) << result.text();
  size_t ranks = 0;
  for (size_t at = 0; (at = result.text().find("GOMP_SPINCOUNT = '1000'", at)) != std::string::npos;
       ++at) {
    ++ranks;
  }
  EXPECT_EQ(ranks, 2U);
}

TEST_F(Threads, StartingAgainKeepsArgumentsNameAndWayOfStarting) {
  fs::create_symlink(test::gradus_binary(), folder() / "another name");
  const std::string usage = gradus("", "no-such\\ command").text();
  EXPECT_THAT(usage, HasSubstr("no-such command"));
  EXPECT_EQ(command("", "'./another name' 'no-such command'").text(), usage);
  EXPECT_EQ(command("PATH=" + fs::path(test::gradus_binary()).parent_path().string() + ":$PATH",
                    "gradus 'no-such command'")
                .text(),
            usage);
  EXPECT_THAT(gradus("", "train config.yaml 'a  b' ''").text(), HasSubstr("found 'a  b'"));
  EXPECT_THAT(gradus("", "train config.yaml ''").text(), HasSubstr("found ''"));
}

TEST_F(Threads, TheDynamicLoaderAsStarterIsLeftAloneAndSaid) {
  const char* loader = "/lib64/ld-linux-x86-64.so.2";
  if (!fs::exists(loader)) GTEST_SKIP() << "no " << loader << " here";
  const ProcessResult result =
      command("", fmt::format("{} {} info", loader, test::gradus_binary()));
  EXPECT_EQ(result.exit_code, 0) << result.text();
  EXPECT_THAT(result.out, HasSubstr("processor"));
  EXPECT_THAT(result.err, HasSubstr("set GOMP_SPINCOUNT=1000"));
}

}  // namespace
}  // namespace gradus
