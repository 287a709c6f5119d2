#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <vector>

#include "core/dtype.h"
#include "kernels/cuda/cublaslt.h"

namespace gradus::cuda {

/// The products of linear layers on a device, by cuBLASLt; the contract is kernels/matmul.h's, but
/// for the bias's gradient, which is a sum of its own: an epilogue of the library stores it in bf16
/// and cannot add to what is there.
///
/// Matrices are row-major with row strides in elements (0: contiguous). fp32, bf16 and fp16
/// operands, sums in fp32; some of the library's algorithms round a sum to the result's type before
/// bias, GELU or its derivative are applied to it. Asynchronous on the stream. No rows are no work.
/// Throws ShapeError, CudaError.

/// out =. With gelu, out = gelu(in · Wᵀ + bias), the sum unrounded or rounded as above.
struct MatmulForward {
  void* out = nullptr;           ///< (rows, out_features)
  const void* in = nullptr;      ///< (rows, in_features)
  const void* weight = nullptr;  ///< (out_features, in_features), contiguous
  const void* bias = nullptr;    ///< (out_features) of dtype, or none; then out is of dtype
  bool gelu = false;             ///< out is of dtype
  void* pre_gelu = nullptr;  ///< with gelu: takes what GELU was applied to; as out, stride % 8 == 0
  int64_t rows = 0, in_features = 0, out_features = 0;
  int64_t out_stride = 0, in_stride = 0, pre_gelu_stride = 0;
  DType dtype = DType::bf16;
  DType out_dtype = DType::bf16;  ///< dtype or fp32
};

/// din =. With pre_gelu, din = (dout · W) gelu'(pre_gelu): what the layer before GELU gave.
struct MatmulBackwardInput {
  void* din = nullptr;             ///< (rows, in_features)
  const void* dout = nullptr;      ///< (rows, out_features)
  const void* weight = nullptr;    ///< (out_features, in_features), contiguous
  const void* pre_gelu = nullptr;  ///< (rows, in_features) of dtype, stride % 8 == 0, or none
  int64_t rows = 0, in_features = 0, out_features = 0;
  int64_t din_stride = 0, dout_stride = 0, pre_gelu_stride = 0;
  DType dtype = DType::bf16;
  DType din_dtype = DType::bf16;  ///< dtype or fp32
};

/// dweight += doutᵀ · in, or = for the first micro-batch of a step.
struct MatmulBackwardWeight {
  void* dweight = nullptr;     ///< (out_features, in_features), contiguous
  const void* dout = nullptr;  ///< (rows, out_features)
  const void* in = nullptr;    ///< (rows, in_features)
  bool accumulate = true;
  int64_t rows = 0, in_features = 0, out_features = 0;
  int64_t dout_stride = 0, in_stride = 0;
  DType dtype = DType::bf16;
  DType dweight_dtype = DType::fp32;  ///< fp32 or dtype
};

/// What cuBLASLt is asked for: the transpose of each product, since a row-major matrix is, read
/// column-major, its transpose. The arguments' contract is checked here.
struct CublasLtCall {
  CublasLtProduct product;
  CublasLtOperands operands;
};
CublasLtCall column_major(const MatmulForward& arguments, bool tf32 = false);
CublasLtCall column_major(const MatmulBackwardInput& arguments, bool tf32 = false);
CublasLtCall column_major(const MatmulBackwardWeight& arguments, bool tf32 = false);

/// Workspace at which Hopper's algorithms are all to be had.
inline constexpr size_t kMatmulWorkspaceBytes = size_t{32} << 20;

/// Makes products, keeping a plan for each shape. One for each stream on which products run: they
/// share the workspace. Not for several threads at once.
class Matmul {
 public:
  /// The workspace is the caller's, aligned to 256 bytes, and lives as long as this. tf32: fp32
  /// operands are rounded to TF32's 10 bits of fraction.
  explicit Matmul(Workspace workspace, bool tf32 = false) : workspace_(workspace), tf32_(tf32) {}

  void forward(const MatmulForward& arguments, cudaStream_t stream);
  void backward_input(const MatmulBackwardInput& arguments, cudaStream_t stream);
  void backward_weight(const MatmulBackwardWeight& arguments, cudaStream_t stream);

  /// Without these a shape's algorithm is the heuristics' first. They run the first `candidates` on
  /// the arguments given, keep the fastest for the shape, and give the microseconds of each, in the
  /// heuristics' order. They wait for the device, and leave any values in what the product writes.
  std::vector<double> tune(const MatmulForward& arguments, cudaStream_t stream, int candidates);
  std::vector<double> tune(const MatmulBackwardInput& arguments, cudaStream_t stream,
                           int candidates);
  std::vector<double> tune(const MatmulBackwardWeight& arguments, cudaStream_t stream,
                           int candidates);

 private:
  struct Plan {
    CublasLtPlan plan;
    cublasLtMatmulAlgo_t algorithm;
  };

  void run(const CublasLtCall& call, cudaStream_t stream);
  std::vector<double> tune(const CublasLtCall& call, cudaStream_t stream, int candidates);

  CublasLt library_;
  Workspace workspace_;
  bool tf32_;
  std::map<CublasLtProduct, Plan> plans_;
};

}  // namespace gradus::cuda
