"""What two ways of making a model differ in, on the same items: transfers (section 5), and domains as minorities.

Both sides of a difference are scored on the same draws of items, and on seeds that both have, so that what makes an
item hard for both cancels.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Set
from typing import NamedTuple

import numpy as np

from analysis import estimators, resampling
from analysis.replicates import ResampledRuns, resampled_levels, resampled_runs
from analysis.resampling import RESAMPLES, Replicates, Scores
from analysis.table import (
    DENSE,
    FREEZING,
    MULTI_DOMAIN,
    SPARSE,
    SPARSE_TO_DENSE,
    TRANSFERS,
    TRANSLATION,
    TUNING_KEY,
    Row,
    compression_order,
    domain_sets,
    drop,
    grouped,
    is_above_chance,
    is_fine_tuning_run,
    mean_of,
    scope_of,
    seed_mean,
    seed_means,
    select,
)

# What section 5 asks: does freezing cost, does growing back repair, and does it repair as much as keeping.
PAIRS = ((FREEZING, DENSE), (SPARSE_TO_DENSE, DENSE), (SPARSE_TO_DENSE, SPARSE), (FREEZING, SPARSE_TO_DENSE))
SHORT = {DENSE: "dense", FREEZING: "freezing", SPARSE: "sparse", SPARSE_TO_DENSE: "sparse to dense"}
ALPHA = 0.05
HIGHER, LOWER, UNSURE = "higher", "lower", "cannot tell"
DIFFERENCE_COLUMNS = (
    "model", "magnitude_scope", "task", "data_fraction", "metric", "strength_kind", "strength", "requested_sparsity",
    "transfer", "against", "score", "against_score", "difference", "difference_low", "difference_high", "p_value",
    "holm_p", "verdict", "seeds", "items", "dense_above_chance", "reason",
)  # fmt: skip

DOMAIN_COLUMNS = (
    "setting", "model", "task", "condition", "level", "share", "train_rows", "difficulty", "metric", "transfer",
    "compression", "magnitude_scope", "strength_kind", "strength", "requested_sparsity", "measured_sparsity", "seeds",
    "num_examples", "mean_score", "lowest_score", "highest_score", "mean_stderr", "chance", "dense_mean_score",
    "dense_above_chance", "relative_percent", "normalized_drop", "drop_low", "drop_high", "corrected_drop",
    "corrected_low", "corrected_high", "points_drop", "points_low", "points_high",
)  # fmt: skip
DOMAIN_KEY = ("condition", "level", "transfer", "strength_kind", "strength", "magnitude_scope")  # makes a point
# Columns of a loss against dense, and how those of its interval begin.
MEASURES = {"normalized_drop": "drop", "corrected_drop": "corrected", "points_drop": "points"}
MEAN = "mean of the domains"
MINORITY_COLUMNS = (
    "setting", "model", "task", "level", "metric", "transfer", "magnitude_scope", "strength_kind", "strength",
    "requested_sparsity", "seeds", "minority_share", "majority_share", "minority_conditions", "majority_conditions",
    "chance", "dense_minority", "dense_majority", "minority_score", "majority_score", "minority_drop", "majority_drop",
    "drop_effect", "drop_effect_low", "drop_effect_high", "minority_corrected", "majority_corrected",
    "corrected_effect", "corrected_effect_low", "corrected_effect_high", "lowest_seed_effect", "highest_seed_effect",
)  # fmt: skip


def difference_table(rows: list[Row], resamples: int = RESAMPLES, seed: int = 0) -> list[Row]:
    """One row of DIFFERENCE_COLUMNS for each task, data fraction, strength and pair of transfers that the tree holds.

    Args:
        rows: runs of one setting, model and magnitude scope (table.figure_sets).
        resamples: of the items and seeds.
        seed: of the resamples.
    Returns:
        Scores are means over the seeds that both transfers have. The difference is the first's minus the other's, in
        the unit of the metric, with its 95 % interval over items and seeds. p_value is two-sided, of no difference;
        holm_p is corrected over all rows whose dense transfer is above chance. verdict is HIGHER or LOWER where holm_p
        is at most .05, else UNSURE. Without an interval (no items kept, other items, no seed in common) reason says
        why.
    Raises:
        ValueError: runs that must not be averaged, or that belong in several figures.
    """
    points = {tuple(point[name] for name in TUNING_KEY): point for point in seed_means(rows)}
    tuned = list(filter(is_fine_tuning_run, rows))
    runs, of_task = grouped(tuned, TUNING_KEY), grouped(tuned, ("task", "data_fraction"))
    compressed = dict.fromkeys((*key[:2], *key[3:]) for key in points if key[2] != DENSE)
    table = []
    for place, own in itertools.groupby(compressed, key=lambda key: key[:2]):
        drawn = resampled_runs(of_task[place], resamples, seed)
        for (*_, kind, strength), (first, other) in itertools.product(own, PAIRS):
            one = (*place, first, kind, strength)
            against = (*place, other, *((None, None) if other == DENSE else (kind, strength)))
            if one in points and against in points:
                row = _difference(points[one], points[against], runs[one], runs[against])
                table.append(row | _interval(row, runs[one], runs[against], drawn, seed))
    tested = [row["p_value"] if row["dense_above_chance"] is not False else None for row in table]
    for row, corrected in zip(table, estimators.holm(tested), strict=True):
        row["holm_p"] = corrected
        if corrected is not None and corrected <= ALPHA:
            row["verdict"] = HIGHER if row["difference"] > 0 else LOWER
    return table


def _difference(one: Row, against: Row, runs: list[Row], others: list[Row]) -> Row:
    """What is known of two points without their items."""
    same = ("model", "magnitude_scope", "task", "data_fraction", "metric", "strength_kind", "strength")
    seeds = sorted({run["seed"] for run in runs} & {run["seed"] for run in others})
    score, other = (mean_of(_of_seeds(side, seeds), "score") for side in (runs, others))
    return {
        **{name: one[name] for name in (*same, "requested_sparsity", "transfer", "dense_above_chance")},
        "against": against["transfer"],
        "score": score,
        "against_score": other,
        "difference": score - other if seeds else None,
        "seeds": tuple(seeds),
    }


def _interval(row: Row, runs: list[Row], others: list[Row], drawn: ResampledRuns, seed: int) -> Row:
    """The interval of a difference over its items and seeds, or why there is none."""
    unknown = dict.fromkeys(("difference_low", "difference_high", "p_value", "items")) | {"verdict": UNSURE}
    if not row["seeds"]:
        return {**unknown, "reason": "no seed in common"}
    paired = [[run["folder"] for run in _of_seeds(side, row["seeds"])] for side in (runs, others)]
    if not {*paired[0], *paired[1]} <= drawn.scores.keys():
        return {**unknown, "reason": "no predictions on the same items"}
    found = drawn.of_points(paired, np.random.default_rng(seed))
    difference = resampling.compare(np.subtract, found.point(0), found.point(1))
    _, low, high = difference.interval()
    return {
        "difference_low": low,
        "difference_high": high,
        "p_value": difference.p_other_than_zero(),
        "items": drawn.items,
        "verdict": UNSURE,
        "reason": f"fewer than {resampling.MIN_CLUSTERS} items" if low is None else "",
    }


def _of_seeds(runs: list[Row], seeds: Collection[int]) -> list[Row]:
    """Runs of some seeds, by seed: a pair's k-th runs are of one seed, in whatever order their folders were read."""
    return sorted((run for run in runs if run["seed"] in seeds), key=lambda run: run["seed"])


