"""Whether harder levels fall faster, and how sure that is: intervals, tests and a verdict in words for every curve.

The paper's measures come first: Spearman's correlation, Theil-Sen slopes and their order by difficulty. Beside them
stand intervals over items and seeds (analysis.replicates) and tests, corrected for their number over the curves of one
figure and measure.
"""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from analysis import estimators, resampling
from analysis.curves import (
    corrected_levels,
    curve_statistics,
    is_comparable,
    is_ranked,
    slope_order,
    unknown_difficulty,
)
from analysis.names import compression_name, p_text, rounded
from analysis.replicates import CurveKey, LevelCurve, LevelReplicates, resampled_figures
from analysis.resampling import FEW_CLUSTERS, RESAMPLES, Replicates
from analysis.sizes import amount
from analysis.table import FigureKey, Row

RAW, CORRECTED = "raw", "chance-corrected"
MONOTONIC, NOT_MONOTONIC, CANNOT_TELL = "monotonic", "not monotonic", "cannot tell"
TOLERANCES = {"amount_at_5": 0.05, "amount_at_10": 0.10}
NOT_ABOVE_CHANCE = "the dense score is not above chance"
# Right answers of the dense model in a group of items, on average. With fewer, the losses of groups come in steps so
# coarse that their ranks differ between levels which lose the same share.
MIN_RIGHT = 5
# Drop at the weakest strength beyond which the measured slope misses the fall, because most of it came before.
FALLEN = -0.5
AT_CHANCE = "in too many resamples the dense score is at chance"

CURVE_KEYS = ("setting", "model", "task", "strength_kind", "compression", "magnitude_scope")
BOUNDS = ("drop_low", "drop_high", "corrected_low", "corrected_high")
TREND_POINT_COLUMNS = (
    *CURVE_KEYS, "level", "strength", "normalized_drop", "drop_low", "drop_high", "loss_p",
    "corrected_drop", "corrected_low", "corrected_high", "dense_above_chance", "reason",
)  # fmt: skip
SLOPE_COLUMNS = (
    *CURVE_KEYS, "level", "difficulty", "points", "items", "clusters", "seeds", "slope", "slope_low", "slope_high",
    "corrected_slope", "corrected_slope_low", "corrected_slope_high", "spearman", "spearman_p",
    "amount_at_5", "amount_at_5_low", "amount_at_5_high", "amount_at_10", "amount_at_10_low", "amount_at_10_high",
    "largest_amount", "weakest_drop", "amount_reason", "reason",
)  # fmt: skip
ORDER_COLUMNS = (
    *CURVE_KEYS, "measure", "levels", "left_out", "order", "order_share", "luck", "p_value", "holm_p", "contrary_p",
    "holm_contrary_p", "page_l", "page_blocks", "page_p", "holm_page_p", "verdict", "items", "items_needed",
    "junk_dna_score", "junk_dna_low", "junk_dna_high", "text",
)  # fmt: skip


class Trends(NamedTuple):
    """What of_figure found: rows of TREND_POINT_COLUMNS, SLOPE_COLUMNS and ORDER_COLUMNS, None where not defined."""

    points: list[Row]
    levels: list[Row]
    orders: list[Row]


class LevelTrend(NamedTuple):
    """One level of one curve.

    Fields:
        statistics: curves.curve_statistics.
        slopes: by measure, where it has replicates.
        losses: by measure and group of items, in shares of the dense score; empty where groups are too small to be
            ranked (MIN_RIGHT).
        dataset: of its items.
        row: of SLOPE_COLUMNS.
    """

    statistics: Row
    slopes: dict[str, Replicates]
    losses: dict[str, dict[str, float]]
    dataset: str | None
    row: Row


