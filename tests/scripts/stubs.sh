# shellcheck shell=bash
# Sourced by the tests here. Makes a folder `work`, whose name no script may stumble over, with a copy of the scripts
# in `$work/gradus` and stand-ins for programs in `$work/stubs`; goes when the test ends.

set -euo pipefail
repository=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
holder=$(mktemp -d)
trap 'rm -rf -- "$holder"' EXIT
work="$holder/ein grüner (c++) Ordner"
mkdir -p "$work/gradus/scripts" "$work/stubs"
cp "$repository"/scripts/*.sh "$work/gradus/scripts/"
unset "${!GIT_@}" GRADUS_OUTPUT_DIR
export GIT_CEILING_DIRECTORIES=$holder

# stub NAME: a program NAME of the lines on stdin, in bash.
stub() {
  { echo "#!$BASH" && cat; } >"$work/stubs/$1"
  chmod +x "$work/stubs/$1"
}
# only_stubs_and PROGRAM…: a PATH on which there is nothing else.
only_stubs_and() {
  local program
  for program in "$@"; do ln -sf "$(command -v "$program")" "$work/stubs/$program"; done
  printf '%s\n' "$work/stubs"
}

failures=0
# expect CODE TEXT COMMAND…: that it ends with CODE, having said TEXT (a part; empty: nothing) on stdout or stderr.
expect() {
  local code=$1 text=$2 found=0 said
  shift 2
  said=$("$@" 2>&1 </dev/null) || found=$?
  if [ "$found" -ne "$code" ] || { [ -n "$text" ] && [[ "$said" != *"$text"* ]]; } ||
    { [ -z "$text" ] && [ -n "$said" ]; }; then
    printf 'line %s: %s\n  ended with %s, expected %s\n  said: %s\n  expected: %s\n' \
      "${BASH_LINENO[0]}" "$*" "$found" "$code" "$said" "$text" >&2
    failures=$((failures + 1))
  fi
}
finish() {
  [ "$failures" -eq 0 ] || exit 1
  echo "passed"
}
