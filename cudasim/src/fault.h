#pragma once

#include <driver_types.h>

#include <string>

#include "cudasim/site.h"

namespace cudasim {

/// "file:line", of the file its last two folders.
std::string to_string(Site site);

/// Writes down what went wrong on the device: the first fault is the device's error from then on.
/// Says it on stderr, and aborts the process where GRADUS_CUDASIM_ABORT is set, for a debugger.
void report_fault(cudaError_t error, const std::string& message);

/// The device's error, cudaSuccess while it is whole.
cudaError_t device_error();
void clear_faults();

}  // namespace cudasim
