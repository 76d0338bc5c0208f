# Sourced by setting2.sh to setting6.sh, quantization.sh, low_rank.sh and sensitivity.sh, which set defaults of its
# variables: runs the sweep and draws its figures. The caller may set every variable: MODEL COMPRESSIONS SPARSITIES
# NM_RATIOS BITS RANKS SEEDS OUT, and
#
#   DATA_DIR      folder of local data; empty: the hub
#   SETTINGS      "2 3": measure every compressed model in several settings
#   ANSWER_MODE   how answers are read; empty: as the Python script does. `generate` is the paper's way: the letter is
#                 the token that the model writes. Setting 3, whose answers are always written, takes it too. Another
#                 mode makes other runs: give them another OUT
#   LAYERS        "0 1 0-3 down_proj": compress these weights alone, each a run of its own (docs/layers.md)
#   ALLOCATIONS   "uniform owl": how sparsity is spread over the layers, each a run of its own
#   MAX_ITEMS     size of a fixed sample of each data set; empty: all items. 1000 by default in setting3.sh,
#                 quantization.sh and low_rank.sh, since setting 3's texts are 16 GB, else empty. --max_items among the
#                 arguments overrides it
#
# One seed, as in the paper. Each seed draws its calibration texts and, in settings that draw options, sentences or
# few-shot examples, also these. Arguments go to the Python script:
#
#   COMPRESSIONS="dense magnitude" NM_RATIOS= bash scripts/setting5.sh --max_items 500
#   ANSWER_MODE=generate OUT=runs/setting2_generate bash scripts/setting2.sh
#   bash scripts/setting2.sh --list_cells | xargs -P 4 -d '\n' -n 1 bash -c

[[ -n "${sweep_caller:-}" ]] || source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

# the Vicunas are published as .bin alone
[[ "$MODEL" != lmsys/vicuna-* ]] || set -- --weights bin "$@"

# setting 3 has no options to choose from: its script refuses --answer_mode
measured="${SETTINGS:-${SETTING//[!0-9]/}}"
[[ "$measured" != 3 || "${ANSWER_MODE:-}" != generate ]] || ANSWER_MODE=

python "llm_tasks/$SETTING.py" \
  --model_name_or_path "$MODEL" ${DATA_DIR:+--data_dir "$DATA_DIR"} \
  ${SETTINGS:+--settings $SETTINGS} --compression $COMPRESSIONS \
  ${SPARSITIES:+--sparsity $SPARSITIES} ${NM_RATIOS:+--nm_ratio $NM_RATIOS} \
  ${BITS:+--bits $BITS} ${RANKS:+--rank $RANKS} --seed $SEEDS \
  ${LAYERS:+--only_layers $LAYERS} ${ALLOCATIONS:+--allocation $ALLOCATIONS} \
  ${ANSWER_MODE:+--answer_mode "$ANSWER_MODE"} ${MAX_ITEMS:+--max_items "$MAX_ITEMS"} \
  --output_dir "$OUT/${SETTINGS:+{setting\}/}{compression}/${LAYERS:+{layers\}/}${ALLOCATIONS:+{allocation\}/}{strength}/{seed}" "$@"

if [[ " $* " != *" --list_cells "* && " $* " != *" --dry_run "* ]]; then
  python scripts/plot_results.py --results_dir "$OUT" --output_dir "$OUT/figures"
fi
