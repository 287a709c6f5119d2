#include "data/utf8.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/utf8_sequence.h"

namespace gradus {
namespace {

bool is_continuation(char byte) { return !begins_code_point(byte); }

/// Says what is wrong with the ill-formed sequence at the beginning of `text`.
std::string describe_fault(std::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  const LeadByte lead = lead_byte(first);
  if (lead.length == 0) {
    if (first < 0xC0) return fmt::format("stray continuation byte 0x{:02X}", first);
    if (first < 0xC2) return fmt::format("overlong sequence that begins with 0x{:02X}", first);
    return fmt::format("byte 0x{:02X}, which UTF-8 never uses", first);
  }
  size_t present = 1;
  while (present < std::min(lead.length, text.size()) && is_continuation(text[present])) ++present;
  if (present > 1) {
    const auto second = static_cast<unsigned char>(text[1]);
    if (second < lead.second_min) {
      return fmt::format("overlong sequence that begins with 0x{:02X} 0x{:02X}", first, second);
    }
    if (second > lead.second_max) {
      return fmt::format("{} that begins with 0x{:02X} 0x{:02X}",
                         first == 0xED ? "surrogate half" : "value above U+10FFFF", first, second);
    }
  }
  return fmt::format("sequence that begins with 0x{:02X} is truncated after {} of {} bytes", first,
                     present, lead.length);
}

}  // namespace

std::string text_position(const TextSource& source, size_t offset) {
  const auto line = source.first_line + std::ranges::count(source.text.substr(0, offset), '\n');
  return fmt::format("{}:{} (byte {})", source.name, line,
                     source.first_byte + static_cast<int64_t>(offset));
}

char32_t decode_utf8_sequence(const TextSource& source, size_t& offset) {
  const std::string_view text = source.text.substr(offset);
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const LeadByte lead = lead_byte(byte(0));
  if (utf8_length(text) == 0) {
    throw DataError(
        "{}: invalid UTF-8: {}; convert the text first, for example with "
        "iconv -f ENCODING -t UTF-8",
        text_position(source, offset), describe_fault(text));
  }
  constexpr std::array<unsigned char, 5> kLeadMask = {0, 0x7F, 0x1F, 0x0F, 0x07};
  char32_t code_point = byte(0) & kLeadMask[lead.length];
  for (size_t i = 1; i < lead.length; ++i) code_point = (code_point << 6) | (byte(i) & 0x3F);
  offset += lead.length;
  return code_point;
}

size_t count_code_points(std::string_view text) {
  return static_cast<size_t>(std::ranges::count_if(text, begins_code_point));
}

size_t code_point_offset(std::string_view text, size_t count) {
  size_t offset = 0;
  for (; offset < text.size(); ++offset) {
    if (begins_code_point(text[offset]) && count-- == 0) break;
  }
  return offset;
}

void append_utf8(std::string& text, char32_t code_point) {
  const auto push = [&](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    push(code_point);
  } else if (code_point < 0x800) {
    push(0xC0 | (code_point >> 6));
    push(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    push(0xE0 | (code_point >> 12));
    push(0x80 | ((code_point >> 6) & 0x3F));
    push(0x80 | (code_point & 0x3F));
  } else {
    push(0xF0 | (code_point >> 18));
    push(0x80 | ((code_point >> 12) & 0x3F));
    push(0x80 | ((code_point >> 6) & 0x3F));
    push(0x80 | (code_point & 0x3F));
  }
}

std::string describe_code_point(char32_t code_point) {
  const auto number = static_cast<uint32_t>(code_point);
  if (number < 0x20 || (number >= 0x7F && number < 0xA0)) return fmt::format("U+{:04X}", number);
  std::string text;
  append_utf8(text, code_point);
  return fmt::format("U+{:04X} '{}'", number, text);
}

}  // namespace gradus
