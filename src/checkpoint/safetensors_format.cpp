#include "checkpoint/safetensors_format.h"

#include <algorithm>
#include <array>

namespace gradus {
namespace {

constexpr std::array<SafetensorsDType, 22> kDTypes = {{
    {"F64", 64, DType::fp64},  {"F32", 32, DType::fp32},
    {"BF16", 16, DType::bf16}, {"F16", 16, DType::fp16},
    {"I32", 32, DType::i32},   {"U8", 8, DType::u8},
    {"BOOL", 8, {}},           {"I8", 8, {}},
    {"I16", 16, {}},           {"U16", 16, {}},
    {"U32", 32, {}},           {"I64", 64, {}},
    {"U64", 64, {}},           {"C64", 64, {}},
    {"F8_E5M2", 8, {}},        {"F8_E4M3", 8, {}},
    {"F8_E8M0", 8, {}},        {"F8_E4M3FNUZ", 8, {}},
    {"F8_E5M2FNUZ", 8, {}},    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},        {"F4", 4, {}},
}};

}  // namespace

const SafetensorsDType* find_safetensors_dtype(std::string_view name) {
  const auto* found = std::ranges::find(kDTypes, name, &SafetensorsDType::name);
  return found == kDTypes.end() ? nullptr : found;
}

std::string_view safetensors_name(DType dtype) {
  return std::ranges::find(kDTypes, std::optional(dtype), &SafetensorsDType::dtype)->name;
}

}  // namespace gradus
