#include "kernels/cpu/matmul_gemm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_gemm.cpp"
#include <hwy/foreach_target.h>
// After foreach_target: included once for each instruction set.
#include "core/error.h"
#include "core/parallel_for.h"
#include "kernels/cpu/matmul_team.h"
#include "kernels/cpu/matmul_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

// Depth of one pass: a packed strip of b (two vectors wide) and six rows of a stay in the L1 cache.
constexpr int64_t kDepthBlock = 256;
// Row tiles that a thread takes through all of its columns: their part of a stays in the L2 cache.
constexpr int64_t kRowTilesPerBlock = 24;
// Rows and columns of c that are under way together: what is packed of a and b stays in the L3
// cache, and scratch memory stays bounded whatever the product's size.
constexpr int64_t kRowSlab = 256 * kTileRows;
constexpr int64_t kColumnSlab = 1024;
// Up to so many columns, reading the rows of a where they are costs less than packing them; beyond,
// one packed stream instead of six saves more than it cost.
constexpr int64_t kMostColumnsInPlace = 512;

constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

/// Elements of the three pieces of scratch memory.
struct ScratchSizes {
  int64_t a = 0;     ///< a slab of a in tiles of six rows; 0 where a is read in place
  int64_t b = 0;     ///< a slab of b in strips of two vectors
  int64_t sums = 0;  ///< a slab of c in the accumulator type, where c cannot hold partial sums
};

template <typename S>
ScratchSizes scratch_sizes(const Gemm& p) {
  using T = Compute<S>;
  const auto width = static_cast<int64_t>(2 * hn::Lanes(Tag<S>()));
  ScratchSizes sizes;
  if (p.rows == 0 || !gemm_packs(p)) return sizes;
  const int64_t rows = std::min(round_up(p.rows, kTileRows), kRowSlab);
  const int64_t columns = std::min(round_up(p.columns, width), kColumnSlab);
  const int64_t depth = std::min(p.depth, kDepthBlock);
  if (!std::is_same_v<S, T> || p.a.transposed || p.columns > kMostColumnsInPlace)
    sizes.a = rows * depth;
  sizes.b = columns * depth;
  if (size_of(p.c_dtype) != sizeof(T) && p.depth > kDepthBlock) sizes.sums = rows * columns;
  return sizes;
}

/// One product with storage type S and type O of c: what each thread of the team runs.
template <typename S, typename O>
class Product {
 public:
  using T = Compute<S>;

  Product(const Gemm& p, T* packed_a, T* packed_b, T* sums)
      : p_(p),
        a_(static_cast<const S*>(p.a.data)),
        b_(static_cast<const S*>(p.b.data)),
        c_(static_cast<O*>(p.c)),
        bias_(static_cast<const S*>(p.bias)),
        packed_a_(packed_a),
        packed_b_(packed_b),
        sums_(sums) {}

  void run(TeamMember member) const {
    for (int64_t row = 0; row < p_.rows; row += kRowSlab) {
      for (int64_t column = 0; column < p_.columns; column += kColumnSlab) {
        for (int64_t k = 0; k < p_.depth; k += kDepthBlock) {
          const Block block = {.row = row,
                               .rows = std::min(kRowSlab, p_.rows - row),
                               .column = column,
                               .columns = std::min(kColumnSlab, p_.columns - column),
                               .k = k,
                               .depth = std::min(kDepthBlock, p_.depth - k)};
          pack_a(member, block);
          pack_b(member, block);
          member.barrier();
          multiply(member, block);
          member.barrier();  // before the packed slabs are written again
        }
      }
    }
  }

 private:
  struct Block {
    int64_t row, rows, column, columns, k, depth;
  };

  static int64_t width() { return static_cast<int64_t>(2 * hn::Lanes(Tag<S>())); }

