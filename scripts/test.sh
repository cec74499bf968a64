#!/usr/bin/env bash
# Static checks, then the whole test suite. Arguments go to pytest:
#   ./scripts/test.sh tests/engine/test_order.py -k resume
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
"$here/check.sh"
# shellcheck source=scripts/_environment.sh
source "$here/_environment.sh"

# A disk that fills up fails hundreds of tests, none of which is to blame.
if [ $# = 0 ]; then
  room="${TMPDIR:-/tmp}"
  room_gb=$(($(df --output=avail -k "$room" | tail -n 1) / 1000000))
  if [ "$room_gb" -lt 4 ]; then
    echo "$room has $room_gb GB left and all tests need about 4: make room, or set TMPDIR." >&2
    exit 1
  fi
fi

# Two files at a time, on two cores: half of the tests keep one busy, the others wait for up to four
# processes of their own, for servers, for SLURM. On a large machine: TEST_WORKERS=8 ./scripts/test.sh
say "tests"
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest --numprocesses "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder \
  --durations=25 "$@"
