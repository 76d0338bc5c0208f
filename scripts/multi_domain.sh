#!/usr/bin/env bash
# Multi-domain learning ("Majority v.s. Minority" of the paper's first version): one encoder, an uneven mixture of
# domains, scored on each. The domains are the default assets' four sets of rated sentences. Every mixture names its
# majority domain; the others divide the rest. Two mixtures with different majorities separate the effect of a domain's
# share from its difficulty.
#
#   SEEDS="41 42" bash scripts/multi_domain.sh --max_eval_samples 400
#   bash scripts/multi_domain.sh --list_cells | xargs -P 4 -d '\n' -n 1 bash -c
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

MODEL="${MODEL:-$HOME/.cache/junk_dna/models/all-MiniLM-L6-v2}"
DATA_DIR="${DATA_DIR:-$HOME/.cache/junk_dna/data}" # DATA_DIR/TASK/<domain>/{train,validation}.jsonl[.gz]
TASK="${TASK:-rated_sentences}"
MIXTURES="${MIXTURES:-movie_reviews=0.7 tweets=0.7}"
ROWS="${ROWS:-2500}" # training rows of every mixture
SEEDS="${SEEDS:-41 42 43}"
TRANSFERS="${TRANSFERS:-dense_transfer sparse_transfer}"
SPARSITIES="${SPARSITIES-0.3 0.5 0.7 0.9}" # empty: none
NM_RATIOS="${NM_RATIOS-}"                  # N kept of M; empty: none
MAX_LENGTH="${MAX_LENGTH:-64}"
BATCH_SIZE="${BATCH_SIZE:-32}"
LEARNING_RATE="${LEARNING_RATE:-1e-4}"
EPOCHS="${EPOCHS:-2}"
OUT="${OUT:-runs/multi_domain}"

SCRIPT=Domains_prune_oneshot.py
CONDITION=mixture
OPTIONS=(--data_dir "$DATA_DIR" --task_name "$TASK" --mixture $MIXTURES --max_train_samples "$ROWS" --balanced_validation)

source scripts/domain_sweep.sh
