#include "cudasim/warp.h"

#include <bit>
#include <cstring>

namespace cudasim {

void shuffle_work(uint32_t mask, LaneSlot* lanes) {
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    LaneSlot& lane = lanes[std::countr_zero(left)];
    Shuffle in;
    std::memcpy(&in, lane.in, sizeof(in));
    if (mask >> in.source & 1u) {
      std::memcpy(lane.out, lanes[in.source].in, sizeof(in.value));
    } else {
      std::memset(lane.out, 0xff, sizeof(in.value));  // undefined: the other does not take part
    }
  }
}

void vote_work(uint32_t mask, LaneSlot* lanes) {
  uint32_t ballot = 0;
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    int predicate;
    std::memcpy(&predicate, lanes[lane].in, sizeof(predicate));
    ballot |= static_cast<uint32_t>(predicate) << lane;
  }
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    std::memcpy(lanes[std::countr_zero(left)].out, &ballot, sizeof(ballot));
  }
}

}  // namespace cudasim