class Pair(NamedTuple):
    """Two neighbouring levels.

    Fields:
        easier, harder: their names.
        difference: slope of the harder one minus that of the easier one, below 0 where the harder falls faster.
        p_value: one-sided, of a difference so far below 0; None where too few resamples have it.
        contrary_p: one-sided, of one so far above 0.
        replicates: of the difference.
    """

    easier: str
    harder: str
    difference: float
    p_value: float | None
    contrary_p: float | None
    replicates: Replicates

    def items_needed(self, alpha: float) -> int | None:
        """How many items tell the sign of the difference by a p-value of at most alpha; None where no number does."""
        return None if self.p_value is None else items_needed(self.replicates, self.difference, 1 - alpha)


def items_needed(replicates: Replicates, distance: float, confidence: float) -> int | None:
    """How many items tell that the statistic is not this far off (estimators.items_needed)."""
    errors = replicates.errors()
    return None if errors is None else estimators.items_needed(replicates.items, distance, *errors, confidence)


def of_figure(key: FigureKey, curves: dict[CurveKey, list[LevelCurve]], confidence: float = 0.95) -> Trends:
    """Intervals, tests and verdicts of the curves of one figure.

    Args:
        key: setting, model and task.
        curves: its resampled curves, the levels of each from easy to hard (replicates.resampled_curves, tuned_curves).
        confidence: of two-sided intervals and of the verdicts' one-sided tests, in (0.5, 1).
    Returns:
        points: the drop of each point and its interval; loss_p is the one-sided p-value of a loss.
        levels: of each curve and level the slopes, Spearman, and amount_at_5 and _10: the amount of compression
        (table.amount) at which the drop reaches 5 and 10 % (estimators.crossings), None where it is not reached within
        largest_amount, as amount_reason says; all with intervals. weakest_drop is the drop at the weakest strength, of
        the score above chance where that is known; where it is beyond FALLEN, the order is not judged.
        orders: of each curve, for the paper's measure (raw) and, where levels have a chance, the chance-corrected one:
        whether the slopes are in the order of difficulty, in which share of the resamples, how often by luck, and the
        verdict; left_out are levels whose difficulty is not known, which have no place in it. p_value is that of "each
        harder level falls faster": the largest of the one-sided p-values of neighbouring levels, since all must hold.
        contrary_p is that of "some harder level falls slower": the smallest,
        times their number. page_p is that of Page's test over groups of items that all levels share, where the dense
        model gets MIN_RIGHT of a group right on average. holm_ is each of these, corrected over the curves of one
        figure and measure; the verdict rests on them. items_needed (estimators.items_needed) is for what cannot be told
        yet.
        junk_dna_score: how much steeper the hardest level falls than the easiest (least squares over the ranks of
        difficulty, from 0 to 1), in shares of the dense score per unit of amount.
        Where an interval is missing, reason or text says why.
    Raises:
        ValueError: a confidence outside (0.5, 1).
    """
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0.5 and 1")
    found = Trends([], [], [])
    chances = {level.points[0]["chance"] for levels in curves.values() for level in levels}
    # Where no level has a chance to guess right, both measures are the same.
    families: dict[str, list] = {RAW: [], CORRECTED: []} if chances - {0, None} else {RAW: []}
    for curve, levels in curves.items():
        place = dict(zip(CURVE_KEYS, (*key, *curve), strict=True))
        own = [_level_trend(place, level, confidence) for level in levels]
        found.points.extend(row for level in levels for row in _point_rows(place, level, confidence))
        if curve.strength_kind == "bytes":
            continue  # a checkpoint is a method of one strength: it has no slope
        found.levels.extend(level.row for level in own)
        for name, family in families.items():
            family.append(_order(place, name, own, confidence))
    for family in families.values():
        found.orders.extend(_judged(family, 1 - confidence))
    return found


def measure(rows: list[Row], resamples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95) -> Trends:
    """The Trends of all figures whose levels are judged (replicates.resampled_figures)."""
    return joined(of_figure(*figure, confidence) for figure in resampled_figures(rows, resamples, seed))


def joined(parts: Iterable[Trends]) -> Trends:
    """The rows of several figures together."""
    found = Trends([], [], [])
    for part in parts:
        for into, own in zip(found, part, strict=True):
            into.extend(own)
    return found


