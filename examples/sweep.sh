#!/usr/bin/env bash
# An experiment: one configuration at several learning rates, and a table of the losses each ended with.
#   examples/sweep.sh CONFIG RATE... [-- key=value ...]
#   examples/sweep.sh configs/kjv_char_cpu.yaml 3e-4 1e-3 3e-3 -- train.steps=300
# Each run has a folder of its own, so the script can be stopped and started again: what is done stays done,
# what was interrupted goes on, further rates can be added. SWEEP names the folder of the runs (default:
# runs/sweep_ and the configuration's name).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=examples/program.sh
. "$root/examples/program.sh"

if [ $# -lt 2 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
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
sweep=${SWEEP:-runs/sweep_$(basename "$config" .yaml)}

# gradus answers Ctrl-C by saving, and ends well: without this the next run would start.
trap 'exit 130' INT

# A rate that diverges ends its run with an error. That is a result, and not the end of the others. The final
# rate keeps its ratio to the peak.
failed=()
for rate in "${rates[@]}"; do
  min_lr=$(awk -v rate="$rate" 'BEGIN { print rate / 10 }')
  "$gradus" train "$config" "optim.lr=$rate" "optim.min_lr=$min_lr" "run.dir=$sweep/lr_$rate" "$@" ||
    failed+=("$rate")
done

# metrics.jsonl has one JSON object a line, its keys in alphabetical order.
last() { # FILE EVENT KEY: the key's value in the last line of that event
  sed -n "s/.*\"event\":\"$2\".*\"$3\":\([^,}]*\).*/\1/p" "$1" 2>/dev/null | tail -n 1
}
printf '\n%-10s %8s %12s %16s\n' "optim.lr" "steps" "loss" "validation loss"
for rate in "${rates[@]}"; do
  metrics=$sweep/lr_$rate/metrics.jsonl
  printf '%-10s %8s %12.10s %16.10s\n' "$rate" "$(last "$metrics" train step)" "$(last "$metrics" train loss)" \
    "$(last "$metrics" eval loss)"
done
[ ${#failed[@]} -eq 0 ] || { echo "ended with an error: ${failed[*]}" && exit 1; }
