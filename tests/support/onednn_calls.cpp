// Stands in front of oneDNN's dnnl_primitive_execute in the programs that list this file.

#include "support/onednn_calls.h"

#include <dlfcn.h>

// As <oneapi/dnnl/dnnl.h> has it, with its handles as what they are: pointers.
extern "C" int dnnl_primitive_execute(const void* primitive, void* stream, int count,
                                      const void* arguments) {
  using Execute = int(const void*, void*, int, const void*);
  static Execute* const execute =
      reinterpret_cast<Execute*>(dlsym(RTLD_NEXT, "dnnl_primitive_execute"));
  gradus::test::inside_onednn = true;
  const int status = execute(primitive, stream, count, arguments);
  gradus::test::inside_onednn = false;
  return status;
}
