#!/usr/bin/env bash
# Makes one relocatable folder: programs that check and measure the CUDA kernels on a GPU elsewhere, for sm_90a,
# packed, and gpu_check.sh, which unpacks and runs them:
#   scripts/gpu_bundle.sh [FOLDER]       build/gpu_bundle unless given
# It needs nvcc, not a GPU. There a driver is needed, glibc 2.36 or later, and CUDA 13's cuBLAS in a toolkit or
# in pip's nvidia packages. CUDA's runtime and GoogleTest are inside the programs, other libraries in FOLDER/lib.
# The tests of tests/kernels/cuda are linked with the kernels of src/kernels/cuda and, where a test compares with
# the CPU's, with the static libraries of GRADUS_BUILD (build/release).
set -euo pipefail
. "$(dirname -- "$0")/common.sh"
folder=$(realpath -m -- "${1:-$root/build/gpu_bundle}")
cd -- "$root"

nvcc=${NVCC:-/usr/local/cuda/bin/nvcc}
cxx=${CXX:-g++}
arch=${ARCH:-90a}
build=${GRADUS_BUILD:-build/release}
objects=$root/build/gpu_bundle_objects_$arch
most_mib=60
[ -x "$nvcc" ] || fail "there is no nvcc at $nvcc; NVCC names another"
[ ! -e "$folder" ] || [ -f "$folder/bundle.txt" ] || fail "$folder is there already and is no bundle"

rm -rf -- "$folder"
mkdir -p -- "$folder/bin/tests" "$folder/lib" "$objects"
cuda_include=$(dirname -- "$nvcc")/../include
host_flags=(-std=c++20 -O2 -g1 -fopenmp -Wall -Wextra -Wno-restrict -Wno-missing-field-initializers -DFMT_SHARED
  -I. -Isrc -Itests -isystem "$cuda_include")
device_flags=(-std=c++20 -O3 -lineinfo -gencode "arch=compute_$arch,code=sm_$arch" -I. -Isrc -Itests
  -Xcompiler -Wno-restrict -cudart static)
# Tests find C++'s runtime in the bundle, as the libraries that they share it with do.
link_flags=(-gencode "arch=compute_$arch,code=sm_$arch" -cudart static
  -Xcompiler -fopenmp -Xlinker --as-needed -Xlinker "-rpath=\$ORIGIN/../../lib")

# stale OBJECT: there is none, or a file that went into it is newer.
stale() {
  local file
  [ -f "$1" ] && [ -f "$1.d" ] || return 0
  for file in $(sed -e 's/^[^:]*://' -e 's/\\$//' "$1.d"); do
    if [ "$file" -nt "$1" ]; then return 0; fi
  done
  return 1
}

# compile SOURCE: its object. What the bench programs took in is there already.
compile() {
  local source=$1 object
  object=build/gpu_bundle_bench_$arch/objects/${source//\//_}.o
  if [ ! -f "$object" ]; then object=$objects/${source//\//_}.o; fi
  if stale "$object"; then
    case $source in
      *.cu) "$nvcc" "${device_flags[@]}" -MD -MF "$object.d" -c "$source" -o "$object" ;;
      *) "$cxx" "${host_flags[@]}" -MD -MF "$object.d" -c "$source" -o "$object" ;;
    esac
  fi
  printf '%s\n' "$object"
}

# compile_all SOURCE…: their objects, two at a time.
compile_all() {
  local source
  for source in "$@"; do
    compile "$source" >/dev/null &
    if (($(jobs -rp | wc -l) >= 2)); then wait -n; fi
  done
  wait
  for source in "$@"; do compile "$source"; done
}

