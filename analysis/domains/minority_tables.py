"""What being the minority costs: the same domain where its share of the mixture is smallest and where it is largest."""

from typing import NamedTuple

from analysis import estimators, resampling, tables
from analysis.domains.domain_tables import (
    MULTI_DOMAIN,
    corrected_drop,
    dense_of,
    domain_sets,
    drop_replicates,
    group_points,
    mean_scores,
)
from analysis.resampling import RESAMPLES, Replicates, Scores
from analysis.tables import Row, mean_of
from harness import run_folder

MEAN = "mean of the domains"
COLUMNS = (
    "setting", "model", "task", "level", "metric", "transfer", "magnitude_scope", "strength_kind", "strength",
    "requested_sparsity", "seeds", "minority_share", "majority_share", "minority_conditions", "majority_conditions",
    "chance", "dense_minority", "dense_majority", "minority_score", "majority_score", "minority_drop", "majority_drop",
    "drop_effect", "drop_effect_low", "drop_effect_high", "minority_corrected", "majority_corrected",
    "corrected_effect", "corrected_effect_low", "corrected_effect_high", "lowest_seed_effect", "highest_seed_effect",
)  # fmt: skip


def minority_table(rows: list[Row], resamples: int = RESAMPLES) -> list[Row]:
    """Every domain where its share is smallest beside itself where it is largest.

    The domain's own difficulty, chance level and items are the same on both sides, so they cancel. Several mixtures
    with the domain's smallest share (or its largest) are averaged.

    Args:
        rows: runs of any setting; only multi-domain learning has minorities.
        resamples: of the items and seeds.
    Returns:
        One row of COLUMNS per domain, transfer and strength, where two shares and their dense transfers were run, and
        one of level MEAN over the domains: negative effects mean that pruning costs the minority more. drop_effect is
        the difference of the normalized drops, corrected_effect that of the shares of the score above chance that are
        lost. Intervals are of the paired bootstrap over items and seeds; lowest_ and highest_seed_effect are the
        corrected effect of single seeds.
    """
    found = []
    for key, members in domain_sets(rows).items():
        if key.setting == MULTI_DOMAIN:
            found += _minorities(members, resamples)
    return found


def _minorities(members: list[Row], resamples: int) -> list[Row]:
    points = group_points(members)
    shares: dict[tuple, dict[float, list[tuple]]] = {}
    for place, own in points.items():
        if place[3] is not None and dense_of(points, place):
            whole = own[0].get("data_fraction"), *place[1:]
            shares.setdefault(whole, {}).setdefault(own[0]["share"], []).append(place)
    found: dict[tuple, list[tuple[Row, Replicates | None]]] = {}
    for (fraction, _, *rest), by_share in shares.items():
        if len(by_share) > 1:
            few, many = (_side(points, by_share[share], resamples) for share in (min(by_share), max(by_share)))
            compared = _minority(few, many), _effect_replicates(few, many, "corrected_drop")
            found.setdefault((fraction, *rest), []).append(compared)
    table = [row for compared in found.values() for row, _ in compared]
    table += [_mean_over_domains(compared) for compared in found.values() if len(compared) > 1]
    return sorted(table, key=_place)


def _place(row: Row) -> tuple:
    transfer = tables.TRANSFERS.index(row["transfer"])
    return row["level"] == MEAN, row["level"], transfer, tables.compression_order(row)


class _Side(NamedTuple):
    """A domain at one share: means over the mixtures that give it this share."""

    share: float
    conditions: tuple[str, ...]
    runs: list[Row]
    dense_runs: list[Row]
    score: Scores | None
    dense: Scores | None


def _side(points: dict[tuple, list[Row]], places: list[tuple], resamples: int) -> _Side:
    runs = [row for place in places for row in points[place]]
    dense = [row for place in places for row in dense_of(points, place)]
    conditions = tuple(place[0] for place in places)
    scores = mean_scores(runs, resamples), mean_scores(dense, resamples)
    return _Side(runs[0]["share"], conditions, runs, dense, *scores)


