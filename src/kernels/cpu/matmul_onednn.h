#pragma once

#include <string>

#include "core/executor.h"
#include "kernels/cpu/matmul_gemm.h"

namespace gradus::cpu {

/// Whether oneDNN multiplies matrices of this dtype with better instructions than gemm() has: with
/// AVX-512 for fp32, with AVX512-BF16 or AMX for bf16. Asks oneDNN, which honours
/// ONEDNN_MAX_CPU_ISA.
bool onednn_is_preferred(DType dtype);
/// The instruction set that oneDNN uses here, for example "AVX512-BF16, AMX".
const char* onednn_instruction_set();

/// Of the library that is loaded, for example "2.6.3".
std::string onednn_version();

/// Whether onednn_gemm() may serve the product at all: fp32 or bf16, and no axis of one.
bool onednn_knows(const Gemm& product);

/// gemm()'s contract by oneDNN primitives. c is cut into a block for each of gemm_threads(), and
/// each block's primitive runs on one thread: the result depends on that number, and not on how
/// many threads OpenMP gives. The primitives of each shape are created at its first use and kept by
/// the executor; later products allocate nothing of ours. False, and nothing done, where oneDNN has
/// no implementation for the dtype on this processor, where it does not know the product, where
/// strided rows make it ask for more scratch than onednn_scratch() says, or where it asks for more
/// than x has left.
bool onednn_gemm(Executor& x, const Gemm& product);
/// Scratch bytes of onednn_gemm() for the product as if its matrices were contiguous; 0 where
/// onednn_gemm() never serves it.
int64_t onednn_scratch(const Executor& x, const Gemm& product);

}  // namespace gradus::cpu
