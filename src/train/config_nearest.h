#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace gradus {

/// Insertions, deletions, replacements and swaps of neighbours that turn a into b (optimal string
/// alignment, over bytes).
size_t edit_distance(std::string_view a, std::string_view b);

/// Every dotted key and section name of Config.
std::vector<std::string> known_keys();

/// The key among `known` that a mistyped `dotted` key most likely meant; empty when none is near.
/// A known last part found in another section counts as near.
std::string nearest_key(std::string_view dotted, const std::vector<std::string>& known);

}  // namespace gradus
