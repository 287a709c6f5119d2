#include "train/first_nonfinite.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "kernels/elementwise.h"

namespace gradus {
namespace {

constexpr double kMostOperations = 65536;  // of a pass

}  // namespace

std::string first_finding(Executor& x, Communicator* world, const std::string& found,
                          double order) {
  if (world == nullptr || world->size() == 1) return found;
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  // Of ranks that found something at the same point the lowest speaks: the largest of these.
  const double mine = found.empty() ? kNone : -(order * world->size() + world->rank());
  double first = mine;
  const Tensor agreed(&first, DType::fp64, Device::cpu, {1});
  world->all_reduce(x, agreed, agreed, ReduceOp::max).wait(x);
  if (first == kNone) return {};
  std::array<char, 256> text{};
  if (mine == first) {
    fmt::format("{} on rank {}", found, world->rank()).copy(text.data(), text.size() - 1);
  }
  const Tensor shared(text.data(), DType::u8, Device::cpu, {static_cast<int64_t>(text.size())});
  world->all_reduce(x, shared, shared, ReduceOp::max).wait(x);
  return text.data();
}

FirstNonfinite::FirstNonfinite(Executor& x, const Parallelism& parallel)
    : x_(x), parallel_(parallel) {
  x_.observe(this);
}

void FirstNonfinite::begin_pass(int64_t micro_batch, bool backward) {
  const PipelineParallel& pp = parallel_.pp;
  const int64_t before = backward ? pp.stages() + pp.stages() - 1 - pp.stage() : pp.stage();
  pass_ = static_cast<double>(micro_batch * 2 * pp.stages() + before);
  pass_began_ = operations_;
}

void FirstNonfinite::completed(const char* operation, const ConstTensor& written) {
  ++operations_;
  if (!found_.empty() || written.dtype() == DType::i32 || written.dtype() == DType::u8) return;
  x_.observe(nullptr);  // looking is not part of the step
  if (!finite(written)) {
    found_ = fmt::format("{} wrote a non-finite value to {} (operation {} of the step)", operation,
                         describe(written), operations_);
    const auto in_pass = static_cast<double>(operations_ - pass_began_);
    order_ = pass_ * kMostOperations + std::min(in_pass, kMostOperations - 1);
  }
  x_.observe(this);
}

std::string FirstNonfinite::agree() {
  x_.observe(nullptr);
  return first_finding(x_, parallel_.world, found_, order_);
}

/// all_finite of any view: q, k and v are strided ones of one tensor.
bool FirstNonfinite::finite(const ConstTensor& tensor, int axis) {
  if (tensor.contiguous()) return all_finite(x_, tensor);
  for (int64_t i = 0; i < tensor.size(axis); ++i) {
    if (!finite(tensor.slice(axis, i, 1), axis + 1)) return false;
  }
  return true;
}

}  // namespace gradus
