#include "model/initialize.h"

#include <cmath>
#include <numbers>

#include "core/error.h"
#include "core/parallel_for.h"
#include "core/rng.h"

namespace gradus {
namespace {

/// Standard normal number `element` of a key: one Philox block gives two pairs.
double normal(uint64_t key, int64_t element) {
  const auto words = philox4x32(key, 0, static_cast<uint64_t>(element / 4));
  const size_t pair = static_cast<size_t>(element % 4 / 2) * 2;
  const double u1 = (words[pair] + 1.0) / 4294967296.0;  // in (0, 1]
  const double u2 = words[pair + 1] / 4294967296.0;
  const double radius = std::sqrt(-2.0 * std::log(u1));
  const double angle = 2.0 * std::numbers::pi * u2;
  return radius * (element % 2 == 0 ? std::cos(angle) : std::sin(angle));
}

/// The value of a logical element.
double initial_value(const ParamSpec& spec, uint64_t key, int64_t row, int64_t column) {
  if (row >= spec.shape[0]) return 0.0;  // padding
  switch (spec.init) {
    case Init::zeros:
      return 0.0;
    case Init::ones:
      return 1.0;
    case Init::normal:
      const int64_t columns = spec.shape.rank() == 2 ? spec.shape[1] : 1;
      return spec.init_std * normal(key, row * columns + column);
  }
  return 0.0;
}

template <typename S>
void draw(Executor& x, const Parameter& parameter, int64_t first, const Tensor& into,
          uint64_t seed) {
  const ParamSpec& spec = parameter.spec;
  const int64_t columns = parameter.numel() / parameter.value.size(0);
  const int64_t first_row = spec.cut == TpCut::rows ? parameter.row_begin : 0;
  const int64_t first_column = spec.cut == TpCut::columns ? parameter.row_begin : 0;
  const uint64_t key = rng_key(seed, rng_site(spec.name));
  S* out = into.as<S>();
  parallel_for(x, into.numel(), 1024, [&](int64_t i) {
    const int64_t row = (first + i) / columns;
    const int64_t column = (first + i) % columns;
    out[i] = static_cast<S>(initial_value(spec, key, first_row + row, first_column + column));
  });
}

}  // namespace

void initialize_parameter(Executor& x, const Parameter& parameter, int64_t first,
                          const Tensor& into, uint64_t seed) {
  if (first < 0 || first + into.numel() > parameter.numel() || into.rank() != 1 ||
      !into.contiguous()) {
    throw ShapeError("initial values of {} {} from element {} on do not fit into {}",
                     parameter.spec.name, to_string(parameter.value.shape()), first,
                     describe(into));
  }
  if (into.numel() == 0) return;
  if (into.dtype() == DType::fp64) {
    draw<double>(x, parameter, first, into, seed);
  } else {
    draw<float>(x, parameter, first, into, seed);
  }
}

}  // namespace gradus
