"""How far a model may be compressed: the strongest compression whose loss stays within a tolerance.

And the Junk DNA score of a method: how much more it hurts hard levels than easy ones.
"""

import math
from collections.abc import Iterable

from analysis import verdicts
from analysis.names import rounded
from analysis.replicates import CurveKey, LevelCurve
from analysis.resampling import Replicates
from analysis.sizes import amount, bytes_fraction
from analysis.table import FigureKey, Row
from analysis.verdicts import CORRECTED, CURVE_KEYS, RAW

NONE_PASSES = "the weakest measured fails already"
ALL_PASS = "the strongest measured passes too"
STRENGTH_COLUMNS = (
    *CURVE_KEYS, "level", "tolerance", "confidence", "measure", "largest_strength", "largest_amount", "bytes_fraction",
    "drop", "worst_drop", "all_passed", "first_failing", "failing_drop", "failing_worst_drop", "items", "items_needed",
    "seeds", "reason",
)  # fmt: skip
SCORE_COLUMNS = (
    *CURVE_KEYS, "measure", "levels", "junk_dna_score", "junk_dna_low", "junk_dna_high", "verdict", "text",
)  # fmt: skip


def max_strengths(
    key: FigureKey,
    curves: dict[CurveKey, list[LevelCurve]],
    tolerance: float = 0.05,
    confidence: float = 0.95,
    corrected: bool = False,
) -> list[Row]:
    """The strongest compression, per method and level, whose drop is within the tolerance with this confidence.

    Args:
        key, curves: a setting, model and task, and its resampled curves (replicates.resampled_curves).
        tolerance: loss that may be borne, as a share of the dense score, in (0, 1).
        confidence: of the one-sided bound of the drop over items and seeds, in (0.5, 1).
        corrected: of the dense score above chance.
    Returns:
        Rows of STRENGTH_COLUMNS. Strengths are tried from weak to strong and the first that fails ends the search, so
        that the probability of naming one that is too strong is at most 1 - confidence without further correction.
        worst_drop is the bound of the drop: with this confidence no more is lost. largest_strength is None where the
        weakest measured strength fails already, and where there is no bound, for the reason given. Where the first
        failing drop is within the tolerance, items_needed is how many items would show that it passes; where not even
        unchanged answers could show so small a loss, the least number that could. all_passed: the strongest measured
        one passed too, so that more may be possible.
    Raises:
        ValueError: a tolerance or confidence out of range.
    Source: tests in an order fixed beforehand (Maurer, Hothorn and Lehmacher 1995) each keep the whole error rate.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance {tolerance} is not between 0 and 1")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0.5 and 1")
    same = {"tolerance": tolerance, "confidence": confidence, "measure": CORRECTED if corrected else RAW}
    found = []
    for curve, levels in curves.items():
        place = dict(zip(CURVE_KEYS, (*key, *curve), strict=True))
        found += [{**dict.fromkeys(STRENGTH_COLUMNS), **place, **same, **_largest(level, **same)} for level in levels]
    return found


def _largest(level: LevelCurve, tolerance: float, confidence: float, measure: str) -> Row:
    own = {"level": level.points[0]["level"], "reason": verdicts.missing_reason(level)}
    floor = verdicts.floors(level).get(measure)
    if own["reason"] or floor is None:
        return own | {"reason": own["reason"] or "chance is not known"}
    found = verdicts.drops(level, floor)
    passed: list[tuple[Row, float, float]] = []
    row = own | {"items": found.items, "seeds": found.seeds, "all_passed": False}
    for index, point in enumerate(level.points):
        drawn = found.point(index)
        worst = _possible(level, index, measure, drawn.low_bound(confidence))
        if worst is None or worst < -tolerance:
            unchanged = verdicts.no_drop(level, floor).point(index)
            least = _possible(level, index, measure, unchanged.low_bound(confidence))
            row |= {"first_failing": point["strength"], **_failing(drawn, worst, least, tolerance, confidence)}
            row["reason"] = "; ".join(filter(None, ("" if passed else NONE_PASSES, row["reason"])))
            break
        passed.append((point, float(drawn.both[0]), worst))
    else:
        row |= {"all_passed": True, "reason": ALL_PASS}
    if passed:
        point, drop, worst = passed[-1]
        row |= {
            "largest_strength": point["strength"], "largest_amount": amount(point),
            "bytes_fraction": point["bytes_fraction"] if "bytes_fraction" in point else bytes_fraction(point),
            "drop": drop, "worst_drop": worst,
        }  # fmt: skip
    if level.points[0].get("calibrated") and min(len(point["seeds"]) for point in level.points) == 1:
        row["reason"] = "; ".join(filter(None, (row["reason"], "one calibration sample, whose spread is left out")))
    return row


def _possible(level: LevelCurve, index: int, measure: str, bound: float | None) -> float | None:
    """The bound of a point's drop, but no lower than to the lowest possible score."""
    if bound is None or measure != RAW:
        return bound
    return max(bound, float(level.replicates.dense.lowest_drop[index]))


def _failing(
    drawn: Replicates, worst: float | None, least: float | None, tolerance: float, confidence: float
) -> Row:  # fmt: skip
    """The columns of the first drop that fails, with the reason where it is itself within the tolerance.

    Args:
        worst: bound of the drop.
        least: bound of the drop of a model whose answers are exactly the dense one's; None where it is not known.
    """
    if worst is None:
        return {"reason": verdicts.AT_CHANCE}
    drop = float(drawn.both[0])
    row = {"failing_drop": drop, "failing_worst_drop": worst, "reason": ""}
    if drop <= -tolerance:
        return row
    if least is not None and least < -tolerance:
        row["items_needed"] = math.ceil(drawn.items * least / -tolerance)
        few = f"too few items: had none been lost, {100 * -least:.3g} % might be"
        return row | {"reason": f"{few}; at least {rounded(row['items_needed'])} are needed"}
    needed = verdicts.items_needed(drawn, drop + tolerance, confidence)
    row["items_needed"] = needed
    enough = "more items alone would not do" if needed is None else f"about {rounded(needed)} items would do"
    return row | {"reason": f"what fails is within the tolerance, but not surely: {enough}"}


def junk_dna_scores(orders: Iterable[Row]) -> list[Row]:
    """How much more each method hurts hard levels than easy ones, per setting; rows of SCORE_COLUMNS.

    Args:
        orders: rows of verdicts.ORDER_COLUMNS.
    Returns:
        Sorted by setting, model and measure, the paper's first; then the method first that spares hard levels most. The
        score is the steepening of the slope from the easiest level to the hardest, in shares of the dense score per
        unit of amount: 0 where all levels fall alike, above 0 where hard ones fall faster. None where the slopes cannot
        be compared, for the reason that text gives.
    """

    def place(row: Row) -> tuple:
        score = row["junk_dna_score"]
        figure = (str(row[name]) for name in ("setting", "model", "task"))
        return *figure, row["measure"] != RAW, score is None, score or 0.0

    return [{name: row[name] for name in SCORE_COLUMNS} for row in sorted(orders, key=place)]
