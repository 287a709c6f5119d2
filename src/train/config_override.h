#pragma once

#include <string>
#include <vector>

namespace gradus {

/// How to write a setting of the command line that is no section.key=VALUE; empty where nothing is
/// near. known: known_keys().
std::string override_hint(const std::string& text, const std::vector<std::string>& known);

}  // namespace gradus
