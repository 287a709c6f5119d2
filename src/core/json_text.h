#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "core/error.h"

namespace gradus {

/// What a file's JSON may hold. Everything that Gradus writes is far below.
struct JsonLimits {
  int64_t bytes = int64_t{64} << 20;
  int64_t values = 4'000'000;  ///< of all kinds, at every depth; keys not counted
  int depth = 16;              ///< objects and arrays within each other
};

/// The value that `text` is, in time and memory proportional to its length, which `limits` bound.
/// Nothing, and what is wrong in `problem`, where it is not JSON (RFC 8259), goes beyond the
/// limits, or names a member of an object twice: whoever reads such a file, one of the two is not
/// read.
std::optional<nlohmann::json> parse_json(std::string_view text, std::string& problem,
                                         const JsonLimits& limits = {});

/// The same; throws SomeError with `name`, which stands for the file.
template <typename SomeError>
nlohmann::json parse_json_or_throw(std::string_view text, const std::string& name,
                                   const JsonLimits& limits = {}) {
  std::string problem;
  std::optional<nlohmann::json> value = parse_json(text, problem, limits);
  if (!value) throw SomeError("{}: {}", name, problem);
  return *std::move(value);
}

}  // namespace gradus
