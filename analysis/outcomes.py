"""The outcomes of single items that runs keep (items.npz): read once, compared item by item with the dense model's."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from analysis import estimators
from harness import run_folder

ITEM_COLUMNS = ("level", "item", "group", "score")

Row = dict[str, Any]


class Outcomes(NamedTuple):
    """The items of one run at one level.

    Fields:
        items: identities, no two alike, (items,).
        groups: the group of each item, such as its document, (items,).
        scores: what each item contributes to the mean, (items,).
    """

    items: np.ndarray
    groups: np.ndarray
    scores: np.ndarray


class ItemReader:
    """Reads the items of runs, each run once; runs on the same items share the arrays of items and groups."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str | None], dict[int, Outcomes]] = {}
        self._levels: dict[tuple[int, ...], tuple[dict[int, tuple], list[np.ndarray]]] = {}

    def __call__(self, row: Row) -> Outcomes | None:
        """The items of a run at a row's level; None where the run kept none."""
        key = row["folder"], row.get("item_column")
        if key not in self._runs:
            self._runs[key] = self._read(*key)
        return self._runs[key].get(row["level_index"])

    def _read(self, folder: str, metric: str | None) -> dict[int, Outcomes]:
        """The items of a run by the index of their level; `metric` is another than the run's score."""
        if not has_items(folder):
            return {}
        columns = run_folder.read_items(Path(folder), ITEM_COLUMNS)
        if len(columns) < len(ITEM_COLUMNS):
            return {}
        levels = self._items_of_levels([columns[name] for name in ("level", "item", "group")])
        names = [metric_column(level, metric) for level in levels] if metric else []
        others = run_folder.read_items(Path(folder), names)
        found = {}
        for level, (own, items, groups) in levels.items():
            scores = others.get(metric_column(level, metric)) if metric else columns["score"][own]
            if scores is not None:
                found[level] = Outcomes(items, groups, _compact(scores))
        return found

    def _items_of_levels(self, columns: list[np.ndarray]) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """By level: its rows of the columns, their identities and their groups."""
        key = tuple(map(id, columns))  # read_items gives equal columns as one array
        if key not in self._levels:
            level, item, group = columns
            rows = {index: np.flatnonzero(level == index) for index in np.unique(level).tolist()}
            found = {index: (own, _distinct(item[own]), group[own]) for index, own in rows.items()}
            self._levels[key] = found, columns  # the columns are kept, so that their ids stay theirs
        return self._levels[key][0]


def has_items(folder: str | Path) -> bool:
    """Whether a run kept the outcomes of single items; one that only kept scores has no intervals."""
    return (Path(folder) / run_folder.ITEMS_FILE).is_file()


def columns_of(folder: str, *names: str) -> list[np.ndarray]:
    """Columns of a run's items; none where it lacks one of them."""
    if not has_items(folder):
        return []
    items = run_folder.read_items(Path(folder), names)
    return [items[name] for name in names] if len(items) == len(names) else []


def gives_one_answer(row: Row, suffix: str = "") -> bool:
    """Whether a fine-tuned model gave one answer to all items, whose labels differ; not where no answers were kept.

    Args:
        suffix: of the names of the items' columns.
    """
    columns = columns_of(row["folder"], f"prediction{suffix}", f"label{suffix}")
    return bool(columns) and [len(np.unique(column)) > 1 for column in columns] == [False, True]


def metric_column(level: int, metric: str) -> str:
    """Name of the column with a metric of each item of a level, that at this index."""
    return f"level{level}_{metric}"


def _compact(scores: np.ndarray) -> np.ndarray:
    """The same numbers in a byte each where all are 0 or 1, as most are."""
    small = scores.astype(np.uint8)
    return small if np.array_equal(small, scores) else scores


def _distinct(items: np.ndarray) -> np.ndarray:
    """The items' identities made distinct: where any occurs twice, each gets its running number."""
    listed = items.tolist()
    if len(set(listed)) == len(listed):
        return items
    seen: Counter = Counter()
    numbered = []
    for item in listed:
        numbered.append(f"{item} #{seen[item]}")
        seen[item] += 1
    return np.array(numbered)


def with_error(row: Row, read: ItemReader) -> Row:
    """The row with the standard error over groups of items where its run kept them, whatever was recorded."""
    outcomes = read(row)
    if outcomes is None or len(outcomes.scores) == 0:
        return row
    return {**row, "stderr": estimators.clustered_error(outcomes.scores, outcomes.groups)}


