#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/option_values.h"
#include "core/counted.h"
#include "core/deferred_signals.h"
#include "core/printable_text.h"
#include "data/inspect.h"
#include "data/prepare.h"
#include "data/tokenizer.h"
#include "train/config_problems.h"

namespace gradus::cli {
namespace {

struct PrepareArguments {
  std::vector<std::string> files;
  std::string tokenizer;  ///< empty: char, or what tokenizer_file says
  std::string tokenizer_file;
  std::string out;
  double val_fraction = 0.1;
};

void refuse_contradiction(const PrepareArguments& arguments) {
  if (arguments.tokenizer.empty() || arguments.tokenizer_file.empty()) return;
  const std::string kind(load_tokenizer(arguments.tokenizer_file)->kind());
  if (kind == arguments.tokenizer) return;
  throw UsageError(
      "--tokenizer {} contradicts --tokenizer-file {}, which is of kind {}: leave one out",
      arguments.tokenizer, arguments.tokenizer_file, kind);
}

/// Where nobody listens, the work goes on.
void print_note(const std::string& note) {
  std::fputs(fmt::format("gradus: note: {}\n", note).c_str(), stderr);
}

int prepare_data(const PrepareArguments& arguments) {
  refuse_contradiction(arguments);
  const DeferredSignals signals;
  const PrepareResult result =
      prepare({.inputs = {arguments.files.begin(), arguments.files.end()},
               .out_dir = arguments.out,
               .tokenizer = arguments.tokenizer.empty() ? "char" : arguments.tokenizer,
               .tokenizer_file = arguments.tokenizer_file,
               .val_fraction = arguments.val_fraction,
               .note = print_note,
               .interrupted = [&] { return signals.pending(); }});
  fmt::print("{}, {}; tokenizer {} with {}\n", counted(result.bytes, "byte"),
             counted(result.characters, "character"), result.tokenizer,
             counted(result.vocab_size, "token"));
  fmt::print("wrote {}: {}, {}\n", arguments.out, counted(result.train_tokens, "training token"),
             counted(result.val_tokens, "validation token"));
  return 0;
}

int inspect_data(const std::string& path) {
  const DatasetInfo info = inspect(path);
  fmt::print("tokenizer        {}\n", info.tokenizer.value_or("(no tokenizer.json beside it)"));
  for (const ShardInfo& shard : info.shards) {
    fmt::print("\n{}\n", shard.path.string());
    fmt::print("  tokens         {} ({})\n", shard.token_count, token_type_name(shard.token_type));
    fmt::print("  vocabulary     {}\n", shard.vocab_size);
    fmt::print("  tokenizer hash {:016x}\n", shard.tokenizer_hash);
    fmt::print("  file size      {}\n", counted(shard.file_size, "byte"));
    fmt::print("  begins         {}\n", fmt::join(shard.first_tokens, " "));
    if (shard.first_text) fmt::print("  as text        {}\n", one_line(*shard.first_text));
  }
  return 0;
}

}  // namespace

void add_data(CLI::App& program, Action& action) {
  CLI::App* command =
      program.add_subcommand("data", "Turn text into token shards, and look at them");
  command->require_subcommand(1);

  auto arguments = std::make_shared<PrepareArguments>();
  CLI::App* prepare_command =
      command->add_subcommand("prepare", "Tokenize UTF-8 text into a folder to train on");
  prepare_command->add_option("FILE", arguments->files, "UTF-8 text; several are joined in order")
      ->required();
  const auto kinds = tokenizer_kinds();
  add_choice(*prepare_command, "--tokenizer", arguments->tokenizer, {kinds.begin(), kinds.end()},
             "char: the characters that occur in the text; bytes: the 256 bytes")
      ->default_str("char");
  prepare_command->add_option("--tokenizer-file", arguments->tokenizer_file,
                              "Use this tokenizer.json, to train on several folders together");
  prepare_command->add_option("--out", arguments->out, "Folder to write")->required();
  add_number(*prepare_command, "--val-fraction", arguments->val_fraction, from_below(0, 1),
             "Share of the text, at its end, that becomes validation text");
  prepare_command->callback([arguments, &action] {
    action = [arguments](Bootstrap& bootstrap) {
      require_one_rank(bootstrap, "data prepare");
      return prepare_data(*arguments);
    };
  });

  auto path = std::make_shared<std::string>();
  CLI::App* inspect_command =
      command->add_subcommand("inspect", "Check a prepared folder or shard and describe it");
  inspect_command->add_option("PATH", *path, "Folder or shard")->required();
  inspect_command->callback([path, &action] {
    action = [path](Bootstrap& bootstrap) {
      require_one_rank(bootstrap, "data inspect");
      return inspect_data(*path);
    };
  });
}

}  // namespace gradus::cli
