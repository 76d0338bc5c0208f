"""scripts/status.py over folders in every state; owners are real processes, one alive, one killed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from harness import cells, commands, leases, run_folder, status

SCRIPT = Path(__file__).parents[2] / "scripts" / "status.py"
STATES = {"a": "done", "b": "done", "c": "failed", "d": "running", "e": "stopped", "f": "stopped", "g": "missing"}
DIE_HOLDING = """
import os, pathlib, sys
from harness import leases
lock = leases.RunLease(pathlib.Path(sys.argv[1]))
os._exit(0 if lock.acquire() else 1)
"""


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("status")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/a … runs/f and cells.txt, which lists runs/g too; the working folder is theirs."""
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("a", 10), ("b", 30)):
        finish(Path("runs") / name, seconds)
    for name in "cdef":
        run_folder.start_run(Path("runs") / name, {}, {})
    run_folder.write_json(
        Path("runs/c") / run_folder.FAILURE_FILE,
        {"error": "OSError: disk full", "time": "noon", "host": "n3", "pid": 7},
    )
    subprocess.run([sys.executable, "-c", DIE_HOLDING, "runs/e"], check=True)
    write_list(STATES)
    lock = leases.RunLease(Path("runs/d"))
    assert lock.acquire()
    yield tmp_path
    lock.release()


def finish(folder: Path, seconds: float) -> None:
    level = {"level": 1, "difficulty": 0, "metric": "accuracy", "score": 1.0, "chance": 0.5, "stderr": 0.1,
             "num_examples": 4}  # fmt: skip
    run_folder.start_run(folder, {}, {})
    run_folder.write_run(folder, dict.fromkeys(run_folder.RUN_KEYS, 0) | {"levels": [level], "seconds": seconds},
                      {"prediction": np.zeros(4)})  # fmt: skip


def write_list(names: str) -> None:
    lines = [commands.command_line("x.py", {"seed": 1}, f"runs/{name}") for name in names]
    Path("cells.txt").write_text("\n".join(lines) + "\n\n")


