#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <set>
#include <utility>

#include "train/config_check.h"
#include "train/config_fields.h"
#include "train/config_nearest.h"
#include "train/config_value.h"
#include "train/config_yaml.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;

/// Where a YAML tree comes from: a file, or (with an empty name) the command line.
struct Origin {
  std::string file;

  std::string place(int line) const {
    return file.empty() ? "command line" : fmt::format("{}:{}", file, line);
  }
};

int line_of(const YAML::Node& node) { return node.Mark().line + 1; }

/// Lays one YAML tree after another over the defaults.
class Loader {
 public:
  void add_file(const fs::path& path) { add_file(path, ""); }

  /// text: section.key=VALUE
  void add_override(const std::string& text) {
    const size_t equals = text.find('=');
    const std::string key = text.substr(0, equals);
    if (equals == text.npos || key.empty() || key.front() == '.' || key.back() == '.' ||
        key.find("..") != key.npos) {
      problems_.add("command line", "",
                    fmt::format("found '{}', expected section.key=VALUE", text));
      return;
    }
    if (key == "base") {
      problems_.add("command line", key, "can only be given in a file");
      return;
    }
    YAML::Node tree;
    if (!parse_override_value(key, text.substr(equals + 1), tree)) return;
    // The value sinks into one map for each part of its key, and is then read like a file.
    for (std::string rest = key; !rest.empty();) {
      const size_t dot = rest.rfind('.');
      YAML::Node section(YAML::NodeType::Map);
      section.force_insert(rest.substr(dot + 1), tree);  // npos + 1 is 0
      tree.reset(section);
      rest.resize(dot == rest.npos ? 0 : dot);
    }
    read_section(tree, "", config_, Origin{});
  }

  Config finish() {
    check_ranges(config_, states_, problems_);
    // Half a configuration contradicts itself in ways that its author did not.
    if (complete_) check_contradictions(config_, states_, problems_);
    problems_.throw_if_any();
    return std::move(config_);
  }

 private:
  /// named_at: the place of the `base` that names the file; empty for the first.
  void add_file(const fs::path& path, const std::string& named_at) {
    const Origin origin{path.string()};
    std::error_code failed;
    fs::path identity = fs::weakly_canonical(path, failed);
    if (failed) identity = path;  // reading it will say why
    if (std::find(open_files_.begin(), open_files_.end(), identity) != open_files_.end()) {
      std::string chain;
      for (const fs::path& file : open_files_) chain += file.filename().string() + " -> ";
      problems_.add(
          named_at, "base",
          fmt::format("files inherit in a circle: {}{}", chain, identity.filename().string()));
      complete_ = false;
      return;
    }
    std::optional<YAML::Node> root = parse_file(path, named_at);
    if (!root) {
      complete_ = false;
      return;
    }
    open_files_.push_back(identity);
    if (root->IsMap()) add_base(*root, path, origin);
    open_files_.pop_back();
    read_section(*root, "", config_, origin);
  }

  /// nullopt: a problem was added.
  std::optional<YAML::Node> parse_file(const fs::path& path, const std::string& named_at) {
    const std::string place = named_at.empty() ? path.string() : named_at;
    const std::string key = named_at.empty() ? "" : "base";
    std::error_code ignored;
    std::ifstream in(path, std::ios::binary);
    if (!in || fs::is_directory(path, ignored)) {
      problems_.add(place, key,
                    fmt::format("cannot read the file {}: {}", path.string(),
                                !fs::exists(path, ignored)        ? "it does not exist"
                                : fs::is_directory(path, ignored) ? "it is a folder"
                                                                  : "permission denied"));
      return std::nullopt;
    }
    const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    try {
      return parse_yaml(text);
    } catch (const YAML::Exception& e) {
      const Origin origin{path.string()};
      problems_.add(e.mark.is_null() ? origin.file : origin.place(e.mark.line + 1), "",
                    fmt::format("not valid YAML: {} (column {})", e.msg, e.mark.column + 1));
      return std::nullopt;
    }
  }

  bool parse_override_value(const std::string& key, const std::string& text, YAML::Node& value) {
    try {
      value.reset(parse_yaml(text));
      return true;
    } catch (const YAML::Exception& e) {
      problems_.add("command line", key, fmt::format("'{}' is not valid YAML: {}", text, e.msg));
      return false;
    }
  }

