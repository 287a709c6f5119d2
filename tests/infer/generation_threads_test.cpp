#include "infer/generation_threads.h"

#include <gtest/gtest.h>

#include <string>

#include "support/temp_dir.h"

namespace gradus {
namespace {

TEST(GenerationThreads, GrowWithTheWeightsUpToWhatThereIs) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  EXPECT_EQ(generation_threads(0, 8), 1);
  EXPECT_EQ(generation_threads(3 * kMiB, 8), 1) << "a small model";
  EXPECT_EQ(generation_threads(40 * kMiB, 8), 2);
  EXPECT_EQ(generation_threads(500 * kMiB, 8), 8) << "GPT-2";
  EXPECT_EQ(generation_threads(500 * kMiB, 1), 1);
}

TEST(GenerationThreads, TheWeightsAreThoseOfTheNewestCheckpoint) {
  const test::TempDir dir;
  const auto checkpoint = [&](const char* name, size_t bytes) {
    const auto folder = dir.path() / "checkpoints" / name;
    std::filesystem::create_directories(folder);
    test::write_file(folder / "model.safetensors", std::string(bytes, 'x'));
    return folder;
  };
  EXPECT_EQ(stored_weight_bytes(dir.path()), 0);
  EXPECT_EQ(stored_weight_bytes(dir.path() / "nowhere"), 0);
  const auto old = checkpoint("step-00000010", 10);
  checkpoint("step-00000020", 20);
  EXPECT_EQ(stored_weight_bytes(dir.path()), 20);
  EXPECT_EQ(stored_weight_bytes(dir.path() / "checkpoints"), 20);
  EXPECT_EQ(stored_weight_bytes(old), 10);
}

}  // namespace
}  // namespace gradus
