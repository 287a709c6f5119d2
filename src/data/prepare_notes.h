#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/text_file.h"

namespace gradus {

/// A file of a corpus, and what was found in it.
struct CorpusFile {
  TextFile file;
  TextSummary summary = {};
};

/// What is unusual about the files of a corpus, in the order of its text, and what became of it: a
/// line for each kind, which names the files.
std::vector<std::string> notes_on(const std::vector<CorpusFile>& files);

/// "Replaces": what a folder holds that is about to be replaced; empty when it holds no corpus.
std::string note_on_replacing(const std::filesystem::path& folder);

}  // namespace gradus
