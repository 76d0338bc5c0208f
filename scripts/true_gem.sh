#!/usr/bin/env bash
# Section 5 of the paper: are pretrained magnitude values the true gem? The four transfers compared, within a task by the
# amount of training data (figure 8) and across tasks (figure 9). Both are in setting1_four_transfers, a panel for each
# task and amount of data; figure 9 is the panels of 100 %.
# Lists and hyper-parameters as the original's README prints them, those of multiple choice as fairseq has them for
# CommonsenseQA; glue_sweep.sh says how to change them. TASKS= or MCQ_TASKS= leaves out GLUE or multiple choice.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

MODEL="${MODEL:-roberta-large}"
TASKS="${TASKS-qnli sst2 mnli cola}"
MCQ_TASKS="${MCQ_TASKS-commonsense_qa winogrande}"
SEEDS="${SEEDS:-41 42 43}"
FRACTIONS="${FRACTIONS:-10 50 100}" # per cent of the training set
TRANSFERS="${TRANSFERS:-dense_transfer dense_transfer_freezing sparse_transfer sparse_to_dense}"
SPARSITIES="${SPARSITIES-0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9}" # empty: none
NM_RATIOS="${NM_RATIOS-7:8 6:8 5:8 4:8 3:8 2:8 1:8}"           # N kept of M; empty: none
MAX_LENGTH="${MAX_LENGTH:-512}"
BATCH_SIZE="${BATCH_SIZE:-16}"
LEARNING_RATE="${LEARNING_RATE:-2e-5}"
EPOCHS="${EPOCHS:-3}"
MCQ_BATCH_SIZE="${MCQ_BATCH_SIZE:-16}"
MCQ_LEARNING_RATE="${MCQ_LEARNING_RATE:-1e-5}"
MCQ_EPOCHS="${MCQ_EPOCHS:-5}"
OUT="${OUT:-runs/true_gem}"

source scripts/glue_sweep.sh
