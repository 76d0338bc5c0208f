#!/usr/bin/env bash
# Appendix B of the paper, and setting 4 of its first version: an easy and a hard task of each of five categories, by how
# far people are ahead of the dense model; with section 5's model and hyper-parameters. glue_sweep.sh says how to change
# the lists; MCQ_TASKS="commonsense_qa winogrande" leaves out arithmetic, of which nobody has published how well people do.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

export TASKS="${TASKS-sst2 cola qqp stsb qnli rte}"
export MCQ_TASKS="${MCQ_TASKS-commonsense_qa winogrande mawps svamp}"
export FRACTIONS="${FRACTIONS:-100}" # per cent of the training set
export TRANSFERS="${TRANSFERS:-dense_transfer sparse_transfer}"
export OUT="${OUT:-runs/human_gap}"

exec bash scripts/true_gem.sh "$@"
