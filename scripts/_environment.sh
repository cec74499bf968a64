# Sourced by the other scripts: makes .venv with the locked dependencies, once per lock.
# Sets PYTHON to the environment's interpreter. Safe to interrupt: an environment without its
# stamp is made anew.
# shellcheck shell=bash

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
PYTHON="$root/.venv/bin/python"

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }

if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
  flavour=gpu
else
  flavour=cpu
fi
lock="scripts/locks/$flavour.txt"
stamp=".venv/.made-from"
wanted="$flavour $(cat "$lock" pyproject.toml | sha256sum | cut -c1-16)"

install_failed() {
  cat >&2 <<TEXT

The installation of $lock failed; what pip printed above says where.
  - No matching distribution for torch: pip's index has no CPU build. Set PIP_EXTRA_INDEX_URL to
    PyTorch's CPU wheel index (see "Get started" on pytorch.org: Linux, Pip, CPU) and try again.
  - A package must be compiled: install gcc and the Python headers (Debian: build-essential
    python3-dev) and try again.
TEXT
  exit 1
}

make_environment() {
  local base
  base="$(command -v python3.11 || command -v python3)"
  if ! "$base" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    echo "Python 3.11 is needed; $base is $("$base" --version 2>&1). Install python3.11." >&2
    exit 1
  fi
  say "making .venv ($flavour) from $lock, a few minutes and 4 GB, once"
  rm -rf .venv
  "$base" -m venv .venv
  "$PYTHON" -m pip install --quiet --upgrade-strategy only-if-needed \
    "$(grep '^setuptools==' "$lock")" || install_failed
  if [ "$flavour" = cpu ]; then
    "$PYTHON" -m pip install --quiet --no-deps --requirement "$lock" || install_failed
  else
    "$PYTHON" -m pip install --requirement "$lock" || install_failed
  fi
  "$PYTHON" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec >/dev/null 2>&1 || true
  "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation --editable . || install_failed
  printf '%s\n' "$wanted" >"$stamp"
}

if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  make_environment
fi
export PYTHONUNBUFFERED=1
