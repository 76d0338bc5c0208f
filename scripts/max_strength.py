"""How far may a model be compressed before a task breaks? Answers from trees of runs, with how sure they are.

    python scripts/max_strength.py --results_dir runs/setting2 --tolerance 0.05
    python scripts/max_strength.py --results_dir runs/own runs/setting5 --corrected --output strengths.csv

Prints, for every method and level of settings 2 to 6 and of your own tasks, and for every fine-tuned task and amount of
training data (sparse transfer), the strongest compression whose drop stays within the tolerance with 95 % confidence,
all weaker ones passing too; and the Junk DNA score of each method: how much faster hard levels fall than easy ones.
Needs dense runs on the same items; runs that compress some layers alone do not count. Runs without torch.
"""

import argparse
import sys
from pathlib import Path

from analysis import terminal, tolerance, verdicts
from analysis.names import (
    compression_name,
    markdown,
    strength_text,
    with_bounds,
    with_full_names,
    with_short_names,
)
from analysis.replicates import is_of_category, resampled_figures
from analysis.resampling import RESAMPLES
from analysis.rescored import with_metric
from analysis.sizes import NM_PAIR
from analysis.table import OWN_TASK, Row, csv_text, is_fine_tuning_run, is_level_run
from analysis.tolerance import ALL_PASS, NONE_PASSES
from harness import options, run_folder
from harness.cells import unwritable

