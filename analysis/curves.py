"""From runs to curves that were resampled: the scores of a setting's levels with other items and other seeds.

Every resample draws one set of items and one set of seeds for all that answered them: the dense model and every
compression, all strengths, and all levels and settings whose items fall in the same groups of the same data set. What
is compared within a resample is paired, so that what the curves share cancels.
"""

import functools
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from analysis import resampling
from analysis.levels import level_tables
from analysis.levels.level_tables import DENSE_POINT, POINT_KEY, Outcomes
from analysis.resampling import Scores
from analysis.tables import Row

Reader = Callable[[Row], Outcomes | None]


class CurveKey(NamedTuple):
    """One curve: a compression, at one kind of strength and with one scope of magnitude."""

    strength_kind: str
    compression: str
    magnitude_scope: str | None


class LevelReplicates(NamedTuple):
    """Scores of one curve at one level, in the sample and in every resample.

    Fields:
        dense: the dense model's, mean over its seeds, (1 + resamples,).
        points: each point's, from weak compression to strong, (1 + resamples, points); `seeds` are those of the point
            that has most.
        losses: dense minus compressed score in each group of items, mean over points and seeds, by group.
    """

    dense: Scores
    points: Scores
    losses: dict[str, float]


class LevelCurve(NamedTuple):
    """One curve at one level.

    Fields:
        points: rows of level_tables.level_table, from weak compression to strong.
        replicates: None where they cannot be drawn.
        reason: why they cannot be drawn, "" where they were.
    """

    points: list[Row]
    replicates: LevelReplicates | None
    reason: str


class Columns(NamedTuple):
    """What is summed over the groups of items for one curve at one level.

    Fields:
        groups: of the items that all runs have, (items,).
        scores: (runs, items).
        seeds: of each point, the dense model first; as many runs each, in this order.
    """

    groups: np.ndarray
    scores: np.ndarray
    seeds: list[tuple[int, ...]]


def resampled_curves(
    members: list[Row], resamples: int, seed: int, table: list[Row] | None = None
) -> dict[CurveKey, list[LevelCurve]]:
    """Every curve of one setting, model and task at every level, from easy to hard, without mere references.

    Args:
        members: runs of one of level_tables.level_sets.
        resamples: how many to draw.
        seed: of the draws, which are the same for all settings whose items fall in the same groups of a data set.
        table: their level_table, where it is there already.
    """
    table = level_tables.level_table(members) if table is None else table
    runs = level_tables.runs_of_points(members)
    read = _reader()
    columns: dict[tuple[CurveKey, str], Columns | str] = {}
    points: dict[tuple[CurveKey, str], list[Row]] = {}
    for key, levels in level_tables.level_curves(table).items():
        for level, own in levels.items():
            place = CurveKey(*key), level
            points[place] = own
            columns[place] = _columns(own, level, runs, read)
    replicates: dict[tuple[CurveKey, str], LevelReplicates] = {}
    for dataset, universe in _universes(members, read).items():
        own = {
            place: found
            for place, found in columns.items()
            if isinstance(found, Columns) and points[place][0]["dataset"] == dataset
        }
        replicates |= curve_replicates(own, universe, resamples, (seed, dataset))
    curves: dict[CurveKey, list[LevelCurve]] = {}
    for place, own in points.items():
        reason = columns[place] if isinstance(columns[place], str) else ""
        curves.setdefault(place[0], []).append(LevelCurve(own, replicates.get(place), reason))
    return curves


def _reader() -> Reader:
    """Reads the items of a run at a row's level; each folder is read once."""
    read = functools.cache(level_tables.read_outcomes)
    return lambda row: read(row["folder"], row.get("item_column")).get(row["level_index"])


def _universes(members: list[Row], read: Reader) -> dict[str | None, np.ndarray]:
    """The groups of each data set, over all levels and runs."""
    found: dict[str | None, dict[int, np.ndarray]] = {}
    for row in members:
        outcomes = read(row)
        if outcomes is not None:
            found.setdefault(row.get("dataset"), {})[id(outcomes.groups)] = outcomes.groups
    return {dataset: np.unique(np.concatenate(list(own.values()))) for dataset, own in found.items()}


