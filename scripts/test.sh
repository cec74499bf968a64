#!/usr/bin/env bash
# Static checks, then the whole test suite. Arguments go to pytest:
#   ./scripts/test.sh tests/engine/test_order.py -k resume
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
"$here/check.sh"
# shellcheck source=scripts/_environment.sh
source "$here/_environment.sh"

# One test at a time: many start two to four processes of their own, which fills a small machine,
# and the tests of generation share one vLLM engine. On a large one add: -n 8 --dist loadfile
say "tests"
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest --durations=15 "$@"
