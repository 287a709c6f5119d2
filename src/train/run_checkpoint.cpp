#include "train/run_checkpoint.h"

#include <array>

#include "checkpoint/step_state_json.h"
#include "core/error.h"
#include "train/save_together.h"

namespace gradus {
namespace {

/// What a checkpoint holds of each parameter beside its weights.
struct Moment {
  const char* prefix;
  Optimizer::Kind kind;
};
constexpr std::array kMoments = {Moment{"adam.m.", Optimizer::Kind::first_moment},
                                 Moment{"adam.v.", Optimizer::Kind::second_moment}};

/// The pieces of a logical tensor that this rank's optimizer has.
std::vector<TensorPiece> pieces_here(const TrainingModel& model, const ParamSpec& spec,
                                     Optimizer::Kind kind) {
  if (!model.parameters().has(spec.name)) return {};
  const Parameter& parameter = model.parameters()[spec.name];
  const HeldPart part = model.optimizer().held(parameter, kind);
  return pieces_of(parameter, part.first, part.values);
}

/// Whether this rank is the one that writes its piece: of tp ranks that have the same the first
/// does, of replicas that have the same the first, of stages the owner.
bool writes(const TrainingModel& model, const ParamSpec& spec) {
  const Parallelism& parallel = model.parallel();
  const Bucket& bucket = model.parameters().buckets()[static_cast<size_t>(spec.bucket)];
  return bucket.holding == Holding::owner && (spec.cut != TpCut::none || parallel.tp.rank() == 0) &&
         (model.parameters().sharding() != Sharding::none || parallel.dp.rank() == 0);
}

NamedTensor named(const std::string& prefix, const TrainingModel& model, const ParamSpec& spec,
                  Optimizer::Kind kind) {
  NamedTensor tensor{prefix + spec.name, model.parameters().precision().master, spec.shape, {}};
  if (writes(model, spec)) {
    for (const TensorPiece& piece : pieces_here(model, spec, kind)) {
      tensor.pieces.push_back({piece.begin, piece.data});
    }
  }
  return tensor;
}

TensorDestination destination(const std::string& prefix, const TrainingModel& model,
                              const ParamSpec& spec, Optimizer::Kind kind) {
  return {prefix + spec.name, spec.shape, pieces_here(model, spec, kind)};
}

/// Settings that decide what the tensors are: they cannot change within a run.
bool is_fixed(const std::string& key) {
  if (key == "model.attention" || key == "model.dropout") return false;
  return key.starts_with("model.") || key == "train.precision";
}

}  // namespace

SaveResult save_run(const std::filesystem::path& run, const RunProgress& progress,
                    const Config& config, const Tokenizer& tokenizer, TrainingModel& model) {
  const Optimizer& optimizer = model.optimizer();
  CheckpointContents contents;
  contents.step = progress.step;
  contents.state = {{"samples", progress.samples},
                    {"evaluation_due", progress.evaluation_due},
                    {"vocabulary", model.gpt().sizes().V},
                    {"tokenizer_hash", fmt::format("{:016x}", tokenizer.hash())},
                    {"step_state", step_state_to_json(optimizer.state())}};
  contents.files = {{"config.yaml", to_yaml(config)}, {"tokenizer.json", tokenizer.to_json()}};
  for (const ParamSpec& spec : model.parameters().table()) {
    contents.model.push_back(named("", model, spec, Optimizer::Kind::master));
    for (const Moment& moment : kMoments) {
      contents.optimizer.push_back(named(moment.prefix, model, spec, moment.kind));
    }
  }
  Communicator* const world = model.parallel().world;
  if (world == nullptr || world->size() == 1) {
    return save_checkpoint(run, contents, config.checkpoint.keep);
  }
  return save_together(run, contents, config.checkpoint.keep, model.executor(), *world);
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
  for (const ParamSpec& spec : model.parameters().table()) {
    weights.push_back(destination("", model, spec, Optimizer::Kind::master));
    for (const Moment& moment : kMoments) {
      moments.push_back(destination(moment.prefix, model, spec, moment.kind));
    }
  }
  checkpoint.load(weights, moments);
  model.publish();
  const nlohmann::json& state = checkpoint.state();
  optimizer.set_state(step_state_from_json(state.at("step_state")));
  return {.step = checkpoint.step(),
          .samples = state.at("samples").get<int64_t>(),
          .evaluation_due = state.value("evaluation_due", false)};
}

}  // namespace gradus
