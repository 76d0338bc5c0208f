"""The cells of a sweep: a run folder for each, and the loop that computes the runs that are not complete.

A cell is a dict with one value for every argument that may vary; it becomes one run in one folder. What the values mean
is the script's business. Naming folders, skipping complete runs, waiting for other processes and recording failures are
the same for all scripts and are done here.
"""

import itertools
import json
import logging
import math
import os
import statistics
import string
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from harness import leases, records, run_folder
from harness.errors import describe_error

logger = logging.getLogger(__name__)

Cell = dict[str, Any]
# Between checks of the runs that other processes compute: a tenth of the time waited so far, within these bounds. So a
# long wait seldom asks the file system, and a short one ends soon after the run does.
POLL_SECONDS, MOST_POLL_SECONDS = 0.5, 30.0
TIMED_RUNS = 100  # complete runs, spread over the sweep, from which the time of a run is estimated
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, on Linux


class _Step(NamedTuple):
    """What run_cells does next.

    Fields:
        action: "skip", "compute", "busy" (another process computes the run), "fail", or "wait" (nothing to do).
        folder: the run's; None for "wait".
        reason: of "fail".
    """

    action: str
    folder: Path | None = None
    reason: str = ""


def start_logging() -> None:
    """Log to standard error; the other processes of a distributed job log errors alone."""
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def output_folders(template: str, cells: Iterable[Cell]) -> dict[Path, Cell]:
    """One folder per cell, from a template such as "runs/{task_name}/{strength}/{seed}".

    Raises:
        ValueError: braces that hold no placeholder or an unknown one, a value that cannot name a folder, a path that
            is too long, or two cells with the same folder (names the placeholders to add).
    """
    cells = list(cells)
    fields = _placeholders(template)
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
                f"--output_dir {template}: {str(folder)[:80]}… is too long; allowed: {LONGEST_NAME} bytes in a "
                f"folder's name, {LONGEST_PATH} in the path"
            )
        if folder in folders:
            varying = sorted(name for name in cell if cell[name] != folders[folder][name] and name not in fields)
            placeholders = " or ".join(f"{{{name}}}" for name in varying) or "another seed: two cells are the same"
            raise ValueError(f"--output_dir {template} gives several runs the folder {folder}; add {placeholders}")
        folders[folder] = cell
    return folders


def _placeholders(template: str) -> set[str]:
    """The names in the braces of a template.

    Raises:
        ValueError: a brace is not closed or not opened, or a placeholder has a conversion or a format.
    """
    try:
        parsed = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError:  # in the words of Python's formats
        parsed = None
    if parsed is None or any(form or conversion for _, _, form, conversion in parsed):
        raise ValueError(
            f"--output_dir {template}: a placeholder is a name in braces and nothing else, such as {{seed}}; a brace "
            "of the folder's own name is written twice"
        )
    return {field for _, field, _, _ in parsed}


def _check_name(template: str, field: str, value: str) -> None:
    """Raises ValueError where a value cannot name a folder, or would lead out of the template's folders."""
    if value in ("", ".", "..") or "/" in value or os.sep in value or not value.isprintable():
        raise ValueError(
            f"--output_dir {template}: {{{field}}} is {value!r}; the name of a folder has no slash, no control "
            "characters, and is not empty, '.' or '..'"
        )


def check_folders(arguments: Mapping[Path, dict[str, Any]], overwrite: bool = False) -> None:
    """Refuse, before anything is computed, folders that cannot be written or that hold other runs.

    Args:
        arguments: the identity of each folder's run.
    Raises:
        DifferentRunError: a folder holds a complete run with other arguments (not with `overwrite`).
        ValueError: a folder cannot be written, and its run is not complete.
    """
    pending: dict[Path, Path] = {}  # by what there is already: one of the runs that are to be written below
    for folder, identity in arguments.items():
        if not overwrite and run_folder.is_complete(folder):
            run_folder.check_same_run(folder, identity)
        else:
            pending.setdefault(_existing(folder), folder)
    for folder in pending.values():
        if reason := unwritable(folder):
            raise ValueError(f"--output_dir {folder}: {reason}")


def pending_runs(folders: Mapping[Path, Cell], overwrite: bool) -> dict[Path, Cell]:
    """The runs that are to be computed: those that are not complete, or all."""
    return {folder: cell for folder, cell in folders.items() if overwrite or not run_folder.is_complete(folder)}


