#!/usr/bin/env bash
# Appendix B of the paper, and setting 4 of its first version: an easy and a hard task in each of five categories, by
# the human gap (how far people are ahead of the dense model). Model and hyper-parameters are those of section 5.
# glue_sweep.sh says how to change the lists. MCQ_TASKS="commonsense_qa winogrande" leaves out arithmetic, for which no
# human score has been published.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

export TASKS="${TASKS-sst2 cola qqp stsb qnli rte}"
export MCQ_TASKS="${MCQ_TASKS-commonsense_qa winogrande mawps svamp}"
export FRACTIONS="${FRACTIONS:-100}" # per cent of the training set
export TRANSFERS="${TRANSFERS:-dense_transfer sparse_transfer}"
export OUT="${OUT:-runs/human_gap}"

exec bash scripts/true_gem.sh "$@"
