#include "checkpoint/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

#include "core/counted.h"
#include "core/error.h"
#include "core/json_text.h"
#include "core/printable_text.h"

namespace gradus {
namespace {

using Json = nlohmann::json;

/// Objects in an object, and arrays in these.
constexpr JsonLimits kHeaderLimits = {.bytes = kMaxSafetensorsHeaderBytes, .depth = 3};

Json parse_header_text(std::string_view text, const std::string& path) {
  if (text.empty() || text.front() != '{') {
    throw CheckpointError("{}: the header does not start with '{{'; not a safetensors file", path);
  }
  return parse_json_or_throw<CheckpointError>(text, path + ": the header", kHeaderLimits);
}

/// A non-negative integer; JSON's floats and negative numbers are not.
std::optional<int64_t> size_from(const Json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const auto number = value.get<uint64_t>();
  if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return static_cast<int64_t>(number);
}

/// One tensor's entry. `begin` and `end` are still relative to the end of the header.
SafetensorsEntry entry_from(const std::string& path, const std::string& name, const Json& value) {
  const auto refuse = [&](const std::string& what) -> CheckpointError {
    return CheckpointError("{}: tensor '{}': {}", path, printable(name), what);
  };
  if (!value.is_object()) throw refuse("its entry is not a JSON object");
  for (const auto& [key, unused] : value.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      throw refuse(fmt::format("unknown key '{}'", printable(key)));
    }
  }
  if (value.size() != 3) throw refuse("expected the keys dtype, shape and data_offsets");

  SafetensorsEntry entry;
  entry.name = name;
  const Json& dtype = value["dtype"];
  if (dtype.is_string()) entry.type = find_safetensors_dtype(dtype.get_ref<const std::string&>());
  if (entry.type == nullptr) {
    throw refuse(fmt::format("unknown dtype {}", printable(dtype.dump())));
  }

  const Json& shape = value["shape"];
  if (!shape.is_array()) throw refuse("shape is not an array");
  int64_t bits = entry.type->bits;
  int64_t strides = 1;  // of an empty tensor too
  bool overflow = false;
  for (const Json& axis : shape) {
    const std::optional<int64_t> size = size_from(axis);
    if (!size) throw refuse(fmt::format("{} is not a size", printable(axis.dump())));
    entry.shape.push_back(*size);
    overflow |= __builtin_mul_overflow(bits, *size, &bits);
    overflow |= __builtin_mul_overflow(strides, std::max<int64_t>(*size, 1), &strides);
  }
  if (overflow || bits % 8 != 0) {
    throw refuse(fmt::format("a shape of [{}] does not make a whole number of bytes",
                             fmt::join(entry.shape, ", ")));
  }

  const Json& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !size_from(offsets[0]) ||
      !size_from(offsets[1])) {
    throw refuse("data_offsets are not two sizes");
  }
  entry.begin = *size_from(offsets[0]);
  entry.end = *size_from(offsets[1]);
  if (entry.begin > entry.end || entry.end - entry.begin != bits / 8) {
    throw refuse(fmt::format("data_offsets [{}, {}) do not span the {} bytes of {} [{}]",
                             entry.begin, entry.end, bits / 8, entry.type->name,
                             fmt::join(entry.shape, ", ")));
  }
  return entry;
}

std::map<std::string, std::string> metadata_from(const std::string& path, const Json& value) {
  if (!value.is_object()) throw CheckpointError("{}: __metadata__ is not a JSON object", path);
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) {
      throw CheckpointError("{}: __metadata__: '{}' is not text", path, printable(key));
    }
    metadata[key] = text.get<std::string>();
  }
  return metadata;
}

}  // namespace

int64_t SafetensorsEntry::numel() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile file{InputFile(path)};
  file.parse_header();
  return file;
}

