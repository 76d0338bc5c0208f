"""scripts/slurm_array.sh and submit.sh without a Slurm: a task's lines, the grace signal, what is submitted, mistakes.

scontrol and sbatch are stand-ins that write down how they were called; test_slurm.py has the real ones.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from harness import run_folder

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """#!/bin/bash
printf '%s\\n' "$(basename "$0") $*" >>"$CALLS"
case "$*" in
  "show config") echo "MaxArraySize            = ${LARGEST:-1001}" ;;
  *--parsable*) wc -l <"$CALLS" ;;
esac
"""
# Saves and ends when it is told to; at the second start it has nothing left to do.
SAVES = """
import os, signal, sys, time
def save(*_):
    open("saved", "a").write("x")
    sys.exit(75)
signal.signal(signal.SIGUSR1, save)
open("started", "a").close()
time.sleep(0 if os.path.exists("saved") else 60)
"""
SWEEP = """
set -euo pipefail
OUT="${OUT:-runs/mine}"
if [[ " $* " == *" --group_by "* ]]; then
  echo "python x.py --seed 1 2 3 --output_dir '$OUT/{seed}'"
else
  for seed in 1 2 3; do echo "python x.py --seed $seed --output_dir $OUT/$seed"; done
fi
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With the stand-ins and this python; calls are written to <tmp_path>/calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("scontrol", "sbatch"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "CALLS": str(tmp_path / "calls"), "VIRTUAL_ENV": "active", "SLURM_ARRAY_JOB_ID": "7"}


def task(lines: list[str], number: int, environment: dict[str, str], *options: str, **variables: str) -> list[str]:
    """The command of one array task on a list; lines are run in the folder of the calls."""
    folder = Path(environment["CALLS"]).parent
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    environment |= {"SLURM_ARRAY_TASK_ID": str(number), **variables}
    return ["bash", str(ROOT / "scripts/slurm_array.sh"), *options, "list.txt"]


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
    folder = Path(environment["CALLS"]).parent
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_task_runs_its_own_lines_and_a_failure_does_not_stop_the_next(environment: dict[str, str]):
    lines = ["echo 1", "echo 2", "echo '3  3'; false", "exit 4", "echo 5"]
    assert run(task(lines, 1, environment, "--chunk", "2"), environment).stdout.startswith("1\n2\n")
    failed = run(task(lines, 2, environment, "--chunk", "2"), environment)
    assert failed.returncode == 1
    assert failed.stdout == "3  3\nslurm_array.sh: 2 lines, 2 failed\n"
    assert "exit code 4 of: exit 4" in failed.stderr
    last = run(task(lines, 3, environment, "--chunk", "2"), environment)
    assert (last.returncode, last.stdout) == (0, "5\nslurm_array.sh: 1 lines, 0 failed\n")
    assert run(task(lines, 4, environment), environment).stdout.endswith("1 lines, 1 failed\n")  # one line by default


def test_a_list_whose_lines_end_in_crlf_is_run_all_the_same(environment: dict[str, str]):
    command = task(["printf '%s|' a $'b\\x0d'\r", "echo c\r"], 1, environment, "--chunk", "2")
    assert run(command, environment).stdout == "a|b\n|c\nslurm_array.sh: 2 lines, 0 failed\n"  # text mode: \r is \n


