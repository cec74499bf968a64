#!/usr/bin/env bash
# OXA end to end on a real small model, on this machine: installs what is missing, then runs
# examples/quickstart_cpu/oxa.yaml and prints its table. Further arguments go to `mreason run`.
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
exec .venv/bin/mreason run examples/quickstart_cpu/oxa.yaml "$@"
