#!/usr/bin/env bash
# Where the hard knowledge lives: one block of the model compressed at a time, in settings 2 and 5. The figure is a heat
# map of blocks and levels with the drop of each, and a mark where it is surely not 0. LAYERS lists the blocks; names
# compress one kind of weight at a time instead:
#
#   LAYERS="q_proj k_proj v_proj o_proj gate_proj up_proj down_proj" bash scripts/sensitivity.sh
#
# docs/layers.md says how layers are written, llm_sweep.sh how to change the other lists. One command does all blocks of a
# model with one load; `--list_cells` gives one command for each.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

SETTING=setting2_option_count
SETTINGS="${SETTINGS:-2 5}"
MODEL="${MODEL:-lmsys/vicuna-7b-v1.3}"
LAYERS="${LAYERS:-$(seq -s " " 0 31)}" # the blocks of Vicuna-7B
COMPRESSIONS="${COMPRESSIONS:-dense magnitude}"
SPARSITIES="${SPARSITIES-0.5}"
NM_RATIOS="${NM_RATIOS-}"
MAX_ITEMS="${MAX_ITEMS-1000}" # of each data set; empty: all
SEEDS="${SEEDS:-0}"
OUT="${OUT:-runs/sensitivity}"

source scripts/llm_sweep.sh
