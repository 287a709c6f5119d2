#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace gradus {

/// "rank" of one and "ranks" of more, "batch" and "batches".
inline std::string plural(int64_t count, std::string_view noun) {
  return fmt::format("{}{}", noun, count == 1 ? "" : noun.ends_with("ch") ? "es" : "s");
}

/// "1 thread", "2 threads", "2 micro-batches": so many of what the noun names.
inline std::string counted(int64_t count, std::string_view noun) {
  return fmt::format("{} {}", count, plural(count, noun));
}

}  // namespace gradus
