"""Printed commands through bash: nothing in a name is executed, one command stays one line, groups are exact."""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from harness import commands, options
from harness.cells import Cell, output_folders

# Every name tries to make a file called "executed".
HOSTILE = [
    "it's; touch executed",
    "$(touch executed)",
    "`touch executed`",
    'a"; touch executed; "b',
    "a\ntouch executed",
    "a\r\n$(touch executed)\t'x' \\ \\n",
    "a'$(touch executed)'b",
    "$'a\\x27; touch executed'",
    "& touch executed & > executed",
    "* ? ~ {a,b} !! #",
    "\u2028touch executed\x1b[2J",
    "caf\u00e9 \u00a0 \udcff",
    "--overwrite",
    "-n",
    "",
    " ",
]
SHOW = "import json, os, sys; print(json.dumps([list(os.fsencode(word)) for word in sys.argv[1:]]))"


def in_bash(line: str, folder: Path) -> list[str]:
    """What the words of a line are to the program that bash starts; nothing else may have happened."""
    stand_in = folder / "python"
    stand_in.write_text(f'#!/bin/bash\nexec {sys.executable} -c {commands.quote(SHOW)} "$@"\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["python"], "the line did something else too"
    return [os.fsdecode(bytes(word)) for word in json.loads(done.stdout)]


def test_hostile_names_reach_the_program_and_nothing_is_executed(tmp_path: Path):
    options = {f"option{number}": name for number, name in enumerate(HOSTILE)}
    line = commands.command_line("a script's.py", options, commands.folder_template(Path("runs/$(x)\n{y}")))
    assert "\n" not in line and "\r" not in line
    given = in_bash(line, tmp_path)
    assert commands.words(line) == ["python", *given]
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in (*options, "output_dir"):
        parser.add_argument(f"--{name}")
    read = vars(parser.parse_args(given[1:]))
    assert read == {**options, "output_dir": "runs/$(x)\n{{y}}"}
    assert given[0] == "a script's.py"


@pytest.mark.parametrize(
    "runner",
    ["xargs -P 2 -d '\\n' -n 1 bash -c <list", 'for i in $(seq $(wc -l <list)); do sed -n "${i}p" list | bash; done'],
)
def test_hostile_lists_run_line_by_line(runner: str, tmp_path: Path):
    """As INSTALL.md says: one command per line and nothing but these commands."""
    (tmp_path / "x.py").write_text("import os, sys\nopen(f'{len(sys.argv[2])}.ran', 'a').write('x')\n")
    lines = [commands.command_line("x.py", {"name": name}, "o") for name in HOSTILE if not name.startswith("-")]
    python = f'python() {{ {sys.executable} "$@"; }}; export -f python; '
    (tmp_path / "list").write_text("\n".join(lines) + "\n")
    subprocess.run(["bash", "-c", python + runner], cwd=tmp_path, check=True)
    assert not (tmp_path / "executed").exists()
    assert sum(len(path.read_text()) for path in tmp_path.glob("*.ran")) == len(lines)


def test_words_reads_what_people_quote_and_refuses_an_open_quote():
    line = """python  x.py --a "b c"'d'e\\ f '' $HOME"""
    assert commands.words(line) == ["python", "x.py", "--a", "b cde f", "", "$HOME"]
    with pytest.raises(ValueError, match="a quote is not closed in: python 'x"):
        commands.words("python 'x")


def test_random_words_are_read_back_by_us_and_by_bash(tmp_path: Path):
    draw = random.Random(0)
    pieces = [*"ab $'\"\\ {}=-\t\n\r", "$'", "' $", "\\x41", "\u00e9", "\u2028", "\udcff", "\x07"]
    lists = [["".join(draw.choices(pieces, k=draw.randrange(9))) for _ in range(12)] for _ in range(300)]
    for some in lists:
        assert commands.words(" ".join(map(commands.quote, some))) == some
    hundred = list(itertools.chain(*lists[:9]))
    assert in_bash(f"python {' '.join(map(commands.quote, hundred))}", tmp_path) == hundred


def test_a_dollar_before_a_closing_quote_opens_nothing():
    """Lists quote such a word as '…', and the next word may begin with a space."""
    assert commands.words("""python --price 'US $' --unit '' --seed ' 1' $'a\\x0ab'""") == [
        "python", "--price", "US $", "--unit", "", "--seed", " 1", "a\nb"
    ]  # fmt: skip


def test_command_line_leaves_out_what_is_off_and_puts_the_folder_last():
    options = {"output_dir": "t", "noembed": True, "overwrite": False, "nm_ratio": None, "bits": [], "seed": [1, 2],
               "model": "a b", "group_size": -1}  # fmt: skip
    expected = "python x.py --noembed --seed 1 2 --model 'a b' --group_size=-1 --output_dir o"
    assert commands.command_line("x.py", options, "o") == expected


def test_the_folder_of_a_line_is_read_back():
    for name in [*HOSTILE, "a{b}c"]:
        folder = Path("runs") / name
        assert commands.run_folder(commands.command_line("x.py", {}, commands.folder_template(folder))) == folder
    assert commands.run_folder("python x.py --output_dir=-a --seed 3") == Path("-a")
    assert commands.run_folder("python x.py --output_dir a --name 'b --output_dir c'") == Path("a")
    assert commands.run_folder("python x.py --output_dir a --name b") == Path("a")


def test_lines_without_one_folder_are_refused():
    with pytest.raises(ValueError, match="no command of --list_cells, it lacks --output_dir: echo a"):
        commands.run_folder("echo a")
    with pytest.raises(ValueError, match=r"several cells, --output_dir runs/\{seed\}; give the list made without"):
        commands.run_folder("python x.py --output_dir 'runs/{seed}'")


def combined(cells: list[Cell]) -> list[Cell]:
    """A script whose options make all combinations, but b = 2 only where a = 1."""
    named = [commands.values(cells, name) for name in ("a", "b", "c")]
    return [dict(zip("abc", row, strict=True)) for row in itertools.product(*named) if row[1] == 1 or row[0] == 1]


ALL = [{"a": a, "b": b, "c": c} for a in (1, 2) for b in (1, 2) for c in (1, 2) if b == 1 or a == 1]


@pytest.mark.parametrize(
    ("names", "sizes"),
    [(["model"], [6]), (["a"], [4, 2]), (["b"], [4, 2]), (["a", "c", "model"], [2, 2, 1, 1]), (list("abc"), [1] * 6)],
)
def test_groups_share_what_is_asked_and_are_all_cells_once(names: list[str], sizes: list[int]):
    found = list(commands.groups(ALL, names, combined))
    assert [len(group) for group in found] == sizes
    assert sorted(map(str, itertools.chain(*found))) == sorted(map(str, ALL))
    for group in found:
        assert all(len({cell[name] for cell in group}) == 1 for name in names if name != "model")


def test_a_group_that_options_cannot_say_is_split():
    """Without a rule for b, all combinations of {(1,1), (1,2), (2,1)} would hold (2,2)."""

    def product(cells: list[Cell]) -> list[Cell]:
        named = [commands.values(cells, name) for name in "abc"]
        return [dict(zip("abc", row, strict=True)) for row in itertools.product(*named)]

    found = list(commands.groups(ALL, ["model"], product))
    assert [len(group) for group in found] == [4, 2]
    assert all(sorted(map(str, product(group))) == sorted(map(str, group)) for group in found)


def test_unknown_names_and_empty_ones_are_refused():
    with pytest.raises(ValueError, match="--group_by d: cells have no such property; allowed: model, a, b, c"):
        list(commands.groups(ALL, ["d"], combined))
    with pytest.raises(ValueError, match="'a,': allowed are names separated by commas, for example model,compression"):
        options.group_names("a,")
    assert options.group_names("model, a") == ["model", "a"]


def test_group_by_needs_list_cells(capsys: pytest.CaptureFixture):
    folders = output_folders("o/{a}/{b}/{c}", ALL)
    with pytest.raises(ValueError, match="--group_by groups what --list_cells prints; give both"):
        commands.print_commands(False, folders, "o/{a}/{b}/{c}", lambda cells: {}, ["a"], combined)
    commands.print_commands(
        True, folders, "o/{a}/{b}/{c}", lambda cells: {"a": commands.values(cells, "a")}, ["a"], combined
    )
    lines = capsys.readouterr().out.splitlines()
    assert [commands.words(line)[2:] for line in lines] == [
        ["--a", str(a), "--output_dir", "o/{a}/{b}/{c}"] for a in (1, 2)
    ]


def test_a_reader_that_has_seen_enough_ends_the_list_quietly():
    """More than a pipe holds, so that the list meets the closed pipe while it prints."""
    program = (
        "from pathlib import Path\n"
        "from harness.commands import print_commands\n"
        "cells = {Path(str(seed)): {'seed': seed} for seed in range(20000)}\n"
        "print_commands(True, cells, '{seed}', lambda some: {'seed': [cell['seed'] for cell in some]}, None, list)\n"
    )
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" -c "$1" | head -1', sys.executable, program],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stderr, done.stdout.count("\n"), done.returncode) == ("", 1, 0)
