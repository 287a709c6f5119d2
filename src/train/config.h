#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/model_config.h"
#include "optim/optim_config.h"

namespace gradus {

/// `automatic` is written `auto` in YAML.
enum class DeviceChoice : uint8_t { automatic, cpu, cuda };
constexpr std::array<std::string_view, 3> enum_names(DeviceChoice) {
  return {"auto", "cpu", "cuda"};
}
constexpr std::string_view to_string(DeviceChoice choice) {
  return enum_names(choice)[static_cast<size_t>(choice)];
}

enum class TokenizerChoice : uint8_t { automatic, characters, bytes };
constexpr std::array<std::string_view, 3> enum_names(TokenizerChoice) {
  return {"auto", "char", "bytes"};
}
constexpr std::string_view to_string(TokenizerChoice choice) {
  return enum_names(choice)[static_cast<size_t>(choice)];
}

/// `auto`, `never` or the path of a checkpoint (kept only when the mode is `from_path`).
struct Resume {
  enum class Mode : uint8_t { automatic, never, from_path };
  Mode mode = Mode::automatic;
  std::string path = {};

  bool operator==(const Resume&) const = default;
};

struct RunConfig {
  std::string dir = "runs/kjv";

  bool operator==(const RunConfig&) const = default;
};

struct DataConfig {
  std::vector<std::string> train = {"data/kjv"};
  std::vector<std::string> val = {};
  TokenizerChoice tokenizer = TokenizerChoice::characters;

  bool operator==(const DataConfig&) const = default;
};

/// Batches are counted in sequences of model.context tokens.
struct TrainConfig {
  int64_t steps = 2000;
  int64_t micro_batch = 12;
  int64_t global_batch = 12;
  PrecisionPreset precision = PrecisionPreset::bf16;
  Recompute recompute = Recompute::none;
  int64_t max_skipped_steps = 10;
  std::optional<int64_t> threads = std::nullopt;

  bool operator==(const TrainConfig&) const = default;
};

/// Sizes of the mesh: ranks = pp · dp · cp · tp.
struct ParallelConfig {
  int64_t tp = 1;
  int64_t pp = 1;
  std::optional<int64_t> dp = std::nullopt;  ///< auto: ranks / (pp · cp · tp)
  int64_t cp = 1;
  bool sequence = false;
  int64_t zero = 1;
  int64_t check_replicas = 100;

  bool operator==(const ParallelConfig&) const = default;
};

struct CheckpointConfig {
  int64_t every = 500;
  int64_t keep = 3;
  Resume resume = {};

  bool operator==(const CheckpointConfig&) const = default;
};

struct EvalConfig {
  int64_t every = 250;
  int64_t batches = 50;

  bool operator==(const EvalConfig&) const = default;
};

struct LogConfig {
  int64_t every = 10;

  bool operator==(const LogConfig&) const = default;
};

/// Everything a run is told. docs/configuration.md describes each key; train/config_fields.h is
/// where keys are declared. nullopt stands for `auto`.
struct Config {
  DeviceChoice device = DeviceChoice::automatic;
  int64_t seed = 1337;
  RunConfig run;
  ModelConfig model;
  DataConfig data;
  OptimConfig optim;
  TrainConfig train;
  ParallelConfig parallel;
  CheckpointConfig checkpoint;
  EvalConfig eval;
  LogConfig log;

  bool operator==(const Config&) const = default;
};

/// Reads `file`, what it inherits by `base:`, and then the overrides `section.key=VALUE` in their
/// order (a later one wins). Throws one ConfigError that lists every problem of all of them, each
/// with its place (file:line or "command line"), full key, what was found and what was expected.
Config load_config(const std::filesystem::path& file, std::span<const std::string> overrides = {});

/// The checks of load_config for a Config put together in code: ranges, contradictions between
/// keys, and what this build does not implement. Throws one ConfigError with every problem.
void check_config(const Config& config);

/// Every key with its value as a YAML file; load_config gives the same Config back, bit by bit.
std::string to_yaml(const Config& config);

struct ConfigDifference {
  std::string key;  ///< dotted, for example "optim.lr"
  std::string a;    ///< as to_yaml writes it
  std::string b;

  bool operator==(const ConfigDifference&) const = default;
};

/// The keys in which two configurations differ, in the order of docs/configuration.md.
std::vector<ConfigDifference> config_differences(const Config& a, const Config& b);

/// The text of docs/configuration.md.
std::string config_reference_markdown();

}  // namespace gradus
