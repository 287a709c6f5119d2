#pragma once

#include <initializer_list>

#include "core/error.h"
#include "core/executor.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace gradus {

/// The checks that every operation makes before it picks an implementation. Each throws ShapeError
/// and names the operation and the tensor.

/// A tensor under the name that the operation's contract has for it.
struct Argument {
  const char* name;
  ConstTensor tensor;
};

/// The tensors are defined, have memory and are on x's device.
inline void require_on_device(const char* operation, const Executor& x,
                              std::initializer_list<Argument> arguments) {
  for (const auto& [name, tensor] : arguments) {
    if (!tensor.defined()) throw ShapeError("{}: {} is missing", operation, name);
    if (tensor.device() != x.device()) {
      throw ShapeError("{}: {} {} is on {}, the operation runs on {}", operation, name,
                       describe(tensor), to_string(tensor.device()), to_string(x.device()));
    }
    if (tensor.data() == nullptr && tensor.numel() > 0) {
      throw ShapeError("{}: {} {} has no memory", operation, name, describe(tensor));
    }
  }
}

/// The same, and contiguous.
inline void require_contiguous(const char* operation, const Executor& x,
                               std::initializer_list<Argument> arguments) {
  require_on_device(operation, x, arguments);
  for (const auto& [name, tensor] : arguments) {
    if (!tensor.contiguous()) {
      throw ShapeError("{}: {} {} is not contiguous", operation, name, describe(tensor));
    }
  }
}

inline void require_shape(const char* operation, const char* argument, const ConstTensor& tensor,
                          const Shape& expected) {
  if (!(tensor.shape() == expected)) {
    throw ShapeError("{}: {} is {}, expected {}", operation, argument, describe(tensor),
                     to_string(expected));
  }
}

inline void require_dtype(const char* operation, const char* argument, const ConstTensor& tensor,
                          DType expected) {
  if (tensor.dtype() != expected) {
    throw ShapeError("{}: {} is {}, expected {}", operation, argument, describe(tensor),
                     to_string(expected));
  }
}

inline void require_rank(const char* operation, const char* argument, const ConstTensor& tensor,
                         int rank) {
  if (tensor.rank() != rank) {
    throw ShapeError("{}: {} is {}, expected {} axes", operation, argument, describe(tensor), rank);
  }
}

inline void require_dropout(const char* operation, const Dropout& dropout) {
  if (!(dropout.p >= 0.0 && dropout.p < 1.0)) {  // refuses NaN too
    throw ShapeError("{}: the probability of dropout is {}, expected [0, 1)", operation, dropout.p);
  }
}

[[noreturn]] inline void refuse_dtypes(const char* operation,
                                       std::initializer_list<ConstTensor> tensors) {
  std::string list;
  for (const ConstTensor& tensor : tensors) {
    list += (list.empty() ? "" : ", ") + describe(tensor);
  }
  throw ShapeError("{}: no implementation for {}", operation, list);
}

/// Calls body(S{}) with the C++ type of a floating dtype of the CPU backend (double, float, bf16).
template <typename Body>
void dispatch_float(const char* operation, const ConstTensor& tensor, Body&& body) {
  switch (tensor.dtype()) {
    case DType::fp64:
      return body(double{});
    case DType::fp32:
      return body(float{});
    case DType::bf16:
      return body(bf16{});
    default:
      refuse_dtypes(operation, {tensor});
  }
}

}  // namespace gradus
