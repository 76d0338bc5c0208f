# Sourced by quickstart.sh and run_tests.sh. Afterwards `python` has the requirements: it is that of the active virtual or
# conda environment, else that of .venv in the project root, which is made if it does not exist. pip runs only if
# requirements.txt or pyproject.toml changed since it last ran, or if another clone was installed there.
#
#   PYTHON=python3.12   interpreter to make .venv with; default: the first of those below that is new enough

project_root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"

stop() {
  echo "environment.sh: $*" >&2
  exit 1
}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
  local candidate candidates=(python3 python3.13 python3.12 python3.11)
  [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if is_new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  stop "no Python 3.11 or newer among: ${candidates[*]}; install one, or name it: PYTHON=/path/to/python bash $0"
}

make_venv() {
  local python
  python="$(find_python)" || exit
  echo "making $1 with $("$python" --version)" >&2
  "$python" -m venv --clear "$1" ||
    stop "$python cannot make $1 (see above); on Debian and Ubuntu install the package python3-venv, or use conda"
}

# Hash of what is to be installed. The root is part of it because `-e .` installs this clone alone.
requirements_hash() {
  "$1" - "$project_root" <<'PYTHON_CODE'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
contents = [str(root).encode(), *((root / name).read_bytes() for name in ("requirements.txt", "pyproject.toml"))]
print(hashlib.sha256(b"\0".join(contents)).hexdigest())
PYTHON_CODE
}

install_requirements() {
  local python="$1" log
  log="$(mktemp)"
  echo "installing requirements.txt for $python; once, this takes minutes" >&2
  # pip resolves `-e .` against the working folder, so it has to run in the root.
  if (cd "$project_root" && "$python" -m pip install --log "$log" --requirement requirements.txt); then
    rm -f "$log"
  elif grep -qE 'No space left on device|Disk quota exceeded' "$log"; then
    stop "the disk is full (INSTALL.md has the sizes); TMPDIR=/a/larger/folder helps where only the temporary folder is"
  elif grep -qE 'No matching distribution found|NewConnectionError|ConnectTimeout|ProxyError' "$log"; then
    stop "pip could not get every package (see above): is a package index reachable? without one: INSTALL.md, 'Offline'"
  else
    stop "pip failed (see above, all of it in $log)"
  fi
}

prepare_environment() {
  local prefix stamp wanted
  if [[ -n "${VIRTUAL_ENV:-}" ]]; then
    prefix="$VIRTUAL_ENV"
  elif [[ -n "${CONDA_PREFIX:-}" && "${CONDA_DEFAULT_ENV:-base}" != base ]]; then
    prefix="$CONDA_PREFIX"
  else
    prefix="$project_root/.venv"
    "$prefix/bin/python" -c 'import pip' 2>/dev/null || make_venv "$prefix"
  fi
  is_new_enough "$prefix/bin/python" ||
    stop "the environment $prefix has no Python 3.11 or newer; leave it (deactivate) or activate another"
  wanted="$(requirements_hash "$prefix/bin/python")"
  stamp="$prefix/junk_dna_requirements.sha256"
  if [[ ! -f "$stamp" || "$(<"$stamp")" != "$wanted" ]]; then
    rm -f "$stamp"
    install_requirements "$prefix/bin/python"
    echo "$wanted" >"$stamp"
  fi
  export PATH="$prefix/bin:$PATH"
}

prepare_environment
