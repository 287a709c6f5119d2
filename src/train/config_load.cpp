#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <utility>

#include "core/counted.h"
#include "core/printable_text.h"
#include "train/config_check.h"
#include "train/config_fields.h"
#include "train/config_nearest.h"
#include "train/config_override.h"
#include "train/config_text.h"
#include "train/config_value.h"
#include "train/config_yaml.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;

/// Where a YAML tree comes from: a file, or (with an empty name) the command line.
struct Origin {
  std::string file;

  std::string place(int line) const {
    return file.empty() ? std::string(kCommandLine) : fmt::format("{}:{}", file, line);
  }
};

int line_of(const YAML::Node& node) { return node.Mark().line + 1; }

constexpr size_t kMostBases = 16;
constexpr int kDeepestKey = 8;  // more than any key is
constexpr size_t kLongestQuote = 80;
constexpr size_t kLongestPath = 400;

/// Who wrote what is read.
enum class Writer : uint8_t {
  user,
  program,  ///< to_yaml, in this version or an older one
};

/// A key that there was once: batches of train.micro_batch sequences, which made the text that is
/// evaluated depend on how it is cut.
constexpr std::string_view kEvalBatches = "eval.batches";

/// One place that gives it.
struct EvalBatches {
  std::string place;
  std::optional<int64_t> batches;  ///< nullopt: no integer of at least 1

  /// eval.tokens that reads as much; nullopt where that does not fit in 64 bits.
  std::optional<int64_t> tokens(const Config& config) const {
    int64_t product = batches.value_or(0);
    if (__builtin_mul_overflow(product, config.train.micro_batch, &product) ||
        __builtin_mul_overflow(product, config.model.context, &product) || product < 1) {
      return std::nullopt;
    }
    return product;
  }
};

/// What a shell would have replaced.
bool is_shell_notation(std::string_view text) {
  if (text.starts_with("~/")) return true;
  const size_t dollar = text.find('$');
  if (dollar == text.npos || dollar + 1 == text.size()) return false;
  const char next = text[dollar + 1];
  return next == '{' || next == '(' || next == '_' ||
         std::isalpha(static_cast<unsigned char>(next)) != 0;
}

std::vector<std::string> texts_of(const std::string& value) { return {value}; }
std::vector<std::string> texts_of(const std::vector<std::string>& value) { return value; }
std::vector<std::string> texts_of(const Resume& value) { return {value.path}; }
template <typename T>
std::vector<std::string> texts_of(const T&) {
  return {};
}

/// Lays one YAML tree after another over the defaults.
class ConfigLoader {
 public:
  explicit ConfigLoader(Writer writer) : writer_(writer) {}

  void add_file(const fs::path& path) { add_file(path, ""); }

  void add_text(const std::string& text, const std::string& name) {
    if (const std::optional<YAML::Node> root = parse_text(text, name)) {
      read_section(*root, "", config_, Origin{name});
    }
  }

