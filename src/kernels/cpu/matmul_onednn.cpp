#include "kernels/cpu/matmul_onednn.h"

#include <omp.h>

#include <array>
#include <map>
#include <utility>
#include <vector>

#include "core/error.h"
#include "kernels/cpu/matmul_onednn_api.h"

namespace gradus::cpu {
namespace {

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

/// One compiled product and the memory objects that it is run with, whose addresses change.
class CompiledProduct {
 public:
  CompiledProduct() = default;  ///< of a product that oneDNN does not serve

  CompiledProduct(const dnnl::engine& engine, const dnnl::matmul::primitive_desc& desc, bool bias)
      : primitive_(desc), scratch_bytes_(scratchpad_bytes(desc)) {
    add(DNNL_ARG_SRC, desc.src_desc(), engine);
    add(DNNL_ARG_WEIGHTS, desc.weights_desc(), engine);
    add(DNNL_ARG_DST, desc.dst_desc(), engine);
    add(DNNL_ARG_SCRATCHPAD, desc.scratchpad_desc(), engine);
    if (bias) add(DNNL_ARG_BIAS, desc.bias_desc(), engine);
  }

  bool usable() const { return static_cast<bool>(primitive_); }

  int64_t scratch_bytes() const { return gradus::scratch_bytes<std::byte>(scratch_bytes_); }

  void run(Executor& x, dnnl::stream& stream, const Gemm& p) {
    Scratch scratch(x);
    // oneDNN takes addresses without const; it reads a, b and bias only.
    const std::array<const void*, 5> addresses = {p.a.data, p.b.data, p.c,
                                                  scratch.take<std::byte>(scratch_bytes_), p.bias};
    for (size_t i = 0; i < memories_.size(); ++i) {
      memories_[i].set_data_handle(const_cast<void*>(addresses[i]));
    }
    // The C call: the C++ one builds a map of the arguments at every execution.
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(primitive_.get(), stream.get(), static_cast<int>(arguments_.size()),
                               arguments_.data()),
        "could not execute a matrix product");
    stream.wait();
  }

 private:
  void add(int argument, const dnnl::memory::desc& desc, const dnnl::engine& engine) {
    memories_.emplace_back(desc, engine, nullptr);
    arguments_.push_back({argument, memories_.back().get()});
  }

  dnnl::matmul primitive_;
  int64_t scratch_bytes_ = 0;
  std::vector<dnnl::memory> memories_;
  std::vector<dnnl_exec_arg_t> arguments_;
};

/// An executor's oneDNN objects.
class OneDnn {
 public:
  void run(Executor& x, CompiledProduct& product, const Gemm& p) { product.run(x, stream_, p); }

  CompiledProduct& compiled(const Gemm& p) {
    const ShapeKey key = key_of(p);
    const auto found = products_.find(key);
    if (found != products_.end()) return found->second;
    // A model has a few dozen shapes; prompts of every length would collect without end.
    if (products_.size() >= kMostProducts) products_.clear();
    return products_[key] = compile(p);
  }

 private:
  static constexpr size_t kMostProducts = 512;

  CompiledProduct compile(const Gemm& p) const {
    const auto desc = describe_product(engine_, p);
    if (!desc) return {};
    const Gemm plain = contiguous(p);
    if (key_of(plain) != key_of(p)) {
      const auto plain_desc = describe_product(engine_, plain);
      if (!plain_desc || scratchpad_bytes(desc) > scratchpad_bytes(plain_desc)) return {};
    }
    return {engine_, desc, p.bias != nullptr};
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
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

bool onednn_knows(const Gemm& p) {
  return (p.dtype == DType::fp32 || p.dtype == DType::bf16) && p.rows > 0 && p.columns > 0 &&
         p.depth > 0 && !has_axis_of_one(p);
}

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

bool onednn_gemm(Executor& x, const Gemm& product) {
  if (!onednn_knows(product)) return false;
  // oneDNN asks OpenMP for its team, when it compiles and when it runs.
  omp_set_num_threads(x.threads());
  try {
    auto& library = x.state<OneDnn>();
    CompiledProduct& compiled = library.compiled(product);
    if (!compiled.usable() || compiled.scratch_bytes() > x.scratch_left()) return false;
    library.run(x, compiled, product);
    return true;
  } catch (const dnnl::error& error) {
    throw Error(fmt::format("oneDNN matrix product of {} rows, {} columns and depth {} in {}: {}",
                            product.rows, product.columns, product.depth, to_string(product.dtype),
                            error.what()));
  }
}

int64_t onednn_scratch(const Executor& x, const Gemm& product) {
  if (!onednn_knows(product)) return 0;
  omp_set_num_threads(x.threads());
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const auto desc = describe_product(engine, contiguous(product));
  return desc ? scratch_bytes<std::byte>(scratchpad_bytes(desc)) : 0;
}

}  // namespace gradus::cpu
