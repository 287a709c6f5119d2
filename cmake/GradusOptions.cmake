# Compiler settings that every target of the project shares, and the helpers that declare targets.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

find_program(GRADUS_CCACHE ccache)
if(GRADUS_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Where it cannot write its cache (a home that is read-only or not there), every compilation would fail.
  set(probe "${CMAKE_BINARY_DIR}/CMakeFiles/ccache_probe.cpp")
  file(WRITE "${probe}" "int probe;\n")
  execute_process(COMMAND "${GRADUS_CCACHE}" "${CMAKE_CXX_COMPILER}" -c "${probe}" -o "${probe}.o"
                  RESULT_VARIABLE ccache_failed OUTPUT_VARIABLE ccache_says
                  ERROR_VARIABLE ccache_says OUTPUT_STRIP_TRAILING_WHITESPACE
                  ERROR_STRIP_TRAILING_WHITESPACE)
  if(ccache_failed)
    message(NOTICE "Building without ccache, which says: ${ccache_says}")
  else()
    set(CMAKE_CXX_COMPILER_LAUNCHER "${GRADUS_CCACHE}")
  endif()
endif()

add_library(gradus_options INTERFACE)
target_include_directories(gradus_options INTERFACE "${PROJECT_SOURCE_DIR}/src")
# -ffp-contract=off: a multiply and an add fuse only where the source says so, which keeps the
# results of one source independent of how the compiler happens to arrange it.
# All of these are for C++: nvcc, which calls the same compiler for its host side, knows none of them.
set(options -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -ffp-contract=off)
# GCC 12's flow analysis reports writes in fmt 9's and libstdc++'s templates that cannot happen.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND options -Wno-stringop-overflow -Wno-stringop-overread -Wno-array-bounds
                      -Wno-maybe-uninitialized -Wno-restrict)
endif()
# Designated initialisers leave members to their defaults on purpose.
list(APPEND options -Wno-missing-field-initializers)
if(GRADUS_WERROR)
  list(APPEND options -Werror)
endif()
if(GRADUS_SANITIZE)
  list(APPEND options "-fsanitize=${GRADUS_SANITIZE}" -fno-omit-frame-pointer
                      -fno-sanitize-recover=all)
  target_link_options(gradus_options INTERFACE "-fsanitize=${GRADUS_SANITIZE}")
endif()
target_compile_options(gradus_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${options}>")
unset(options)

# Seconds for a test program that says nothing else: a hang is what it is there to end.
set(GRADUS_TEST_TIMEOUT 300)
if(GRADUS_SANITIZE)
  set(GRADUS_TEST_TIMEOUT 900)
endif()

# gradus_library(NAME SOURCES file… LINK target…): one static library per folder of src/.
function(gradus_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK;PRIVATE_LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC gradus_options ${ARG_LINK} PRIVATE ${ARG_PRIVATE_LINK})
endfunction()

# gradus_test(NAME SOURCES file… LINK target… [LABELS label…]): one GoogleTest program and
# one ctest entry. NAME is the path below tests/ with slashes as dots. Threads sleep soon where they
# wait, as those of the program do (src/cli/openmp_settings.h): tests share their cores.
function(gradus_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LINK;LABELS" ${ARGN})
  string(REPLACE "." "_" target "${name}_test")
  add_executable(${target} ${ARG_SOURCES})
  target_link_libraries(${target} PRIVATE gradus_options gradus_test_support ${ARG_LINK}
                                          GTest::gtest_main GTest::gmock)
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT ${GRADUS_TEST_TIMEOUT})
  endif()
  add_test(NAME ${name} COMMAND ${target} --gtest_brief=1
           WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}"
                       ENVIRONMENT GOMP_SPINCOUNT=1000)
endfunction()
