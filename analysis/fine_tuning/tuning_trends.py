"""Whether harder levels fall faster in fine-tuning, and how sure that is: uncertainty.trends on fine-tuned models.

Two axes of difficulty: less training data (figure 1), where all levels answer the same items, and the gap to people
(appendix B), where an easy and a hard task of a category are independent of each other. Sparse transfer alone.
"""

import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from analysis import tables
from analysis.curves import CurveKey, LevelCurve, LevelReplicates
from analysis.drawing import percent
from analysis.fine_tuning import human_gap, prediction_scores, transfers
from analysis.fine_tuning.prediction_scores import ResampledRuns
from analysis.levels.level_tables import LevelSet
from analysis.resampling import RESAMPLES
from analysis.tables import Row, task_name
from analysis.uncertainty import trends
from analysis.uncertainty.trends import Trends
from analysis.wording import markdown, number

DATA_SETTING, GAP_SETTING = 1, 5
COMPRESSION = "magnitude"
SHOWN = (tables.DENSE, tables.SPARSE)


def measure(rows: list[Row], resamples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95) -> Trends:
    """Intervals and verdicts of the sparse transfer's curves, over items and seeds.

    Args:
        rows: runs of any setting; those of no fine-tuned task are passed over.
        resamples: of the items and seeds.
        seed: of the resamples.
        confidence: as in trends.measure.
    Returns:
        As trends.measure. In setting 1, where `task` is the task, levels are shares of the training data, and in
        setting 5, where `task` is a category of human_gap.CATEGORIES, an easy and a hard task. A curve has no
        intervals, and its reason says why, where predictions were not kept or its points do not have the same seeds.
        p-values are corrected over the kinds of strength of one task or category. differences are
        transfers.difference_table.
    Raises:
        ValueError: runs that must not be compared (results.check_runs).
    """
    found = Trends([], [], [], [])
    for key, curves in resampled_curves(rows, resamples, seed):
        for every, more in zip(found, trends.of_figure(key, curves, confidence), strict=True):
            every.extend(more)
    for members in tables.figure_sets(rows).values():
        found.differences.extend(transfers.difference_table(members, resamples, seed))
    return found


def resampled_curves(
    rows: list[Row], resamples: int, seed: int
) -> Iterator[tuple[LevelSet, dict[CurveKey, list[LevelCurve]]]]:
    """What `measure` measures: the curves of every task and category, resampled."""
    for (_, model, scope), members in tables.figure_sets(rows).items():
        table = tables.seed_means(members)
        drawn = _replicates(members, resamples, seed)
        for setting, find in ((DATA_SETTING, _data_levels), (GAP_SETTING, _gap_levels)):
            for task, of_kind in find(members, table).items():
                curves = {
                    CurveKey(kind, COMPRESSION, scope): [_level(points, *drawn, seed) for points in levels]
                    for kind, levels in of_kind.items()
                }
                yield LevelSet(setting, model, task), curves


def _data_levels(members: list[Row], table: list[Row]) -> dict[str, dict[str, list[list[Row]]]]:
    """The curves of each task and kind of strength, from much training data to little."""
    found: dict[str, dict[str, list[list[Row]]]] = {}
    for (task, kind, transfer, fraction), points in tables.curves(table).items():
        if transfer == tables.SPARSE:
            named = [{**point, "level": percent(fraction), "dataset": task} for point in points]
            found.setdefault(task, {}).setdefault(kind, []).append(named)
    return found


def _gap_levels(members: list[Row], table: list[Row]) -> dict[str, dict[str, list[list[Row]]]]:
    """The curves of the easy and the hard task of each category whose difficulty is known, and kind of strength."""
    curves = tables.curves(table)
    found: dict[str, dict[str, list[list[Row]]]] = {}
    for (kind, category), places in human_gap.easy_and_hard(human_gap.human_gap_table(members)).items():
        if len(places) > 1 and all(gap["difficulty"] is not None for gap in places.values()):
            found.setdefault(category, {})[kind] = [
                [
                    {**point, "level": task_name(gap["task"]), "difficulty": gap["difficulty"], "dataset": gap["task"]}
                    for point in curves[gap["task"], kind, tables.SPARSE, gap["data_fraction"]]
                ]
                for gap in places.values()
            ]
    return found