def _columns(points: list[Row], level: str, runs: dict[tuple, dict[str, list[Row]]], read: Reader) -> Columns | str:
    """The outcomes of the dense model and of every point on the items that all have, or why there are none."""
    keys = [DENSE_POINT, *(tuple(point[name] for name in POINT_KEY) for point in points)]
    rows = [sorted(runs.get(key, {}).get(level, []), key=lambda row: row["seed"]) for key in keys]
    if not rows[0]:
        return "there is no dense run of this level"
    outcomes = [read(row) for own in rows for row in own]
    if None in outcomes:
        return "some runs kept no outcomes per item"
    scores, groups = level_tables.aligned(outcomes)
    known = ~np.isnan(scores).any(axis=0)
    if not known.any():
        return "the runs have no items in common"
    return Columns(groups[known], scores[:, known], [tuple(row["seed"] for row in own) for own in rows])


def curve_replicates(
    columns: dict[tuple[CurveKey, str], Columns], universe: np.ndarray, resamples: int, seed: tuple[int, str | None]
) -> dict[tuple[CurveKey, str], LevelReplicates]:
    """The replicates of curves on one data set, all from the same draws."""
    if not columns:
        return {}
    sums = {place: _cluster_sums(own, universe) for place, own in columns.items()}
    drawn_seeds = {seeds for own in columns.values() for seeds in own.seeds if len(seeds) > 1}
    weights = {seeds: _seed_weights(seeds, resamples, seed[0]) for seeds in drawn_seeds}
    filled = {
        place: [np.empty((1 + resamples, len(own.seeds)), np.float32, "F") for _ in range(1 + _has_seeds(own))]
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
                into[rows] = _over_seeds(means, own.seeds, own_weights, rows)
            first = last
        start = rows.stop
    return {
        place: _level_replicates(
            own, sums[place], universe, filled[place], sizes[place], named_generator(*seed, "unseen")
        )
        for place, own in columns.items()
    }


def _cluster_sums(columns: Columns, universe: np.ndarray) -> np.ndarray:
    """(clusters, runs + 1): what each group of items adds to each run's score, and how many items it has."""
    cluster = np.searchsorted(universe, columns.groups)
    count = len(universe)
    found = [np.bincount(cluster, scores, count) for scores in columns.scores]
    return np.stack([*found, np.bincount(cluster, minlength=count)], axis=1).astype(np.float64)


def _seed_weights(seeds: tuple[int, ...], resamples: int, seed: int) -> np.ndarray:
    return resampling.seed_weights(len(seeds), resamples, named_generator(seed, seeds))


def named_generator(seed: int, *name: object) -> np.random.Generator:
    """One stream per name, so that what is drawn for a data set does not depend on what else there is."""
    return np.random.default_rng([seed, zlib.crc32(repr(name).encode())])


def _has_seeds(columns: Columns) -> bool:
    return max(map(len, columns.seeds)) > 1


def _over_seeds(
    means: np.ndarray, seeds: list[tuple[int, ...]], weights: dict[tuple[int, ...], np.ndarray], rows: slice
) -> np.ndarray:
    """Means over the seeds of each point, (rows, points), by weight where there is one."""
    found = np.empty((len(means), len(seeds)))
    first = 0
    for point, own in enumerate(seeds):
        part = means[:, first : first + len(own)]
        weight = weights.get(own)
        found[:, point] = part.mean(axis=1) if weight is None else np.einsum("rs,rs->r", part, weight[rows])
        first += len(own)
    return found


def _level_replicates(
    columns: Columns,
    sums: np.ndarray,
    universe: np.ndarray,
    filled: list[np.ndarray],
    sizes: np.ndarray,
    generator: np.random.Generator,
) -> LevelReplicates:
    of_items, both = filled[0], filled[-1]
    in_sample = sums[:, -1]
    has_items = in_sample > 0
    in_groups = _over_seeds(sums[has_items, :-1] / in_sample[has_items, None], columns.seeds, {}, slice(None))
    losses = in_groups[:, 0] - in_groups[:, 1:].mean(axis=1)
    of_item = _over_seeds(columns.scores.T, columns.seeds, {}, slice(None))
    changes = of_item[:, 1:].mean(axis=1) - of_item[:, 0]
    unseen = resampling.unseen_shares(sizes, resampling.unit_size(changes, columns.groups), generator)
    drawn = Scores(
        both, of_items, unseen,
        items=len(columns.groups), clusters=int(has_items.sum()), seeds=max(map(len, columns.seeds)),
    )  # fmt: skip
    return LevelReplicates(
        dense=drawn.point(0),
        points=drawn.point(slice(1, None)),
        losses=dict(zip(universe[has_items].tolist(), losses.tolist(), strict=True)),
    )
