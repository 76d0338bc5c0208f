#!/usr/bin/env bash
# Translation from languages with many and with few sentence pairs ("Majority v.s. Minority" of the paper's first
# version): mBART pruned once, without and with few-shot fine-tuning. Hub model (2.4 GB) and data; a GPU is advised.
#
#   SHOTS=0 SPARSITIES="0.1 0.2 0.3" bash scripts/translation.sh --max_eval_samples 200
#   bash scripts/translation.sh --list_cells | xargs -P 2 -d '\n' -n 1 bash -c
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

MODEL="${MODEL:-facebook/mbart-large-50-many-to-many-mmt}"
DATASET="${DATASET:-Helsinki-NLP/opus-100}"
CONFIGS="${CONFIGS:-de-en en-fr en-gu en-kk}"
PAIRS="${PAIRS:-de_DE-en_XX fr_XX-en_XX gu_IN-en_XX kk_KZ-en_XX}" # by the codes of the model's tokenizer
RESOURCES="${RESOURCES-}" # PAIR=SENTENCES, sentence pairs in pretraining, for every pair or none
SHOTS="${SHOTS:-0 100}"   # training rows of each pair; 0 is no fine-tuning
SEEDS="${SEEDS:-41}"
TRANSFERS="${TRANSFERS:-dense_transfer sparse_transfer}"
SPARSITIES="${SPARSITIES-0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8}"
NM_RATIOS="${NM_RATIOS-7:8 6:8 5:8 4:8 3:8 2:8 1:8}" # N kept of M; empty: none
MAX_LENGTH="${MAX_LENGTH:-128}"
BATCH_SIZE="${BATCH_SIZE:-16}"
LEARNING_RATE="${LEARNING_RATE:-3e-5}"
EPOCHS="${EPOCHS:-3}"
EVAL_SAMPLES="${EVAL_SAMPLES:-500}"
OUT="${OUT:-runs/translation}"

SCRIPT=Translate_prune_oneshot.py
CONDITION=shots
OPTIONS=(--dataset_name "$DATASET" --dataset_config $CONFIGS --eval_split test --pairs $PAIRS
  ${RESOURCES:+--resources $RESOURCES} --shots $SHOTS --max_eval_samples "$EVAL_SAMPLES")

source scripts/domain_sweep.sh
