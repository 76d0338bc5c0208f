"""Draw everything that trees of runs hold: the paper's figures, their tables, a summary and a report.

    python scripts/plot_results.py --results_dir runs/setting1
    python scripts/plot_results.py --results_dir runs/qnli runs/sst2 --output_dir figures --formats png pdf --dpi 300

Writes each figure as .png (or another format) with its numbers beside it as .csv: of fine-tuning for every setting,
model and magnitude threshold found; of settings 2 to 6 and your own tasks for every model, and where pruning is
measured beside quantization or low rank, one by size, where layers are compressed one at a time a heat map, and where
sparsity is allocated its difference from uniform; of all these together the answers that flip, and of each model the
methods beside each other by bytes; of several domains, translation, lines between models, perplexity and what training
brings back likewise. summary.md says over all what was found, what to beware of, which runs are missing, and ours
beside the paper's numbers; report.html is the same with all figures in one file to send around. Needs neither torch nor
a display. The last lines printed are the files.
"""

import argparse
import itertools
import logging
import sys
from pathlib import Path

from analysis import report, style, summary, terminal
from analysis.curves import BYTES, SIZES
from analysis.kinds import FLIPS_STEM, ORIGINAL_NAMES, Plot, describe, original_figures
from analysis.resampling import RESAMPLES
from analysis.rescored import with_metric
from analysis.table import csv_text
from harness import run_folder
from harness.cells import unwritable
from harness.folders import folders_with
from harness.options import filled_path

logger = logging.getLogger("plot_results")
SUMMARY, REPORT = "summary.md", "report.html"
FORMATS = ("png", "pdf", "svg")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments; ends the program where a folder is missing or holds nothing to draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--results_dir", type=filled_path, nargs="+", required=True, metavar="DIR",
        help="folders below which the runs lie, at any depth; they are drawn together",
    )  # fmt: skip
    parser.add_argument(
        "--output_dir", type=filled_path, default=Path("Images_png"), metavar="DIR",
        help="where figures, tables, summary.md and report.html are written (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--dpi", type=int, default=150, help="dots per inch of png files, 1 or more (default: 150)")
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=["png"],
        help="file formats of the figures (default: png)",
    )  # fmt: skip
    parser.add_argument(
        "--metric", nargs="+", default=[], metavar="NAME",
        help="settings 2 to 6 and own tasks: score by this metric instead of the runs' own where it was recorded, such "
        "as accuracy_norm or contains (default: the runs' own)",
    )  # fmt: skip
    parser.add_argument(
        "--size", choices=tuple(SIZES), default=BYTES,
        help="axis of the figures by size: bytes, with what finding and scaling the weights takes, or plain, the ratio "
        "that a strength names (1 - sparsity, N/M, bits/16), as the paper has it; the CSV holds both (default: bytes)",
    )  # fmt: skip
    parser.add_argument(
        "--resamples", type=int, default=RESAMPLES, metavar="N",
        help="draws of items and seeds behind the intervals of slopes and the verdicts, 100 or more; more take longer "
        "and change little (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--original_names", action="store_true",
        help="also write copies of the PNG figures under the names of the original's first README, where the runs have "
        "them: Task_1 (setting 1, amounts of training data), Task_2 (translation, else several domains), Task_3 "
        "(setting 3), Task_4 (an easy and a hard task of each category) and TRUE_GEM (the four transfers); of several "
        "models, the one with the most points",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.original_names and "png" not in args.formats:
        parser.error(f"--original_names copies PNG figures, and --formats is {' '.join(args.formats)}: add png")
    if args.resamples < 100:
        parser.error(f"--resamples {args.resamples}: must be 100 or more")
    if args.dpi < 1:
        parser.error(f"--dpi {args.dpi}: must be 1 or more")
    if reason := unwritable(args.output_dir):
        parser.error(f"--output_dir {args.output_dir}: cannot be written, {reason}")
    for folder in args.results_dir:
        if not folder.is_dir():
            parser.error(f"--results_dir {folder}: there is no such folder")
        if not folders_with([run_folder.RESULT_FILE], folder):
            started = len(run_folder.unfinished_runs(folder))
            parser.error(
                f"--results_dir {folder}: holds no complete run ({started} started, not complete); looked for "
                f"{run_folder.RESULT_FILE} in it and all folders below. Any script's --output_dir is such a folder; "
                "bash scripts/quickstart.sh makes one"
            )
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    passed_over: list[str] = []
    try:
        rows = run_folder.read_runs(*args.results_dir, passed_over=passed_over)
        for line in run_folder.passed_over_lines(passed_over):
            logger.warning(line)
        if not rows:
            raise ValueError(f"--results_dir {', '.join(map(str, args.results_dir))}: no file there is a run's result")
        rows = with_metric(rows, args.metric)
        tree = describe(rows, run_folder.unfinished_runs(*args.results_dir), args.resamples, args.size)
    except ValueError as error:
        sys.exit(f"plot_results.py: {error}")
    logger.info("%d complete runs, %d not complete", len({row["folder"] for row in rows}), len(tree.unfinished))
    for caution in summary.cautions(tree):
        logger.warning(caution)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {}
    plots = list(itertools.chain.from_iterable(part.plots for part in tree.parts))
    for plot in plots:
        files |= write_plot(plot, args.output_dir, args.formats, args.dpi)
    text = summary.summary_text(tree, args.formats)
    others = {name: _bytes(table) for name, table in summary.overall_tables(tree).items()}
    others |= {SUMMARY: _bytes(text), REPORT: _bytes(report.report_html(text, {**files, **others}))}
    if args.original_names:
        others |= copies(plots, files)
    for name, content in others.items():
        run_folder.replace_file(args.output_dir / name, content)
    remove_stale(args.output_dir, {*files, *others})
    for file in [*files, *others]:
        print(args.output_dir / file)


def write_plot(plot: Plot, output_dir: Path, formats: list[str], dpi: int) -> dict[str, bytes]:
    """Draw it; the files written."""
    contents = {f"{plot.stem}.csv": _bytes(csv_text(plot.table, plot.columns))}
    if plot.draw:
        figure = plot.draw()
        contents = {f"{plot.stem}.{name}": style.encode(figure, name, dpi) for name in formats} | contents
    for name, content in contents.items():
        run_folder.replace_file(output_dir / name, content)
    return contents


def remove_stale(output_dir: Path, written: set[str]) -> None:
    """Remove what an earlier call wrote under names that are the same for all trees, and this call did not write."""
    flips = () if f"{FLIPS_STEM}.csv" in written else (f"{FLIPS_STEM}.{ending}" for ending in ("csv", *FORMATS))
    for name in {*summary.TABLE_FILES, *flips} - written:
        (output_dir / name).unlink(missing_ok=True)


def copies(plots: list[Plot], files: dict[str, bytes]) -> dict[str, bytes]:
    """The figures that the original has too, under its names."""
    found = original_figures(plots)
    for name in ORIGINAL_NAMES:
        told = f"is {found[name].stem}.png" if name in found else "is not written: the runs have no such figure"
        logger.info("%s.png %s", name, told)
    return {f"{name}.png": files[f"{plot.stem}.png"] for name, plot in found.items()}


def _bytes(text: str) -> bytes:
    """UTF-8; what is no letter, such as a byte of a folder's name in another encoding, as an escape."""
    return text.encode(errors="backslashreplace")


if __name__ == "__main__":
    terminal.run(main)
