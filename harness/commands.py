"""Command lines of cells: what --list_cells prints, one a line, for xargs, GNU parallel or a job array, and reads back.

A line is for bash, whatever names and paths hold: nothing in them is expanded or executed, and a line break in them is
no break in the list. It runs one cell, or with --group_by several that options can say together.
"""

import itertools
import os
import re
import shlex
import string
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.cells import Cell
from harness.run_folder import is_complete

MODEL = "model"  # one command has one; a group may be named by it
PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)  # needs no quotes
# What bash reads as one piece: '…', "…", an escaped character, $'…'. Only the last is unknown to shlex.
QUOTED = re.compile(r"""'[^']*'|"(?:[^"\\]|\\.)*"|\\.|\$'((?:[^'\\]|\\.)*)'""", re.DOTALL)
ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|(.))", re.DOTALL)


def quote(word: str) -> str:
    """The word as bash reads it back, on one line: $'…' where it holds unprintable characters, else as shlex quotes."""
    if word.isprintable():
        return shlex.quote(word)
    characters = (
        character if character.isprintable() and character not in "'\\"
        else "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
        for character in word
    )  # fmt: skip
    return f"$'{''.join(characters)}'"


def words(line: str) -> list[str]:
    """The words of a line as bash reads them; variables and commands in it are not expanded.

    Raises:
        ValueError: a quote is not closed.
    """
    try:
        return shlex.split(QUOTED.sub(lambda piece: piece[0] if piece[1] is None else _as_shlex(piece[1]), line))
    except ValueError as error:
        raise ValueError(f"a quote is not closed in: {line}") from error


def _as_shlex(text: str) -> str:
    """What stands inside $'…', quoted as shlex reads it."""
    replaced = ESCAPE.sub(lambda match: bytes([int(match[1], 16)]) if match[1] else match[2], os.fsencode(text))
    return shlex.quote(os.fsdecode(replaced))


def command_line(script: str, options: Mapping[str, Any], output_dir: str) -> str:
    """The shell command that runs `script` with `options`, without those that are None, False or an empty list.

    Args:
        output_dir: the last option; a template as scripts take it, so that a brace of a plain folder is doubled.
    """
    parts = ["python", script]
    others = [(name, value) for name, value in options.items() if name != "output_dir"]
    for name, value in (*others, ("output_dir", output_dir)):
        if value is True:
            parts.append(f"--{name}")
        elif isinstance(value, list | tuple):
            parts += [f"--{name}", *map(_text, value)] if value else []
        elif value is not None and value is not False:
            # a value with a dash in front would pass for an option
            parts += [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", _text(value)]
    return " ".join(map(quote, parts))


def _text(value: Any) -> str:
    """The value as a command line says it: a number in the shortest way that is exactly it."""
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def folder_template(folder: Path) -> str:
    """The --output_dir that names exactly this folder."""
    return str(folder).replace("{", "{{").replace("}", "}}")


def run_folder(line: str) -> Path:
    """The run's folder that a single-cell line of a list names.

    Raises:
        ValueError: the line has no --output_dir, or one with placeholders.
    """
    last = line.rpartition(" --output_dir ")[2]
    if PLAIN.fullmatch(last):  # the usual line: shlex takes over ten times as long, and a list may hold 100,000 lines
        return Path(last)  # no quote is open before it, since none is closed after it
    parts = words(line)
    folders = [after for word, after in itertools.pairwise(parts) if word == "--output_dir"]
    folders += [word.partition("=")[2] for word in parts if word.startswith("--output_dir=")]
    if not folders:
        raise ValueError(f"no command of --list_cells, it lacks --output_dir: {line}")
    pieces = list(string.Formatter().parse(folders[-1]))
    if any(field is not None for _, field, _, _ in pieces):
        raise ValueError(
            f"a command for several cells, --output_dir {folders[-1]}; give the list made without --group_by: {line}"
        )
    return Path("".join(literal for literal, *_ in pieces))


def print_commands(
    list_cells: bool, folders: Mapping[Path, Cell], template: str, options: Callable[[list[Cell]], Mapping[str, Any]],
    group_by: Sequence[str] | None, expand: Callable[[list[Cell]], Iterable[Cell]],
) -> None:  # fmt: skip
    """Print the list of the running script's sweep, as command_lines makes it.

    Raises:
        ValueError: --group_by without --list_cells, or by what cells do not have.
    """
    if not list_cells:
        raise ValueError("--group_by groups what --list_cells prints; give both")
    print_lines(command_lines(sys.argv[0], folders, template, options, group_by, expand))


def print_lines(lines: Iterable[str]) -> None:
    """Print a list for as long as someone reads it."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; the interpreter's own flush at its end must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command_lines(
    script: str, folders: Mapping[Path, Cell], template: str, options: Callable[[list[Cell]], Mapping[str, Any]],
    group_by: Sequence[str] | None, expand: Callable[[list[Cell]], Iterable[Cell]],
) -> Iterator[str]:  # fmt: skip
    """The list of a sweep: one command per cell, or per group of cells that are not complete.

    Args:
        folders: the cells by their folders, as output_folders made them from `template`.
        options: the options that run some cells.
        group_by: names of what the cells of a group share; None gives every cell a command.
        expand: all cells that a command with `options(some)` computes; a group is split until that is the group.
    Raises:
        ValueError: --group_by names what cells do not have.
    """
    if group_by is None:
        for folder, cell in folders.items():
            yield command_line(script, options([cell]), folder_template(folder))
    else:
        check_group_names(list(folders.values()), group_by)
        todo = [cell for folder, cell in folders.items() if options([cell]).get("overwrite") or not is_complete(folder)]
        for group in groups(todo, group_by, expand) if todo else ():
            yield command_line(script, options(group), template)


def groups(
    cells: list[Cell], names: Sequence[str], expand: Callable[[list[Cell]], Iterable[Cell]]
) -> Iterator[list[Cell]]:
    """Cells that share their values of `names`, as few groups as commands can say.

    Options make every combination of their values; a group that is not all combinations is split further.
    """
    check_group_names(cells, names)
    for group in split(cells, [name for name in names if name != MODEL]):
        yield from _exact(group, list(group[0]), expand)


def check_group_names(cells: list[Cell], names: Sequence[str]) -> None:
    """Raises ValueError where --group_by names what cells do not have."""
    allowed = [MODEL, *cells[0]]
    for name in names:
        if name not in allowed:
            raise ValueError(f"--group_by {name}: cells have no such property; allowed: {', '.join(allowed)}")


def split(cells: Iterable[Cell], names: Sequence[str]) -> list[list[Cell]]:
    """Cells with the same values of `names` together, in the order in which they first appear."""
    found: dict[tuple, list[Cell]] = {}
    for cell in cells:
        found.setdefault(tuple(cell[name] for name in names), []).append(cell)
    return list(found.values())


def _exact(cells: list[Cell], names: list[str], expand: Callable[[list[Cell]], Iterable[Cell]]) -> Iterator[list[Cell]]:
    if not names or {_key(cell) for cell in expand(cells)} == {_key(cell) for cell in cells}:
        yield cells
        return
    for group in split(cells, names[:1]):
        yield from _exact(group, names[1:], expand)


def _key(cell: Cell) -> str:
    return repr(sorted(cell.items()))


def values(cells: Iterable[Cell], name: str) -> list:
    """The different values of one property, in order, without None."""
    return [value for value in dict.fromkeys(cell[name] for cell in cells) if value is not None]
