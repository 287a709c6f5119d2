#!/usr/bin/env bash
# Formatting of every tracked C++ file; prints what differs and fails.
set -euo pipefail
cd "$(dirname "$0")/.."

git ls-files -z -- '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -0 clang-format --dry-run --Werror
echo "formatting: clean"
