#pragma once

namespace cudasim {

/// Where an operation stands in the source, taken as a default argument: what all threads that meet
/// in one operation must share, whatever the compiler makes of the code around it.
struct Site {
  const char* file = "";
  int line = 0;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

}  // namespace cudasim
