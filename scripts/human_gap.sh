#!/usr/bin/env bash
# Appendix B and figure 9 of the paper: an easy and a hard task of each of four categories, by how far people are ahead
# of the dense model; section 5's models and hyper-parameters. glue_sweep.sh says how to change the lists.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

export TASKS="${TASKS-sst2 cola qqp stsb qnli rte}"
export FRACTIONS="${FRACTIONS:-100}" # per cent of the training set
export TRANSFERS="${TRANSFERS:-dense_transfer sparse_transfer}"
export OUT="${OUT:-runs/human_gap}"

exec bash scripts/true_gem.sh "$@"
