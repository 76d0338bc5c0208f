"""Draw what comes back of pruned language models that were trained on, beside the dense model trained alike.

    python scripts/plot_recovery.py --results_dir runs/recover runs/recover_levels --output_dir runs/recover/figures

Reads runs of llm_tasks/recover.py, and where they are there runs of settings 2 to 6 on the models that these wrote
(--compression checkpoint) with the dense and the pruned model beside them. Writes for every model the perplexity while
training, and what every level lost before and after, as .png with the numbers beside it as .csv, and summary.md. A
training without its control is refused. Needs neither torch nor a display. The last lines printed are the files.
"""

import argparse
import sys

from analysis import recovery, recovery_plots, recovery_summary, style, terminal
from analysis.names import file_names, model_names
from analysis.table import csv_text, grouped
from harness import run_folder
from harness.options import filled_path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--results_dir", type=filled_path, nargs="+", required=True, metavar="DIR",
        help="folders below which the runs lie, at any depth; they are drawn together",
    )  # fmt: skip
    parser.add_argument(
        "--output_dir", type=filled_path, required=True, metavar="DIR", help="where figures and tables are written"
    )
    parser.add_argument("--dpi", type=int, default=150, help="dots per inch, 1 or more (default: 150)")
    args = parser.parse_args(argv)
    if args.dpi < 1:
        parser.error(f"--dpi {args.dpi}: must be 1 or more")
    if reason := run_folder.unwritable(args.output_dir):
        parser.error(f"--output_dir {args.output_dir}: cannot be written, {reason}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    files: dict[str, bytes] = {}
    try:
        for folder in args.results_dir:
            if not folder.is_dir():
                raise ValueError(f"--results_dir {folder}: there is no such folder")
        rows = run_folder.read_runs(*args.results_dir)
        run_folder.check_runs(rows)
        curves, levels = recovery.curve_table(rows), recovery.recovery_level_table(rows)
        if not curves:
            raise ValueError(f"--results_dir {', '.join(map(str, args.results_dir))}: no run of recover.py is there")
        named = file_names(model_names(row["model"] for row in curves).values())
        for (model,), own in grouped(curves, ["model"]).items():
            stem = f"recovery_{named[model_names([model])[model]]}"
            files[f"{stem}.png"] = style.encode(recovery_plots.perplexity_curves(own), "png", args.dpi)
            files[f"{stem}.csv"] = csv_text(own, recovery.CURVE_COLUMNS).encode()
            if measured := [row for row in levels if row["model"] == model]:
                figure = recovery_plots.levels_before_and_after(measured)
                files[f"{stem}_levels.png"] = style.encode(figure, "png", args.dpi)
                files[f"{stem}_levels.csv"] = csv_text(measured, recovery.LEVEL_COLUMNS).encode()
        files["summary.md"] = recovery_summary.summary_text(curves, levels).encode()
    except ValueError as error:
        sys.exit(f"plot_recovery.py: {error}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        run_folder.replace_file(args.output_dir / name, content)
        print(args.output_dir / name)


if __name__ == "__main__":
    terminal.run(main)
