#include "data/token_shard.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <limits>
#include <new>

#include "core/counted.h"
#include "core/error.h"

namespace gradus {
namespace {

// Tokens are used as they are read, without a conversion.
static_assert(std::endian::native == std::endian::little, "token shards are little-endian");

constexpr size_t kCopyBytes = size_t{16} << 10;   // read at a time, on the stack
constexpr size_t kVerifyBytes = size_t{1} << 20;  // read at a time
constexpr int64_t kMaxVocabSize = std::numeric_limits<int32_t>::max();

uint64_t checksum_of(const TokenShardHeader& header) {
  return XXH3_64bits(&header, offsetof(TokenShardHeader, header_checksum));
}

std::string_view bytes_of(const TokenShardHeader& header) {
  return {reinterpret_cast<const char*>(&header), sizeof header};
}

TokenShardHeader read_header(const InputFile& file) {
  const std::string name = file.path().string();
  const auto size = static_cast<uint64_t>(file.size());
  TokenShardHeader header;
  if (size < sizeof header) {
    throw DataError("{}: {} cannot hold a token shard's header of {}: truncated, or not a shard",
                    name, counted(file.size(), "byte"), sizeof header);
  }
  file.read(0, {reinterpret_cast<char*>(&header), sizeof header});
  if (header.magic != TokenShardHeader::kMagic) {
    throw DataError("{}: not a token shard; write one with gradus data prepare", name);
  }
  if (header.version != TokenShardHeader::kVersion) {
    throw DataError(
        "{}: token shard version {}, but this program reads version {}; prepare the data again",
        name, header.version, TokenShardHeader::kVersion);
  }
  if (header.header_checksum != checksum_of(header)) {
    throw DataError("{}: the header does not match its checksum; prepare the data again", name);
  }
  if (header.token_type != 2 && header.token_type != 4) {
    throw DataError("{}: token type {} is neither u16 (2) nor u32 (4)", name, header.token_type);
  }
  if (header.vocab_size < 1 || header.vocab_size > uint64_t{kMaxVocabSize}) {
    throw DataError("{}: vocabulary size {} is not in 1 … {}", name, header.vocab_size,
                    kMaxVocabSize);
  }
  const uint64_t token_bytes = size - sizeof header;
  if (token_bytes % header.token_type != 0 ||
      token_bytes / header.token_type != header.token_count) {
    throw DataError(
        "{}: {} of tokens, but the header promises {} tokens of {} bytes: truncated or "
        "overwritten; "
        "prepare the data again",
        name, counted(static_cast<int64_t>(token_bytes), "byte"), header.token_count,
        header.token_type);
  }
  return header;
}

}  // namespace

std::string_view token_type_name(TokenType type) { return type == TokenType::kU16 ? "u16" : "u32"; }

TokenType token_type_for(int64_t vocab_size) {
  return vocab_size <= int64_t{1} << 16 ? TokenType::kU16 : TokenType::kU32;
}

TokenShardWriter::TokenShardWriter(const std::filesystem::path& path, int64_t vocab_size,
                                   uint64_t tokenizer_hash)
    : file_(path), checksum_(XXH3_createState(), [](XXH3_state_s* s) { XXH3_freeState(s); }) {
  if (vocab_size < 1 || vocab_size > kMaxVocabSize) {
    throw DataError("{}: vocabulary size {} is not in 1 … {}", path.string(), vocab_size,
                    kMaxVocabSize);
  }
  if (!checksum_) throw std::bad_alloc();
  XXH3_64bits_reset(checksum_.get());
  header_.token_type = static_cast<uint32_t>(token_type_for(vocab_size));
  header_.vocab_size = static_cast<uint64_t>(vocab_size);
  header_.tokenizer_hash = tokenizer_hash;
  file_.write(bytes_of(header_));  // its place; finish() has the count and the checksums
}

TokenShardWriter::~TokenShardWriter() = default;

template <typename Stored>
void TokenShardWriter::append_as(std::span<const int32_t> tokens) {
  constexpr size_t kBlock = size_t{1} << 16;  // tokens per write
  for (; !tokens.empty(); tokens = tokens.subspan(std::min(kBlock, tokens.size()))) {
    const auto block = tokens.first(std::min(kBlock, tokens.size()));
    buffer_.resize(block.size() * sizeof(Stored));
    for (size_t i = 0; i < block.size(); ++i) {
      if (block[i] < 0 || block[i] >= static_cast<int64_t>(header_.vocab_size)) {
        throw DataError("{}: token id {} at position {} is outside the vocabulary of {}",
                        file_.path().string(), block[i], header_.token_count + i,
                        header_.vocab_size);
      }
      const auto stored = static_cast<Stored>(block[i]);
      std::memcpy(buffer_.data() + i * sizeof stored, &stored, sizeof stored);
    }
    XXH3_64bits_update(checksum_.get(), buffer_.data(), buffer_.size());
    file_.write({buffer_.data(), buffer_.size()});
    header_.token_count += block.size();
  }
}

void TokenShardWriter::append(std::span<const int32_t> tokens) {
  token_type() == TokenType::kU16 ? append_as<uint16_t>(tokens) : append_as<uint32_t>(tokens);
}

uint64_t TokenShardWriter::tokens_checksum() const { return XXH3_64bits_digest(checksum_.get()); }

void TokenShardWriter::finish() {
  header_.tokens_checksum = tokens_checksum();
  header_.header_checksum = checksum_of(header_);
  file_.overwrite(0, bytes_of(header_));
  file_.sync();
  finished_ = true;
}

void TokenShardWriter::publish() {
  if (!finished_) finish();
  file_.publish();
}

TokenShard::TokenShard(const std::filesystem::path& path)
    : file_(path),
      header_(read_header(file_)),
      modified_ns_(std::make_unique<std::atomic<int64_t>>(file_.stamp().modified_ns)) {}

void TokenShard::fail_token(int64_t position, uint32_t token) const {
  throw DataError(
      "{}: token id {} at position {} is not below the vocabulary of {}: the shard is damaged; "
      "prepare the data again",
      path().string(), token, position, header_.vocab_size);
}

/// Reads and checks tokens from number `first` on.
template <typename Stored>
void TokenShard::read_tokens(int64_t first, std::span<Stored> tokens) const {
  constexpr auto kWidth = static_cast<int64_t>(sizeof(Stored));
  file_.read(static_cast<int64_t>(sizeof header_) + first * kWidth,
             {reinterpret_cast<char*>(tokens.data()), tokens.size_bytes()});
  // The maximum first and the search for the culprit after it keep the loop free of branches.
  Stored largest = 0;
  for (const Stored token : tokens) largest = std::max(largest, token);
  if (largest < header_.vocab_size) return;
  const auto bad =
      std::ranges::find_if(tokens, [&](Stored token) { return token >= header_.vocab_size; });
  fail_token(first + (bad - tokens.begin()), *bad);
}

template <typename Stored>
void TokenShard::copy_as(int64_t first, std::span<int32_t> out) const {
  std::array<Stored, kCopyBytes / sizeof(Stored)> buffer;
  while (!out.empty()) {
    const auto tokens = std::span(buffer).first(std::min(buffer.size(), out.size()));
    read_tokens(first, tokens);
    std::ranges::copy(tokens, out.begin());
    first += static_cast<int64_t>(tokens.size());
    out = out.subspan(tokens.size());
  }
}

/// A file that was written to in place is another, however well its tokens read. One that was only
/// touched, or overwritten with the same, is not.
void TokenShard::require_unchanged() const {
  const InputFile::Stamp now = file_.stamp();
  if (now.size != file_.size()) {
    throw IoError(
        "{}: {}, and {} when it was opened: it was written to while it was in use; restore "
        "it or prepare the data again",
        path().string(), counted(now.size, "byte"), file_.size());
  }
  if (now.modified_ns == *modified_ns_) return;
  try {
    verify();
  } catch (const DataError& error) {
    throw DataError("{}; it was written to while it was in use", error.what());
  }
  *modified_ns_ = now.modified_ns;
}

void TokenShard::copy(int64_t first, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  if (first < 0 || first > token_count() - count) {
    throw DataError("{}: {} from {} on: outside of the shard's {}", path().string(),
                    counted(count, "token"), first, counted(token_count(), "token"));
  }
  token_type() == TokenType::kU16 ? copy_as<uint16_t>(first, out) : copy_as<uint32_t>(first, out);
  require_unchanged();
}

template <typename Stored>
void TokenShard::verify_as(const std::stop_token& stop) const {
  const std::unique_ptr<XXH3_state_s, void (*)(XXH3_state_s*)> checksum(
      XXH3_createState(), [](XXH3_state_s* s) { XXH3_freeState(s); });
  if (!checksum) throw std::bad_alloc();
  XXH3_64bits_reset(checksum.get());
  std::vector<Stored> block(kVerifyBytes / sizeof(Stored));
  const auto block_tokens = static_cast<int64_t>(block.size());
  for (int64_t first = 0; first < token_count(); first += block_tokens) {
    if (stop.stop_requested()) return;
    const auto tokens =
        std::span(block).first(static_cast<size_t>(std::min(block_tokens, token_count() - first)));
    read_tokens(first, tokens);
    XXH3_64bits_update(checksum.get(), tokens.data(), tokens.size_bytes());
  }
  if (XXH3_64bits_digest(checksum.get()) != header_.tokens_checksum) {
    throw DataError("{}: the tokens do not match their checksum; prepare the data again",
                    path().string());
  }
}

void TokenShard::verify(const std::stop_token& stop) const {
  token_type() == TokenType::kU16 ? verify_as<uint16_t>(stop) : verify_as<uint32_t>(stop);
}

}  // namespace gradus
