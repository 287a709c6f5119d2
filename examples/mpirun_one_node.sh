#!/usr/bin/env bash
# Several ranks on this machine.
#   examples/mpirun_one_node.sh RANKS CONFIG [key=value ...]
#   examples/mpirun_one_node.sh 8 configs/gpt_1b.yaml
#   examples/mpirun_one_node.sh 2 configs/kjv_char_cpu.yaml parallel.tp=2
# GRADUS names the program; build/release/bin/gradus otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 2 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  exit 2
fi
ranks=$1
shift

# What Open MPI needs in a container, as root, or with more ranks than cores.
. scripts/mpi_env.sh

# Ranks bind themselves to their share of the cores; mpirun must not do it first. scripts/mpirun.sh turns
# SIGTERM and Ctrl-C into what mpirun lets the ranks answer: they finish the step and save.
exec scripts/mpirun.sh -np "$ranks" --map-by slot --bind-to none \
  "${GRADUS:-build/release/bin/gradus}" train "$@"
