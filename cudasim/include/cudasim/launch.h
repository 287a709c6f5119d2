#pragma once

#include <driver_types.h>

#include <functional>

namespace cudasim {

/// Puts a launch on its stream: `body` is what each thread runs.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   std::function<void()> body);

}  // namespace cudasim
