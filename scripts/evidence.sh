#!/usr/bin/env bash
# The paper's questions put to a language model that knows something and needs no hub: Qwen2.5-Coder-1.5B-Instruct, in
# float32, so that every machine makes the same numbers to rounding. A cell of setting 5 takes about 20 minutes of two
# CPU cores, and is kept when it is done: stop it at any time, the same command goes on. Images_png/README.md has what was
# found so far.
#
#   bash scripts/evidence.sh                          # what is missing, then the figures
#   bash scripts/evidence.sh --list_cells             # one command for every cell
#   STAGES="setting5" ITEMS=150 SPARSITIES="0.3 0.5" METHODS= OUT=runs/small bash scripts/evidence.sh
#
# ITEMS of each data set: 500 have a standard error of 2.2 points, and one of a drop of about 2 (a quarter of the answers
# flips). SUBJECTS are every fifth of MMLU's 57. Options' texts are scored, by log-likelihood per character, without
# examples: far fewer tokens than letters after five examples.
set -euo pipefail

source "$(dirname -- "${BASH_SOURCE[0]}")/sweep_common.sh"

JUNK_DNA_DIR="${JUNK_DNA_DIR:-${HOME:?set HOME or JUNK_DNA_DIR}/.cache/junk_dna}"
MODEL="${MODEL:-$JUNK_DNA_DIR/models/Qwen2.5-Coder-1.5B-Instruct}"
DATA_DIR="${DATA_DIR:-$JUNK_DNA_DIR/data}"
STAGES="${STAGES:-setting5 setting2 setting6}"
SPARSITIES="${SPARSITIES:-0.14 0.2 0.3 0.4 0.5}" # of magnitude
METHODS="${METHODS-wanda sparsegpt gptq}"        # beside it, methods that prune, gptq and rtn; empty: none
ITEMS="${ITEMS:-500}"
SUBJECTS="${SUBJECTS:-abstract_algebra college_biology college_physics elementary_mathematics \
high_school_computer_science high_school_mathematics high_school_us_history jurisprudence medical_genetics philosophy \
professional_psychology virology}"
OUT="${OUT:-runs/evidence}"
cloze=(--answer_mode cloze --length_normalized)

for stage in $STAGES; do
  [[ " setting5 setting2 setting6 " == *" $stage "* ]] ||
    { echo "STAGES=\"$STAGES\": $stage is none of setting5, setting2, setting6" >&2 && exit 1; }
done
if [[ " $* " != *" --list_cells "* && " $* " != *" --dry_run "* ]]; then
  python scripts/fetch_default_assets.py --only data large_lm --dir "$JUNK_DNA_DIR"
fi

# measure SCRIPT OPTIONS...: the dense model and magnitude, then each of the other methods
measure() {
  local method strengths measured=(python "llm_tasks/$1.py" --model_name_or_path "$MODEL" --data_dir "$DATA_DIR"
    --dtype float32 --precision no --max_items "$ITEMS" --output_dir "$OUT/{setting}/{compression}/{strength}" "${@:2}")
  "${measured[@]}" --compression dense magnitude --sparsity $SPARSITIES
  for method in $METHODS; do
    case "$method" in
      gptq | rtn) strengths=(--bits 4 3 2) ;;
      *) strengths=(--sparsity 0.3 0.5 0.6 --nm_ratio 6:8 2:4) ;;
    esac
    [[ "$method" == rtn ]] || strengths+=(--nsamples 32 --calibration_length 512
      --calibration "$DATA_DIR/boolq/validation.jsonl.gz" --calibration_field passage)
    "${measured[@]}" --compression "$method" "${strengths[@]}"
  done
}

for stage in $STAGES; do
  case "$stage" in
    setting5) measure setting5_human_gap --tasks piqa commonsense_qa openbookqa "${cloze[@]}" "$@" ;;
    setting2) measure setting2_option_count --subjects $SUBJECTS --num_shots 0 "${cloze[@]}" "$@" ;;
    setting6)
      measure setting6_factoid_vs_mcq --factoid_dataset triviaqa --subjects $SUBJECTS --num_shots 0 "${cloze[@]}" "$@"
      ;;
  esac
done

if [[ " $* " != *" --list_cells "* && " $* " != *" --dry_run "* ]]; then
  python scripts/plot_results.py --results_dir "$OUT" --output_dir "$OUT/figures"
fi
