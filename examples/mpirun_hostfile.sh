#!/usr/bin/env bash
# Several machines without a scheduler: every one of them is reached by ssh without a password, has the same
# gradus at the same path, and sees the same folder for data and runs (NFS or the like).
#   examples/mpirun_hostfile.sh HOSTFILE RANKS CONFIG [key=value ...]
# A hostfile has a line for each machine, with its number of ranks (one a GPU, or one a group of cores):
#   node1 slots=8
#   node2 slots=8
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 3 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit 2
fi
hostfile=$1
ranks=$2
shift 2

# The interface by which the machines reach each other. Open MPI tries all it finds, and a bridge of
# a container that looks alike on every machine costs minutes or the job.
interface=${INTERFACE:-eth0}

# --map-by slot fills one machine after the other, so tensor-parallel neighbours share one.
# -x passes a variable on to every machine. NCCL's are for builds that have it: see README.md here.
exec scripts/mpirun.sh -np "$ranks" --hostfile "$hostfile" --map-by slot --bind-to none \
  --mca btl_tcp_if_include "$interface" --mca oob_tcp_if_include "$interface" \
  -x NCCL_SOCKET_IFNAME="$interface" -x NCCL_DEBUG="${NCCL_DEBUG:-WARN}" \
  -x GRADUS_COMMUNICATION_TIMEOUT="${GRADUS_COMMUNICATION_TIMEOUT:-600}" \
  "${GRADUS:-$PWD/build/release/bin/gradus}" train "$@"
