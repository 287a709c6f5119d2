#include "cudasim/ptx.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstring>

#include "cudasim/memory.h"
#include "cudasim/warp.h"

namespace cudasim {
namespace {

// ---- ldmatrix ----

struct MatrixRow {
  const unsigned char* row;
  int matrices;
  bool transpose;
};

uint32_t pair_of(uint16_t low, uint16_t high) { return uint32_t{high} << 16 | low; }

void ldmatrix_work(uint32_t /*mask*/, LaneSlot* lanes) {
  MatrixRow first;
  std::memcpy(&first, lanes[0].in, sizeof(first));
  for (int m = 0; m < first.matrices; ++m) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) {
      MatrixRow source;
      std::memcpy(&source, lanes[8 * m + r].in, sizeof(source));
      std::memcpy(matrix[r], source.row, sizeof(matrix[r]));
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int i = lane / 4;
      const int j = lane % 4 * 2;
      const uint32_t word = first.transpose ? pair_of(matrix[j][i], matrix[j + 1][i])
                                            : pair_of(matrix[i][j], matrix[i][j + 1]);
      std::memcpy(lanes[lane].out + 4 * m, &word, sizeof(word));
    }
  }
}

// ---- mma ----

struct Fragments {
  uint32_t a[4];
  uint32_t b[2];
  float d[4];
};

float value_of(Element element, uint32_t word, int half) {
  const auto bits = static_cast<uint16_t>(word >> (16 * half));
  return element == Element::bf16 ? float(__ushort_as_bfloat16(bits))
                                  : float(__ushort_as_half(bits));
}

template <Element kElement>
void mma_work(uint32_t /*mask*/, LaneSlot* lanes) {
  float a[16][16];
  float b[16][8];
  float d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    Fragments f;
    std::memcpy(&f, lanes[lane].in, sizeof(f));
    const int group = lane / 4;
    const int pair = lane % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) {
        a[group + i % 2 * 8][pair + half + i / 2 * 8] = value_of(kElement, f.a[i], half);
      }
      for (int i = 0; i < 2; ++i) {
        b[pair + half + i * 8][group] = value_of(kElement, f.b[i], half);
        d[group + i * 8][pair + half] = f.d[2 * i + half];
      }
    }
  }
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      // The device adds the products and the accumulator in wider than fp32, and rounds at the end.
      double sum = d[i][j];
      for (int k = 0; k < 16; ++k) {
        sum += double{a[i][k]} * double{b[k][j]};
      }
      d[i][j] = static_cast<float>(sum);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4;
    const int pair = lane % 4 * 2;
    const float out[4] = {d[group][pair], d[group][pair + 1], d[group + 8][pair],
                          d[group + 8][pair + 1]};
    std::memcpy(lanes[lane].out, out, sizeof(out));
  }
}

}  // namespace

void ldmatrix(uint32_t* out, int matrices, bool transpose, const void* row, Site site) {
  if (lane() < 8 * matrices) {
    check_aligned(row, 16, site);
  }
  const MatrixRow in{static_cast<const unsigned char*>(row), matrices, transpose};
  warp_collective(WarpOperation::ldmatrix, 0xffffffffu, ldmatrix_work, &in, sizeof(in), out,
                  sizeof(uint32_t) * static_cast<size_t>(matrices), site);
}

void mma_m16n8k16(Element element, float* d, const uint32_t* a, const uint32_t* b, Site site) {
  Fragments in;
  std::memcpy(in.a, a, sizeof(in.a));
  std::memcpy(in.b, b, sizeof(in.b));
  std::memcpy(in.d, d, sizeof(in.d));
  warp_collective(WarpOperation::mma, 0xffffffffu,
                  element == Element::bf16 ? mma_work<Element::bf16> : mma_work<Element::fp16>, &in,
                  sizeof(in), d, sizeof(in.d), site);
}

float exp2_approx(float x) {
  const float result = std::exp2(std::fabs(x) < 0x1p-126f ? 0.0f : x);
  return result < 0x1p-126f ? 0.0f : result;
}

}  // namespace cudasim
