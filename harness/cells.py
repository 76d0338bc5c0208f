"""Cells: from arguments that take several values to run folders, and the loop that computes what is not there yet.

A cell is a dict that holds one value for every argument that may vary; it becomes one run in one folder. Scripts differ
in what a cell means; the folder names, skipping, waiting and failing are the same for all and stand here.
"""

import json
import logging
import math
import os
import statistics
import string
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from harness import leases, run_folder

logger = logging.getLogger(__name__)

Cell = dict[str, Any]
# Between looks at the runs that other processes hold: a tenth of the time waited, within these bounds, so that a long
# wait asks the file system seldom and a short one is hardly longer for it.
POLL_SECONDS, MOST_POLL_SECONDS = 0.5, 30.0
TIMED_RUNS = 100  # complete runs, spread over the sweep, tell how long one takes
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes that Linux takes


class _Turn(NamedTuple):
    """What comes next: "skip", "compute" or "busy" (held by another process) with a folder; "wait"; "fail"."""

    action: str
    folder: Path | None = None
    reason: str = ""


def start_logging() -> None:
    """Our lines to standard error, in a distributed job from the main process alone."""
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def output_folders(template: str, cells: Iterable[Cell]) -> dict[Path, Cell]:
    """One folder per cell, from a template such as "runs/{task_name}/{strength}/{seed}".

    Raises:
        ValueError: an unknown placeholder, a value that is no name of a folder, or two cells that would share a folder
            (names what must be added).
    """
    cells = list(cells)
    fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    allowed = set(cells[0])
    if fields - allowed:
        unknown = ", ".join(f"{{{name}}}" for name in sorted(fields - allowed))
        raise ValueError(
            f"--output_dir {template}: {unknown} is no placeholder; there are {', '.join(map(repr, sorted(allowed)))}"
        )
    for field in sorted(fields):
        for value in {str(cell[field]) for cell in cells}:
            _check_name(template, field, value)
    folders: dict[Path, Cell] = {}
    for cell in cells:
        folder = Path(template.format(**cell))
        longest = max((len(os.fsencode(name)) for name in folder.parts), default=0)
        if longest > LONGEST_NAME or len(bytes(folder)) > LONGEST_PATH:
            raise ValueError(
                f"--output_dir {template}: {str(folder)[:80]}… is too long; folders have {LONGEST_NAME} bytes at most"
            )
        if folder in folders:
            varying = sorted(name for name in cell if cell[name] != folders[folder][name] and name not in fields)
            placeholders = " or ".join(f"{{{name}}}" for name in varying) or "another seed: two cells are the same"
            raise ValueError(f"--output_dir {template} gives several runs the folder {folder}; add {placeholders}")
        folders[folder] = cell
    return folders


def _check_name(template: str, field: str, value: str) -> None:
    """Refuse a value that would lead out of the template's folders, or that no file system takes."""
    if value in ("", ".", "..") or "/" in value or os.sep in value or not value.isprintable():
        raise ValueError(
            f"--output_dir {template}: {{{field}}} is {value!r}; the name of a folder has no slash, no control "
            "characters, and is not empty, '.' or '..'"
        )


