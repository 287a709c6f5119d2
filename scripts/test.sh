#!/usr/bin/env bash
# Installs what is missing, builds and runs every test; ends with ctest's summary.
#   scripts/test.sh            formatting, release build, all tests
#   scripts/test.sh asan       the tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   scripts/test.sh debug      without optimisation
#   scripts/test.sh cudasim    the tests of CUDA kernels, on a simulator (docs/cudasim.md); also cudasim-asan
#   scripts/test.sh cuda       compiles the kernels and their tests with nvcc; runs them where a GPU is
# GRADUS_OUTPUT_DIR names another folder than the repository to build in.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname -- "$0")/common.sh"
preset=${1:-release}
parts=(all)  # of the build, and of ctest
labels=()
case $preset in
  release | asan | debug) ;;
  cudasim | cudasim-asan | cuda)
    parts=(gradus_cuda_tests)
    labels=(-L '^cuda$')
    ;;
  *)
    sed -n '3,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac

if [ "$preset" = cuda ]; then
  export PATH=$PATH:/usr/local/cuda/bin
  if ! command -v nvcc >/dev/null; then
    echo "CUDA kernels: not compiled: there is no nvcc here"
    exit 0
  fi
fi
bash "$root/scripts/install_dependencies.sh"
. "$root/scripts/mpi_env.sh"

if [ "$preset" = release ]; then bash "$root/scripts/check_style.sh"; fi
build=build/$preset
enter_output_dir "$build"
configure "$preset" "$build"
cmake --build "$build" --target "${parts[@]}"
if [ "$preset" = cuda ] && ! compgen -G '/dev/nvidia[0-9]*' >/dev/null; then
  echo "CUDA kernels: compiled, not run: there is no GPU here"
  exit 0
fi
ctest --test-dir "$build" --output-on-failure --timeout 900 -j "$(nproc)" "${labels[@]}"
