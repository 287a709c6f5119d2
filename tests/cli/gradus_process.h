#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace gradus::test {

/// How a process ended.
struct ProcessResult {
  int exit_code = -1;      ///< -1: a signal ended it
  int signal = 0;          ///< that signal, or 0
  std::string out;         ///< standard output
  std::string err;         ///< standard error
  int64_t peak_bytes = 0;  ///< largest resident memory

  std::string text() const { return out + err; }
};

/// One process of the gradus binary under test, as a user starts it. Its outputs go to files in a
/// folder of their own below the working directory.
class GradusProcess {
 public:
  /// `gradus ARGUMENTS…`, started in `folder`.
  GradusProcess(const std::filesystem::path& folder, const std::vector<std::string>& arguments);
  /// `mpirun -np RANKS gradus ARGUMENTS…`; signals go to mpirun.
  static GradusProcess mpirun(const std::filesystem::path& folder, int ranks,
                              const std::vector<std::string>& arguments);
  /// A shell's command line, for example one that gradus printed.
  static GradusProcess shell(const std::filesystem::path& folder, const std::string& command);
  GradusProcess(GradusProcess&& other) noexcept;
  GradusProcess& operator=(GradusProcess&&) = delete;
  /// Kills what still runs.
  ~GradusProcess();

  void send(int signal) const;
  pid_t pid() const { return pid_; }
  /// The processes that this one started: mpirun's ranks, in the order of their ids.
  std::vector<pid_t> children() const;
  bool running();
  /// Lets it run until `met` holds, or to its end.
  void run_until(const std::function<bool()>& met);
  /// What it has written to standard output.
  std::string out_so_far() const;
  /// Waits for the end; after five minutes kills the process and throws.
  ProcessResult wait();

 private:
  struct Command {
    std::vector<std::string> words;
  };
  GradusProcess(const std::filesystem::path& folder, const Command& command);

  std::filesystem::path out_;
  std::filesystem::path err_;
  pid_t pid_ = -1;
  bool ended_ = false;
  ProcessResult result_;
};

/// The program under test, and the launcher that belongs to the MPI it is linked with.
std::string gradus_binary();
std::string mpirun();

/// Runs `gradus ARGUMENTS…` in `folder` to its end.
ProcessResult run_gradus(const std::filesystem::path& folder,
                         const std::vector<std::string>& arguments);

/// Text with some structure, of `characters` ASCII characters; the same for the same seed.
std::string some_text(int64_t characters, uint64_t seed = 1);

/// Writes text.txt into `folder` and prepares it as `folder`/data.
void prepare_text(const std::filesystem::path& folder, const std::string& text,
                  const std::string& tokenizer = "char");

}  // namespace gradus::test
