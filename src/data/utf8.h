#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace gradus {

/// A text, or a piece of one, and the name that errors give it. Lines are counted when, and only
/// when, an error needs one.
struct TextSource {
  std::string name;
  std::string_view text;
  int64_t first_line = 1;  ///< number of the line that the piece begins in
  int64_t first_byte = 0;  ///< where the piece begins
};

/// "NAME:LINE (byte OFFSET)" of text[offset]; lines count from 1, bytes from 0, both from the
/// beginning of the whole text.
std::string text_position(const TextSource& source, size_t offset);

/// Decodes the code point at source.text[offset], offset < size, and moves offset behind it.
/// Accepts exactly the well-formed sequences of the Unicode Standard, table 3-7. Throws DataError
/// with name, line, byte offset and the kind of fault: overlong, surrogate, truncated, above
/// U+10FFFF, stray continuation byte, or a byte that UTF-8 never uses.
char32_t decode_utf8_sequence(const TextSource& source, size_t& offset);

/// As decode_utf8_sequence, with the ASCII case inlined into the caller's loop.
inline char32_t decode_utf8(const TextSource& source, size_t& offset) {
  const auto byte = static_cast<unsigned char>(source.text[offset]);
  if (byte < 0x80) {
    ++offset;
    return byte;
  }
  return decode_utf8_sequence(source, offset);
}

/// Whether byte can begin a code point. In well-formed text, offsets of such bytes are the
/// boundaries between code points.
inline bool begins_code_point(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
}

/// How many code points well-formed text has.
size_t count_code_points(std::string_view text);

/// The byte offset behind the first `count` code points of text, which is well-formed and has them.
size_t code_point_offset(std::string_view text, size_t count);

/// Appends the UTF-8 encoding of a Unicode scalar value.
void append_utf8(std::string& text, char32_t code_point);

/// "U+00E9 'é'"; control characters are given by number alone.
std::string describe_code_point(char32_t code_point);

}  // namespace gradus
