#!/usr/bin/env bash
# Installs what is missing and runs the tests; arguments go to pytest, their paths seen from the project root.
#
#   bash scripts/run_tests.sh
#   bash scripts/run_tests.sh tests/test_masks.py -x
#   bash scripts/run_tests.sh -m assets               # the tests that download the default assets
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
cd "$project_root"
python -m pytest "$@"
