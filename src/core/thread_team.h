#pragma once

#include <string>

namespace gradus {

/// The team that OpenMP gives when `wanted` threads are asked for, found by asking; it may be
/// smaller. Work is cut by the number that was asked for (core/parallel_for.h) and a smaller team
/// does all of it, so that results do not change.
int obtainable_threads(int wanted);

/// Empty where the whole team can be had; else what was asked for, what there is and the setting
/// that limits it: "3 threads were asked for and OpenMP gives 2 (OMP_THREAD_LIMIT is 2): …".
std::string thread_shortage(int wanted);

}  // namespace gradus
