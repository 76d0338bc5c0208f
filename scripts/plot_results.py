"""Draw everything that trees of runs hold: the paper's figures, their tables, and a summary.

    python scripts/plot_results.py --results_dir runs/setting1
    python scripts/plot_results.py --results_dir runs/qnli runs/sst2 --output_dir figures --formats png pdf --dpi 300

Writes, for every setting, model and magnitude threshold found, each figure as .png (or another format) with its numbers
beside it as .csv, and one summary.md over all. Needs neither torch nor a display. The last lines printed are the files.
"""

import argparse
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from analysis import figures, results, summary, tables

logger = logging.getLogger("plot_results")

FIGURES: dict[str, tuple[Callable[[list], Figure], Callable[[list], list]]] = {
    "data_adequacy": (figures.data_adequacy, tables.data_adequacy_table),
    "four_transfers": (figures.four_transfers, tables.four_transfers_table),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments; ends the program where a folder is missing or holds nothing to draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--results_dir", type=Path, nargs="+", required=True, metavar="DIR",
        help="folders below which the runs lie, at any depth; they are drawn together",
    )  # fmt: skip
    parser.add_argument(
        "--output_dir", type=Path, default=Path("Images_png"), metavar="DIR",
        help="where figures, tables and summary.md are written (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--dpi", type=int, default=150, help="dots per inch of png files, 1 or more (default: 150)")
    parser.add_argument(
        "--formats", nargs="+", choices=("png", "pdf", "svg"), default=["png"],
        help="file formats of the figures (default: png)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.dpi < 1:
        parser.error(f"--dpi {args.dpi}: must be 1 or more")
    for folder in args.results_dir:
        if not folder.is_dir():
            parser.error(f"--results_dir {folder}: there is no such folder")
        if next(folder.rglob(results.RESULT_FILE), None) is None:
            started = len(results.unfinished_runs(folder))
            parser.error(f"--results_dir {folder}: holds no complete run ({started} started, not complete)")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        rows = results.read_runs(*args.results_dir)
        sets = tables.figure_sets(rows)
    except ValueError as error:
        sys.exit(f"plot_results.py: {error}")
    unfinished = results.unfinished_runs(*args.results_dir)
    logger.info("%d complete runs, %d not complete", len({row["folder"] for row in rows}), len(unfinished))
    for caution in summary.cautions(rows, unfinished):
        logger.warning(caution)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    names = tables.model_names({model for _, model, _ in sets})
    files = {}
    for key, members in sets.items():
        setting, model, scope = key
        # The global threshold is the default and the paper's; only the other one is named.
        ending = names[model] + ("_per_layer" if scope == "layer" else "")
        files[key] = write_figures(members, args.output_dir, f"setting{setting}", ending, args.formats, args.dpi)
    text = summary.summary_text(rows, unfinished, files)
    results.replace_file(args.output_dir / "summary.md", text.encode())
    for file in [*itertools.chain(*files.values()), "summary.md"]:
        print(args.output_dir / file)


def write_figures(
    members: list[tables.Row], output_dir: Path, beginning: str, ending: str, formats: list[str], dpi: int
) -> list[str]:
    """Draw what these runs, which belong in one figure, allow; names of the files written."""
    written = []
    for figure_name, (draw, tabulate) in FIGURES.items():
        table = tabulate(members)
        if not table:
            continue
        stem = f"{beginning}_{figure_name}_{ending}"
        figure = draw(members)
        contents = {f"{stem}.{name}": figures.encode(figure, name, dpi) for name in formats}
        contents[f"{stem}.csv"] = tables.csv_text(table).encode()
        for name, content in contents.items():
            results.replace_file(output_dir / name, content)
            written.append(name)
    return written


if __name__ == "__main__":
    main()
