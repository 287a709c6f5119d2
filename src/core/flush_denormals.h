#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace gradus {

/// While it lives, the calling thread computes without denormal numbers: one as an operand counts
/// as zero, one as a result becomes zero, of the same sign (x86: DAZ and FTZ, Arm: FZ). Moving,
/// storing and loading them changes nothing. On processors a denormal takes some hundred cycles;
/// moments of weights that get no gradient (tokens that do not occur) decay into them.
///
/// Whoever computes holds one, on each of its threads and for the length of the computation: what a
/// kernel gives then depends neither on who calls it nor on which thread runs a part of it.
class FlushDenormals {
 public:
  FlushDenormals() : before_(control()) {
    if ((before_ & kFlush) != kFlush) set_control(before_ | kFlush);
  }
  ~FlushDenormals() {
    if ((before_ & kFlush) != kFlush) set_control(before_);
  }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__SSE2__)
  static constexpr uint64_t kFlush = 0x8040;  // MXCSR: flush to zero, denormals are zeros
  static uint64_t control() { return _mm_getcsr(); }
  static void set_control(uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kFlush = uint64_t{1} << 24;  // FPCR: FZ
  static uint64_t control() {
    uint64_t value = 0;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void set_control(uint64_t value) { asm volatile("msr fpcr, %0" ::"r"(value) : "memory"); }
#else
  static constexpr uint64_t kFlush = 0;
  static uint64_t control() { return 0; }
  static void set_control(uint64_t) {}
#endif

  uint64_t before_;
};

}  // namespace gradus