def floors(level: LevelCurve) -> dict[str, float]:
    """What each measure subtracts from scores: 0, or chance where the dense model is above it."""
    first = level.points[0]
    if level.replicates is None or first["dense_above_chance"] is False:
        return {}
    return {RAW: 0.0} if first["chance"] is None else {RAW: 0.0, CORRECTED: first["chance"]}


def drops(level: LevelCurve, floor: float) -> Replicates:
    """The drop of each point relative to the dense score above `floor`, (1 + resamples, points).

    NaN in resamples whose dense score is not above the floor.
    """
    own = level.replicates
    return resampling.compare(lambda scores, dense: _relative(scores, dense, floor), own.points, own.dense)


def no_drop(level: LevelCurve, floor: float) -> Replicates:
    """The drop of a model that answers exactly as the dense one beside each point: 0 but for the unseen unit."""
    dense = level.replicates.dense
    return resampling.compare(lambda scores, of: _relative(scores, of, floor), dense, dense)


def _relative(scores: np.ndarray, dense: np.ndarray, floor: float) -> np.ndarray:
    # As table.drop.
    above = dense.astype(np.float64) - floor
    above[~(above > 0)] = np.nan
    return (scores - floor) / above - 1


def _slopes(own: LevelReplicates, amounts: list[float], floor: float) -> Replicates:
    """The slope of the drops, whose unseen unit is right up to the middle amount alone, or from there on alone."""
    is_weak = _is_weak(amounts)
    return resampling.compare(
        lambda scores, dense: estimators.theil_sen_slopes(amounts, _relative(scores, dense, floor)),
        own.points,
        own.dense,
        small=(is_weak, True),
        large=(~is_weak, False),
    )