  void pack_a(TeamMember member, const Block& block) const {
    if (packed_a_ == nullptr) return;
    const auto [begin, end] = member.share((block.rows + kTileRows - 1) / kTileRows);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile * kTileRows;
      const int64_t count = std::min(kTileRows, block.rows - row);
      T* to = packed_a_ + row * block.depth;
      if (p_.a.transposed) {
        pack_row_tile(to, a_ + block.row + row + block.k * p_.a.stride, p_.a.stride, count,
                      block.depth);
      } else {
        pack_transposed(to, kTileRows, a_ + (block.row + row) * p_.a.stride + block.k, p_.a.stride,
                        count, block.depth);
      }
    }
  }

  void pack_b(TeamMember member, const Block& block) const {
    const auto [begin, end] = member.share((block.columns + width() - 1) / width());
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t column = strip * width();
      const int64_t count = std::min(width(), block.columns - column);
      T* to = packed_b_ + column * block.depth;
      if (p_.b.transposed) {
        const S* from = b_ + (block.column + column) * p_.b.stride + block.k;
        pack_transposed(to, width(), from, p_.b.stride, count, block.depth);
      } else {
        const S* from = b_ + block.k * p_.b.stride + block.column + column;
        pack_columns(Tag<S>(), to, width(), from, p_.b.stride, count, block.depth);
      }
    }
  }

  void multiply(TeamMember member, const Block& block) const {
    const int64_t row_tiles = (block.rows + kTileRows - 1) / kTileRows;
    const int64_t strips = (block.columns + width() - 1) / width();
    const TeamGrid grid = team_grid(member.threads, row_tiles, strips);
    const auto [row_begin, row_end] =
        TeamMember{member.thread % grid.rows_of, grid.rows_of}.share(row_tiles);
    const auto [strip_begin, strip_end] =
        TeamMember{member.thread / grid.rows_of, grid.columns_of}.share(strips);
    for (int64_t first = row_begin; first < row_end; first += kRowTilesPerBlock) {
      const int64_t last = std::min(row_end, first + kRowTilesPerBlock);
      for (int64_t strip = strip_begin; strip < strip_end; ++strip) {
        for (int64_t tile = first; tile < last; ++tile) multiply_one(block, tile, strip);
      }
    }
  }

  void multiply_one(const Block& block, int64_t tile, int64_t strip) const {
    const int64_t row = tile * kTileRows;
    const int64_t column = strip * width();
    std::array<const T*, kTileRows> a;
    int64_t a_step = 1;
    if (packed_a_ != nullptr) {
      a_step = kTileRows;
      for (int64_t i = 0; i < kTileRows; ++i) a[i] = packed_a_ + row * block.depth + i;
    } else {
      // Rows past the last repeat it; their sums are not stored.
      for (int64_t i = 0; i < kTileRows; ++i) {
        a[i] = static_cast<const T*>(p_.a.data) +
               (block.row + std::min(row + i, block.rows - 1)) * p_.a.stride + block.k;
      }
    }
    const T* b = packed_b_ + column * block.depth;
    O* out = c_ + (block.row + row) * p_.c_stride + block.column + column;
    const int64_t rows = std::min(kTileRows, block.rows - row);
    const int64_t columns = std::min(width(), block.columns - column);
    const bool first = block.k == 0;
    const bool last = block.k + block.depth == p_.depth;
    const S* bias = bias_ != nullptr && first ? bias_ + block.column + column : nullptr;
    if constexpr (std::is_same_v<O, T>) {
      multiply_tile(Tag<S>(), a, a_step, b, block.depth,
                    TileResult<T, S, O>{.out = out,
                                        .out_stride = p_.c_stride,
                                        .add = first && !p_.accumulate ? nullptr : out,
                                        .add_stride = p_.c_stride,
                                        .bias = bias,
                                        .rows = rows,
                                        .columns = columns});
    } else {
      T* sums = sums_ + row * round_up(block.columns, width()) + column;
      const int64_t stride = round_up(block.columns, width());
      if (last) {
        multiply_tile(Tag<S>(), a, a_step, b, block.depth,
                      TileResult<T, S, O>{.out = out,
                                          .out_stride = p_.c_stride,
                                          .add = first ? nullptr : sums,
                                          .add_stride = stride,
                                          .bias = bias,
                                          .rows = rows,
                                          .columns = columns});
      } else {
        multiply_tile(Tag<S>(), a, a_step, b, block.depth,
                      TileResult<T, S, T>{.out = sums,
                                          .out_stride = stride,
                                          .add = first ? nullptr : sums,
                                          .add_stride = stride,
                                          .bias = bias,
                                          .rows = rows,
                                          .columns = columns});
      }
    }
  }

  const Gemm& p_;
  const S* a_;
  const S* b_;
  O* c_;
  const S* bias_;
  T* packed_a_;
  T* packed_b_;
  T* sums_;
};

/// Few rows: each strip of four rows of bᵀ is read once for all rows of a.
template <typename S, typename O>
void multiply_unpacked(TeamMember member, const Gemm& p) {
  constexpr int64_t kStrip = 4;
  const auto* a = static_cast<const S*>(p.a.data);
  const auto* b = static_cast<const S*>(p.b.data);
  const auto* bias = static_cast<const S*>(p.bias);
  auto* c = static_cast<O*>(p.c);
  const auto [begin, end] = member.share((p.columns + kStrip - 1) / kStrip);
  for (int64_t strip = begin; strip < end; ++strip) {
    const int64_t column = strip * kStrip;
    for (int64_t row = 0; row < p.rows; ++row) {
      multiply_row(Tag<S>(), a + row * p.a.stride, b + column * p.b.stride, p.b.stride,
                   std::min(kStrip, p.columns - column), p.depth,
                   bias != nullptr ? bias + column : nullptr, c + row * p.c_stride + column);
    }
  }
}

template <typename S, typename O>
void gemm_of(Executor& x, const Gemm& p) {
  using T = Compute<S>;
  if (!gemm_packs(p)) {
    run_team(gemm_threads(x, p), [&](TeamMember member) { multiply_unpacked<S, O>(member, p); });
    return;
  }
  const ScratchSizes sizes = scratch_sizes<S>(p);
  Scratch scratch(x);
  T* packed_a = sizes.a > 0 ? scratch.take<T>(sizes.a) : nullptr;
  T* packed_b = scratch.take<T>(sizes.b);
  T* sums = sizes.sums > 0 ? scratch.take<T>(sizes.sums) : nullptr;
  const Product<S, O> product(p, packed_a, packed_b, sums);
  run_team(gemm_threads(x, p), [&](TeamMember member) { product.run(member); });
}

