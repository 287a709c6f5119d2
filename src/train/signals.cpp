#include "train/signals.h"

#include <array>
#include <csignal>

namespace gradus {
namespace {

constexpr std::array kStopping = {SIGTERM, SIGINT, SIGUSR1};

// The one place where a handler can leave word: the language allows it nothing else.
volatile std::sig_atomic_t received_signal = 0;

extern "C" void note_signal(int signal) {
  received_signal = signal;
  std::signal(signal, signal == SIGINT ? SIG_DFL : SIG_IGN);
}

}  // namespace

StopSignals::StopSignals() {
  received_signal = 0;
  for (const int signal : kStopping) std::signal(signal, note_signal);
}

StopSignals::~StopSignals() {
  for (const int signal : kStopping) std::signal(signal, SIG_DFL);
}

const char* StopSignals::received() const {
  switch (received_signal) {
    case SIGTERM:
      return "SIGTERM";
    case SIGINT:
      return "SIGINT";
    case SIGUSR1:
      return "SIGUSR1";
    default:
      return nullptr;
  }
}

}  // namespace gradus
