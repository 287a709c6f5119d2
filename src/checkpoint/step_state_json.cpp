#include "checkpoint/step_state_json.h"

#include <cmath>
#include <concepts>
#include <limits>
#include <string>

#include "core/error.h"

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
bool from_json(const Json& json, T& value) {
  if constexpr (std::floating_point<T>) {
    if (json == "nan") {
      value = std::numeric_limits<T>::quiet_NaN();
    } else if (json == "inf" || json == "-inf") {
      value =
          json == "inf" ? std::numeric_limits<T>::infinity() : -std::numeric_limits<T>::infinity();
    } else if (json.is_number()) {
      value = json.get<T>();
    } else {
      return false;
    }
    return true;
  } else {
    if (!json.is_number_integer()) return false;
    value = json.get<T>();
    return true;
  }
}

}  // namespace

Json step_state_to_json(const StepState& state) {
  Json json = Json::object();
  visit_fields(state, [&](const char* name, auto value) { json[name] = to_json(value); });
  return json;
}

StepState step_state_from_json(const Json& json) {
  StepState state;
  size_t fields = 0;
  visit_fields(state, [&](const char* name, auto& value) {
    ++fields;
    if (!json.is_object() || !json.contains(name) || !from_json(json.at(name), value)) {
      throw CheckpointError("step state: field '{}' is missing or has the wrong type", name);
    }
  });
  if (json.size() != fields) {
    throw CheckpointError("step state: {} fields, expected {}; written by another version?",
                          json.size(), fields);
  }
  return state;
}

}  // namespace gradus
