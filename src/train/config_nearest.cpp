#include "train/config_nearest.h"

#include <algorithm>
#include <numeric>

#include "train/config_fields.h"

namespace gradus {
namespace {

std::string_view last_part(std::string_view dotted) {
  return dotted.substr(dotted.rfind('.') + 1);  // npos + 1 is 0
}

std::string_view section_of(std::string_view dotted) {
  const size_t dot = dotted.rfind('.');
  return dot == dotted.npos ? std::string_view{} : dotted.substr(0, dot);
}

template <typename Section>
void append_keys(Section& section, const std::string& prefix, std::vector<std::string>& keys) {
  for_each_field(section, [&](const auto& field, auto& value) {
    keys.push_back(dotted_key(prefix, field.key));
    if constexpr (kIsSection<std::remove_cvref_t<decltype(value)>>) {
      append_keys(value, std::string(keys.back()), keys);
    }
  });
}

}  // namespace

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  std::iota(last.begin(), last.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({replaced, last[j] + 1, row[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
    before_last.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

std::vector<std::string> known_keys() {
  std::vector<std::string> keys;
  const Config config;
  append_keys(config, "", keys);
  return keys;
}

std::string nearest_key(std::string_view dotted, const std::vector<std::string>& known) {
  const std::string_view name = last_part(dotted);
  std::string nearest;
  // A third of the letters may be wrong, and always one of them.
  size_t least = std::max<size_t>(1, name.size() / 3) + 1;
  for (const std::string& key : known) {
    const size_t elsewhere = section_of(dotted) == section_of(key) ? 0 : 1;
    const size_t distance =
        std::min(edit_distance(name, last_part(key)) + elsewhere, edit_distance(dotted, key));
    if (distance < least) {
      least = distance;
      nearest = key;
    }
  }
  return nearest;
}

}  // namespace gradus
