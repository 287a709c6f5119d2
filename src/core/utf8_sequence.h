#pragma once

#include <cstddef>
#include <string_view>

namespace gradus {

/// One row of the Unicode standard's table 3-7: the length of a sequence and the range of its
/// second byte, which is where overlong forms, surrogates and values above U+10FFFF are told apart.
struct LeadByte {
  size_t length;  ///< 0: the byte cannot begin a sequence
  unsigned char second_min = 0x80;
  unsigned char second_max = 0xBF;
};

inline LeadByte lead_byte(unsigned char byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

/// Bytes of the well-formed character that text, which is not empty, begins with; 0 where there is
/// none.
inline size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const LeadByte lead = lead_byte(byte(0));
  if (lead.length > text.size()) return 0;
  if (lead.length > 1 && (byte(1) < lead.second_min || byte(1) > lead.second_max)) return 0;
  for (size_t i = 2; i < lead.length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  return lead.length;
}

}  // namespace gradus
