#!/usr/bin/env bash
# From a fresh clone to a trained model: installs what is missing, builds, prepares the King James Bible,
# trains configs/kjv_char_cpu.yaml, prints a sample and says where everything is. Run it again and it
# goes on from where it was. Takes no arguments: for other settings, call `gradus train` itself.
# GRADUS_OUTPUT_DIR names another folder than the repository for what is built and trained.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname -- "$0")/common.sh"

gradus=build/quickstart/bin/gradus
config=configs/kjv_char_cpu.yaml

if [ $# -ne 0 ]; then
  echo "quickstart.sh takes no arguments, found: $*" >&2
  echo "For other settings: $gradus train $config KEY=VALUE..." >&2
  exit 2
fi

say() { printf '\n== %s\n' "$*"; }

enter_output_dir build/quickstart data runs
if [ ! -f "$config" ]; then config=$root/$config; fi

say "packages"
bash "$root/scripts/install_dependencies.sh"

say "build"
configure release build/quickstart -DGRADUS_TESTS=OFF -DGRADUS_BENCH=OFF
cmake --build build/quickstart --target gradus

say "corpus: the King James Bible, by character"
# train.bin is what `data prepare` puts into place last.
if [ ! -f data/kjv/train.bin ]; then
  command -v bible >/dev/null || fail "there is no program bible to print the text (Debian's package bible-kjv)"
  bible -f "gen1:1-rev22:21" > data/kjv.txt
  "$gradus" data prepare --tokenizer char --out data/kjv data/kjv.txt
fi
"$gradus" data inspect data/kjv

# gradus answers Ctrl-C by saving, and ends well: without this the script would go on.
trap 'say "not finished: run scripts/quickstart.sh again, and it goes on"; exit 130' INT
say "training $config"
"$gradus" train "$config"

say "a sample"
"$gradus" generate runs/kjv_char_cpu --prompt "In the beginning " --tokens 400 --temperature 0.8 --seed 1

say "where everything is"
cat <<TEXT
folder       $PWD
program      $gradus
corpus       data/kjv.txt, as tokens in data/kjv
metrics      runs/kjv_char_cpu/metrics.jsonl
checkpoints  $(printf '%s ' runs/kjv_char_cpu/checkpoints/step-*)
more text    $gradus generate runs/kjv_char_cpu --prompt "And the " --tokens 400
TEXT