void gemm_any(Executor& x, const Gemm& p) {
  if (p.rows == 0 || p.columns == 0) return;
  switch (p.dtype) {
    case DType::fp64:
      return gemm_of<double, double>(x, p);
    case DType::fp32:
      return gemm_of<float, float>(x, p);
    case DType::bf16:
      return p.c_dtype == DType::bf16 ? gemm_of<bf16, bf16>(x, p) : gemm_of<bf16, float>(x, p);
    default:
      throw ShapeError("gemm: no implementation for {}", to_string(p.dtype));
  }
}

int64_t gemm_scratch_any(const Gemm& p) {
  const ScratchSizes sizes = p.dtype == DType::fp64   ? scratch_sizes<double>(p)
                             : p.dtype == DType::fp32 ? scratch_sizes<float>(p)
                                                      : scratch_sizes<bf16>(p);
  int64_t bytes = 0;
  for (const int64_t count : {sizes.a, sizes.b, sizes.sums}) {
    bytes += p.dtype == DType::fp64 ? scratch_bytes<double>(count) : scratch_bytes<float>(count);
  }
  return bytes;
}

template <typename S>
void add_column_sums_of(Executor& x, void* out, const void* data, int64_t stride, int64_t rows,
                        int64_t columns) {
  using T = Compute<S>;
  const Tag<S> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto* sums = static_cast<T*>(out);
  const auto* in = static_cast<const S*>(data);
  const auto one_vector = [&](int64_t j, size_t n) {
    auto sum = load_some(d, sums + j, n);
    for (int64_t i = 0; i < rows; ++i) sum = hn::Add(sum, load_some(d, in + i * stride + j, n));
    store_some(d, sum, sums + j, n);
  };
  parallel_ranges(x, columns, 4 * lanes, [&](int64_t begin, int64_t end, int) {
    int64_t j = begin;
    for (; j + 4 * lanes <= end; j += 4 * lanes) {
      auto s0 = hn::LoadU(d, sums + j);
      auto s1 = hn::LoadU(d, sums + j + lanes);
      auto s2 = hn::LoadU(d, sums + j + 2 * lanes);
      auto s3 = hn::LoadU(d, sums + j + 3 * lanes);
      for (int64_t i = 0; i < rows; ++i) {
        const S* row = in + i * stride + j;
        s0 = hn::Add(s0, load(d, row));
        s1 = hn::Add(s1, load(d, row + lanes));
        s2 = hn::Add(s2, load(d, row + 2 * lanes));
        s3 = hn::Add(s3, load(d, row + 3 * lanes));
      }
      hn::StoreU(s0, d, sums + j);
      hn::StoreU(s1, d, sums + j + lanes);
      hn::StoreU(s2, d, sums + j + 2 * lanes);
      hn::StoreU(s3, d, sums + j + 3 * lanes);
    }
    for (; j < end; j += lanes) one_vector(j, static_cast<size_t>(std::min(lanes, end - j)));
  });
}

void add_column_sums_any(Executor& x, void* sums, const void* in, int64_t in_stride, int64_t rows,
                         int64_t columns, DType dtype) {
  switch (dtype) {
    case DType::fp64:
      return add_column_sums_of<double>(x, sums, in, in_stride, rows, columns);
    case DType::fp32:
      return add_column_sums_of<float>(x, sums, in, in_stride, rows, columns);
    case DType::bf16:
      return add_column_sums_of<bf16>(x, sums, in, in_stride, rows, columns);
    default:
      throw ShapeError("column sums: no implementation for {}", to_string(dtype));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradus::cpu {

HWY_EXPORT(gemm_any);
HWY_EXPORT(gemm_scratch_any);
HWY_EXPORT(add_column_sums_any);

void gemm(Executor& x, const Gemm& product) { HWY_DYNAMIC_DISPATCH(gemm_any)(x, product); }

int64_t gemm_scratch(const Gemm& product) {
  return HWY_DYNAMIC_DISPATCH(gemm_scratch_any)(product);
}

int gemm_threads(const Executor& x, const Gemm& p) {
  constexpr double kWorkForTeam = 1 << 17;  // multiplications from which on a second thread pays
  const double work =
      static_cast<double>(p.rows) * static_cast<double>(p.columns) * static_cast<double>(p.depth);
  return work < kWorkForTeam ? 1 : x.threads();
}

bool gemm_packs(const Gemm& p) {
  // Up to so many rows, packing b costs more than reading it once for each row.
  constexpr int64_t kUnpackedRows = 6;
  return p.rows > kUnpackedRows || p.a.transposed || !p.b.transposed || p.accumulate;
}

void add_column_sums(Executor& x, void* sums, const void* in, int64_t in_stride, int64_t rows,
                     int64_t columns, DType dtype) {
  HWY_DYNAMIC_DISPATCH(add_column_sums_any)(x, sums, in, in_stride, rows, columns, dtype);
}

}  // namespace gradus::cpu
#endif  // HWY_ONCE
