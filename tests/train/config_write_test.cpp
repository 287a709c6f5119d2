// What is saved, documented and shipped is what is read.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "config_files.h"
#include "train/config_fields.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::IsEmpty;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// A Config whose every key differs from its default, drawn from `random` and free of problems.
Config drawn_config(std::mt19937_64& random) {
  const auto fraction = [&] { return std::uniform_real_distribution<double>(0, 1)(random); };
  const auto size = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  Config c;
  c.device = DeviceChoice::cpu;
  c.seed = size(0, std::numeric_limits<int64_t>::max());
  c.run.dir = "runs/\"quoted\" \\ #1: ünï\tcode\n- 'x', [y] {z}";
  c.model = {.layers = size(10, 40),
             .channels = 16 * size(10, 99),
             .heads = 16,
             .context = 8 * size(10, 1000),
             .mlp_width = 8 * size(1, 1000),
             .dropout = 0.999 * fraction(),
             .bias = false,
             .tied_embeddings = false,
             .attention = AttentionKind::plain,
             .vocab_size = size(1, 2147483647)};
  c.data = {.train = {"~", "auto", "null", "-a", ".", "../x", "a, b", "true", "1.5"},
            .val = {"[]"},
            .tokenizer = TokenizerChoice::bytes,
            .changed = ChangedData::allow};
  c.optim = {.lr = 1 + fraction(),
             .min_lr = fraction(),
             .warmup_steps = size(1, 99),
             .schedule = ScheduleKind::wsd,
             .decay_steps = size(1, 99),
             .weight_decay = std::ldexp(fraction(), static_cast<int>(size(-900, 900))),
             .beta1 = fraction(),
             .beta2 = fraction(),
             .eps = std::ldexp(0.5 + 0.5 * fraction(), -static_cast<int>(size(0, 98))),
             .clip_norm = std::numeric_limits<double>::max() * fraction()};
  c.train = {.steps = size(3000, 100000),
             .micro_batch = 3,
             .global_batch = 3 * 5 * size(5, 9),
             .precision = PrecisionPreset::fp64,
             .recompute = Recompute::full,
             .max_skipped_steps = size(11, 99),
             .threads = size(1, 99)};
  c.parallel = {
      .tp = 8, .pp = 1, .dp = 1, .cp = 1, .sequence = true, .zero = 0, .check_replicas = 7};
  c.checkpoint = {.every = 0, .keep = size(4, 9), .resume = {Resume::Mode::from_path, "auto"}};
  c.eval = {.every = 0, .tokens = {size(51, 99)}};
  c.log = {.every = size(11, 99)};
  return c;
}

TEST_F(ConfigTest, SavedConfigurationsReadBackBitByBit) {
  EXPECT_EQ(load(to_yaml(Config{})), Config{});
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 200; ++i) {
    const Config drawn = drawn_config(random);
    const Config read = load(to_yaml(drawn));
    EXPECT_EQ(read, drawn);
    EXPECT_EQ(to_yaml(read), to_yaml(drawn));
  }
}

TEST_F(ConfigTest, DifferencesListEveryKeyThatDiffers) {
  EXPECT_THAT(config_differences(Config{}, Config{}), IsEmpty());
  Config changed;
  changed.optim.lr = std::nextafter(changed.optim.lr, 1.0);
  changed.seed = 2;
  changed.parallel.dp = 4;
  EXPECT_THAT(config_differences(Config{}, changed),
              ElementsAre(ConfigDifference{"seed", "1337", "2"},
                          ConfigDifference{"optim.lr", "0.001", "0.0010000000000000002"},
                          ConfigDifference{"parallel.dp", "auto", "4"}));
  std::mt19937_64 random(1);
  std::set<std::string> all;
  for_each_value(changed, "", [&](const std::string& key, const auto&, const auto&) {
    if (key != "parallel.cp" && key != "parallel.pp") all.insert(key);  // only 1 is allowed
  });
  std::set<std::string> differing;
  for (const auto& difference : config_differences(Config{}, drawn_config(random))) {
    differing.insert(difference.key);
  }
  EXPECT_EQ(differing, all);
}

TEST(ConfigFields, EveryMemberHasOneDocumentedKey) {
  std::set<std::string> keys;
  std::set<const void*> members;
  const auto check_doc = [](const std::string& key, std::string_view doc) {
    EXPECT_GE(doc.size(), 10u) << key;
    EXPECT_TRUE(doc.ends_with('.')) << key;
    EXPECT_EQ(doc.find('|'), doc.npos) << key << " would break the table";
  };
  const Config config;
  for_each_field(config, [&](const auto& field, const auto&) {
    check_doc(std::string(field.key), field.doc);
  });
  for_each_value(config, "", [&](const std::string& key, const auto& field, const auto& value) {
    check_doc(key, field.doc);
    EXPECT_TRUE(keys.insert(key).second) << key;
    EXPECT_TRUE(members.insert(&value).second) << key << " shares its member with another key";
  });
}

// The tests run in the root of the source tree.
TEST(ConfigReference, DocsAreUpToDate) {
  EXPECT_EQ(read_file("docs/configuration.md"), config_reference_markdown())
      << "docs/configuration.md is stale. Write it anew with\n"
         "  cmake --build build/release --target gradus_config_reference && "
         "build/release/bin/gradus_config_reference > docs/configuration.md";
}

TEST(ConfigFiles, EveryShippedConfigurationLoads) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator("configs")) {
    SCOPED_TRACE(entry.path());
    ASSERT_EQ(entry.path().extension(), ".yaml");
    names.insert(entry.path().stem().string());
    EXPECT_NO_THROW(load_config(entry.path()));
  }
  EXPECT_TRUE(names.contains("kjv_char_cpu"));
}

TEST(ConfigFiles, TheCharacterModelHasThePublishedSettings) {
  const Config c = load_config("configs/kjv_char_cpu.yaml");
  Config expected;
  expected.run.dir = "runs/kjv_char_cpu";
  expected.train.precision = PrecisionPreset::fp32;
  expected.eval.tokens.count = 15360;
  EXPECT_THAT(config_differences(c, expected), IsEmpty());
  const Config bytes = load_config("configs/kjv_bytes_cpu.yaml");
  std::vector<std::string> keys;
  for (const auto& difference : config_differences(c, bytes)) keys.push_back(difference.key);
  EXPECT_THAT(keys, ElementsAre("run.dir", "data.train", "data.tokenizer"));
}

}  // namespace
}  // namespace gradus