def _is_weak(amounts: list[float]) -> np.ndarray:
    """Whether each point is in the weaker half, (points,)."""
    ordered = sorted(set(amounts))
    return np.asarray(amounts) < ordered[(len(ordered) + 1) // 2] if len(ordered) > 1 else np.ones(len(amounts), bool)


def missing_reason(level: LevelCurve) -> str:
    """Why a level has no intervals; "" where it has."""
    if level.replicates is None:
        return level.reason
    if level.points[0]["dense_above_chance"] is False:
        return NOT_ABOVE_CHANCE
    return FEW_CLUSTERS if level.replicates.points.clusters < resampling.MIN_CLUSTERS else ""


def _point_rows(place: Row, level: LevelCurve, confidence: float) -> list[Row]:
    found = {name: drops(level, floor) for name, floor in floors(level).items()}
    rows = []
    for index, point in enumerate(level.points):
        row = {**place, "level": point["level"], "strength": point["strength"], "loss_p": None,
               "dense_above_chance": point["dense_above_chance"], "reason": missing_reason(level)}  # fmt: skip
        for name, drop, prefix in ((RAW, "normalized_drop", "drop"), (CORRECTED, "corrected_drop", "corrected")):
            low = high = None
            if name in found:
                drawn = found[name].point(index)
                _, low, high = drawn.interval(confidence)
                if name == RAW:
                    low = None if low is None else max(low, level.replicates.dense.lowest_drop[index])
                    row["loss_p"] = drawn.p_below_zero()
            row |= {drop: point[drop], f"{prefix}_low": low, f"{prefix}_high": high}
        rows.append(row)
    return rows


def _level_trend(place: Row, level: LevelCurve, confidence: float) -> LevelTrend:
    statistics = curve_statistics(level.points)
    amounts = [amount(point) for point in level.points]
    own = level.replicates
    row = {
        **dict.fromkeys(SLOPE_COLUMNS), **place,
        **{name: statistics[name] for name in ("level", "difficulty", "spearman")},
        "points": len(level.points),
        **{name: own and getattr(own.points, name) for name in ("items", "clusters", "seeds")},
        "slope": statistics["theil_sen_slope"] if is_comparable(statistics) else None,
        "corrected_slope": statistics["corrected_slope"],
        "weakest_drop": _first_known(level.points[0]["corrected_drop"], level.points[0]["normalized_drop"]),
        "reason": missing_reason(level),
    }  # fmt: skip
    slopes, losses = {}, {}
    if None in amounts:
        row["reason"] = row["reason"] or "the share of the parameters that the ranks save is not known"
        return LevelTrend(statistics, slopes, losses, level.points[0]["dataset"], row)
    row["largest_amount"] = max(amounts)
    if len(set(amounts)) == 1:
        row["reason"] = row["reason"] or "one strength only"
    for name, floor in floors(level).items():
        if name == RAW:
            drop = drops(level, floor)
            # A correlation that no resample changes, and a crossing at infinity, tell nothing of the seeds' spread.
            degrees = drop.map(lambda values: values.mean(axis=1)).degrees
            row["spearman_p"] = _spearman_p(level, amounts, degrees)
            row |= _amounts_at(drop, amounts, degrees, confidence)
        slopes[name] = _slopes(own, amounts, floor)
        dense = float(own.dense.both[0].mean())
        above = dense - floor
        if above > 0 and dense * own.dense.items >= MIN_RIGHT * own.dense.clusters:
            losses[name] = {group: loss / above for group, loss in own.losses.items()}
        prefix = "slope" if name == RAW else "corrected_slope"
        _, row[f"{prefix}_low"], row[f"{prefix}_high"] = slopes[name].interval(confidence)
        if row[prefix] is not None and None in (row[f"{prefix}_low"], row[f"{prefix}_high"]):
            row["reason"] = row["reason"] or AT_CHANCE
    return LevelTrend(statistics, slopes, losses, level.points[0]["dataset"], row)


def _first_known(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _spearman_p(level: LevelCurve, amounts: list[float], degrees: float | None) -> float | None:
    """Two-sided, against a curve that does not fall. There is no interval: resamples draw a correlation towards 0."""
    own, is_weak = level.replicates, _is_weak(amounts)
    found = resampling.compare(
        lambda scores, _: estimators.spearmans(amounts, scores), own.points, own.dense, small=(~is_weak, True),
        large=(is_weak, True),
    )  # fmt: skip
    return found.p_other_than_zero(degrees)


def _amounts_at(drop: Replicates, amounts: list[float], degrees: float | None, confidence: float) -> Row:
    found, missed = {}, []
    fit = drop.map(estimators.falling_fit)
    for name, tolerance in TOLERANCES.items():
        crossing = fit.map(lambda values, tolerance=tolerance: estimators.crossings(amounts, values, tolerance))
        bounds = resampling.reached_interval(crossing, degrees, confidence)
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), bounds, strict=True))
        if bounds.estimate is None:
            missed.append(f"{100 * tolerance:g} %")
    if missed:
        found["amount_reason"] = f"a loss of {' and '.join(missed)} is not reached within {max(amounts):.3g}"
    return found


