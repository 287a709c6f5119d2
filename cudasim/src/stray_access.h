#pragma once

namespace cudasim {

/// From here on an access that the processor refuses is named before it is what it was: a thread of
/// a block that touches what is not the device's ends its kernel with cudaErrorIllegalAddress, and
/// a host that touches device memory is told so before it dies. Does nothing under sanitizers,
/// which do as much.
void watch_stray_accesses();

}  // namespace cudasim
