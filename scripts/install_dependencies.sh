#!/usr/bin/env bash
# Installs what Gradus needs to build, test and run its quickstart, from the packages of Debian 12 and 13 or
# Ubuntu 24.04. Does nothing when all of it is there. Needs root or sudo only when something is missing.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname -- "$0")/common.sh"

# The same names everywhere.
packages=(
  build-essential cmake ninja-build ccache pkg-config git ca-certificates
  libdnnl-dev libhwy-dev libyaml-cpp-dev libspdlog-dev libfmt-dev libcli11-dev nlohmann-json3-dev
  libxxhash-dev libopenmpi-dev openmpi-bin procps
  libboost-context-dev
  libgtest-dev libgmock-dev libbenchmark-dev
  bible-kjv
)
# Wanted where the system has them, as Debian 13 has not: without them formatting and lint go unchecked.
checkers=("clang-format-$clang_release" "clang-tidy-$clang_release")

# Another user's clone, or root's without login, may have neither of them on the path, and dpkg needs them.
export PATH=$PATH:/usr/sbin:/sbin

system="an unknown system"
codename=
if [ -r "${GRADUS_OS_RELEASE:-/etc/os-release}" ]; then
  # shellcheck source=/dev/null
  . "${GRADUS_OS_RELEASE:-/etc/os-release}"
  system=${PRETTY_NAME:-$system}
  codename=${UBUNTU_CODENAME:-${VERSION_CODENAME:-}}  # of a relative of Ubuntu's: Ubuntu's
fi

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  fail "this is $system, whose packages it does not know: Debian 12 and 13 and Ubuntu 24.04 are supported.
Install what these packages are elsewhere, and build as CONTRIBUTING.md says:
  ${packages[*]}"
fi

# absent PACKAGE…: those that are not installed.
absent() {
  local package status
  for package in "$@"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || echo "$package"
  done
}
# offered PACKAGE…: those that this system has.
offered() {
  local package
  for package in "$@"; do
    if apt-cache show "$package" >/dev/null 2>&1; then echo "$package"; fi
  done
}

mapfile -t missing < <(absent "${packages[@]}")
mapfile -t missing_checkers < <(absent "${checkers[@]}")
mapfile -t offered_checkers < <(offered "${missing_checkers[@]}")
[ $((${#missing[@]} + ${#offered_checkers[@]})) -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    [ ${#missing[@]} -gt 0 ] || exit 0
    fail "packages are missing, and installing them needs root or sudo:
  apt-get install ${missing[*]}"
  fi
  as_root=(sudo)
fi
case $codename in
  bookworm | trixie | noble) ;;
  *) echo "This is $system; Debian 12 and 13 and Ubuntu 24.04 are supported, and their names are tried." >&2 ;;
esac

# What root makes is for everybody to read, whatever the umask of who calls.
umask 022
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "PATH=$PATH" apt-get -qq -o DPkg::Lock::Timeout=300)
"${apt[@]}" update || fail "apt-get update failed (above); still missing: ${missing[*]} ${offered_checkers[*]}"
mapfile -t offered_checkers < <(offered "${missing_checkers[@]}")
wanted=("${missing[@]}" "${offered_checkers[@]}")
echo "Installing: ${wanted[*]}"
"${apt[@]}" install -y --no-install-recommends "${wanted[@]}" >/dev/null ||
  fail "apt-get install failed (above); wanted: ${wanted[*]}"
