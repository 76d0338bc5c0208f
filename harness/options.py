"""argparse types that all scripts share, and which options a command line holds."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def number(kind: type, low: float, high: float, open_high: bool = False) -> Callable[[str], Any]:
    """An argparse type: a number from `low` to `high` (up to, not with, `high` when `open_high`)."""
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
    """An argparse type that shows the message of the ValueError that `convert` raises."""

    def wrapped(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return wrapped


def filled(value: str) -> str:
    """An argparse type: a text that is not empty."""
    if not value.strip():
        raise argparse.ArgumentTypeError(f"{value!r} is empty")
    return value


def filled_path(value: str) -> Path:
    """An argparse type: a path, which an empty text is not (for Path it is the current folder)."""
    return Path(filled(value))


def unwritable(folder: Path) -> str | None:
    """Why no file can be written into a folder that is there or is to be made; None where one can."""
    above = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not above.is_dir():
        return f"{above} is a file, not a folder"
    return None if os.access(above, os.W_OK | os.X_OK) else f"{above} is read-only"


def folder_template(value: str) -> str:
    """An argparse type: --output_dir, a folder or a template."""
    if value.endswith("\r"):
        raise argparse.ArgumentTypeError(f"{value!r} ends in a carriage return, as in a list whose lines end in CRLF")
    return filled(value)


def typed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """Names of the options that the command line holds, whatever their values; `argv` None stands for sys.argv."""
    untouched = object()
    names = vars(parser.parse_args(argv))
    found = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, untouched))))
    return {name for name, value in found.items() if value is not untouched}


def group_names(text: str) -> list[str]:
    """argparse type of --group_by: names with commas between them."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"{text!r}: names with commas between them, for example model,compression")
    return names


def add_cell_options(
    add: Callable[..., argparse.Action], placeholders: Sequence[str], groups: Sequence[str] = (), runs: str = "cells"
) -> None:
    """The options that say where runs go and which are computed, the same for every script.

    Args:
        placeholders: of --output_dir, that the help text names.
        groups: what --group_by may name; the first two are its example. Without any there is no --group_by.
        runs: what several runs are called.
    """
    add("--output_dir", type=folder_template, required=True,
        help=f"the run's folder; for several {runs} a template with "
        + " ".join(f"{{{name}}}" for name in placeholders))  # fmt: skip
    add("--overwrite", action="store_true", help="replace complete runs")
    add("--list_cells", action="store_true", help="print one single-cell command per line and stop")
    if groups:
        add("--group_by", type=checked(group_names), metavar="NAMES",
            help=f"with --list_cells: one command for all cells that share these, of {', '.join(groups)}; for example "
            f"{','.join(groups[:2])}")  # fmt: skip


positive = number(int, 1, 10**9)
