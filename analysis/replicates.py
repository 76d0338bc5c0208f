"""Scores of runs on resampled items and seeds: what intervals and verdicts rest on.

Every resample draws one set of items and one set of seeds for all runs that answered the items: the dense model and
every compression, all strengths, and all levels and settings whose items fall in the same groups of one data set. What
is compared within a resample is therefore paired, and what the curves share cancels.
"""

import zlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from analysis import resampling
from analysis.curves import curves_by, level_curves
from analysis.human_gap import CATEGORIES, comparable_pairs, gap_table
from analysis.metrics import LOWEST, METRICS, Answers, bleu_replicates, resampled_scores, unseen_item
from analysis.names import percent, task_name
from analysis.outcomes import ItemReader, aligned, columns_of
from analysis.resampling import Scores
from analysis.table import (
    DENSE,
    DENSE_POINT,
    LEVEL_KEY,
    SPARSE,
    TUNING_KEY,
    FigureKey,
    Row,
    dense_beside,
    figure_sets,
    grouped,
    level_sets,
    level_table,
    runs_of_points,
    seed_means,
    whole_rows,
)

RUNS_AT_A_TIME = 256  # whose answers are in memory
DATA_SETTING, GAP_SETTING = 1, 5  # the settings whose figures have fine-tuned tasks as curves, by axis of difficulty


class CurveKey(NamedTuple):
    """One curve: a compression, at one kind of strength and with one scope of magnitude."""

    strength_kind: str
    compression: str
    magnitude_scope: str | None


def is_of_category(setting: int | str, task: str) -> bool:
    """Whether a figure is that of an easy and a hard task of a category, whose curves are those of the tasks."""
    return setting == GAP_SETTING and task in CATEGORIES


class LevelReplicates(NamedTuple):
    """Scores of one curve at one level, in the sample and in every resample.

    Fields:
        dense: the dense model's beside each point (table.dense_beside), mean over seeds, (1 + resamples, points).
        points: the score of each point, from weak compression to strong, (1 + resamples, points); `seeds` is that of
            the point that has most.
        losses: by group of items, the dense minus the compressed score, mean over points and seeds.
    """

    dense: Scores
    points: Scores
    losses: dict[str, float]


class LevelCurve(NamedTuple):
    """One curve at one level.

    Fields:
        points: rows of a table, from weak compression to strong.
        replicates: None where there are none.
        reason: why there are none, "" where there are.
    """

    points: list[Row]
    replicates: LevelReplicates | None
    reason: str


class Columns(NamedTuple):
    """What is summed over the groups of items for one curve at one level.

    Fields:
        groups: of the items that all runs have, (items,).
        scores: (runs, items).
        means: the runs that each mean is of, by seed: of the dense model beside each point, then of each point.
    """

    groups: np.ndarray
    scores: np.ndarray
    means: list[dict[int, int]]


def resampled_curves(
    members: list[Row], resamples: int, seed: int, table: list[Row] | None = None, read: ItemReader | None = None
) -> dict[CurveKey, list[LevelCurve]]:
    """Every curve of one setting without training, model and task at every level, from easy to hard.

    Args:
        members: runs of one of table.level_sets.
        resamples: how many to draw.
        seed: of the draws, which are the same for all settings whose items fall in the same groups of a data set.
        table: the level_table of the runs, where it is there already.
        read: reads the items of runs, each run once.
    """
    read = read or ItemReader()
    table = level_table(members, read) if table is None else table
    runs = runs_of_points(members)
    points = {
        (CurveKey(*key), level): own for key, levels in level_curves(table).items() for level, own in levels.items()
    }
    columns = {place: _columns(own, place[1], runs, read) for place, own in points.items()}
    replicates: dict[tuple[CurveKey, str], LevelReplicates] = {}
    for dataset, universe in _universes(members, read).items():
        own = {
            place: found
            for place, found in columns.items()
            if isinstance(found, Columns) and points[place][0]["dataset"] == dataset
        }
        replicates |= curve_replicates(own, universe, resamples, (seed, dataset))
    found: dict[CurveKey, list[LevelCurve]] = {}
    for place, own in points.items():
        reason = columns[place] if isinstance(columns[place], str) else ""
        found.setdefault(place[0], []).append(LevelCurve(own, replicates.get(place), reason))
    return found


