#!/usr/bin/env bash
# Several ranks on this machine.
#   examples/mpirun_one_node.sh RANKS CONFIG [key=value ...]
#   examples/mpirun_one_node.sh 2 configs/kjv_char_cpu.yaml parallel.tp=2 run.dir=runs/tp2
#   examples/mpirun_one_node.sh 8 configs/gpt_1b.yaml
# Ctrl-C or SIGTERM: all ranks finish the step and save, and the command that goes on is printed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=examples/program.sh
. "$root/examples/program.sh"

if [ $# -lt 2 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
# What a stopped run says to type.
GRADUS_RESUME_COMMAND=$(printf '%q ' "$0" "$@")
export GRADUS_RESUME_COMMAND=${GRADUS_RESUME_COMMAND% }
ranks=$1
shift

# What Open MPI needs as root, in a container, or with more ranks than cores. On a cluster's own installation
# leave it out.
# shellcheck source=scripts/mpi_env.sh
. "$root/scripts/mpi_env.sh"

# scripts/mpirun.sh is mpirun that can be stopped without loss. Ranks divide the cores among themselves, so
# mpirun must not bind them first.
exec "$root/scripts/mpirun.sh" -np "$ranks" --bind-to none \
  "$gradus" train "$@"
