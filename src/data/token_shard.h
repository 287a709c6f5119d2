#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <stop_token>
#include <string_view>
#include <vector>

#include "core/atomic_file.h"
#include "core/input_file.h"

struct XXH3_state_s;

namespace gradus {

/// How a shard stores a token. The value is its size in bytes and what the header holds.
enum class TokenType : uint32_t { kU16 = 2, kU32 = 4 };

/// "u16" or "u32".
std::string_view token_type_name(TokenType type);
/// The narrowest type that holds every id below vocab_size.
TokenType token_type_for(int64_t vocab_size);

/// The first 64 bytes of a shard, little-endian; token_count tokens of token_type follow and end
/// the file.
struct TokenShardHeader {
  static constexpr std::array<char, 8> kMagic = {'G', 'R', 'A', 'D', 'T', 'O', 'K', 'S'};
  static constexpr uint32_t kVersion = 1;

  std::array<char, 8> magic = kMagic;
  uint32_t version = kVersion;
  uint32_t token_type = 0;
  uint64_t token_count = 0;
  uint64_t vocab_size = 0;
  uint64_t tokenizer_hash = 0;   ///< Tokenizer::hash()
  uint64_t tokens_checksum = 0;  ///< XXH3-64 of the tokens' bytes
  uint64_t corpus = 0;           ///< the same in shards that were prepared together; 0: unknown
  uint64_t header_checksum = 0;  ///< XXH3-64 of the 56 bytes before
};
static_assert(sizeof(TokenShardHeader) == 64);

/// Writes a shard as a stream: memory use does not depend on its length. The file appears at its
/// path with publish(), whole; before that, nothing at the path changes.
class TokenShardWriter {
 public:
  /// 1 <= vocab_size <= 2^31 - 1. Throws IoError when the folder cannot be written.
  TokenShardWriter(const std::filesystem::path& path, int64_t vocab_size, uint64_t tokenizer_hash);
  ~TokenShardWriter();

  /// Throws DataError for an id outside the vocabulary, IoError.
  void append(std::span<const int32_t> tokens);
  /// What its shards, and no others, have in common; before finish().
  void set_corpus(uint64_t corpus) { header_.corpus = corpus; }
  /// Completes the header and puts everything on stable storage, still under the temporary name.
  void finish();
  /// Puts the shard, finished if it is not yet, in place of what was at its path.
  void publish();

  int64_t token_count() const { return static_cast<int64_t>(header_.token_count); }
  TokenType token_type() const { return static_cast<TokenType>(header_.token_type); }
  /// Of the tokens so far.
  uint64_t tokens_checksum() const;

 private:
  template <typename Stored>
  void append_as(std::span<const int32_t> tokens);

  AtomicFile file_;
  TokenShardHeader header_;
  std::unique_ptr<XXH3_state_s, void (*)(XXH3_state_s*)> checksum_;
  std::vector<char> buffer_;
  bool finished_ = false;
};

/// A shard open for reading. Opening checks the header and the file's size, in constant time
/// whatever the length. That every id is below the vocabulary, and that the file is the one that
/// was opened, is checked by copy() on what it hands out; verify() checks the whole file.
class TokenShard {
 public:
  /// Throws IoError when the file cannot be read; DataError when it is not a shard, is of another
  /// version, is truncated, or its header is damaged.
  explicit TokenShard(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  int64_t token_count() const { return static_cast<int64_t>(header_.token_count); }
  int64_t vocab_size() const { return static_cast<int64_t>(header_.vocab_size); }
  uint64_t tokenizer_hash() const { return header_.tokenizer_hash; }
  /// Of the tokens, as the writer noted it: the same for the same tokens. A claim until verify().
  uint64_t tokens_checksum() const { return header_.tokens_checksum; }
  /// Shards that differ in it were not prepared together; 0: unknown, as in files of older
  /// versions.
  uint64_t corpus() const { return header_.corpus; }
  TokenType token_type() const { return static_cast<TokenType>(header_.token_type); }
  int64_t file_size() const { return file_.size(); }

  /// out = tokens [first, first + out.size()). Throws DataError, with file, position, id and
  /// vocabulary, for an id not below the vocabulary, and when the file was written to since it was
  /// opened and is no longer what its header says; IoError when it cannot be read or has another
  /// size. Allocates only to throw or to verify. Safe from several threads at once.
  void copy(int64_t first, std::span<int32_t> out) const;

  /// Reads the whole shard: every id below the vocabulary, and the checksum. Throws DataError, and
  /// IoError. Returns early when it is asked to stop.
  void verify(const std::stop_token& stop = {}) const;

 private:
  template <typename Stored>
  void read_tokens(int64_t first, std::span<Stored> tokens) const;
  template <typename Stored>
  void copy_as(int64_t first, std::span<int32_t> out) const;
  template <typename Stored>
  void verify_as(const std::stop_token& stop) const;
  void require_unchanged() const;
  [[noreturn]] void fail_token(int64_t position, uint32_t token) const;

  InputFile file_;
  TokenShardHeader header_;
  /// The file's time of modification when its contents were last known to be the header's.
  std::unique_ptr<std::atomic<int64_t>> modified_ns_;
};

}  // namespace gradus
