#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace gradus::test {

/// The whole lines of a metrics.jsonl; of one being written, a last line without its end is left
/// out.
inline std::vector<nlohmann::json> metrics_lines(const std::filesystem::path& run) {
  std::ifstream file(run / "metrics.jsonl");
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(file, line);) {
    if (file.eof()) break;
    lines.push_back(nlohmann::json::parse(line));
  }
  return lines;
}

inline std::vector<nlohmann::json> metrics_of(const std::filesystem::path& run,
                                              const std::string& event) {
  std::vector<nlohmann::json> found;
  for (nlohmann::json& line : metrics_lines(run)) {
    if (line.at("event") == event) found.push_back(std::move(line));
  }
  return found;
}

}  // namespace gradus::test
