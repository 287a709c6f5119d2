// The calls of the CUDA runtime.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cudasim/launch.h"
#include "device.h"
#include "fault.h"

using cudasim::Device;
using cudasim::Space;

namespace {

constexpr size_t kSharedOptIn = size_t{227} << 10;
constexpr size_t kGlobalMemory = size_t{80} << 30;

/// The calling thread's last error, until it is asked for.
constinit thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) {
    last_error = error;
  }
  return error;
}

/// Of a call that has done its part: the device's own error comes first.
cudaError_t done() { return result(cudasim::device_error()); }

}  // namespace

#define CUDASIM_ENTER()                            \
  const auto cudasim_lock = Device::lock();        \
  [[maybe_unused]] Device& device = Device::get(); \
  if (cudasim::device_error() != cudaSuccess) {    \
    return done();                                 \
  }

#define CUDASIM_REQUIRE(condition, error) \
  do {                                    \
    if (!(condition)) {                   \
      return result(error);               \
    }                                     \
  } while (false)

// With C's linkage a definition that is not as the header declares it is an error, also where the
// header is NVIDIA's (tests/CMakeLists.txt).
extern "C" {

// ---- errors ----

cudaError_t cudaPeekAtLastError() {
  return cudasim::device_error() != cudaSuccess ? cudasim::device_error() : last_error;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return error;
}

#define CUDASIM_ERRORS(X)                                                                          \
  X(cudaSuccess, "no error")                                                                       \
  X(cudaErrorInvalidValue, "invalid argument")                                                     \
  X(cudaErrorMemoryAllocation, "out of memory")                                                    \
  X(cudaErrorInitializationError, "initialization error")                                          \
  X(cudaErrorInvalidConfiguration, "invalid configuration argument")                               \
  X(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy")                          \
  X(cudaErrorInvalidDeviceFunction, "invalid device function")                                     \
  X(cudaErrorNoDevice, "no CUDA-capable device is detected")                                       \
  X(cudaErrorInvalidDevice, "invalid device ordinal")                                              \
  X(cudaErrorInvalidResourceHandle, "invalid resource handle")                                     \
  X(cudaErrorNotReady, "device not ready")                                                         \
  X(cudaErrorIllegalAddress, "an illegal memory access was encountered")                           \
  X(cudaErrorLaunchOutOfResources, "too many resources requested for launch")                      \
  X(cudaErrorHostMemoryAlreadyRegistered,                                                          \
    "part or all of the requested memory range is already mapped")                                 \
  X(cudaErrorHostMemoryNotRegistered, "pointer does not correspond to a registered memory region") \
  X(cudaErrorIllegalInstruction, "an illegal instruction was encountered")                         \
  X(cudaErrorMisalignedAddress, "misaligned address")                                              \
  X(cudaErrorLaunchFailure, "unspecified launch failure")                                          \
  X(cudaErrorNotSupported, "operation not supported")                                              \
  X(cudaErrorUnknown, "unknown error")

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define CUDASIM_NAME(code, text) \
  case code:                     \
    return #code;
    CUDASIM_ERRORS(CUDASIM_NAME)
#undef CUDASIM_NAME
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
#define CUDASIM_TEXT(code, text) \
  case code:                     \
    return text;
    CUDASIM_ERRORS(CUDASIM_TEXT)
#undef CUDASIM_TEXT
  }
  return "unrecognized error code";
}