def _order(place: Row, measured: str, levels: list[LevelTrend], confidence: float) -> tuple[Row, list[Pair]]:
    """A row of ORDER_COLUMNS before its verdict, and its pairs of neighbouring levels; text says why it has none."""
    statistics = [level.statistics for level in levels]
    if measured == CORRECTED:
        statistics = corrected_levels(statistics)
    order, basis = slope_order(statistics)
    kept = [level for level, own in zip(levels, statistics, strict=True) if is_ranked(own)]
    row = {
        **dict.fromkeys(ORDER_COLUMNS), **place, **_page(measured, levels),
        "measure": measured, "levels": len(kept), "left_out": unknown_difficulty(statistics),
        "order": order, "verdict": CANNOT_TELL, "text": basis,
    }  # fmt: skip
    if order is None:
        left_out = sorted({level.row["reason"] for level in levels if level not in kept} - {""})
        return row | {"text": f"{basis} (left out: {'; '.join(left_out)})" if left_out else basis}, []
    kept.sort(key=lambda level: level.statistics["difficulty"])
    row["luck"] = estimators.order_probability(len(kept))
    if any(measured not in level.slopes or level.slopes[measured].degrees is None for level in kept):
        reasons = sorted({level.row["reason"] for level in kept} - {""})
        return row | {"text": f"no intervals: {'; '.join(reasons)}"}, []
    fallen = min(kept, key=lambda level: level.row["weakest_drop"]).row
    if fallen["weakest_drop"] < FALLEN:
        lost = f"{fallen['level']} has lost {_percent(-fallen['weakest_drop'])} at the weakest strength already"
        return row | {"text": f"{lost}, so that its slope misses the fall; measure weaker ones"}, []
    slopes = [level.slopes[measured] for level in kept]
    names = [level.row["level"] for level in kept]
    pairs = [
        _pair(*own_names, *own_slopes)
        for own_names, own_slopes in zip(itertools.pairwise(names), itertools.pairwise(slopes), strict=True)
    ]
    return row | _of_slopes(slopes, pairs, confidence), pairs


def _pair(easier: str, harder: str, one: Replicates, other: Replicates) -> Pair:
    difference = resampling.weighted_sum([one, other], [-1.0, 1.0])
    estimate = float(difference.both[0])
    if resampling.spread(difference.both) is None:
        return Pair(easier, harder, estimate, None, None, difference)
    return Pair(
        easier, harder, estimate,
        p_value=difference.p_below_zero(),
        contrary_p=difference.p_above_zero(),
        replicates=difference,
    )  # fmt: skip


def _of_slopes(slopes: list[Replicates], pairs: list[Pair], confidence: float) -> Row:
    """The columns that rest on the slopes of all levels, from easy to hard."""
    drawn = np.stack([own.both for own in slopes], axis=1)[1:]
    p_values, contrary = [pair.p_value for pair in pairs], [pair.contrary_p for pair in pairs]
    known = None not in p_values
    rank = np.linspace(-0.5, 0.5, len(slopes))
    score = resampling.weighted_sum(slopes, list(-rank / (rank @ rank)))
    estimate, low, high = score.interval(confidence)
    return {
        "order_share": float((np.diff(drawn, axis=1) < 0).all(axis=1).mean()),
        "p_value": max(p_values) if known else None,
        "contrary_p": min(1.0, len(pairs) * min(contrary)) if known else None,
        "items": min(own.items for own in slopes),
        "junk_dna_score": estimate,
        "junk_dna_low": low,
        "junk_dna_high": high,
        "text": "" if known else AT_CHANCE,
    }


def _page(measured: str, levels: list[LevelTrend]) -> Row:
    """Page's test over the groups of items that all comparable levels share; no columns where they share none."""
    known = [level for level in levels if level.statistics["difficulty"] is not None]
    kept = [level for level in known if level.statistics["dense_above_chance"] is not False]
    if any(measured not in level.losses for level in kept):
        return {}
    kept.sort(key=lambda level: level.statistics["difficulty"])
    difficulties = {level.statistics["difficulty"] for level in kept}
    strengths = {level.statistics["strengths"] for level in kept}
    datasets = {level.dataset for level in kept}
    if len(difficulties) < len(kept) or len(strengths) != 1 or len(datasets) != 1:
        return {}
    losses = [level.losses[measured] for level in kept]
    shared = sorted(set(losses[0]).intersection(*losses[1:]))
    trend = estimators.page_trend([[own[group] for own in losses] for group in shared]) if shared else None
    return {} if trend is None else {"page_l": trend.statistic, "page_blocks": trend.blocks, "page_p": trend.p_value}


