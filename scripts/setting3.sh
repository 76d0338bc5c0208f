#!/usr/bin/env bash
# Setting 3 of the paper, figure 3: TriviaQA with all or a part of the context, and without it.
# Six levels: 20, 40, 60, 80 and 100 % of the text, and none. Table 1 of the paper counts five, table 2 names four (20, 60,
# 100 %, none): bash scripts/setting3.sh --context_shares 20 40 60 100 has five. The paper's lists; llm_sweep.sh says how
# to change them.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

SETTING=setting3_context_length
MODEL="${MODEL:-lmsys/vicuna-7b-v1.3}"
COMPRESSIONS="${COMPRESSIONS:-dense magnitude wanda sparsegpt}"
SPARSITIES="${SPARSITIES-0.1 0.14 0.2 0.3 0.4 0.5 0.6 0.7 0.8}" # empty: none
NM_RATIOS="${NM_RATIOS-7:8 6:8 5:8 4:8 3:8 2:8 1:8}"       # N kept of M; empty: none
MAX_ITEMS="${MAX_ITEMS-1000}"                              # questions; empty: all
SEEDS="${SEEDS:-0}"
OUT="${OUT:-runs/setting3}"

source scripts/llm_sweep.sh
