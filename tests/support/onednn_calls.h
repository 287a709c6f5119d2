#pragma once

namespace gradus::test {

/// Whether this thread is inside of oneDNN's execution of a primitive, which builds the table of
/// its arguments on the heap each time and offers no way around that. For tests that count
/// allocations: true only in programs that have onednn_calls.cpp among their sources.
inline thread_local bool inside_onednn = false;

}  // namespace gradus::test
