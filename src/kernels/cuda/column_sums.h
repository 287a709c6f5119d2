#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/dtype.h"

namespace gradus::cuda {

/// Sums over rows in two stages with a fixed order: each block of a kernel writes one row of
/// partial sums to scratch memory, then the rows are added in the order of the blocks. No atomics.

/// total[set][c] += Σ over p, in a fixed order, of partials[(set · count + p) · columns + c], for
/// up to three sets of column sums; a null total is left out. All fp32.
struct AddPartials {
  float* total[3] = {nullptr, nullptr, nullptr};
  const float* partials = nullptr;
  int sets = 1;
  int count = 0;
  int64_t columns = 0;
};
void add_partials(const AddPartials& a, cudaStream_t stream);

/// total (C) fp32 += the column sums of in (N, C), fp32, bf16 or fp16, summed in fp32. Rows lie
/// `stride` elements apart: a slice of the columns of a wider matrix has its own C and the matrix's
/// stride. scratch: column_sums_scratch(rows, columns) bytes. Reads `in` once.
struct ColumnSums {
  float* total = nullptr;
  const void* in = nullptr;
  DType dtype = DType::fp32;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;
  void* scratch = nullptr;
  int strips = 0;  ///< blocks down the rows; 0: chosen from the shape
};
void column_sums(const ColumnSums& a, cudaStream_t stream);
int64_t column_sums_scratch(int64_t rows, int64_t columns);

}  // namespace gradus::cuda
