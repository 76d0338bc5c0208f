"""What a long list of cells costs besides the cells' own work: seconds and memory, by the number of cells.

    python scripts/benchmark.py cells
    python scripts/benchmark.py cells --counts 1000 10000 --dir /scratch

Stages: "folders" makes the folders' names from the template and the cells; "list" prints the commands; "check" compares
with an empty tree, as a start does; "skip" is a start, check included, when every run is complete. Each number of cells
is measured in a separate process. CPU seconds stand beside those of the clock, which a shared file system or machine
stretches. The trees take a folder and two small files a cell, and are removed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import run_folder
from harness.cells import Cell, check_folders, output_folders, run_cells
from harness.commands import command_lines
from harness.options import filled_path, positive
from measuring import make_parser, markdown_table
from process_memory import peak_bytes, reset_peak, resident_bytes

STRENGTHS = 10
OPTIONS = {f"option_{number}": f"value {number}" for number in range(45)}  # as many as a script has
STAGES = ("folders", "list", "check", "skip")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--counts", type=positive, nargs="+", default=[1000, 10_000, 100_000], metavar="N",
                        help="numbers of cells (default 1000 10000 100000)")  # fmt: skip
    parser.add_argument(
        "--dir", type=filled_path, help="where the trees are made (default: the system's temporary folder)"
    )
    parser.add_argument("--measure", action="store_true", help="started by itself: measure here, print JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.measure:
        with tempfile.TemporaryDirectory(dir=args.dir) as folder:
            print(json.dumps(measure(args.counts[0], Path(folder))))
        return
    titles = ["cells", *(f"{stage} s (CPU s)" for stage in STAGES), "memory above start MB"]
    rows = []
    for count in args.counts:
        command = [sys.executable, __file__, "--measure", "--counts", str(count)]
        command += ["--dir", str(args.dir)] if args.dir else []
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        times = [f"{clock:.1f} ({cpu:.1f})" for clock, cpu in (found[stage] for stage in STAGES)]
        rows.append([str(count), *times, f"{found['memory'] / 1e6:.0f}"])
    print(markdown_table(titles, rows))


def measure(count: int, folder: Path) -> dict[str, Any]:
    """(Seconds, CPU seconds) of each stage, and by how many bytes the process grew at most."""
    reset_peak()
    before = resident_bytes()
    times: dict[str, tuple[float, float]] = {}
    template = str(folder / "{compression}" / "{strength}" / "{seed}")
    folders = timed("folders", times, lambda: output_folders(template, make_cells(count)))
    timed("list", times, lambda: sum(len(line) for line in command_lines(
        "script.py", folders, template, lambda cells: {**OPTIONS, **cells[0]}, None, list)))  # fmt: skip
    identities = {run: {**OPTIONS, **cell} for run, cell in folders.items()}
    timed("check", times, lambda: check_folders(identities))
    for run, identity in identities.items():
        complete(run, identity)
    timed("skip", times, lambda: (check_folders(identities), run_cells(identities, refuse)))
    return {**times, "memory": peak_bytes() - before}


def make_cells(count: int) -> list[Cell]:
    return [{"compression": "wanda", "strength": f"{number % STRENGTHS / STRENGTHS:g}", "seed": number // STRENGTHS}
            for number in range(count)]  # fmt: skip


def complete(folder: Path, identity: dict[str, Any]) -> None:
    """The files of a complete run, written fast and without run_folder.write_run's care."""
    folder.mkdir(parents=True)
    (folder / run_folder.ARGUMENTS_FILE).write_text(json.dumps({"arguments": identity, "environment": {}}, indent=2))
    (folder / run_folder.RESULT_FILE).write_text("{}")


def refuse(folder: Path) -> None:
    raise AssertionError(f"{folder} is complete")


def timed(stage: str, times: dict[str, tuple[float, float]], work: Callable[[], Any]) -> Any:
    """Return what the work returns; its seconds and CPU seconds become times[stage]."""
    clock, cpu = time.monotonic(), time.process_time()
    result = work()
    times[stage] = time.monotonic() - clock, time.process_time() - cpu
    return result


if __name__ == "__main__":
    main()