echo "bench programs…"
ARCH=$arch OUT=build/gpu_bundle_bench_$arch NVCC=$nvcc bench/cuda/build.sh
for program in build/gpu_bundle_bench_$arch/*_bench; do cp -- "$program" "$folder/bin/"; done

echo "tests…"
shopt -s nullglob
kernels=(src/kernels/cuda/*.cu src/kernels/cuda/*.cpp)
tests=(tests/kernels/cuda/*_test.cpp tests/kernels/cuda/*_test.cu)
helpers=()
for source in tests/kernels/cuda/*.cpp tests/kernels/cuda/*.cu; do
  case $source in *_test.*) ;; *) helpers+=("$source") ;; esac
done
if ((${#tests[@]} > 0)); then
  mapfile -t common < <(compile_all "${kernels[@]}" "${helpers[@]}")
  # As a library, so that a test carries only the kernels that it tests.
  rm -f -- "$objects/libkernels.a"
  ar rcs "$objects/libkernels.a" "${common[@]}"
  cpu=()
  for library in tests/support/libgradus_test_support.a src/kernels/libgradus_kernels.a src/core/libgradus_core.a; do
    if [ -f "$build/$library" ]; then cpu+=("$build/$library"); fi
  done
  mapfile -t made < <(compile_all "${tests[@]}")
  for i in "${!tests[@]}"; do
    name=$(basename -- "${tests[i]%.*}")
    "$nvcc" "${link_flags[@]}" -o "$folder/bin/tests/$name" "${made[i]}" "$objects/libkernels.a" \
      "${cpu[@]}" -lgtest -lgtest_main -lhwy -lhwy_contrib -ldnnl -lfmt -lspdlog -lcublasLt -ldl -lpthread
    if [ -f "tests/kernels/cuda/$name.sanitize" ]; then
      cp -- "tests/kernels/cuda/$name.sanitize" "$folder/bin/tests/"
    fi
    echo "$name"
  done
fi
shopt -u nullglob

# The libraries that the programs need and a bare machine may lack.
for program in "$folder"/bin/*_bench "$folder"/bin/tests/*_test; do
  [ -x "$program" ] || continue
  ldd "$program" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p'
done | sort -u | while read -r library; do
  case $(basename -- "$library") in
    # glibc's own, the driver's and CUDA's stay where they are.
    libc.so.* | libm.so.* | libdl.so.* | librt.so.* | libpthread.so.* | libmvec.so.* | libresolv.so.* | ld-linux*) ;;
    libcuda.so.* | libnvidia-* | libcublas*.so.* | libcudnn*.so.* | libnccl.so.* | libnvJitLink* | libnvrtc*) ;;
    *) cp -L -- "$library" "$folder/lib/" ;;
  esac
done
rmdir --ignore-fail-on-non-empty -- "$folder/lib" "$folder/bin/tests"

cp -- scripts/gpu_check.sh "$folder/"
for peer in bench/cuda/*_peer.py; do
  if [ -f "$peer" ]; then
    mkdir -p -- "$folder/peers"
    cp -- "$peer" "$folder/peers/"
  fi
done
{
  echo "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo '+changes') made $(date -u +%Y-%m-%dT%H:%M:%SZ)"
  echo "sm_$arch, $("$nvcc" --version | sed -n 's/.*release \(.*\)/CUDA \1/p'), $("$cxx" --version | head -n 1)"
  (cd -- "$folder" && find . -type f -printf '%p %s\n' | sort)
} >"$folder/bundle.txt"

newest=$(find "$folder/bin" "$folder/lib" -type f ! -name '*.sanitize' -exec objdump -T {} + | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
case $(printf '%s\n' GLIBC_2.36 "$newest" | sort -V | tail -n 1) in
  GLIBC_2.36) ;;
  *) fail "a program needs $newest, a bundle may need GLIBC_2.36 at most" ;;
esac
# Kernels for every shape and type are large, and much alike.
for program in "$folder"/bin/*_bench "$folder"/bin/tests/*_test; do
  if [ -x "$program" ]; then strip -g -- "$program"; fi
done
tar -C "$folder" -czf "$objects/programs.tar.gz" bin $(cd -- "$folder" && ls -d lib peers 2>/dev/null)
rm -rf -- "${folder:?}/bin" "${folder:?}/lib" "${folder:?}/peers"
mv -- "$objects/programs.tar.gz" "$folder/"
mib=$(($(du -sk -- "$folder" | cut -f 1) / 1024))
((mib <= most_mib)) || fail "$folder has $mib MiB, a bundle may have $most_mib"
echo "$folder: $mib MiB, needs $newest"
