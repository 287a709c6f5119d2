#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <type_traits>

#include "core/dtype.h"

namespace gradus {

enum class Device : uint8_t { cpu, cuda };

constexpr std::string_view to_string(Device device) {
  return device == Device::cpu ? "cpu" : "cuda";
}

inline constexpr int kMaxRank = 5;

/// Sizes of a tensor's axes, outermost first.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes);
  explicit Shape(std::span<const int64_t> sizes);

  int rank() const { return rank_; }
  /// Negative axes count from the end.
  int64_t operator[](int axis) const { return sizes_[axis < 0 ? axis + rank_ : axis]; }
  int64_t numel() const;
  std::span<const int64_t> sizes() const { return {sizes_.data(), static_cast<size_t>(rank_)}; }
  Shape with(int axis, int64_t size) const;
  bool operator==(const Shape& other) const;

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

/// "(4, 64, 128)".
std::string to_string(const Shape& shape);

/// A non-owning strided view of memory that an arena owns. Copies are shallow. A
/// default-constructed tensor is undefined and stands for "not given" where an argument is
/// optional. ConstTensor is the read-only view; a Tensor converts to it.
template <bool kConst>
class BasicTensor {
 public:
  using Pointer = std::conditional_t<kConst, const std::byte*, std::byte*>;

  BasicTensor() = default;
  /// A contiguous (row-major) view. `name` must outlive the view; it is what error messages print.
  BasicTensor(std::conditional_t<kConst, const void*, void*> data, DType dtype, Device device,
              const Shape& shape, const char* name = "");
  /// Tensor -> ConstTensor.
  template <bool kOther>
  requires(kConst && !kOther) BasicTensor(
      const BasicTensor<kOther>& other)  // NOLINT: a view widens to read-only implicitly
      : data_(other.data_),
        shape_(other.shape_),
        strides_(other.strides_),
        name_(other.name_),
        dtype_(other.dtype_),
        device_(other.device_) {}

  bool defined() const { return dtype_set(); }
  int rank() const { return shape_.rank(); }
  int64_t size(int axis) const { return shape_[axis]; }
  /// In elements. Negative axes count from the end.
  int64_t stride(int axis) const { return strides_[axis < 0 ? axis + rank() : axis]; }
  const Shape& shape() const { return shape_; }
  int64_t numel() const { return shape_.numel(); }
  int64_t bytes() const { return numel() * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  const char* name() const { return name_; }
  Pointer data() const { return data_; }

  /// Typed pointer to the first element. Throws ShapeError when T is not the tensor's dtype.
  template <typename T>
  std::conditional_t<kConst, const T*, T*> as() const {
    check_dtype(kDTypeOf<T>);
    return reinterpret_cast<std::conditional_t<kConst, const T*, T*>>(data_);
  }

  bool contiguous() const;
  /// Same elements under another shape; one axis may be -1. Contiguous tensors only.
  BasicTensor reshape(const Shape& shape) const;
  /// Elements [begin, begin + count) of an axis.
  BasicTensor slice(int axis, int64_t begin, int64_t count) const;
  /// The axis split in two of the given sizes: (…, n, …) -> (…, outer, n / outer, …).
  BasicTensor split(int axis, int64_t outer) const;
  BasicTensor transpose(int axis_a, int axis_b) const;
  BasicTensor named(const char* name) const;

 private:
  template <bool>
  friend class BasicTensor;

  bool dtype_set() const { return shape_.rank() > 0; }
  void check_dtype(DType expected) const;

  Pointer data_ = nullptr;
  Shape shape_;
  std::array<int64_t, kMaxRank> strides_{};
  const char* name_ = "";
  DType dtype_ = DType::fp32;
  Device device_ = Device::cpu;
};

using Tensor = BasicTensor<false>;
using ConstTensor = BasicTensor<true>;

extern template class BasicTensor<false>;
extern template class BasicTensor<true>;

/// "ln1 fp32 (4, 64, 128)", for messages.
std::string describe(const ConstTensor& tensor);

}  // namespace gradus
