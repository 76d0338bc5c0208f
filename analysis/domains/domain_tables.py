"""Tables of multi-domain learning and translation: runs that are trained on all levels together and scored on each.

A level is a domain or a pair of languages. A condition is what the model was fine-tuned on: a mixture of domains, or so
many sentence pairs of every pair of languages, none at all included. A point is one level, condition, transfer and
strength, the mean over its seeds, beside the dense transfer of the same condition on the same items.
"""

import functools
import statistics
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analysis import estimators, resampling, tables
from analysis.metrics import corpus_bleu
from analysis.resampling import RESAMPLES, Replicates, Scores
from analysis.tables import Row, mean_of
from harness import run_folder

MULTI_DOMAIN, TRANSLATION = "multi_domain", "translation"
SETTINGS = (MULTI_DOMAIN, TRANSLATION)
KEPT_REPLICATES = 5000  # of so many levels of runs, 16 kB each: tables, figures and summary need the same

COLUMNS = (
    "setting", "model", "task", "condition", "level", "share", "train_rows", "difficulty", "metric", "transfer",
    "compression", "magnitude_scope", "strength_kind", "strength", "requested_sparsity", "measured_sparsity", "seeds",
    "num_examples", "mean_score", "lowest_score", "highest_score", "mean_stderr", "chance", "dense_mean_score",
    "dense_above_chance", "relative_percent", "normalized_drop", "drop_low", "drop_high", "corrected_drop",
    "corrected_low", "corrected_high", "points_drop", "points_low", "points_high",
)  # fmt: skip
# Columns of a loss against dense, and how those of its interval begin.
MEASURES = {"normalized_drop": "drop", "corrected_drop": "corrected", "points_drop": "points"}
SHARED = (
    "setting", "task", "level", "metric", "transfer", "compression", "strength_kind", "strength", "requested_sparsity",
)  # fmt: skip
POINT = ("condition", "level", "transfer", "strength_kind", "strength", "magnitude_scope")


class DomainSet(NamedTuple):
    """What the runs of one figure share."""

    setting: str
    model: str
    task: str


def domain_sets(rows: list[Row]) -> dict[DomainSet, list[Row]]:
    """The runs of multi-domain learning and translation that belong in one figure.

    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    run_folder.check_runs(rows)
    sets: dict[DomainSet, list[Row]] = {}
    for row in rows:
        if row["setting"] in SETTINGS:
            sets.setdefault(DomainSet(row["setting"], row["model"], row["task"]), []).append(row)
    return dict(sorted(sets.items()))


def condition(row: Row) -> str:
    """What a run was fine-tuned on, in words."""
    if row["setting"] == TRANSLATION:
        shots = row["shots"]
        return f"{shots} sentence pairs each" if shots else "no fine-tuning"
    share = row.get("data_fraction", 1)
    return row["mixture"] if share == 1 else f"{row['mixture']}, {100 * share:.4g} % of the rows"


def domain_table(rows: list[Row], resamples: int = RESAMPLES) -> list[Row]:
    """One row of COLUMNS per point: by condition, level from the largest share to the smallest, dense first.

    Args:
        rows: runs of any setting; others are passed over.
        resamples: of the items and seeds.
    Returns:
        The model goes by its model_name. Scores are fractions, means over seeds. What needs the dense transfer is None
        where it was not run in the same condition. normalized_drop is relative to its score, corrected_drop to its
        score above chance (None where it is not above), points_drop the bare difference; their intervals are of the
        paired bootstrap over items, which both sides must have kept, and over seeds.
    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    return [point for members in domain_sets(rows).values() for point in _table_of_set(members, resamples)]


def group_points(members: list[Row]) -> dict[tuple, list[Row]]:
    found: dict[tuple, list[Row]] = {}
    for row in members:
        place = {**run_folder.coordinates(row), "level": row["level"], "condition": condition(row)}
        found.setdefault(tuple(place[name] for name in POINT), []).append(row)
    return found


def dense_of(points: dict[tuple, list[Row]], place: tuple) -> list[Row]:
    return points.get((*place[:2], tables.DENSE, None, None, None), [])


