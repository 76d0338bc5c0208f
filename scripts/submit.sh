#!/usr/bin/env bash
# Submits a sweep to Slurm: a job array that computes the runs that are not complete, then a job that draws figures.
#
#   CPUS=4 GPUS=1 MEM=32G TIME=8:00:00 PARTITION=gpu bash scripts/submit.sh --max_parallel 8 setting5 --max_items 500
#   bash scripts/submit.sh --group_by model,task_name setting1
#
# A sweep is a script that takes --list_cells and writes below OUT: setting1 … setting6, true_gem, human_gap, lmc,
# quantization, low_rank, multi_domain, translation, or your script.
# Arguments after its name go to the sweep; its variables (MODEL, SEEDS, DATA_DIR, OUT, …) are set as for the script
# itself. Submitting again finishes the sweep; --overwrite after its name computes all of it again. Options, before the
# sweep's name:
#
#   --max_parallel N   run at most N tasks at a time (default: the scheduler decides)
#   --chunk N          run N commands in each task, one after the other (default 1; more where the list is longer than an
#                      array may be)
#   --group_by NAMES   give each task all cells with equal values of these, such as model,compression, instead of one cell:
#                      less time goes into loading
#   --dry_run          write the lists, print the sbatch commands, submit nothing; also after the sweep's name
set -euo pipefail

CPUS="${CPUS:-4}"
GPUS="${GPUS:-}"                 # of a task; empty: 1 where the partition has GPUs (sinfo), else 0
MEM="${MEM:-16G}"
TIME="${TIME:-4:00:00}"          # of a task
PARTITION="${PARTITION:-}"       # empty: the default of the site
GRACE="${GRACE:-120}"            # seconds before the end at which a task saves and goes back into the queue
SBATCH_OPTIONS="${SBATCH_OPTIONS:-}" # for example --account=mine --exclude=node7

stop() {
  echo "submit.sh: $*" >&2
  exit 2
}

positive() {
  [[ "$2" =~ ^[1-9][0-9]*$ ]] || stop "$1 '$2': a positive number"
}

max_parallel="" chunk="" group_by="" dry_run=""
while [[ "${1:-}" == --* ]]; do
  case "$1" in
    --max_parallel) positive "$1" "${2:-}" && max_parallel="$2" ;;
    --chunk) positive "$1" "${2:-}" && chunk="$2" ;;
    --group_by) [[ -n "${2:-}" ]] && group_by="$2" || stop "--group_by needs names, for example model,compression" ;;
    --dry_run) dry_run=1 ;;
    *) stop "$1 is no option; there are --max_parallel, --chunk, --group_by, --dry_run; those of a sweep follow its name" ;;
  esac
  [[ "$1" == --dry_run ]] && shift || shift 2
done
[[ $# -ge 1 ]] || stop "usage: bash scripts/submit.sh [OPTIONS] SWEEP [OPTIONS OF THE SWEEP]"
sweep="$1"
shift
options=() # of the sweep
for word in "$@"; do
  case "$word" in
    --dry_run) dry_run=1 ;;
    --list_cells | --help | -h) stop "$word after the sweep's name would submit jobs; give it to the sweep itself" ;;
    *) options+=("$word") ;;
  esac
