# Sourced by setting1.sh, true_gem.sh and lmc.sh, which set defaults of its variables: runs the sweep and draws its
# figures. The caller may set every variable: MODEL TASKS SEEDS FRACTIONS TRANSFERS SPARSITIES NM_RATIOS MAX_LENGTH
# BATCH_SIZE LEARNING_RATE EPOCHS OUT, and DATA_DIR for local data; true_gem.sh also has MCQ_TASKS
# MCQ_BATCH_SIZE MCQ_LEARNING_RATE MCQ_EPOCHS and MCQ_TRAIN_SPLIT. Arguments go to the Python scripts:
#
#   SEEDS="41 42" bash scripts/setting1.sh --max_train_samples 4000
#   bash scripts/setting1.sh --list_cells | xargs -P 4 -d '\n' -n 1 bash -c

[[ -n "${sweep_caller:-}" ]] || source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

# sweep SCRIPT BATCH_SIZE LEARNING_RATE EPOCHS OPTIONS...
sweep() {
  python "GLUE_tasks/$1" \
    --model_name_or_path "$MODEL" ${DATA_DIR:+--data_dir "$DATA_DIR"} \
    --sparse_method $TRANSFERS --noembed \
    ${SPARSITIES:+--sparsity $SPARSITIES} ${NM_RATIOS:+--nm_ratio $NM_RATIOS} \
    --validation_split_percentage $FRACTIONS --seed $SEEDS --max_length "$MAX_LENGTH" \
    --per_device_train_batch_size "$2" --learning_rate "$3" --num_train_epochs "$4" \
    --output_dir "$OUT/{task_name}/{transfer}/{strength}/{fraction}/{seed}" "${@:5}"
}

if [[ -n "$TASKS" ]]; then
  sweep Glue_prune_oneshot.py "$BATCH_SIZE" "$LEARNING_RATE" "$EPOCHS" --task_name $TASKS "$@"
fi
if [[ -n "${MCQ_TASKS:-}" ]]; then
  sweep Mcq_prune_oneshot.py "$MCQ_BATCH_SIZE" "$MCQ_LEARNING_RATE" "$MCQ_EPOCHS" --task_name $MCQ_TASKS \
    ${MCQ_TRAIN_SPLIT:+--train_split $MCQ_TRAIN_SPLIT} "$@"
fi

if [[ " $* " != *" --list_cells "* && " $* " != *" --dry_run "* ]]; then
  python scripts/plot_results.py --results_dir "$OUT" --output_dir "$OUT/figures"
fi
