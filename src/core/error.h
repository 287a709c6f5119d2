#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace gradus {

/// Base of every error that Gradus throws. Thrown where the fault is found, caught where the
/// process began (run_job, in parallel/bootstrap.h) and printed once, by one rank. The message says
/// what was found, where, what was expected and what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;

  /// The kind's name as printed before the message, for example "config error".
  virtual const char* kind() const noexcept { return "error"; }
};

#define GRADUS_DEFINE_ERROR(Name, text)                                                          \
  class Name : public Error {                                                                    \
   public:                                                                                       \
    explicit Name(const std::string& message) : Error(message) {}                                \
    template <typename First, typename... Rest>                                                  \
    Name(fmt::format_string<First, Rest...> format, First&& first, Rest&&... rest)               \
        : Error(fmt::format(format, std::forward<First>(first), std::forward<Rest>(rest)...)) {} \
    const char* kind() const noexcept override { return text; }                                  \
  }

GRADUS_DEFINE_ERROR(ConfigError,
                    "config error");  ///< a setting is unknown, ill-typed or contradictory
GRADUS_DEFINE_ERROR(ShapeError, "shape error");  ///< tensors do not fit an operation
GRADUS_DEFINE_ERROR(DataError, "data error");    ///< a corpus, tokenizer or shard is unusable
GRADUS_DEFINE_ERROR(CheckpointError,
                    "checkpoint error");  ///< a checkpoint is torn, altered or does not fit
GRADUS_DEFINE_ERROR(MemoryError, "memory error");    ///< the run does not fit in memory
GRADUS_DEFINE_ERROR(NumericError, "numeric error");  ///< losses or norms stayed non-finite
GRADUS_DEFINE_ERROR(IoError, "i/o error");           ///< a file cannot be read or written
GRADUS_DEFINE_ERROR(CudaError, "CUDA error");        ///< a CUDA, cuBLASLt or cuDNN call failed
GRADUS_DEFINE_ERROR(NcclError, "NCCL error");        ///< an NCCL call failed
GRADUS_DEFINE_ERROR(MpiError, "MPI error");          ///< an MPI call failed

#undef GRADUS_DEFINE_ERROR

}  // namespace gradus
