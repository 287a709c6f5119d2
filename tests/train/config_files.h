#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "support/temp_dir.h"
#include "train/config.h"

namespace gradus {

using Lines = std::vector<std::string>;

/// A file, and its one problem.
struct Misreading {
  const char* text;
  const char* problem;
};

/// A folder of configuration files for one test; "DIR/" in expected problems stands for it.
class ConfigTest : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((dir_ / name).parent_path());
    std::ofstream(dir_ / name, std::ios::binary) << text;
    return dir_ / name;
  }

  Config load(const std::string& text, const Lines& overrides = {}) const {
    return load_config(write("c.yaml", text), overrides);
  }

  /// The problems of one load, without the headline; the headline's count is checked.
  Lines problems_of(const std::filesystem::path& path, const Lines& overrides = {}) const {
    try {
      load_config(path, overrides);
    } catch (const ConfigError& e) {
      std::istringstream in(e.what());
      std::string headline;
      std::getline(in, headline);
      Lines lines;
      for (std::string line; std::getline(in, line);) {
        EXPECT_TRUE(line.starts_with("  ")) << line;
        line.erase(0, 2);
        const std::string folder = dir_.string() + "/";
        for (size_t at; (at = line.find(folder)) != line.npos;) {
          line.replace(at, folder.size(), "DIR/");
        }
        lines.push_back(line);
      }
      EXPECT_EQ(headline, lines.size() == 1
                              ? "1 problem in the configuration"
                              : std::to_string(lines.size()) + " problems in the configuration");
      return lines;
    }
    return {};
  }

  Lines problems(const std::string& text, const Lines& overrides = {}) const {
    return problems_of(write("c.yaml", text), overrides);
  }

  const test::TempDir temp_;
  const std::filesystem::path dir_ = temp_.path();
};

}  // namespace gradus
