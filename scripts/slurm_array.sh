#!/usr/bin/env bash
# One task of a Slurm job array: runs its lines of a list that --list_cells printed, one after the other, by bash.
# Submit it from the folder in which the list was made (submit.sh does all of this):
#
#   bash scripts/setting5.sh --list_cells >cells.txt
#   sbatch --array=1-25 --cpus-per-task=4 --mem=32G --time=4:00:00 scripts/slurm_array.sh cells.txt
#   sbatch --array=1-5 … scripts/slurm_array.sh --chunk 5 cells.txt        # five lines per task
#
# A line that fails does not stop the others; the exit code is then 1. GRACE seconds before the time limit (and before a
# preemption, where the site sends the signal) Slurm signals this script: a fine-tuning run saves a checkpoint, any other
# run may still end in the time left, and the task goes back into the queue. When it starts again, it skips complete runs
# and resumes from the checkpoint. After MAX_REQUEUES requeues it fails: a run needs more than the time limit.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail

GRACE="${GRACE:-120}"                 # as in --signal
RESERVE="${RESERVE:-20}"              # seconds of GRACE kept for putting the task back into the queue
MAX_REQUEUES="${MAX_REQUEUES:-20}"
SIGNAL_NUMBER=10                      # USR1 on Linux

stop() {
  echo "slurm_array.sh: $*" >&2
  exit 2
}

chunk=1
if [[ "${1:-}" == --chunk ]]; then
  chunk="${2:-}"
  [[ "$chunk" =~ ^[1-9][0-9]*$ ]] || stop "--chunk '$chunk': a positive number of lines per task"
  shift 2
fi
[[ $# == 1 ]] || stop "usage: sbatch --array=1-N scripts/slurm_array.sh [--chunk LINES] LIST"
[[ -f "$1" ]] || stop "there is no list $1 in $PWD"
[[ "${SLURM_ARRAY_TASK_ID:-}" =~ ^[1-9][0-9]*$ ]] ||
  stop "SLURM_ARRAY_TASK_ID is '${SLURM_ARRAY_TASK_ID:-}': submit a job array that counts from 1, sbatch --array=1-N"

first=$(((SLURM_ARRAY_TASK_ID - 1) * chunk + 1))
mapfile -t lines < <(tail -n "+$first" -- "$1" | head -n "$chunk")
lines=("${lines[@]%$'\r'}") # of a list whose lines end in CRLF
((${#lines[@]})) || stop "$1 has no line $first: --array has more tasks than the list has lines"

# submit.sh has chosen a python; for a list that was submitted by hand from the project root it is chosen here
[[ ! -f scripts/sweep_common.sh ]] || source scripts/sweep_common.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

process="" # of the line that runs

descendants() {
  local child
  for child in $(pgrep -P "$1"); do
    echo "$child"
    descendants "$child"
  done
}

# Only to processes that handle the signal; it would kill others: a launcher, python before and after training.
pass_signal_on() {
  local process caught
  for process in "$1" $(descendants "$1"); do
    caught="$(sed -n 's/^SigCgt:\s*//p' "/proc/$process/status" 2>/dev/null)" || continue
    if ((16#${caught:-0} >> (SIGNAL_NUMBER - 1) & 1)); then
      kill -USR1 "$process" 2>/dev/null || true
    fi
  done
}

# The time is nearly over: let the line end or save a checkpoint, then requeue the task.
leave() {
  local deadline=$((SECONDS + GRACE - RESERVE))
  while [[ -n "$process" ]] && kill -0 "$process" 2>/dev/null && ((SECONDS < deadline)); do
    pass_signal_on "$process" # repeatedly: a training may have begun since
    sleep 1
  done
  ((${SLURM_RESTART_COUNT:-0} < MAX_REQUEUES)) ||
    stop "back in the queue $MAX_REQUEUES times already; does a run need more than the time limit?"
  echo "slurm_array.sh: the task goes back into the queue" >&2
  # not SLURM_JOB_ID: of one task of an array that is the id of the whole array
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" ||
    stop "it cannot be put back into the queue (see above); submit the list again, it goes on where this stopped"
  sleep 60 # until Slurm ends it
  exit 143
}

# Slurm sends TERM to all processes of a job that it ends; a training then saves its checkpoint.
end() {
  [[ -z "$process" ]] || wait "$process" || true
  exit 143
}

trap leave USR1
trap end TERM

failed=0
for line in "${lines[@]}"; do
  code=0
  bash -c "$line" &
  process=$!
  wait "$process" || code=$?
  process=""
  if ((code != 0)); then
    echo "slurm_array.sh: exit code $code of: $line" >&2
    failed=$((failed + 1))
  fi
done
echo "slurm_array.sh: ${#lines[@]} lines, $failed failed"
((failed == 0)) || exit 1
