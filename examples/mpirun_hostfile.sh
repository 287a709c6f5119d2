#!/usr/bin/env bash
# Several machines without a scheduler.
#   examples/mpirun_hostfile.sh HOSTFILE RANKS CONFIG [key=value ...]
#   examples/mpirun_hostfile.sh examples/hostfile 16 configs/gpt_1b.yaml parallel.dp=auto
# Every machine is reached by ssh without a password, has the same gradus and the same Open MPI at the same
# paths, and sees the same folder for data and runs (NFS or the like); start it from there.
# Ctrl-C or SIGTERM: all ranks finish the step and save, and the command that goes on is printed.
# INTERFACE names the network interface by which the machines reach each other (default: Open MPI tries those
# it finds).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=examples/program.sh
. "$root/examples/program.sh"

if [ $# -lt 3 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
# What a stopped run says to type.
GRADUS_RESUME_COMMAND=$(printf '%q ' "$0" "$@")
export GRADUS_RESUME_COMMAND=${GRADUS_RESUME_COMMAND% }
hostfile=$1
ranks=$2
shift 2

options=(
  -np "$ranks" --hostfile "$hostfile"
  # One machine is filled after the other, so tensor-parallel neighbours share one.
  --map-by slot
  # Ranks divide the cores of their machine among themselves; mpirun must not bind them first.
  --bind-to none
)
# A bridge that looks alike on every machine (docker0, virbr0) is an interface that Open MPI may try, and
# wait for in vain.
if [ -n "${INTERFACE:-}" ]; then
  options+=(--mca btl_tcp_if_include "$INTERFACE" --mca oob_tcp_if_include "$INTERFACE")
fi
[ "$(id -u)" -ne 0 ] || options+=(--allow-run-as-root)

# mpirun hands on the environment only to ranks of its own machine; the others get what is named.
while read -r name; do
  options+=(-x "$name")
done < <(compgen -e | grep -E '^(GRADUS|NCCL|OMP|UCX)_' || true)

exec "$root/scripts/mpirun.sh" "${options[@]}" "$gradus" train "$@"
