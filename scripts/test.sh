#!/usr/bin/env bash
# Static checks, then the whole test suite. Arguments go to pytest:
#   ./scripts/test.sh tests/engine/test_order.py -k resume
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
"$here/check.sh"
# shellcheck source=scripts/_environment.sh
source "$here/_environment.sh"

# Two files at a time: half of the tests keep a single core busy, the others start up to four
# processes of their own. On a large machine: TEST_WORKERS=8 ./scripts/test.sh
say "tests"
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest --numprocesses "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder \
  --durations=25 "$@"
