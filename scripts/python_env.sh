#!/usr/bin/env bash
# Makes the Python environment of tests/golden/make_goldens.py and the PyTorch peer of bench/, from the
# pinned tests/golden/requirements.txt. Neither the build nor any test needs it.
# GRADUS_VENV names the environment (default: .venv in the repository). Does nothing where it is complete.
# Prints the path of its python on stdout and everything else on stderr.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${GRADUS_VENV:-$root/.venv}"
requirements="$root/tests/golden/requirements.txt"

# Compares what is installed with the pins; a local version label (2.5.1+cu124) is the same release.
complete() {
  [[ -x "$venv/bin/python" ]] && "$venv/bin/python" - "$requirements" <<'PYTHON'
import importlib.metadata
import sys

for line in open(sys.argv[1]):
    pin = line.split("#")[0].strip()
    if not pin:
        continue
    name, version = pin.split("==")
    try:
        installed = importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"{name} is missing")
    if installed != version:
        sys.exit(f"{name} is {installed}, pinned {version}")
PYTHON
}

if ! complete >&2; then
  python="${PYTHON:-python3}"
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    echo "python_env.sh: $python cannot make virtual environments; on Debian: apt-get install python3-venv" >&2
    exit 1
  fi
  echo "python_env.sh: installing into $venv (PyTorch's wheels are about 3 GB)" >&2
  [[ -x "$venv/bin/python" ]] || "$python" -m venv "$venv" >&2
  "$venv/bin/python" -m pip install --disable-pip-version-check -r "$requirements" >&2
  complete >&2
fi
echo "$venv/bin/python"
