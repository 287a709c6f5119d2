#include "cli/console.h"

#include <fcntl.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <stdio_ext.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "core/error.h"

namespace gradus::cli {
namespace {

IoError not_written(int reason) {
  return IoError("cannot write to standard output: {}", std::strerror(reason));
}

using StandardSink = spdlog::sinks::stdout_color_sink_mt;

class ConsoleSink final : public StandardSink {
 public:
  explicit ConsoleSink(spdlog::color_mode colors) : StandardSink(colors) {}

  void log(const spdlog::details::log_msg& message) override {
    StandardSink::log(message);
    if (std::ferror(stdout) == 0) return;
    const int reason = errno;
    // Kept, it would be tried again with every line, and be an error of the program's end.
    ::__fpurge(stdout);
    std::clearerr(stdout);
    if (said_.exchange(true)) return;
    std::fprintf(stderr, "gradus: cannot write the log to standard output: %s; going on without\n",
                 std::strerror(reason));
  }

 private:
  std::atomic<bool> said_{false};
};

}  // namespace

void claim_standard_descriptors() {
  // The wrong way round: what reads or writes them is told that they are not there.
  constexpr std::array kWrongWay = {O_WRONLY, O_RDONLY, O_RDONLY};
  for (int descriptor = 0; descriptor < static_cast<int>(kWrongWay.size()); ++descriptor) {
    if (::fcntl(descriptor, F_GETFD) >= 0 || errno != EBADF) continue;
    // Gets the lowest number that is free, which is this one. Without /dev/null nothing is better.
    ::open("/dev/null", kWrongWay[static_cast<size_t>(descriptor)]);
  }
}

void flush_output() {
  if (std::fflush(stdout) != 0) throw not_written(errno);
}

void print_now(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) throw not_written(errno);
  flush_output();
}

int with_checked_output(const std::function<int()>& command) {
  try {
    const int code = command();
    flush_output();
    return code;
  } catch (const std::system_error& error) {  // of fmt::print
    if (std::ferror(stdout) == 0) throw;
    throw not_written(error.code().value());
  }
}

std::shared_ptr<spdlog::logger> console_log(const std::string& name, Colors colors) {
  auto sink = std::make_shared<ConsoleSink>(
      colors == Colors::never ? spdlog::color_mode::never : spdlog::color_mode::automatic);
  auto log = std::make_shared<spdlog::logger>(name, std::move(sink));
  log->set_pattern("%H:%M:%S %^%L%$ %v");
  return log;
}

}  // namespace gradus::cli
