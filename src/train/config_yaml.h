#pragma once

#include <yaml-cpp/yaml.h>

#include <string>

namespace gradus {

/// The one YAML document of `text`; a null node when it is empty. Throws YAML::ParserException when
/// the text is not YAML, nests too deeply, or goes on after its first document.
YAML::Node parse_yaml(const std::string& text);

}  // namespace gradus