def start_and_signal(command: list[str], environment: dict[str, str], number: int) -> subprocess.CompletedProcess:
    """Send `number` to the task once its line has made the file "started"."""
    folder = Path(environment["CALLS"]).parent
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not (folder / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    return subprocess.CompletedProcess(command, process.returncode, *process.communicate(timeout=30))


def end_at_once(folder: Path) -> None:
    """The task does not wait for Slurm to end it."""
    (folder / "bin/sleep").write_text('#!/bin/bash\n[[ "$1" == 60 ]] || exec /bin/sleep "$1"\n')
    (folder / "bin/sleep").chmod(0o755)


def test_the_grace_signal_reaches_a_run_that_saves_and_the_task_is_queued_again(
    environment: dict[str, str], tmp_path: Path
):
    """The line's python stands behind a shell that would die of the signal."""
    (tmp_path / "saves.py").write_text(SAVES)
    end_at_once(tmp_path)
    command = task(["cd . && python saves.py && touch ended", "touch too_far"], 1, environment, "--chunk", "2")
    start_and_signal(command, environment, signal.SIGUSR1)
    assert (tmp_path / "saved").read_text() == "x"
    assert (tmp_path / "calls").read_text() == "scontrol requeue 7_1\n"
    assert not (tmp_path / "too_far").exists()
    assert run(command, environment).returncode == 0 and (tmp_path / "too_far").exists()


def test_a_line_that_ignores_the_signal_has_the_time_that_is_left(environment: dict[str, str], tmp_path: Path):
    end_at_once(tmp_path)
    command = task(["touch started; /bin/sleep 2; touch ended"], 1, environment, GRACE="30", RESERVE="10")
    start_and_signal(command, environment, signal.SIGUSR1)
    assert (tmp_path / "ended").exists() and "scontrol requeue 7_1" in (tmp_path / "calls").read_text()


def test_a_task_that_never_gets_through_is_not_queued_for_ever(environment: dict[str, str], tmp_path: Path):
    command = task(["touch started; exec /bin/sleep 3"], 1, environment, GRACE="1", SLURM_RESTART_COUNT="20")
    done = start_and_signal(command, environment, signal.SIGUSR1)
    assert "back in the queue 20 times already; does a run need more than the time limit?" in done.stderr
    assert not (tmp_path / "calls").exists()


def test_a_task_that_slurm_ends_is_not_queued_again(environment: dict[str, str], tmp_path: Path):
    done = start_and_signal(task(["touch started; /bin/sleep 1"], 1, environment), environment, signal.SIGTERM)
    assert "queue" not in done.stderr and not (tmp_path / "calls").exists()


@pytest.mark.parametrize(
    ("options", "number", "message"),
    [
        (["--chunk", "0"], "1", "--chunk '0': a positive number of lines per task"),
        (["a", "b"], "1", "usage: sbatch --array=1-N"),
        (["other.txt"], "1", "there is no list other.txt in "),
        ([], "", "SLURM_ARRAY_TASK_ID is '': submit a job array that counts from 1"),
        ([], "0", "SLURM_ARRAY_TASK_ID is '0'"),
        ([], "2", "list.txt has no line 2: --array has more tasks than the list has lines"),
    ],
)
def test_mistakes_of_a_task_are_named(options: list[str], number: str, message: str, environment: dict[str, str]):
    command = task(["echo"], 1, environment, *options, SLURM_ARRAY_TASK_ID=number)
    done = run(command[:-1] if "txt" in "".join(options) else command, environment)
    assert done.returncode == 2 and message in done.stderr


@pytest.fixture
def sweep(tmp_path: Path, environment: dict[str, str]) -> Path:
    """A sweep of three cells below <tmp_path>/it's here, the second of which is complete."""
    environment["OUT"] = str(tmp_path / "runs")
    folder = tmp_path / "runs/2"
    run_folder.start_run(folder, {}, {})
    level = {"level": 1, "difficulty": 0, "metric": "accuracy", "score": 1.0, "chance": 0.5, "stderr": 0.1,
             "num_examples": 4}  # fmt: skip
    run_folder.write_run(
        folder, dict.fromkeys(run_folder.RUN_KEYS, 0) | {"levels": [level]}, {"prediction": np.zeros(4)}
    )
    (tmp_path / "mine.sh").write_text(SWEEP)
    return tmp_path / "mine.sh"


def submit(
    sweep: Path | str, environment: dict[str, str], *options: str, of_sweep: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
    words = ["bash", str(ROOT / "scripts/submit.sh"), *options, str(sweep), *of_sweep]
    return subprocess.run(words, env=environment, capture_output=True, text=True)


def submitted(environment: dict[str, str]) -> list[str]:
    return [line for line in Path(environment["CALLS"]).read_text().splitlines() if line.startswith("sbatch")]


def test_what_is_not_complete_is_submitted_and_the_figures_after_it(sweep: Path, environment: dict[str, str]):
    environment |= {"CPUS": "2", "GPUS": "1", "MEM": "8G", "TIME": "1:00", "PARTITION": "p", "SBATCH_OPTIONS": "--nice"}
    done = submit(sweep, environment, "--max_parallel", "5")
    assert done.returncode == 0, done.stderr
    array, figures = submitted(environment)
    (jobs,) = Path(environment["OUT"], "slurm").iterdir()
    for option in ("--array=1-2%5", "--cpus-per-task=2", "--gres=gpu:1", "--mem=8G", "--time=1:00", "--partition=p",
                   "--nice", "--signal=B:USR1@120", "--requeue", f"--chunk 1 {jobs}/tasks.txt"):  # fmt: skip
        assert f"{option} " in f"{array} "
    assert [line.split()[3] for line in (jobs / "tasks.txt").read_text().splitlines()] == ["1", "3"]
    assert len((jobs / "cells.txt").read_text().splitlines()) == 3
    assert "--dependency=afterany:2 " in figures and "plot_results.py --results_dir " in figures
    assert "submitted: array 2, then figures 3" in done.stdout


def test_what_is_to_be_overwritten_is_submitted_though_it_is_complete(sweep: Path, environment: dict[str, str]):
    done = submit(sweep, environment, of_sweep=("--overwrite",))
    assert done.returncode == 0 and "3 cells, 3 commands to run" in done.stdout
    assert "--array=1-3 " in submitted(environment)[0]


@pytest.mark.slow
def test_groups_are_submitted_as_they_are_and_long_lists_in_chunks(sweep: Path, environment: dict[str, str]):
    assert submit(sweep, environment, "--group_by", "model").returncode == 0
    assert "--array=1-1 " in submitted(environment)[0]
    environment["LARGEST"] = "2"  # indices up to 1: one task has to do both lines
    assert submit(sweep, environment).returncode == 0
    assert "--array=1-1 " in submitted(environment)[2] and " --chunk 2 " in submitted(environment)[2]
    refused = submit(sweep, environment, "--chunk", "1")
    assert refused.returncode == 2
    assert "--chunk 1 makes more than 1 tasks, the most an array has here; at least 2" in refused.stderr


def test_a_complete_sweep_submits_its_figures_alone(sweep: Path, environment: dict[str, str]):
    sweep.write_text('OUT="${OUT:-runs/mine}"\necho "python x.py --output_dir $OUT/2"\n')
    done = submit(sweep, environment)
    assert "1 cells, 0 commands to run in 0 tasks" in done.stdout
    (figures,) = submitted(environment)
    assert "--wrap=" in figures and "dependency" not in figures


@pytest.mark.parametrize(
    ("before", "after", "tasks"),
    [(["--dry_run"], (), 2), ([], ("--dry_run",), 2), ([], ("--overwrite", "--dry_run"), 3)],
)
def test_a_dry_run_submits_nothing_wherever_it_is_asked_for(
    before: list[str], after: tuple[str, ...], tasks: int, sweep: Path, environment: dict[str, str]
):
    done = submit(sweep, environment, *before, of_sweep=after)
    assert done.returncode == 0 and not submitted(environment)
    assert f"sbatch --parsable --job-name=mine --array=1-{tasks} " in done.stderr


@pytest.mark.parametrize(
    ("sweep_name", "options", "message"),
    [
        ("setting9", [], "there is no sweep "),
        ("setting5", ["--max_parallel", "x"], "--max_parallel 'x': a positive number"),
        ("setting5", ["--chunk", "0"], "--chunk '0': a positive number"),
        ("setting5", ["--group_by", ""], "--group_by needs names, for example model,compression"),
        ("setting5", ["--speed", "9"], "--speed is no option; there are --max_parallel, --chunk, --group_by"),
    ],
)
def test_mistakes_of_a_submission_are_named(
    sweep_name: str, options: list[str], message: str, environment: dict[str, str]
):
    done = submit(sweep_name, environment, *options)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.parametrize("option", ["--list_cells", "--help"])
def test_who_asks_for_a_list_or_for_help_submits_nothing(option: str, sweep: Path, environment: dict[str, str]):
    done = submit(sweep, environment, of_sweep=(option,))
    assert done.returncode == 2 and f"{option} after the sweep's name would submit jobs" in done.stderr
    assert not Path(environment["CALLS"]).exists()


def test_a_sweep_without_a_cell_submits_nothing(sweep: Path, environment: dict[str, str]):
    sweep.write_text('OUT="${OUT:-runs/mine}"\n')
    done = submit(sweep, environment)
    assert done.returncode == 2 and "mine.sh --list_cells printed no command" in done.stderr
    assert not Path(environment["CALLS"]).exists()


def test_a_sweep_that_fails_or_says_no_folder_submits_nothing(sweep: Path, environment: dict[str, str]):
    sweep.write_text('OUT="${OUT:-runs/mine}"\nexit 3\n')
    assert submit(sweep, environment).returncode == 3
    del environment["OUT"]
    sweep.write_text("echo\n")
    assert 'has no line OUT="${OUT:-FOLDER}"; set OUT to the folder' in submit(sweep, environment).stderr
    sweep.write_text('OUT="${OUT:-$HOME/runs}"\n')
    done = submit(sweep, environment)
    assert done.returncode == 2 and "is made of variables, $HOME/runs; set OUT to the folder it means" in done.stderr
    assert not Path(environment["CALLS"]).exists() and not (ROOT / "$HOME").exists()


SWEEPS = [
    path.stem
    for path in sorted((ROOT / "scripts").glob("*.sh"))
    if "OUT:-" in path.read_text() and path.stem not in ("quickstart", "submit", "sweep_common")
]
# Lists one cell where the command's cells go; what else is to be run, is.
LISTING_PYTHON = """#!/bin/bash
[[ "$1" != -c ]] || exit 0
[[ "$1" != scripts/* ]] || exec {python} "$@"
while [[ "$1" != --output_dir ]]; do shift; done
echo "python x.py --output_dir ${{2%%{{*}}1"
"""


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_can_be_submitted(name: str, environment: dict[str, str], tmp_path: Path):
    (tmp_path / "bin/python").write_text(LISTING_PYTHON.format(python=sys.executable))
    (tmp_path / "bin/python").chmod(0o755)
    environment |= {"OUT": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT)}
    done = submit(name, environment, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/runs: " in done.stdout and "sbatch --parsable --array=" in done.stderr.replace(
        f"--job-name={name} ", ""
    )
    # without OUT, the folder is the sweep's own default
    text = (ROOT / "scripts" / f"{name}.sh").read_text()
    found = subprocess.run(
        ["bash", "-c", f"sed -nE {DEFAULT_OUT} | head -n 1"], input=text, capture_output=True, text=True
    )
    assert found.stdout.strip().startswith("runs/")


DEFAULT_OUT = next(
    line.partition("sed -nE ")[2].partition(' "$sweep"')[0]
    for line in (ROOT / "scripts/submit.sh").read_text().splitlines()
    if "sed -nE" in line
)


@pytest.mark.parametrize(
    ("answer", "variables", "expected"),
    [
        ("gpu* gpu:a100:4\\ncpu (null)", {}, "--gres=gpu:1 "),
        ("gpu gpu:a100:4\\ncpu* (null)", {}, None),
        ("gpu gpu:a100:4", {"PARTITION": "gpu"}, "--gres=gpu:1 "),
        ("gpu* gpu:a100:4", {"GPUS": "0"}, None),
        ("gpu* gpu:a100:4", {"GPUS": "2"}, "--gres=gpu:2 "),
    ],
)
def test_gpus_are_asked_for_where_the_partition_has_some(
    answer: str,
    variables: dict[str, str],
    expected: str | None,
    sweep: Path,
    environment: dict[str, str],
    tmp_path: Path,
):
    (tmp_path / "bin/sinfo").write_text(f"#!/bin/bash\nprintf '{answer}\\n'\n")
    (tmp_path / "bin/sinfo").chmod(0o755)
    assert submit(sweep, environment | variables).returncode == 0
    array = submitted(environment)[0]
    assert expected in array if expected else "--gres" not in array


def test_gpus_that_are_no_number_are_refused(sweep: Path, environment: dict[str, str]):
    assert "GPUS 'two': a number, of GPUs for each task" in submit(sweep, environment | {"GPUS": "two"}).stderr
