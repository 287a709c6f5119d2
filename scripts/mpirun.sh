#!/usr/bin/env bash
# mpirun, for runs that are to be stopped without loss:
#   scripts/mpirun.sh -np 4 gradus train configs/kjv_char_cpu.yaml parallel.tp=2
#
# On SIGTERM, Ctrl-C or a terminal that goes away Open MPI's mpirun ends the ranks itself, a second later, and returns 1. This script
# passes them SIGUSR1 instead, which mpirun forwards: every rank finishes the step, one checkpoint is
# saved, and the script returns 0. A second Ctrl-C, a second or more later, ends the job at once; schedulers
# may repeat their signals.
set -uo pipefail

# What the printed command that goes on begins with.
export GRADUS_LAUNCHER=$0
# In a session of its own mpirun does not see the terminal's Ctrl-C.
setsid "${MPIRUN:-mpirun}" "$@" </dev/null &
job=$!

first= # when the first signal came, in microseconds
stop() {
  local now=${EPOCHREALTIME//[!0-9]/}
  if [ -z "$first" ]; then
    first=$now
    kill -USR1 "$job"
  elif [ "$1" = INT ] && [ $((now - first)) -ge 1000000 ]; then
    kill -TERM "$job"
  fi
}
for signal in TERM INT HUP; do trap "stop $signal" "$signal"; done

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
