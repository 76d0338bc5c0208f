#!/usr/bin/env bash
# Section 4 of the paper, figure 7 and table 2: magnitude pruning against GPTQ and round-to-nearest, by compression ratio,
# in settings 2 and 3. Each model is compressed once for both settings. The bits are those of the authors' script for
# GPTQ; the paper prints none. llm_sweep.sh says how to change the lists. Runs of low_rank.sh in the same tree are drawn
# in the same figure; `plot_results.py --size plain` draws it by the plain compression ratio instead of bytes.
#
# Calibration is that of the published GPTQ code: 128 windows of 2,048 tokens, each from one document of the first file of
# C4's training text (there a document may be drawn twice, here only after all others). The authors' script for GPTQ takes
# WikiText-2 by default: bash scripts/quantization.sh --calibration wikitext2
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

SETTING=setting2_option_count
SETTINGS="${SETTINGS:-2 3}"
MODEL="${MODEL:-lmsys/vicuna-7b-v1.3}"
COMPRESSIONS="${COMPRESSIONS:-dense magnitude gptq rtn}"
SPARSITIES="${SPARSITIES-0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9}"
NM_RATIOS="${NM_RATIOS-}"
BITS="${BITS-16 14 12 10 8 6 4 3 2}"
MAX_ITEMS="${MAX_ITEMS-1000}" # of each data set; empty: all
SEEDS="${SEEDS:-0}"
OUT="${OUT:-runs/compression_ratio}"

source scripts/llm_sweep.sh
