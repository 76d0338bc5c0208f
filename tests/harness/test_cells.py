import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from jinja2 import TemplateError
from safetensors import SafetensorError

from harness import cells, leases, run_folder
from harness.cells import check_folders, output_folders, run_cells

CELLS = [{"task": "rte", "seed": 1}, {"task": "rte", "seed": 2}, {"task": "cola", "seed": 1}]


def finish(folder: Path, arguments: dict, score: float = 0.5) -> None:
    level = {"level": 1, "difficulty": 0, "metric": "accuracy", "score": score, "chance": 0.5, "stderr": 0.1,
             "num_examples": 4}  # fmt: skip
    texts = {"model": "model", "compression": "dense", "strength_kind": None}
    result = dict.fromkeys(run_folder.RUN_KEYS, 0) | texts | {"levels": [level]}
    run_folder.start_run(folder, arguments, {})
    run_folder.write_run(folder, result, {"prediction": np.zeros(4)})


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
    assert not run_folder.is_complete(tmp_path / "b") and run_folder.is_complete(tmp_path / "c")
    assert f"failed: {tmp_path / 'b'} (FloatingPointError: loss is NaN)" in caplog.text
    assert "3 runs: 1 computed, 1 already complete, 1 failed" in caplog.text
    assert run_cells(arguments, lambda folder: finish(folder, arguments[folder])) == 0


