"""How far a sweep is, read from the run folders alone while other processes, also of other hosts, work on them."""

import os
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from harness import commands, leases, run_folder
from harness.cells import run_seconds

DONE, RUNNING, FAILED, STOPPED, MISSING = "done", "running", "failed", "stopped", "missing"
STATES = (DONE, RUNNING, FAILED, STOPPED, MISSING)
SECONDS_SAMPLE = 1000  # so many finished runs tell how long one takes


class Listed(NamedTuple):
    """A line of a list made by --list_cells, and the folder of its run."""

    line: str
    folder: Path


class Report(NamedTuple):
    """How far a sweep is.

    Fields:
        counts: number of cells in each of STATES.
        told: per state but done, the first cells' folders with what is known about each.
        seconds: how long finished runs took, of a sample of them.
    """

    counts: dict[str, int]
    told: dict[str, list[tuple[Path, str]]]
    seconds: list[float]


def read_list(lines: Iterable[str], tree: Path) -> Iterator[Listed]:
    """The cells of a list, each folder once.

    Raises:
        ValueError: a line is no single-cell command, or its folder is not below `tree` (names the line's number).
    """
    top = os.path.join(os.path.abspath(tree), "")
    seen = set()
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\n").removesuffix("\r")
        if not line.strip():
            continue
        try:
            folder = commands.run_folder(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        path = os.path.abspath(folder)
        if not (path + os.sep).startswith(top):
            raise ValueError(f"line {number}: {folder} is not below {tree}; run this where the list was made")
        if path not in seen:
            seen.add(path)
            yield Listed(line, folder)


def started_folders(tree: Path) -> Iterator[Path]:
    """Folders below `tree` in which a run was started, whatever became of it."""
    marks = {run_folder.ARGUMENTS_FILE, run_folder.FAILURE_FILE, leases.OWNER_FILE}
    for folder, subfolders, files in os.walk(tree):
        subfolders.sort()
        if marks & set(files):
            yield Path(folder)


def state_of(folder: Path, now: float) -> tuple[str, str]:
    """The state of a run, one of STATES, and what else is known about it.

    Args:
        now: the file system's time, leases.file_system_time of the tree.
    """
    if run_folder.is_complete(folder):
        return DONE, ""
    owner = leases.owner(folder, now)
    if owner is not None and owner.alive:
        return RUNNING, f"process {owner.pid} on {owner.host}, last sign of life {owner.quiet_seconds:.0f} s ago"
    if run_folder.is_complete(folder):  # its owner finished between the two looks
        return DONE, ""
    failure = run_folder.read_failure(folder)
    if failure is not None:
        return FAILED, f"{failure['error']} ({failure['time']}, {failure['host']})"
    if owner is not None or (folder / run_folder.ARGUMENTS_FILE).is_file():
        return STOPPED, "its process ended before the run did" + (f" (on {owner.host})" if owner else "")
    return MISSING, "never started"


def survey(folders: Iterable[Path], now: float, show: int = 20) -> Report:
    """Look at every run once, in bounded memory.

    Args:
        show: how many cells of a state are told one by one.
    """
    counts = dict.fromkeys(STATES, 0)
    told: dict[str, list[tuple[Path, str]]] = {state: [] for state in STATES if state != DONE}
    sample: list[Path] = []
    draw = random.Random(0)
    for folder in folders:
        state, detail = state_of(folder, now)
        counts[state] += 1
        if state != DONE:
            if len(told[state]) < show:
                told[state].append((folder, detail))
        elif len(sample) < SECONDS_SAMPLE:
            sample.append(folder)
        elif (place := draw.randrange(counts[DONE])) < SECONDS_SAMPLE:  # every finished run is as likely to stay
            sample[place] = folder
    return Report(counts, told, [seconds for folder in sample if (seconds := run_seconds(folder)) is not None])


def seconds_left(report: Report) -> float | None:
    """Until all cells that did not fail are done, as many at a time as now; None while no run is done.

    Median time of the finished runs times the cells that are left, over those that run. One that runs counts whole.
    """
    if not report.seconds:
        return None
    left = sum(report.counts[state] for state in (RUNNING, STOPPED, MISSING))
    return statistics.median(report.seconds) * left / max(1, report.counts[RUNNING])


def exit_code(counts: Mapping[str, int]) -> int:
    """0: all done; 1: some failed; 3: none failed, but some run, were stopped or are missing (2 is a wrong option)."""
    if counts[FAILED]:
        return 1
    return 3 if any(counts[state] for state in STATES if state != DONE) else 0