  /// text: section.key=VALUE
  void add_override(const std::string& text) {
    const size_t equals = text.find('=');
    const std::string key = text.substr(0, equals);
    if (equals == text.npos || key.empty() || key.front() == '.' || key.back() == '.' ||
        key.find("..") != key.npos) {
      const std::string hint = override_hint(text, known_);
      problems_.add(kCommandLine, "",
                    fmt::format("found '{}', expected section.key=VALUE{}{}", text,
                                hint.empty() ? "" : "; ", hint));
      return;
    }
    if (key == "base") {
      problems_.add(kCommandLine, key, "can only be given in a file");
      return;
    }
    if (std::ranges::count(key, '.') > kDeepestKey) {
      report_unknown(key, "", std::string(kCommandLine));
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

  ConfigPlaces places() const {
    ConfigPlaces places;
    for (const auto& [key, state] : states_) {
      if (!state.place.empty()) places.emplace(key, state.place);
    }
    return places;
  }

  Config finish() {
    check_ranges(config_, states_, problems_);
    for (const EvalBatches& old : eval_batches_) replace(old);
    if (writer_ == Writer::user) refuse_shell_notation();
    // Half a configuration contradicts itself in ways that its author did not.
    if (complete_) check_contradictions(config_, states_, problems_);
    problems_.throw_if_any();
    return std::move(config_);
  }

 private:
  /// named_at: the place of the `base` that names the file; empty for the first.
  void add_file(const fs::path& path, const std::string& named_at) {
    const Origin origin{path.string()};
    if (open_files_.size() == kMostBases) {
      problems_.add(named_at, "base",
                    fmt::format("more than {} files inherit from each other", kMostBases));
      complete_ = false;
      return;
    }
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
    std::string text;
    if (const std::optional<std::string> problem = read_config_text(path, text)) {
      problems_.add(named_at.empty() ? path.string() : named_at, named_at.empty() ? "" : "base",
                    fmt::format("cannot read the file {}: {}",
                                shortened(path.string(), kLongestPath), *problem));
      return std::nullopt;
    }
    return parse_text(text, path.string());
  }

  /// nullopt: a problem was added.
  std::optional<YAML::Node> parse_text(const std::string& text, const std::string& name) {
    const Origin origin{name};
    if (const std::optional<TextProblem> problem = find_text_problem(text)) {
      problems_.add(origin.place(problem->line), "", problem->message);
      return std::nullopt;
    }
    try {
      return parse_yaml(text);
    } catch (const YAML::Exception& e) {
      const bool tab = e.mark.column >= 0 && begins_with_tab(text, e.mark.line);
      problems_.add(e.mark.is_null() ? origin.file : origin.place(e.mark.line + 1), "",
                    fmt::format("not valid YAML: {} (column {}){}", e.msg, e.mark.column + 1,
                                tab ? "; YAML is indented by spaces, not by tabs" : ""));
      return std::nullopt;
    }
  }

  /// Whether YAML would end the value there, and not say so.
  static bool has_comment(const std::string& text) {
    const bool quoted = text.starts_with('"') || text.starts_with('\'');
    return !quoted &&
           (text.starts_with('#') || text.find(" #") != text.npos || text.find("\t#") != text.npos);
  }

  bool parse_override_value(const std::string& key, const std::string& text, YAML::Node& value) {
    if (has_comment(text)) {
      problems_.add(kCommandLine, key,
                    fmt::format("'{}': what follows # would be a comment; quote the value: "
                                "'{}=\"…\"'",
                                shortened(text, kLongestQuote), key));
      return false;
    }
    try {
      value.reset(parse_yaml(text));
      return true;
    } catch (const YAML::Exception& e) {
      const bool open = text.starts_with('[') || text.starts_with('{');
      problems_.add(kCommandLine, key,
                    fmt::format("'{}' is not valid YAML: {}{}", shortened(text, kLongestQuote),
                                e.msg, open ? "; a list with spaces needs quotes in a shell" : ""));
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
      if (prefix.empty() && key == "base" && writer_ == Writer::user && !origin.file.empty()) {
        continue;  // add_base read it
      }
      bool known = false;
      for_each_field(section, [&](const auto& field, auto& value) {
        if (field.key != key) return;
        known = true;
        read_field(pair.second, dotted, field, value, origin, line);
      });
      if (known) continue;
      if (dotted == kEvalBatches) {
        note_eval_batches(pair.second, origin.place(line));
      } else {
        report_unknown(dotted, prefix, origin.place(line));
      }
    }
  }

  template <typename Field, typename T>
  void read_field(const YAML::Node& node, const std::string& dotted, const Field& field, T& value,
                  const Origin& origin, int line) {
    if constexpr (kIsSection<T>) {
      if (node.IsNull() && origin.file.empty()) {
        problems_.add(kCommandLine, dotted, "found nothing, expected a section of keys");
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
      if (node.IsNull() && origin.file.empty()) message += "; is a variable of the shell empty?";
      problems_.add(origin.place(misread->line > 0 ? misread->line : line), dotted, message);
    }
  }

  /// A run would make a folder called $HOME.
  void refuse_shell_notation() {
    for_each_value(config_, "", [&](const std::string& key, const auto&, const auto& value) {
      for (const std::string& text : texts_of(value)) {
        if (!is_shell_notation(text)) continue;
        problems_.add(states_.at(key).place, key,
                      fmt::format("found '{}': ~ and variables are not replaced here; write the "
                                  "path out",
                                  shortened(text, kLongestQuote)));
      }
    });
  }

  void note_eval_batches(const YAML::Node& node, const std::string& place) {
    int64_t batches = 0;
    const bool read = !read_value(node, batches) && batches >= 1;
    eval_batches_.push_back({place, read ? std::optional(batches) : std::nullopt});
  }

  /// Says what to write for the key of old, or, in what an older version saved, takes it for that.
  void replace(const EvalBatches& old) {
    const bool known = states_.at("train.micro_batch").valid && states_.at("model.context").valid;
    const std::optional<int64_t> tokens = known ? old.tokens(config_) : std::nullopt;
    if (!tokens) {
      problems_.add(old.place, kEvalBatches,
                    "is now eval.tokens: write the batches × train.micro_batch × model.context, or "
                    "all");
    } else if (writer_ == Writer::program) {
      config_.eval.tokens.count = tokens;
    } else {
      problems_.add(old.place, kEvalBatches,
                    fmt::format("{} is now eval.tokens: {} ({} of micro_batch {} × context "
                                "{} tokens)",
                                *old.batches, *tokens, counted(*old.batches, "batch"),
                                config_.train.micro_batch, config_.model.context));
    }
  }

  void report_unknown(const std::string& dotted, const std::string& prefix,
                      const std::string& place) {
    // Nobody mistypes a key to one of another length altogether.
    const bool plausible = dotted.size() <= kLongestQuote;
    const std::string nearest = plausible ? nearest_key(dotted, known_) : "";
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

  Writer writer_;
  Config config_;
  std::vector<EvalBatches> eval_batches_;
  KeyStates states_ = default_key_states();
  ConfigProblems problems_;
  std::vector<std::string> known_ = known_keys();
  std::vector<fs::path> open_files_;  ///< from the first file to the one whose base is being read
  bool complete_ = true;
};

}  // namespace

Config load_config(const fs::path& file, std::span<const std::string> overrides,
                   ConfigPlaces* places) {
  ConfigLoader loader(Writer::user);
  loader.add_file(file);
  for (const std::string& text : overrides) loader.add_override(text);
  Config config = loader.finish();
  if (places != nullptr) *places = loader.places();
  return config;
}

std::string places_of_keys(std::string_view message, const ConfigPlaces& places) {
  const auto continues = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_';
  };
  std::string lines;
  for (const auto& [key, place] : places) {
    const size_t at = message.find(key);
    const size_t end = at + key.size();
    if (at == message.npos || (end < message.size() && continues(message[end]))) continue;
    lines += fmt::format("\n  {}: {}", key, place);
  }
  return lines;
}

Config load_saved_config(const std::string& text, const std::string& name) {
  ConfigLoader loader(Writer::program);
  loader.add_text(text, name);
  return loader.finish();
}

}  // namespace gradus
