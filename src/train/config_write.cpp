#include <fmt/format.h>

#include <type_traits>

#include "train/config_fields.h"
#include "train/config_value.h"

namespace gradus {
namespace {

template <typename Section>
void append_yaml(const Section& section, const std::string& indent, std::string& out) {
  for_each_field(section, [&](const auto& field, const auto& value) {
    if constexpr (kIsSection<std::remove_cvref_t<decltype(value)>>) {
      out += fmt::format("{}{}:\n", indent, field.key);
      append_yaml(value, indent + "  ", out);
    } else {
      out += fmt::format("{}{}: {}\n", indent, field.key, write_value(value));
    }
  });
}

std::string without_article(const std::string& type) {
  for (const std::string_view article : {"an ", "a "}) {
    if (type.starts_with(article)) return type.substr(article.size());
  }
  return type;
}

template <typename Field, typename T>
std::string reference_row(const Field& field, const T& value) {
  std::string range;
  if constexpr (std::is_same_v<T, std::vector<std::string>>) {
    if (field.range.low > 0) range = "not empty";
  } else {
    range = range_text(field.range);
  }
  if (range.starts_with(' ')) range.erase(0, 1);
  return fmt::format("| `{}` | {} | `{}` | {} | {} |\n", field.key,
                     without_article(type_text(value)), write_value(value), range, field.doc);
}

constexpr std::string_view kTableHead =
    "| key | type | default | range | meaning |\n| --- | --- | --- | --- | --- |\n";

constexpr std::string_view kIntroduction = R"(# Configuration

<!-- Generated from src/train/config_fields.h by gradus_config_reference. Change it there. -->

A run is described by one YAML file. Every key has a default, so a file says only what differs.

- `base: FILE` at the top level inherits another file, found relative to the one that names it. Sections
  are merged key by key, a list replaces the inherited list. Bases may have bases, 16 files at most.
- A configuration is a regular file of UTF-8 text, of at most 1 MiB.
- `gradus train CONFIG section.key=VALUE …` overrides keys. VALUE is read as YAML: `data.train=[a,b]` is
  a list. A later override of the same key wins.
- All problems are reported at once, each with file and line (or "command line"), key, what was found
  and what was expected.
- Problems of the command line alone end with exit code 2, all others with 1.
- Types are strict: `1.0e3` is not an integer, `"4"` is text, booleans are `true` and `false`.
- Paths are relative to the folder the program is started in.

)";

}  // namespace

std::string to_yaml(const Config& config) {
  std::string out;
  append_yaml(config, "", out);
  return out;
}

std::vector<ConfigDifference> config_differences(const Config& a, const Config& b) {
  std::vector<ConfigDifference> differences;
  for_each_value(a, "", [&](const std::string& key, const auto&, const auto& value) {
    differences.push_back({key, write_value(value), {}});
  });
  auto difference = differences.begin();
  for_each_value(b, "", [&](const std::string&, const auto&, const auto& value) {
    (difference++)->b = write_value(value);
  });
  std::erase_if(differences, [](const ConfigDifference& d) { return d.a == d.b; });
  return differences;
}

std::string config_reference_markdown() {
  std::string root(kIntroduction);
  root += "## Top level\n\n";
  root += kTableHead;
  std::string sections;
  const Config config;
  for_each_field(config, [&](const auto& field, const auto& value) {
    if constexpr (kIsSection<std::remove_cvref_t<decltype(value)>>) {
      sections += fmt::format("\n## {}\n\n{}\n\n{}", field.key, field.doc, kTableHead);
      for_each_field(value, [&](const auto& inner, const auto& inner_value) {
        sections += reference_row(inner, inner_value);
      });
    } else {
      root += reference_row(field, value);
    }
  });
  return root + sections;
}

}  // namespace gradus
