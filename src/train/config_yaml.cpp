#include "train/config_yaml.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>

#include <sstream>

namespace gradus {
namespace {

/// A configuration has two levels and a list. The parser and whoever walks its tree call themselves
/// for every level.
constexpr int kDeepest = 32;

/// Notes where the last document starts, refuses what is nested too deeply, and drops everything
/// else.
class DocumentStart : public YAML::EventHandler {
 public:
  const YAML::Mark& mark() const { return mark_; }

  void OnDocumentStart(const YAML::Mark& mark) override { mark_ = mark; }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    enter(mark);
  }
  void OnSequenceEnd() override { --depth_; }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    enter(mark);
  }
  void OnMapEnd() override { --depth_; }

 private:
  void enter(const YAML::Mark& mark) {
    if (++depth_ > kDeepest) {
      throw YAML::ParserException(
          mark, fmt::format("lists and sections are nested more than {} deep", kDeepest));
    }
  }

  YAML::Mark mark_;
  int depth_ = 0;
};

}  // namespace

YAML::Node parse_yaml(const std::string& text) {
  // Not YAML::LoadAll: yaml-cpp 0.7 consumes nothing of a document that begins with a comma, so
  // LoadAll never returns; and YAML::Load ignores whatever follows the first document.
  std::istringstream in(text);
  YAML::Parser parser(in);
  DocumentStart start;
  if (parser.HandleNextDocument(start) && parser.HandleNextDocument(start)) {
    throw YAML::ParserException(start.mark(), "expected one document, found the start of another");
  }
  return YAML::Load(text);
}

}  // namespace gradus