def _universes(members: list[Row], read: ItemReader) -> dict[str | None, np.ndarray]:
    """The groups of items that any level of any run has, by data set: what is resampled."""
    found: dict[str | None, dict[int, np.ndarray]] = {}
    for row in members:
        outcomes = read(row)
        if outcomes is not None:
            found.setdefault(row.get("dataset"), {})[id(outcomes.groups)] = outcomes.groups
    return {dataset: np.unique(np.concatenate(list(own.values()))) for dataset, own in found.items()}


def _columns(points: list[Row], level: str, runs: dict[tuple, dict[str, list[Row]]], read: ItemReader) -> Columns | str:
    """The outcomes of the dense model and of every point on the items that all have, or why there are none."""
    dense = runs.get(DENSE_POINT, {}).get(level, [])
    if not dense:
        return "there is no dense run of this level"
    compressed = [runs[tuple(point[name] for name in LEVEL_KEY)][level] for point in points]
    means = [sorted(own, key=lambda row: row["seed"]) for own in
             (*(dense_beside(dense, own) for own in compressed), *compressed)]  # fmt: skip
    everyone = {row["folder"]: row for own in means for row in own}
    outcomes = [read(row) for row in everyone.values()]
    if None in outcomes:
        return "some runs kept no outcomes per item"
    scores, groups = aligned(outcomes)
    known = ~np.isnan(scores).any(axis=0)
    if not known.any():
        return "the runs have no items in common"
    place = {folder: number for number, folder in enumerate(everyone)}
    runs_of_means = [{row["seed"]: place[row["folder"]] for row in own} for own in means]
    return Columns(groups[known], scores[:, known], runs_of_means)


def curve_replicates(
    columns: dict[tuple[CurveKey, str], Columns], universe: np.ndarray, resamples: int, seed: tuple[int, str | None]
) -> dict[tuple[CurveKey, str], LevelReplicates]:
    """The replicates of curves on one data set, all from the same draws.

    Args:
        columns: by curve and level.
        universe: the groups of the items of all levels, sorted.
        seed: a number, and the name of the data set.
    """
    if not columns:
        return {}
    sums = {place: _cluster_sums(own, universe) for place, own in columns.items()}
    drawn_seeds = {tuple(mean) for own in columns.values() for mean in own.means if len(mean) > 1}
    weights = {seeds: _seed_weights(seeds, resamples, seed[0]) for seeds in drawn_seeds}
    filled = {
        place: [np.empty((1 + resamples, len(own.means)), np.float32, "F") for _ in range(1 + _has_seeds(own))]
        for place, own in columns.items()
    }
    sizes = {place: np.empty(1 + resamples) for place in columns}
    start = 0
    for drawn in resampling.resampled_sums(np.hstack(list(sums.values())), resamples, named_generator(*seed)):
        rows, first = slice(start, start + len(drawn)), 0
        for place, own in columns.items():
            last = first + sums[place].shape[1]
            part = drawn[:, first:last]
            sizes[place][rows] = part[:, -1]
            means = part[:, :-1] / part[:, -1:]
            for into, own_weights in zip(filled[place], ({}, weights), strict=False):
                into[rows] = _over_seeds(means, own.means, own_weights, rows)
            first = last
        start = rows.stop
    return {
        place: _level_replicates(
            own, sums[place], universe, filled[place], sizes[place], named_generator(*seed, "unseen")
        )
        for place, own in columns.items()
    }