def _judged(family: list[tuple[Row, list[Pair]]], alpha: float) -> list[Row]:
    """The rows of one figure and measure with p-values corrected for their number, verdict and text."""
    rows = [row for row, _ in family]
    for name, corrected in (("p_value", "holm_p"), ("contrary_p", "holm_contrary_p"), ("page_p", "holm_page_p")):
        for row, p_value in zip(rows, estimators.holm([row[name] for row in rows]), strict=True):
            row[corrected] = p_value
    tests = sum(row["p_value"] is not None for row in rows)
    for row, pairs in family:
        row["verdict"] = verdict(row["holm_p"], row["holm_contrary_p"], alpha)
        outlook = ""
        if row["p_value"] is not None and row["verdict"] == CANNOT_TELL:
            row["items_needed"], outlook = _outlook(pairs, alpha / tests)
        row["text"] = _sentence(row, pairs, alpha, outlook)
    return rows


def _outlook(pairs: list[Pair], alpha: float) -> tuple[int | None, str]:
    """How many items would decide the order, and a sentence: on a pair that contradicts it if there is one.

    Args:
        alpha: largest p-value of this one curve that decides.
    """
    contrary = [pair for pair in pairs if pair.difference > 0]
    found = [(pair.items_needed(alpha / len(pairs) if contrary else alpha), pair) for pair in contrary or pairs]
    needed, pair = (min if contrary else max)(found, key=lambda own: np.inf if own[0] is None else own[0])
    falls = (
        f"slower than {pair.easier} here, against the hypothesis" if contrary else f"little faster than {pair.easier}"
    )
    if needed is None:
        return None, f"{pair.harder} falls {falls}; more items alone would not tell"
    told = f"about {rounded(needed)} items a level would tell, in as many more groups"
    return needed, f"{pair.harder} falls {falls}; {told}"


def verdict(p_value: float | None, contrary_p: float | None, alpha: float = 0.05) -> str:
    """MONOTONIC, NOT_MONOTONIC or CANNOT_TELL.

    Args:
        p_value: of "each harder level falls faster", corrected for all tests of the family; None where not known.
        contrary_p: of "some harder level falls slower", likewise.
        alpha: largest p-value that decides.
    """
    if p_value is not None and p_value <= alpha:
        return MONOTONIC
    return NOT_MONOTONIC if contrary_p is not None and contrary_p <= alpha else CANNOT_TELL


def _sentence(row: Row, pairs: list[Pair], alpha: float, outlook: str) -> str:
    """The verdict, what it rests on, and how many items it would take where it cannot be told."""
    if row["p_value"] is None:
        told = f"{CANNOT_TELL}: {row['text']}"
    elif row["verdict"] == MONOTONIC:
        told = (
            f"{MONOTONIC}: each harder level falls faster than the next easier one (one-sided {p_text(row['holm_p'])})"
        )
    elif row["verdict"] == NOT_MONOTONIC:
        pair = min(pairs, key=lambda pair: pair.contrary_p)
        told = f"{NOT_MONOTONIC}: {pair.harder} falls slower than {pair.easier}, which is easier "
        told += f"(one-sided {p_text(row['holm_contrary_p'])})"
    else:
        told = f"{CANNOT_TELL} at this sample size ({row['items']} items a level): {outlook}"
    if row["order_share"] is not None:
        told += f"; the slopes are in order in {_percent(row['order_share'])} of the resamples, "
        told += f"by luck alone in {_percent(row['luck'])}"
    if row["holm_page_p"] is not None:
        found = "grows" if row["holm_page_p"] <= alpha else "is not shown to grow"
        told += f"; over {row['page_blocks']} groups of items the loss {found} with difficulty "
        told += f"(Page's L, one-sided {p_text(row['holm_page_p'])})"
    if row["left_out"]:
        told += f"; without {row['left_out']}, of unknown difficulty"
    return told + "."


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def verdict_lines(orders: list[Row]) -> list[str]:
    """One sentence for each row of Trends.orders, which names compression, strength and measure."""
    return [
        f"{compression_name(row)} by {row['strength_kind']}, {row['measure']} slopes: {row['text']}" for row in orders
    ]
