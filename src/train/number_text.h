#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace gradus {

/// Numbers as configurations and command lines write them, whole and strictly: decimal, without
/// spaces, underscores, leading zeros or anything behind, finite. A leading plus sign is allowed.
/// Returns nullopt where value was read, else how to write what was probably meant, or why it
/// cannot be; empty where there is nothing to say.
std::optional<std::string> read_integer(std::string_view text, int64_t& value);
std::optional<std::string> read_number(std::string_view text, double& value);

}  // namespace gradus
