#!/usr/bin/env bash
# Everything that can be said about the code without running it.
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname "$0")/_environment.sh"
say "ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
say "layers"
.venv/bin/lint-imports --no-cache
say "house rules"
"$PYTHON" tools/check_rules.py
say "types"
.venv/bin/basedpyright
