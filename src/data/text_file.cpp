#include "data/text_file.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <string>

namespace gradus {
namespace {

constexpr size_t kPieceBytes = size_t{1} << 20;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr size_t kLongestSequence = 4;  // bytes of a code point

/// Where to cut text that goes on: before the last code point, which may be incomplete. Text
/// without any so near its end is ill-formed, wherever it is cut.
size_t last_boundary(std::string_view text) {
  for (size_t back = 1; back <= std::min(kLongestSequence, text.size()); ++back) {
    if (begins_code_point(text[text.size() - back])) return text.size() - back;
  }
  return text.size();
}

}  // namespace

TextFile::TextFile(const std::filesystem::path& path) : file_(path) {
  std::array<char, kByteOrderMark.size()> begin{};
  if (file_.size() < static_cast<int64_t>(begin.size())) return;
  file_.read(0, begin);
  if (std::string_view(begin.data(), begin.size()) == kByteOrderMark) text_begin_ = begin.size();
}

uint64_t TextFile::for_each_piece(const std::function<void(const TextSource&)>& body) const {
  const std::unique_ptr<XXH3_state_t, void (*)(XXH3_state_t*)> hash(
      XXH3_createState(), [](XXH3_state_t* state) { XXH3_freeState(state); });
  if (!hash) throw std::bad_alloc();
  XXH3_64bits_reset(hash.get());
  TextSource piece = {.name = path().string(), .text = {}, .first_byte = text_begin_};
  std::string buffer;
  while (piece.first_byte < file_.size()) {
    const auto left = static_cast<size_t>(file_.size() - piece.first_byte);
    buffer.resize(std::min(left, kPieceBytes));
    file_.read(piece.first_byte, buffer);
    piece.text = buffer;
    if (buffer.size() < left) piece.text = piece.text.substr(0, last_boundary(buffer));
    XXH3_64bits_update(hash.get(), piece.text.data(), piece.text.size());
    body(piece);
    piece.first_line += std::ranges::count(piece.text, '\n');
    piece.first_byte += static_cast<int64_t>(piece.text.size());
  }
  return XXH3_64bits_digest(hash.get());
}

TextSummary TextFile::scan(std::vector<bool>& occurs) const {
  TextSummary summary;
  summary.hash = for_each_piece([&](const TextSource& piece) {
    for (size_t offset = 0; offset < piece.text.size(); ++summary.characters) {
      occurs[decode_utf8(piece, offset)] = true;
    }
    summary.carriage_returns += std::ranges::count(piece.text, '\r');
    summary.nuls += std::ranges::count(piece.text, '\0');
    summary.ends_with_newline = piece.text.ends_with('\n');
  });
  return summary;
}

}  // namespace gradus