def aligned(runs: list[Outcomes]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (runs, items) with NaN where a run lacks an item that another has, and the items' joined_groups."""
    first = runs[0]
    if all(run.items is first.items or np.array_equal(run.items, first.items) for run in runs):
        return np.array([run.scores for run in runs], dtype=np.float64), joined_groups([run.groups for run in runs])
    items = np.unique(np.concatenate([run.items for run in runs]))
    scores = np.full((len(runs), len(items)), np.nan)
    places = [np.searchsorted(items, run.items) for run in runs]
    for row, place, run in zip(scores, places, runs, strict=True):
        row[place] = run.scores
    return scores, joined_groups([run.groups for run in runs], places)


def on_shared_items(runs: list[Row], read: ItemReader) -> list[Row]:
    """The runs with score, standard error and number of the items that all of them have.

    They are as they were where they share no item, or where one kept none.
    """
    outcomes = [read(row) for row in runs]
    if None in outcomes:
        return runs
    scores, groups = aligned(outcomes)
    shared = ~np.isnan(scores).any(axis=0)
    if shared.all() or not shared.any():
        return runs
    return [
        {
            **row,
            "score": float(own[shared].mean()),
            "stderr": estimators.clustered_error(own[shared], groups[shared]),
            "num_examples": int(shared.sum()),
        }
        for row, own in zip(runs, scores, strict=True)
    ]


def joined_groups(groups: Sequence[np.ndarray], places: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """The groups of items on which runs do not agree, as of repeated rows, which had one each before: two items are in
    one group where any run has them in one.

    Args:
        groups: of the items of each run.
        places: indices of these items among all items; None where every run has all items in the same order.
    Returns:
        The group of each item, by that of its names which is the most frequent one.
    """
    first = groups[0]
    if places is None and all(own is first or np.array_equal(own, first) for own in groups):
        return first
    own_items = np.concatenate([np.arange(len(first))] * len(groups) if places is None else places)
    names, own_names = np.unique(np.concatenate(groups), return_inverse=True)
    items = own_items.max() + 1
    edges = own_items, items + own_names  # items and names are the nodes
    graph = scipy.sparse.coo_array((np.ones(len(own_items)), edges), shape=[items + len(names)] * 2)
    count, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    rising = np.argsort(np.bincount(own_names), kind="stable")
    name_of = np.empty(count, dtype=int)
    name_of[component[items:][rising]] = rising  # the last one stays
    return names[name_of[component[:items]]]


def paired_difference(compressed: list[Row], dense: list[Row], read: ItemReader) -> Row:
    """The columns of a point that compare it with the dense runs item by item; None where either side has no items.

    Returns:
        points_stderr: standard error over groups of items of the mean difference; paired_items and unpaired_items: how
        many items both sides have, and how many one side lacks.
    """
    found = dict.fromkeys(("points_stderr", "paired_items", "unpaired_items"))
    sides = [{row["seed"]: read(row) for row in runs} for runs in (compressed, dense)]
    if not all(side and None not in side.values() for side in sides):
        return found
    differences, groups, unpaired = paired_differences(*sides)
    found |= {"paired_items": len(differences), "unpaired_items": unpaired}
    if len(differences):
        found["points_stderr"] = estimators.clustered_error(differences, groups)
    return found


def paired_differences(
    compressed: dict[int, Outcomes], dense: dict[int, Outcomes]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Each item's compressed minus dense score, mean over the seeds.

    Args:
        compressed, dense: the items by seed, at least one seed each.
    Returns:
        Differences and groups of the items that both sides have, and the number of items that one side lacks. A seed is
        compared with the dense run of that seed, which was asked the same. A seed without one (the seed draws the
        calibration text alone) is compared with the item's mean over the dense runs.
    """
    scores, groups = aligned([*compressed.values(), *dense.values()])
    of_compressed, of_dense = scores[: len(compressed)], scores[len(compressed) :]
    own = dict(zip(dense, of_dense, strict=True))
    pooled = _mean_of_known(of_dense)
    references = np.array([own.get(seed, pooled) for seed in compressed])
    differences = _mean_of_known(of_compressed - references)
    known = ~np.isnan(differences)
    return differences[known], groups[known], int((~known).sum())


def _mean_of_known(scores: np.ndarray) -> np.ndarray:
    """Mean over the runs that have an item, (items,); NaN where none has it."""
    counts = (~np.isnan(scores)).sum(axis=0)
    return np.where(counts > 0, np.nansum(scores, axis=0) / np.maximum(counts, 1), np.nan)


def paired_loss(runs: list[Row], dense: list[Row]) -> tuple[float | None, float | None]:
    """Mean over windows of the loss above dense, and its standard error; None where they are not defined."""
    losses, reference = _of_windows(runs), _of_windows(dense)
    if losses is None or reference is None or len(losses) != len(reference):
        return None, None
    differences = losses - reference
    count = len(differences)
    stderr = float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return float(differences.mean()), stderr


def window_divergence(runs: list[Row]) -> dict[str, float | None]:
    """kl: mean over windows of KL(dense || compressed) of the next token, mean over runs, and kl_stderr over windows.

    Both are None where a run did not record it (perplexity.py --kl), the error also with one window.
    """
    found = _of_windows(runs, "window_kl")
    if found is None:
        return {"kl": None, "kl_stderr": None}
    count = len(found)
    return {"kl": float(found.mean()), "kl_stderr": float(found.std(ddof=1)) / count**0.5 if count > 1 else None}


def _of_windows(runs: list[Row], name: str = "window_loss") -> np.ndarray | None:
    """A column of the windows, mean over runs; None without runs, where one lacks it, or on different windows."""
    folders = [Path(row["folder"]) for row in runs]
    if not runs or not all(map(has_items, folders)):
        return None
    found = [run_folder.read_items(folder, [name]).get(name) for folder in folders]
    alike = all(own is not None for own in found) and len(set(map(len, found))) == 1
    return np.mean(found, axis=0) if alike else None
