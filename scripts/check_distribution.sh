#!/usr/bin/env bash
# Tries Gradus on a bare release of Debian, other than this machine's or the same, before a release of ours:
#   scripts/check_distribution.sh bookworm|trixie [quickstart] [test]
# Makes a minimal system in a folder, clones the newest commit into it, and runs scripts/quickstart.sh and
# scripts/test.sh there (or the one that is named), each timed, with nothing but what
# scripts/install_dependencies.sh installs. The system stays, with its compiler cache: remove the folder to start
# from nothing again.
#   GRADUS_SYSTEMS   the folder of these systems (default: /var/tmp/gradus-systems); 5 GB for each
#   GRADUS_MIRROR    where packages come from (default: where this machine's apt has them from)
# Needs root and debootstrap, and that mounts are allowed: a container may forbid them.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname -- "$0")/common.sh"

case ${1:-} in
  bookworm | trixie) suite=$1 ;;
  *)
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
shift
steps=("$@")
[ $# -gt 0 ] || steps=(quickstart test)
for step in "${steps[@]}"; do
  [ -f "$root/scripts/$step.sh" ] || fail "there is no step $step: quickstart or test"
done
[ "$(id -u)" -eq 0 ] || fail "making a system needs root"
command -v debootstrap >/dev/null || fail "there is no debootstrap: apt-get install debootstrap"

# In mounts of its own, which go when it ends, however it ends.
if [ -z "${GRADUS_OWN_MOUNTS:-}" ]; then
  exec env GRADUS_OWN_MOUNTS=1 unshare --mount --propagation private bash "$0" "$suite" "${steps[@]}"
fi

system=${GRADUS_SYSTEMS:-/var/tmp/gradus-systems}/$suite
# shellcheck disable=SC2016  # apt's own variables
mirror=${GRADUS_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' \
  'Component: main' 2>/dev/null | grep -v security | head -n 1 || true)}
mirror=${mirror:-http://deb.debian.org/debian}

say() { printf '\n== %s\n' "$*"; }

if [ ! -e "$system/made" ]; then
  say "making a minimal $suite in $system"
  mkdir -p -- "$system"
  http_proxy=${http_proxy:-$(apt-config dump --format '%v' Acquire::http::Proxy)} \
    debootstrap --variant=minbase "$suite" "$system" "$mirror" >/dev/null || fail "debootstrap failed (above)"
  touch "$system/made"
fi
# How this machine reaches the network, the system does.
apt-config dump Acquire::http::Proxy >"$system/etc/apt/apt.conf.d/80host"
cp --dereference /etc/resolv.conf "$system/etc/resolv.conf"
mount -t proc proc "$system/proc"
for folder in sys dev; do
  mount --rbind "/$folder" "$system/$folder"
done
mount -t tmpfs tmpfs "$system/tmp"

# What is tried is a commit. What was built of an earlier one stays, and is built on.
clone=$system/src/gradus
[ -d "$clone" ] || git clone --quiet --no-checkout --no-hardlinks -- "$root" "$clone"
git -C "$clone" fetch --quiet -- "$root" HEAD
git -C "$clone" reset --quiet --hard FETCH_HEAD
git -C "$clone" clean --quiet --force -d

inside() {
  env -i HOME=/root USER=root TERM="${TERM:-dumb}" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    chroot "$system" /bin/bash -c "$1"
}
inside ". /etc/os-release && echo \"\$PRETTY_NAME, \$(nproc) cores\""
for step in "${steps[@]}"; do
  say "scripts/$step.sh on $suite, $(git -C "$root" rev-parse --short HEAD)"
  started=$SECONDS
  inside "cd /src/gradus && scripts/$step.sh" || fail "scripts/$step.sh failed on $suite"
  say "scripts/$step.sh passed on $suite in $((SECONDS - started)) s"
done
