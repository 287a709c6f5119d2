// main() of the test programs that run as several ranks: every rank runs every test, and the
// program fails on all ranks when a test fails on one.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>

#include "mpi_job.h"

namespace gradus::test {
namespace {

Bootstrap* current_job = nullptr;

int64_t option(int argc, char** argv, std::string_view name, int64_t otherwise) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument.starts_with(name)) return std::atoll(argv[i] + name.size());
  }
  return otherwise;
}

}  // namespace

Bootstrap& job() { return *current_job; }

}  // namespace gradus::test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  gradus::BootstrapOptions options;
  // A failed assertion lets a rank miss a collective; the others must not wait for long.
  options.communication_timeout_s = 60;
  options.message_bytes =
      gradus::test::option(argc, argv, "--message-bytes=", options.message_bytes);
  options.direct_all_reduce_bytes =
      gradus::test::option(argc, argv, "--direct-bytes=", options.direct_all_reduce_bytes);
  options.late = gradus::test::option(argc, argv, "--late=", 0) != 0;
  return gradus::run_job(options, [](gradus::Bootstrap& bootstrap) {
    gradus::test::current_job = &bootstrap;
    const int failed = RUN_ALL_TESTS();
    const std::vector<std::string> all = bootstrap.exchange(failed == 0 ? "passed" : "failed");
    return std::ranges::count(all, "failed") > 0 ? 1 : 0;
  });
}
