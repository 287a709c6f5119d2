#include "model/layer_tensors.h"

#include <utility>

namespace gradus {

Tensor LayerTensors::declare(std::string_view name, DType dtype, const Shape& shape,
                             const Lifetime& lifetime) {
  if (lifetime.kind() != Lifetime::Kind::transient) {
    return visitor_.declare(prefix_ + "." + std::string(name), dtype, shape, lifetime);
  }
  const auto known = shared_.find(name);
  if (known != shared_.end()) return known->second;
  const Tensor tensor = visitor_.declare("shared." + std::string(name), dtype, shape, lifetime);
  shared_.emplace(std::string(name), tensor);
  return tensor;
}

}  // namespace gradus
