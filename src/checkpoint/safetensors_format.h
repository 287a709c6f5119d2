#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/dtype.h"
#include "core/json_text.h"

namespace gradus {

/// The safetensors format (https://huggingface.co/docs/safetensors): a little-endian u64 N, N bytes
/// of JSON that start with '{' and may end in spaces, and the tensors' bytes, row-major and
/// little-endian, one after another without holes. The JSON maps each name to {"dtype", "shape",
/// "data_offsets": [begin, end)} (bytes from the end of the header), and "__metadata__" to a map
/// from text to text.
static_assert(std::endian::native == std::endian::little);

inline constexpr int64_t kSafetensorsPrefixBytes = 8;
/// The format's own limit on N.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr std::string_view kSafetensorsMetadataKey = "__metadata__";

/// An element type of the format.
struct SafetensorsDType {
  std::string_view name;
  int bits;
  std::optional<DType> dtype;  ///< unless Gradus has no such type
};

/// Null when the format has no such type.
const SafetensorsDType* find_safetensors_dtype(std::string_view name);
std::string_view safetensors_name(DType dtype);

}  // namespace gradus
