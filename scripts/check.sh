#!/usr/bin/env bash
# Everything that can be said about the code without running it. Goes on after a failure and ends
# with the names of the checks that failed.
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

failed=()
check() {
  local name="$1"
  shift
  say "$name"
  "$@" || failed+=("$name")
}

check "ruff: faults" .venv/bin/ruff check .
check "ruff: layout" .venv/bin/ruff format --check .
check "import-linter: which room may look where" .venv/bin/lint-imports --no-cache --no-logo
check "house rules" "$PYTHON" tools/check_rules.py
check "basedpyright: types" .venv/bin/basedpyright --pythonpath "$PYTHON"

if [ "${#failed[@]}" -gt 0 ]; then
  printf 'FAILED  %s\n' "${failed[@]}" >&2
  exit 1
fi
