#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <vector>

#include "core/input_file.h"
#include "data/utf8.h"

namespace gradus {

/// What one pass over a text found.
struct TextSummary {
  int64_t characters = 0;  ///< Unicode code points
  int64_t carriage_returns = 0;
  int64_t nuls = 0;
  bool ends_with_newline = false;
  uint64_t hash = 0;  ///< XXH3-64 of the bytes
};

/// A file of UTF-8 text, read piece by piece. A byte order mark at its beginning is not part of the
/// text.
class TextFile {
 public:
  /// Throws IoError.
  explicit TextFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  InputFile::Identity identity() const { return file_.identity(); }
  bool has_byte_order_mark() const { return text_begin_ > 0; }
  /// Bytes of text, without a byte order mark.
  int64_t size() const { return file_.size() - text_begin_; }

  /// Calls body with the pieces of the text, in order, of whole code points where the text is
  /// well-formed. Returns the hash of all bytes. Throws IoError, also when the file has become
  /// shorter, and what body throws.
  uint64_t for_each_piece(const std::function<void(const TextSource&)>& body) const;

  /// Decodes the whole text, and marks in `occurs`, of 0x110000 elements, the code points that it
  /// has. Throws DataError, with the place, for text that is not well-formed; IoError.
  TextSummary scan(std::vector<bool>& occurs) const;

 private:
  InputFile file_;
  int64_t text_begin_ = 0;  ///< bytes
};

}  // namespace gradus
