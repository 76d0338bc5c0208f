# Sourced by multi_domain.sh and translation.sh: runs a sweep and draws its figures. They set SCRIPT, the options that
# only this script has (OPTIONS), and defaults of all other variables, which the caller may set. Arguments go to SCRIPT.

[[ -n "${sweep_caller:-}" ]] || source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

python "GLUE_tasks/$SCRIPT" \
  --model_name_or_path "$MODEL" "${OPTIONS[@]}" --sparse_method $TRANSFERS --noembed \
  ${SPARSITIES:+--sparsity $SPARSITIES} ${NM_RATIOS:+--nm_ratio $NM_RATIOS} --seed $SEEDS \
  --max_length "$MAX_LENGTH" --per_device_train_batch_size "$BATCH_SIZE" \
  --learning_rate "$LEARNING_RATE" --num_train_epochs "$EPOCHS" \
  --output_dir "$OUT/{task_name}/{$CONDITION}/{transfer}/{strength}/{seed}" "$@"

if [[ " $* " != *" --list_cells "* && " $* " != *" --dry_run "* ]]; then
  python scripts/plot_results.py --results_dir "$OUT" --output_dir "$OUT/figures"
fi