// ---- the device ----

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : result(cudaErrorInvalidDevice);
}
cudaError_t cudaDeviceReset() {
  const auto lock = Device::lock();
  Device::get().reset();
  last_error = cudaSuccess;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  CUDASIM_ENTER();
  device.finish_all();
  return done();
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int number) {
  CUDASIM_REQUIRE(number == 0, cudaErrorInvalidDevice);
  *properties = {.name = "cudasim (as an H100)",
                 .totalGlobalMem = kGlobalMemory,
                 .sharedMemPerBlock = size_t{48} << 10,
                 .regsPerBlock = 65536,
                 .warpSize = 32,
                 .maxThreadsPerBlock = 1024,
                 .maxThreadsDim = {1024, 1024, 64},
                 .maxGridSize = {2147483647, 65535, 65535},
                 .major = 9,
                 .minor = 0,
                 .multiProcessorCount = 132,
                 .l2CacheSize = 50 << 20,
                 .maxThreadsPerMultiProcessor = 2048,
                 .sharedMemPerMultiprocessor = size_t{228} << 10,
                 .regsPerMultiprocessor = 65536,
                 .sharedMemPerBlockOptin = kSharedOptIn,
                 .maxBlocksPerMultiProcessor = 32,
                 .reservedSharedMemPerBlock = 1024};
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, number);
  if (error != cudaSuccess) {
    return error;
  }
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = properties.maxThreadsPerBlock;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(properties.sharedMemPerBlock);
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = properties.warpSize;
      return cudaSuccess;
    case cudaDevAttrMaxRegistersPerBlock:
      *value = properties.regsPerBlock;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = properties.l2CacheSize;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = properties.maxThreadsPerMultiProcessor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = properties.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(properties.sharedMemPerMultiprocessor);
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin);
      return cudaSuccess;
  }
  return result(cudaErrorInvalidValue);
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

// ---- memory ----

namespace {

cudaError_t allocate(void** pointer, size_t bytes, Space space) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(pointer != nullptr, cudaErrorInvalidValue);
  *pointer = nullptr;
  if (bytes == 0) {
    return cudaSuccess;
  }
  if (space == Space::device) {
    CUDASIM_REQUIRE(bytes <= kGlobalMemory - device.memory().device_bytes(),
                    cudaErrorMemoryAllocation);
  }
  *pointer = device.memory().allocate(bytes, space);
  CUDASIM_REQUIRE(*pointer != nullptr, cudaErrorMemoryAllocation);
  return cudaSuccess;
}

cudaError_t release(void* pointer, Space space) {
  // A device that has failed still takes its memory back, so that a test can go on.
  const auto lock = Device::lock();
  Device& device = Device::get();
  if (pointer == nullptr) {
    return done();
  }
  device.finish_all();
  device.check_fences("somebody");
  CUDASIM_REQUIRE(device.memory().release(pointer, space), cudaErrorInvalidValue);
  return done();
}

}  // namespace

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return allocate(pointer, bytes, Space::device);
}
cudaError_t cudaFree(void* pointer) { return release(pointer, Space::device); }
cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  return allocate(pointer, bytes, Space::pinned);
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned /*flags*/) {
  return allocate(pointer, bytes, Space::pinned);
}
cudaError_t cudaFreeHost(void* pointer) { return release(pointer, Space::pinned); }

cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(device.knows(stream), cudaErrorInvalidResourceHandle);
  return allocate(pointer, bytes, Space::device);
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(device.knows(stream), cudaErrorInvalidResourceHandle);
  CUDASIM_REQUIRE(device.memory().space_of(pointer) == Space::device, cudaErrorInvalidValue);
  device.submit(stream, [&device, pointer] { device.memory().release(pointer, Space::device); });
  return done();
}

cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned /*flags*/) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(pointer != nullptr && bytes > 0, cudaErrorInvalidValue);
  CUDASIM_REQUIRE(device.memory().add_registered(pointer, bytes),
                  cudaErrorHostMemoryAlreadyRegistered);
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* pointer) {
  CUDASIM_ENTER();
  device.finish_all();
  CUDASIM_REQUIRE(device.memory().release(pointer, Space::registered),
                  cudaErrorHostMemoryNotRegistered);
  return done();
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  CUDASIM_ENTER();
  *total = kGlobalMemory;
  *free = kGlobalMemory - device.memory().device_bytes();
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  CUDASIM_ENTER();
  void* address = const_cast<void*>(pointer);
  const auto space = device.memory().space_of(pointer);
  if (!space) {
    *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, address};
  } else if (*space == Space::device) {
    *attributes = {cudaMemoryTypeDevice, 0, address, nullptr};
  } else {
    *attributes = {cudaMemoryTypeHost, 0, address, address};
  }
  return cudaSuccess;
}

// ---- copies ----

