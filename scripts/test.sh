#!/usr/bin/env bash
# Static checks, then the whole test suite. Further arguments go to pytest.
set -euo pipefail
"$(dirname "$0")/check.sh"
# shellcheck source=scripts/_environment.sh
source "$(dirname "$0")/_environment.sh"
say "tests"
exec "$PYTHON" -m pytest --durations=15 "$@"