def pair_sentences(table: Iterable[Row]) -> list[str]:
    """For each pair of transfers, in how many comparisons the first is surely higher, lower, or neither.

    Args:
        table: rows of difference_table; those whose dense transfer is not above chance do not count.
    """
    counted: dict[tuple[str, str], list[str]] = {}
    for row in table:
        if row["dense_above_chance"] is not False:
            counted.setdefault((row["transfer"], row["against"]), []).append(row["verdict"])
    return [
        f"{SHORT[first].capitalize()} against {SHORT[other]}: higher in {found.count(HIGHER)}, lower in "
        f"{found.count(LOWER)}, cannot tell in {found.count(UNSURE)} of {len(found)} comparisons."
        for (first, other), found in counted.items()
    ]


def condition(row: Row) -> str:
    """What a run over several domains or pairs of languages was fine-tuned on, in words."""
    if row["setting"] == TRANSLATION:
        shots = row["shots"]
        return f"{shots} sentence pairs each" if shots else "no fine-tuning"
    share = row.get("data_fraction", 1)
    return row["mixture"] if share == 1 else f"{row['mixture']}, {100 * share:.4g} % of the rows"


def domain_points(members: list[Row]) -> dict[tuple, list[Row]]:
    """The runs over several domains by DOMAIN_KEY."""
    placed = [{**row, "condition": condition(row), "magnitude_scope": scope_of(row)} for row in members]
    return grouped(placed, DOMAIN_KEY)


