#include "core/json_text.h"

#include <fmt/format.h>

#include <unordered_set>
#include <utility>
#include <vector>

#include "core/printable_text.h"

namespace gradus {
namespace {

using Json = nlohmann::json;

/// Reads a text without keeping its values: whether it is JSON within the limits.
class Examiner final : public nlohmann::json_sax<Json> {
 public:
  explicit Examiner(const JsonLimits& limits) : limits_(limits) {}

  /// Empty: nothing is wrong.
  const std::string& problem() const { return problem_; }

  bool null() override { return count(); }
  bool boolean(bool) override { return count(); }
  bool number_integer(number_integer_t) override { return count(); }
  bool number_unsigned(number_unsigned_t) override { return count(); }
  bool number_float(number_float_t, const string_t&) override { return count(); }
  bool string(string_t&) override { return count(); }
  bool binary(binary_t&) override { return count(); }
  bool start_object(size_t) override {
    keys_.emplace_back();
    return enter();
  }
  bool end_object() override {
    keys_.pop_back();
    return leave();
  }
  bool start_array(size_t) override { return enter(); }
  bool end_array() override { return leave(); }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    return refuse(fmt::format("names '{}' twice", printable(name)));
  }
  bool parse_error(size_t byte, const std::string&, const Json::exception& error) override {
    return refuse(fmt::format("not valid JSON near byte {}: {}", byte, printable(error.what())));
  }

 private:
  bool refuse(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }
  bool count() {
    if (++values_ <= limits_.values) return true;
    return refuse(fmt::format("more than {} values", limits_.values));
  }
  bool enter() {
    if (++depth_ <= limits_.depth) return count();
    return refuse(fmt::format("nested too deeply, more than {} levels", limits_.depth));
  }
  bool leave() {
    --depth_;
    return true;
  }

  JsonLimits limits_;
  std::vector<std::unordered_set<std::string>> keys_;  ///< of the objects that are open
  int64_t values_ = 0;
  int depth_ = 0;
  std::string problem_;
};

}  // namespace

std::optional<Json> parse_json(std::string_view text, std::string& problem,
                               const JsonLimits& limits) {
  if (static_cast<int64_t>(text.size()) > limits.bytes) {
    problem = fmt::format("{} bytes, expected at most {}", text.size(), limits.bytes);
    return std::nullopt;
  }
  // The library takes a zero byte for the end of the text and would not see what follows.
  if (const size_t zero = text.find('\0'); zero != std::string_view::npos) {
    problem = fmt::format("not valid JSON: a zero byte, byte {}", zero + 1);
    return std::nullopt;
  }
  // Twice, since the library's own hooks take time that grows with the square of an object's
  // members.
  Examiner examiner(limits);
  if (!Json::sax_parse(text.begin(), text.end(), &examiner)) {
    problem = examiner.problem();
    return std::nullopt;
  }
  return Json::parse(text.begin(), text.end());
}

}  // namespace gradus
