# Sourced by setting2.sh to setting6.sh, quantization.sh and low_rank.sh, which give the variables their defaults: runs
# the sweep, draws its figures. Every variable can be set by the caller: MODEL COMPRESSIONS SPARSITIES NM_RATIOS BITS
# RANKS SEEDS OUT, DATA_DIR for data that is not the hub's, and SETTINGS ("2 3") to measure every compressed model in
# several. One seed, as in the paper; several draw several calibration texts and, where a setting draws options, sentences
# or examples, several of these. Arguments go to the main script:
#
#   COMPRESSIONS="dense magnitude" NM_RATIOS= bash scripts/setting5.sh --max_items 500
#   bash scripts/setting2.sh --list_cells | xargs -P 4 -d '\n' -n 1 bash -c

[[ -n "${sweep_caller:-}" ]] || source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

# the Vicunas are published as .bin alone
[[ "$MODEL" != lmsys/vicuna-* ]] || set -- --weights bin "$@"

python "llm_tasks/$SETTING.py" \
  --model_name_or_path "$MODEL" ${DATA_DIR:+--data_dir "$DATA_DIR"} \
  ${SETTINGS:+--settings $SETTINGS} --compression $COMPRESSIONS \
  ${SPARSITIES:+--sparsity $SPARSITIES} ${NM_RATIOS:+--nm_ratio $NM_RATIOS} \
  ${BITS:+--bits $BITS} ${RANKS:+--rank $RANKS} --seed $SEEDS \
  --output_dir "$OUT/${SETTINGS:+{setting\}/}{compression}/{strength}/{seed}" "$@"

if [[ " $* " != *" --list_cells "* ]]; then
  python scripts/plot_results.py --results_dir "$OUT" --output_dir "$OUT/figures"
fi
