#pragma once

#include <cstddef>
#include <type_traits>
#include <vector>

#include "parallel/communicator.h"

namespace gradus {

/// Every rank's `mine`, by rank. The ranks of the group call it together; waits for all of them.
template <typename T>
std::vector<T> gather_values(Executor& x, Communicator& group, const T& mine) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<T> values(static_cast<size_t>(group.size()));
  constexpr int64_t kBytes = sizeof(T);
  const Tensor all(values.data(), DType::u8, Device::cpu, {kBytes * group.size()});
  const ConstTensor own(&mine, DType::u8, Device::cpu, {kBytes});
  group.all_gather(x, all, own).wait(x);
  return values;
}

}  // namespace gradus
