"""How far a sweep is, read from its run folders while processes of this and other hosts work on them."""

import os
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from harness import commands, leases, run_folder
from harness.cells import run_seconds
from harness.folders import folders_with

DONE, RUNNING, FAILED, STOPPED, MISSING = "done", "running", "failed", "stopped", "missing"
STATES = (DONE, RUNNING, FAILED, STOPPED, MISSING)
SECONDS_SAMPLE = 1000  # most complete runs from which the time of a run is estimated


class Listed(NamedTuple):
    """A line of a list made by --list_cells, and the folder of its run."""

    line: str
    folder: Path


class Report(NamedTuple):
    """How far a sweep is.

    Fields:
        counts: number of cells in each of STATES.
        details: by state other than done, the first cells: folder, and what is known about it.
        seconds: seconds that each of a random sample of complete runs took.
    """

    counts: dict[str, int]
    details: dict[str, list[tuple[Path, str]]]
    seconds: list[float]


def read_list(lines: Iterable[str], tree: Path) -> Iterator[Listed]:
    """The cells of a list, each folder once.

    Raises:
        ValueError: a line is no command for one cell, or its folder is not below `tree` (names the line's number).
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


def started_folders(tree: Path) -> list[Path]:
    """Folders below `tree` in which a run was started, whether it is complete or not."""
    return folders_with([run_folder.ARGUMENTS_FILE, run_folder.FAILURE_FILE, leases.OWNER_FILE], tree)


def state_of(folder: Path, now: float) -> tuple[str, str]:
    """The state of a run, one of STATES, and a text with what else is known about it.

    Args:
        now: time of the tree's file system (leases.file_system_time).
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
        now: see state_of.
        show: number of cells in `details` of each state.
    """
    counts = dict.fromkeys(STATES, 0)
    details: dict[str, list[tuple[Path, str]]] = {state: [] for state in STATES if state != DONE}
    sample: list[Path] = []
    draw = random.Random(0)
    for folder in folders:
        state, detail = state_of(folder, now)
        counts[state] += 1
        if state != DONE:
            if len(details[state]) < show:
                details[state].append((folder, detail))
        elif len(sample) < SECONDS_SAMPLE:
            sample.append(folder)
        elif (index := draw.randrange(counts[DONE])) < SECONDS_SAMPLE:  # reservoir sampling
            sample[index] = folder
    return Report(counts, details, [seconds for folder in sample if (seconds := run_seconds(folder)) is not None])


def seconds_left(report: Report) -> float | None:
    """Estimated seconds until all cells that did not fail are done; None while no run is complete.

    The median time of complete runs times the cells left, running ones counted whole, over the number of running ones.
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
