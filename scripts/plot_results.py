"""Draw everything that trees of runs hold: the paper's figures, their tables, and a summary.

    python scripts/plot_results.py --results_dir runs/setting1
    python scripts/plot_results.py --results_dir runs/qnli runs/sst2 --output_dir figures --formats png pdf --dpi 300

Writes, for every setting, model and magnitude threshold found, each figure as .png (or another format) with its numbers
beside it as .csv; of settings 2 to 6 without training and of your own tasks, a figure for every model; of perplexity,
one for every model and text; and one summary.md over all. Needs neither torch nor a display. The last lines printed are
the files.
"""

import argparse
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from analysis import drawing, figures, level_figures, level_tables, results, summary, tables

logger = logging.getLogger("plot_results")

# Of fine-tuning runs: each is drawn of every set of tables.figure_sets that has a table for it.
FIGURES: dict[str, tuple[Callable[[list], Figure], Callable[[list], list]]] = {
    "data_adequacy": (figures.data_adequacy, tables.data_adequacy_table),
    "four_transfers": (figures.four_transfers, tables.four_transfers_table),
}


class Plot(NamedTuple):
    """One figure and its table.

    Fields:
        key: of the set of runs, under which summary.md shows it.
        stem: file name without ending.
        draw: the function of analysis.figures or level_figures.
        members: the runs that it draws.
        table, columns: the CSV.
    """

    key: tuple
    stem: str
    draw: Callable[[list[tables.Row]], Figure]
    members: list[tables.Row]
    table: list[tables.Row]
    columns: tuple[str, ...]


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
    parser.add_argument(
        "--metric", nargs="+", default=[], metavar="NAME",
        help="settings 2 to 6 and own tasks: score by this metric instead of the runs' own where it was recorded, such "
        "as accuracy_norm or contains (default: the runs' own)",
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
        rows = level_tables.with_metric(results.read_runs(*args.results_dir), args.metric)
        plots = fine_tuning_plots(rows) + level_plots(rows) + perplexity_plots(rows)
    except ValueError as error:
        sys.exit(f"plot_results.py: {error}")
    unfinished = results.unfinished_runs(*args.results_dir)
    logger.info("%d complete runs, %d not complete", len({row["folder"] for row in rows}), len(unfinished))
    for caution in summary.cautions(rows, unfinished):
        logger.warning(caution)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    files: dict[tuple, list[str]] = {}
    for plot in plots:
        files.setdefault(plot.key, []).extend(write_plot(plot, args.output_dir, args.formats, args.dpi))
    text = summary.summary_text(rows, unfinished, files)
    results.replace_file(args.output_dir / "summary.md", text.encode())
    for file in [*itertools.chain(*files.values()), "summary.md"]:
        print(args.output_dir / file)


def fine_tuning_plots(rows: list[tables.Row]) -> list[Plot]:
    """The FIGURES of every setting, model and magnitude threshold that has the runs for them."""
    sets = tables.figure_sets(rows)
    names = tables.model_names({model for _, model, _ in sets})
    plots = []
    for key, members in sets.items():
        setting, model, scope = key
        # The global threshold is the default and the paper's; only the other one is named.
        ending = names[model] + ("_per_layer" if scope == "layer" else "")
        for figure_name, (draw, tabulate) in FIGURES.items():
            stem = f"setting{setting}_{figure_name}_{ending}"
            plots.append(Plot(key, stem, draw, members, tabulate(members), tables.POINT_COLUMNS))
    return [plot for plot in plots if plot.table]


def level_plots(rows: list[tables.Row]) -> list[Plot]:
    """One of every setting without training, model and task with compressed runs."""
    sets = level_tables.level_sets(rows)
    models = tables.model_names({key.model for key in sets})
    tasks = tables.text_names({key.task for key in sets})
    plots = []
    for key, members in sets.items():
        table = level_tables.level_table(members)
        if level_tables.level_curves(table):
            setting = key.setting if key.setting == level_tables.OWN_TASK else f"setting{key.setting}"
            stem = f"{setting}_{tasks[key.task]}_{models[key.model]}"
            plots.append(Plot(key, stem, level_figures.levels, members, table, level_tables.LEVEL_COLUMNS))
    return plots


def perplexity_plots(rows: list[tables.Row]) -> list[Plot]:
    """One of every model and text with compressed runs."""
    sets = tables.perplexity_sets(rows)
    models = tables.model_names({model for _, model, _ in sets})
    texts = tables.text_names({text for _, _, text in sets})
    plots = []
    for key, members in sets.items():
        setting, model, text = key
        table = tables.perplexity_table(members)
        if tables.perplexity_curves(table):
            stem = f"{setting}_{texts[text]}_{models[model]}"
            plots.append(Plot(key, stem, figures.perplexity, members, table, tables.PERPLEXITY_COLUMNS))
    return plots


def write_plot(plot: Plot, output_dir: Path, formats: list[str], dpi: int) -> list[str]:
    """Draw it; names of the files written."""
    figure = plot.draw(plot.members)
    contents = {f"{plot.stem}.{name}": drawing.encode(figure, name, dpi) for name in formats}
    contents[f"{plot.stem}.csv"] = tables.csv_text(plot.table, plot.columns).encode()
    for name, content in contents.items():
        results.replace_file(output_dir / name, content)
    return list(contents)


if __name__ == "__main__":
    main()
