#include "model/layer_tensors.h"

#include <utility>

#include "core/error.h"

namespace gradus {

Tensor LayerTensors::declare(std::string_view name, DType dtype, const Shape& shape,
                             const Lifetime& lifetime) {
  if (lifetime.kind() != Lifetime::Kind::transient) {
    return visitor_.declare(prefix_ + "." + std::string(name), dtype, shape, lifetime);
  }
  const auto known = shared_.find(name);
  if (known != shared_.end()) {
    const Shared& first = known->second;
    if (first.tensor.dtype() != dtype || first.tensor.shape() != shape) {
      throw ShapeError("transient {} is {} {} in {} and {} in {}: layers that share it must agree",
                       name, to_string(dtype), to_string(shape), prefix_, describe(first.tensor),
                       first.layer);
    }
    if (!(first.lifetime == lifetime)) {
      throw ShapeError("transient {} is needed at other instants in {} than in {}", name, prefix_,
                       first.layer);
    }
    return first.tensor;
  }
  const Tensor tensor = visitor_.declare("shared." + std::string(name), dtype, shape, lifetime);
  shared_.emplace(std::string(name), Shared{tensor, lifetime, prefix_});
  return tensor;
}

}  // namespace gradus
