#pragma once

#include <functional>
#include <map>
#include <string>

#include "train/config.h"
#include "train/config_problems.h"

namespace gradus {

/// Where a key got its value, and whether the value can be believed.
struct KeyState {
  std::string place;  ///< "file:line" or "command line"; empty: nobody set it
  bool valid = true;  ///< false: misread, out of range, or perhaps hidden by a mistyped key
};
/// By dotted key; holds every key of Config.
using KeyStates = std::map<std::string, KeyState, std::less<>>;

KeyStates default_key_states();

/// Adds a problem for every value outside its range, and marks its key invalid.
void check_ranges(const Config& config, KeyStates& states, ConfigProblems& problems);

/// Adds a problem for every set of keys that contradict each other, as far as all of them are
/// valid, and for every setting this build does not implement.
void check_contradictions(const Config& config, const KeyStates& states, ConfigProblems& problems);

/// "128 or 132": the multiples of `divisor` around `value`, for what to set instead.
std::string nearest_multiples(int64_t value, int64_t divisor);

}  // namespace gradus