void SafetensorsFile::parse_header() {
  const std::string path = this->path().string();
  const int64_t file_size = file_.size();
  if (file_size < kSafetensorsPrefixBytes) {
    throw CheckpointError("{}: {}: too few for a safetensors file", path,
                          counted(file_size, "byte"));
  }
  uint64_t header_size = 0;
  file_.read(0, std::span(reinterpret_cast<char*>(&header_size), sizeof header_size));
  if (header_size > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes)) {
    throw CheckpointError("{}: a header of {} bytes is larger than the format's limit of {}", path,
                          header_size, kMaxSafetensorsHeaderBytes);
  }
  const int64_t data_begin = kSafetensorsPrefixBytes + static_cast<int64_t>(header_size);
  if (data_begin > file_size) {
    throw CheckpointError("{}: a header of {} bytes does not fit in a file of {}", path,
                          header_size, file_size);
  }

  std::string text(header_size, '\0');
  file_.read(kSafetensorsPrefixBytes, text);
  const Json header = parse_header_text(text, path);
  for (const auto& [name, value] : header.items()) {
    if (name == kSafetensorsMetadataKey) {
      metadata_ = metadata_from(path, value);
    } else {
      entries_.push_back(entry_from(path, name, value));
    }
  }

  // The name comes last so that the order of empty tensors does not depend on the JSON library.
  const auto place = [](const SafetensorsEntry& e) { return std::tie(e.begin, e.end, e.name); };
  std::ranges::sort(entries_, [&](const auto& a, const auto& b) { return place(a) < place(b); });
  const int64_t data_size = file_size - data_begin;
  int64_t covered = 0;
  for (SafetensorsEntry& entry : entries_) {
    if (entry.begin != covered) {
      throw CheckpointError("{}: tensor '{}' starts at byte {} of the data, expected {}: {}", path,
                            printable(entry.name), entry.begin, covered,
                            entry.begin < covered ? "it overlaps another" : "there is a hole");
    }
    if (entry.end > data_size) {
      throw CheckpointError(
          "{}: tensor '{}' ends at byte {} of the data, but the file has {}: it was cut short",
          path, printable(entry.name), entry.end, data_size);
    }
    covered = entry.end;
    entry.begin += data_begin;
    entry.end += data_begin;
    index_.emplace(entry.name, index_.size());
  }
  if (covered != data_size) {
    throw CheckpointError("{}: {} behind the last tensor that belong to none", path,
                          counted(data_size - covered, "byte"));
  }
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  return found == index_.end() ? nullptr : &entries_[found->second];
}

void SafetensorsFile::read(const SafetensorsEntry& entry, int64_t offset,
                           std::span<std::byte> out) const {
  file_.read(entry.begin + offset, std::span(reinterpret_cast<char*>(out.data()), out.size()));
}

std::vector<std::byte> SafetensorsFile::bytes(const SafetensorsEntry& entry) const {
  std::vector<std::byte> all(static_cast<size_t>(entry.end - entry.begin));
  read(entry, 0, all);
  return all;
}

ConstTensor SafetensorsFile::tensor(std::string_view name) const {
  const SafetensorsEntry* entry = find(name);
  if (entry == nullptr) {
    throw CheckpointError("{}: there is no tensor '{}'", path().string(), printable(name));
  }
  const auto refuse = [&](const std::string& what) {
    return CheckpointError("{}: tensor '{}': {}", path().string(), printable(name), what);
  };
  if (!entry->type->dtype) throw refuse(fmt::format("dtype {} is not read", entry->type->name));
  if (entry->shape.size() > static_cast<size_t>(kMaxRank)) {
    throw refuse(fmt::format("{} axes, at most {} are read", entry->shape.size(), kMaxRank));
  }
  if (entry->begin % size_of(*entry->type->dtype) != 0) {
    throw refuse(
        fmt::format("byte {} of the file is not aligned to {}", entry->begin, entry->type->name));
  }
  const Shape shape = entry->shape.empty() ? Shape{1} : Shape(entry->shape);
  const auto [kept, fresh] = kept_.try_emplace(entry->name);
  if (fresh) kept->second = bytes(*entry);
  return {kept->second.data(), *entry->type->dtype, Device::cpu, shape, entry->name.c_str()};
}

}  // namespace gradus
