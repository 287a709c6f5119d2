#!/usr/bin/env bash
# mpirun, for runs that are to be stopped without loss:
#   scripts/mpirun.sh -np 4 gradus train configs/kjv_char_cpu.yaml parallel.tp=2
#
# On SIGTERM, Ctrl-C or a terminal that goes away Open MPI's mpirun ends the ranks itself, a second later, and returns 1. This script
# passes them SIGUSR1 instead, which mpirun forwards: every rank finishes the step, one checkpoint is
# saved, and the script returns 0. A second signal ends the job at once.
set -uo pipefail

# What the printed command that goes on begins with.
export GRADUS_LAUNCHER=$0
# In a session of its own mpirun does not see the terminal's Ctrl-C.
setsid "${MPIRUN:-mpirun}" "$@" </dev/null &
job=$!

stop() {
  trap 'kill -TERM "$job"' TERM INT HUP
  kill -USR1 "$job"
}
trap stop TERM INT HUP

wait "$job"
code=$?
# A signal ends the wait, not the job.
while kill -0 "$job" 2>/dev/null; do
  wait "$job"
  code=$?
done
if [ "$code" -gt 128 ]; then
  wait "$job"
  again=$?
  [ "$again" -eq 127 ] || code=$again
fi
exit "$code"
