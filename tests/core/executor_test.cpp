#include "core/executor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"

namespace gradus {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

/// An executor whose scratch is `bytes` of aligned memory.
class BoundScratch : public testing::Test {
 protected:
  static constexpr int64_t kBytes = 1024;

  BoundScratch() { x_.bind_scratch(memory()); }
  Tensor memory() { return {memory_.data(), DType::u8, Device::cpu, {kBytes}, "scratch"}; }
  int64_t offset(const void* p) const { return static_cast<const std::byte*>(p) - memory_.data(); }

  Executor x_{Device::cpu, 1};
  alignas(64) std::array<std::byte, kBytes> memory_{};
};

TEST(ScratchBytes, AreWholeCacheLines) {
  static_assert(scratch_bytes<float>(0) == 0);
  static_assert(scratch_bytes<uint8_t>(1) == 64);
  static_assert(scratch_bytes<float>(16) == 64);
  static_assert(scratch_bytes<float>(17) == 128);
  static_assert(scratch_bytes<double>(int64_t{1} << 40) == int64_t{1} << 43);
}

TEST_F(BoundScratch, PiecesFollowEachOtherAligned) {
  Scratch scratch(x_);
  EXPECT_EQ(offset(scratch.take<float>(3)), 0);
  EXPECT_EQ(offset(scratch.take<double>(9)), 64);
  EXPECT_EQ(offset(scratch.take<uint8_t>(1)), 64 + 128);
}

TEST_F(BoundScratch, ScopesNestAndGiveBack) {
  Scratch outer(x_);
  outer.take<uint8_t>(64);
  for (int call = 0; call < 3; ++call) {
    Scratch inner(x_);
    EXPECT_EQ(offset(inner.take<uint8_t>(100)), 64) << "call " << call;
    {
      Scratch innermost(x_);
      EXPECT_EQ(offset(innermost.take<uint8_t>(1)), 64 + 128);
    }
    EXPECT_EQ(offset(inner.take<uint8_t>(1)), 64 + 128) << "what the innermost gave back";
  }
  EXPECT_EQ(offset(outer.take<uint8_t>(1)), 64);
}

TEST_F(BoundScratch, AllOfItCanBeTakenAndNoMore) {
  {
    Scratch scratch(x_);
    scratch.take<uint8_t>(kBytes - 64);
    EXPECT_THAT([&] { scratch.take<uint8_t>(65); },
                ThrowsMessage<MemoryError>("an operation asked for 128 bytes of scratch memory, "
                                           "64 of 1024 are free"));
    // A refusal takes nothing.
    EXPECT_EQ(offset(scratch.take<uint8_t>(64)), kBytes - 64);
    EXPECT_THROW(scratch.take<uint8_t>(1), MemoryError);
  }
  Scratch again(x_);
  EXPECT_EQ(offset(again.take<uint8_t>(kBytes)), 0);
}

TEST_F(BoundScratch, UnbindingGoesBackToOwnedMemory) {
  x_.bind_scratch({});
  Scratch scratch(x_);
  void* piece = scratch.take<uint8_t>(4 * kBytes);
  std::memset(piece, 1, 4 * kBytes);
  EXPECT_TRUE(offset(piece) < 0 || offset(piece) >= kBytes);
}

TEST_F(BoundScratch, NoMemoryIsALimitToo) {
  x_.bind_scratch(Tensor(memory_.data(), DType::u8, Device::cpu, {0}, "scratch"));
  Scratch scratch(x_);
  EXPECT_NO_THROW(scratch.take<float>(0));
  EXPECT_THROW(scratch.take<float>(1), MemoryError);
}

TEST(OwnedScratch, PiecesAreAlignedApartAndWritable) {
  Executor x(Device::cpu, 1);
  Scratch outer(x);
  std::vector<uint8_t*> pieces;
  for (const int64_t count : {1, 63, 64, 65, 100000}) {
    pieces.push_back(outer.take<uint8_t>(count));
    EXPECT_TRUE(aligned(pieces.back()));
    std::memset(pieces.back(), static_cast<int>(pieces.size()), static_cast<size_t>(count));
  }
  {
    Scratch inner(x);
    std::memset(inner.take<uint8_t>(1000), 0xff, 1000);
  }
  // The inner scope neither freed nor wrote the outer one's pieces.
  for (size_t i = 0; i < pieces.size(); ++i) EXPECT_EQ(pieces[i][0], i + 1);
  EXPECT_NE(outer.take<float>(0), nullptr);
}

TEST(Executor, TakesTheCoresOfTheProcessUnlessTold) {
  cpu_set_t set;
  CPU_ZERO(&set);
  ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  EXPECT_EQ(Executor().threads(), CPU_COUNT(&set));
  EXPECT_EQ(Executor(Device::cpu, 5).threads(), 5);
  EXPECT_EQ(Executor().device(), Device::cpu);
}

TEST(Executor, RefusesADeviceThatTheBuildDoesNotHave) {
  EXPECT_THAT([] { Executor x(Device::cuda); },
              ThrowsMessage<CudaError>(HasSubstr("no CUDA backend")));
}

struct Counted {
  Counted() { ++alive; }
  ~Counted() { --alive; }
  int value = 0;
  static inline int alive = 0;
};
struct Other {
  int value = 7;
};

TEST(Executor, KeepsOneStateOfEachTypeUntilItsEnd) {
  {
    Executor x(Device::cpu, 1);
    Executor y(Device::cpu, 1);
    EXPECT_EQ(Counted::alive, 0);
    x.state<Counted>().value = 3;
    EXPECT_EQ(x.state<Other>().value, 7);
    EXPECT_EQ(x.state<Counted>().value, 3);
    EXPECT_EQ(Counted::alive, 1);
    EXPECT_EQ(y.state<Counted>().value, 0);
    EXPECT_EQ(Counted::alive, 2);
  }
  EXPECT_EQ(Counted::alive, 0);
}

TEST(Executor, TellsItsObserverOfDefinedTensorsInOrder) {
  struct Recorder final : OperationObserver {
    void completed(const char* operation, const ConstTensor& written) override {
      seen.push_back(std::string(operation) + " " + written.name());
    }
    std::vector<std::string> seen;
  };
  Executor x(Device::cpu, 1);
  float value = 0.0f;
  const Tensor a(&value, DType::fp32, Device::cpu, {1}, "a");
  const Tensor b = a.named("b");
  x.completed("unobserved", {a});
  Recorder recorder;
  x.observe(&recorder);
  x.completed("first", {a, Tensor(), b});
  x.completed("second", {b});
  x.observe(nullptr);
  x.completed("third", {a});
  EXPECT_THAT(recorder.seen, testing::ElementsAre("first a", "first b", "second b"));
}

}  // namespace
}  // namespace gradus
