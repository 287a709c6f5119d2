#!/usr/bin/env bash
# Installs what is missing, builds and runs every test; ends with ctest's summary.
#   scripts/test.sh            formatting, release build, all tests
#   scripts/test.sh asan       the tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   scripts/test.sh debug      without optimisation
# GRADUS_OUTPUT_DIR names another folder than the repository to build in.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname -- "$0")/common.sh"
preset=${1:-release}
case $preset in
  release | asan | debug) ;;
  *)
    sed -n '3,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac

bash "$root/scripts/install_dependencies.sh"
. "$root/scripts/mpi_env.sh"

if [ "$preset" = release ]; then bash "$root/scripts/check_style.sh"; fi
build=build/$preset
enter_output_dir "$build"
configure "$preset" "$build"
cmake --build "$build"
ctest --test-dir "$build" --output-on-failure --timeout 600 -j "$(nproc)"
