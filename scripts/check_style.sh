#!/usr/bin/env bash
# Formatting of every C++ file that git tracks; prints what differs and fails. Where git knows no files or there
# is no clang-format 14, it says so instead; with --required that is a failure.
set -euo pipefail
. "$(dirname -- "$0")/common.sh"
cd -- "$root"

stop_unless_checkable formatting clang-format "$@"
git ls-files -z -- '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -0 "$(clang_tool clang-format)" --dry-run --Werror
echo "formatting: clean"
