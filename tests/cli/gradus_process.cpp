#include "gradus_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <fstream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

#include "support/temp_dir.h"

namespace gradus::test {
namespace fs = std::filesystem;
namespace {

std::vector<std::string> with_binary(const std::vector<std::string>& arguments) {
  std::vector<std::string> words = {GRADUS_BINARY};
  words.insert(words.end(), arguments.begin(), arguments.end());
  return words;
}

/// In the child: only calls that are allowed between fork and exec.
[[noreturn]] void become(const char* folder, const char* out, const char* err,
                         const std::vector<char*>& argv) {
  const int out_file = ::open(out, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  const int err_file = ::open(err, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (out_file >= 0 && err_file >= 0 && ::dup2(out_file, 1) >= 0 && ::dup2(err_file, 2) >= 0 &&
      ::chdir(folder) == 0) {
    ::execv(argv.front(), argv.data());
  }
  ::_exit(127);
}

}  // namespace

GradusProcess::GradusProcess(const fs::path& folder, const std::vector<std::string>& arguments)
    : GradusProcess(folder, Command{with_binary(arguments)}) {}

GradusProcess GradusProcess::mpirun(const fs::path& folder, int ranks,
                                    const std::vector<std::string>& arguments) {
  std::vector<std::string> words = {GRADUS_MPIRUN, "-np", std::to_string(ranks)};
  const std::vector<std::string> program = with_binary(arguments);
  words.insert(words.end(), program.begin(), program.end());
  return {folder, Command{words}};
}

std::string gradus_binary() { return GRADUS_BINARY; }
std::string mpirun() { return GRADUS_MPIRUN; }

GradusProcess GradusProcess::shell(const fs::path& folder, const std::string& command) {
  // exec: signals are then sent to the program and not to its shell.
  return {folder, Command{{"/bin/sh", "-c", "exec " + command}}};
}

GradusProcess::GradusProcess(const fs::path& folder, const Command& command) {
  static std::atomic<int> number = 0;
  const fs::path outputs = folder / "outputs";
  fs::create_directories(outputs);
  const std::string stem = std::to_string(number++);
  out_ = fs::absolute(outputs / (stem + ".out"));
  err_ = fs::absolute(outputs / (stem + ".err"));
  std::vector<std::string> words = command.words;
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ < 0) throw std::system_error(errno, std::generic_category(), "fork");
  if (pid_ == 0) become(folder.c_str(), out_.c_str(), err_.c_str(), argv);
}

GradusProcess::GradusProcess(GradusProcess&& other) noexcept
    : out_(std::move(other.out_)),
      err_(std::move(other.err_)),
      pid_(std::exchange(other.pid_, -1)),
      ended_(other.ended_),
      result_(std::move(other.result_)) {}

GradusProcess::~GradusProcess() {
  if (pid_ < 0 || !running()) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void GradusProcess::send(int signal) const {
  if (!ended_) ::kill(pid_, signal);
}

std::vector<pid_t> GradusProcess::children() const {
  std::vector<pid_t> found;
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream file(entry.path() / "stat");
    std::string stat;
    std::getline(file, stat);
    // "pid (name) state parent …"; a name may hold anything but ends with the last parenthesis.
    const size_t after = stat.rfind(')');
    if (after == std::string::npos) continue;
    std::istringstream fields(stat.substr(after + 1));
    char state = '?';
    pid_t parent = 0;
    fields >> state >> parent;
    if (parent == pid_) found.push_back(std::stoi(name));
  }
  std::ranges::sort(found);
  return found;
}

bool GradusProcess::running() {
  if (ended_) return false;
  int status = 0;
  rusage usage{};
  if (::wait4(pid_, &status, WNOHANG, &usage) == 0) return true;
  ended_ = true;
  result_.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  result_.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  result_.peak_bytes = int64_t{usage.ru_maxrss} * 1024;
  result_.out = read_file(out_);
  result_.err = read_file(err_);
  return false;
}

void GradusProcess::run_until(const std::function<bool()>& met) {
  while (running() && !met()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // cores are for the run
  }
}

std::string GradusProcess::out_so_far() const { return fs::exists(out_) ? read_file(out_) : ""; }

ProcessResult GradusProcess::wait() {
  using Clock = std::chrono::steady_clock;
  const auto give_up = Clock::now() + std::chrono::minutes(5);
  while (running()) {
    if (Clock::now() > give_up) {
      send(SIGKILL);
      throw std::runtime_error("gradus still ran after five minutes; it said: " + read_file(out_) +
                               read_file(err_));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // cores are for the run
  }
  return result_;
}

ProcessResult run_gradus(const fs::path& folder, const std::vector<std::string>& arguments) {
  return GradusProcess(folder, arguments).wait();
}

std::string some_text(int64_t characters, uint64_t seed) {
  static constexpr const char* kSyllables[] = {"ba", "co", "di", "fe", "gu", "la",
                                               "mi", "no", "pe", "ri", "so", "tu"};
  std::mt19937_64 rng(seed);
  std::string text;
  while (static_cast<int64_t>(text.size()) < characters) {
    const uint64_t word = rng();
    for (uint64_t i = 0; i < 1 + word % 3; ++i) text += kSyllables[rng() % std::size(kSyllables)];
    text += word % 11 == 0 ? ".\n" : " ";
  }
  text.resize(static_cast<size_t>(characters));
  return text;
}

void prepare_text(const fs::path& folder, const std::string& text, const std::string& tokenizer) {
  write_file(folder / "text.txt", text);
  const ProcessResult result = run_gradus(
      folder, {"data", "prepare", "--tokenizer", tokenizer, "--out", "data", "text.txt"});
  ASSERT_EQ(result.exit_code, 0) << result.text();
}

}  // namespace gradus::test
