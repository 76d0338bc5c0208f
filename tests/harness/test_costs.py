"""What a sweep says of its cost before it starts and after each cell."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_cells import finish

from harness import cells, run_folder


def complete(folder: Path, seconds: float) -> Path:
    finish(folder, {})
    path = folder / run_folder.RESULT_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": seconds}))
    return folder


def test_a_sweep_without_complete_runs_has_no_time():
    assert cells.plan_line([], 12) == "12 cells: 0 complete, 12 to compute; an estimate of the time follows the first"


def test_the_median_of_complete_runs_tells_the_time(tmp_path: Path):
    folders = [complete(tmp_path / str(taken), taken) for taken in (30, 60, 6000)]
    told = "complete ones took 1 min each (median), so about {} one after the other if this machine is as fast"
    assert cells.plan_line(folders, 8) == f"8 cells: 3 complete, 5 to compute; {told.format('5 min')}"
    again = cells.plan_line(folders, 8, overwrite=True)
    assert again == f"8 cells: 3 complete, 8 to compute; {told.format('8 min')}"
    assert cells.plan_line(folders, 3) == "3 cells: 3 complete, 0 to compute"


def test_a_damaged_result_is_passed_over(tmp_path: Path):
    folders = [complete(tmp_path / "a", 5), complete(tmp_path / "b", 7)]
    (folders[0] / run_folder.RESULT_FILE).write_text("{")
    assert "took 7 s each" in cells.plan_line(folders, 3)


def test_after_each_cell_the_mean_of_those_before_tells_what_is_left():
    assert cells.left_text([10, 30], 180) == "; 180 left, about 1 h 0 min at this pace"
    assert cells.left_text([10], 0) == ""


def test_run_cells_tells_the_cost_first_and_after_each_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    takes, now = {"b": 100, "c": 300, "d": 5, "e": 20}, [0.0]
    monkeypatch.setattr(cells, "time", SimpleNamespace(monotonic=lambda: now[0]))
    complete(tmp_path / "a", 90)

    def compute(folder: Path) -> None:
        now[0] += takes[folder.name]
        if folder.name == "d":
            raise FloatingPointError("loss is NaN")
        finish(folder, {})

    assert cells.run_cells({tmp_path / name: {} for name in "abcde"}, compute) == 1
    told = [record.getMessage().replace(f"{tmp_path}/", "") for record in caplog.records]
    assert told[0].startswith(
        "5 cells: 1 complete, 4 to compute; complete ones took 2 min each (median), so about 6 min"
    )
    assert "b: done in 100 s; 3 left, about 5 min at this pace" in told
    assert "c: done in 300 s; 2 left, about 7 min at this pace" in told
    assert "e: done in 20 s" in told
