#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace gradus {

/// Philox4x32-10, a counter-based generator (Salmon et al., SC'11, "Parallel random numbers: as
/// easy as 1, 2, 3"). Four 32-bit words from a 64-bit key and a 128-bit counter; no state, so that
/// any rank, thread, micro-batch or recomputation draws the same numbers.
constexpr std::array<uint32_t, 4> philox4x32(uint64_t key, uint64_t counter_hi,
                                             uint64_t counter_lo) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53u;
  constexpr uint32_t kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u;
  constexpr uint32_t kWeyl1 = 0xBB67AE85u;
  std::array<uint32_t, 4> c = {
      static_cast<uint32_t>(counter_lo), static_cast<uint32_t>(counter_lo >> 32),
      static_cast<uint32_t>(counter_hi), static_cast<uint32_t>(counter_hi >> 32)};
  uint32_t key0 = static_cast<uint32_t>(key);
  uint32_t key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * c[0];
    const uint64_t product1 = uint64_t{kMultiplier1} * c[2];
    c = {static_cast<uint32_t>(product1 >> 32) ^ c[1] ^ key0, static_cast<uint32_t>(product1),
         static_cast<uint32_t>(product0 >> 32) ^ c[3] ^ key1, static_cast<uint32_t>(product0)};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return c;
}

/// The key of one use ("site") of random numbers in a run, well mixed (SplitMix64's finaliser,
/// Steele et al., OOPSLA'14), so that neighbouring seeds and sites are unrelated.
constexpr uint64_t rng_key(uint64_t seed, uint64_t site) {
  uint64_t z = 0x632BE59BD9B4E019u;
  // One after the other with a full mix between: of their sum, (1, 2) and (2, 1) would be one key.
  for (const uint64_t input : {seed, site}) {
    z += 0x9E3779B97F4A7C15u + input;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
  }
  return z;
}

/// A site named by text (FNV-1a), for the uses that have no layer, for example a parameter's name.
constexpr uint64_t rng_site(std::string_view name) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3u;
  return hash;
}

/// Where dropout's masks come from (arXiv:1207.0580): a pure function of the element's logical
/// place, so that every layout, recomputation and resume sees the same masks.
///
/// Row-wise uses (embedding, residual; (B, T, C)): counter_hi = first_sample + b,
/// counter_lo = (first_position + t) << 32 | c / 4, and word c % 4 of the result.
/// Attention weights (B, H, T_q, T_k): counter_hi = first_sample + b,
/// counter_lo = (first_head + h) << 48 | q << 24 | k / 4 with absolute positions q and k, word k
/// % 4. An element is kept when its word is >= threshold(), and kept elements are scaled by 1 / (1
/// - p).
struct Dropout {
  double p = 0.0;  ///< probability of dropping, in [0, 1)
  uint64_t key = 0;
  int64_t first_sample = 0;    ///< global sample number of b = 0
  int64_t first_position = 0;  ///< of t = 0 (row-wise uses)
  int64_t first_head = 0;      ///< of h = 0 (attention)

  bool active() const { return p > 0.0; }
  /// p · 2³², at most 2³² - 1: a p outside its range must not become an undefined conversion.
  uint32_t threshold() const {
    constexpr uint32_t kMost = 0xFFFFFFFFu;
    const double words = p * 4294967296.0;
    if (!(words > 0.0)) return 0;  // NaN too
    return words < static_cast<double>(kMost) ? static_cast<uint32_t>(words) : kMost;
  }
  double scale() const { return 1.0 / (1.0 - p); }
};

}  // namespace gradus