  /// Inherits what `base` names, before the file's own keys are laid over it.
  void add_base(const YAML::Node& root, const fs::path& path, const Origin& origin) {
    for (const auto& pair : root) {
      if (!pair.first.IsScalar() || pair.first.Scalar() != "base") continue;
      const std::string place = origin.place(line_of(pair.first));
      std::string base;
      if (const ReadResult misread = read_value(pair.second, base)) {
        problems_.add(place, "base", fmt::format("found {}, expected a path", misread->found));
        complete_ = false;
      } else {
        add_file((path.parent_path() / base).lexically_normal(), place);
      }
      return;  // read_section reports a second one
    }
  }

  /// Lays the entries of a map over `section`, whose dotted key is `prefix` (empty for the root).
  template <typename Section>
  void read_section(const YAML::Node& map, const std::string& prefix, Section& section,
                    const Origin& origin) {
    if (map.IsNull()) return;  // an empty file, or a section whose keys are all commented out
    if (!map.IsMap()) {
      problems_.add(origin.place(line_of(map)), prefix,
                    fmt::format("found {}, expected a section of keys", describe(map)));
      invalidate(prefix);
      return;
    }
    std::map<std::string, int> first_lines;
    for (const auto& pair : map) {
      const int line = line_of(pair.first);
      if (!pair.first.IsScalar()) {
        problems_.add(origin.place(line), prefix,
                      fmt::format("found {} as a key, expected a name", describe(pair.first)));
        continue;
      }
      const std::string& key = pair.first.Scalar();
      const std::string dotted = dotted_key(prefix, key);
      if (const auto [first, added] = first_lines.emplace(key, line); !added) {
        problems_.add(origin.place(line), dotted,
                      origin.file.empty() ? "given twice: remove one"
                                          : fmt::format("given twice, first at line {}: remove one",
                                                        first->second));
        continue;
      }
      if (prefix.empty() && key == "base" && !origin.file.empty()) continue;  // add_base read it
      bool known = false;
      for_each_field(section, [&](const auto& field, auto& value) {
        if (field.key != key) return;
        known = true;
        read_field(pair.second, dotted, field, value, origin, line);
      });
      if (!known) report_unknown(dotted, prefix, origin.place(line));
    }
  }

  template <typename Field, typename T>
  void read_field(const YAML::Node& node, const std::string& dotted, const Field& field, T& value,
                  const Origin& origin, int line) {
    if constexpr (kIsSection<T>) {
      if (node.IsNull() && origin.file.empty()) {
        problems_.add("command line", dotted, "found nothing, expected a section of keys");
      } else {
        read_section(node, dotted, value, origin);
      }
    } else {
      KeyState& state = states_.at(dotted);
      T read{};
      const ReadResult misread = read_value(node, read);
      state.valid = !misread;
      if (!misread) {
        state.place = origin.place(line);
        value = std::move(read);
        return;
      }
      std::string message =
          fmt::format("found {}, expected {}", misread->found, expectation(value, field.range));
      if (!misread->hint.empty()) message += "; " + misread->hint;
      problems_.add(origin.place(misread->line > 0 ? misread->line : line), dotted, message);
    }
  }

  void report_unknown(const std::string& dotted, const std::string& prefix,
                      const std::string& place) {
    const std::string nearest = nearest_key(dotted, known_);
    if (!nearest.empty()) {
      invalidate(nearest);
      problems_.add(place, dotted,
                    nearest == dotted  // one key with a dot in it instead of a section
                        ? fmt::format("unknown key; write it as the key {} of the section {}",
                                      dotted.substr(dotted.rfind('.') + 1),
                                      dotted.substr(0, dotted.rfind('.')))
                        : fmt::format("unknown key; did you mean {}?", nearest));
      return;
    }
    const std::string inside = prefix.empty() ? "" : prefix + ".";
    std::vector<std::string_view> here;
    for (const std::string_view key : known_) {
      if (!key.starts_with(inside)) continue;
      const std::string_view name = key.substr(inside.size());
      if (name.find('.') == name.npos) here.push_back(name);
    }
    problems_.add(place, dotted,
                  fmt::format("unknown key; expected one of {}", fmt::join(here, ", ")));
  }

  /// A key, or all keys of a section, may have a value that could not be read.
  void invalidate(const std::string& key) {
    for (auto& [dotted, state] : states_) {
      if (key.empty() || dotted == key || dotted.starts_with(key + ".")) state.valid = false;
    }
  }

  Config config_;
  KeyStates states_ = default_key_states();
  ConfigProblems problems_;
  std::vector<std::string> known_ = known_keys();
  std::vector<fs::path> open_files_;  ///< from the first file to the one whose base is being read
  bool complete_ = true;
};

}  // namespace

Config load_config(const fs::path& file, std::span<const std::string> overrides) {
  Loader loader;
  loader.add_file(file);
  for (const std::string& text : overrides) loader.add_override(text);
  return loader.finish();
}

}  // namespace gradus
