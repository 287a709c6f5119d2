// What the headers of cudasim say, held against NVIDIA's where a toolkit is installed: this file is
// compiled with either (CMakeLists.txt).
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_types.h>

#include <type_traits>

#define SAME(name, value) static_assert(static_cast<long long>(name) == (value), #name)

SAME(cudaSuccess, 0);
SAME(cudaErrorInvalidValue, 1);
SAME(cudaErrorMemoryAllocation, 2);
SAME(cudaErrorInitializationError, 3);
SAME(cudaErrorInvalidConfiguration, 9);
SAME(cudaErrorInvalidMemcpyDirection, 21);
SAME(cudaErrorInvalidDeviceFunction, 98);
SAME(cudaErrorNoDevice, 100);
SAME(cudaErrorInvalidDevice, 101);
SAME(cudaErrorInvalidResourceHandle, 400);
SAME(cudaErrorNotReady, 600);
SAME(cudaErrorIllegalAddress, 700);
SAME(cudaErrorLaunchOutOfResources, 701);
SAME(cudaErrorHostMemoryAlreadyRegistered, 712);
SAME(cudaErrorHostMemoryNotRegistered, 713);
SAME(cudaErrorIllegalInstruction, 715);
SAME(cudaErrorMisalignedAddress, 716);
SAME(cudaErrorLaunchFailure, 719);
SAME(cudaErrorNotSupported, 801);
SAME(cudaErrorUnknown, 999);
SAME(cudaMemcpyHostToHost, 0);
SAME(cudaMemcpyHostToDevice, 1);
SAME(cudaMemcpyDeviceToHost, 2);
SAME(cudaMemcpyDeviceToDevice, 3);
SAME(cudaMemcpyDefault, 4);
SAME(cudaStreamDefault, 0);
SAME(cudaStreamNonBlocking, 1);
SAME(cudaEventDefault, 0);
SAME(cudaEventBlockingSync, 1);
SAME(cudaEventDisableTiming, 2);
SAME(cudaHostAllocDefault, 0);
SAME(cudaHostAllocPortable, 1);
SAME(cudaHostAllocMapped, 2);
SAME(cudaHostAllocWriteCombined, 4);
SAME(cudaHostRegisterDefault, 0);
SAME(cudaHostRegisterPortable, 1);
SAME(cudaMemoryTypeUnregistered, 0);
SAME(cudaMemoryTypeHost, 1);
SAME(cudaMemoryTypeDevice, 2);
SAME(cudaMemoryTypeManaged, 3);
SAME(cudaFuncAttributeMaxDynamicSharedMemorySize, 8);
SAME(cudaFuncAttributePreferredSharedMemoryCarveout, 9);
SAME(cudaDevAttrMaxThreadsPerBlock, 1);
SAME(cudaDevAttrMaxSharedMemoryPerBlock, 8);
SAME(cudaDevAttrWarpSize, 10);
SAME(cudaDevAttrMaxRegistersPerBlock, 12);
SAME(cudaDevAttrMultiProcessorCount, 16);
SAME(cudaDevAttrL2CacheSize, 38);
SAME(cudaDevAttrMaxThreadsPerMultiProcessor, 39);
SAME(cudaDevAttrComputeCapabilityMajor, 75);
SAME(cudaDevAttrComputeCapabilityMinor, 76);
SAME(cudaDevAttrMaxSharedMemoryPerMultiprocessor, 81);
SAME(cudaDevAttrMaxSharedMemoryPerBlockOptin, 97);

