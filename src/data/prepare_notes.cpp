#include "data/prepare_notes.h"

#include <fmt/ranges.h>

#include <map>
#include <utility>

#include "core/counted.h"
#include "core/error.h"
#include "data/dataset.h"

namespace gradus {
namespace {

constexpr size_t kNamed = 3;  // files of one kind; the others are counted

/// The files of one kind, each with what is to be said of it alone.
class Names {
 public:
  void add(const CorpusFile& file, const std::string& detail = "") {
    if (++count_ > kNamed) return;
    named_.push_back(file.file.path().string() + (detail.empty() ? "" : " (" + detail + ")"));
  }
  /// Appends "TEXT: A, B, C and 2 more".
  void say(std::vector<std::string>& notes, const char* text) const {
    if (count_ == 0) return;
    std::string line = fmt::format("{}: {}", text, fmt::join(named_, ", "));
    if (count_ > kNamed) line += fmt::format(" and {} more", count_ - kNamed);
    notes.push_back(std::move(line));
  }

 private:
  std::vector<std::string> named_;
  size_t count_ = 0;
};

/// Files that were given before, under whatever name, and other files of the same text.
Names repeated(const std::vector<CorpusFile>& files) {
  Names names;
  std::map<InputFile::Identity, const CorpusFile*> by_file;
  std::map<std::pair<int64_t, uint64_t>, const CorpusFile*> by_text;
  for (const CorpusFile& each : files) {
    if (each.file.size() == 0) continue;
    const auto [same_file, new_file] = by_file.emplace(each.file.identity(), &each);
    const auto [same_text, new_text] =
        by_text.emplace(std::pair(each.file.size(), each.summary.hash), &each);
    if (!new_file) {
      names.add(each, "the same file as " + same_file->second->file.path().string());
    } else if (!new_text) {
      names.add(each, "the same text as " + same_text->second->file.path().string());
    }
  }
  return names;
}

/// Files whose last line goes on in the next file.
Names joined(const std::vector<CorpusFile>& files) {
  Names names;
  const CorpusFile* open = nullptr;
  for (const CorpusFile& each : files) {
    if (each.file.size() == 0) continue;
    if (open != nullptr) names.add(*open);
    open = each.summary.ends_with_newline ? nullptr : &each;
  }
  return names;
}

}  // namespace

std::vector<std::string> notes_on(const std::vector<CorpusFile>& files) {
  Names empty;
  Names marks;
  Names returns;
  Names nuls;
  for (const CorpusFile& each : files) {
    const TextSummary& text = each.summary;
    if (each.file.size() == 0) empty.add(each);
    if (each.file.has_byte_order_mark()) marks.add(each);
    if (text.carriage_returns > 0) returns.add(each, fmt::format("{}", text.carriage_returns));
    if (text.nuls > 0) nuls.add(each, fmt::format("{}", text.nuls));
  }
  std::vector<std::string> notes;
  empty.say(notes, "skipped, since it is empty");
  marks.say(notes, "a byte order mark at the beginning is dropped");
  returns.say(notes, "carriage returns are kept, as characters (tr -d '\\r' removes them)");
  nuls.say(notes, "NUL characters are kept, which text seldom has (tr -d '\\0' removes them)");
  joined(files).say(notes,
                    "no newline at the end: the last line and the next file's first are one");
  repeated(files).say(notes, "the same text more than once");
  return notes;
}

std::string note_on_replacing(const std::filesystem::path& folder) {
  if (!has_split(folder, Split::kTrain) && !has_split(folder, Split::kVal)) return {};
  try {
    const TokenShard train(shard_path(folder, Split::kTrain));
    std::string held = counted(train.token_count(), "training token");
    if (has_split(folder, Split::kVal)) {
      const TokenShard val(shard_path(folder, Split::kVal));
      held += " and " + counted(val.token_count(), "validation token");
    }
    return fmt::format(
        "{} holds {} of a vocabulary of {}: they will be replaced. Runs that read them keep them "
        "until they end",
        folder.string(), held, train.vocab_size());
  } catch (const Error& error) {
    return fmt::format("{} holds a corpus that cannot be used ({}): it will be replaced",
                       folder.string(), error.what());
  }
}

}  // namespace gradus
