#!/usr/bin/env bash
# Installs what is missing and runs the tests; arguments go to pytest, with paths relative to the project root.
#
#   bash scripts/run_tests.sh
#   bash scripts/run_tests.sh tests/pruning/test_masks.py -x
#   bash scripts/run_tests.sh -m assets               # the tests that download the default assets
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
cd "$project_root"
# the tests of a file run in one process, since they share fixtures; with one thread, else processes slow each other
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
