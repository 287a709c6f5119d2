#!/usr/bin/env bash
# Where the scripts build and train, and what they say where they cannot.
# shellcheck disable=SC2016  # stubs expand what they are given when they run
. "$(dirname -- "$0")/stubs.sh"

stub dpkg-query <<<'printf installed'
stub apt-get </dev/null
stub apt-cache </dev/null
stub cmake <<<'if [ "$1" = --version ]; then echo "cmake version ${RELEASE:-3.25.1}"; else echo "in $PWD: cmake $*" >&2; fi'
stub ctest <<<'echo "in $PWD: ctest $*"'
export PATH=$work/stubs:$PATH
here=$work/gradus
test="$here/scripts/test.sh"

expect 0 "in $here: cmake -S $here --preset release -B $here/build/release" "$test"
expect 0 "in $here: cmake --build build/release" "$test"
expect 0 "in $here: ctest --test-dir build/release" "$test"
expect 0 "in $here: ctest --test-dir build/asan" sh "$test" asan
expect 2 "scripts/test.sh debug" "$test" fastest

# Elsewhere.
cd -- "$work"
export GRADUS_OUTPUT_DIR=other
expect 0 "in $work/other: cmake -S $here --preset debug -B $work/other/build/debug" "$test" debug
for script in "$test" "$here/scripts/quickstart.sh"; do
  GRADUS_OUTPUT_DIR=/proc/1/none expect 1 "cannot write to /proc/1/none/build/" "$script"
  GRADUS_OUTPUT_DIR=/proc/1/none expect 1 "GRADUS_OUTPUT_DIR=\$HOME/gradus $script" "$script"
done
unset GRADUS_OUTPUT_DIR

# A build folder that came along with a copy, one of this place, and a CMake that is too old.
echo "CMAKE_HOME_DIRECTORY:INTERNAL=/somewhere/else" >"$here/build/release/CMakeCache.txt"
expect 0 "--fresh" "$test"
echo "CMAKE_HOME_DIRECTORY:INTERNAL=$here" >"$here/build/release/CMakeCache.txt"
expect 0 "-B $here/build/release
" "$test"
RELEASE=3.18.4 expect 1 "cmake is CMake 3.18.4, and 3.25 or newer is needed" "$test"
RELEASE=4.1.0 expect 0 "ctest" "$test"
expect 2 "takes no arguments" "$here/scripts/quickstart.sh" now
finish
