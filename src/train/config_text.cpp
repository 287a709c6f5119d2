#include "train/config_text.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/utf8_sequence.h"

namespace gradus {
namespace {

bool is_control(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return (byte < 0x20 && c != '\t' && c != '\n' && c != '\r') || byte == 0x7f;
}

/// A descriptor that is closed at the end of its scope.
class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int value() const { return value_; }

 private:
  int value_;
};

std::string type_in_words(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return S_ISSOCK(mode) ? "a socket" : "no regular file";
}

}  // namespace

std::optional<std::string> read_config_text(const std::filesystem::path& path, std::string& text) {
  // A pipe without a writer, or a device, must not keep the program waiting.
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (file.value() < 0) {
    return errno == ENOENT   ? "it does not exist"
           : errno == EACCES ? "permission denied"
                             : std::string(std::strerror(errno));
  }
  struct stat status = {};
  if (::fstat(file.value(), &status) != 0) return std::string(std::strerror(errno));
  if (!S_ISREG(status.st_mode)) {
    return fmt::format("it is {}, expected a regular file", type_in_words(status.st_mode));
  }
  text.resize(kMostConfigBytes + 1);
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t got = ::read(file.value(), text.data() + size, text.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return std::string(std::strerror(errno));
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  text.resize(size);
  if (size <= kMostConfigBytes) return std::nullopt;
  return fmt::format("it is larger than {} bytes, which no configuration is", kMostConfigBytes);
}

std::optional<TextProblem> find_text_problem(std::string_view text) {
  if (text.starts_with("\xff\xfe") || text.starts_with("\xfe\xff")) {
    return TextProblem{1, "the text is UTF-16: save it as UTF-8"};
  }
  int line = 1;
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (length == 0) {
      return TextProblem{line, fmt::format("byte 0x{:02x} is not UTF-8: save the text as UTF-8",
                                           static_cast<unsigned char>(text[0]))};
    }
    if (is_control(text[0])) {
      return TextProblem{line, fmt::format("control character 0x{:02x}: remove it",
                                           static_cast<unsigned char>(text[0]))};
    }
    if (text[0] == '\n') ++line;
    text.remove_prefix(length);
  }
  return std::nullopt;
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

bool begins_with_tab(std::string_view text, int line) {
  for (; line > 0 && !text.empty(); --line)
    text.remove_prefix(std::min(text.find('\n') + 1, text.size()));
  text = text.substr(0, text.find('\n'));
  const size_t indentation = text.find_first_not_of(" \t");
  return text.substr(0, indentation).find('\t') != text.npos;
}

}  // namespace gradus
