#!/usr/bin/env bash
# Installs what is missing, builds and runs every test; ends with ctest's summary.
#   scripts/test.sh            formatting, release build, all tests
#   scripts/test.sh asan       the tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   scripts/test.sh debug      without optimisation
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}

scripts/install_dependencies.sh
. scripts/mpi_env.sh

if [ "$preset" = release ]; then scripts/check_style.sh; fi
cmake --preset "$preset" >/dev/null
cmake --build --preset "$preset"
ctest --preset "$preset" --timeout 600 -j "$(nproc)"
