"""Cells: from arguments that take several values to run folders, and the loop that computes what is not there yet.

A cell is a dict that holds one value for every argument that may vary; it becomes one run in one folder. Scripts differ
in what a cell means; the folder names, skipping, waiting and failing are the same for all and stand here.
"""

import logging
import os
import shlex
import string
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from analysis import results

logger = logging.getLogger(__name__)

Cell = dict[str, Any]
# What a cell may die of without a mistake in the program: no memory, NaN, full disk, data that does not fit.
CELL_ERRORS = (ArithmeticError, OSError, RuntimeError, ValueError)


def start_logging() -> None:
    """Our lines to standard error, in a distributed job from the main process alone."""
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def output_folders(template: str, cells: Iterable[Cell]) -> dict[Path, Cell]:
    """One folder per cell, from a template such as "runs/{task_name}/{strength}/{seed}".

    Raises:
        ValueError: an unknown placeholder, or two cells that would share a folder (names what must be added).
    """
    cells = list(cells)
    fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    allowed = set(cells[0])
    if fields - allowed:
        unknown = ", ".join(f"{{{name}}}" for name in sorted(fields - allowed))
        raise ValueError(
            f"--output_dir {template}: {unknown} is no placeholder; there are {', '.join(map(repr, sorted(allowed)))}"
        )
    folders: dict[Path, Cell] = {}
    for cell in cells:
        folder = Path(template.format(**cell))
        if folder in folders:
            varying = sorted(name for name in cell if cell[name] != folders[folder][name] and name not in fields)
            placeholders = " or ".join(f"{{{name}}}" for name in varying) or "another seed: two cells are the same"
            raise ValueError(f"--output_dir {template} gives several runs the folder {folder}; add {placeholders}")
        folders[folder] = cell
    return folders


def command_line(script: str, options: Mapping[str, Any], folder: Path) -> str:
    """The shell command that runs one cell: `options` without those that are None or False, and its own folder."""
    words = ["python", script]
    for name, value in {**options, "output_dir": str(folder)}.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            values = value if isinstance(value, list | tuple) else [value]
            words += [f"--{name}", *map(str, values)]
    return shlex.join(words)


def check_folders(arguments: Mapping[Path, dict[str, Any]], overwrite: bool = False) -> None:
    """Refuse, before anything is computed, folders that cannot be written or that hold other runs.

    Raises:
        DifferentRunError: a folder holds a complete run with other arguments (not with `overwrite`).
        ValueError: a folder cannot be written.
    """
    for folder, identity in arguments.items():
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise ValueError(f"--output_dir {folder}: {existing} is a file, not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ValueError(f"--output_dir {folder}: {existing} cannot be written")
        if not overwrite:
            results.check_same_run(folder, identity)


def run_cells(
    arguments: Mapping[Path, dict[str, Any]],
    compute: Callable[[Path], None],
    overwrite: bool = False,
    share: Callable[[Any], Any] | None = None,
    is_main: bool = True,
) -> int:
    """Compute every run that is not complete yet; one that fails does not stop the others.

    A complete run with the same arguments is skipped. A run that another process holds is left to it until all others
    are done, then waited for: when this returns 0, every run is complete.

    Args:
        arguments: what identifies the run of each folder (args.json).
        compute: makes the run of a folder; must end with results.write_run.
        overwrite: compute complete runs again.
        share: in a distributed job, gives every process the main one's value; a failed run then ends the job, since
            its processes would wait for each other.
        is_main: whether this process decides and locks for the job.
    Returns:
        Number of runs that failed, for the exit code.
    Raises:
        DifferentRunError: a folder came to hold a complete run with other arguments.
    """
    failures: dict[Path, str] = {}
    skipped = 0
    waiting: list[Path] = []
    for folder, wait in _twice(list(arguments), waiting):
        with _claim(folder, arguments[folder], overwrite, wait, is_main) as own_action:
            action = share(own_action) if share else own_action
            if action == "busy":
                logger.info("%s: another process computes it; waited for after the others", folder)
                waiting.append(folder)
            elif action == "skip":
                logger.info("%s: complete, skipped", folder)
                skipped += 1
            else:
                started = time.monotonic()
                try:
                    compute(folder)
                    logger.info("%s: done in %.0f s", folder, time.monotonic() - started)
                except CELL_ERRORS as error:
                    if share:
                        raise
                    logger.exception("%s: failed", folder)
                    failures[folder] = f"{type(error).__name__}: {error}".splitlines()[0]
    failed = len(failures)
    computed = len(arguments) - skipped - failed
    logger.info("%d runs: %d computed, %d already complete, %d failed", len(arguments), computed, skipped, failed)
    for folder, reason in failures.items():
        logger.error("failed: %s (%s)", folder, reason)
    return failed


def _twice(folders: list[Path], waiting: list[Path]) -> Iterator[tuple[Path, bool]]:
    """Every folder without waiting, then those that came to stand in `waiting`."""
    yield from ((folder, False) for folder in folders)
    yield from ((folder, True) for folder in waiting)


@contextmanager
def _claim(
    folder: Path, arguments: dict[str, Any], overwrite: bool, wait: bool, is_main: bool
) -> Iterator[str | None]:
    """Hold the folder's lock while the caller works on it; yields "skip", "busy" or "compute", None if not main."""
    if not is_main:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield "busy"
        return
    try:
        if not overwrite:
            results.check_same_run(folder, arguments)
        yield "skip" if results.is_complete(folder) and not overwrite else "compute"
    finally:
        lock.release()
