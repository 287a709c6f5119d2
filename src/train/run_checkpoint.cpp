#include "train/run_checkpoint.h"

#include "checkpoint/step_state_json.h"
#include "core/error.h"

namespace gradus {
namespace {

struct OptimizerTensor {
  const char* prefix;
  Tensor (Optimizer::*view)(const Parameter&) const;
};
constexpr OptimizerTensor kMoments[] = {{"adam.m.", &Optimizer::first_moment},
                                        {"adam.v.", &Optimizer::second_moment}};

NamedTensor named(const std::string& name, const Parameter& parameter, const Tensor& values) {
  const TensorPiece piece = piece_of(parameter, values);
  return {name, values.dtype(), parameter.spec.shape, {{piece.begin, piece.data}}};
}

TensorDestination destination(const std::string& name, const Parameter& parameter,
                              const Tensor& values) {
  return {name, parameter.spec.shape, {piece_of(parameter, values)}};
}

/// Settings that decide what the tensors are: they cannot change within a run.
bool is_fixed(const std::string& key) {
  if (key == "model.attention" || key == "model.dropout") return false;
  return key.starts_with("model.") || key == "train.precision";
}

}  // namespace

SaveResult save_run(const std::filesystem::path& run, const RunProgress& progress,
                    const Config& config, const Tokenizer& tokenizer, const TrainingModel& model) {
  const Optimizer& optimizer = model.optimizer();
  CheckpointContents contents;
  contents.step = progress.step;
  contents.state = {{"samples", progress.samples},
                    {"vocabulary", model.gpt().sizes().V},
                    {"tokenizer_hash", fmt::format("{:016x}", tokenizer.hash())},
                    {"step_state", step_state_to_json(optimizer.state())}};
  contents.files = {{"config.yaml", to_yaml(config)}, {"tokenizer.json", tokenizer.to_json()}};
  for (const Parameter& parameter : model.parameters().all()) {
    const std::string& name = parameter.spec.name;
    contents.model.push_back(named(name, parameter, optimizer.master(parameter)));
    for (const OptimizerTensor& moment : kMoments) {
      contents.optimizer.push_back(
          named(moment.prefix + name, parameter, (optimizer.*moment.view)(parameter)));
    }
  }
  return save_checkpoint(run, contents, config.checkpoint.keep);
}

std::vector<std::string> check_run(const Checkpoint& checkpoint, const Config& config,
                                   const Tokenizer& tokenizer) {
  std::vector<std::string> problems;
  std::vector<std::string> changed;
  const Config saved = load_config(checkpoint.path() / "config.yaml");
  for (const ConfigDifference& difference : config_differences(saved, config)) {
    const std::string line =
        fmt::format("{}: {} -> {}", difference.key, difference.a, difference.b);
    (is_fixed(difference.key) ? problems : changed).push_back(line);
  }
  if (checkpoint.file("tokenizer.json") != tokenizer.to_json()) {
    problems.push_back("the data was tokenized with another tokenizer");
  }
  if (!problems.empty()) {
    std::string list;
    for (const std::string& problem : problems) list += "\n  " + problem;
    throw CheckpointError(
        "{} does not belong to this configuration (checkpoint -> now):{}\nGo on with the settings "
        "of the checkpoint, or set another run.dir to start afresh.",
        checkpoint.path().string(), list);
  }
  return changed;
}

RunProgress load_run(const Checkpoint& checkpoint, TrainingModel& model) {
  Optimizer& optimizer = model.optimizer();
  optimizer.reset(model.executor());
  std::vector<TensorDestination> weights;
  std::vector<TensorDestination> moments;
  for (const Parameter& parameter : model.parameters().all()) {
    const std::string& name = parameter.spec.name;
    weights.push_back(destination(name, parameter, optimizer.master(parameter)));
    for (const OptimizerTensor& moment : kMoments) {
      moments.push_back(
          destination(moment.prefix + name, parameter, (optimizer.*moment.view)(parameter)));
    }
  }
  checkpoint.load(weights, moments);
  optimizer.publish_master(model.executor());
  const nlohmann::json& state = checkpoint.state();
  optimizer.set_state(step_state_from_json(state.at("step_state")));
  return {.step = checkpoint.step(), .samples = state.at("samples").get<int64_t>()};
}

}  // namespace gradus