SAME(CUDA_R_32F, 0);
SAME(CUDA_R_64F, 1);
SAME(CUDA_R_16F, 2);
SAME(CUDA_R_16BF, 14);
SAME(CUBLAS_STATUS_SUCCESS, 0);
SAME(CUBLAS_STATUS_NOT_INITIALIZED, 1);
SAME(CUBLAS_STATUS_ALLOC_FAILED, 3);
SAME(CUBLAS_STATUS_INVALID_VALUE, 7);
SAME(CUBLAS_STATUS_ARCH_MISMATCH, 8);
SAME(CUBLAS_STATUS_EXECUTION_FAILED, 13);
SAME(CUBLAS_STATUS_INTERNAL_ERROR, 14);
SAME(CUBLAS_STATUS_NOT_SUPPORTED, 15);
SAME(CUBLAS_OP_N, 0);
SAME(CUBLAS_OP_T, 1);
SAME(CUBLAS_OP_C, 2);
SAME(CUBLAS_COMPUTE_32F, 68);
SAME(CUBLAS_COMPUTE_32F_PEDANTIC, 69);
SAME(CUBLAS_COMPUTE_32F_FAST_16F, 74);
SAME(CUBLAS_COMPUTE_32F_FAST_16BF, 75);
SAME(CUBLAS_COMPUTE_32F_FAST_TF32, 77);
SAME(CUBLASLT_EPILOGUE_DEFAULT, 1);
SAME(CUBLASLT_EPILOGUE_RELU, 2);
SAME(CUBLASLT_EPILOGUE_BIAS, 4);
SAME(CUBLASLT_EPILOGUE_GELU, 32);
SAME(CUBLASLT_EPILOGUE_GELU_AUX, 160);
SAME(CUBLASLT_EPILOGUE_GELU_BIAS, 36);
SAME(CUBLASLT_EPILOGUE_GELU_AUX_BIAS, 164);
SAME(CUBLASLT_EPILOGUE_DGELU, 192);
SAME(CUBLASLT_EPILOGUE_DGELU_BGRAD, 208);
SAME(CUBLASLT_EPILOGUE_BGRADA, 256);
SAME(CUBLASLT_EPILOGUE_BGRADB, 512);
SAME(CUBLASLT_MATMUL_DESC_TRANSA, 3);
SAME(CUBLASLT_MATMUL_DESC_TRANSB, 4);
SAME(CUBLASLT_MATMUL_DESC_EPILOGUE, 7);
SAME(CUBLASLT_MATMUL_DESC_BIAS_POINTER, 8);
SAME(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, 11);
SAME(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, 12);
SAME(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, 1);
SAME(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, 5);
SAME(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, 6);
SAME(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, 7);
SAME(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, 8);
SAME(sizeof(cublasLtMatmulAlgo_t), 64);
SAME(sizeof(cublasLtMatmulHeuristicResult_t), 96);

#define LAYOUT(type, bytes, alignment) \
  static_assert(sizeof(type) == (bytes) && alignof(type) == (alignment), #type)

LAYOUT(char2, 2, 2);
LAYOUT(char4, 4, 4);
LAYOUT(uchar2, 2, 2);
LAYOUT(uchar4, 4, 4);
LAYOUT(short2, 4, 4);
LAYOUT(ushort4, 8, 8);
LAYOUT(int2, 8, 8);
LAYOUT(int3, 12, 4);
LAYOUT(int4, 16, 16);
LAYOUT(uint2, 8, 8);
LAYOUT(uint4, 16, 16);
LAYOUT(float1, 4, 4);
LAYOUT(float2, 8, 8);
LAYOUT(float3, 12, 4);
LAYOUT(float4, 16, 16);
LAYOUT(double2, 16, 16);
LAYOUT(double4, 32, 16);
LAYOUT(longlong2, 16, 16);
LAYOUT(ulonglong2, 16, 16);
LAYOUT(long2, 16, 16);
LAYOUT(dim3, 12, 4);
LAYOUT(__nv_bfloat16, 2, 2);
LAYOUT(__nv_bfloat162, 4, 4);
LAYOUT(__half, 2, 2);
LAYOUT(__half2, 4, 4);
static_assert(std::is_trivially_default_constructible_v<__nv_bfloat16>);
static_assert(std::is_trivially_copyable_v<float4> && std::is_trivially_copyable_v<__half>);
static_assert(std::is_convertible_v<float, __nv_bfloat16> &&
              std::is_convertible_v<__nv_bfloat16, float>);
static_assert(std::is_convertible_v<float, __half> && std::is_convertible_v<__half, float>);
