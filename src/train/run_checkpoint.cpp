#include "train/run_checkpoint.h"

#include "checkpoint/safetensors_writer.h"
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

/// `values` is shaped like the parameter. What every rank of tp has is written by the first of
/// them.
NamedTensor named(const std::string& name, const Parameter& parameter, const Tensor& values,
                  const TensorParallel& tp) {
  NamedTensor tensor{name, values.dtype(), parameter.spec.shape, {}};
  if (parameter.spec.cut != TpCut::none || tp.rank() == 0) {
    const TensorPiece piece = piece_of(parameter, values);
    tensor.pieces.push_back({piece.begin, piece.data});
  }
  return tensor;
}

TensorDestination destination(const std::string& name, const Parameter& parameter,
                              const Tensor& values) {
  return {name, parameter.spec.shape, {piece_of(parameter, values)}};
}

/// The first rank's text, on every rank.
std::string broadcast_text(Executor& x, Communicator& world, std::string text) {
  int32_t size = static_cast<int32_t>(text.size());
  world.broadcast(x, Tensor(&size, DType::i32, Device::cpu, {1}), 0).wait(x);
  text.resize(static_cast<size_t>(size));
  world.broadcast(x, Tensor(text.data(), DType::u8, Device::cpu, {size}), 0).wait(x);
  return text;
}

void write_pieces(SafetensorsWriter& file, const std::vector<NamedTensor>& tensors) {
  for (const NamedTensor& tensor : tensors) {
    for (const ConstTensorPiece& piece : tensor.pieces) file.write(tensor.name, piece);
  }
  file.finish(SafetensorsWriter::Coverage::slices);
}

std::vector<TensorDeclaration> declarations(const std::vector<NamedTensor>& tensors) {
  std::vector<TensorDeclaration> out;
  for (const NamedTensor& tensor : tensors)
    out.push_back({tensor.name, tensor.dtype, tensor.shape});
  return out;
}

/// The first rank makes the folder and its files, every rank writes its pieces, the first commits.
SaveResult save_together(const std::filesystem::path& run, const CheckpointContents& contents,
                         int64_t keep, Executor& x, Communicator& world) {
  const auto weights = declarations(contents.model);
  const auto moments = declarations(contents.optimizer);
  if (world.rank() != 0) {
    const std::filesystem::path folder = broadcast_text(x, world, {});
    auto model_file = SafetensorsWriter::join(folder / kModelFile, weights);
    auto optimizer_file = SafetensorsWriter::join(folder / kOptimizerFile, moments);
    write_pieces(model_file, contents.model);
    write_pieces(optimizer_file, contents.optimizer);
    world.barrier(x).wait(x);  // all pieces are written
    world.barrier(x).wait(x);  // the checkpoint is in place
    return {};
  }
  CheckpointWriter writer(run, contents.step);
  auto model_file = SafetensorsWriter::create(writer.folder() / kModelFile, weights);
  auto optimizer_file = SafetensorsWriter::create(writer.folder() / kOptimizerFile, moments);
  broadcast_text(x, world, writer.folder().string());
  write_pieces(model_file, contents.model);
  write_pieces(optimizer_file, contents.optimizer);
  world.barrier(x).wait(x);
  for (const auto& [name, bytes] : contents.files) writer.add_file(name, bytes);
  writer.add_state(contents.state);
  SaveResult result = writer.commit(keep);
  world.barrier(x).wait(x);
  return result;
}

/// Settings that decide what the tensors are: they cannot change within a run.
bool is_fixed(const std::string& key) {
  if (key == "model.attention" || key == "model.dropout") return false;
  return key.starts_with("model.") || key == "train.precision";
}

}  // namespace

SaveResult save_run(const std::filesystem::path& run, const RunProgress& progress,
                    const Config& config, const Tokenizer& tokenizer, TrainingModel& model,
                    Communicator* world) {
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
    contents.model.push_back(named(name, parameter, optimizer.master(parameter), model.tp()));
    for (const OptimizerTensor& moment : kMoments) {
      contents.optimizer.push_back(
          named(moment.prefix + name, parameter, (optimizer.*moment.view)(parameter), model.tp()));
    }
  }
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
