#include "data/permutation.h"

#include <cmath>

#include "core/error.h"
#include "core/rng.h"

namespace gradus {
namespace {

/// Four rounds already give a permutation that is pseudo-random against chosen questions (Luby and
/// Rackoff, SIAM J. Comput. 1988); that bound is weak for domains of a few points, and eight rounds
/// still cost far less than the copy of a sample.
constexpr int kRounds = 8;

}  // namespace

RandomPermutation::RandomPermutation(uint64_t key, int64_t size) : key_(key), size_(size) {
  if (size < 1) throw DataError("a permutation of {} elements was asked for", size);
  const auto points = static_cast<uint64_t>(size);
  a_ = static_cast<uint64_t>(std::ceil(std::sqrt(static_cast<double>(size))));
  b_ = (points + a_ - 1) / a_;
}

uint64_t RandomPermutation::round(int64_t epoch, int number, uint64_t half) const {
  // half < 2^32, since size < 2^63.
  const auto words =
      philox4x32(key_, static_cast<uint64_t>(epoch), static_cast<uint64_t>(number) << 32 | half);
  return uint64_t{words[1]} << 32 | words[0];
}

int64_t RandomPermutation::operator()(int64_t epoch, int64_t index) const {
  auto point = static_cast<uint64_t>(index);
  do {
    uint64_t left = point % a_;
    uint64_t right = point / a_;
    for (int number = 0; number < kRounds; number += 2) {
      // Each half step adds a function of the other half, and so can be undone. The remainder's
      // bias is below 2^-32.
      left = (left + round(epoch, number, right) % a_) % a_;
      right = (right + round(epoch, number + 1, left) % b_) % b_;
    }
    point = right * a_ + left;
  } while (point >= static_cast<uint64_t>(size_));
  return static_cast<int64_t>(point);
}

}  // namespace gradus
