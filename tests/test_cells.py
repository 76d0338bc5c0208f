import logging
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from analysis import results
from analysis.cells import check_folders, command_line, output_folders, run_cells

CELLS = [{"task": "rte", "seed": 1}, {"task": "rte", "seed": 2}, {"task": "cola", "seed": 1}]


def finish(folder: Path, arguments: dict, score: float = 0.5) -> None:
    level = {"level": 1, "difficulty": 0, "metric": "accuracy", "score": score, "chance": 0.5, "stderr": 0.1,
             "num_examples": 4}  # fmt: skip
    result = dict.fromkeys(results.RUN_KEYS, 0) | {"levels": [level]}
    results.start_run(folder, arguments, {})
    results.write_run(folder, result, {"prediction": np.zeros(4)})


def test_every_cell_gets_the_folder_of_its_template():
    folders = output_folders("runs/{task}/{seed}", CELLS)
    expected = map(Path, ("runs/rte/1", "runs/rte/2", "runs/cola/1"))
    assert list(folders.items()) == list(zip(expected, CELLS, strict=True))


def test_one_cell_takes_a_plain_folder():
    assert output_folders("runs/one", CELLS[:1]) == {Path("runs/one"): CELLS[0]}


def test_several_cells_in_one_folder_name_the_placeholder_that_lacks():
    with pytest.raises(ValueError, match=r"gives several runs the folder runs/rte; add \{seed\}"):
        output_folders("runs/{task}", CELLS)


def test_unknown_placeholder_names_those_there_are():
    with pytest.raises(ValueError, match=r"\{taks\} is no placeholder; there are 'seed', 'task'"):
        output_folders("runs/{taks}", CELLS)


def test_command_line_leaves_out_what_is_off_and_quotes():
    options = {"noembed": True, "overwrite": False, "nm_ratio": None, "model": "a b", "seed": 3}
    assert command_line("x.py", options, Path("o")) == "python x.py --noembed --model 'a b' --seed 3 --output_dir o"


def test_complete_runs_are_skipped_and_failures_do_not_stop_the_others(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    arguments = {tmp_path / name: {"name": name} for name in "abc"}
    finish(tmp_path / "a", {"name": "a"})
    computed = []

    def compute(folder: Path) -> None:
        computed.append(folder.name)
        if folder.name == "b":
            raise FloatingPointError("loss is NaN")
        finish(folder, arguments[folder])

    assert run_cells(arguments, compute) == 1
    assert computed == ["b", "c"]
    assert not results.is_complete(tmp_path / "b") and results.is_complete(tmp_path / "c")
    assert f"failed: {tmp_path / 'b'} (FloatingPointError: loss is NaN)" in caplog.text
    assert "3 runs: 1 computed, 1 already complete, 1 failed" in caplog.text
    assert run_cells(arguments, lambda folder: finish(folder, arguments[folder])) == 0


def test_a_mistake_in_the_program_is_not_taken_for_a_failed_cell(tmp_path: Path):
    with pytest.raises(TypeError):
        run_cells({tmp_path / "a": {}}, lambda folder: len(None))


def test_overwrite_computes_again(tmp_path: Path):
    finish(tmp_path, {"lr": 1})
    run_cells({tmp_path: {"lr": 2}}, lambda folder: finish(folder, {"lr": 2}, score=0.75), overwrite=True)
    assert results.read_runs(tmp_path)[0]["score"] == 0.75


def test_a_run_with_other_arguments_is_refused_by_name(tmp_path: Path):
    finish(tmp_path, {"lr": 1, "seed": 3})
    with pytest.raises(results.DifferentRunError, match=r"other arguments \(lr: 2 here, 1 there\).*--overwrite"):
        check_folders({tmp_path: {"lr": 2, "seed": 3}})
    check_folders({tmp_path: {"lr": 2, "seed": 3}}, overwrite=True)


def test_an_unfinished_run_with_other_arguments_is_no_obstacle(tmp_path: Path):
    results.start_run(tmp_path, {"lr": 1}, {})
    check_folders({tmp_path: {"lr": 2}})


def test_a_folder_under_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file is a file, not a folder"):
        check_folders({tmp_path / "file" / "run": {}})


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match="cannot be written"):
        check_folders({tmp_path / "run": {}})


def test_a_cell_that_another_process_holds_comes_last_and_is_then_skipped(tmp_path: Path):
    """The other one is a thread with a lock of its own, which finishes "a" after "b" was computed here."""
    arguments = {tmp_path / name: {"name": name} for name in "ab"}
    (tmp_path / "a").mkdir()
    holds, b_is_done = threading.Event(), threading.Event()
    order = []

    def other() -> None:
        with FileLock(tmp_path / "a" / ".lock"):
            holds.set()
            b_is_done.wait(10)
            finish(tmp_path / "a", {"name": "a"})
            order.append("a there")

    def compute(folder: Path) -> None:
        order.append(f"{folder.name} here")
        finish(folder, arguments[folder])
        b_is_done.set()

    thread = threading.Thread(target=other)
    thread.start()
    holds.wait(10)
    assert run_cells(arguments, compute) == 0
    thread.join()
    assert order == ["b here", "a there"]
