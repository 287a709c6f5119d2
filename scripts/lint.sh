#!/usr/bin/env bash
# clang-tidy's checks (.clang-tidy) over the sources of src/. Left out are the files that Highway compiles once for
# each instruction set, of which the tool reads only one pass and takes minutes for it, and those of CUDA, which a
# build without it does not have. Where git knows no files or there is no clang-tidy 14, it says so instead; with
# --required that is a failure.
set -euo pipefail
. "$(dirname -- "$0")/common.sh"
cd -- "$root"

stop_unless_checkable clang-tidy clang-tidy "$@"
mapfile -d '' files < <(git ls-files -z -- 'src/*.cpp' ':!src/kernels/cuda/' | xargs -0 grep -LZ 'foreach_target')
files=("${files[@]/#/$root/}")

enter_output_dir build/release
configure release build/release
# What the sources include of what a build makes: a fresh clone has none of it yet.
cmake --build build/release --target gradus_commit >/dev/null

# Findings go to stdout. On stderr clang-tidy counts warnings it suppressed, which is noise, but also says
# why it could not run, so that is shown when it fails. Clang does not know all of GCC's warning options.
messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
if ! printf '%s\0' "${files[@]}" |
  xargs -0 -P "$(nproc)" -n 4 "$(clang_tool clang-tidy)" --quiet -p build/release \
    --extra-arg=-Wno-unknown-warning-option 2>"$messages"; then
  cat "$messages" >&2
  exit 1
fi
echo "clang-tidy: clean (${#files[@]} files)"
