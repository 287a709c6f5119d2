#include "parallel/mesh.h"

#include <fmt/format.h>

#include <vector>

#include "core/counted.h"
#include "core/error.h"

namespace gradus {
namespace {

std::vector<int64_t> divisors(int64_t of) {
  std::vector<int64_t> low, high;
  for (int64_t d = 1; d * d <= of; ++d) {
    if (of % d != 0) continue;
    low.push_back(d);
    if (d != of / d) high.insert(high.begin(), of / d);
  }
  low.insert(low.end(), high.begin(), high.end());
  return low;
}

/// "1, 2, 4 or 8".
std::string alternatives(const std::vector<int64_t>& values) {
  std::string text;
  for (size_t i = 0; i < values.size(); ++i) {
    if (i > 0) text += i + 1 == values.size() ? " or " : ", ";
    text += std::to_string(values[i]);
  }
  return text;
}

void require_positive(const char* name, int64_t value) {
  if (value < 1) throw ConfigError("parallel.{} is {}, and must be at least 1", name, value);
}

}  // namespace

std::string to_string(const MeshShape& shape) {
  return fmt::format("pp {} × dp {} × cp {} × tp {}", shape.pp, shape.dp, shape.cp, shape.tp);
}

MeshShape resolve_mesh(int ranks, int64_t tp, int64_t pp, int64_t cp, std::optional<int64_t> dp) {
  require_positive("tp", tp);
  require_positive("pp", pp);
  require_positive("cp", cp);
  if (dp.has_value()) require_positive("dp", *dp);
  // Factors one by one, so that no product of large numbers is formed.
  const bool divides = ranks % tp == 0 && (ranks / tp) % pp == 0 && (ranks / tp / pp) % cp == 0;
  if (!divides) {
    const std::string others = cp == 1 ? fmt::format("parallel.pp {}", pp)
                                       : fmt::format("parallel.pp {} × parallel.cp {}", pp, cp);
    const bool others_divide = ranks % pp == 0 && (ranks / pp) % cp == 0;
    throw ConfigError(
        "{} cannot be divided into parallel.tp {} × {}: use {}", counted(ranks, "rank"), tp, others,
        others_divide ? fmt::format("tp {}", alternatives(divisors(ranks / pp / cp)))
                      : fmt::format("factors of {} ({}) whose product divides it, or another "
                                    "number of ranks",
                                    ranks, alternatives(divisors(ranks))));
  }
  const int64_t replicas = ranks / tp / pp / cp;
  if (dp.value_or(replicas) != replicas) {
    const int64_t wanted = pp * cp * tp * *dp;
    throw ConfigError(
        "parallel.pp {} × parallel.dp {} × parallel.cp {} × parallel.tp {} = {} asked for, "
        "{} started: use dp {} (or auto), or start {}",
        pp, *dp, cp, tp, counted(wanted, "rank"), ranks, replicas, counted(wanted, "rank"));
  }
  return {static_cast<int>(pp), static_cast<int>(replicas), static_cast<int>(cp),
          static_cast<int>(tp)};
}

MeshCoordinates coordinates_of(const MeshShape& shape, int rank) {
  MeshCoordinates at;
  at.tp = rank % shape.tp;
  at.cp = rank / shape.tp % shape.cp;
  at.dp = rank / (shape.tp * shape.cp) % shape.dp;
  at.pp = rank / (shape.tp * shape.cp * shape.dp);
  return at;
}

int rank_of(const MeshShape& shape, const MeshCoordinates& at) {
  return ((at.pp * shape.dp + at.dp) * shape.cp + at.cp) * shape.tp + at.tp;
}

void require_divisible(const std::string& what, int64_t total, const std::string& parts_name,
                       int64_t parts) {
  if (parts > 0 && total % parts == 0) return;
  throw ConfigError("{} {} are not divisible by {} {}: use {} {}", what, total, parts_name, parts,
                    parts_name, alternatives(divisors(total)));
}

Mesh::Mesh(Bootstrap& bootstrap, const MeshShape& shape)
    : shape_(shape), at_(coordinates_of(shape, bootstrap.rank())) {
  if (shape.size() != bootstrap.size()) {
    throw ConfigError("the mesh {} has {}, and {} started", to_string(shape),
                      counted(shape.size(), "rank"), bootstrap.size());
  }
  // A group's colour is the rank of its member whose coordinate is 0.
  const auto color = [&](int MeshCoordinates::*axis) {
    MeshCoordinates first = at_;
    first.*axis = 0;
    return rank_of(shape_, first);
  };
  world_ = bootstrap.split(0, "world");
  tp_ = bootstrap.split(color(&MeshCoordinates::tp), "tp");
  cp_ = bootstrap.split(color(&MeshCoordinates::cp), "cp");
  dp_ = bootstrap.split(color(&MeshCoordinates::dp), "dp");
  pp_ = bootstrap.split(color(&MeshCoordinates::pp), "pp");
  const bool outer = first_stage() || last_stage();
  embedding_ = bootstrap.split(outer ? color(&MeshCoordinates::pp) : bootstrap.rank(), "embedding");
}

}  // namespace gradus
