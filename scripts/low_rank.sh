#!/usr/bin/env bash
# Appendix E of the paper: low rank in settings 2 and 3, at ranks 4000 to 100 of Vicuna-7B's 4096. Below rank 2048 (2985
# in the feed-forward layers) the two factors have fewer parameters than the matrix. Smaller models need other RANKS.
# Each model is compressed once for both settings. llm_sweep.sh says how to change the lists. Runs of quantization.sh in
# the same tree are drawn in the same figure.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

SETTING=setting2_option_count
SETTINGS="${SETTINGS:-2 3}"
MODEL="${MODEL:-lmsys/vicuna-7b-v1.3}"
COMPRESSIONS="${COMPRESSIONS:-dense low_rank}"
SPARSITIES="${SPARSITIES-}"
NM_RATIOS="${NM_RATIOS-}"
RANKS="${RANKS-4000 3500 3000 2500 2000 1500 1000 500 100}"
MAX_ITEMS="${MAX_ITEMS-1000}" # of each data set; empty: all
SEEDS="${SEEDS:-0}"
OUT="${OUT:-runs/compression_ratio}"

source scripts/llm_sweep.sh
