#include "core/tensor.h"

#include <algorithm>
#include <string_view>

#include "core/error.h"

namespace gradus {
namespace {

std::array<int64_t, kMaxRank> row_major_strides(const Shape& shape) {
  std::array<int64_t, kMaxRank> strides{};
  int64_t stride = 1;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    strides[axis] = stride;
    stride *= shape[axis];
  }
  return strides;
}

}  // namespace

Shape::Shape(std::initializer_list<int64_t> sizes)
    : Shape(std::span<const int64_t>(sizes.begin(), sizes.size())) {}

Shape::Shape(std::span<const int64_t> sizes) : rank_(static_cast<int>(sizes.size())) {
  if (sizes.size() > kMaxRank) {
    throw ShapeError("a tensor has at most {} axes, {} were asked for", kMaxRank, sizes.size());
  }
  std::copy(sizes.begin(), sizes.end(), sizes_.begin());
}

int64_t Shape::numel() const {
  int64_t count = rank_ == 0 ? 0 : 1;
  for (const int64_t size : sizes()) count *= size;
  return count;
}

Shape Shape::with(int axis, int64_t size) const {
  Shape out = *this;
  out.sizes_[axis < 0 ? axis + rank_ : axis] = size;
  return out;
}

bool Shape::operator==(const Shape& other) const {
  return std::ranges::equal(sizes(), other.sizes());
}

std::string to_string(const Shape& shape) {
  return fmt::format("({})", fmt::join(shape.sizes(), ", "));
}

template <bool kConst>
BasicTensor<kConst>::BasicTensor(std::conditional_t<kConst, const void*, void*> data, DType dtype,
                                 Device device, const Shape& shape, const char* name)
    : data_(static_cast<Pointer>(data)),
      shape_(shape),
      strides_(row_major_strides(shape)),
      name_(name),
      dtype_(dtype),
      device_(device) {}

template <bool kConst>
void BasicTensor<kConst>::check_dtype(DType expected) const {
  if (dtype_ != expected) {
    throw ShapeError("tensor {} was read as {}", describe(*this), to_string(expected));
  }
}

template <bool kConst>
bool BasicTensor<kConst>::contiguous() const {
  if (numel() == 0) return true;  // nothing that could lie in another order
  int64_t expected = 1;
  for (int axis = rank() - 1; axis >= 0; --axis) {
    if (shape_[axis] != 1 && strides_[axis] != expected) return false;
    expected *= shape_[axis];
  }
  return true;
}

template <bool kConst>
BasicTensor<kConst> BasicTensor<kConst>::reshape(const Shape& shape) const {
  if (!contiguous()) {
    throw ShapeError("tensor {} is not contiguous and cannot be reshaped", describe(*this));
  }
  int64_t known = 1;
  int inferred = -1;
  bool valid = true;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (shape[axis] == -1 && inferred < 0) {
      inferred = axis;
    } else {
      valid = valid && shape[axis] >= 0;
      known *= shape[axis];
    }
  }
  const Shape full = inferred < 0 ? shape : shape.with(inferred, known == 0 ? 0 : numel() / known);
  if (!valid || full.numel() != numel()) {
    throw ShapeError("tensor {} cannot be reshaped to {}", describe(*this), to_string(shape));
  }
  BasicTensor out = *this;
  out.shape_ = full;
  out.strides_ = row_major_strides(full);
  return out;
}

template <bool kConst>
BasicTensor<kConst> BasicTensor<kConst>::slice(int axis, int64_t begin, int64_t count) const {
  axis = axis < 0 ? axis + rank() : axis;
  if (axis < 0 || axis >= rank() || begin < 0 || count < 0 || begin + count > shape_[axis]) {
    throw ShapeError("tensor {} has no elements [{}, {}) on axis {}", describe(*this), begin,
                     begin + count, axis);
  }
  BasicTensor out = *this;
  if (out.data_ != nullptr) out.data_ += begin * strides_[axis] * size_of(dtype_);
  out.shape_ = shape_.with(axis, count);
  return out;
}

template <bool kConst>
BasicTensor<kConst> BasicTensor<kConst>::split(int axis, int64_t outer) const {
  axis = axis < 0 ? axis + rank() : axis;
  if (axis < 0 || axis >= rank() || rank() == kMaxRank || outer <= 0 || shape_[axis] % outer != 0) {
    throw ShapeError("axis {} of tensor {} cannot be split into {} parts", axis, describe(*this),
                     outer);
  }
  std::array<int64_t, kMaxRank> sizes{};
  BasicTensor out = *this;
  for (int from = 0, to = 0; from < rank(); ++from, ++to) {
    sizes[to] = shape_[from];
    out.strides_[to] = strides_[from];
    if (from == axis) {
      const int64_t inner = shape_[from] / outer;
      sizes[to] = outer;
      out.strides_[to] = strides_[from] * inner;
      ++to;
      sizes[to] = inner;
      out.strides_[to] = strides_[from];
    }
  }
  out.shape_ = Shape(std::span<const int64_t>(sizes.data(), static_cast<size_t>(rank()) + 1));
  return out;
}

template <bool kConst>
BasicTensor<kConst> BasicTensor<kConst>::transpose(int axis_a, int axis_b) const {
  axis_a = axis_a < 0 ? axis_a + rank() : axis_a;
  axis_b = axis_b < 0 ? axis_b + rank() : axis_b;
  if (std::min(axis_a, axis_b) < 0 || std::max(axis_a, axis_b) >= rank()) {
    throw ShapeError("tensor {} has no axes {} and {} to transpose", describe(*this), axis_a,
                     axis_b);
  }
  BasicTensor out = *this;
  out.shape_ = shape_.with(axis_a, shape_[axis_b]).with(axis_b, shape_[axis_a]);
  std::swap(out.strides_[axis_a], out.strides_[axis_b]);
  return out;
}

template <bool kConst>
BasicTensor<kConst> BasicTensor<kConst>::named(const char* name) const {
  BasicTensor out = *this;
  out.name_ = name;
  return out;
}

template class BasicTensor<false>;
template class BasicTensor<true>;

std::string describe(const ConstTensor& tensor) {
  if (!tensor.defined()) return "(undefined)";
  const std::string_view name = tensor.name();
  return fmt::format("{}{}{} {}", name, name.empty() ? "" : " ", to_string(tensor.dtype()),
                     to_string(tensor.shape()));
}

}  // namespace gradus