def _table_of_set(members: list[Row], resamples: int) -> list[Row]:
    points = group_points(members)
    table = [_point(place, own, dense_of(points, place), resamples) for place, own in points.items()]
    conditions = list(dict.fromkeys(condition(row) for row in members))
    index = {row["level"]: row["level_index"] for row in members}

    def position(point: Row) -> tuple:
        share = point["share"]
        hardness = index[point["level"]] if share is None else -share  # without shares, as the runs list their levels
        return (
            conditions.index(point["condition"]), hardness, point["level"], tables.TRANSFERS.index(point["transfer"]),
            point["magnitude_scope"] == "global", tables.compression_order(point),
        )  # fmt: skip

    return sorted(table, key=position)


def _point(place: tuple, own: list[Row], dense: list[Row], resamples: int) -> Row:
    first, scores = own[0], [row["score"] for row in own]
    score, reference, chance = statistics.fmean(scores), mean_of(dense, "score"), mean_of(own, "chance")
    drop = None if reference is None else estimators.normalized_drop(score, reference)
    learned = tables.is_above_chance(dense)
    return {
        **{name: first[name] for name in SHARED},
        **{name: first.get(name) for name in ("share", "train_rows", "difficulty")},
        "condition": place[0],
        "model": tables.model_name(first["model"]),
        "magnitude_scope": place[-1],
        "measured_sparsity": mean_of(own, "measured_sparsity"),
        "seeds": tuple(sorted(row["seed"] for row in own)),
        "num_examples": max(row["num_examples"] for row in own),
        "mean_score": score,
        "lowest_score": min(scores),
        "highest_score": max(scores),
        "mean_stderr": mean_of(own, "stderr"),
        "chance": chance,
        "dense_mean_score": reference,
        "dense_above_chance": learned,
        "relative_percent": None if drop is None else 100 * score / reference,
        "normalized_drop": drop,
        "corrected_drop": corrected_drop(score, reference, chance, learned),
        "points_drop": None if reference is None else score - reference,
        **_intervals(own, dense, chance, learned, resamples),
    }


def corrected_drop(score: float, dense: float | None, chance: float | None, learned: bool | None) -> float | None:
    """Share of what the dense model has above chance that is lost; None where it has nothing above it."""
    if dense is None or chance is None or learned is False or dense <= chance:
        return None
    return (score - dense) / (dense - chance)


def _intervals(own: list[Row], dense: list[Row], chance: float | None, learned: bool | None, resamples: int) -> Row:
    found = dict.fromkeys(f"{stem}_{side}" for stem in MEASURES.values() for side in ("low", "high"))
    if own is dense:
        return found
    compressed, reference = mean_scores(own, resamples), mean_scores(dense, resamples)
    if compressed is None or reference is None or compressed.items != reference.items:
        return found
    for name, values in drop_replicates(compressed, reference, chance, learned).items():
        if values is not None:
            interval = values.interval()
            found |= {f"{MEASURES[name]}_low": interval.low, f"{MEASURES[name]}_high": interval.high}
    return found


def drop_replicates(
    compressed: Scores, dense: Scores, chance: float | None, learned: bool | None
) -> dict[str, Replicates | None]:
    """MEASURES of each resample; None where a measure is not defined."""

    def relative(floor: float) -> Replicates | None:
        if not dense.both[0] > floor:
            return None

        def drop(one: np.ndarray, other: np.ndarray) -> np.ndarray:
            return np.divide(one - other, other - floor, out=np.full_like(one, np.nan), where=other > floor)

        return resampling.compare(drop, compressed, dense)

    return {
        "normalized_drop": relative(0.0),
        "corrected_drop": None if chance is None or learned is False else relative(chance),
        "points_drop": resampling.compare(np.subtract, compressed, dense),
    }


def replicates_of(row: Row, resamples: int) -> np.ndarray | None:
    """The score of a run's level and those of its resamples, (1 + resamples,); None without the items for it.

    All runs see the same draws of a level's items, so that their differences are paired; levels are drawn apart.
    """
    path = Path(row["folder"]) / run_folder.ITEMS_FILE
    if not path.is_file():
        return None
    return _replicates_as_of(path.stat().st_mtime_ns, row["folder"], row["level"], row["metric"], resamples)


