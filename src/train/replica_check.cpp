#include "train/replica_check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <compare>
#include <map>
#include <string>
#include <vector>

#include "core/counted.h"
#include "core/error.h"
#include "core/parallel_for.h"
#include "parallel/gather_values.h"

namespace gradus {
namespace {

enum class Held : int32_t { weights, master, first_moment, second_moment };
constexpr std::array kNames = {"weights", "master weights", "first moment", "second moment"};

/// Which elements of the model these are, whoever holds them.
struct Part {
  int64_t parameter = -1;  ///< index in the model's table; -1: none, to fill up a rank's list
  Held held = Held::weights;
  int32_t unused = 0;
  int64_t cut_begin = 0;  ///< first row or column of this rank of tp
  int64_t first = 0;      ///< within that, of this replica's shard
  int64_t count = 0;

  // Clang-tidy takes the 0 that a defaulted comparison is made with for a null pointer.
  // NOLINTNEXTLINE(modernize-use-nullptr)
  auto operator<=>(const Part&) const = default;
};

struct HashedPart {
  Part part;
  uint64_t hash = 0;
};

/// Whether another rank has the same, as far as the layout says.
bool has_copies(const TrainingModel& model, const Parameter& parameter, Held held) {
  const Parallelism& parallel = model.parallel();
  const bool sharded = model.parameters().sharding() != Sharding::none && held != Held::weights;
  if (parallel.dp.size() > 1 && !sharded) return true;
  if (parallel.tp.size() > 1 && parameter.spec.cut == TpCut::none) return true;
  return parallel.pp.stages() > 1 && parameter.spec.bucket == 0 &&
         model.gpt().options().model.tied_embeddings;
}

/// What this rank holds of a parameter; nothing where it has it under another name.
HeldPart held_part(const TrainingModel& model, const Parameter& parameter, Held held) {
  using Kind = Optimizer::Kind;
  const bool separate = model.parameters().precision().separate_master();
  switch (held) {
    case Held::weights:
      return {0, parameter.value};
    case Held::master:
      return separate ? model.optimizer().held(parameter, Kind::master) : HeldPart{};
    case Held::first_moment:
      return model.optimizer().held(parameter, Kind::first_moment);
    case Held::second_moment:
      return model.optimizer().held(parameter, Kind::second_moment);
  }
  return {};
}

std::vector<HashedPart> hash_parts(TrainingModel& model) {
  struct Source {
    const std::byte* data;
    size_t bytes;
  };
  std::vector<HashedPart> parts;
  std::vector<Source> sources;
  const std::vector<ParamSpec>& table = model.parameters().table();
  for (size_t index = 0; index < table.size(); ++index) {
    if (!model.parameters().has(table[index].name)) continue;
    const Parameter& parameter = model.parameters()[table[index].name];
    for (const Held held : {Held::weights, Held::master, Held::first_moment, Held::second_moment}) {
      if (!has_copies(model, parameter, held)) continue;
      const HeldPart mine = held_part(model, parameter, held);
      if (!mine.values.defined() || mine.values.numel() == 0) continue;
      parts.push_back({{.parameter = static_cast<int64_t>(index),
                        .held = held,
                        .cut_begin = parameter.row_begin,
                        .first = mine.first,
                        .count = mine.values.numel()}});
      sources.push_back({mine.values.data(), static_cast<size_t>(mine.values.bytes())});
    }
  }
  parallel_for(model.executor(), std::ssize(parts), 1, [&](int64_t i) {
    const Source& source = sources[static_cast<size_t>(i)];
    parts[static_cast<size_t>(i)].hash = XXH3_64bits(source.data, source.bytes);
  });
  return parts;
}

/// Every rank's parts, by rank; each rank's are `per_rank` many, filled up.
std::vector<HashedPart> gather_parts(Executor& x, Communicator& world, std::vector<HashedPart> mine,
                                     int64_t& per_rank) {
  per_rank = std::ranges::max(gather_values(x, world, std::ssize(mine)));
  mine.resize(static_cast<size_t>(per_rank));
  std::vector<HashedPart> all(static_cast<size_t>(per_rank * world.size()));
  constexpr int64_t kBytes = sizeof(HashedPart);
  const Tensor into(all.data(), DType::u8, Device::cpu, {kBytes * per_rank * world.size()});
  world.all_gather(x, into, ConstTensor(mine.data(), DType::u8, Device::cpu, {kBytes * per_rank}))
      .wait(x);
  return all;
}

/// "ranks 0 2 against rank 1".
std::string who_holds_what(const std::map<uint64_t, std::vector<int>>& by_hash) {
  std::vector<std::vector<int>> sides;
  for (const auto& [hash, ranks] : by_hash) sides.push_back(ranks);
  std::ranges::sort(sides, {}, [](const std::vector<int>& side) { return side.front(); });
  std::string text;
  for (const std::vector<int>& side : sides) {
    text += fmt::format("{}{} {}", text.empty() ? "" : " against ",
                        plural(std::ssize(side), "rank"), fmt::join(side, " "));
  }
  return text;
}

}  // namespace

void check_replicas(TrainingModel& model) {
  Communicator* const world = model.parallel().world;
  if (world == nullptr || world->size() == 1) return;
  int64_t per_rank = 0;
  const std::vector<HashedPart> all =
      gather_parts(model.executor(), *world, hash_parts(model), per_rank);
  if (per_rank == 0) return;
  std::map<Part, std::map<uint64_t, std::vector<int>>> holders;
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].part.parameter < 0) continue;
    const auto rank = static_cast<int>(static_cast<int64_t>(i) / per_rank);
    holders[all[i].part][all[i].hash].push_back(rank);
  }
  const auto differs = [](const auto& entry) { return entry.second.size() > 1; };
  const auto found = std::ranges::find_if(holders, differs);
  if (found == holders.end()) return;
  const Part& part = found->first;
  throw NumericError(
      "the ranks' copies of the {} of {} are no longer the same ({}; differing: {} of {} "
      "compared): a fault of memory, or processors whose arithmetic differs. Nothing was saved "
      "since; go on from the last checkpoint, on machines of one kind",
      kNames[static_cast<size_t>(part.held)],
      model.parameters().table()[static_cast<size_t>(part.parameter)].name,
      who_holds_what(found->second), std::ranges::count_if(holders, differs), holders.size());
}

}  // namespace gradus
