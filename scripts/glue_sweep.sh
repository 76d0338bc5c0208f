# Sourced by setting1.sh and true_gem.sh, which give the variables their defaults: runs the sweep, draws its figures.
# Every variable can be set by the caller: MODEL TASKS SEEDS FRACTIONS TRANSFERS SPARSITIES NM_RATIOS MAX_LENGTH
# BATCH_SIZE LEARNING_RATE EPOCHS OUT, and DATA_DIR for data that is not the hub's. Arguments go to the main script:
#
#   SEEDS="41 42" bash scripts/setting1.sh --max_train_samples 4000
#   bash scripts/setting1.sh --list_cells | xargs -P 4 -d '\n' -n 1 bash -c

cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
# without an active environment, that of quickstart.sh
[[ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" || ! -d .venv ]] || PATH="$PWD/.venv/bin:$PATH"

python GLUE_tasks/Glue_prune_oneshot.py \
  --model_name_or_path "$MODEL" --task_name $TASKS ${DATA_DIR:+--data_dir "$DATA_DIR"} \
  --sparse_method $TRANSFERS --noembed \
  ${SPARSITIES:+--sparsity $SPARSITIES} ${NM_RATIOS:+--nm_ratio $NM_RATIOS} \
  --validation_split_percentage $FRACTIONS --seed $SEEDS \
  --max_length "$MAX_LENGTH" --per_device_train_batch_size "$BATCH_SIZE" \
  --learning_rate "$LEARNING_RATE" --num_train_epochs "$EPOCHS" \
  --output_dir "$OUT/{task_name}/{transfer}/{strength}/{fraction}/{seed}" "$@"

if [[ " $* " != *" --list_cells "* ]]; then
  python scripts/plot_results.py --results_dir "$OUT" --output_dir "$OUT/figures"
fi
