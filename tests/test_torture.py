"""200 runs, four processes on one list, random kill -9, a disk that fills up: nothing is lost or done twice."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness import run_folder

pytestmark = pytest.mark.torture
WORKER = Path(__file__).parent / "torture_worker.py"
NUM_CELLS, SECONDS_PER_CELL = 200, 0.1
WORKERS, KILLS, DISK_IS_FULL_AT = 4, 12, 5  # the disk fills up after so many kills


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a file system of a known size needs mount: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def start(output_dir: Path, journal: Path) -> subprocess.Popen:
    command = [sys.executable, WORKER, output_dir, str(NUM_CELLS), str(SECONDS_PER_CELL), journal]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def fill(disk: Path) -> Path:
    """A file that leaves no byte of the disk."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


def wait_for_events(journal: Path, kind: str, count: int) -> None:
    """Until the journal has so many more lines that begin alike; the machine may be slow."""
    limit = time.monotonic() + 120
    wanted = sum(line.startswith(kind) for line in journal.read_text().splitlines()) + count
    while sum(line.startswith(kind) for line in journal.read_text().splitlines()) < wanted:
        assert time.monotonic() < limit, "the workers do nothing"
        time.sleep(0.01)


def test_nothing_is_lost_and_nothing_done_twice(disk: Path, tmp_path: Path):
    draw, runs, journal = random.Random(7), disk / "runs", tmp_path / "journal"
    journal.touch()
    workers = [start(runs, journal) for _ in range(WORKERS)]
    for number in range(KILLS):
        wait_for_events(journal, "", draw.randint(8, 30))  # of some 400
        if number == DISK_IS_FULL_AT:
            filler = fill(disk)
            wait_for_events(journal, "fail", 1)
            filler.unlink()
        time.sleep(draw.uniform(0, SECONDS_PER_CELL))
        victim = workers.pop(draw.randrange(len(workers)))
        with journal.open("a") as file:
            file.write(f"kill - {victim.pid}\n")
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        workers.append(start(runs, journal))
    while workers:  # as a user who starts again what ended with an error
        codes = [worker.wait(timeout=120) for worker in workers]
        workers = [start(runs, journal) for code in codes if code]

    events = [line.split() for line in journal.read_text().splitlines()]
    names = [event for event, *_ in events]
    assert names.count("kill") == KILLS and names.count("fail") > 0
    assert_one_at_a_time(events)
    quiet = tmp_path / "quiet"
    subprocess.run([sys.executable, WORKER, quiet, str(NUM_CELLS), "0"], check=True)
    assert_same_tree(runs, quiet)


def assert_one_at_a_time(events: list[list[str]]) -> None:
    """No run starts while another process is at it, and none that is done."""
    working: dict[str, str] = {}
    killed, done = set(), set()
    for event, cell, process in events:
        if event == "kill":
            killed.add(process)
        elif event == "start":
            assert cell not in done
            assert working.get(cell) in (None, *killed), f"{process} starts {cell}, at which {working[cell]} works"
            working[cell] = process
        else:
            assert working.pop(cell) == process
            if event == "done":
                done.add(cell)


def assert_same_tree(runs: Path, quiet: Path) -> None:
    folders = sorted(path.parent.relative_to(quiet) for path in quiet.rglob(run_folder.RESULT_FILE))
    assert len(folders) == NUM_CELLS
    for folder in folders:
        files = {path.name for path in (runs / folder).iterdir()}
        assert files - {".owner"} == {run_folder.ARGUMENTS_FILE, run_folder.ITEMS_FILE, run_folder.RESULT_FILE}
        for name in (run_folder.ARGUMENTS_FILE, run_folder.RESULT_FILE):
            assert json.loads((runs / folder / name).read_text()) == json.loads((quiet / folder / name).read_text())
        scores = (run_folder.read_items(tree / folder)["score"] for tree in (runs, quiet))
        assert np.array_equal(*scores)
    assert len(list(runs.rglob(run_folder.RESULT_FILE))) == NUM_CELLS