@pytest.mark.parametrize(
    "error",
    [ImportError("no module named 'x'"), IndexError("list index out of range"), KeyError("weight"), TypeError("None"),
     AttributeError("no such"), SafetensorError("header too large"), TemplateError("no such filter"), MemoryError()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_a_cell_dies_of_is_one_line_and_the_next_is_computed(error: Exception, tmp_path: Path, capfd, caplog):
    def compute(folder: Path) -> None:
        if folder.name == "a":
            raise error
        finish(folder, {})

    assert run_cells({tmp_path / name: {} for name in "ab"}, compute) == 1
    assert run_folder.is_complete(tmp_path / "b") and not run_folder.is_complete(tmp_path / "a")
    assert f"{tmp_path / 'a'}: failed: {type(error).__name__}" in caplog.text
    assert "Traceback" not in caplog.text + capfd.readouterr().err
    assert "in compute" in run_folder.read_failure(tmp_path / "a")["traceback"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_sweep_stops_it(stop: type[BaseException], tmp_path: Path):
    def compute(folder: Path) -> None:
        raise stop

    with pytest.raises(stop):
        run_cells({tmp_path / name: {} for name in "ab"}, compute)
    assert not (tmp_path / "b").exists() and run_folder.read_failure(tmp_path / "a") is None


def test_overwrite_computes_again(tmp_path: Path):
    finish(tmp_path, {"lr": 1})
    run_cells({tmp_path: {"lr": 2}}, lambda folder: finish(folder, {"lr": 2}, score=0.75), overwrite=True)
    assert run_folder.read_runs(tmp_path)[0]["score"] == 0.75


def test_a_run_with_other_arguments_is_refused_by_name(tmp_path: Path):
    finish(tmp_path, {"lr": 1, "seed": 3})
    with pytest.raises(run_folder.DifferentRunError, match=r"other arguments \(lr: 2 here, 1 there\).*--overwrite"):
        check_folders({tmp_path: {"lr": 2, "seed": 3}})
    check_folders({tmp_path: {"lr": 2, "seed": 3}}, overwrite=True)


def test_an_unfinished_run_with_other_arguments_is_no_obstacle(tmp_path: Path):
    run_folder.start_run(tmp_path, {"lr": 1}, {})
    check_folders({tmp_path: {"lr": 2}})


def test_a_folder_under_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file is a file, not a folder"):
        check_folders({tmp_path / "file" / "run": {}})


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match="is read-only"):
        check_folders({tmp_path / "run": {}})


def test_a_cell_that_another_process_holds_comes_last_and_is_then_skipped(tmp_path: Path):
    """The other one is a thread with a lock of its own, which finishes "a" after "b" was computed here."""
    arguments = {tmp_path / name: {"name": name} for name in "ab"}
    (tmp_path / "a").mkdir()
    holds, b_is_done = threading.Event(), threading.Event()
    order = []

    def other() -> None:
        lock = leases.RunLease(tmp_path / "a")
        assert lock.acquire()
        holds.set()
        b_is_done.wait(10)
        finish(tmp_path / "a", {"name": "a"})
        order.append("a there")
        lock.release()

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


@pytest.mark.parametrize("name", ["", ".", "..", "../../etc", "/etc/passwd", "a/b", "a\0b", "a\nb", "\x1b[2J"])
def test_a_value_that_leads_out_of_the_folder_is_refused(name: str):
    with pytest.raises(ValueError) as refused:
        output_folders("runs/{task}", [{"task": name}])
    assert str(refused.value).startswith(f"--output_dir runs/{{task}}: {{task}} is {name!r}; the name of a folder has")


def test_a_value_that_is_not_in_the_template_is_not_looked_at():
    assert list(output_folders("runs/{seed}", [{"task": "a/b", "seed": 1}])) == [Path("runs/1")]


@pytest.mark.parametrize("name", ["x" * 256, "ä" * 128])
def test_a_folder_that_no_file_system_takes_is_refused(name: str):
    with pytest.raises(ValueError, match="is too long; allowed: 255 bytes in a folder's name, 4095 in the path"):
        output_folders("runs/{task}", [{"task": name}])
    assert next(iter(output_folders("runs/{task}", [{"task": name[1:]}]))).parts[1] == name[1:]


def test_the_working_folder_is_a_folder():
    assert list(output_folders(".", CELLS[:1])) == [Path()]


def test_a_failure_says_why_until_the_run_starts_again(tmp_path: Path):
    folder = tmp_path / "a"

    def fail(folder: Path) -> None:
        run_folder.start_run(folder, {}, {})
        raise FloatingPointError("loss is NaN\nand more")

    assert run_cells({folder: {}}, fail) == 1
    assert run_folder.read_failure(folder)["error"] == "FloatingPointError: loss is NaN"
    assert not run_folder.is_complete(folder) and leases.owner(folder) is None
    assert run_cells({folder: {}}, lambda folder: finish(folder, {})) == 0
    assert run_folder.read_failure(folder) is None


def test_a_folder_that_cannot_be_claimed_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    acquire = leases.RunLease.acquire

    def full(lock: leases.RunLease) -> bool:
        if lock._path.parent.name == "a":
            raise OSError(28, "No space left on device")
        return acquire(lock)

    monkeypatch.setattr(leases.RunLease, "acquire", full)
    arguments = {tmp_path / name: {} for name in "ab"}
    assert run_cells(arguments, lambda folder: finish(folder, {})) == 1
    assert run_folder.is_complete(tmp_path / "b")
    assert f"failed: {tmp_path / 'a'} (OSError: [Errno 28] No space left on device)" in caplog.text


def test_a_disk_that_is_full_when_the_failure_is_written_stops_nothing(tmp_path: Path, monkeypatch, caplog):
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "replace_file", full)
    assert run_cells({tmp_path / name: {} for name in "ab"}, lambda folder: finish(folder, {})) == 2
    assert f"{tmp_path / 'b'}: why it failed cannot be written: [Errno 28]" in caplog.text
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b"]


def test_a_run_that_another_took_over_is_left_to_it_and_looked_at_again(tmp_path: Path, monkeypatch, caplog):
    """While "a" is computed for the first time, another host comes to hold it, and then stays quiet."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(leases, "HEARTBEAT", 0.1)
    monkeypatch.setattr("harness.cells.POLL_SECONDS", 0.05)
    order = []

    def compute(folder: Path) -> None:
        order.append(folder.name)
        if order == ["a"]:
            owner = folder / leases.OWNER_FILE
            said = owner.read_text().splitlines()
            owner.unlink()
            said[2] = "host=elsewhere"
            owner.write_text("\n".join(said) + "\n")
        finish(folder, {})

    assert run_cells({tmp_path / name: {} for name in "ab"}, compute) == 0
    assert order == ["a", "b", "a"]
    assert "was taken over by process" in caplog.text and run_folder.is_complete(tmp_path / "a")


def test_processes_that_fail_together_go_on_together(tmp_path: Path):
    """The one that is not the main process follows what is shared, locks nothing and counts nothing."""
    arguments = {tmp_path / name: {} for name in "abc"}
    shared: list = []

    def compute(folder: Path) -> None:
        if folder.name == "b":
            raise FloatingPointError("NaN")
        finish(folder, {})

    def share(turn: object) -> object:
        shared.append(turn)
        return turn

    assert run_cells(arguments, compute, share=share, fails_together=True) == 1
    turns, computed = iter(list(shared)), []

    def follow(folder: Path) -> None:
        computed.append(folder.name)
        if folder.name == "b":
            raise RuntimeError("process 0 of the job failed: NaN")

    assert run_cells(arguments, follow, share=lambda _: next(turns), is_main=False, fails_together=True) == 0
    assert computed == ["a", "b", "c"]


def test_a_failure_ends_a_job_whose_processes_wait_for_each_other(tmp_path: Path):
    def fail(folder: Path) -> None:
        raise FloatingPointError("NaN")

    with pytest.raises(FloatingPointError):
        run_cells({tmp_path / name: {} for name in "ab"}, fail, share=lambda turn: turn)
    assert run_folder.read_failure(tmp_path / "a") and leases.owner(tmp_path / "a") is None


WORKER = Path(__file__).parents[1] / "torture_worker.py"


def in_read_only(folder: Path, command: list) -> subprocess.CompletedProcess:
    """Run a command for which `folder` is on a file system that is mounted read-only, also for root."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", "exit 0"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a read-only mount needs unshare: {done.stderr.strip()}")
    return subprocess.run(["unshare", "-rm", "sh", "-c", mount, folder, *command], capture_output=True, text=True)


@pytest.mark.slow
def test_a_read_only_tree_is_refused_unless_it_is_complete(tmp_path: Path):
    sweep = [sys.executable, WORKER, tmp_path]
    refused = in_read_only(tmp_path, [*sweep, "2", "0"])
    assert refused.returncode == 1 and f"{tmp_path} is read-only" in refused.stderr
    subprocess.run([*sweep, "2", "0"], check=True)
    assert in_read_only(tmp_path, [*sweep, "2", "0"]).returncode == 0
    assert "is read-only" in in_read_only(tmp_path, [*sweep, "3", "0"]).stderr


def test_long_waits_ask_seldom():
    # a tenth of the time waited, between half a second and half a minute
    assert [cells.poll_seconds(waited) for waited in (0, 5, 60, 300, 86400)] == [0.5, 0.5, 6, 30, 30]
