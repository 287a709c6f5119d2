#pragma once

#include <gtest/gtest.h>
#include <omp.h>

namespace gradus::test {

/// Calls body() under each of the circumstances in which OpenMP gives a smaller team than it is
/// asked for, and one in which it does not. What body computes must not differ.
template <typename Body>
void for_each_team(Body&& body) {
  {
    SCOPED_TRACE("the team that is asked for");
    body();
  }
  {
    SCOPED_TRACE("OMP_MAX_ACTIVE_LEVELS=0");
    const int levels = omp_get_max_active_levels();
    omp_set_max_active_levels(0);
    body();
    omp_set_max_active_levels(levels);
  }
  {
    SCOPED_TRACE("inside another parallel region");
#pragma omp parallel num_threads(2)
    {
#pragma omp single
      body();
    }
  }
  {
    SCOPED_TRACE("inside another parallel region, nested teams allowed");
    const int levels = omp_get_max_active_levels();
    omp_set_max_active_levels(2);
#pragma omp parallel num_threads(2)
    {
#pragma omp single
      body();
    }
    omp_set_max_active_levels(levels);
  }
}

}  // namespace gradus::test
