"""argparse types and options that all scripts share, and which options a command line has."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def number(kind: type, low: float, high: float, open_high: bool = False) -> Callable[[str], Any]:
    """An argparse type: a number of this kind, int or float, in [low, high], or in [low, high) if `open_high`."""
    bounds = f"[{low:g}, {high:g}{')' if open_high else ']'}"

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__}; allowed: {bounds}") from None
        if not low <= value <= high or (open_high and value == high):
            raise argparse.ArgumentTypeError(f"{text} is outside {bounds}")
        return value

    return convert


def checked(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """The argparse type `convert`, with the message of its ValueError shown to the user."""

    def wrapped(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return wrapped


def filled(value: str) -> str:
    """An argparse type: a text with more than white space."""
    if not value.strip():
        raise argparse.ArgumentTypeError(f"{value!r} is empty")
    return value


def filled_path(value: str) -> Path:
    """An argparse type: a path; an empty text is refused, which Path takes as the current folder."""
    return Path(filled(value))


def folder_template(value: str) -> str:
    """An argparse type of --output_dir: a folder, or a template with placeholders."""
    if value.endswith("\r"):
        raise argparse.ArgumentTypeError(f"{value!r} ends in a carriage return, as in a list whose lines end in CRLF")
    return filled(value)


def check_data_dir(data_dir: Path | None) -> None:
    """Raises ValueError where a folder of data sets is given that is none, or that cannot be read."""
    if data_dir is not None and not (folder := Path(data_dir).expanduser()).is_dir():
        raise ValueError(f"--data_dir {folder} is no folder")
    if data_dir is not None and not os.access(folder, os.R_OK | os.X_OK):
        raise ValueError(f"--data_dir {folder} cannot be read: permission denied")


def typed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """Names of the options that a command line gives, even if with their default; `argv` None is sys.argv."""
    untouched = object()
    names = vars(parser.parse_args(argv))
    parsed = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, untouched))))
    return {name for name, value in parsed.items() if value is not untouched}


def group_names(text: str) -> list[str]:
    """An argparse type of --group_by: names separated by commas."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"{text!r}: allowed are names separated by commas, for example model,compression")
    return names


def add_cell_options(
    group: argparse._ArgumentGroup, placeholders: Sequence[str], groups: Sequence[str] = (), runs: str = "cells",
    dry_run: str = "",
) -> None:  # fmt: skip
    """Add the options that say where runs are written and which are computed, the same for every script.

    Args:
        placeholders: those of --output_dir, for the help text.
        groups: names that --group_by allows; the first two are its example. If empty, there is no --group_by.
        runs: what the help text calls the runs of a sweep.
        dry_run: help text of --dry_run, which excludes --list_cells. If empty, there is no --dry_run.
    """
    add, add_exclusive = group.add_argument, group.add_mutually_exclusive_group().add_argument
    add("--output_dir", type=folder_template, required=True,
        help=f"the run's folder; for several {runs} a template with "
        + " ".join(f"{{{name}}}" for name in placeholders))  # fmt: skip
    add("--overwrite", action="store_true", help="replace complete runs")
    add_exclusive("--list_cells", action="store_true", help="print one single-cell command per line and stop")
    if dry_run:
        add_exclusive("--dry_run", action="store_true", help=dry_run)
    if groups:
        add("--group_by", type=checked(group_names), metavar="NAMES",
            help=f"with --list_cells: one command for all cells with equal values of these names: {', '.join(groups)}; "
            f"for example {','.join(groups[:2])}")  # fmt: skip


positive = number(int, 1, 10**9)
