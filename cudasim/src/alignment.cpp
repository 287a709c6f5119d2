// Device code is compiled with -fsanitize=alignment, whose findings come here: a vector that is
// loaded or stored where it may not be, which the device refuses and the host's processor may let
// pass.

#include <cstddef>
#include <cstdint>

#include "cudasim/memory.h"

#if !defined(CUDASIM_HAS_UBSAN)

namespace {

/// What GCC and Clang pass to -fsanitize's handlers.
struct TypeMismatch {
  const char* file;
  uint32_t line;
  uint32_t column;
  const void* type;
  unsigned char log_alignment;
  unsigned char kind;
};

}  // namespace

extern "C" void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t pointer) {
  cudasim::misaligned(reinterpret_cast<const void*>(pointer), size_t{1} << data->log_alignment,
                      {data->file, static_cast<int>(data->line)});
}

#endif
