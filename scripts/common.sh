# shellcheck shell=bash
# What the scripts here share; sourced by them. Sets `root`, the repository.

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

# The release of clang-format and clang-tidy whose verdict counts: others lay the same code out otherwise.
clang_release=14
oldest_cmake=3.25

fail() {
  printf '%s: %s\n' "$(basename -- "$0")" "$*" >&2
  exit 1
}

# clang_tool NAME: the command that is NAME in that release; nothing where there is none.
clang_tool() {
  local candidate
  for candidate in "$1-$clang_release" "$1"; do
    if [[ "$("$candidate" --version 2>/dev/null)" == *"version $clang_release."* ]]; then
      printf '%s\n' "$candidate"
      return
    fi
  done
}

# unchecked TOOL: why the files cannot be checked with it, in the folder one is in; nothing where they can. Only
# files that git tracks are checked. It knows none in an unpacked copy, and refuses another user's clone.
unchecked() {
  local answer
  if [ -z "$(clang_tool "$1")" ]; then
    echo "there is no $1 $clang_release here"
  elif ! command -v git >/dev/null; then
    echo "there is no git here"
  elif ! answer=$(git rev-parse --show-prefix 2>&1); then
    echo "git knows no files here (${answer%%$'\n'*})"
  elif [ -n "$answer" ]; then
    echo "git knows no files here (the folder lies in another repository)"
  elif [ -z "$(git ls-files -- src)" ]; then
    echo "git tracks none of the files here"
  fi
}

# stop_unless_checkable NAME TOOL [--required]: ends the script, in one line, where unchecked() has a reason.
stop_unless_checkable() {
  local why
  why=$(unchecked "$2")
  [ -n "$why" ] || return 0
  [ "${3:-}" != --required ] || fail "$1: $why"
  echo "$1: not checked: $why"
  exit 0
}

# enter_output_dir FOLDER…: goes to where the scripts put what they make, GRADUS_OUTPUT_DIR or else the
# repository, and makes the folders there that they will write to.
enter_output_dir() {
  local output=${GRADUS_OUTPUT_DIR:-$root} folder probe
  for folder in "$@"; do
    if ! { mkdir -p -- "$output/$folder" && probe=$(mktemp -- "$output/$folder/.writable-XXXXXX"); } 2>/dev/null; then
      fail "cannot write to $output/$folder. Make it writable, or name another folder for what is built and trained:
  GRADUS_OUTPUT_DIR=\$HOME/gradus $0"
    fi
    rm -f -- "$probe"
  done
  CDPATH='' cd -- "$output" || fail "cannot enter $output"
}

# configure PRESET FOLDER [OPTION…]: CMake's first step, quietly.
configure() {
  local preset=$1 folder=$2 version
  shift 2
  version=$(cmake --version | sed -n '1s/cmake version //p')
  if [ "$(printf '%s\n' "$oldest_cmake" "$version" | sort -V | head -n 1)" != "$oldest_cmake" ]; then
    fail "$(command -v cmake) is CMake $version, and $oldest_cmake or newer is needed"
  fi
  # CMake refuses a build folder that came along when the repository was moved or copied.
  if [ -f "$folder/CMakeCache.txt" ] &&
    ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$folder/CMakeCache.txt"; then
    set -- --fresh "$@"
  fi
  cmake -S "$root" --preset "$preset" -B "$PWD/$folder" "$@" >/dev/null
}
