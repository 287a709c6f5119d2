#!/usr/bin/env bash
# The same configuration with several learning rates, and the validation loss that each ended with.
#   examples/sweep.sh CONFIG RATE... [-- key=value ...]
#   examples/sweep.sh configs/kjv_char_cpu.yaml 3e-4 1e-3 3e-3 -- train.steps=300
# Every run has its own folder, so the script can be stopped and started again: runs that are done stay
# done, one that was interrupted goes on.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 2 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  exit 2
fi
config=$1
shift
rates=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  rates+=("$1")
  shift
done
[ $# -eq 0 ] || shift # the --

name=$(basename "$config" .yaml)
for rate in "${rates[@]}"; do
  "${GRADUS:-build/release/bin/gradus}" train "$config" "optim.lr=$rate" \
    "run.dir=runs/sweep/$name/lr-$rate" "$@"
done

printf '\n%-12s %s\n' "optim.lr" "validation loss"
for rate in "${rates[@]}"; do
  # The last line of the run's evaluations; metrics.jsonl has one JSON object a line.
  loss=$(grep '"event":"eval"' "runs/sweep/$name/lr-$rate/metrics.jsonl" | tail -n 1 |
    sed -n 's/.*"loss":\([0-9.eE+-]*\).*/\1/p')
  printf '%-12s %s\n' "$rate" "${loss:-none}"
done
