"""The main script as users start it: from the root and its own folder, killed, twice at once, over two processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from GLUE_tasks import Glue_prune_oneshot
from harness import run_folder

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def qnli_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A --data_dir with a QNLI of a few rows."""
    folder = tmp_path_factory.mktemp("data_dir") / "glue" / "qnli"
    folder.mkdir(parents=True)
    for split, count in (("train", 32), ("validation", 10)):
        rows = [{"question": "is the film good", "sentence": "so fine", "label": i % 2, "idx": i} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder.parents[1]


@pytest.fixture
def sweep(tiny_encoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path) -> list[str]:
    """A command of eight cells, a fraction of a second each."""
    train, validation = map(str, sentence_files)
    return [
        sys.executable, "GLUE_tasks/Glue_prune_oneshot.py", "--model_name_or_path", str(tiny_encoder),
        "--train_file", train, "--validation_file", validation, "--max_length", "16",
        "--per_device_train_batch_size", "8", "--num_train_epochs", "1", "--learning_rate", "1e-3",
        "--mixed_precision", "no", "--noembed",
        "--sparse_method", "sparse_transfer", "--sparsity", "0.2", "0.4", "0.6", "0.8", "--seed", "1", "2",
        "--output_dir", str(tmp_path / "runs" / "{strength}" / "{seed}"),
    ]  # fmt: skip


@pytest.mark.slow
def test_the_original_readmes_command_runs_as_printed(tiny_encoder: Path, qnli_dir: Path, tmp_path: Path):
    """True-gem loop of the original's README, one turn; --data_dir, model and sizes are what is edited."""
    command = f"""
    cd ./GLUE_tasks
    TASK_NAME=QNLI; sparsity=0.5; validation_split_percentage=100; seed=41
    {sys.executable} Glue_prune_oneshot.py \\
        --method Glue_noembed_freeze_weights \\
        --validation_split_percentage $validation_split_percentage \\
        --sparse_method \\
        --noembed \\
        --sparsity $sparsity \\
        --model_name_or_path {tiny_encoder} --data_dir {qnli_dir} \\
        --task_name $TASK_NAME \\
        --max_length 32 \\
        --per_device_train_batch_size 16 \\
        --learning_rate 2e-5 \\
        --num_train_epochs 3 \\
        --seed $seed \\
        --output_dir {tmp_path}/roberta/Glue_noembed_freeze_weights/$TASK_NAME/$sparsity/100/$seed/
    """
    subprocess.run(["bash", "-euc", command], cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    (row,) = run_folder.read_runs(tmp_path / "roberta/Glue_noembed_freeze_weights/QNLI/0.5/100/41")
    assert row["transfer"] == "sparse_to_dense" and row["task"] == "qnli" and row["num_steps"] == 6
    assert row["method"] == "Glue_noembed_freeze_weights" and row["eval_accuracy"] == row["score"]


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "nothing happened in time"
        time.sleep(0.01)


@pytest.mark.torture
def test_a_killed_sweep_is_finished_by_two_processes_at_once(sweep: list[str], tmp_path: Path):
    """kill -9 when the third run has started; what is missing is then computed once, and nothing else."""
    runs = tmp_path / "runs"
    process = subprocess.Popen(sweep, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(list(runs.rglob(run_folder.ARGUMENTS_FILE))) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in runs.rglob(run_folder.RESULT_FILE)}
    assert 2 <= len(finished) < 8
    for path in finished:
        json.loads(path.read_text())
    both = [
        subprocess.Popen(sweep, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    logs = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    counts = [re.search(r"8 runs: (\d) computed, (\d) already complete, 0 failed", log) for log in logs]
    assert sum(int(found[1]) for found in counts) == 8 - len(finished) == sum(log.count(": done in") for log in logs)
    assert sum(int(found[2]) for found in counts) == 8 + len(finished)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(run_folder.read_runs(runs)) == 8 and not list(runs.rglob("*.partial"))


@pytest.mark.slow
def test_two_distributed_processes_evaluate_like_one(sweep: list[str], tmp_path: Path):
    """37 rows in batches of 8 over two processes; a learning rate of 0 leaves the same model to evaluate."""
    base = [*sweep[1:], "--learning_rate", "0", "--per_device_eval_batch_size", "8", "--sparsity", "0.4", "--seed", "1"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert Glue_prune_oneshot.main([*base[1:], "--output_dir", str(tmp_path / "one")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, *base, "--output_dir", str(tmp_path / "two")], cwd=ROOT, text=True,
                          capture_output=True, env=ENVIRONMENT | {"ACCELERATE_USE_CPU": "true"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (run_folder.read_items(tmp_path / name) for name in ("one", "two"))
    assert len(two["label"]) == 37
    assert np.array_equal(one["prediction"], two["prediction"]) and np.array_equal(one["label"], two["label"])
    (alone,), (together,) = (run_folder.read_runs(tmp_path / name) for name in ("one", "two"))
    assert alone["score"] == together["score"]
    assert (alone["num_steps"], together["num_steps"]) == (12, 6)  # 90 rows, batches of 8, on each process
