#!/usr/bin/env bash
# Builds every ladder program of this folder for one architecture, without CMake:
#   bench/cuda/build.sh                                  every *_bench.cu, for sm_90a
#   bench/cuda/build.sh rows                             rows_bench.cu alone
#   ARCH=80 OUT=build/cuda_bench_80 bench/cuda/build.sh  for sm_80
# Programs land in build/cuda_bench, with CUDA's and C++'s runtimes inside them; they need a driver
# only. A program NAME_bench.cu takes in the sources listed, one a line, in NAME_bench.sources beside it; lines that
# begin with - are options for the linker.
set -euo pipefail
cd "$(dirname "$0")/../.."
NVCC=${NVCC:-/usr/local/cuda/bin/nvcc}
ARCH=${ARCH:-90a}
OUT=${OUT:-build/cuda_bench}
FLAGS=(-std=c++20 -O3 -lineinfo -gencode "arch=compute_${ARCH},code=sm_${ARCH}" -I. -Isrc -Itests
  -Xcompiler -Wall,-Wextra,-Wno-restrict -cudart static ${NVCC_FLAGS:-})
# Plain C++ goes to the host compiler: nvcc's own pass does not take fmt.
HOST=("${CXX:-g++}" -std=c++20 -O2 -DFMT_HEADER_ONLY -I. -Isrc -Itests
  -isystem "$(dirname "$NVCC")/../include" -Wall -Wextra -Wno-restrict)
mkdir -p "$OUT/objects"

# An object is made again when a file that went into it is newer.
stale() {
  [[ -f $1 && -f $1.d ]] || return 0
  local file
  for file in $(sed -e 's/^[^:]*://' -e 's/\\$//' "$1.d"); do
    if [[ $file -nt $1 ]]; then return 0; fi
  done
  return 1
}

for program in bench/cuda/*_bench.cu; do
  name=$(basename "$program" .cu)
  if (($# > 0)) && [[ " $* " != *" ${name%_bench} "* ]]; then continue; fi
  sources=("$program" bench/cuda/harness.cpp)
  libraries=()
  if [[ -f bench/cuda/$name.sources ]]; then
    while read -r source; do
      case $source in
        "") ;;
        -*) libraries+=("$source") ;;
        *) sources+=("$source") ;;
      esac
    done < "bench/cuda/$name.sources"
  fi
  objects=()
  for source in "${sources[@]}"; do
    object=$OUT/objects/$(tr / _ <<< "$source").o
    objects+=("$object")
    if stale "$object"; then
      case $source in
        *.cpp) "${HOST[@]}" -MD -MF "$object.d" -c "$source" -o "$object" ;;
        *) "$NVCC" "${FLAGS[@]}" -MD -MF "$object.d" -c "$source" -o "$object" ;;
      esac
    fi
  done
  "$NVCC" -gencode "arch=compute_${ARCH},code=sm_${ARCH}" -cudart static \
    -Xcompiler "-static-libstdc++,-static-libgcc" -o "$OUT/$name" \
    "${objects[@]}" "${libraries[@]}" -ldl -lpthread
  echo "$OUT/$name"
done
