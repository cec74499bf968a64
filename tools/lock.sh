#!/usr/bin/env bash
# Rewrites scripts/locks/cpu.txt from the packages in .venv, after you changed them with pip.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=scripts/locks/cpu.txt
{
  grep '^#' "$lock"
  .venv/bin/python -m pip freeze --all --exclude-editable |
    grep -v -E '^(pip|torchvision|torchaudio|torchcodec)=='
} >"$lock.new"
mv "$lock.new" "$lock"
git --no-pager diff --stat -- "$lock"