def unwritable(folder: Path) -> str | None:
    """Why no file can be written into a folder, which may not exist yet; None where one can."""
    above = _existing(folder)
    if not above.is_dir():
        return f"{above} is a file, not a folder"
    if not os.access(above, os.W_OK | os.X_OK):
        return f"{above} is read-only"
    try:  # what the permissions allow may be impossible all the same: in /proc, or where the disk is full
        tempfile.TemporaryDirectory(dir=above).cleanup()
    except OSError as error:
        return f"{above} takes no new folder: {error.strerror}"
    return None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))


def check_listed(
    folders: Mapping[Path, Cell], options_of: Callable[[Cell], Mapping[str, Any]], overwrite: bool = False
) -> None:
    """Refuse, before cells are listed, complete runs that were made with other options, as the runs would be refused.

    Neither model nor data are read: a complete run is taken to have those that are asked for. Where options name others
    than its record does, that is logged, since they may be copies.

    Args:
        options_of: the entries of a cell's identity that options alone determine; None for one that is not recorded.
        overwrite: complete runs are computed again; nothing is refused.
    Raises:
        DifferentRunError: names every option that differs.
    """
    named = {}
    for folder in () if overwrite else filter(run_folder.is_complete, folders):
        record, options = run_folder.recorded_identity(folder) or {}, options_of(folders[folder])
        if record:
            run_folder.check_same_run(folder, {**record, **options})
        for name in {*options} & {*record} & set(itertools.chain(*records.CONTENT.values())):
            here, there = options[name], record[name]
            if here is not None and os.path.abspath(str(here)) != os.path.abspath(str(there)):
                named.setdefault(f"{name}: {here!r} here, {there!r} there", folder)
    for difference, folder in sorted(named.items()):
        logger.warning("%s is complete and taken for the run that is listed, although it says %s", folder, difference)


def run_cells(
    arguments: Mapping[Path, dict[str, Any]],
    compute: Callable[[Path], None],
    overwrite: bool = False,
    share: Callable[[Any], Any] | None = None,
    is_main: bool = True,
    fails_together: bool = False,
) -> int:
    """Compute every run that is not complete; one that fails, for whatever reason, does not stop the others.

    A complete run with the same arguments is skipped. A run that another process computes is waited for after all
    others are done, so that every run is complete when this returns 0. A run that fails leaves failure.json. The log
    says first how many runs there are to compute, and after each about how long the rest will take.

    Args:
        arguments: the identity of each folder's run (args.json).
        compute: computes the run of a folder; must end with run_folder.write_run.
        overwrite: compute complete runs again.
        share: in a distributed job, returns the main process's value in every process. A run that fails then ends the
            job, since its processes would wait for each other.
        is_main: whether this is the job's main process, which chooses the runs and holds their leases.
        fails_together: a run fails in all processes of the job or in none, so that the job can go on with the next.
    Returns:
        Number of runs that failed; 0 in processes that are not the main one.
    Raises:
        DifferentRunError: another process completed a run with other arguments in one of the folders.
    """
    failures: dict[Path, str] = {}
    seconds: list[float] = []  # of the runs computed here
    skipped = 0
    if is_main:
        logger.info(plan_line([folder for folder in arguments if run_folder.is_complete(folder)], len(arguments),
                                    overwrite))  # fmt: skip
    waiting: dict[Path, leases.RunLease] = {}
    with closing(_steps(arguments, overwrite, waiting)) as steps:
        while step := _next(steps, share, is_main):
            if step.action == "skip":
                logger.info("%s: complete, skipped", step.folder)
                skipped += 1
            elif step.action == "busy":
                logger.info("%s: another process computes it; waited for after the others", step.folder)
            elif step.action == "fail":
                logger.error("%s: %s", step.folder, step.reason)
                failures[step.folder] = step.reason
            elif step.action == "compute":
                started = time.monotonic()
                try:
                    compute(step.folder)
                    seconds.append(time.monotonic() - started)
                    left = left_text(seconds, len(arguments) - skipped - len(failures) - len(seconds))
                    logger.info("%s: done in %.0f s%s", step.folder, seconds[-1], left)
                # Any error is caught, here alone: a model's files, a library or a user's method may raise anything, and
                # the next cell is computed all the same. failure.json has the traceback.
                except Exception as error:
                    if share and not fails_together:
                        _record_failure(step.folder, error)
                        raise
                    if isinstance(error, leases.LostRunError):
                        logger.warning("%s; waited for after the others", error)
                        waiting[step.folder] = leases.RunLease(step.folder)
                        continue
                    logger.error("%s: failed: %s", step.folder, describe_error(error))
                    if is_main:
                        _record_failure(step.folder, error)
                        failures[step.folder] = describe_error(error)
    failed = len(failures)
    if is_main:
        computed = len(arguments) - skipped - failed
        logger.info("%d runs: %d computed, %d already complete, %d failed", len(arguments), computed, skipped, failed)
    for folder, reason in failures.items():
        logger.error("failed: %s (%s)", folder, reason)
    return failed