@functools.lru_cache(maxsize=KEPT_REPLICATES)
def _replicates_as_of(_: int, folder: str, level: str, metric: str, resamples: int) -> np.ndarray | None:
    sums = read_sums(Path(folder), level, metric)
    if sums is None:
        return None
    draws = resampling.resampled_sums(sums, resamples, np.random.default_rng(zlib.crc32(level.encode())))
    score = corpus_bleu if metric == "bleu" else lambda part: part[:, 0] / part[:, 1]
    return np.concatenate([score(part) for part in draws])


def read_sums(folder: Path, level: str, metric: str) -> np.ndarray | None:
    """What each item of a level adds to the sums that its score is made of, (items, columns).

    Returns:
        For accuracy 1 where the prediction is right, and 1; for BLEU its counts (analysis.domains.bleu). None without
        items, and for metrics that are not made of such sums.
    """
    if metric not in ("accuracy", "bleu") or not (folder / run_folder.ITEMS_FILE).is_file():
        return None
    names = (f"bleu_counts_{level}",) if metric == "bleu" else (f"prediction_{level}", f"label_{level}")
    items = run_folder.read_items(folder, names)
    if len(items) < len(names):
        return None
    if metric == "bleu":
        return items[names[0]].astype(np.float64)
    right = items[names[0]] == items[names[1]]
    return np.stack([right, np.ones(len(right))], axis=1).astype(np.float64)


def mean_scores(runs: list[Row], resamples: int) -> Scores | None:
    """Mean over the seeds of runs at one level, of a seed over its runs, resampled over items and seeds.

    None without runs, and where one lacks its items or has another number of them.
    """
    found: dict[int, list[np.ndarray | None]] = {}
    for row in runs:
        found.setdefault(row["seed"], []).append(replicates_of(row, resamples))
    counts = {row["num_examples"] for row in runs}
    if len(counts) != 1 or any(values is None for own in found.values() for values in own):
        return None
    (items,) = counts
    values = np.stack([np.mean(found[seed], axis=0) for seed in sorted(found)], axis=1)
    both, of_items = resampling.over_seeds(values, np.random.default_rng(sorted(found)))
    generator = np.random.default_rng([zlib.crc32(runs[0]["level"].encode()), 1])
    unseen = resampling.unseen_shares(generator.gamma(items, size=len(values)), 1, generator)
    return Scores(both, of_items, unseen, items, items, len(found))


def domain_curves(table: list[Row]) -> dict[tuple[str, str, str, str | None], dict[str, list[Row]]]:
    """The compressed points of one set: by kind of strength, condition, transfer and magnitude scope; then by level."""
    found: dict[tuple[str, str, str, str | None], dict[str, list[Row]]] = {}
    for point in table:
        if point["strength_kind"] is not None:
            key = tuple(point[name] for name in ("strength_kind", "condition", "transfer", "magnitude_scope"))
            found.setdefault(key, {}).setdefault(point["level"], []).append(point)
    return dict(sorted(found.items(), key=lambda entry: tables.KINDS.index(entry[0][0])))


def level_statistics(points: list[Row]) -> Row:
    """Statistics of one curve, over the means of its points.

    Returns:
        level, share, difficulty, dense_mean_score and dense_above_chance of the curve; spearman, theil_sen_slope of the
        normalized drop and corrected_slope of the chance-corrected one per unit of sparsity, None where not defined.
    """
    sparsity = [point["requested_sparsity"] for point in points]
    same = ("level", "share", "difficulty", "dense_mean_score", "dense_above_chance")
    drops = {name: [point[name] for point in points] for name in ("normalized_drop", "corrected_drop")}
    slopes = {
        name: None if None in values else estimators.theil_sen_slope(sparsity, values) for name, values in drops.items()
    }
    return {
        **{name: points[0][name] for name in same},
        "strengths": tuple(point["strength"] for point in points),
        "spearman": estimators.spearman(sparsity, [point["mean_score"] for point in points]),
        "theil_sen_slope": slopes["normalized_drop"],
        "corrected_slope": slopes["corrected_drop"],
    }
