"""A real Slurm of one node: two sweeps submitted, killed in every way, submitted again; they equal a local run.

    bash scripts/run_tests.sh -m slurm        # as root, with slurm-wlm and munge installed

Setting 1 (four fine-tuning runs, each of some seconds) and setting 5 (three runs) on tiny random models.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS

from harness import leases, run_folder, status

ROOT = Path(__file__).resolve().parents[2]
NODE = ROOT / "tests/slurm/one_node.sh"
MINUTES = 60.0
# Of the machine and the hour, not of what was computed.
NOT_COMPARED = {"folder", "seconds", "compress_seconds", "evaluate_seconds", "peak_memory_bytes"}

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which a running Slurm of two processors is found; it ends with the tests."""
    folder = tmp_path_factory.mktemp("slurm")
    done = subprocess.run(["bash", NODE, "start", folder, "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    prefix = Path(sys.executable).parent
    environment = {
        **kept, "SLURM_CONF": done.stdout.strip(), "PATH": f"{prefix}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(prefix.parent), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    yield environment
    subprocess.run(["scancel", "--user=root"], env=environment)
    subprocess.run(["bash", NODE, "stop", folder], check=True)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of SST-2, PIQA and HellaSwag."""
    folder = tmp_path_factory.mktemp("data")

    def text(number: int, count: int) -> str:
        return " ".join(WORDS[(number * 5 + place * 3) % len(WORDS)] for place in range(count))

    def write(name: str, rows: list[dict]) -> None:
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    for split, count in (("train", 64), ("validation", 21)):
        rows = [{"sentence": text(n, 4) + (" good" if n % 2 else " bad"), "label": n % 2} for n in range(count)]
        write(f"glue/sst2/{split}", rows)
    write("piqa/validation", [
        {"goal": text(n, 4), "sol1": text(n + 1, 3), "sol2": text(n + 2, 3), "label": n % 2} for n in range(15)
    ])  # fmt: skip
    write("hellaswag/validation", [
        {"activity_label": text(n, 1), "ctx_a": text(n, 4), "ctx_b": text(n, 2), "label": str(n % 4),
         "endings": [text(n + k, 3) for k in range(4)]} for n in range(15)
    ])  # fmt: skip
    return folder


class Sweep:
    """One of the two sweeps: how it is started here and through Slurm, and what has come of it."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str], options: list[str], **variables: str):
        self.name, self.folder, self.options = name, folder, options
        self.environment = {**environment, **variables, "CPUS": "1", "MEM": "1500M", "TIME": "20", "GRACE": "60"}

    def submit(self) -> str:
        """Submit what is left; returns the array's job id."""
        done = self.run("scripts/submit.sh", self.name, OUT=str(self.folder))
        return next(line for line in done.splitlines() if line.startswith("submitted")).split()[2].rstrip(",")

    def run_here(self, folder: Path) -> None:
        self.run(f"scripts/{self.name}.sh", OUT=str(folder))

    def run(self, *words: str, **variables: str) -> str:
        done = subprocess.run(
            ["bash", *words, *self.options], cwd=ROOT, env={**self.environment, **variables}, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self) -> Path:
        """Lists and logs of the last submission."""
        return max((self.folder / "slurm").iterdir(), key=lambda path: path.stat().st_mtime_ns)

    def folders(self) -> list[Path]:
        """Of all cells, in the order of the list."""
        listed = sorted((self.folder / "slurm").iterdir())[0] / "cells.txt"
        with listed.open() as lines:
            return [cell.folder for cell in status.read_list(lines, self.folder)]

    def states(self) -> list[str]:
        now = leases.file_system_time(self.folder)
        return [status.state_of(folder, now)[0] for folder in self.folders()]

    def status(self) -> tuple[int, str]:
        words = [sys.executable, "scripts/status.py", str(self.folder), str(self.jobs() / "cells.txt")]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout


@pytest.fixture
def sweeps(
    slurm: dict[str, str], data_dir: Path, tiny_encoder: Path, tiny_decoder: Path, tmp_path: Path
) -> tuple[Sweep, Sweep]:
    training = Sweep(
        "setting1", tmp_path / "setting1", slurm, ["--mixed_precision", "no"], MODEL=str(tiny_encoder), TASKS="sst2",
        SEEDS="41 42", FRACTIONS="100", TRANSFERS="dense_transfer sparse_transfer", SPARSITIES="0.5", NM_RATIOS="",
        MAX_LENGTH="16", BATCH_SIZE="8", EPOCHS="100", LEARNING_RATE="1e-3", DATA_DIR=str(data_dir),
    )  # fmt: skip
    asking = Sweep(
        "setting5", tmp_path / "setting5", slurm, ["--tasks", "piqa", "hellaswag", "--precision", "no"],
        MODEL=str(tiny_decoder), COMPRESSIONS="dense magnitude", SPARSITIES="0.3 0.6", NM_RATIOS="",
        DATA_DIR=str(data_dir),
    )  # fmt: skip
    return training, asking


def wait_until(holds: Callable[[], object], what: str, minutes: float = 5) -> None:
    deadline = time.monotonic() + minutes * MINUTES
    while not holds():
        assert time.monotonic() < deadline, f"not within {minutes} minutes: {what}"
        time.sleep(0.2)


def slurm_says(slurm: dict[str, str], *words: str) -> str:
    done = subprocess.run(words, env=slurm, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


@contextmanager
def signalled(slurm: dict[str, str], *words: str) -> Iterator[None]:
    """scancel until its effect is there: it may go on asking, because a task that changes its state puts it off."""
    with subprocess.Popen(["scancel", *words], env=slurm, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def queue(slurm: dict[str, str], state: str = "all") -> list[str]:
    """Jobs and tasks of a state; a waiting array stands for its tasks."""
    return slurm_says(slurm, "squeue", "--noheader", "--array", f"--states={state}", "--format=%i").split()


def active(slurm: dict[str, str]) -> list[str]:
    return [job for state in ("PENDING", "RUNNING", "COMPLETING") for job in queue(slurm, state)]


def kill_run(folder: Path) -> None:
    """kill -9 of the process that computes the run, and of nothing else."""
    owner = leases.owner(folder)
    assert owner is not None and owner.alive
    os.kill(owner.pid, 9)


def table(folder: Path) -> list[dict]:
    rows = [{**row, "place": str(Path(row["folder"]).relative_to(folder))} for row in run_folder.read_runs(folder)]
    return [{name: value for name, value in row.items() if name not in NOT_COMPARED} for row in rows]


def assert_same(sweep: Sweep, local: Path) -> None:
    """Every number of the runs and of their items, and the figures' tables."""
    assert table(sweep.folder) == table(local) != []
    for folder in sweep.folders():
        items, others = run_folder.read_items(folder), run_folder.read_items(local / folder.relative_to(sweep.folder))
        assert items.keys() == others.keys()
        for name, column in items.items():
            np.testing.assert_array_equal(column, others[name])
    tables = sorted(path.name for path in (local / "figures").glob("*.csv"))
    assert tables and all(
        (sweep.folder / "figures" / name).read_text() == (local / "figures" / name).read_text() for name in tables
    )


def test_killed_drained_and_submitted_again_two_sweeps_come_to_a_local_runs_table(
    slurm: dict[str, str], sweeps: tuple[Sweep, Sweep], tmp_path: Path
):
    training, asking = sweeps
    first = training.submit()
    saved, killed, *_ = training.folders()

    # Before preemption: the run saves a checkpoint, its task goes back into the queue and on from there.
    wait_until(lambda: training.states()[0] == "running", "the first run trains")
    log = training.jobs() / f"{first}_1.log"
    with signalled(slurm, "--signal=USR1", "--batch", f"{first}_1"):
        wait_until(lambda: "checkpoint saved; the same command resumes" in log.read_text(), "the first run has saved")
    assert any(saved.glob("checkpoint-*/progress.json")) and not run_folder.is_complete(saved)

    # kill -9: the run's process is gone without a word; its task fails.
    wait_until(lambda: training.states()[1] == "running", "the second run trains")
    kill_run(killed)

    # A node is drained: what runs there ends, nothing begins.
    second = asking.submit()
    host = slurm_says(slurm, "sinfo", "--noheader", "--format=%n")
    slurm_says(slurm, "scontrol", "update", f"NodeName={host}", "State=DRAIN", "Reason=test")
    wait_until(lambda: not queue(slurm, "RUNNING") and not queue(slurm, "COMPLETING"), "the drained node is empty")
    assert slurm_says(slurm, "sinfo", "--noheader", "--format=%T") == "drained"
    waiting = queue(slurm, "PENDING")
    assert any(job.startswith(f"{second}_") for job in waiting), "a task began on a drained node"
    slurm_says(slurm, "scontrol", "update", f"NodeName={host}", "State=RESUME")

    # A task is killed whole while it works.
    wait_until(lambda: f"{second}_2" in queue(slurm, "RUNNING"), "the second task of setting 5 runs")
    with signalled(slurm, "--signal=KILL", "--full", f"{second}_2"):
        wait_until(lambda: f"{second}_2" not in queue(slurm, "RUNNING"), "the task is gone")
    wait_until(lambda: not active(slurm), "both sweeps and their figures have ended")

    text = log.read_text()
    assert "the task goes back into the queue" in text and "resumed from" in text and "1 lines, 0 failed" in text
    assert training.states() == ["done", "stopped", "done", "done"]
    assert "exit code 137 of: python GLUE_tasks" in (training.jobs() / f"{first}_2.log").read_text()
    code, said = training.status()
    assert code == 3 and "3 of 4 cells done, 1 stopped" in said and f"stopped  {killed}" in said
    assert asking.states()[::2] == ["done", "done"] and asking.states()[1] in ("stopped", "missing")

    # Submitted again, each does what is missing and nothing else.
    before = {path: path.stat().st_mtime_ns for sweep in sweeps for path in sweep.folder.rglob("all_results.json")}
    for sweep, lacking in ((training, killed), (asking, asking.folders()[1])):
        again = sweep.submit()
        (line,) = (sweep.jobs() / "tasks.txt").read_text().splitlines()
        assert line.endswith(f"--output_dir {lacking}")
        wait_until(lambda: not active(slurm), f"{sweep.name} has ended")
        assert f"{again}_1" not in queue(slurm, "FAILED")
        assert sweep.status()[0] == 0
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())

    for sweep in sweeps:
        local = tmp_path / "local" / sweep.name
        sweep.run_here(local)
        assert_same(sweep, local)
    shutil.rmtree(tmp_path / "local")


def test_groups_run_as_tasks_and_their_figures_follow(slurm: dict[str, str], sweeps: tuple[Sweep, Sweep]):
    """One command per compression: two tasks for three cells."""
    asking = sweeps[1]
    asking.environment["SBATCH_OPTIONS"] = "--nice=0"
    done = asking.run("scripts/submit.sh", "--group_by", "model,compression", asking.name, OUT=str(asking.folder))
    assert "3 cells, 2 commands to run in 2 tasks" in done
    wait_until(lambda: not active(slurm), "the groups and their figures have ended")
    assert asking.states() == ["done"] * 3 and asking.status() == (0, f"{asking.folder}: 3 of 3 cells done\n")
    assert (asking.folder / "figures/summary.md").is_file()
