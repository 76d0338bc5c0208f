"""Checkpoints as files; what a run of a script does with them is in tests/GLUE_tasks/test_resuming.py."""

import json
from pathlib import Path

import pytest
from accelerate import Accelerator

from harness import checkpoints, leases
from harness.checkpoints import Checkpoints


def test_only_whole_checkpoints_count_and_the_newest_is_last(tmp_path: Path):
    for name, whole in (("checkpoint-9", True), ("checkpoint-10", True), ("checkpoint-11", False)):
        (tmp_path / name).mkdir()
        if whole:
            (tmp_path / name / "progress.json").write_text("{}")
    (tmp_path / "checkpoint.partial").mkdir()
    assert [path.name for path in checkpoints.finished(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_no_checkpoint_is_written_into_a_run_that_another_process_took_over(tmp_path: Path):
    (tmp_path / leases.OWNER_FILE).write_text(
        f"filelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken={'0' * 32}\nduration={leases.LEASE_SECONDS}\n"
    )
    with pytest.raises(leases.LostRunError, match="taken over by process 1 of elsewhere"):
        Checkpoints(tmp_path, {}).save(Accelerator(cpu=True), None, 3, 0.5)
    assert [path.name for path in tmp_path.iterdir()] == [leases.OWNER_FILE]


def test_bf16_and_float32_are_not_resumed_into_each_other(tmp_path: Path):
    wanted = checkpoints.origin({"mixed_precision": "auto"}, "bf16")
    progress = {"step": 1, "loss_sums": [0.0], "scheduler": {}, **checkpoints.origin({"mixed_precision": "auto"}, "no")}
    (tmp_path / "progress.json").write_text(json.dumps(progress))
    assert checkpoints.differences(tmp_path, wanted) == ["precision: 'bf16' here, 'no' there"]


def test_a_run_that_ends_leaves_no_checkpoint_that_a_killed_process_had_begun(tmp_path: Path):
    (tmp_path / "checkpoint.partial").mkdir()
    (tmp_path / "checkpoint.partial" / "optimizer.bin").touch()
    Checkpoints(tmp_path, {}).delete()
    assert not any(tmp_path.iterdir())
