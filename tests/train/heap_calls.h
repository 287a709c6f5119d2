#pragma once

#include <cstdint>

namespace gradus::test {

/// Requests for heap memory by all threads since the program began: malloc and its kin, and with
/// them operator new and what libraries ask for. A test that wants it lists heap_calls.cpp among
/// its sources, which stands in front of the C library's functions in that program.
int64_t heap_calls();

/// While it lives, the first request for heap memory by any thread ends the process with SIGTRAP,
/// for a debugger to show who asked. Of use when a count is not what it should be.
class TrapHeapCalls {
 public:
  TrapHeapCalls();
  ~TrapHeapCalls();
  TrapHeapCalls(const TrapHeapCalls&) = delete;
  TrapHeapCalls& operator=(const TrapHeapCalls&) = delete;
};

}  // namespace gradus::test
