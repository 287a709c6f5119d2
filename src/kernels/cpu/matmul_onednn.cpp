#include "kernels/cpu/matmul_onednn.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/parallel_for.h"
#include "kernels/cpu/matmul_onednn_api.h"
#include "kernels/cpu/matmul_team.h"

namespace gradus::cpu {
namespace {

/// While it lives, oneDNN works on the calling thread alone. A primitive is compiled for the team
/// of that moment, and where OpenMP gives a smaller one later (OMP_THREAD_LIMIT, a parallel region
/// around the call) parts of the product stay undone. So products are cut here, and each block is
/// one thread's.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

dnnl::memory::data_type data_type(DType dtype) {
  return dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

dnnl::memory::desc describe_operand(int64_t rows, int64_t columns, DType dtype,
                                    const GemmOperand& operand) {
  const dnnl::memory::dims strides = operand.transposed ? dnnl::memory::dims{1, operand.stride}
                                                        : dnnl::memory::dims{operand.stride, 1};
  return {{rows, columns}, data_type(dtype), strides};
}

dnnl::matmul::primitive_desc describe_product(const dnnl::engine& engine, const Gemm& p) {
  const auto a = describe_operand(p.rows, p.depth, p.dtype, p.a);
  const auto b = describe_operand(p.depth, p.columns, p.dtype, p.b);
  const auto c = describe_operand(p.rows, p.columns, p.c_dtype, {.stride = p.c_stride});
  const auto bias = describe_operand(1, p.columns, p.dtype, {.stride = p.columns});
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  // fp32 is fp32, whatever ONEDNN_DEFAULT_FPMATH_MODE says.
  attributes.set_fpmath_mode(dnnl::fpmath_mode::strict);
  if (p.accumulate) {
    dnnl::post_ops add_c;
    add_c.append_sum(1.0f);
    attributes.set_post_ops(add_c);
  }
  return onednn_matmul(engine, a, b, p.bias != nullptr ? &bias : nullptr, c, attributes);
}

Gemm contiguous(Gemm p) {
  p.a.stride = p.a.transposed ? p.rows : p.depth;
  p.b.stride = p.b.transposed ? p.depth : p.columns;
  p.c_stride = p.columns;
  return p;
}

int64_t scratchpad_bytes(const dnnl::matmul::primitive_desc& desc) {
  return static_cast<int64_t>(desc.scratchpad_desc().get_size());
}

/// What tells one primitive from another.
using ShapeKey = std::array<int64_t, 12>;

ShapeKey key_of(const Gemm& p) {
  return {p.rows,
          p.columns,
          p.depth,
          p.a.stride,
          p.a.transposed,
          p.b.stride,
          p.b.transposed,
          p.c_stride,
          static_cast<int64_t>(p.dtype),
          static_cast<int64_t>(p.c_dtype),
          p.bias != nullptr,
          p.accumulate};
}

/// A block of c, which one thread computes.
struct Block {
  int64_t row = 0;
  int64_t rows = 0;
  int64_t column = 0;
  int64_t columns = 0;

  bool same_size(const Block& other) const {
    return rows == other.rows && columns == other.columns;
  }
};

/// c cut into at most one block a thread, as equal as tiles of oneDNN's kernels allow. Depends on
/// the product's size and on x.threads() alone.
std::vector<Block> blocks_of(const Executor& x, const Gemm& p) {
  constexpr int64_t kRowTile = 32;
  constexpr int64_t kColumnTile = 64;
  const auto tiles = [](int64_t count, int64_t tile) { return (count + tile - 1) / tile; };
  const int64_t row_tiles = tiles(p.rows, kRowTile);
  const int64_t column_tiles = tiles(p.columns, kColumnTile);
  const TeamGrid grid = team_grid(gemm_threads(x, p), row_tiles, column_tiles);
  const int64_t rows = tiles(row_tiles, grid.rows_of) * kRowTile;
  const int64_t columns = tiles(column_tiles, grid.columns_of) * kColumnTile;
  // A rest of one, which oneDNN must not be given (has_axis_of_one), goes to the block before it.
  const auto length = [](int64_t most, int64_t left) {
    return left - most == 1 ? left : std::min(most, left);
  };
  std::vector<Block> blocks;
  Block block;
  for (; block.row < p.rows; block.row += block.rows) {
    block.rows = length(rows, p.rows - block.row);
    for (block.column = 0; block.column < p.columns; block.column += block.columns) {
      block.columns = length(columns, p.columns - block.column);
      blocks.push_back(block);
    }
  }
  return blocks;
}

const std::byte* moved(const void* data, int64_t elements, DType dtype) {
  return static_cast<const std::byte*>(data) + elements * size_of(dtype);
}

/// The product of one block of p's c.
Gemm product_of(Gemm p, const Block& block) {
  p.a.data = moved(p.a.data, block.row * (p.a.transposed ? 1 : p.a.stride), p.dtype);
  p.b.data = moved(p.b.data, block.column * (p.b.transposed ? p.b.stride : 1), p.dtype);
  p.c = static_cast<std::byte*>(p.c) + (block.row * p.c_stride + block.column) * size_of(p.c_dtype);
  if (p.bias != nullptr) p.bias = moved(p.bias, block.column, p.dtype);
  p.rows = block.rows;
  p.columns = block.columns;
  return p;
}

/// The primitives of a product's blocks, one for each of their sizes; none where oneDNN serves not
/// all of them.
class Description {
 public:
  Description(const Executor& x, const dnnl::engine& engine, const Gemm& p)
      : blocks_(blocks_of(x, p)) {
    for (const Block& block : blocks_) {
      const auto known = std::ranges::find_if(
          blocks_, [&](const Block& earlier) { return earlier.same_size(block); });
      const auto index = static_cast<size_t>(known - blocks_.begin());
      primitives_.push_back(index < primitives_.size()
                                ? primitives_[index]
                                : describe_product(engine, product_of(p, block)));
      served_ = served_ && primitives_.back();
    }
  }

  bool served() const { return served_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  const dnnl::matmul::primitive_desc& primitive(size_t block) const { return primitives_[block]; }
  /// Of each block: the largest need.
  int64_t scratch_bytes() const {
    int64_t bytes = 0;
    for (const auto& primitive : primitives_) bytes = std::max(bytes, scratchpad_bytes(primitive));
    return gradus::scratch_bytes<std::byte>(bytes);
  }

 private:
  std::vector<Block> blocks_;
  std::vector<dnnl::matmul::primitive_desc> primitives_;  ///< of each block
  bool served_ = true;
};

/// A compiled block and the memory objects that it is run with, whose addresses change.
class CompiledBlock {
 public:
  CompiledBlock(const dnnl::engine& engine, const dnnl::matmul::primitive_desc& desc,
                const Block& block, bool bias)
      : block_(block), primitive_(desc), stream_(engine) {
    add(DNNL_ARG_SRC, desc.src_desc(), engine);
    add(DNNL_ARG_WEIGHTS, desc.weights_desc(), engine);
    add(DNNL_ARG_DST, desc.dst_desc(), engine);
    add(DNNL_ARG_SCRATCHPAD, desc.scratchpad_desc(), engine);
    if (bias) add(DNNL_ARG_BIAS, desc.bias_desc(), engine);
  }

  void point_at(const Gemm& whole, std::byte* scratch) {
    const Gemm p = product_of(whole, block_);
    // oneDNN takes addresses without const; it reads a, b and bias only.
    const std::array<const void*, 5> addresses = {p.a.data, p.b.data, p.c, scratch, p.bias};
    for (size_t i = 0; i < memories_.size(); ++i) {
      memories_[i].set_data_handle(const_cast<void*>(addresses[i]));
    }
  }

  /// The C call: the C++ one builds a map of the arguments at every execution.
  dnnl_status_t run() noexcept {
    const OneThread alone;
    return dnnl_primitive_execute(primitive_.get(), stream_.get(),
                                  static_cast<int>(arguments_.size()), arguments_.data());
  }

 private:
  void add(int argument, const dnnl::memory::desc& desc, const dnnl::engine& engine) {
    memories_.emplace_back(desc, engine, nullptr);
    arguments_.push_back({argument, memories_.back().get()});
  }

  Block block_;
  dnnl::matmul primitive_;
  dnnl::stream stream_;
  std::vector<dnnl::memory> memories_;
  std::vector<dnnl_exec_arg_t> arguments_;
};

/// One compiled product.
class CompiledProduct {
 public:
  CompiledProduct() = default;  ///< of a product that oneDNN does not serve

  CompiledProduct(const dnnl::engine& engine, const Description& desc, bool bias)
      : scratch_bytes_(desc.scratch_bytes()) {
    for (size_t i = 0; i < desc.blocks().size(); ++i) {
      blocks_.emplace_back(engine, desc.primitive(i), desc.blocks()[i], bias);
    }
  }

  bool usable() const { return !blocks_.empty(); }
  int64_t scratch_bytes() const { return scratch_bytes_ * static_cast<int64_t>(blocks_.size()); }

  void run(Executor& x, const Gemm& p) {
    Scratch scratch(x);
    auto* memory = scratch.take<std::byte>(scratch_bytes());
    for (CompiledBlock& block : blocks_) {
      block.point_at(p, memory);
      memory += scratch_bytes_;
    }
    std::atomic<dnnl_status_t> status = dnnl_success;
    parallel_for(x, static_cast<int64_t>(blocks_.size()), 1, [&](int64_t i) {
      const dnnl_status_t of_block = blocks_[static_cast<size_t>(i)].run();
      if (of_block != dnnl_success) status = of_block;
    });
    dnnl::error::wrap_c_api(status, "could not execute a matrix product");
  }

 private:
  std::vector<CompiledBlock> blocks_;
  int64_t scratch_bytes_ = 0;  ///< of each block
};

/// An executor's oneDNN objects.
class OneDnn {
 public:
  CompiledProduct& compiled(const Executor& x, const Gemm& p) {
    const ShapeKey key = key_of(p);
    const auto found = products_.find(key);
    if (found != products_.end()) return found->second;
    // A model has a few dozen shapes; prompts of every length would collect without end.
    if (products_.size() >= kMostProducts) products_.clear();
    return products_[key] = compile(x, p);
  }

 private:
  static constexpr size_t kMostProducts = 512;

  CompiledProduct compile(const Executor& x, const Gemm& p) const {
    const OneThread alone;
    const Description desc(x, engine_, p);
    if (!desc.served()) return {};
    const Gemm plain = contiguous(p);
    if (key_of(plain) != key_of(p)) {
      const Description plain_desc(x, engine_, plain);
      if (!plain_desc.served() || desc.scratch_bytes() > plain_desc.scratch_bytes()) return {};
    }
    return {engine_, desc, p.bias != nullptr};
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  std::map<ShapeKey, CompiledProduct> products_;
};

bool has_instructions(dnnl::cpu_isa wanted) {
  // Each set's value has the bits of the sets that it contains.
  const auto has = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const auto bits = static_cast<unsigned>(wanted);
  return (has & bits) == bits;
}

/// An axis of one element is never stepped along, so that its stride should mean nothing. oneDNN 3
/// tells a matrix's layout by it all the same: of a vector that is a row or column of a wider
/// matrix it reads (strided a of one row) or writes (strided c of one column) the neighbours.
bool has_axis_of_one(const Gemm& p) { return p.rows == 1 || p.columns == 1 || p.depth == 1; }

}  // namespace

bool onednn_is_preferred(DType dtype) {
  switch (dtype) {
    case DType::fp32:
      return has_instructions(dnnl::cpu_isa::avx512_core);
    case DType::bf16:
      return has_instructions(dnnl::cpu_isa::avx512_core_bf16);
    default:
      return false;
  }
}

const char* onednn_instruction_set() {
  if (has_instructions(dnnl::cpu_isa::avx512_core_amx)) return "AVX512-BF16, AMX";
  if (has_instructions(dnnl::cpu_isa::avx512_core_bf16)) return "AVX512-BF16";
  if (has_instructions(dnnl::cpu_isa::avx512_core)) return "AVX-512";
  return has_instructions(dnnl::cpu_isa::avx2) ? "AVX2" : "baseline";
}

std::string onednn_version() {
  const dnnl_version_t& version = *dnnl_version();
  return fmt::format("{}.{}.{}", version.major, version.minor, version.patch);
}

bool onednn_knows(const Gemm& p) {
  return (p.dtype == DType::fp32 || p.dtype == DType::bf16) && p.rows > 0 && p.columns > 0 &&
         p.depth > 0 && !has_axis_of_one(p);
}

bool onednn_gemm(Executor& x, const Gemm& product) {
  if (!onednn_knows(product)) return false;
  try {
    CompiledProduct& compiled = x.state<OneDnn>().compiled(x, product);
    if (!compiled.usable() || compiled.scratch_bytes() > x.scratch_left()) return false;
    compiled.run(x, product);
    return true;
  } catch (const dnnl::error& error) {
    throw Error(fmt::format("oneDNN matrix product of {} rows, {} columns and depth {} in {}: {}",
                            product.rows, product.columns, product.depth, to_string(product.dtype),
                            error.what()));
  }
}

int64_t onednn_scratch(const Executor& x, const Gemm& product) {
  if (!onednn_knows(product)) return 0;
  const OneThread alone;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const Description desc(x, engine, contiguous(product));
  return desc.served() ? desc.scratch_bytes() * static_cast<int64_t>(desc.blocks().size()) : 0;
}

}  // namespace gradus::cpu
