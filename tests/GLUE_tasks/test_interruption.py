"""A fine-tuning run whose job ends: it saves, leaves with its exit code, and goes on with the same bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from GLUE_tasks import Glue_prune_oneshot
from harness import checkpoints, leases, run_folder, training

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sweep(tiny_encoder: Path, sentence_files: tuple[Path, Path]) -> list[str]:
    """Two runs of 24 steps, without their folder."""
    train, validation = map(str, sentence_files)
    return ["--model_name_or_path", str(tiny_encoder), "--train_file", train, "--validation_file", validation,
            "--max_length", "16", "--per_device_train_batch_size", "8", "--num_train_epochs", "2",
            "--learning_rate", "1e-3", "--mixed_precision", "no", "--noembed", "--sparse_method", "sparse_transfer",
            "--sparsity", "0.3", "0.6", "--output_dir"]  # fmt: skip


def test_a_signalled_run_saves_and_the_same_command_ends_with_the_same_bits(
    sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps = []
    original = training.train_step

    def step(*args, **options):
        steps.append(1)
        if len(steps) == 7:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(*args, **options)

    monkeypatch.setattr(training, "train_step", step)
    before = signal.getsignal(signal.SIGUSR1)
    command = [*sweep, str(tmp_path / "cut/{strength}")]
    with pytest.raises(SystemExit) as ended:
        Glue_prune_oneshot.main(command)
    assert ended.value.code == training.EXIT_CODE == 75
    assert signal.getsignal(signal.SIGUSR1) is before
    assert [path.name for path in checkpoints.finished(tmp_path / "cut/0.3")] == ["checkpoint-7"]
    assert not run_folder.is_complete(tmp_path / "cut/0.3") and not (tmp_path / "cut/0.6").exists()
    assert run_folder.read_failure(tmp_path / "cut/0.3") is None

    assert Glue_prune_oneshot.main(command) == 0
    assert len(steps) == 2 * 24, "no step was made twice"
    assert Glue_prune_oneshot.main([*sweep, str(tmp_path / "whole/{strength}")]) == 0
    for strength in ("0.3", "0.6"):
        cut, whole = tmp_path / "cut" / strength, tmp_path / "whole" / strength
        assert not checkpoints.finished(cut)
        np.testing.assert_array_equal(
            run_folder.read_items(cut)["prediction"], run_folder.read_items(whole)["prediction"]
        )
        (row,), (other,) = run_folder.read_runs(cut), run_folder.read_runs(whole)
        assert (row["score"], row["train_loss"]) == (other["score"], other["train_loss"])


def test_a_signal_after_the_last_step_lets_the_run_end_and_stops_before_the_next(
    sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    original = training.predict

    def predict(*args, **options):
        os.kill(os.getpid(), signal.SIGUSR1)
        return original(*args, **options)

    monkeypatch.setattr(training, "predict", predict)
    with pytest.raises(SystemExit) as ended:
        Glue_prune_oneshot.main([*sweep, str(tmp_path / "{strength}")])
    assert ended.value.code == 75
    assert run_folder.is_complete(tmp_path / "0.3") and not (tmp_path / "0.6").exists()


@pytest.mark.torture
def test_two_processes_of_which_one_is_told_save_together_and_go_on(sweep: list[str], tmp_path: Path):
    def start(folder: str) -> subprocess.Popen:
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                 "GLUE_tasks/Glue_prune_oneshot.py", *sweep[:-1],
                 "--num_train_epochs", "80", "--sparsity", "0.5", "--output_dir", str(tmp_path / folder)]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    told = start("cut")
    deadline = time.monotonic() + 300
    while not (owner := leases.owner(tmp_path / "cut")) or not (tmp_path / "cut" / run_folder.ARGUMENTS_FILE).exists():
        assert told.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(owner.pid, signal.SIGUSR1)
    said = told.communicate(timeout=300)[1]
    assert told.returncode != 0 and "checkpoint saved; the same command resumes" in said, said[-3000:]
    (checkpoint,) = checkpoints.finished(tmp_path / "cut")
    assert int(checkpoint.name.removeprefix("checkpoint-")) % training.STEPS_BETWEEN_AGREEMENTS == 0
    for folder in ("cut", "whole"):
        again = start(folder)
        assert again.communicate(timeout=300)[1] is not None and again.returncode == 0
    (row,), (other,) = run_folder.read_runs(tmp_path / "cut"), run_folder.read_runs(tmp_path / "whole")
    assert (row["score"], row["train_loss"]) == (other["score"], other["train_loss"])
    items, others = run_folder.read_items(tmp_path / "cut"), run_folder.read_items(tmp_path / "whole")
    np.testing.assert_array_equal(items["prediction"], others["prediction"])
