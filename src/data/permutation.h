#pragma once

#include <cstdint>

namespace gradus {

/// Pseudo-random permutations of 0 … size - 1, one for each epoch, evaluated at single points in
/// constant time and memory: a generalised Feistel network on Z_a x Z_b with Philox as its round
/// function, and cycle walking from the a·b >= size points to the wanted ones (Black and Rogaway,
/// "Ciphers with arbitrary finite domains", CT-RSA 2002).
class RandomPermutation {
 public:
  /// size >= 1. Different keys give unrelated permutations.
  RandomPermutation(uint64_t key, int64_t size);

  int64_t size() const { return size_; }
  /// The image of index, 0 <= index < size.
  int64_t operator()(int64_t epoch, int64_t index) const;

 private:
  uint64_t round(int64_t epoch, int number, uint64_t half) const;

  uint64_t key_;
  int64_t size_;
  uint64_t a_;  ///< ceil(sqrt(size))
  uint64_t b_;  ///< ceil(size / a), so that a·b - size < a: a step of cycle walking is rare
};

}  // namespace gradus