def _replicates(members: list[Row], resamples: int, seed: int) -> tuple[dict[tuple, dict[int, str]], dict]:
    """The folder of each run by point and seed, and the resampled scores of each task's runs."""
    folders: dict[tuple, dict[int, str]] = {}
    of_task: dict[str, list[Row]] = {}
    for row in members:
        if row["transfer"] in SHOWN:
            folders.setdefault(_key(row), {})[row["seed"]] = row["folder"]
            of_task.setdefault(row["task"], []).append(row)
    drawn = {
        task: prediction_scores.replicates(runs, resamples, _seed_of(task, seed)) for task, runs in of_task.items()
    }
    return folders, drawn


def _seed_of(task: str, seed: int) -> list[int]:
    """Of a task's draws: tasks are independent of each other, and so must their draws be."""
    return [seed, zlib.crc32(task.encode())]


def _key(row: Row) -> tuple:
    return tuple(row[name] for name in ("task", "data_fraction", "transfer", "strength_kind", "strength"))


def _level(
    points: list[Row], folders: dict[tuple, dict[int, str]], drawn: dict[str, ResampledRuns], seed: int
) -> LevelCurve:
    """One curve with its replicates, or why there are none."""
    first = points[0]
    dense = folders.get((first["task"], first["data_fraction"], tables.DENSE, None, None), {})
    own = drawn[first["task"]]
    runs = [dense, *(folders[_key(point)] for point in points)]
    if not dense:
        return LevelCurve(points, None, "no dense transfer")
    if len({tuple(sorted(by_seed)) for by_seed in runs}) > 1:
        return LevelCurve(points, None, "dense and strengths do not have the same seeds")
    if not {folder for by_seed in runs for folder in by_seed.values()} <= own.scores.keys():
        return LevelCurve(points, None, "no predictions on the same items")
    folders_of = [[by_seed[one] for one in sorted(by_seed)] for by_seed in runs]
    scores = own.of_points(folders_of, np.random.default_rng([*_seed_of(first["task"], seed), 2]))
    return LevelCurve(points, LevelReplicates(scores.point(0), scores.point(slice(1, None)), losses={}), "")


def summary_lines(found: Trends) -> list[str]:
    """The slopes with their intervals and the verdicts in Markdown; empty where nothing was measured."""
    if not found.levels:
        return []
    levels = Counter(map(_curve, found.levels))
    head = ["task or category", "strength", "level", "slope", "slope from the floor", "5 % lost at", "seeds", "items"]
    body = [
        [
            task_name(row["task"]), row["strength_kind"], row["level"],
            *(_bounded(row, name) for name in ("slope", "corrected_slope", "amount_at_5")),
            row["seeds"] or "", row["reason"] or row["items"],
        ]
        for row in found.levels
    ]  # fmt: skip
    return [
        "Sparse transfer, 95 % intervals over items and seeds; two seeds say little of their own spread, so that such "
        "intervals are wide. 5 % lost at: the sparsity at which 5 % of the dense score are gone.",
        "",
        *markdown(head, body),
        "",
        *[
            f"- {task_name(row['task'])} by {human_gap.KIND_NAME[row['strength_kind']]}, {row['measure']} slopes: "
            f"{row['text']}"
            for row in found.orders
            if levels[_curve(row)] > 1
        ],
    ]


def _curve(row: Row) -> tuple:
    return tuple(row[name] for name in trends.CURVE_KEYS)


def _bounded(row: Row, name: str) -> str:
    """-0.42 [-0.50, -0.31]; an open bound is empty."""
    if row[name] is None:
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return number(row[name]) if low is None and high is None else f"{row[name]:.3f} [{number(low)}, {number(high)}]"
