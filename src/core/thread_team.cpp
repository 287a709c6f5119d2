#include "core/thread_team.h"

#include <fmt/format.h>
#include <omp.h>

namespace gradus {
namespace {

std::string limit_of_team(int wanted) {
  if (omp_get_thread_limit() < wanted) {
    return fmt::format("OMP_THREAD_LIMIT is {}", omp_get_thread_limit());
  }
  if (omp_get_max_active_levels() <= omp_get_active_level()) {
    return fmt::format("OMP_MAX_ACTIVE_LEVELS is {}", omp_get_max_active_levels());
  }
  if (omp_get_dynamic() != 0) return "OMP_DYNAMIC is set";
  return "the OpenMP library has no more";
}

}  // namespace

int obtainable_threads(int wanted) {
  int team = 1;
#pragma omp parallel num_threads(wanted)
  {
#pragma omp single
    team = omp_get_num_threads();
  }
  return team;
}

std::string thread_shortage(int wanted) {
  const int team = wanted > 1 ? obtainable_threads(wanted) : 1;
  if (team >= wanted) return {};
  return fmt::format(
      "{} threads were asked for and OpenMP gives {} ({}): results are those of {} threads, and "
      "take longer",
      wanted, team, limit_of_team(wanted), wanted);
}

}  // namespace gradus