def _minority(few: _Side, many: _Side) -> Row:
    first, chance = few.runs[0], mean_of(few.runs, "chance")
    found = {
        "setting": first["setting"], "model": tables.model_name(first["model"]), "chance": chance,
        **{name: first[name] for name in ("task", "level", "metric", "transfer", "strength_kind", "strength")},
        "requested_sparsity": first["requested_sparsity"],
        "magnitude_scope": run_folder.coordinates(first)["magnitude_scope"],
        "seeds": tuple(sorted({row["seed"] for row in few.runs})),
    }  # fmt: skip
    sides = {"minority": few, "majority": many}
    for name, side in sides.items():
        score, dense = mean_of(side.runs, "score"), mean_of(side.dense_runs, "score")
        found |= {
            f"{name}_share": side.share, f"{name}_conditions": side.conditions, f"{name}_score": score,
            f"dense_{name}": dense, f"{name}_drop": estimators.normalized_drop(score, dense),
            f"{name}_corrected": corrected_drop(score, dense, chance, tables.is_above_chance(side.dense_runs)),
        }  # fmt: skip
    for stem, column in (("drop", "normalized_drop"), ("corrected", "corrected_drop")):
        pair = found[f"minority_{stem}"], found[f"majority_{stem}"]
        found[f"{stem}_effect"] = None if None in pair else pair[0] - pair[1]
        replicates = _effect_replicates(few, many, column) if None not in pair else None
        bounds = None if replicates is None else replicates.interval()
        found |= {
            f"{stem}_effect_low": None if bounds is None else bounds.low,
            f"{stem}_effect_high": None if bounds is None else bounds.high,
        }
    return found | _seed_range(few, many, found["corrected_effect"])


def _effect_replicates(few: _Side, many: _Side, measure: str) -> Replicates | None:
    """Resamples of the minority's drop minus the majority's; None without the same items on both sides."""
    arrays = few.score, few.dense, many.score, many.dense
    if any(array is None for array in arrays) or len({row["num_examples"] for row in few.runs + many.runs}) > 1:
        return None
    chance = mean_of(few.runs, "chance")
    drops = [
        drop_replicates(side.score, side.dense, chance, tables.is_above_chance(side.dense_runs))[measure]
        for side in (few, many)
    ]
    return None if None in drops else resampling.weighted_sum(drops, [1, -1])


def _mean_over_domains(compared: list[tuple[Row, Replicates | None]]) -> Row:
    """The mean effect, None where one of the domains has none; its domains are independent of each other."""
    rows, replicates = [row for row, _ in compared], [values for _, values in compared]
    same = ("setting", "model", "task", "metric", "transfer", "magnitude_scope", "strength_kind", "strength")
    found = {
        **dict.fromkeys(COLUMNS), **{name: rows[0][name] for name in (*same, "requested_sparsity")}, "level": MEAN,
        "seeds": tuple(sorted({seed for row in rows for seed in row["seeds"]})),
        **{name: mean_of(rows, name) for name in ("minority_corrected", "majority_corrected", "corrected_effect")},
    }  # fmt: skip
    if all(values is not None for values in replicates):
        interval = resampling.weighted_sum(replicates, [1 / len(replicates)] * len(replicates)).interval()
        found |= {"corrected_effect_low": interval.low, "corrected_effect_high": interval.high}
    return found


def _seed_range(few: _Side, many: _Side, effect: float | None) -> Row:
    """The corrected effect of each seed by itself, from lowest to highest."""
    chance = mean_of(few.runs, "chance")
    own = {row["seed"] for row in few.runs} & {row["seed"] for row in many.runs}
    effects = [] if effect is None else [_seed_effect(few, many, chance, seed) for seed in sorted(own)]
    known = [value for value in effects if value is not None]
    whole = bool(known) and len(known) == len(effects)
    return {
        "lowest_seed_effect": min(known) if whole else None, "highest_seed_effect": max(known) if whole else None,
    }  # fmt: skip


def _seed_effect(few: _Side, many: _Side, chance: float | None, seed: int) -> float | None:
    drops = []
    for side in (few, many):
        score, dense = (
            mean_of([row for row in runs if row["seed"] == seed], "score") for runs in (side.runs, side.dense_runs)
        )
        drops.append(corrected_drop(score, dense, chance, None))
    return None if None in drops else drops[0] - drops[1]
