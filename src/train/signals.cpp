#include "train/signals.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <ctime>
#include <string_view>

namespace gradus {
namespace {

struct Stopping {
  int number;
  const char* name;
};
constexpr std::array kStopping = {Stopping{SIGTERM, "SIGTERM"}, Stopping{SIGINT, "SIGINT"},
                                  Stopping{SIGHUP, "SIGHUP"}, Stopping{SIGUSR1, "SIGUSR1"}};

constexpr int64_t kOneWish = 1000;  ///< milliseconds

/// The one place where a handler can leave word, and find it: the language allows it nothing else.
struct Word {
  std::atomic<int> received{0};
  std::atomic<int64_t> first{0};  ///< when, in milliseconds; 0: none came
  std::atomic<bool> speaks{false};
  std::atomic<bool> launched{false};
  std::atomic<bool> terminal{false};
  std::atomic<bool> training{false};
  std::atomic<int64_t> step{0};
  std::atomic<int64_t> kept{0};
};
static_assert(std::atomic<int64_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);
Word word;

std::array<struct sigaction, kStopping.size()> previous;

const char* name_of(int signal) {
  const auto* const found = std::ranges::find(kStopping, signal, &Stopping::number);
  return found == kStopping.end() ? nullptr : found->name;
}

/// Milliseconds of a clock that nobody sets; never 0.
int64_t now() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1000 + time.tv_nsec / 1'000'000 + 1;
}

// Below here, only what a signal handler may call.

/// One line, put together without memory of the heap.
class Line {
 public:
  Line& operator<<(std::string_view text) {
    const size_t count = std::min(text.size(), text_.size() - size_);
    std::copy_n(text.begin(), count, text_.begin() + size_);
    size_ += count;
    return *this;
  }
  Line& operator<<(int64_t value) {
    const auto [end, error] =
        std::to_chars(text_.data() + size_, text_.data() + text_.size(), value);
    if (error == std::errc()) size_ = static_cast<size_t>(end - text_.data());
    return *this;
  }
  /// Where nobody reads, nothing is said: waiting for a reader here would wait for ever.
  void say() const {
    pollfd out{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
    if (::poll(&out, 1, 0) <= 0) return;
    // A line that cannot be written has nobody to tell.
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text_.data(), size_);
  }

 private:
  std::array<char, 256> text_{};
  size_t size_ = 0;
};

/// Begins behind the ^C that a terminal shows.
Line line_of(int signal) {
  Line line;
  line << (word.terminal ? "\ngradus: " : "gradus: ") << name_of(signal);
  return line;
}

void end_by(int signal) {
  ::signal(signal, SIG_DFL);
  sigset_t only;
  sigemptyset(&only);
  sigaddset(&only, signal);
  ::raise(signal);
  ::pthread_sigmask(SIG_UNBLOCK, &only, nullptr);
  ::_exit(128 + signal);
}

void say_first(int signal) {
  if (!word.speaks) return;
  (line_of(signal) << ": stopping after this step, or the next that is applied, which is then saved"
                   << (signal == SIGTERM && word.launched ? " if the launcher leaves the time; "
                                                          : "; ")
                   << (signal == SIGINT ? "again" : "SIGINT (Ctrl-C)") << " to quit now\n")
      .say();
}

void quit(int signal) {
  const int64_t kept = word.kept;
  if (word.speaks) {
    (line_of(signal) << " again: quitting now, and losing " << word.step - kept
                     << " steps and the one begun; the run can go on from step " << kept << "\n")
        .say();
  }
  end_by(signal);
}

extern "C" void answer(int signal) {
  const int kept_errno = errno;
  if (!word.training) {
    if (word.speaks) {
      (line_of(signal) << ": ended before training began; nothing is lost\n").say();
    }
    end_by(signal);
  }
  const int64_t time = now();
  int64_t first = 0;
  if (word.first.compare_exchange_strong(first, time)) {
    word.received = signal;
    say_first(signal);
  } else if (signal == SIGINT && time - first >= kOneWish) {
    quit(signal);
  }
  errno = kept_errno;
}

}  // namespace

StopSignals::StopSignals(bool speaks, int64_t ranks) {
  word.received = 0;
  word.first = 0;
  word.training = false;
  word.speaks = speaks;
  word.launched = ranks > 1;
  word.terminal = ::isatty(STDERR_FILENO) == 1;
  set_progress(0, 0);
  struct sigaction action {};
  action.sa_handler = answer;
  action.sa_flags = SA_RESTART;
  for (const Stopping& signal : kStopping) sigaddset(&action.sa_mask, signal.number);
  for (size_t i = 0; i < kStopping.size(); ++i) {
    ::sigaction(kStopping[i].number, nullptr, &previous[i]);
    if (previous[i].sa_handler != SIG_IGN) ::sigaction(kStopping[i].number, &action, nullptr);
  }
}

StopSignals::~StopSignals() {
  for (size_t i = 0; i < kStopping.size(); ++i) {
    ::sigaction(kStopping[i].number, &previous[i], nullptr);
  }
}

void StopSignals::training_begins() { word.training = true; }

void StopSignals::set_progress(int64_t step, int64_t kept) {
  word.step = step;
  word.kept = kept;
}

const char* StopSignals::received() const { return name_of(word.received); }

}  // namespace gradus
