"""summary.md of a tree of runs: which runs count, what to beware of, what was found, beside the paper's numbers."""

from collections import Counter
from pathlib import Path

from analysis import paper
from analysis.kinds import COMPARED, FLIPS, Part, Tree, is_known
from analysis.missing import MISSING_COLUMNS, missing_lines
from analysis.names import markdown, task_name, without_tags
from analysis.table import Row, csv_text
from analysis.verdicts import CANNOT_TELL, ORDER_COLUMNS, SLOPE_COLUMNS, Trends, verdict_lines
from harness import run_folder

LISTED_FOLDERS = 10
COMPARISON_FILE, MISSING_FILE = "beside_the_paper.csv", "missing.csv"
SLOPES_FILE, VERDICTS_FILE = "slopes.csv", "verdicts.csv"
TABLE_FILES = (COMPARISON_FILE, MISSING_FILE, SLOPES_FILE, VERDICTS_FILE)  # of overall_tables


def summary_text(tree: Tree, formats: list[str]) -> str:
    """The text of summary.md.

    Args:
        tree: what kinds.describe returned.
        formats: of the figures that are written beside it.
    """
    lines = ["# Summary", ""]
    found = [f"- **{part.title}**: {plot.finding}" for part in tree.parts for plot in part.plots if plot.finding]
    if found:
        lines += ["## What was found", "", *found, ""]
    lines += ["## What to beware of", ""]
    lines += [f"- {caution}" for caution in cautions(tree)] or ["Nothing was found."]
    for part in tree.parts:
        # a name of the user's may hold line breaks
        lines += ["", f"## {' '.join(part.title.split())}", "", *_links(part, formats), *part.lines]
    told = [f"- **{part.title}**: {text}" for part in tree.parts for text in verdicts(part.trends)]
    if told:
        lines += ["", "## All verdicts", "", *told, "", f"`{VERDICTS_FILE}`", "", f"`{SLOPES_FILE}`"]
    if tree.compared:
        lines += ["", "## Beside the paper", "", *paper.comparison_lines(tree.compared), "", f"`{COMPARISON_FILE}`"]
    if tree.lacking:
        lines += ["", "## What is missing", "", *missing_lines(tree.lacking), "", f"`{MISSING_FILE}`"]
    lines += ["", "## The runs", "", *_runs_table(tree.rows)]
    return "\n".join(map(without_tags, lines)) + "\n"


def overall_tables(tree: Tree) -> dict[str, str]:
    """The CSV files that belong to the whole tree, by name."""
    found: dict[str, str] = {}
    if tree.lacking:
        found[MISSING_FILE] = csv_text(tree.lacking, MISSING_COLUMNS)
    if tree.trends.orders:
        found[VERDICTS_FILE] = csv_text(tree.trends.orders, ORDER_COLUMNS)
        found[SLOPES_FILE] = csv_text(tree.trends.levels, SLOPE_COLUMNS)
    if tree.compared:
        found[COMPARISON_FILE] = csv_text(tree.compared, paper.COMPARISON_COLUMNS)
    return found


def verdicts(trends: Trends) -> list[str]:
    """One sentence for each verdict on the order of levels, and one for all orders that cannot be told."""
    several = len({row["task"] for row in trends.orders}) > 1
    told = [row for row in trends.orders if row["verdict"] not in (None, CANNOT_TELL)]
    silent = len(trends.orders) - len(told)
    names = [f"{task_name(row['task'])}, " if several else "" for row in told]
    lines = [name + line for name, line in zip(names, verdict_lines(told), strict=True)]
    if silent:
        lines.append(f"{silent} of {len(trends.orders)} orders of levels cannot be told (below, and why).")
    return lines


def _links(part: Part, formats: list[str]) -> list[str]:
    lines = []
    for plot in part.plots:
        lines += [" ".join(plot.finding.split()), ""] if plot.finding else []
        for name in (f"{plot.stem}.{ending}" for ending in (*(formats if plot.draw else ()), "csv")):
            lines += [f"![{name}]({name})" if name.endswith(".png") else f"`{name}`", ""]
    return lines


def cautions(tree: Tree) -> list[str]:
    """The cautions about the whole tree, then those of its parts."""
    found = []
    if tree.unfinished:
        listed = ", ".join(f"`{folder}`" for folder in tree.unfinished[:LISTED_FOLDERS])
        more = len(tree.unfinished) - LISTED_FOLDERS
        listed += f" and {more} more" if more > 0 else ""
        found.append(f"{len(tree.unfinished)} runs were started and are not complete; they do not count: {listed}.")
    undrawn = Counter(str(row["setting"]) for row in tree.rows if not is_known(row))
    found += [f"No figure is made of setting {setting} ({count} rows)." for setting, count in sorted(undrawn.items())]
    alone = len([part for part in tree.parts if not part.title.startswith((FLIPS, COMPARED))]) == 1
    for part in tree.parts:
        found += part.cautions if alone else [f"{part.title}: {text}" for text in part.cautions]
    return found


def _runs_table(rows: list[Row]) -> list[str]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["setting"], row["model"], row.get("task")), []).append(row)
    body = []
    for (setting, model, task), members in sorted(groups.items(), key=str):
        seeds = " ".join(map(str, sorted({row["seed"] for row in members})))
        runs = len({row["folder"] for row in members})
        example = Path(members[0]["folder"]) / run_folder.ARGUMENTS_FILE
        body.append([setting, model, task or "", runs, seeds, members[0]["recipe"], f"`{example}`"])
    return markdown(["setting", "model", "task", "complete runs", "seeds", "recipe", "an example of it"], body)