def _cluster_sums(columns: Columns, universe: np.ndarray) -> np.ndarray:
    """What each group of items adds to each run's score, and how many items it has, (clusters, runs + 1)."""
    cluster = np.searchsorted(universe, columns.groups)
    count = len(universe)
    found = [np.bincount(cluster, scores, count) for scores in columns.scores]
    return np.stack([*found, np.bincount(cluster, minlength=count)], axis=1).astype(np.float64)


def _seed_weights(seeds: tuple[int, ...], resamples: int, seed: int) -> np.ndarray:
    return resampling.seed_weights(len(seeds), resamples, named_generator(seed, seeds))


def named_generator(seed: int, *name: object) -> np.random.Generator:
    """A stream of draws for this name, so that what is drawn for a data set does not depend on what else there is."""
    return np.random.default_rng([seed, zlib.crc32(repr(name).encode())])


def _has_seeds(columns: Columns) -> bool:
    return max(map(len, columns.means)) > 1


def _over_seeds(
    scores: np.ndarray, means: list[dict[int, int]], weights: dict[tuple[int, ...], np.ndarray], rows: slice
) -> np.ndarray:
    """Means over seeds of the scores of runs, (rows, means); weighted where `weights` has the seeds."""
    found = np.empty((len(scores), len(means)))
    for place, own in enumerate(means):
        part = scores[:, list(own.values())]
        weight = weights.get(tuple(own))
        found[:, place] = part.mean(axis=1) if weight is None else np.einsum("rs,rs->r", part, weight[rows])
    return found


def _level_replicates(
    columns: Columns,
    sums: np.ndarray,
    universe: np.ndarray,
    filled: list[np.ndarray],
    sizes: np.ndarray,
    generator: np.random.Generator,
) -> LevelReplicates:
    of_items, both, points = filled[0], filled[-1], len(columns.means) // 2
    in_sample = sums[:, -1]
    has_items = in_sample > 0
    in_groups = _over_seeds(sums[has_items, :-1] / in_sample[has_items, None], columns.means, {}, slice(None))
    losses = in_groups[:, :points].mean(axis=1) - in_groups[:, points:].mean(axis=1)
    of_item = _over_seeds(columns.scores.T, columns.means, {}, slice(None))
    changes = of_item[:, points:].mean(axis=1) - of_item[:, :points].mean(axis=1)
    unseen = resampling.unseen_shares(sizes, resampling.unit_size(changes, columns.groups), generator)
    drawn = Scores(
        both, of_items, unseen,
        items=len(columns.groups), clusters=int(has_items.sum()), seeds=max(map(len, columns.means)),
    )  # fmt: skip
    return LevelReplicates(
        dense=drawn.point(slice(None, points)),
        points=drawn.point(slice(points, None)),
        losses=dict(zip(universe[has_items].tolist(), losses.tolist(), strict=True)),
    )


class ResampledRuns(NamedTuple):
    """Scores of fine-tuned models on the same items and on the same resamples of them.

    Fields:
        items: how many.
        scores: by the run's folder, (1 + resamples,); the sample comes first.
        unseen: share of the unseen item, (1 + resamples,).
        lowest: the lowest score of the metric.
    """

    items: int
    scores: dict[str, np.ndarray]
    unseen: np.ndarray
    lowest: float

    def of_points(self, folders: list[list[str]], generator: np.random.Generator) -> Scores:
        """The mean scores of several points, (1 + resamples, points).

        Args:
            folders: of each point's runs, one for each seed, in the same order of seeds.
            generator: draws the seeds, the same for all points.
        """
        values = np.stack([np.stack([self.scores[one] for one in own], axis=1) for own in folders], axis=2)
        return self._over_seeds(values, generator)

    def mean(self, runs: list[Row]) -> Scores | None:
        """Mean over seeds, and within a seed over its runs; None without runs, or where one has no scores."""
        if not runs or not {run["folder"] for run in runs} <= self.scores.keys():
            return None
        of_seed = dict(sorted(grouped(runs, ["seed"]).items()))
        values = [np.mean([self.scores[run["folder"]] for run in own], axis=0) for own in of_seed.values()]
        return self._over_seeds(np.stack(values, axis=1), np.random.default_rng([seed for (seed,) in of_seed]))

    def _over_seeds(self, values: np.ndarray, generator: np.random.Generator) -> Scores:
        both, of_items = resampling.over_seeds(values, generator)
        return Scores(both, of_items, self.unseen, self.items, self.items, values.shape[1], self.lowest)