namespace {

struct Rows {
  void* to;
  size_t to_pitch;
  const void* from;
  size_t from_pitch;
  size_t width;
  size_t height;
};

void copy_rows(const Rows& rows) {
  for (size_t i = 0; i < rows.height; ++i) {
    std::memmove(static_cast<std::byte*>(rows.to) + i * rows.to_pitch,
                 static_cast<const std::byte*>(rows.from) + i * rows.from_pitch, rows.width);
  }
}

size_t extent(size_t pitch, size_t width, size_t height) { return pitch * (height - 1) + width; }

/// A copy on a stream. Memory of the host that is not pinned goes through the driver's own buffers:
/// what is read of it is read now, and what is written to it is there when the call returns.
cudaError_t copy(const Rows& rows, cudaMemcpyKind kind, cudaStream_t stream, bool wait) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(device.knows(stream), cudaErrorInvalidResourceHandle);
  if (rows.width == 0 || rows.height == 0) {
    return done();
  }
  CUDASIM_REQUIRE(rows.to != nullptr && rows.from != nullptr && rows.width <= rows.to_pitch &&
                      rows.width <= rows.from_pitch,
                  cudaErrorInvalidValue);
  const auto& memory = device.memory();
  const auto to = memory.space_of(rows.to);
  const auto from = memory.space_of(rows.from);
  const bool to_device = to == Space::device;
  const bool from_device = from == Space::device;
  if (kind != cudaMemcpyDefault) {
    const bool want_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool want_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    CUDASIM_REQUIRE(want_to == to_device && want_from == from_device, cudaErrorInvalidValue);
  }
  const size_t to_bytes = extent(rows.to_pitch, rows.width, rows.height);
  const size_t from_bytes = extent(rows.from_pitch, rows.width, rows.height);
  CUDASIM_REQUIRE(!to_device || memory.is_device_range(rows.to, to_bytes), cudaErrorInvalidValue);
  CUDASIM_REQUIRE(!from_device || memory.is_device_range(rows.from, from_bytes),
                  cudaErrorInvalidValue);
  std::shared_ptr<cudasim::Operation> operation;
  if (!wait && !from) {
    std::vector<std::byte> staged(from_bytes);
    std::memcpy(staged.data(), rows.from, from_bytes);
    operation = device.submit(stream, [rows, staged = std::move(staged)]() mutable {
      Rows late = rows;
      late.from = staged.data();
      copy_rows(late);
    });
  } else {
    operation = device.submit(stream, [rows] { copy_rows(rows); });
  }
  if (wait || !to) {
    device.finish(operation);
  }
  return done();
}

cudaError_t set(void* pointer, int value, size_t bytes, cudaStream_t stream) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(device.knows(stream), cudaErrorInvalidResourceHandle);
  if (bytes == 0) {
    return done();
  }
  CUDASIM_REQUIRE(device.memory().is_device_range(pointer, bytes), cudaErrorInvalidValue);
  device.submit(stream, [=] { std::memset(pointer, value, bytes); });
  return done();
}

}  // namespace

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return copy({to, bytes, from, bytes, bytes, 1}, kind, nullptr, true);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return copy({to, bytes, from, bytes, bytes, 1}, kind, stream, false);
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind kind) {
  return copy({to, to_pitch, from, from_pitch, width, height}, kind, nullptr, true);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  return copy({to, to_pitch, from, from_pitch, width, height}, kind, stream, false);
}
cudaError_t cudaMemset(void* pointer, int value, size_t bytes) {
  return set(pointer, value, bytes, nullptr);
}
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
  return set(pointer, value, bytes, stream);
}

// ---- streams ----

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(flags <= cudaStreamNonBlocking, cudaErrorInvalidValue);
  *stream = device.create_stream(flags == cudaStreamDefault);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int /*priority*/) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const auto lock = Device::lock();
  Device& device = Device::get();
  CUDASIM_REQUIRE(stream != nullptr && stream != cudaStreamLegacy && device.knows(stream),
                  cudaErrorInvalidResourceHandle);
  device.destroy(stream);
  return done();
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(device.knows(stream), cudaErrorInvalidResourceHandle);
  device.finish(stream);
  return done();
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(device.knows(stream), cudaErrorInvalidResourceHandle);
  const auto last = device.last_of(stream);
  if (last == nullptr || last->done) {
    return done();
  }
  device.step(true);
  return done() == cudaSuccess && !last->done ? cudaErrorNotReady : done();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(device.knows(stream) && device.knows(event), cudaErrorInvalidResourceHandle);
  device.submit(stream, nullptr, event->recorded);
  return done();
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(device.knows(stream), cudaErrorInvalidResourceHandle);
  CUDASIM_REQUIRE(function != nullptr, cudaErrorInvalidValue);
  device.submit(stream, [=] { function(data); });
  return done();
}

