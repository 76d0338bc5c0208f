"""How far a sweep is: how many cells are done, running (and alive), failed, stopped or missing, and the time left.

    bash scripts/setting5.sh --list_cells >cells.txt
    python scripts/status.py runs/setting5 cells.txt

The list is the one without --group_by. Without a list, the runs that were started in the folder are told. The lines of
cells that are still to be done, for xargs or a job array:

    python scripts/status.py runs/setting5 cells.txt --print_lines failed stopped missing >rest.txt

Exit code: 0 all cells are done (or their lines are printed); 1 some failed; 2 a wrong option or list, or no cell at
all; 3 none failed, but some run, were stopped before their end, or are missing. It only reads (and touches one file, to
learn what the file system's clock says), needs no torch, and may run anywhere that sees the folder, while the sweep
runs.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from analysis import terminal
from harness import leases, status
from harness.cells import duration
from harness.commands import print_lines
from harness.options import filled_path, number


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("tree", type=filled_path, metavar="TREE", help="the folder that holds the sweep's runs")
    add(
        "list",
        type=filled_path,
        metavar="LIST",
        nargs="?",
        help="what --list_cells printed; - reads it from standard input",
    )
    add("--show", type=number(int, 0, 10**9), default=20, metavar="N",
        help="cells told one by one, of each state but done (default 20)")  # fmt: skip
    add("--print_lines", nargs="+", choices=status.STATES, metavar="STATE",
        help=f"print the list's lines of cells in these states, nothing else: {', '.join(status.STATES)}")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the sweep's state; the exit code says it in short."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.print_lines and args.list is None:
        parser.error("--print_lines prints lines of LIST; give one")
    if args.list is not None and str(args.list) != "-" and not args.list.is_file():
        parser.error(f"LIST: there is no file {args.list}")
    if args.list is None and not args.tree.is_dir():
        parser.error(f"TREE: there is no folder {args.tree}; a sweep that has not begun needs its list")
    try:
        return run(args)
    except ValueError as error:
        parser.error(str(error))


def run(args: argparse.Namespace) -> int:
    now = leases.file_system_time(args.tree)
    if args.list is None:
        report = status.survey(status.started_folders(args.tree), now, args.show)
    else:
        # a line ends with \n alone: names may hold what else Python takes for the end of one
        # and is read as names of folders are, in whatever encoding
        how = {"newline": "\n", "encoding": sys.getfilesystemencoding(), "errors": "surrogateescape"}
        with contextlib.nullcontext(sys.stdin) if str(args.list) == "-" else args.list.open(**how) as lines:
            listed = status.read_list(lines, args.tree)
            if args.print_lines:
                print_lines(line for line, folder in listed if status.state_of(folder, now)[0] in args.print_lines)
                return 0
            report = status.survey((folder for _, folder in listed), now, args.show)
    if not any(report.counts.values()):
        empty = f"TREE {args.tree}: no run was started there" if args.list is None else f"LIST {args.list}: no command"
        raise ValueError(empty)
    print_report(report, args.tree)
    return status.exit_code(report.counts)


def print_report(report: status.Report, tree: Path) -> None:
    counts = report.counts
    others = ", ".join(f"{counts[state]} {state}" for state in status.STATES if state != status.DONE and counts[state])
    print(f"{tree}: {counts[status.DONE]} of {sum(counts.values())} cells done{', ' if others else ''}{others}")
    for state, cells in report.details.items():
        for folder, detail in cells:
            print(f"{state:8} {folder}  {detail}")
        if counts[state] > len(cells):
            print(f"{state:8} … and {counts[state] - len(cells)} more")
    left = status.seconds_left(report)
    if left is None:
        print("time left: not known, no cell is done yet")
    elif left:
        running = counts[status.RUNNING]
        pace = f"{running} at a time" if running else "one at a time; none runs now"
        print(f"time left: about {duration(left)}, {pace}")


if __name__ == "__main__":
    terminal.run(main)