def resampled_runs(runs: list[Row], resamples: int, seed: int | list[int] = 0, suffix: str = "") -> ResampledRuns:
    """The score of every fine-tuned model on its items and on resamples of them, which are the same for all.

    Args:
        runs: of one task, or of one level of a run over several domains.
        seed: of the resamples.
        suffix: of the names of the items' columns.
    Returns:
        Runs that kept no predictions, or answered other items than most, are left out. No run is in it where the metric
        is neither BLEU nor one of metrics.METRICS. Items are matched by labels and order: check_runs has seen that the
        data are the same, and every run evaluates them from the first on.
    """
    named = {row["metric"] for row in runs}
    (metric,) = named if len(named) == 1 else (None,)
    if metric == "bleu":
        return _resampled_bleu(runs, resamples, seed, f"bleu_counts{suffix}")
    columns = f"prediction{suffix}", f"label{suffix}"
    found = {row["folder"]: columns_of(row["folder"], *columns) for row in runs}
    labels = Counter(label.tobytes() for _, label in filter(None, found.values()))
    if not labels or metric not in METRICS:
        return ResampledRuns(0, {}, np.zeros(1 + resamples), 0.0)
    ((most, _),) = labels.most_common(1)
    kept = {folder: own for folder, own in found.items() if own and own[1].tobytes() == most}
    folders, (_, reference), scores = list(kept), next(iter(kept.values())), {}
    for start in range(0, len(folders), RUNS_AT_A_TIME):
        own = folders[start : start + RUNS_AT_A_TIME]
        answers = Answers(reference, np.array([kept[folder][0] for folder in own]))
        drawn = resampled_scores(answers, metric, resamples, np.random.default_rng(seed))
        scores |= dict(zip(own, drawn.T, strict=True))
    unseen = unseen_item(reference, metric, resamples, np.random.default_rng([*np.atleast_1d(seed), 1]))
    return ResampledRuns(len(reference), scores, unseen, LOWEST.get(metric, 0.0))


def _resampled_bleu(runs: list[Row], resamples: int, seed: int | list[int], column: str) -> ResampledRuns:
    found = {row["folder"]: columns_of(row["folder"], column) for row in runs}
    counts = {folder: own[0] for folder, own in found.items() if own}
    items = len(next(iter(counts.values()), ()))
    scores = {folder: bleu_replicates(own, resamples, seed) for folder, own in counts.items() if len(own) == items}
    unseen = unseen_item(np.zeros(items), "bleu", resamples, np.random.default_rng([*np.atleast_1d(seed), 1]))
    return ResampledRuns(items, scores, unseen, 0.0)


def resampled_levels(members: list[Row], resamples: int) -> dict[str, ResampledRuns]:
    """The runs of one set over several domains or pairs of languages, resampled at each level.

    All runs see the same draws of a level's items, so that their differences are paired; levels are drawn apart.
    """
    of_level = grouped(members, ["level"])
    return {
        level: resampled_runs(runs, resamples, zlib.crc32(level.encode()), f"_{level}")
        for (level,), runs in of_level.items()
    }


