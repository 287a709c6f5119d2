#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "core/arena.h"
#include "core/error.h"
#include "core/memory_limit.h"

namespace gradus {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

TEST(FormatBytes, TwoDecimalsAndBinaryUnits) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.00 KiB");
  EXPECT_EQ(format_bytes(1536 * kMiB), "1.50 GiB");
  EXPECT_EQ(format_bytes(kMiB - 1), "1024.00 KiB");
  EXPECT_EQ(format_bytes(kMiB), "1.00 MiB");
  EXPECT_EQ(format_bytes(int64_t{1} << 50), "1024.00 TiB");
}

TEST(SystemMemory, AvailableIsAShareOfTheMachine) {
  const int64_t machine = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  const int64_t available = available_memory();
  EXPECT_GT(available, 0);
  EXPECT_LE(available, machine);
}

TEST(SystemMemory, ControlGroupIsALimit) {
  int64_t limit = 0;
  int64_t used = 0;
  std::ifstream limit_file("/sys/fs/cgroup/memory.max");
  std::ifstream used_file("/sys/fs/cgroup/memory.current");
  if (!(limit_file >> limit) || !(used_file >> used)) {
    std::ifstream v1("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    if (!(v1 >> limit)) limit = std::numeric_limits<int64_t>::max();  // no group: any value holds
  }
  EXPECT_LE(available_memory(), limit);
}

TEST(SystemMemory, ResidentFollowsWhatIsTouchedAndPeakKeepsIt) {
  const int64_t before = resident_memory();
  ASSERT_GT(before, 0);
  constexpr int64_t kBytes = 64 * kMiB;
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  // Reserved memory is not resident.
  EXPECT_LT(resident_memory(), before + 16 * kMiB);
  std::memset(memory, 1, kBytes);
  const int64_t during = resident_memory();
  // The kernel counts a thread's pages in batches; a few MiB of other code may come and go.
  EXPECT_GT(during, before + kBytes - 8 * kMiB);
  munmap(memory, kBytes);
  EXPECT_LT(resident_memory(), during - kBytes + 8 * kMiB);
  EXPECT_GE(peak_resident_memory(), during - 8 * kMiB);
}

// Not under AddressSanitizer, whose shadow memory alone is beyond any such limit.
#ifndef __SANITIZE_ADDRESS__

/// Sets a soft limit of this process and takes it back.
class SoftLimit {
 public:
  SoftLimit(decltype(RLIMIT_AS) resource, int64_t bytes) : resource_(resource) {
    ::getrlimit(resource_, &before_);
    const rlimit limit{static_cast<rlim_t>(bytes), before_.rlim_max};
    EXPECT_EQ(::setrlimit(resource_, &limit), 0);
  }
  ~SoftLimit() { ::setrlimit(resource_, &before_); }
  SoftLimit(const SoftLimit&) = delete;
  SoftLimit& operator=(const SoftLimit&) = delete;

 private:
  decltype(RLIMIT_AS) resource_;
  rlimit before_{};
};

TEST(SystemMemory, TheLimitThatBindsIsNamed) {
  const auto refusal = [] {
    auto plan = std::make_unique<MemoryPlan>(Device::cpu);
    plan->declare("x", DType::u8, {4096 * kMiB}, Lifetime::persistent());
    plan->lay_out();
    std::string message;
    try {
      const Arena arena(std::move(plan));
    } catch (const MemoryError& error) {
      message = error.what();
    }
    return message;
  };
  {
    const SoftLimit limit(RLIMIT_AS, 4096 * kMiB);
    EXPECT_GT(process_memory_limit().bytes, 0);
    EXPECT_LT(process_memory_limit().bytes, 4096 * kMiB) << "less what is used";
    EXPECT_LE(available_memory(), process_memory_limit().bytes);
    EXPECT_THAT(refusal(), testing::HasSubstr("under the limit of address space (ulimit -v)"));
  }
  {
    const SoftLimit limit(RLIMIT_DATA, 4000 * kMiB);
    EXPECT_THAT(refusal(), testing::HasSubstr("under the limit of data (ulimit -d)"));
  }
}

#endif

}  // namespace
}  // namespace gradus
