#!/usr/bin/env bash
# clang-tidy's checks (.clang-tidy) over the sources of src/. The files that Highway compiles once for each
# instruction set are left out: the tool reads only one of the passes and takes minutes for it.
set -euo pipefail
cd "$(dirname "$0")/.."

cmake --preset release >/dev/null
mapfile -t files < <(git ls-files -- 'src/*.cpp' | xargs grep -L 'foreach_target')

# Findings go to stdout. On stderr clang-tidy counts warnings it suppressed, which is noise, but also says
# why it could not run, so that is shown when it fails. Clang does not know all of GCC's warning options.
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
if ! printf '%s\n' "${files[@]}" |
  xargs -P "$(nproc)" -n 4 clang-tidy --quiet -p build/release --extra-arg=-Wno-unknown-warning-option \
    2>"$messages"; then
  cat "$messages" >&2
  exit 1
fi
echo "clang-tidy: clean (${#files[@]} files)"
