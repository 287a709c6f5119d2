#include "train/verify_deviation.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/rng.h"
#include "train/held_values.h"

namespace gradus {
namespace {

// Gradients below this share of the model's largest are rounding noise around zero (those of key
// biases are zero by mathematics) and are measured against it.
constexpr double kNoiseFloor = 1e-3;

double largest_of(const std::vector<double>& tensor) {
  double most = 0.0;
  for (const double value : tensor) most = std::max(most, std::abs(value));
  return most;
}

}  // namespace

void Deviation::add(double value, const std::string& name) {
  if (value <= worst || std::isnan(worst)) return;  // true for a NaN that follows a number
  worst = value;
  where = name;
}

double Gradients::scale_of(const std::string& name) const {
  double most = 0.0;
  for (const auto& [other, tensor] : values) most = std::max(most, largest_of(tensor));
  return std::max(largest_of(values.at(name)), kNoiseFloor * most);
}

Gradients gradients_of(VerifiedModel& model, int64_t number) {
  const StepState state = model.step(number, 0.0);
  Gradients gradients{.loss = state.loss, .norm = state.grad_norm};
  for (const Parameter& parameter : model.parameters().all()) {
    auto& values = gradients.values[parameter.spec.name];
    values.resize(static_cast<size_t>(parameter.spec.shape.numel()));
    for_each_held(parameter, model.optimizer().held(parameter, Optimizer::Kind::gradient),
                  [&](int64_t i, double value) { values[static_cast<size_t>(i)] = value; });
  }
  return gradients;
}

Deviation deviation_from(const Gradients& expected, VerifiedModel& model, int64_t number) {
  const StepState state = model.step(number, 0.0);
  Deviation deviation;
  deviation.add(std::abs(state.loss - expected.loss) / expected.loss, "the loss");
  deviation.add(std::abs(state.grad_norm - expected.norm) / expected.norm, "the gradients' norm");
  for (const Parameter& parameter : model.parameters().all()) {
    const std::string& name = parameter.spec.name;
    const double scale = expected.scale_of(name);
    const std::vector<double>& whole = expected.values.at(name);
    for_each_held(parameter, model.optimizer().held(parameter, Optimizer::Kind::gradient),
                  [&](int64_t i, double value) {
                    deviation.add(std::abs(value - whole[static_cast<size_t>(i)]) / scale, name);
                  });
  }
  return deviation;
}

Deviation deviation_from_differences(VerifiedModel& model, size_t rank, size_t ranks) {
  constexpr int64_t kSamples = 3;
  constexpr double kStep = 1e-3;
  // Away from the initial weights, where many gradients are alike.
  for (int64_t number = 1; number < 3; ++number) model.step(number, 5e-2);
  const Gradients gradients = gradients_of(model, 0);
  Deviation deviation;
  const std::vector<Parameter>& all = model.parameters().all();
  for (size_t p = rank; p < all.size(); p += ranks) {
    const Parameter& parameter = all[p];
    const std::string& name = parameter.spec.name;
    const std::vector<double>& expected = gradients.values.at(name);
    const auto largest =
        std::ranges::max_element(expected, {}, [](double v) { return std::abs(v); });
    std::vector<int64_t> elements = {largest - expected.begin()};
    for (int64_t k = 0; k < kSamples; ++k) {
      const auto words = philox4x32(rng_key(7, rng_site(name)), 0, static_cast<uint64_t>(k));
      elements.push_back(static_cast<int64_t>(words[0] % expected.size()));
    }
    auto* weights = parameter.value.as<double>();
    for (const int64_t i : elements) {
      const double weight = weights[i];
      const auto loss_at = [&](double steps) {
        weights[i] = weight + steps * kStep;
        return model.step(0, 0.0).loss;
      };
      // Of fourth order: the step can be so long that the loss's rounding does not show.
      const double numeric =
          (8 * (loss_at(1) - loss_at(-1)) - (loss_at(2) - loss_at(-2))) / (12 * kStep);
      weights[i] = weight;
      const double exact = expected[static_cast<size_t>(i)];
      deviation.add(std::abs(numeric - exact) / gradients.scale_of(name), name);
    }
  }
  return deviation;
}

Deviation differing_elements(VerifiedModel& one, VerifiedModel& other) {
  using Kind = Optimizer::Kind;
  Deviation deviation;
  for (const Parameter& parameter : one.parameters().all()) {
    const Parameter& same = other.parameters()[parameter.spec.name];
    for (const Kind kind : {Kind::master, Kind::first_moment, Kind::second_moment}) {
      const HeldPart a = one.optimizer().held(parameter, kind);
      const HeldPart b = other.optimizer().held(same, kind);
      const bool equal =
          a.values.numel() == b.values.numel() &&
          (a.values.numel() == 0 || std::memcmp(a.values.data(), b.values.data(),
                                                static_cast<size_t>(a.values.bytes())) == 0);
      deviation.add(equal ? 0.0 : 1.0, parameter.spec.name);
    }
  }
  return deviation;
}

}  // namespace gradus