def tuned_curves(
    members: list[Row], table: list[Row], gaps: list[Row], resamples: int, seed: int
) -> dict[FigureKey, dict[CurveKey, list[LevelCurve]]]:
    """The curves of sparse transfer of one setting, model and scope: by figure, then by curve, from easy to hard.

    Args:
        members, table, gaps: runs of one of table.figure_sets, their seed_means, and the human_gap.gap_table of these.
    Returns:
        Two axes of difficulty. In DATA_SETTING the levels are amounts of training data, which all answer the same
        items, and the task of the key is the task. In GAP_SETTING they are an easy and a hard task, which are
        independent of each other, and the task of the key is their category.
    """
    if not members:
        return {}
    folders: dict[tuple, dict[int, str]] = {}
    shown = [row for row in members if row["transfer"] in (DENSE, SPARSE)]
    for row in shown:
        folders.setdefault(tuple(row[name] for name in TUNING_KEY), {})[row["seed"]] = row["folder"]
    drawn = {
        task: resampled_runs(runs, resamples, _seed_of(task, seed))
        for (task,), runs in grouped(shown, ["task"]).items()
    }
    model = members[0]["model"]
    found: dict[FigureKey, dict[CurveKey, list[LevelCurve]]] = {}

    def add(setting: int, task: str, kind: str, points: list[Row], level: Row) -> None:
        named = [{**point, **level, "dataset": point["task"]} for point in points]
        curve = _tuned_curve(named, folders, drawn[points[0]["task"]], seed)
        of_figure = found.setdefault(FigureKey(setting, model, task), {})
        of_figure.setdefault(CurveKey(kind, "magnitude", points[0]["magnitude_scope"]), []).append(curve)

    of_transfer = curves_by(table, "task", "strength_kind", "transfer", "data_fraction")
    for (task, kind, transfer, fraction), points in of_transfer.items():
        if transfer == SPARSE:
            add(DATA_SETTING, task, kind, points, {"level": percent(fraction)})
    for (kind, category), pair in comparable_pairs(gaps).items():
        for gap in pair:
            points = of_transfer[gap["task"], kind, SPARSE, gap["data_fraction"]]
            add(GAP_SETTING, category, kind, points, {"level": task_name(gap["task"]), "difficulty": gap["difficulty"]})
    return found


def resampled_figures(
    rows: list[Row], resamples: int, seed: int
) -> Iterator[tuple[FigureKey, dict[CurveKey, list[LevelCurve]]]]:
    """The resampled curves of every figure whose levels are judged: of fine-tuning, then of settings without training.

    Runs that compress some layers alone have no part in them (sensitivity).

    Raises:
        ValueError: runs that must not be compared (run_folder.check_runs).
    """
    for members in figure_sets(rows).values():
        table = seed_means(members)
        yield from tuned_curves(members, table, gap_table(table), resamples, seed).items()
    for key, members in level_sets(whole_rows(rows)).items():
        yield key, resampled_curves(members, resamples, seed)


def _seed_of(task: str, seed: int) -> list[int]:
    """The seed of a task's draws: tasks are independent of each other, and so must their draws be."""
    return [seed, zlib.crc32(task.encode())]


def _tuned_curve(
    points: list[Row], folders: dict[tuple, dict[int, str]], drawn: ResampledRuns, seed: int
) -> LevelCurve:
    """One curve with its replicates, or why there are none; `folders` are those of runs by TUNING_KEY and seed."""
    first = points[0]
    dense = folders.get((first["task"], first["data_fraction"], DENSE, None, None), {})
    runs = [dense, *(folders[tuple(point[name] for name in TUNING_KEY)] for point in points)]
    if not dense:
        return LevelCurve(points, None, "no dense transfer")
    if len({tuple(sorted(by_seed)) for by_seed in runs}) > 1:
        return LevelCurve(points, None, "dense and strengths do not have the same seeds")
    if not {folder for by_seed in runs for folder in by_seed.values()} <= drawn.scores.keys():
        return LevelCurve(points, None, "no predictions on the same items")
    folders_of = [[by_seed[one] for one in sorted(by_seed)] for by_seed in runs]
    scores = drawn.of_points(folders_of, np.random.default_rng([*_seed_of(first["task"], seed), 2]))
    beside, compressed = scores.point([0] * len(points)), scores.point(slice(1, None))
    return LevelCurve(points, LevelReplicates(beside, compressed, losses={}), "")
