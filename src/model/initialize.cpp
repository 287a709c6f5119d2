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

template <typename S>
void draw(Executor& x, const Parameter& parameter, const Tensor& into, uint64_t seed) {
  const ParamSpec& spec = parameter.spec;
  const int64_t rows = into.size(0);
  const int64_t columns = into.numel() / rows;
  const int64_t logical_columns = spec.shape.rank() == 2 ? spec.shape[1] : 1;
  const int64_t first_row = spec.cut == TpCut::rows ? parameter.row_begin : 0;
  const int64_t first_column = spec.cut == TpCut::columns ? parameter.row_begin : 0;
  const uint64_t key = rng_key(seed, rng_site(spec.name));
  S* out = into.as<S>();
  parallel_for(x, rows, 16, [&](int64_t row) {
    for (int64_t column = 0; column < columns; ++column) {
      double value = 0.0;
      const int64_t logical_row = first_row + row;
      if (logical_row < spec.shape[0]) {
        const int64_t element = logical_row * logical_columns + first_column + column;
        value = spec.init == Init::normal ? spec.init_std * normal(key, element)
                : spec.init == Init::ones ? 1.0
                                          : 0.0;
      }
      out[row * columns + column] = static_cast<S>(value);
    }
  });
}

}  // namespace

void initialize_parameter(Executor& x, const Parameter& parameter, const Tensor& into,
                          uint64_t seed) {
  if (!(into.shape() == parameter.value.shape()) || !into.contiguous()) {
    throw ShapeError("initial values of {} do not fit into {}", parameter.spec.name,
                     describe(into));
  }
  if (into.dtype() == DType::fp64) {
    draw<double>(x, parameter, into, seed);
  } else {
    draw<float>(x, parameter, into, seed);
  }
}

}  // namespace gradus
