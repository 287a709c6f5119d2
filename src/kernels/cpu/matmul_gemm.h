#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/executor.h"

namespace gradus::cpu {

/// A matrix whose element (i, j) lies at data + i · stride + j or, transposed, at data + i +
/// j · stride (in elements).
struct GemmOperand {
  const void* data = nullptr;
  int64_t stride = 0;
  bool transposed = false;
};

/// c = a · b (+ c) (+ bias on every row). a (rows, depth) and b (depth, columns) hold `dtype`, c
/// (rows, columns) holds `dtype` or its accumulator type, bias (columns) holds `dtype`. Products
/// are summed in the accumulator type, which c must have when `accumulate` is set.
struct Gemm {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t depth = 0;
  DType dtype = DType::fp32;
  DType c_dtype = DType::fp32;
  GemmOperand a;
  GemmOperand b;
  void* c = nullptr;
  int64_t c_stride = 0;
  const void* bias = nullptr;
  bool accumulate = false;
};

/// Gradus's own matrix product: register-blocked and packed (Goto and van de Geijn, "Anatomy of
/// high-performance matrix multiplication", TOMS 2008; Van Zee and van de Geijn, "BLIS", TOMS
/// 2015). One source for fp64, fp32 and bf16, whose operands are widened to fp32 while they are
/// packed. Each element is summed by one thread over ascending depth: the result depends neither
/// on the number of threads nor on alignment.
void gemm(Executor& x, const Gemm& product);
/// Scratch bytes that gemm() needs.
int64_t gemm_scratch(const Gemm& product);
/// Threads that a product is cut for: one where it is too small for more, else all. Never another
/// number: libgomp ends and makes threads anew where the size of a team changes.
int gemm_threads(const Executor& x, const Gemm& product);
/// Whether gemm() packs the operands of this product: it does not for a few rows.
bool gemm_packs(const Gemm& product);

/// sums (columns) += the column sums of in (rows, columns), added over ascending rows. sums holds
/// the accumulator type of dtype.
void add_column_sums(Executor& x, void* sums, const void* in, int64_t in_stride, int64_t rows,
                     int64_t columns, DType dtype);

}  // namespace gradus::cpu