def _next(steps: Iterator[_Step], share: Callable[[Any], Any] | None, is_main: bool) -> _Step | None:
    step = next(steps, None) if is_main else None
    return share(step) if share else step


def _steps(
    arguments: Mapping[Path, dict[str, Any]], overwrite: bool, waiting: dict[Path, leases.RunLease]
) -> Iterator[_Step]:
    """The steps for all folders, and again for those in `waiting` until none is left.

    The lease of a run to compute is held until the next step is asked for.
    """
    for folder in arguments:
        yield from _steps_of(folder, arguments[folder], overwrite, waiting)
    since = time.monotonic()
    while waiting:
        before = len(waiting)
        for folder in list(waiting):
            yield from _steps_of(folder, arguments[folder], overwrite, waiting)
        if len(waiting) < before:  # other processes are at work: their next run may be done soon
            since = time.monotonic()
        if waiting:
            time.sleep(poll_seconds(time.monotonic() - since))
            yield _Step("wait")  # shared with the other processes of a job, so that none of them waits for long


def poll_seconds(waited: float) -> float:
    """Seconds to sleep before the next check, `waited` seconds after a run was last completed elsewhere."""
    return min(MOST_POLL_SECONDS, max(POLL_SECONDS, waited / 10))


def _steps_of(
    folder: Path, arguments: dict[str, Any], overwrite: bool, waiting: dict[Path, leases.RunLease]
) -> Iterator[_Step]:
    if not overwrite and run_folder.is_complete(folder):  # without a lease: a complete tree may be read-only
        run_folder.check_same_run(folder, arguments)
        waiting.pop(folder, None)
        yield _Step("skip", folder)
        return
    lease = waiting.get(folder) or leases.RunLease(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lease.acquire()
    except OSError as error:
        waiting.pop(folder, None)
        yield _Step("fail", folder, describe_error(error))
        return
    if not held:
        if folder not in waiting:
            waiting[folder] = lease
            yield _Step("busy", folder)
        return
    waiting.pop(folder, None)
    try:
        complete = not overwrite and run_folder.is_complete(folder)  # another process may just have finished it
        if complete:
            run_folder.check_same_run(folder, arguments)
        yield _Step("skip" if complete else "compute", folder)
    finally:
        lease.release()


def _record_failure(folder: Path, error: BaseException) -> None:
    try:
        leases.check(folder)
        run_folder.write_failure(folder, error)
    except (OSError, leases.LostRunError) as reason:
        logger.error("%s: why it failed cannot be written: %s", folder, reason)


def run_seconds(folder: Path) -> float | None:
    """Seconds that a complete run took; None where its result is missing or not of this project."""
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
    """A text such as "2 h 4 min"."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def plan_line(complete: Sequence[Path], cells: int, overwrite: bool = False) -> str:
    """One line for the log: how many cells there are, are complete and are left, and about how long these will take.

    Args:
        complete: folders of the sweep's complete runs, from which the time is estimated.
        cells: number of cells of the sweep, complete ones included.
        overwrite: complete runs are computed again.
    """
    left = cells if overwrite else cells - len(complete)
    counts = f"{cells} cells: {len(complete)} complete, {left} to compute"
    if not left:
        return counts
    sample = complete[:: max(1, len(complete) // TIMED_RUNS)]
    seconds = [taken for folder in sample if (taken := run_seconds(folder)) is not None]
    if not seconds:
        return f"{counts}; an estimate of the time follows the first"
    typical = statistics.median(seconds)
    return (
        f"{counts}; complete ones took {duration(typical)} each (median), so about {duration(typical * left)} one "
        "after the other if this machine is as fast"
    )


def left_text(seconds: Sequence[float], left: int) -> str:
    """What is left after some cells were computed: "; 8 left, about 2 h 4 min at this pace"; empty after the last.

    Args:
        seconds: of each cell computed so far.
        left: number of cells that are not done yet.
    """
    return f"; {left} left, about {duration(statistics.fmean(seconds) * left)} at this pace" if left else ""
