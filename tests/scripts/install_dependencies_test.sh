#!/usr/bin/env bash
# What is missing is installed, by whoever may; what cannot be had is said.
# shellcheck disable=SC2016  # stubs expand what they are given when they run
. "$(dirname -- "$0")/stubs.sh"
cd -- "$work/gradus"

stub dpkg-query <<<'[[ " $ABSENT " == *" ${!#} "* ]] && exit 1; printf installed'
stub apt-cache <<<'[[ " $OFFERED " == *" ${!#} "* ]]'
stub apt-get <<<'echo "apt-get $*" >>"$CALLS"; [[ " $* " != *" ${APT_FAILS:-nothing} "* ]]'
stub id <<<'echo "${USER_ID:-0}"'
PATH=$(only_stubs_and bash basename dirname env grep rm)
export PATH CALLS=$holder/calls GRADUS_OS_RELEASE=$holder/os-release
export ABSENT="" OFFERED="clang-format-14 clang-tidy-14"
os() { printf 'PRETTY_NAME="%s"\nVERSION_CODENAME=%s\n%s\n' "$1" "$2" "${3:-}" >"$GRADUS_OS_RELEASE"; }
install=(bash scripts/install_dependencies.sh)

# Nothing to do: nobody is asked for anything.
os "Debian GNU/Linux 12 (bookworm)" bookworm
expect 0 "" "${install[@]}"
[ ! -e "$CALLS" ] || failures=1

# Each system that is supported, and one like them.
for name in bookworm trixie noble; do
  os "a system" "$name"
  ABSENT="libdnnl-dev git" expect 0 "Installing: git libdnnl-dev" "${install[@]}"
done
os "Linux Mint 22" wilma UBUNTU_CODENAME=noble
ABSENT=git expect 0 "Installing: git" "${install[@]}"
os "Debian GNU/Linux forky/sid" forky
ABSENT=git expect 0 "This is Debian GNU/Linux forky/sid; Debian 12 and 13 and Ubuntu 24.04 are supported" "${install[@]}"
grep -q "install -y --no-install-recommends git libdnnl-dev$" "$CALLS" || failures=1

# clang-format 14, where the system has it.
os "Debian GNU/Linux 13 (trixie)" trixie
ABSENT="clang-format-14 clang-tidy-14" OFFERED="" expect 0 "" "${install[@]}"
ABSENT="clang-format-14 clang-tidy-14" expect 0 "Installing: clang-format-14 clang-tidy-14" "${install[@]}"

# Who may not install, and what fails.
export USER_ID=1000
ABSENT=git expect 1 "packages are missing, and installing them needs root or sudo:
  apt-get install git" "${install[@]}"
ABSENT=clang-tidy-14 expect 0 "" "${install[@]}"
export USER_ID=0
ABSENT=git APT_FAILS=update expect 1 "apt-get update failed (above); still missing: git" "${install[@]}"
ABSENT=git APT_FAILS=install expect 1 "apt-get install failed (above); wanted: git" "${install[@]}"

rm "$work/stubs/apt-get"
os "Fedora Linux 42" ""
expect 1 "this is Fedora Linux 42, whose packages it does not know: Debian 12 and 13 and Ubuntu 24.04" "${install[@]}"
finish
