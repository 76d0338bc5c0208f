"""Runs of settings without training, scored by another of the metrics that they recorded."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.outcomes import has_items, metric_column
from analysis.table import Row, grouped, is_level_run
from harness import run_folder

NO_SCORES = {"empty"}  # recorded metrics that are lower where better


def with_metric(rows: list[Row], names: Sequence[str]) -> list[Row]:
    """The rows with another of the metrics that their runs recorded as the score.

    Args:
        names: metrics such as "accuracy_norm". A level takes the first of them that was recorded for its items, or its
            own.
    Raises:
        ValueError: one is of NO_SCORES, or no level has it for each item, of which a score is the mean; names those
            that there are.
    """
    if not names:
        return rows
    runs, place = list(filter(is_level_run, rows)), ("setting", "model", "task", "level")
    kept = {folder: _kept_columns(own) for (folder,), own in grouped(runs, ["folder"]).items()}
    of_level = {key: _metrics_of_items(own, kept) for key, own in grouped(runs, place).items()}
    known = set().union(*of_level.values()) - NO_SCORES
    for name in names:
        if name not in known:
            total = any(name in row.get("metrics", {}) for row in runs)
            told = " is not kept of each item, of which a score is the mean" if total else ""
            told = " is lower where better, and no score" if name in NO_SCORES else told
            listed = ", ".join(sorted(known)) or "none to choose from"
            raise ValueError(f"--metric {name}{told}: the runs recorded {listed}")

    def chosen(row: Row) -> list[str]:
        return [name for name in names if name in of_level[tuple(row[part] for part in place)]]

    return [_rescored(row, chosen(row)) if is_level_run(row) else row for row in rows]


def _metric_columns(row: Row) -> dict[str, str]:
    """By each metric of a level, the column that its values of single items have where they were kept."""
    return {name: metric_column(row["level_index"], name) for name in row.get("metrics", {})}


def _kept_columns(rows: list[Row]) -> set[str] | None:
    """Those of the columns of its levels' metrics that a run kept; None where it kept no items."""
    folder = rows[0]["folder"]
    wanted = {column for row in rows for column in _metric_columns(row).values()}
    return set(run_folder.read_items(Path(folder), wanted)) if has_items(folder) else None


def _metrics_of_items(rows: list[Row], kept: Mapping[str, set[str] | None]) -> set[str]:
    """The metrics of one level that all its runs recorded, and kept for each item where they kept items."""
    found = set.intersection(*(set(row.get("metrics", {})) for row in rows))
    for row in rows:
        columns = kept[row["folder"]]
        if columns is not None:
            found = {name for name in found if name == row["metric"] or _metric_columns(row)[name] in columns}
    return found


def _rescored(row: Row, names: Sequence[str]) -> Row:
    if not names or names[0] == row["metric"]:
        return row
    chosen = names[0]
    return {**row, "metric": chosen, "score": row["metrics"][chosen], "item_column": chosen, "stderr": None}