def test_every_state_is_told_with_what_is_known(sweep: Path, script: ModuleType, capsys: pytest.CaptureFixture):
    assert script.main(["runs", "cells.txt"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "runs: 2 of 7 cells done, 1 running, 1 failed, 2 stopped, 1 missing"
    told = {line.split()[1].removeprefix("runs/"): line for line in lines[1:-1]}
    assert {name: line.split()[0] for name, line in told.items()} == {name: STATES[name] for name in "cdefg"}
    assert told["c"].endswith("OSError: disk full (noon, n3)")
    assert f"process {os.getpid()} on " in told["d"] and "last sign of life" in told["d"]
    assert "its process ended before the run did (on " in told["e"]
    # median of 10 and 30 s; four cells are left, one runs
    assert lines[-1] == "time left: about 1 min, 1 at a time"
    assert status.seconds_left(status.survey(status.started_folders(Path("runs")), 0)) == 20 * 3


def test_without_a_list_the_started_runs_are_told(sweep: Path, script: ModuleType, capsys: pytest.CaptureFixture):
    assert script.main(["runs", "--show", "1"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("runs: 2 of 6 cells done, 1 running, 1 failed, 2 stopped\n")
    assert "stopped  … and 1 more" in out


def test_exit_codes(sweep: Path, script: ModuleType, capsys: pytest.CaptureFixture):
    write_list("ab")
    assert script.main(["runs", "cells.txt"]) == 0
    assert capsys.readouterr().out == "runs: 2 of 2 cells done\n"
    for rest in "deg":
        write_list("a" + rest)
        assert script.main(["runs", "cells.txt"]) == 3
    write_list("g")
    assert script.main(["runs", "cells.txt"]) == 3
    assert "time left: not known, no cell is done yet" in capsys.readouterr().out
    write_list("ag")
    script.main(["runs", "cells.txt"])
    assert "time left: about 10 s, one at a time; none runs now" in capsys.readouterr().out


def test_the_lines_of_what_is_left_are_printed(sweep: Path, script: ModuleType, capsys: pytest.CaptureFixture):
    assert script.main(["runs", "cells.txt", "--print_lines", "failed", "stopped", "missing"]) == 0
    printed = capsys.readouterr().out
    wanted = [line for line in Path("cells.txt").read_text().splitlines() if line.endswith(("/c", "/e", "/f", "/g"))]
    assert printed.splitlines() == wanted
    write_list("ab")
    assert script.main(["runs", "cells.txt", "--print_lines", "missing"]) == 0 and not capsys.readouterr().out


def test_a_finished_run_with_a_leftover_owner_is_done(sweep: Path):
    (Path("runs/e") / run_folder.RESULT_FILE).write_text('{"seconds": 1}')
    assert status.state_of(Path("runs/e"), leases.file_system_time(Path("runs")))[0] == "done"


def test_a_folder_that_stands_twice_counts_once_and_hostile_names_are_read(sweep: Path, script: ModuleType):
    name = "$(touch executed)\n'x' {y}"
    finish(Path("runs") / name, 5)
    line = commands.command_line("x.py", {}, commands.folder_template(Path("runs") / name))
    listed = list(status.read_list([line + "\n", line + "\n"], Path("runs")))
    assert listed == [(line, Path("runs") / name)]
    assert status.survey([folder for _, folder in listed], 0).counts["done"] == 1


def test_a_list_whose_lines_end_in_crlf_is_read_and_its_lines_handed_on_without(sweep: Path):
    folder = Path("runs/a b\r")  # a carriage return in a name is written otherwise than one at a line's end
    lines = [commands.command_line("x.py", {}, commands.folder_template(path)) for path in (Path("runs/e"), folder)]
    listed = list(status.read_list([f"{lines[0]}\r\n", "\r\n", f"{lines[1]}\r\n"], Path("runs")))
    assert listed == [(lines[0], Path("runs/e")), (lines[1], folder)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["runs", "other.txt"], "LIST: there is no file other.txt"),
        (["elsewhere"], "TREE: there is no folder elsewhere; a sweep that has not begun needs its list"),
        (["runs", "--print_lines", "failed"], "--print_lines prints lines of LIST; give one"),
        (["runs/a", "cells.txt"], "line 2: runs/b is not below runs/a; run this where the list was made"),
        (["empty"], "TREE empty: no run was started there"),
        (["runs", "empty.txt"], "LIST empty.txt: no command"),
        (["runs", "grouped.txt"], "line 1: a command for several cells"),
    ],
)
def test_mistakes_are_named(
    argv: list[str], message: str, sweep: Path, script: ModuleType, capsys: pytest.CaptureFixture
):
    Path("empty").mkdir()
    Path("empty.txt").write_text("\n")
    Path("grouped.txt").write_text("python x.py --output_dir 'runs/{seed}'\n")
    with pytest.raises(SystemExit) as stopped:
        script.main(argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"seconds": ', b"\xff", b'{"seconds": "x"}'])
def test_foreign_files_are_told_and_passed_over(
    content: bytes, sweep: Path, script: ModuleType, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
):
    Path("runs/a/all_results.json").write_bytes(content)
    Path("runs/c/failure.json").write_bytes(content)
    Path("runs/g/all_results.json").mkdir(parents=True)
    assert script.main(["runs", "cells.txt"]) == 1
    assert [message.partition(",")[0] for message in caplog.messages] == ["runs/a/all_results.json is counted as done"]
    printed = capsys.readouterr().out
    assert "failure.json cannot be read" in printed and "2 of 7 cells done" in printed


def test_head_ends_it_quietly(sweep: Path):
    write_list([f"cell{number}" for number in range(3000)])
    command = f"{sys.executable} {SCRIPT} runs cells.txt --show 3000 | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["runs: 0 of 3000 cells done, 3000 missing", "141"] and done.stderr == ""


def test_the_seconds_of_many_runs_are_those_of_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(status, "SECONDS_SAMPLE", 5)
    for number in range(40):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / run_folder.RESULT_FILE).write_text(f'{{"seconds": {number}}}')
    report = status.survey([tmp_path / str(number) for number in range(40)], 0)
    assert report.counts["done"] == 40 and len(set(report.seconds)) == 5 and max(report.seconds) >= 5


def test_durations_are_told_by_their_two_largest_units():
    assert [cells.duration(seconds) for seconds in (59, 60, 3599, 3600, 5400, 90000)] == [
        "59 s", "1 min", "1 h 0 min", "1 h 0 min", "1 h 30 min", "1 d 1 h"
    ]  # fmt: skip


def test_it_needs_no_torch():
    code = "import sys; sys.modules.update(torch=None, transformers=None); sys.path.insert(0, 'scripts'); import status"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
