#!/usr/bin/env bash
# Checks and measures the CUDA kernels on this machine's GPU, with the programs beside this script
# (scripts/gpu_bundle.sh makes them):
#   gpu_check.sh [--stage K]... [--out DIR] [--quick] [--torch FILE.py]
# Stages, each under four minutes, one after the other even where one fails:
#   1 kernel tests   2 rows_bench   3 products_bench, host_bench   4 attention_bench
#   5 wgmma_attention_bench   6 compute-sanitizer on the tests   7 the same work in PyTorch (--torch)
# DIR (gpu_check.out unless given) gets report.txt, all that was printed, and report.json. The exit code is 0
# where all that ran passed; what was skipped is said, with the reason. Settings of the card are left alone.
set -uo pipefail

bundle=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
out=gpu_check.out
stages=()
quick=()
torch=
while (($# > 0)); do
  case $1 in
    --stage) stages+=("${2:?--stage needs a number}"); shift 2 ;;
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --torch) torch=${2:?--torch needs a file}; shift 2 ;;
    --quick) quick=(--quick); shift ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
  esac
done
((${#stages[@]} > 0)) || stages=(1 2 3 4 5 6 7)
for stage in "${stages[@]}"; do
  [[ $stage == [1-7] ]] || { echo "gpu_check.sh: there is no stage $stage" >&2; exit 2; }
done
stage_seconds=${GRADUS_STAGE_SECONDS:-225}

mkdir -p "$out" || exit 2
out=$(cd -- "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
texts=$bundle
if [[ ! -d $bundle/bin ]]; then
  tar -xzf "$bundle/programs.tar.gz" -C "$work" || exit 2
  bundle=$work
fi
report=$out/report.txt
: >"$report"
entries=()  # of report.json's "programs"
failed=0
skipped=0
test_options=(--gtest_brief=1)

say() { printf '%s\n' "$*" | tee -a "$report"; }

# A text as a JSON string.
quoted() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\t'/ }
  text=${text//$'\r'/}
  text=${text//$'\n'/\\n}
  printf '"%s"' "$text"
}

# Where CUDA's own libraries are: the toolkit's folders first, then pip's packages. cuBLAS comes in two
# libraries that must be of one version, so a folder that has the wanted one is taken whole.
cuda_folders() {
  local found=
  shopt -s nullglob
  local folder
  for folder in /usr/local/cuda/lib64 /usr/local/cuda-13*/lib64 /usr/local/cuda*/targets/x86_64-linux/lib \
    /usr/lib/x86_64-linux-gnu; do
    if [[ -d $folder ]]; then found+=:$folder; fi
  done
  if command -v python3 >/dev/null; then
    local site
    while read -r site; do
      for folder in "$site"/nvidia/*/lib; do found+=:$folder; done
    done < <(python3 -c 'import site, sys; print("\n".join(site.getsitepackages() + [site.getusersitepackages()]))' \
      2>/dev/null)
  fi
  shopt -u nullglob
  printf '%s' "${found#:}"
}
library_path=${GRADUS_CUDA_LIBRARIES:+$GRADUS_CUDA_LIBRARIES:}$(cuda_folders)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# The folder of library_path that a library is found in first.
folder_of() {
  local folder
  local IFS=:
  for folder in $library_path; do
    if [[ -e $folder/$1 ]]; then printf '%s' "$folder"; return; fi
  done
}

skip() {  # stage, program, reason
  say "SKIPPED $2: $3"
  skipped=$((skipped + 1))
  entries+=("{\"stage\": $1, \"program\": $(quoted "$2"), \"verdict\": \"skipped\", \"why\": $(quoted "$3")}")
}

# Runs one program: stage, name, seconds at most, command. A file $work/NAME.json that it writes is taken
# into the report.
run() {
  local stage=$1 name=$2 limit=$3
  shift 3
  local left=$((stage_ends - SECONDS))
  if ((left < 5)); then
    skip "$stage" "$name" "the stage's time is used up"
    return
  fi
  if ((limit > left)); then limit=$left; fi
  say ""
  say "--- $name (at most $limit s)"
  local began=$SECONDS code
  LD_LIBRARY_PATH=$library_path timeout -k 5 "$limit" "$@" >"$work/log" 2>&1 </dev/null
  code=$?
  tee -a "$report" <"$work/log"
  local seconds=$((SECONDS - began)) verdict=passed why=
  if ((code == 124 || code == 137)); then
    verdict=failed why="stopped after $limit s"
  elif ((code != 0)); then
    verdict=failed why="exit code $code"
  elif grep -q '^\[  SKIPPED \]' "$work/log"; then
    why="$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) tests\{0,1\}[.,].*/\1/p' "$work/log" | head -n 1) of its tests skipped themselves"
  fi
  if [[ $verdict == failed ]]; then failed=$((failed + 1)); fi
  say "--- $name: $verdict${why:+, $why}; $seconds s"
  local result=null
  if [[ -s $work/$name.json ]]; then
    result=$(<"$work/$name.json")
    # What is no JSON, as lines of it are, goes in as text.
    if ! python3 -c 'import json, sys; json.load(open(sys.argv[1]))' "$work/$name.json" 2>/dev/null; then
      result=$(quoted "$result")
    fi
  fi
  entries+=("{\"stage\": $stage, \"program\": $(quoted "$name"), \"verdict\": \"$verdict\", \"why\": $(quoted "$why"), \"seconds\": $seconds, \"result\": $result}")
}

bench() {  # stage, name, seconds at most
  local program=$bundle/bin/$2 missing
  if [[ ! -x $program ]]; then
    skip "$1" "$2" "it is not in this bundle"
  elif missing=$(missing_libraries "$program") && [[ -n $missing ]]; then
    skip "$1" "$2" "$missing is neither in the CUDA toolkit nor in pip's nvidia packages"
  else
    run "$1" "$2" "$3" "$program" "${quick[@]}" --out "$work/$2.json"
  fi
}

missing_libraries() {
  command -v ldd >/dev/null || return 0
  LD_LIBRARY_PATH=$library_path ldd "$1" 2>/dev/null | sed -n 's/^[[:space:]]*\(.*\) => not found.*/\1/p' | paste -sd ' '
}

sanitizer() {
  local tool
  for tool in "$(command -v compute-sanitizer)" /usr/local/cuda*/bin/compute-sanitizer \
    /usr/local/cuda*/compute-sanitizer/compute-sanitizer; do
    if [[ -x $tool ]]; then printf '%s' "$tool"; return; fi
  done
}

stage() {
  local stage=$1 test name tool filter check missing peer
  stage_ends=$((SECONDS + stage_seconds))
  say ""
  case $stage in
    1)
      say "=== stage 1: kernel tests"
      for test in "$bundle"/bin/tests/*_test; do
        name=$(basename "$test")
        if [[ ! -x $test ]]; then
          skip 1 "kernel tests" "there is none in this bundle"
        elif missing=$(missing_libraries "$test") && [[ -n $missing ]]; then
          skip 1 "$name" "$missing is neither in the CUDA toolkit nor in pip's nvidia packages"
        else
          run 1 "$name" 60 "$test" "${test_options[@]}"
        fi
      done
      ;;
    2) say "=== stage 2: layernorm and its neighbours"; bench 2 rows_bench 90 ;;
    3)
      say "=== stage 3: products and the host"
      bench 3 products_bench 150
      bench 3 host_bench 60
      ;;
    4) say "=== stage 4: attention on mma.sync"; bench 4 attention_bench 120 ;;
    5) say "=== stage 5: attention on wgmma"; bench 5 wgmma_attention_bench 120 ;;
    6)
      say "=== stage 6: compute-sanitizer"
      tool=$(sanitizer)
      if [[ -z $tool ]]; then
        skip 6 compute-sanitizer "it is neither on PATH nor in /usr/local/cuda*"
        return
      fi
      for check in memcheck racecheck; do
        for test in "$bundle"/bin/tests/*_test; do
          name=$(basename "$test")
          [[ -x $test ]] || { skip 6 compute-sanitizer "there is no test in this bundle"; return; }
          filter='*'
          if [[ -f $test.sanitize ]]; then filter=$(<"$test.sanitize"); fi
          if [[ $filter == none ]]; then
            skip 6 "$check $name" "it runs no kernel of ours"
          else
            run 6 "$check $name" 35 "$tool" --tool "$check" --error-exitcode 9 --print-limit 10 \
              "$test" "${test_options[@]}" "--gtest_filter=$filter"
          fi
        done
      done
      ;;
    7)
      say "=== stage 7: the same work in PyTorch"
      if ! python3 -c 'import torch' 2>/dev/null; then
        skip 7 torch "python3 has no module torch"
        return
      fi
      # PyTorch finds its own libraries: the toolkit's must not come before them.
      for peer in "$bundle"/peers/*.py; do
        name=$(basename "$peer" .py)
        if [[ -f $peer ]]; then
          library_path=${LD_LIBRARY_PATH:-} run 7 "$name" 60 python3 "$peer" --out "$work/$name.json"
        fi
      done
      if [[ -z $torch ]]; then
        skip 7 torch "no --torch FILE.py was given"
      elif [[ ! -f $torch ]]; then
        skip 7 torch "there is no $torch"
      else
        library_path=${LD_LIBRARY_PATH:-} run 7 torch "$stage_seconds" \
          python3 "$torch" "${quick[@]}" --out "$work/torch.json"
      fi
      ;;
  esac
}

say "gpu_check $(date -u +%Y-%m-%dT%H:%M:%SZ), bundle $(head -n 1 "$texts/bundle.txt" 2>/dev/null || echo unknown)"
say "system: $(uname -sr), $(getconf GNU_LIBC_VERSION 2>/dev/null), $(nproc 2>/dev/null) processors"
card=$(timeout 20 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,mig.mode.current \
  --format=csv,noheader 2>&1) || { card="nvidia-smi says nothing: ${card:-not found}"; test_options+=(--gtest_fail_fast); }
say "card (name, driver, memory, SM clock, at most, memory clock, power limit, °C, MIG): $card"
for library in libcublasLt.so.13 libcublas.so.13 libcudnn.so.9 libnccl.so.2; do
  folder=$(folder_of "$library")
  say "$library: $(if [[ -n $folder ]]; then readlink -f "$folder/$library"; else echo "not found"; fi)"
done

# After each stage anew, so that a run that is cut off leaves what it had.
write_json() {
  local comma='' entry
  {
    printf '{\n "bundle": %s,\n' "$(quoted "$(cat "$texts/bundle.txt" 2>/dev/null)")"
    printf ' "card": %s,\n "card_afterwards": %s,\n' "$(quoted "$card")" "$(quoted "${after:-}")"
    printf ' "failed": %d,\n "skipped": %d,\n "seconds": %d,\n "programs": [' "$failed" "$skipped" "$SECONDS"
    for entry in "${entries[@]}"; do
      printf '%s\n%s' "$comma" "$entry"
      comma=,
    done
    printf '\n]}\n'
  } >"$out/report.json"
}

for number in "${stages[@]}"; do
  stage "$number"
  write_json
done

after=$(timeout 20 nvidia-smi --query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_event_reasons.active \
  --format=csv,noheader 2>/dev/null)
say ""
say "card afterwards (SM clock, memory clock, °C, power, reasons of its clock): ${after:-unknown}"
say "$((${#entries[@]} - failed - skipped)) passed, $failed failed, $skipped skipped, $SECONDS s"
write_json
((failed == 0))
