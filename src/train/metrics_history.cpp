#include "train/metrics_history.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <system_error>

#include "core/atomic_file.h"
#include "core/error.h"

namespace gradus {
namespace {

/// No line of a run comes near it.
constexpr size_t kLongestLine = size_t{1} << 20;
constexpr size_t kNamedLines = 5;
constexpr const char* kCutShort = "it was cut short";
constexpr const char* kMalformed = "not a JSON object whose step is a whole number";

/// What a line says of its step and event, without making anything of the rest, however deep.
class StepAndEvent final : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool is_object = false;
  bool has_step = false;
  std::optional<int64_t> step;
  std::string event;

  bool null() override { return value(); }
  bool boolean(bool) override { return value(); }
  bool number_integer(int64_t number) override { return whole(number); }
  bool number_unsigned(uint64_t number) override {
    return number <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())
               ? whole(static_cast<int64_t>(number))
               : value();
  }
  bool number_float(double, const std::string&) override { return value(); }
  bool string(std::string& text) override {
    if (depth_ == 1 && key_ == "event") event = text;
    return value();
  }
  bool binary(nlohmann::json::binary_t&) override { return value(); }
  bool start_object(size_t) override { return enter(true); }
  bool end_object() override { return leave(); }
  bool start_array(size_t) override { return enter(false); }
  bool end_array() override { return leave(); }
  bool key(std::string& name) override {
    if (depth_ == 1) key_ = name;
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  bool whole(int64_t number) {
    value();
    if (depth_ == 1 && key_ == "step") step = number;
    return true;
  }
  bool value() {
    if (depth_ != 1 || key_ != "step") return true;
    has_step = true;
    step.reset();
    return true;
  }
  bool enter(bool object) {
    value();
    if (depth_ == 0) is_object = object;
    ++depth_;
    return true;
  }
  bool leave() {
    --depth_;
    return true;
  }

  int64_t depth_ = 0;
  std::string key_;
};

struct Line {
  std::string_view text;  ///< without its end
  int64_t number = 1;
  bool too_long = false;  ///< text is only its beginning
  bool ended = true;      ///< by a newline
};

void for_each_line(const std::filesystem::path& path, const std::function<void(const Line&)>& use) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw IoError("cannot read {}: {}", path.string(), std::strerror(errno));
  std::array<char, size_t{1} << 16> buffer;
  std::string text;
  Line line;
  const auto finish = [&](bool ended) {
    line.text = text;
    line.ended = ended;
    use(line);
    text.clear();
    line = {.text = {}, .number = line.number + 1};
  };
  bool open = false;  ///< a line has begun
  while (in.read(buffer.data(), buffer.size()), in.gcount() > 0) {
    std::string_view rest(buffer.data(), static_cast<size_t>(in.gcount()));
    while (!rest.empty()) {
      const size_t end = rest.find('\n');
      const std::string_view part = rest.substr(0, end);
      line.too_long |= text.size() + part.size() > kLongestLine;
      if (!line.too_long) text += part;
      open = end == std::string_view::npos;
      if (open) break;
      finish(true);
      rest.remove_prefix(end + 1);
    }
  }
  if (in.bad()) throw IoError("cannot read {}: {}", path.string(), std::strerror(errno));
  if (open) finish(false);
}

struct Verdict {
  bool keep = false;
  const char* problem = nullptr;  ///< of a line that is not one of ours
};

Verdict judge(const Line& line, int64_t last_step, bool evaluation_due) {
  if (line.too_long) return {.problem = "it is longer than 1 MiB"};
  StepAndEvent found;
  if (!nlohmann::json::sax_parse(line.text, &found)) {
    return {.problem = line.ended ? kMalformed : kCutShort};
  }
  if (!found.is_object || (found.has_step && !found.step)) return {.problem = kMalformed};
  const bool again = evaluation_due && found.step == last_step && found.event == "eval";
  return {.keep = found.step.value_or(0) <= last_step && !again};
}

/// A file that is written in large pieces.
class Copy {
 public:
  explicit Copy(const std::filesystem::path& path) : file_(path) {}
  void add(std::string_view line) {
    pending_ += line;
    pending_ += '\n';
    if (pending_.size() >= kLongestLine) write();
  }
  void publish() {
    write();
    file_.publish();
  }

 private:
  void write() {
    file_.write(pending_);
    pending_.clear();
  }
  AtomicFile file_;
  std::string pending_;
};

}  // namespace

std::vector<std::string> drop_later_metrics(const std::filesystem::path& path, int64_t last_step,
                                            bool evaluation_due) {
  std::vector<std::string> warnings;
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return warnings;
  const std::filesystem::path target = std::filesystem::canonical(path, error);  // behind a link
  if (error) throw IoError("cannot read {}: {}", path.string(), error.message());
  bool changes = false;
  size_t malformed = 0;
  for_each_line(target, [&](const Line& line) {
    const Verdict verdict = judge(line, last_step, evaluation_due);
    changes |= !verdict.keep || !line.ended;
    if (verdict.problem == nullptr) return;
    if (++malformed > kNamedLines) return;
    warnings.push_back(
        fmt::format("{}:{} is left out: {}", path.string(), line.number, verdict.problem));
  });
  if (malformed > kNamedLines) {
    warnings.push_back(
        fmt::format("{}: {} more such lines are left out", path.string(), malformed - kNamedLines));
  }
  if (!changes) return warnings;
  Copy copy(target);
  for_each_line(target, [&](const Line& line) {
    if (judge(line, last_step, evaluation_due).keep) copy.add(line.text);
  });
  copy.publish();
  return warnings;
}

}  // namespace gradus