def dense_of(points: dict[tuple, list[Row]], key: tuple) -> list[Row]:
    """The dense runs of the same condition and level as the point of this DOMAIN_KEY."""
    return points.get((*key[:2], DENSE, None, None, None), [])


def domain_order(members: list[Row]) -> Callable[[Row], tuple]:
    """Sort key of points: by condition, from the largest share of the rows to the smallest, dense first."""
    conditions = list(dict.fromkeys(condition(row) for row in members))
    index = {row["level"]: row["level_index"] for row in members}

    def order(point: Row) -> tuple:
        share = point["share"]
        hardness = index[point["level"]] if share is None else -share  # without shares, as the runs list their levels
        return (
            conditions.index(point["condition"]), hardness, point["level"], TRANSFERS.index(point["transfer"]),
            point["magnitude_scope"] == "global", compression_order(point),
        )  # fmt: skip

    return order


def domain_table(
    rows: list[Row], resamples: int = RESAMPLES, drawn: dict[str, ResampledRuns] | None = None
) -> list[Row]:
    """Points over several domains or pairs of languages, rows of DOMAIN_COLUMNS, with intervals.

    Args:
        rows: runs of any setting; those of other kinds are passed over.
        resamples: of the items and seeds.
        drawn: the resampled_levels of the runs, if they are of one figure and already computed.
    Returns:
        By condition, then from the largest share of the training rows to the smallest, dense first. A point and the
        dense transfer are compared on the seeds that both have, which are the point's `seeds`. What needs the dense
        transfer is None where it was not run in the same condition, or with none of the seeds. The intervals of the
        three losses against dense are of the paired bootstrap over items, which both sides must have kept, and over
        seeds.
    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    table = []
    for members in domain_sets(rows).values():
        points, of_level = domain_points(members), drawn or resampled_levels(members, resamples)
        found = []
        for key, own in points.items():
            dense = dense_of(points, key)
            if own is dense:
                point = seed_mean(own, dense)
            else:
                seeds = _common_seeds([own, dense])
                own, dense = (_of_seeds(own, seeds), _of_seeds(dense, seeds)) if seeds else (own, [])
                point = seed_mean(own, dense)
                scores = of_level[point["level"]]
                point |= _loss_intervals(scores.mean(own), scores.mean(dense), point)
            found.append(select(point, DOMAIN_COLUMNS))
        table += sorted(found, key=domain_order(members))
    return table


def _common_seeds(sides: Iterable[list[Row]]) -> set[int]:
    return set.intersection(*({row["seed"] for row in side} for side in sides))


def _loss_intervals(compressed: Scores | None, dense: Scores | None, point: Row) -> Row:
    if compressed is None or dense is None:
        return {}
    found = {}
    for name, values in drop_replicates(compressed, dense, point["chance"], point["dense_above_chance"]).items():
        if values is not None:
            _, low, high = values.interval()
            found |= {f"{MEASURES[name]}_low": low, f"{MEASURES[name]}_high": high}
    return found


def drop_replicates(
    compressed: Scores, dense: Scores, chance: float | None, learned: bool | None
) -> dict[str, Replicates | None]:
    """The MEASURES of each resample; None where a measure is not defined."""

    def relative(floor: float) -> Replicates | None:
        if not dense.both[0] > floor:
            return None

        def drops(one: np.ndarray, other: np.ndarray) -> np.ndarray:
            return np.divide(one - other, other - floor, out=np.full_like(one, np.nan), where=other > floor)

        return resampling.compare(drops, compressed, dense)

    return {
        "normalized_drop": relative(0.0),
        "corrected_drop": None if chance is None or learned is False else relative(chance),
        "points_drop": resampling.compare(np.subtract, compressed, dense),
    }


def minority_table(
    rows: list[Row], resamples: int = RESAMPLES, drawn: dict[str, ResampledRuns] | None = None
) -> list[Row]:
    """The loss of every domain at its smallest share of the training rows beside its loss at its largest.

    The domain's own difficulty, chance level and items are the same on both sides, so that they cancel. Several
    mixtures with the domain's smallest share (or its largest) are averaged.

    Args:
        rows: runs of any setting; only multi-domain learning has minorities.
        resamples: of the items and seeds.
        drawn: the resampled_levels of the runs, if they are of one figure and already computed.
    Returns:
        One row of MINORITY_COLUMNS for each domain, transfer and strength where two shares and their dense transfers
        were run, and one of level MEAN over the domains. Negative effects mean that pruning costs the minority more.
        drop_effect is the difference of the normalized drops, corrected_effect that of the chance-corrected ones, with
        intervals of the paired bootstrap over items and seeds, all over the seeds that every run of both shares has.
        lowest_ and highest_seed_effect are the range of the corrected effect of single seeds.
    """
    return [
        row
        for key, members in domain_sets(rows).items()
        if key.setting == MULTI_DOMAIN
        for row in _minorities(members, drawn or resampled_levels(members, resamples))
    ]


def _minorities(members: list[Row], drawn: dict[str, ResampledRuns]) -> list[Row]:
    points = domain_points(members)
    shares: dict[tuple, dict[float, list[tuple]]] = {}
    for key, own in points.items():
        if key[3] is not None and dense_of(points, key):
            whole = own[0].get("data_fraction"), *key[1:]
            shares.setdefault(whole, {}).setdefault(own[0]["share"], []).append(key)
    found: dict[tuple, list[tuple[Row, Replicates | None]]] = {}
    for (fraction, level, *rest), by_share in shares.items():
        if len(by_share) > 1:
            both = by_share[min(by_share)], by_share[max(by_share)]
            seeds = _common_seeds(
                side for keys in both for key in keys for side in (points[key], dense_of(points, key))
            )
            if not seeds:
                continue
            few, many = (_side(points, keys, seeds, drawn[level]) for keys in both)
            compared = _minority(few, many), _effect_replicates(few, many, "corrected_drop")
            found.setdefault((fraction, *rest), []).append(compared)
    table = [row for compared in found.values() for row, _ in compared]
    table += [_mean_over_domains(compared) for compared in found.values() if len(compared) > 1]

    def place(row: Row) -> tuple:
        return row["level"] == MEAN, row["level"], TRANSFERS.index(row["transfer"]), compression_order(row)

    return sorted(table, key=place)


class _Side(NamedTuple):
    """A domain at one share: means over the mixtures that give it this share, and over the same seeds of all."""

    share: float
    conditions: tuple[str, ...]
    runs: list[Row]
    dense_runs: list[Row]
    score: Scores | None
    dense: Scores | None

    def loss(self, chance: float | None, learned: bool | None, seed: int | None = None) -> float | None:
        """The loss above `chance`, of all seeds or of a single one."""
        runs, dense = ([row for row in side if seed in (None, row["seed"])] for side in (self.runs, self.dense_runs))
        return drop(mean_of(runs, "score"), mean_of(dense, "score"), chance, learned)


def _side(points: dict[tuple, list[Row]], keys: list[tuple], seeds: Set[int], drawn: ResampledRuns) -> _Side:
    runs = _of_seeds([row for key in keys for row in points[key]], seeds)
    dense = _of_seeds([row for key in keys for row in dense_of(points, key)], seeds)
    conditions = tuple(key[0] for key in keys)
    return _Side(runs[0]["share"], conditions, runs, dense, drawn.mean(runs), drawn.mean(dense))


def _minority(few: _Side, many: _Side) -> Row:
    first, chance = few.runs[0], mean_of(few.runs, "chance")
    same = ("setting", "model", "task", "level", "metric", "transfer", "strength_kind", "strength")
    found = {
        **{name: first[name] for name in (*same, "requested_sparsity")}, "chance": chance,
        "magnitude_scope": scope_of(first), "seeds": tuple(sorted({row["seed"] for row in few.runs})),
    }  # fmt: skip
    for name, side in {"minority": few, "majority": many}.items():
        found |= {
            f"{name}_share": side.share, f"{name}_conditions": side.conditions,
            f"{name}_score": mean_of(side.runs, "score"), f"dense_{name}": mean_of(side.dense_runs, "score"),
            f"{name}_drop": side.loss(0.0, None),
            f"{name}_corrected": side.loss(chance, is_above_chance(side.dense_runs)),
        }  # fmt: skip
    for stem, column in (("drop", "normalized_drop"), ("corrected", "corrected_drop")):
        pair = found[f"minority_{stem}"], found[f"majority_{stem}"]
        known = None not in pair
        found[f"{stem}_effect"] = pair[0] - pair[1] if known else None
        replicates = _effect_replicates(few, many, column) if known else None
        _, low, high = (None, None, None) if replicates is None else replicates.interval()
        found |= {f"{stem}_effect_low": low, f"{stem}_effect_high": high}
    return select(found | _seed_range(few, many, found["corrected_effect"]), MINORITY_COLUMNS)


def _effect_replicates(few: _Side, many: _Side, measure: str) -> Replicates | None:
    """Resamples of the minority's drop minus the majority's; None where a side lacks its items."""
    scores = few.score, few.dense, many.score, many.dense
    if any(score is None for score in scores):
        return None
    chance = mean_of(few.runs, "chance")
    drops = [
        drop_replicates(side.score, side.dense, chance, is_above_chance(side.dense_runs))[measure]
        for side in (few, many)
    ]
    return None if None in drops else resampling.weighted_sum(drops, [1, -1])


def _mean_over_domains(compared: list[tuple[Row, Replicates | None]]) -> Row:
    """The mean effect, None where one of the domains has none; the domains are independent of each other."""
    rows, replicates = [row for row, _ in compared], [values for _, values in compared]
    same = ("setting", "model", "task", "metric", "transfer", "magnitude_scope", "strength_kind", "strength")
    found = {
        **dict.fromkeys(MINORITY_COLUMNS), **{name: rows[0][name] for name in (*same, "requested_sparsity")},
        "level": MEAN, "seeds": tuple(sorted({seed for row in rows for seed in row["seeds"]})),
        **{name: mean_of(rows, name) for name in ("minority_corrected", "majority_corrected", "corrected_effect")},
    }  # fmt: skip
    if all(values is not None for values in replicates):
        _, low, high = resampling.weighted_sum(replicates, [1 / len(replicates)] * len(replicates)).interval()
        found |= {"corrected_effect_low": low, "corrected_effect_high": high}
    return found


def _seed_range(few: _Side, many: _Side, effect: float | None) -> Row:
    """The lowest and highest corrected effect of a single seed; None where one of them has none."""
    chance = mean_of(few.runs, "chance")
    seeds = {row["seed"] for row in few.runs} & {row["seed"] for row in many.runs} if effect is not None else set()
    pairs = [(few.loss(chance, None, seed), many.loss(chance, None, seed)) for seed in sorted(seeds)]
    effects = [one - other for one, other in pairs if None not in (one, other)]
    whole = bool(effects) and len(effects) == len(pairs)
    return {
        "lowest_seed_effect": min(effects) if whole else None,
        "highest_seed_effect": max(effects) if whole else None,
    }