// ---- events ----

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  CUDASIM_ENTER();
  *event = device.create_event((flags & cudaEventDisableTiming) == 0);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const auto lock = Device::lock();
  Device& device = Device::get();
  CUDASIM_REQUIRE(device.knows(event), cudaErrorInvalidResourceHandle);
  device.destroy(event);
  return done();
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(device.knows(stream) && device.knows(event), cudaErrorInvalidResourceHandle);
  event->recorded = device.submit(stream, nullptr);
  return done();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(device.knows(event), cudaErrorInvalidResourceHandle);
  device.finish(event->recorded);
  return done();
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(device.knows(event), cudaErrorInvalidResourceHandle);
  if (event->recorded == nullptr || event->recorded->done) {
    return done();
  }
  device.step(true);
  return done() == cudaSuccess && !event->recorded->done ? cudaErrorNotReady : done();
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(device.knows(from) && device.knows(to) && from->timing && to->timing &&
                      from->recorded != nullptr && to->recorded != nullptr,
                  cudaErrorInvalidResourceHandle);
  if (!from->recorded->done || !to->recorded->done) {
    return cudaErrorNotReady;
  }
  *milliseconds =
      std::chrono::duration<float, std::milli>(to->recorded->when - from->recorded->when).count();
  return done();
}

// ---- launches ----

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(function != nullptr, cudaErrorInvalidDeviceFunction);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    CUDASIM_REQUIRE(value >= 0 && static_cast<size_t>(value) <= kSharedOptIn,
                    cudaErrorInvalidValue);
    device.set_shared_limit(function, static_cast<size_t>(value));
    return done();
  }
  CUDASIM_REQUIRE(value >= -1 && value <= 100, cudaErrorInvalidValue);
  return done();
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(function != nullptr, cudaErrorInvalidDeviceFunction);
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->binaryVersion = 90;
  attributes->ptxVersion = 90;
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(device.shared_limit(function));
  return done();
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                          int block_size, size_t shared_bytes) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(function != nullptr, cudaErrorInvalidDeviceFunction);
  CUDASIM_REQUIRE(block_size > 0 && block_size <= cudasim::kMaxThreads, cudaErrorInvalidValue);
  // By threads and shared memory: what registers allow is not known here.
  const int warps = (block_size + 31) / 32;
  const int by_shared = static_cast<int>((size_t{228} << 10) / (shared_bytes + 1024));
  *blocks = std::min({64 / warps, by_shared, 32});
  return done();
}

}  // extern "C"

cudaError_t cudasim::launch(const cudaLaunchConfig_t& config, const void* kernel,
                            std::function<void()> body) {
  CUDASIM_ENTER();
  CUDASIM_REQUIRE(device.knows(config.stream), cudaErrorInvalidResourceHandle);
  CUDASIM_REQUIRE(config.numAttrs == 0, cudaErrorNotSupported);
  const dim3& grid = config.gridDim;
  const dim3& block = config.blockDim;
  CUDASIM_REQUIRE(grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 2147483647u &&
                      grid.y <= 65535 && grid.z <= 65535,
                  cudaErrorInvalidConfiguration);
  CUDASIM_REQUIRE(block.x > 0 && block.y > 0 && block.z > 0 && block.x <= 1024 && block.y <= 1024 &&
                      block.z <= 64 &&
                      block.x * block.y * block.z <= static_cast<unsigned>(kMaxThreads),
                  cudaErrorInvalidConfiguration);
  CUDASIM_REQUIRE(config.dynamicSmemBytes <= device.shared_limit(kernel), cudaErrorInvalidValue);
  device.submit(config.stream,
                [&device, launched = Grid{.blocks = grid,
                                          .threads = block,
                                          .shared_bytes = config.dynamicSmemBytes,
                                          .kernel = kernel,
                                          .body = std::move(body)}] { device.run(launched); });
  return done();
}
