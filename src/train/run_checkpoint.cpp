#include "train/run_checkpoint.h"

#include <array>
#include <optional>
#include <utility>

#include "checkpoint/checkpoint_state.h"
#include "core/error.h"
#include "kernels/elementwise.h"
#include "train/first_nonfinite.h"
#include "train/save_together.h"

namespace gradus {
namespace {

/// What a checkpoint holds of each parameter beside its weights.
struct Moment {
  const char* prefix;
  Optimizer::Kind kind;
  Elements elements;
};
constexpr std::array kMoments = {
    Moment{"adam.m.", Optimizer::Kind::first_moment, Elements::finite},
    Moment{"adam.v.", Optimizer::Kind::second_moment, Elements::not_negative}};

constexpr Moment kWeights = {"", Optimizer::Kind::master, Elements::finite};

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

TensorDestination destination(const Moment& of, const TrainingModel& model, const ParamSpec& spec) {
  return {of.prefix + spec.name, spec.shape, pieces_here(model, spec, of.kind), of.elements};
}

/// Settings that decide what the tensors are: they cannot change within a run.
bool is_fixed(const std::string& key) {
  if (key == "model.attention" || key == "model.dropout") return false;
  return key.starts_with("model.") || key == "train.precision";
}

constexpr const char* kOtherData =
    " To go on with this data: data.changed=allow; the steps to come read it from where the run "
    "had come in the other.";

}  // namespace

SaveResult save_run(const std::filesystem::path& run, const RunProgress& progress,
                    const Config& config, const Tokenizer& tokenizer, const DataIdentity& data,
                    TrainingModel& model) {
  const Optimizer& optimizer = model.optimizer();
  CheckpointContents contents;
  contents.step = progress.step;
  contents.state = to_json(RunState{.progress = progress,
                                    .vocabulary = model.gpt().sizes().V,
                                    .tokenizer_hash = fmt::format("{:016x}", tokenizer.hash()),
                                    .data = data,
                                    .step_state = optimizer.state()});
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

std::string unfit_to_save(TrainingModel& model) {
  const StepState state = model.optimizer().state();
  if (state.nonfinite != 0) {
    return state.skipped_in_row == 1
               ? std::string("the last step changed nothing")
               : fmt::format("the last {} steps changed nothing", state.skipped_in_row);
  }
  Executor& x = model.executor();
  std::string found;
  for (const Parameter& parameter : model.parameters().all()) {
    for (const Moment& of : {kWeights, kMoments[0], kMoments[1]}) {
      const HeldPart part = model.optimizer().held(parameter, of.kind);
      if (!found.empty() || part.values.numel() == 0 || all_finite(x, part.values)) continue;
      found = fmt::format("{}{} is not finite", of.prefix, parameter.spec.name);
    }
  }
  return first_finding(x, model.parallel().world, found, 0.0);
}

std::vector<std::string> check_run(const Checkpoint& checkpoint, const Config& config,
                                   const Tokenizer& tokenizer, const DataIdentity& data) {
  const RunState state = run_state_of(checkpoint);
  const std::string name = checkpoint.path().filename().string();
  std::vector<std::string> problems;
  std::vector<std::string> changed;
  const Config saved = load_saved_config(checkpoint.file("config.yaml"),
                                         (checkpoint.path() / "config.yaml").string());
  for (const ConfigDifference& difference : config_differences(saved, config)) {
    const std::string line =
        fmt::format("{}: {} -> {}", difference.key, difference.a, difference.b);
    (is_fixed(difference.key) ? problems : changed).push_back(line);
  }
  if (checkpoint.file("tokenizer.json") != tokenizer.to_json()) {
    problems.push_back("the data was tokenized with another tokenizer");
  } else {
    check_tokenizer_hash(checkpoint, tokenizer.hash());
  }
  std::string advice;
  if (state.data) {
    const std::vector<std::string> lines = data_differences(*state.data, data);
    const bool refuse = config.data.changed == ChangedData::refuse;
    if (!lines.empty() && refuse && problems.empty()) advice = kOtherData;
    auto& list = refuse ? problems : changed;
    list.insert(list.end(), lines.begin(), lines.end());
  }
  if (!problems.empty()) {
    throw CheckpointError(
        "{} does not belong to this configuration (checkpoint -> now):\n  {}\nGo on with the "
        "settings of the checkpoint, or set another run.dir to start afresh.{}",
        checkpoint.path().string(), fmt::join(problems, "\n  "), advice);
  }
  for (std::string& line : changed) line = fmt::format("changed since {}: {}", name, line);
  if (!state.data) {
    changed.push_back(fmt::format(
        "{} was saved by a version that did not note its data: nothing says whether data.train is "
        "what it was",
        name));
  }
  return changed;
}

RunProgress load_run(const Checkpoint& checkpoint, TrainingModel& model) {
  Optimizer& optimizer = model.optimizer();
  optimizer.reset(model.executor());
  std::vector<TensorDestination> weights;
  std::vector<TensorDestination> moments;
  for (const ParamSpec& spec : model.parameters().table()) {
    weights.push_back(destination(kWeights, model, spec));
    for (const Moment& moment : kMoments) moments.push_back(destination(moment, model, spec));
  }
  const RunState state = run_state_of(checkpoint);
  if (const int64_t V = model.gpt().sizes().V; state.vocabulary != V) {
    throw CheckpointError("{}: field 'vocabulary': found {}, expected the model's {}",
                          state_name(checkpoint), state.vocabulary, V);
  }
  checkpoint.load(weights, moments);
  model.publish();
  optimizer.set_state(state.step_state);
  return state.progress;
}

}  // namespace gradus
