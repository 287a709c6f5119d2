// A run that is told to stop after a step that was skipped goes on to one that is applied, which
// all ranks then save.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/logger.h>

#include <csignal>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint_folder.h"
#include "core/error.h"
#include "data/prepare.h"
#include "mpi_job.h"
#include "support/temp_dir.h"
#include "support/tiny_model.h"
#include "train/trainer.h"

namespace gradus {
namespace {

using testing::Each;
using testing::HasSubstr;

/// Makes the loss of one step, counted from 1, infinite, and sends a signal within it.
class BadStep : public OperationObserver {
 public:
  BadStep(Executor& x, int64_t bad, bool signals) : bad_(bad), signals_(signals) {
    x.observe(this);
  }

  void completed(const char* operation, const ConstTensor& written) override {
    if (std::string_view(operation) != "scale" || written.dtype() != DType::fp64) return;
    if (++step_ != bad_) return;
    auto* const loss = reinterpret_cast<double*>(const_cast<std::byte*>(written.data()));
    *loss = std::numeric_limits<double>::infinity();
    if (signals_) ::raise(SIGTERM);
  }

 private:
  int64_t bad_;
  bool signals_;
  int64_t step_ = 0;
};

class LateStop : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = test::job().exchange(own_.path().string()).front();
    if (test::job().rank() == 0) {
      const auto text = test::write_file(folder_ / "text.txt", std::string(4000, 'a'));
      prepare({.inputs = {text}, .out_dir = folder_ / "data"});
    }
    meet();
    config_ = test::tiny_config();
    config_.model.vocab_size = std::nullopt;
    config_.run.dir = (folder_ / "run").string();
    config_.data.train = {(folder_ / "data").string()};
    config_.train.micro_batch = 1;
    config_.train.global_batch = 4;
    config_.checkpoint.every = 0;
  }

  /// How a run ends whose last rank is sent a signal in step `bad`, which is skipped.
  std::string end_of_run(int64_t steps, int64_t bad) {
    config_.train.steps = steps;
    Parallelism parallel(mesh_, {});
    spdlog::logger quiet("quiet");
    StopSignals signals(false, 1);
    Trainer trainer({.config = config_}, x_, parallel, quiet, signals);
    const BadStep observer(x_, bad, test::job().rank() == test::job().size() - 1);
    std::string end;
    try {
      end = trainer.run() == Trainer::Outcome::interrupted ? "interrupted" : "finished";
    } catch (const NumericError& error) {
      end = error.what();
    }
    x_.observe(nullptr);
    return end;
  }
  void meet() { mesh_.world().barrier(x_).wait(x_); }
  std::vector<std::filesystem::path> saved() {
    meet();
    auto folders = list_step_folders(folder_ / "run" / kCheckpointsName);
    meet();
    return folders;
  }

 private:
  Executor x_{Device::cpu, 1};
  Mesh mesh_{test::job(), {.dp = test::job().size()}};
  test::TempDir own_;
  std::filesystem::path folder_;
  Config config_;
};

TEST_F(LateStop, WhatIsSavedIsTheNextStepThatIsApplied) {
  EXPECT_THAT(test::job().exchange(end_of_run(100, 3)), Each("interrupted"));
  const auto folders = saved();
  ASSERT_EQ(folders.size(), 1u);
  EXPECT_EQ(step_of(folders.front()), 4);
}

TEST_F(LateStop, BehindTheLastStepThereIsNone) {
  EXPECT_THAT(test::job().exchange(end_of_run(3, 3)),
              Each(HasSubstr("step 3, the last one, is not saved: the last step changed nothing, "
                             "so that the weights are those of step 2; nothing of this run is "
                             "saved")));
  EXPECT_TRUE(saved().empty());
}

}  // namespace
}  // namespace gradus
