#include "checkpoint/step_state_json.h"

#include <cmath>
#include <concepts>
#include <limits>
#include <string>
#include <type_traits>

#include "core/json_fields.h"

namespace gradus {
namespace {

using Json = nlohmann::json;

/// One list of the fields for both directions.
template <typename State, typename Visitor>
void visit_fields(State& state, Visitor&& visit) {
  visit("attempted", state.attempted);
  visit("applied", state.applied);
  visit("loss", state.loss);
  visit("grad_norm", state.grad_norm);
  visit("lr", state.lr);
  visit("clip_scale", state.clip_scale);
  visit("loss_scale", state.loss_scale);
  visit("nonfinite", state.nonfinite);
  visit("skipped_in_row", state.skipped_in_row);
  visit("skipped", state.skipped);
}

template <typename T>
Json to_json(T value) {
  if constexpr (std::floating_point<T>) {
    if (std::isnan(value)) return "nan";
    if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
    return static_cast<double>(value);
  } else {
    return value;
  }
}

template <typename T>
T from_json(const JsonFields<CheckpointError>& fields, const char* field) {
  if constexpr (std::floating_point<T>) {
    const Json& json = fields.any(field);
    if (json == "nan") return std::numeric_limits<T>::quiet_NaN();
    if (json == "inf") return std::numeric_limits<T>::infinity();
    if (json == "-inf") return -std::numeric_limits<T>::infinity();
    if (!json.is_number()) fields.refuse(field, R"(a number, "nan", "inf" or "-inf")");
    return json.get<T>();
  } else {
    return static_cast<T>(
        fields.integer(field, std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
  }
}

}  // namespace

Json step_state_to_json(const StepState& state) {
  Json json = Json::object();
  visit_fields(state, [&](const char* name, auto value) { json[name] = to_json(value); });
  return json;
}

StepState step_state_from_json(const Json& json, const std::string& name) {
  const JsonFields<CheckpointError> fields(json, name);
  StepState state;
  size_t known = 0;
  visit_fields(state, [&](const char* field, auto& value) {
    ++known;
    value = from_json<std::remove_reference_t<decltype(value)>>(fields, field);
  });
  if (json.size() != known) {
    throw CheckpointError("{}: {} fields, expected {}; written by another version?", name,
                          json.size(), known);
  }
  return state;
}

}  // namespace gradus
