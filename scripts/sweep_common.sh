# Sourced by the sweeps, submit.sh and slurm_array.sh before anything else. Afterwards the project root is the working
# folder, and `python` has the requirements: that of the active environment if it has them, else that of .venv. Relative
# paths are relative to the caller's folder: OUT always; MODEL, DATA_DIR and arguments if such a file is there.

sweep_caller="$PWD"
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."

# Whether a python is new enough and finds the packages that sweeps import; nothing is imported, which takes seconds.
has_requirements() {
  "$1" -c '
import importlib.util, sys
found = [importlib.util.find_spec(name) for name in ("torch", "transformers", "datasets", "matplotlib", "filelock")]
sys.exit(sys.version_info < (3, 11) or None in found)' >/dev/null 2>&1
}

choose_python() {
  local active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
  if [[ -z "$active" && -x .venv/bin/python ]]; then
    export PATH="$PWD/.venv/bin:$PATH"
    has_requirements python && return
  elif has_requirements python; then
    return
  elif [[ -n "$active" ]] && has_requirements .venv/bin/python; then
    echo "the environment $active lacks the requirements: $PWD/.venv is used" >&2
    export PATH="$PWD/.venv/bin:$PATH"
    return
  fi
  echo "neither the python of ${active:-this shell} nor $PWD/.venv has Python 3.11 and the packages of" \
    "requirements.txt (torch, transformers, …): bash scripts/run_tests.sh makes .venv, INSTALL.md says more" >&2
  exit 1
}

# A path that the caller gave, relative to the project root.
from_caller() {
  if [[ "$1" == /* || "$sweep_caller" -ef "$PWD" ]]; then
    printf '%s' "$1"
  else
    printf '%s' "${sweep_caller%/}/${1#./}"
  fi
}

choose_python
[[ -z "${OUT:-}" ]] || OUT="$(from_caller "$OUT")"
for sweep_name in MODEL DATA_DIR; do
  [[ -z "${!sweep_name:-}" || ! -e "$sweep_caller/${!sweep_name}" ]] ||
    printf -v "$sweep_name" '%s' "$(from_caller "${!sweep_name}")"
done
# An argument is a path only if the file is there, and if it looks like a path or its option takes one and no name of a
# text or an allocation: a task may have the name of a folder.
path_options='^--(allocation|calibration|checkpoint|data_dir|factoid_file|include_path|model_name_or_path|'
path_options+='resume_from_checkpoint|task_file|text|train_file|train_text|validation_file)$'
path_of_argument() {
  if [[ -n "$2" && -e "$sweep_caller/$2" ]] && [[ "$2" =~ /|\.(jsonl?|csv|txt|parquet|gz)$ ||
    ("$1" =~ $path_options && ! "$2" =~ ^(c4|wikitext2|owl|uniform)$) ]]; then
    from_caller "$2"
  else
    printf '%s' "$2"
  fi
}
sweep_option=""
for sweep_word in "$@"; do
  shift
  case "$sweep_word" in
    --*=*) sweep_word="${sweep_word%%=*}=$(path_of_argument "${sweep_word%%=*}" "${sweep_word#*=}")" ;;
    --*) sweep_option="$sweep_word" ;;
    *) sweep_word="$(path_of_argument "$sweep_option" "$sweep_word")" ;;
  esac
  set -- "$@" "$sweep_word"
done
