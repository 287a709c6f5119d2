#pragma once

#include <map>
#include <string>
#include <string_view>

#include "core/arena.h"

namespace gradus {

/// Declares the tensors of layers that share one form: a saved tensor for each layer, a
/// transient one once for all of them.
class LayerTensors {
 public:
  explicit LayerTensors(TensorVisitor& visitor) : visitor_(visitor) {}

  /// Names the layer whose tensors are declared from now on, for example "block.3".
  void begin_layer(std::string prefix) { prefix_ = std::move(prefix); }

  /// Throws ShapeError for a transient that an earlier layer declared otherwise: the two would
  /// share memory that fits one of them.
  Tensor declare(std::string_view name, DType dtype, const Shape& shape, const Lifetime& lifetime);

 private:
  struct Shared {
    Tensor tensor;
    Lifetime lifetime;
    std::string layer;  ///< that declared it first
  };

  TensorVisitor& visitor_;
  std::string prefix_;
  std::map<std::string, Shared, std::less<>> shared_;
};

}  // namespace gradus
