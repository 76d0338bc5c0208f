#!/usr/bin/env bash
# Setting 1 of the paper, figure 1: Sparse Transfer against Dense Transfer as training data become scarce.
# Lists and hyper-parameters as the original's README prints them; glue_sweep.sh says how to change them. Table 1 of the
# paper counts six amounts of data, which it does not name: FRACTIONS="5 10 25 50 75 100" has six.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

MODEL="${MODEL:-roberta-base}"
TASKS="${TASKS:-qnli sst2 mnli}"
SEEDS="${SEEDS:-41 42 43}"
FRACTIONS="${FRACTIONS:-10 25 50 75 100}" # per cent of the training set
TRANSFERS="${TRANSFERS:-dense_transfer sparse_transfer}"
SPARSITIES="${SPARSITIES-0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9}" # empty: none
NM_RATIOS="${NM_RATIOS-7:8 6:8 5:8 4:8 3:8 2:8 1:8}"           # N kept of M; empty: none
MAX_LENGTH="${MAX_LENGTH:-128}"
BATCH_SIZE="${BATCH_SIZE:-32}"
LEARNING_RATE="${LEARNING_RATE:-2e-5}"
EPOCHS="${EPOCHS:-3}"
OUT="${OUT:-runs/setting1}"

source scripts/glue_sweep.sh