def check_folders(arguments: Mapping[Path, dict[str, Any]], overwrite: bool = False) -> None:
    """Refuse, before anything is computed, folders that cannot be written or that hold other runs.

    Raises:
        DifferentRunError: a folder holds a complete run with other arguments (not with `overwrite`).
        ValueError: a folder cannot be written, and its run is not complete.
    """
    for folder, identity in arguments.items():
        if not overwrite and run_folder.is_complete(folder):
            run_folder.check_same_run(folder, identity)
            continue
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise ValueError(f"--output_dir {folder}: {existing} is a file, not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ValueError(f"--output_dir {folder}: {existing} cannot be written")


def run_cells(
    arguments: Mapping[Path, dict[str, Any]],
    compute: Callable[[Path], None],
    overwrite: bool = False,
    share: Callable[[Any], Any] | None = None,
    is_main: bool = True,
    fails_together: bool = False,
) -> int:
    """Compute every run that is not complete yet; one that fails, of whatever, does not stop the others.

    Logs first how many there are to compute, and after each how long the rest takes at the pace so far.

    A complete run with the same arguments is skipped. A run that another process holds is left to it until all others
    are done, then waited for: when this returns 0, every run is complete. A run that fails leaves failure.json.

    Args:
        arguments: what identifies the run of each folder (args.json).
        compute: makes the run of a folder; must end with run_folder.write_run.
        overwrite: compute complete runs again.
        share: in a distributed job, gives every process the main one's value; a failed run then ends the job, since
            its processes would wait for each other.
        is_main: whether this process decides and holds the runs for the job.
        fails_together: the processes of a job leave a run that fails together, and go on with the next.
    Returns:
        Number of runs that failed, for the exit code; 0 in processes that are not the main one.
    Raises:
        DifferentRunError: a folder came to hold a complete run with other arguments.
    """
    failures: dict[Path, str] = {}
    seconds: list[float] = []  # of the runs computed here
    skipped = 0
    if is_main:
        logger.info(plan_line([folder for folder in arguments if run_folder.is_complete(folder)], len(arguments),
                                    overwrite))  # fmt: skip
    waiting: dict[Path, leases.RunLease] = {}
    with closing(_turns(arguments, overwrite, waiting)) as turns:
        while turn := _next(turns, share, is_main):
            if turn.action == "skip":
                logger.info("%s: complete, skipped", turn.folder)
                skipped += 1
            elif turn.action == "busy":
                logger.info("%s: another process computes it; waited for after the others", turn.folder)
            elif turn.action == "fail":
                logger.error("%s: %s", turn.folder, turn.reason)
                failures[turn.folder] = turn.reason
            elif turn.action == "compute":
                started = time.monotonic()
                try:
                    compute(turn.folder)
                    seconds.append(time.monotonic() - started)
                    left = left_text(seconds, len(arguments) - skipped - len(failures) - len(seconds))
                    logger.info("%s: done in %.0f s%s", turn.folder, seconds[-1], left)
                # The one place where any error is caught: a model's files, a library or a method of one's own may raise
                # what nobody foresaw, and the next cell shall be computed all the same. failure.json has the traceback.
                except Exception as error:
                    if share and not fails_together:
                        _record_failure(turn.folder, error)
                        raise
                    if isinstance(error, leases.LostRunError):
                        logger.warning("%s; waited for after the others", error)
                        waiting[turn.folder] = leases.RunLease(turn.folder)
                        continue
                    logger.error("%s: failed: %s", turn.folder, run_folder.describe_error(error))
                    if is_main:
                        _record_failure(turn.folder, error)
                        failures[turn.folder] = run_folder.describe_error(error)
    failed = len(failures)
    if is_main:
        computed = len(arguments) - skipped - failed
        logger.info("%d runs: %d computed, %d already complete, %d failed", len(arguments), computed, skipped, failed)
    for folder, reason in failures.items():
        logger.error("failed: %s (%s)", folder, reason)
    return failed


def _next(turns: Iterator[_Turn], share: Callable[[Any], Any] | None, is_main: bool) -> _Turn | None:
    turn = next(turns, None) if is_main else None
    return share(turn) if share else turn


def _turns(
    arguments: Mapping[Path, dict[str, Any]], overwrite: bool, waiting: dict[Path, leases.RunLease]
) -> Iterator[_Turn]:
    """What to do with every folder, which is held while the caller does it; runs of others are looked at again."""
    for folder in arguments:
        yield from _turn(folder, arguments[folder], overwrite, waiting)
    since = time.monotonic()
    while waiting:
        before = len(waiting)
        for folder in list(waiting):
            yield from _turn(folder, arguments[folder], overwrite, waiting)
        if len(waiting) < before:  # the others are at work: the next may be done soon
            since = time.monotonic()
        if waiting:
            time.sleep(poll_seconds(time.monotonic() - since))
            yield _Turn("wait")  # the other processes of a job take part in every turn, so that none waits for long


def poll_seconds(waited: float) -> float:
    """How long to sleep before the next look, after so many seconds without news."""
    return min(MOST_POLL_SECONDS, max(POLL_SECONDS, waited / 10))


def _turn(
    folder: Path, arguments: dict[str, Any], overwrite: bool, waiting: dict[Path, leases.RunLease]
) -> Iterator[_Turn]:
    if not overwrite and run_folder.is_complete(folder):  # needs no lock: a tree that cannot be written may be complete
        run_folder.check_same_run(folder, arguments)
        waiting.pop(folder, None)
        yield _Turn("skip", folder)
        return
    lock = waiting.get(folder) or leases.RunLease(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except OSError as error:
        waiting.pop(folder, None)
        yield _Turn("fail", folder, run_folder.describe_error(error))
        return
    if not held:
        if folder not in waiting:
            waiting[folder] = lock
            yield _Turn("busy", folder)
        return
    waiting.pop(folder, None)
    try:
        complete = not overwrite and run_folder.is_complete(folder)  # another process may just have finished it
        if complete:
            run_folder.check_same_run(folder, arguments)
        yield _Turn("skip" if complete else "compute", folder)
    finally:
        lock.release()


def _record_failure(folder: Path, error: BaseException) -> None:
    try:
        leases.check(folder)
        run_folder.write_failure(folder, error)
    except (OSError, leases.LostRunError) as reason:
        logger.error("%s: why it failed cannot be written: %s", folder, reason)


def run_seconds(folder: Path) -> float | None:
    """How long a finished run took; None where it is being replaced just now, or is no run of this project."""
    path = folder / run_folder.RESULT_FILE
    try:
        seconds = float(json.loads(path.read_bytes())["seconds"])
        return seconds if math.isfinite(seconds) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s is counted as done, but was not written by this project: %r", path, error)
        return None


def duration(seconds: float) -> str:
    """In words, by the two largest units."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def plan_line(complete: Sequence[Path], cells: int, overwrite: bool = False) -> str:
    """What a sweep is about to compute, in one line, with a rough time where complete runs of it tell one.

    Args:
        complete: folders of the sweep's complete runs.
        cells: of the sweep, complete or not.
        overwrite: complete runs are computed again.
    """
    left = cells if overwrite else cells - len(complete)
    told = f"{cells} cells: {len(complete)} complete, {left} to compute"
    if not left:
        return told
    sample = complete[:: max(1, len(complete) // TIMED_RUNS)]
    seconds = [taken for folder in sample if (taken := run_seconds(folder)) is not None]
    if not seconds:
        return f"{told}; the time is told after the first"
    typical = statistics.median(seconds)
    return (
        f"{told}; complete ones took {duration(typical)} each (median), so about {duration(typical * left)} one after "
        "the other where this machine is as fast"
    )


def left_text(seconds: Sequence[float], left: int) -> str:
    """What is left after some cells were computed: "; 8 left, about 2 h 4 min at this pace"; empty after the last.

    Args:
        seconds: that the cells computed here took.
        left: cells that are not done yet.
    """
    return f"; {left} left, about {duration(statistics.fmean(seconds) * left)} at this pace" if left else ""
