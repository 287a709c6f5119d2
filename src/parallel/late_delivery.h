#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "parallel/mpi_operation.h"

namespace gradus {

/// The result of an operation that is kept from its receiver until it waits
/// (BootstrapOptions::late).
class LateDelivery {
 public:
  /// Lets the operation write into memory of this object in place of its outputs. members: of its
  /// group.
  void redirect(MpiOperationSpec& spec, std::span<MpiMessage> messages, int members);
  /// Copies what came to where it belongs.
  void deliver();

 private:
  struct Part {
    std::byte* to = nullptr;
    int64_t bytes = 0;
  };
  std::byte* keep(std::byte* out, int64_t bytes);

  std::vector<std::byte> kept_;  // the parts, one behind the other
  std::vector<Part> parts_;
};

}  // namespace gradus
