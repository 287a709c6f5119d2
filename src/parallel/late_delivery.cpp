#include "parallel/late_delivery.h"

#include <cstring>

namespace gradus {
namespace {

/// Bytes that the operation writes; exchanges have them in their messages.
int64_t output_bytes(const MpiOperationSpec& spec, int members) {
  const int64_t bytes = spec.count * size_of(spec.dtype);
  switch (spec.collective) {
    case Collective::all_gather:
    case Collective::all_to_all:
      return bytes * members;
    case Collective::exchange:
    case Collective::barrier:
      return 0;
    default:
      return bytes;
  }
}

}  // namespace

void LateDelivery::redirect(MpiOperationSpec& spec, std::span<MpiMessage> messages, int members) {
  parts_.clear();
  const int64_t bytes = output_bytes(spec, members);
  int64_t all = bytes;
  for (const MpiMessage& message : messages) all += message.receive ? message.bytes : 0;
  kept_.resize(static_cast<size_t>(all));  // before anything points into it
  if (bytes > 0) {
    // A broadcast sends from its output; the others read their input where it is.
    if (spec.collective == Collective::broadcast) {
      std::memcpy(kept_.data(), spec.out, static_cast<size_t>(bytes));
      spec.in = kept_.data();
    }
    spec.out = keep(spec.out, bytes);
  }
  for (MpiMessage& message : messages) {
    if (message.receive) message.data = keep(message.data, message.bytes);
  }
}

std::byte* LateDelivery::keep(std::byte* out, int64_t bytes) {
  int64_t begin = 0;
  for (const Part& part : parts_) begin += part.bytes;
  parts_.push_back({out, bytes});
  return kept_.data() + begin;
}

void LateDelivery::deliver() {
  const std::byte* from = kept_.data();
  for (const Part& part : parts_) {
    if (part.bytes > 0) std::memcpy(part.to, from, static_cast<size_t>(part.bytes));
    from += part.bytes;
  }
  parts_.clear();
}

}  // namespace gradus
