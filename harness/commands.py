"""The list that --list_cells prints, one command a line, for xargs, GNU parallel or a job array; and reading it back.

A command computes one cell, or with --group_by several. Names and paths are quoted for bash: nothing in them is
expanded or executed, and a line break in them does not break the line.
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

MODEL = "model"  # --group_by may name it, though one command has one model
PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)  # needs no quotes
# Bash's ways to quote: '…', "…", an escaped character, $'…'. shlex does not know the last.
QUOTED = re.compile(r"""'[^']*'|"(?:[^"\\]|\\.)*"|\\.|\$'((?:[^'\\]|\\.)*)'""", re.DOTALL)
ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|(.))", re.DOTALL)


def quote(word: str) -> str:
    """The word quoted for bash, on one line: as $'…' where it holds unprintable characters, else as shlex quotes it."""
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
        return shlex.split(QUOTED.sub(lambda match: match[0] if match[1] is None else _as_shlex(match[1]), line))
    except ValueError as error:
        raise ValueError(f"a quote is not closed in: {line}") from error


def _as_shlex(text: str) -> str:
    """The text inside $'…', quoted for shlex."""
    replaced = ESCAPE.sub(lambda match: bytes([int(match[1], 16)]) if match[1] else match[2], os.fsencode(text))
    return shlex.quote(os.fsdecode(replaced))


def command_line(script: str, options: Mapping[str, Any], output_dir: str) -> str:
    """The shell command that runs `script` with `options`; those that are None, False or an empty list are left out.

    Args:
        output_dir: value of the last option, a template; folder_template makes one of a folder.
    """
    parts = ["python", script]
    others = [(name, value) for name, value in options.items() if name != "output_dir"]
    for name, value in (*others, ("output_dir", output_dir)):
        if value is True:
            parts.append(f"--{name}")
        elif isinstance(value, list | tuple):
            parts += [f"--{name}", *map(_text, value)] if value else []
        elif value is not None and value is not False:
            # argparse takes a separate word that begins with a dash for an option
            parts += [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", _text(value)]
    return " ".join(map(quote, parts))


def _text(value: Any) -> str:
    """The value as a word; a float in its shortest form that reads back as the same float."""
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def folder_template(folder: Path) -> str:
    """The --output_dir of one folder: its braces are doubled, so that they are no placeholders."""
    return str(folder).replace("{", "{{").replace("}", "}}")


def run_folder(line: str) -> Path:
    """The run folder that a line of a list names.

    Raises:
        ValueError: the line has no --output_dir, or one with placeholders, as --group_by prints it.
    """
    last = line.rpartition(" --output_dir ")[2]
    if PLAIN.fullmatch(last):  # the usual line: shlex takes over ten times as long, and a list may hold 100,000 lines
        return Path(last)  # no quote is open before it, since none is closed after it
    parts = words(line)
    folders = [after for word, after in itertools.pairwise(parts) if word == "--output_dir"]
    folders += [word.partition("=")[2] for word in parts if word.startswith("--output_dir=")]
    if not folders:
        raise ValueError(f"no command of --list_cells, it lacks --output_dir: {line}")
    parsed = list(string.Formatter().parse(folders[-1]))
    if any(field is not None for _, field, _, _ in parsed):
        raise ValueError(
            f"a command for several cells, --output_dir {folders[-1]}; give the list made without --group_by: {line}"
        )
    return Path("".join(literal for literal, *_ in parsed))


def print_commands(
    list_cells: bool, folders: Mapping[Path, Cell], template: str, options: Callable[[list[Cell]], Mapping[str, Any]],
    group_by: Sequence[str] | None, expand: Callable[[list[Cell]], Iterable[Cell]],
) -> None:  # fmt: skip
    """Print the list of the running script's sweep: see command_lines.

    Raises:
        ValueError: --group_by without --list_cells, or with a name that cells do not have.
    """
    if not list_cells:
        raise ValueError("--group_by groups what --list_cells prints; give both")
    print_lines(command_lines(sys.argv[0], folders, template, options, group_by, expand))


def print_lines(lines: Iterable[str]) -> None:
    """Print lines until the reader closes the pipe."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:  # as `| head` does; the interpreter's flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command_lines(
    script: str, folders: Mapping[Path, Cell], template: str, options: Callable[[list[Cell]], Mapping[str, Any]],
    group_by: Sequence[str] | None, expand: Callable[[list[Cell]], Iterable[Cell]],
) -> Iterator[str]:  # fmt: skip
    """The list of a sweep: a command for every cell, or for every group of cells that are not complete.

    Args:
        folders: the cells by their folders, as output_folders made them from `template`.
        options: returns the options of a command that computes the given cells.
        group_by: the cells of a group have the same values of these names; None gives every cell its command.
        expand: returns all cells that a command with `options(cells)` computes: every combination of their values. A
            group is split until it is all of these.
    Raises:
        ValueError: `group_by` has a name that cells do not have.
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
    """Groups of cells with the same values of `names`, as few as can each be computed by one command.

    A command computes every combination of its options' values; a group that is not all of these is split further.

    Args:
        expand: see command_lines.
    """
    check_group_names(cells, names)
    for group in split(cells, [name for name in names if name != MODEL]):
        yield from _exact(group, list(group[0]), expand)


def check_group_names(cells: list[Cell], names: Sequence[str]) -> None:
    """Raises ValueError where --group_by has a name that cells do not have."""
    allowed = [MODEL, *cells[0]]
    for name in names:
        if name not in allowed:
            raise ValueError(f"--group_by {name}: cells have no such property; allowed: {', '.join(allowed)}")


def split(cells: Iterable[Cell], names: Sequence[str]) -> list[list[Cell]]:
    """Cells with the same values of `names` together, in the order in which they first appear."""
    by_values: dict[tuple, list[Cell]] = {}
    for cell in cells:
        by_values.setdefault(tuple(cell[name] for name in names), []).append(cell)
    return list(by_values.values())


def _exact(cells: list[Cell], names: list[str], expand: Callable[[list[Cell]], Iterable[Cell]]) -> Iterator[list[Cell]]:
    if not names or {_key(cell) for cell in expand(cells)} == {_key(cell) for cell in cells}:
        yield cells
        return
    for group in split(cells, names[:1]):
        yield from _exact(group, names[1:], expand)


def _key(cell: Cell) -> str:
    return repr(sorted(cell.items()))


def values(cells: Iterable[Cell], name: str) -> list:
    """The different values of one property, in the order of the cells, without None."""
    return [value for value in dict.fromkeys(cell[name] for cell in cells) if value is not None]
