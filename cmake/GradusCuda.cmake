# GRADUS_CUDA: off, or who makes the kernels of src/kernels/cuda run. With toolkit, nvcc compiles them; with
# sim, the C++ compiler does, and cudasim executes them (docs/cudasim.md).

if(GRADUS_CUDA STREQUAL "toolkit")
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 100-real)
  enable_language(CUDA)
  find_package(CUDAToolkit 13.0 REQUIRED)
  # CMake 3.25 does not know how nvcc is asked for C++20.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
elseif(GRADUS_CUDA STREQUAL "sim")
  find_package(Boost REQUIRED COMPONENTS context)
elseif(NOT GRADUS_CUDA STREQUAL "off")
  message(FATAL_ERROR "GRADUS_CUDA is off, sim or toolkit, not ${GRADUS_CUDA}")
endif()

if(GRADUS_CUDA STREQUAL "off")
  return()
endif()

set(GRADUS_CUDASIM_SEEDS 0 1 CACHE STRING "Seeds of cudasim that each test of the kernels runs with")
add_custom_target(gradus_cuda_tests)

# gradus_cuda_sources(TARGET file.cu…): device code, by whichever compiler takes it.
function(gradus_cuda_sources target)
  target_sources(${target} PRIVATE ${ARGN})
  if(GRADUS_CUDA STREQUAL "toolkit")
    set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CUDA)
  else()
    # As nvcc has it, types do not tell memory apart, and loops may say how to unroll them.
    set(options -x c++ -fno-strict-aliasing -Wno-unknown-pragmas)
    if(NOT GRADUS_SANITIZE MATCHES "undefined")
      list(APPEND options -fsanitize=alignment -fsanitize-recover=alignment)  # cudasim/src/alignment.cpp
    endif()
    set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "${options}")
  endif()
endfunction()

# gradus_cuda_test(NAME SOURCES file… [DEVICE_SOURCES file…] LINK target…): as gradus_test; under cudasim
# one ctest entry for each seed. DEVICE_SOURCES are those that have kernels of their own.
function(gradus_cuda_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEVICE_SOURCES;LINK" ${ARGN})
  string(REPLACE "." "_" target "${name}_test")
  gradus_test(${name} SOURCES ${ARG_SOURCES} LINK ${ARG_LINK} gradus_cuda_kernels LABELS cuda)
  if(ARG_DEVICE_SOURCES)
    gradus_cuda_sources(${target} ${ARG_DEVICE_SOURCES})
  endif()
  add_dependencies(gradus_cuda_tests ${target})
  if(GRADUS_SANITIZE MATCHES "thread")
    # ThreadSanitizer wants its addresses where they are without randomisation.
    set_target_properties(${target} PROPERTIES CROSSCOMPILING_EMULATOR "setarch;-R")
  endif()
  if(NOT GRADUS_CUDA STREQUAL "sim")
    return()
  endif()
  list(GET GRADUS_CUDASIM_SEEDS 0 first)
  set_property(TEST ${name} APPEND PROPERTY ENVIRONMENT GRADUS_CUDASIM_SEED=${first})
  foreach(seed IN LISTS GRADUS_CUDASIM_SEEDS)
    if(NOT seed EQUAL first)
      add_test(NAME ${name}.seed_${seed} COMMAND ${target} --gtest_brief=1
               WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
      set_tests_properties(${name}.seed_${seed} PROPERTIES
        TIMEOUT ${GRADUS_TEST_TIMEOUT} LABELS cuda ENVIRONMENT GRADUS_CUDASIM_SEED=${seed})
    endif()
  endforeach()
endfunction()