SCORES_ENDING = "_junk_dna.csv"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments; ends the program where a folder is missing or holds no runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--results_dir", type=options.filled_path, nargs="+", required=True, metavar="DIR",
        help="folders below which the runs lie, at any depth; they are read together")  # fmt: skip
    add("--tolerance", type=options.number(float, 0.001, 0.999), default=0.05, metavar="SHARE",
        help="loss that may be borne, as a share of the dense score, 0.001 to 0.999 (default: 0.05)")  # fmt: skip
    add("--confidence", type=options.number(float, 0.51, 0.999), default=0.95,
        help="that no more than the tolerance is lost, one-sided, and of the scores' two-sided intervals, "
        "0.51 to 0.999 (default: 0.95)")  # fmt: skip
    add("--corrected", action="store_true", help="of the dense score above chance, instead of all of it")
    add("--metric", nargs="+", default=[], metavar="NAME",
        help="score by this metric instead of the runs' own where it was recorded, such as accuracy_norm")  # fmt: skip
    add("--resamples", type=options.number(int, 100, 1_000_000), default=RESAMPLES, metavar="N",
        help="of whole curves over items and seeds, 100 to 1000000 (default: %(default)s)")  # fmt: skip
    add("--seed", type=options.number(int, 0, 2**32 - 1), default=0, help="of the resamples (default: 0)")
    add("--output", type=options.filled_path, metavar="FILE",
        help="also write FILE.md, what is printed, or FILE.csv, all numbers, with the Junk DNA scores beside it in "
        f"FILE{SCORES_ENDING}")  # fmt: skip
    args = parser.parse_args(argv)
    for folder in args.results_dir:
        if not folder.is_dir():
            parser.error(f"--results_dir {folder}: there is no such folder")
    if args.output is not None:
        if args.output.suffix not in (".md", ".csv"):
            parser.error(f"--output {args.output}: must end in .md or .csv")
        if not args.output.parent.is_dir():
            parser.error(f"--output {args.output}: there is no folder {args.output.parent}")
        if reason := "it is a folder" if args.output.is_dir() else unwritable(args.output.parent):
            parser.error(f"--output {args.output}: cannot be written, {reason}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    strengths, orders = [], []
    try:
        rows = usable_runs(args.results_dir, args.metric)
        for key, curves in resampled_figures(rows, args.resamples, args.seed):
            # The gap to people takes its curves from those of the tasks.
            if not is_of_category(key.setting, key.task):
                strengths += tolerance.max_strengths(key, curves, args.tolerance, args.confidence, args.corrected)
            orders += verdicts.of_figure(key, curves, args.confidence).orders
    except ValueError as error:
        sys.exit(f"max_strength.py: {error}")
    if not strengths:
        sys.exit("max_strength.py: only dense runs were found: there is no compression to judge")
    scores = tolerance.junk_dna_scores(orders)
    told = strength_lines(strengths, args.tolerance, args.confidence, args.corrected)
    text = "\n".join([*told, "", *score_lines(scores, args.confidence), ""])
    files = write(args.output, text, strengths, scores)
    print(text, *files, sep="\n")


def usable_runs(folders: list[Path], metric: list[str]) -> list[Row]:
    """The runs below the folders whose curves can be judged.

    Raises:
        ValueError: there are none, or none has the metric.
    """
    passed_over: list[str] = []
    found = run_folder.read_runs(*folders, passed_over=passed_over)
    for line in run_folder.passed_over_lines(passed_over):
        print(f"max_strength.py: {line}", file=sys.stderr)
    rows = [row for row in with_full_names(found) if is_level_run(row) or is_fine_tuning_run(row)]
    if not rows:
        looked = ", ".join(map(str, folders))
        raise ValueError(
            f"--results_dir {looked}: holds no complete run of settings 1 to 6 or of a task of your own; "
            "scripts/setting2.sh makes some"
        )
    return with_metric(with_short_names(rows), metric)


def strength_lines(strengths: list[Row], tolerance: float, confidence: float, corrected: bool) -> list[str]:
    """The answers in Markdown, a table for each model and setting."""
    measure = "the dense score above chance" if corrected else "the dense score"
    lines = [
        f"# Strongest compression that loses at most {100 * tolerance:g} % of {measure}", "",
        f"With {100 * confidence:g} % confidence (one-sided, items and seeds resampled together); every weaker "
        "strength that was measured passes too; of a checkpoint, whether it passes. In brackets the drop, and the loss "
        "that is not exceeded with this confidence. Bytes: of the compressed weights, indices, scales and factors "
        "counted, over 16-bit dense ones.",
    ]  # fmt: skip
    head = "compression", "level", "strongest", "drop (at worst)", "bytes", "next one fails", "items", "seeds", "remark"
    for place, own in _by_figure(strengths).items():
        body = [
            [
                _method(row), row["level"], _strongest(row),
                _drop(row, "drop", "worst_drop"), _bytes(row["bytes_fraction"]), _failing(row), row["items"] or "",
                row["seeds"] or "", _remark(row),
            ]
            for row in own
        ]  # fmt: skip
        lines += ["", f"## {place}", "", *markdown(list(head), body)]
    return lines


def score_lines(scores: list[Row], confidence: float) -> list[str]:
    """The Junk DNA scores in Markdown, the method that spares hard levels most first."""
    lines = [
        "# Junk DNA scores", "",
        "How much faster the hardest level falls than the easiest, in shares of the dense score per unit of weights "
        f"removed, with the two-sided {100 * confidence:g} % interval: 0 where all levels fall alike, larger where "
        "hard ones are hurt more.",
    ]  # fmt: skip
    for place, own in _by_figure(scores).items():
        body = [
            [
                _method(row), row["measure"], row["levels"],
                with_bounds(*(row[f"junk_dna_{name}"] for name in ("score", "low", "high"))), row["text"],
            ]
            for row in own
        ]  # fmt: skip
        lines += ["", f"## {place}", "", *markdown(["compression", "slopes", "levels", "score", "verdict"], body)]
    return lines


def write(path: Path | None, text: str, strengths: list[Row], scores: list[Row]) -> list[Path]:
    """Write what --output asks for; the files written."""
    if path is None:
        return []
    contents = {path: text}
    if path.suffix == ".csv":
        contents = {
            path: csv_text(strengths, tolerance.STRENGTH_COLUMNS),
            path.with_name(path.stem + SCORES_ENDING): csv_text(scores, tolerance.SCORE_COLUMNS),
        }
    for file, content in contents.items():
        run_folder.replace_file(file, content.encode(errors="backslashreplace"))
    return list(contents)


def _by_figure(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        setting = "Own task" if row["setting"] == OWN_TASK else f"Setting {row['setting']}"
        found.setdefault(f"{setting}: {row['task']}, {row['model']}", []).append(row)
    return found


def _method(row: Row) -> str:
    return compression_name(row) + (", N:M" if row["strength_kind"] in ("nm", NM_PAIR) else "")


def _strongest(row: Row) -> str:
    """The strongest that passes; of a checkpoint, which is one strength, whether it passes."""
    if row["strength_kind"] != "bytes":
        return _strength(row, "largest_strength") or "**none**"
    if row["largest_strength"] is not None:
        return f"passes: {_strength(row, 'largest_strength')}"
    fails = row["failing_drop"] is not None and row["failing_drop"] < -row["tolerance"]
    return "**fails**" if fails else "cannot tell"


def _remark(row: Row) -> str:
    """The reason; of a checkpoint without what is said of the strongest and the weakest of several."""
    if row["strength_kind"] != "bytes":
        return row["reason"]
    of_several = (ALL_PASS, NONE_PASSES)
    return "; ".join(part for part in row["reason"].split("; ") if part not in of_several)


def _strength(row: Row, name: str) -> str:
    return "" if row[name] is None else strength_text({**row, "strength": row[name]})


def _drop(row: Row, name: str, worst: str) -> str:
    if row[name] is None:
        return ""
    bound = "" if row[worst] is None else f" ({100 * row[worst]:+.1f} %)"
    return f"{100 * row[name]:+.1f} %{bound}"


def _bytes(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.0f} %"


def _failing(row: Row) -> str:
    name = _strength(row, "first_failing")
    return f"{name}: {_drop(row, 'failing_drop', 'failing_worst_drop')}" if name else ""


if __name__ == "__main__":
    terminal.run(main)
