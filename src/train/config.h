#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
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

/// What becomes of a run that goes on while its data is not what it was.
enum class ChangedData : uint8_t { refuse, allow };
constexpr std::array<std::string_view, 2> enum_names(ChangedData) { return {"refuse", "allow"}; }
constexpr std::string_view to_string(ChangedData choice) {
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
  ChangedData changed = ChangedData::refuse;

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

/// How much text an evaluation reads; nullopt is written `all`.
struct EvalTokens {
  std::optional<int64_t> count = std::nullopt;

  bool operator==(const EvalTokens&) const = default;
};

struct EvalConfig {
  int64_t every = 250;
  EvalTokens tokens = {32768};

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

/// Where keys got their values, by dotted key: "file:line" or "command line". Without those that
/// have their defaults.
using ConfigPlaces = std::map<std::string, std::string, std::less<>>;

/// Reads `file`, what it inherits by `base:`, and then the overrides `section.key=VALUE` in their
/// order (a later one wins). Throws one ConfigError that lists every problem of all of them, each
/// with its place (file:line or "command line"), full key, what was found and what was expected: a
/// UsageError where all lie on the command line. places: where to, if anywhere.
Config load_config(const std::filesystem::path& file, std::span<const std::string> overrides = {},
                   ConfigPlaces* places = nullptr);

/// A line for each key that a message names and that has a place, each after a line break. For
/// problems that show only after loading, on so many ranks or with such data.
std::string places_of_keys(std::string_view message, const ConfigPlaces& places);

/// Reads what to_yaml wrote, in this version or an older one, whose keys are translated. text: the
/// whole file; name: what problems call it. Nothing else is read: `base` is refused. Throws as
/// load_config.
Config load_saved_config(const std::string& text, const std::string& name);

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