done
set -- "${options[@]}"
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
[[ "$sweep" == */* ]] || sweep="$root/scripts/${sweep%.sh}.sh"
[[ -f "$sweep" ]] || stop "there is no sweep $sweep"
sweep="$(realpath -- "$sweep")"
[[ "$GPUS" =~ ^[0-9]*$ ]] || stop "GPUS '$GPUS': a number, of GPUs for each task"
! grep -q $'\r$' -- "$sweep" || stop "the lines of $sweep end in CRLF, which bash cannot read; end them in LF"
[[ -n "$dry_run" ]] || command -v sbatch >/dev/null || stop "there is no sbatch here; docs/cluster.md has xargs and parallel"

source "$root/scripts/sweep_common.sh"
if [[ -z "${OUT:-}" ]]; then # the default of the sweep itself, whatever its variable is called
  OUT="$(sed -nE 's/^(export )?[A-Z]+="\$\{OUT:-(.*)\}".*$/\2/p' "$sweep" | head -n 1)"
  [[ "$OUT" != *[\$\`\\]* ]] || stop "the default of OUT in $sweep is made of variables, $OUT; set OUT to the folder it means"
fi
[[ -n "$OUT" ]] || stop "$sweep has no line OUT=\"\${OUT:-FOLDER}\"; set OUT to the folder that it writes to"
export OUT GRACE
for name in MODEL DATA_DIR; do
  [[ -z "${!name:-}" ]] || export "${name?}" # relative to the project root
done

gpus_of_partition() {
  command -v sinfo >/dev/null || return 0
  sinfo --noheader --format='%P %G' ${PARTITION:+"--partition=$PARTITION"} 2>/dev/null |
    awk -v named="$PARTITION" 'named != "" || $1 ~ /\*$/' | grep -m 1 -o gpu || true
}
[[ -n "$GPUS" ]] || GPUS=$([[ -n "$(gpus_of_partition)" ]] && echo 1 || echo 0)

# Each submission has its own lists, since tasks read them when they start.
jobs="$OUT/slurm/$(date +%Y%m%d-%H%M%S)-$$"
mkdir -p -- "$jobs"
bash "$sweep" "$@" --list_cells >"$jobs/cells.txt"
if [[ -n "$group_by" ]]; then
  bash "$sweep" "$@" --list_cells --group_by "$group_by" >"$jobs/tasks.txt"
elif [[ " $* " == *" --overwrite "* ]]; then
  cp -- "$jobs/cells.txt" "$jobs/tasks.txt"
else
  # complete runs need no task, and runs that another job computes no second one
  python scripts/status.py "$OUT" "$jobs/cells.txt" --print_lines failed stopped missing >"$jobs/tasks.txt"
fi
cells=$(wc -l <"$jobs/cells.txt")
((cells > 0)) || stop "$sweep --list_cells printed no command"
lines=$(wc -l <"$jobs/tasks.txt")

largest=$({ scontrol show config 2>/dev/null || true; } | sed -n 's/^MaxArraySize\s*=\s*//p')
most=$((${largest:-1001} - 1)) # a larger index is refused
fewest=$(((lines + most - 1) / most))
chunk="${chunk:-$((fewest > 1 ? fewest : 1))}"
((chunk >= fewest)) || stop "--chunk $chunk makes more than $most tasks, the most an array has here; at least $fewest"
tasks=$(((lines + chunk - 1) / chunk))

words=(${PARTITION:+"--partition=$PARTITION"} $SBATCH_OPTIONS)
array=(
  sbatch --parsable --job-name="$(basename -- "$sweep" .sh)" --array="1-$tasks${max_parallel:+%$max_parallel}"
  --cpus-per-task="$CPUS" --mem="$MEM" --time="$TIME" --signal="B:USR1@$GRACE" --requeue --open-mode=append
  --output="$jobs/%A_%a.log"
)
((GPUS == 0)) || array+=(--gres="gpu:$GPUS")
array+=("${words[@]}" scripts/slurm_array.sh --chunk "$chunk" "$jobs/tasks.txt")
figures="$(printf '%q ' python scripts/plot_results.py --results_dir "$OUT" --output_dir "$OUT/figures")"
drawing=(
  sbatch --parsable --job-name=figures --cpus-per-task=1 --mem=4G --time=1:00:00 --output="$jobs/figures.log"
  "${words[@]}" --wrap="$figures"
)

submit() {
  if [[ -n "$dry_run" ]]; then
    printf '%q ' "$@" >&2
    echo >&2
  else
    "$@"
  fi
}

echo "$OUT: $cells cells, $lines commands to run in $tasks tasks; lists and logs in $jobs"
after=()
if ((tasks > 0)); then
  job=$(submit "${array[@]}")
  after=(--dependency="afterany:${job%%;*}")
fi
drawn=$(submit "${drawing[0]}" "${after[@]}" "${drawing[@]:1}")
[[ -n "$dry_run" ]] || echo "submitted: ${job:+array $job, then }figures $drawn (into $OUT/figures)"
echo "how far it is: python scripts/status.py $(printf '%q ' "$OUT" "$jobs/cells.txt")"
