#!/bin/sh
# Create .venv with the versions of constraints.txt, or do nothing where that is done. Safe to interrupt and to run again.
#   PYTHON       the Python to use; else the first of python3.14 ... python3.11, python3 that will do
#   TORCH_INDEX  take torch from this index instead of the default one
set -eu
cd "$(dirname "$0")/.."
venv=.venv
stamp=$venv/.stage_modules # written last, so that an interrupted install has none

# What was asked for: where the checkout lies, what is to be installed, and which torch.
wanted=$(printf '%s\n' "$PWD"; cat constraints.txt settings.ini setup.py pyproject.toml tools/overrides.json)
wanted=$(printf '%s' "$wanted" | cksum)
had='' before=''
if [ -f "$stamp" ]; then had=$(sed -n 1p "$stamp") before=$(sed -n 2p "$stamp"); fi
index=${TORCH_INDEX:-$before} # stay with the torch that was chosen
if [ -n "$had" ] && [ "$had" = "$wanted" ] && [ "$before" = "$index" ] && [ -x $venv/bin/python ]; then exit 0; fi

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
if [ -n "${PYTHON:-}" ]; then
  command -v "$PYTHON" >/dev/null 2>&1 || { echo "PYTHON=$PYTHON: no such command; Python 3.11 or newer is needed." >&2; exit 1; }
  new_enough "$PYTHON" || { echo "PYTHON=$PYTHON is $("$PYTHON" --version 2>/dev/null || echo "no working Python"); Python 3.11 or newer is needed." >&2; exit 1; }
else
  for PYTHON in python3.14 python3.13 python3.12 python3.11 python3 none; do
    if command -v "$PYTHON" >/dev/null 2>&1 && new_enough "$PYTHON"; then break; fi
  done
  if [ "$PYTHON" = none ]; then
    found=$(python3 --version 2>/dev/null || echo "no python3")
    echo "Python 3.11 or newer is needed, and this machine has $found; install one, or name one: make test PYTHON=/path/to/python3.12" >&2
    exit 1
  fi
fi

# An environment that was made half, or that was moved here, does not answer with its own place: make it anew.
case "$($venv/bin/pip --version 2>/dev/null || true)" in
*" $(pwd -P)/$venv/"*) ;;
*)
  echo "Creating $venv with $("$PYTHON" --version)"
  "$PYTHON" -m venv --clear $venv || { echo "$PYTHON cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; } ;;
esac
rm -f "$stamp"
echo "Installing the pinned versions: minutes, and gigabytes where torch comes with CUDA (README: TORCH_INDEX)"
pip="$venv/bin/python -m pip --disable-pip-version-check -qq"
if [ -n "$index" ]; then
  again=''
  [ "$before" = "$index" ] || again=--force-reinstall # the same version from another index is another build
  $pip install $again --no-deps --index-url "$index" "$(grep '^torch==' constraints.txt)"
fi
$pip install -c constraints.txt setuptools # what builds the package, pinned like the rest
$pip install -c constraints.txt --no-build-isolation -e '.[dev]'
mkdir -p $venv/share/jupyter/lab/settings
cp tools/overrides.json $venv/share/jupyter/lab/settings/overrides.json # JupyterLab's defaults for this course
printf '%s\n%s\n' "$wanted" "$index" > "$stamp"
