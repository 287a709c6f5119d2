# shellcheck shell=bash
# Sourced by the scripts here, which set `root`: sets `gradus` to the program that GRADUS names, or else to
# the one that scripts/test.sh or scripts/quickstart.sh built.
: "${root:?}"
gradus=${GRADUS:-}
for built in "$root/build/release/bin/gradus" "$root/build/quickstart/bin/gradus"; do
  if [ -z "$gradus" ] && [ -x "$built" ]; then gradus=$built; fi
done
if [ -z "$gradus" ]; then
  echo "no program in $root/build: run scripts/quickstart.sh first, or set GRADUS" >&2
  exit 1
fi
