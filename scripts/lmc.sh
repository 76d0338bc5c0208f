#!/usr/bin/env bash
# Appendix C of the paper: are the solutions of Dense and Sparse Transfer in one basin? QQP v. STS-B, QNLI v. RTE.
# Trains and saves the models at the ends (OUT/models), measures loss and score on the lines between them (OUT/lines),
# and draws all figures. glue_sweep.sh says how to change the lists; PAIRS, POINTS and TRAIN_ROWS belong to the lines:
#
#   TASKS="qqp stsb" SPARSITIES="0.5 0.7" POINTS=31 bash scripts/lmc.sh --max_train_samples 4000
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

MODEL="${MODEL:-roberta-large}"
TASKS="${TASKS:-qqp stsb qnli rte}"
SEEDS="${SEEDS:-41 42}" # two or more: dense-dense joins each with the next
FRACTIONS="${FRACTIONS:-100}"
TRANSFERS="dense_transfer sparse_transfer"
SPARSITIES="${SPARSITIES-0.1 0.3 0.5 0.7}" # empty: none
NM_RATIOS="${NM_RATIOS-}"                  # N kept of M; empty: none
PAIRS="${PAIRS:-dense-sparse dense-pruned dense-dense}"
POINTS="${POINTS:-21}"           # points on a line, both ends counted
TRAIN_ROWS="${TRAIN_ROWS:-1000}" # training rows that the training loss is measured on
MAX_LENGTH="${MAX_LENGTH:-128}"
BATCH_SIZE="${BATCH_SIZE:-32}"
LEARNING_RATE="${LEARNING_RATE:-2e-5}"
EPOCHS="${EPOCHS:-3}"
TREE="${OUT:-runs/lmc}"
OUT="$TREE/models"

source scripts/glue_sweep.sh --save_model "$@"

# Lines need trained models, so --list_cells lists the training only.
if [[ " $* " != *" --list_cells "* && " $* " != *" --dry_run "* ]]; then
  of_lines=() # the arguments that are the lines' too
  for word in "$@"; do
    [[ "$word" != --overwrite && "$word" != --trust_remote_code ]] || of_lines+=("$word")
  done
  python GLUE_tasks/Glue_interpolate.py --results_dir "$OUT" --task_name $TASKS --pairs $PAIRS \
    --num_points "$POINTS" --max_train_samples "$TRAIN_ROWS" \
    --output_dir "$TREE/lines/{task_name}/{pair}/{strength}/{fraction}/{seed}" "${of_lines[@]}"
  python scripts/plot_results.py --results_dir "$TREE" --output_dir "$TREE/figures"
else
  echo "lmc.sh: the list is that of the training; once it is done, bash scripts/lmc.sh measures the lines" >&2
fi
