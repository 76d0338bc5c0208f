#!/usr/bin/env bash
# Setting 2 of the paper, figure 2: MMLU with 2, 3 and 4 options, 5 shots.
# Table 1 of the paper counts these three levels; a fourth, all questions as published, is in no curve (--no_untouched
# leaves it out). The paper's lists; llm_sweep.sh says how to change them.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

SETTING=setting2_option_count
MODEL="${MODEL:-lmsys/vicuna-7b-v1.3}"
COMPRESSIONS="${COMPRESSIONS:-dense magnitude wanda sparsegpt}"
SPARSITIES="${SPARSITIES-0.1 0.14 0.2 0.3 0.4 0.5 0.6 0.7 0.8}" # empty: none
NM_RATIOS="${NM_RATIOS-7:8 6:8 5:8 4:8 3:8 2:8 1:8}"       # N kept of M; empty: none
SEEDS="${SEEDS:-0}"
OUT="${OUT:-runs/setting2}"

source scripts/llm_sweep.sh
