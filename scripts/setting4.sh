#!/usr/bin/env bash
# Setting 4 of the paper, figure 4: MMLU with 0, 1, 3 and 5 shots.
# Table 1 of the paper counts four levels, its text goes from 0 to 5: bash scripts/setting4.sh --shots 0 1 2 3 4 5 has all.
# Finer steps around its "14 %": SPARSITIES="0.1 0.12 0.14 0.16 0.2". --shot_split validation takes the examples
# from where the paper does. The paper's lists; llm_sweep.sh says how to change them.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

SETTING=setting4_k_shot
MODEL="${MODEL:-lmsys/vicuna-7b-v1.3}"
COMPRESSIONS="${COMPRESSIONS:-dense magnitude wanda sparsegpt}"
SPARSITIES="${SPARSITIES-0.1 0.14 0.2 0.3 0.4 0.5 0.6 0.7 0.8}" # empty: none
NM_RATIOS="${NM_RATIOS-7:8 6:8 5:8 4:8 3:8 2:8 1:8}"       # N kept of M; empty: none
SEEDS="${SEEDS:-0}"
OUT="${OUT:-runs/setting4}"

source scripts/llm_sweep.sh
