"""Statistics of scores and of curves: pure functions on numbers and arrays.

A curve is the scores of one model at rising compression. What is not defined is None for a single value and NaN in an
array. A point that was not measured is left out by the caller: NaN or infinity in an argument is an error.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import ArrayLike

MIN_STRENGTHS = 3  # that a slope and a rank correlation need: two points give a difference
MOST_EXACT_BLOCKS = 12  # up to which Page's test is exact; beyond, the normal approximation is close
# A barrier is measured from the mean of the two ends (Frankle et al., ICML 2020), or from the straight line between
# them, above which a better start than end is no barrier by itself.
MEAN_OF_ENDS, STRAIGHT_LINE = "mean_of_ends", "straight_line"
DEFINITIONS = (MEAN_OF_ENDS, STRAIGHT_LINE)


def normalized_drop(compressed: float, dense: float) -> float | None:
    """(compressed - dense) / dense: -0.1 where a tenth of the dense score is lost, positive where compression helped.

    Args:
        compressed: score of the compressed model, or its mean over seeds.
        dense: the dense model's; over several seeds the mean, not the seed's own, whose noise would enter twice.
    Returns:
        The drop, None where the dense score is 0 or less (Matthews or Pearson of a model that learned nothing).
    Source: paper sec. 2, normalized performance drop.
    """
    _finite(compressed, dense)
    return (compressed - dense) / dense if dense > 0 else None


def spearman(strength: ArrayLike, score: ArrayLike) -> float | None:
    """Rank correlation of the amount of compression with the loss of score.

    Args:
        strength: amount of compression, (points,); more is larger.
        score: score or normalized drop at each point, (points,).
    Returns:
        1 where the score falls at every step, -1 where it rises; ties share their mean rank. None with fewer than
        3 points, where two can only give 1 or -1, and where either side is constant.
    Source: paper sec. 2 and table 2, whose values are positive: the correlation with the magnitude of the drop.
    """
    strength, score = _paired(strength, score)
    if len(strength) < MIN_STRENGTHS or _is_constant(strength) or _is_constant(score):
        return None
    return float(scipy.stats.spearmanr(strength, -score).statistic)


def spearmans(strength: ArrayLike, scores: np.ndarray) -> np.ndarray:
    """`spearman` of every row of scores, (rows, points): 1 where the score falls at every step.

    Returns:
        (rows,); NaN where a score of the row is or all are equal, and everywhere with fewer than 3 points or constant
        strength.
    """
    ranks = scipy.stats.rankdata(np.asarray(strength, dtype=np.float64))
    ranks -= ranks.mean()
    if len(ranks) < 3 or not ranks.any():
        return np.full(len(scores), np.nan)
    columns = np.ascontiguousarray(scores.T)
    # How many points of the row a point lies below, less those it lies above: twice its rank, about the mean.
    losses = np.stack([np.sign(columns - own).sum(axis=0) for own in columns])
    scale = np.sqrt((losses**2).sum(axis=0) * (ranks**2).sum())
    return np.divide(ranks @ losses, scale, out=np.full(len(scores), np.nan), where=scale > 0)


def theil_sen_slope(strength: ArrayLike, drop: ArrayLike) -> float | None:
    """Median of the slopes of all pairs of points with different strengths.

    Args:
        strength: amount of compression, (points,), as a fraction: sparsity 0.5, or 1 - N/M.
        drop: normalized drop at each point, (points,).
    Returns:
        Drop per unit of strength, negative where the score falls: -0.5 is 5 % of the dense score for each 10 % of the
        weights. None with fewer than 2 different strengths.
    Source: paper sec. 2, whose slopes are magnitudes. A slope depends on the range of strengths: compare equal ranges.
    """
    strength, drop = _paired(strength, drop)
    return None if _is_constant(strength) else float(theil_sen_slopes(strength, drop[None])[0])


def theil_sen_slopes(strength: ArrayLike, drops: np.ndarray) -> np.ndarray:
    """`theil_sen_slope` of every row.

    Args:
        strength: amount of compression, (points,).
        drops: (rows, points).
    Returns:
        (rows,); NaN where a drop of the row is, and everywhere with fewer than 2 different strengths.
    """
    strength = np.asarray(strength, dtype=np.float64)
    first, second = np.triu_indices(len(strength), 1)
    differ = strength[first] != strength[second]
    first, second = first[differ], second[differ]
    if len(first) == 0:
        return np.full(len(drops), np.nan)
    slopes = (drops[:, second] - drops[:, first]) / (strength[second] - strength[first])
    return _medians(slopes)


def _medians(values: np.ndarray) -> np.ndarray:
    """np.median of every row, seven times as fast; NaN where the row holds one (sorting moves NaN to its end)."""
    ordered = np.sort(values, axis=1)
    count = ordered.shape[1]
    medians = (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
    return np.where(np.isnan(ordered[:, -1]), np.nan, medians)


def falling_fit(values: np.ndarray) -> np.ndarray:
    """The never-rising curves that are closest to `values` in least squares.

    Args:
        values: (rows, points), from weak compression to strong.
    Source: isotonic regression by its min-max formula (Robertson, Wright and Dykstra 1988, theorem 1.4.4): the value at
        point i is the minimum, over starts up to i, of the maximum, over ends from i on, of the mean from start to end.
        scipy's function takes one curve at a time.
    """
    columns = np.ascontiguousarray(values.T)
    points = len(columns)
    least = np.full(columns.shape, np.inf)
    for start in range(points):
        greatest = np.cumsum(columns[start:], axis=0) / np.arange(1, points - start + 1)[:, None]
        for end in range(points - start - 2, -1, -1):
            np.maximum(greatest[end], greatest[end + 1], out=greatest[end])
        np.minimum(least[start:], greatest, out=least[start:])
    return least.T


def crossings(amounts: ArrayLike, fit: np.ndarray, tolerance: float) -> np.ndarray:
    """The amount of compression at which each row's drop reaches -tolerance.

    Args:
        amounts: amount of compression at each point, (points,), rising, above 0.
        fit: the falling_fit of drops, (rows, points).
        tolerance: loss, above 0; 0.05 is 5 % of the dense score.
    Returns:
        (rows,), interpolated linearly between the points, starting from no loss at amount 0. inf where the loss stays
        below the tolerance at all points, NaN where a drop is NaN.
    """
    fit = np.concatenate([np.zeros((len(fit), 1)), np.minimum(fit, 0)], axis=1)
    amounts = np.concatenate([[0.0], np.asarray(amounts, dtype=np.float64)])
    reached = fit <= -tolerance
    place = np.argmax(reached, axis=1)
    rows = np.flatnonzero(reached.any(axis=1))
    after = place[rows]
    high, low = fit[rows, after - 1], fit[rows, after]
    found = np.where(np.isnan(fit).any(axis=1), np.nan, np.inf)
    found[rows] = amounts[after - 1] + (amounts[after] - amounts[after - 1]) * (high + tolerance) / (high - low)
    return found


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float | None, float | None]:
    """Mean and Student-t interval of independent values, such as the scores of several seeds.

    Args:
        values: (values,), at least one. With 2 the 95 % interval is 12.7 standard errors to each side, with 3, 4.3.
        confidence: probability with which the interval covers the true mean, in (0, 1).
    Returns:
        Mean, low bound, high bound; the bounds are None with one value, which says nothing of the spread.
    Raises:
        ValueError: no value, a NaN, or a confidence outside (0, 1).
    """
    values = _array(values)
    quantile = _two_sided(confidence)
    if len(values) == 0:
        raise ValueError("the mean of no values is not defined")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None, None
    standard_error = values.std(ddof=1) / np.sqrt(len(values))
    half_width = float(scipy.special.stdtrit(len(values) - 1, quantile) * standard_error)
    return mean, mean - half_width, mean + half_width


def clustered_error(values: ArrayLike, groups: ArrayLike) -> float | None:
    """Standard error of the mean of values that are correlated within groups.

    Args:
        values: (values,), such as an item's score, or its compressed minus its dense score; at least one.
        groups: (values,), the group of each value, such as its document; groups are independent of each other.
    Returns:
        With n values d in G groups: the root of G / (G - 1) * sum over groups of (sum of d - mean in the group)² / n².
        This is the usual standard error where each value is its own group. None with one group, which says nothing
        about the spread.
    Raises:
        ValueError: no value, a NaN, or another number of groups than of values.
    Source: the cluster-robust variance of Liang and Zeger (Biometrika 1986) for a mean, with its usual factor for few
        groups.
    """
    values = _array(values)
    if len(values) == 0 or len(values) != len(groups):
        raise ValueError(f"{len(values)} values in {len(groups)} groups given: each needs its group, and one is needed")
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(group, values - statistics.fmean(values))
    count = len(sums)
    if count == 1:
        return None
    return float(np.sqrt(count / (count - 1) * (sums**2).sum())) / len(values)


def above_chance(score: float, chance: float, stderr: float, items: int, confidence: float = 0.95) -> bool:
    """Whether `score` is above `chance` by more than the luck of the items explains.

    Args:
        score, chance: chance is what guessing or the most frequent answer gives.
        stderr: standard error of the score over groups of items, not over seeds, which all see the same items.
            It is near 0 for scores near 1; the standard error of guessing is used where that is larger.
        items: how many were evaluated.
        confidence: of the two-sided normal interval that must lie wholly above chance, in (0, 1).
    """
    _finite(score, chance, stderr)
    guesser = math.sqrt(chance * (1 - chance) / items) if 0 < chance < 1 else 0.0
    return bool(score - scipy.special.ndtri(_two_sided(confidence)) * max(stderr, guesser) > chance)


def human_gap(human: float, score: float) -> float:
    """(human - score) / human: how far a model's score is below that of people, as a share of theirs.

    Args:
        human, score: of people and of the dense model, fractions or both in percent.
    Returns:
        The difficulty of setting 5: 0.1753 where people reach 95 % and the model 78.35 %, negative where it beats them.
    Raises:
        ValueError: a human score of 0 or less.
    Source: paper sec. 3.2.1, table 3 and appendix B.
    """
    _finite(human, score)
    if human <= 0:
        raise ValueError(f"human score {human} is not above 0, so no share of it is defined")
    return (human - score) / human


def is_monotonic(difficulty: ArrayLike, slope: ArrayLike) -> bool | None:
    """Whether every harder level falls faster than the next easier one: the hypothesis's order of the slopes.

    Args:
        difficulty: of each level, (levels,), in any order; no two alike.
        slope: Theil-Sen slope of each level, (levels,), all over the same strengths; more negative falls faster.
    Returns:
        None with fewer than 2 levels. Equal slopes are not in order. By luck alone, k levels are in order once in k!.
    Raises:
        ValueError: two levels of the same difficulty, which have no order.
    """
    difficulty, slope = _paired(difficulty, slope)
    if len(difficulty) < 2:
        return None
    if len(np.unique(difficulty)) < len(difficulty):
        raise ValueError(f"difficulty {difficulty.tolist()} has equal levels; their slopes have no order")
    return bool((np.diff(slope[np.argsort(difficulty)]) < 0).all())


def order_probability(levels: int) -> float:
    """How often the slopes of this many levels are in the hypothesis's order by luck alone: 1 / levels!.

    Three levels reach it once in 6 (.167), four once in 24 (.042): an order of three alone is no evidence.
    """
    if levels < 1:
        raise ValueError(f"{levels} levels have no order")
    return 1 / math.factorial(levels)


class Trend(NamedTuple):
    """Page's test of an ordered alternative.

    Fields:
        statistic: L, the sum over levels of the level's rank of difficulty times the sum of its ranks of loss.
        p_value: one-sided, of an L as large where every order within a block is equally likely.
        blocks: how many were compared.
    """

    statistic: float
    p_value: float
    blocks: int


def page_trend(losses: ArrayLike) -> Trend | None:
    """Whether the loss grows from the easiest level to the hardest, within blocks that were measured at all levels.

    Args:
        losses: (blocks, levels), levels from easy to hard; a larger value is a larger loss. A block is what makes its
            values alike, such as an MMLU subject.
    Returns:
        None with fewer than 2 blocks or 3 levels (of two, the test would be a sign test), and where every block's
        values are all equal. Up to 12 blocks without ties the p-value is scipy's exact one; else normal, with the
        variance that the ranks have when those of each block are shuffled, which is Page's where there are no ties and
        smaller where there are.
    Source: Page (JASA 1963); scipy.stats.page_trend_test, whose normal approximation leaves the ties out of account.
    """
    losses = np.asarray(losses, dtype=np.float64)
    _finite(losses)
    if losses.ndim != 2 or losses.shape[0] < 2 or losses.shape[1] < 3:
        return None
    blocks, levels = losses.shape
    ranks = scipy.stats.rankdata(losses, axis=1)
    place = np.arange(1, levels + 1)
    statistic = float(ranks.sum(axis=0) @ place)
    centred = ranks - (levels + 1) / 2
    variance = float(((place - place.mean()) ** 2).sum() * (centred**2).sum()) / (levels - 1)
    if variance == 0:
        return None
    has_ties = bool((np.diff(np.sort(ranks, axis=1), axis=1) == 0).any())
    if blocks <= MOST_EXACT_BLOCKS and not has_ties:
        p_value = scipy.stats.page_trend_test(ranks, ranked=True, method="exact").pvalue
    else:
        p_value = scipy.special.ndtr(-float((centred @ place).sum()) / math.sqrt(variance))
    return Trend(statistic, float(p_value), blocks)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values corrected for their number: refusing those below .05 refuses any true null with less than 5 %.

    Args:
        p_values: of one family of tests; None for a test that could not be made, which stays None and does not count.
    Source: Holm (Scandinavian Journal of Statistics 1979): the smallest of m times m, the next times m - 1, never less
        than one before it, never more than 1.
    """
    known = sorted((p_value, place) for place, p_value in enumerate(p_values) if p_value is not None)
    _finite([p_value for p_value, _ in known])
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p_value, place) in enumerate(known):
        largest = max(largest, min(1.0, p_value * (len(known) - rank)))
        adjusted[place] = largest
    return adjusted


def items_needed(
    items: int,
    difference: float,
    item_error: float,
    seed_error: float = 0.0,
    confidence: float = 0.95,
    power: float = 0.8,
) -> int | None:
    """How many items it takes to tell the sign of a difference as large as the one measured.

    Args:
        items: how many the difference was measured on.
        difference: such as that of two neighbouring slopes.
        item_error, seed_error: the parts of its standard error that come from items and shrink as 1 / sqrt(items), and
            from seeds, which more items do not shrink.
        confidence: of the one-sided test, in (0.5, 1).
        power: probability that a sweep of that size tells the sign, in (0.5, 1).
    Returns:
        items * (z * item_error)² / (difference² - (z * seed_error)²), rounded up; z is the sum of the normal quantiles
        of confidence and power (2.49 by default). None where no number is enough: the difference is 0 or within the
        spread of the seeds.
    """  # fmt: skip
    z = float(scipy.special.ndtri(confidence) + scipy.special.ndtri(power))
    left = difference**2 - (z * seed_error) ** 2
    return None if left <= 0 else math.ceil(items * (z * item_error) ** 2 / left)


def barrier_heights(curve: ArrayLike, alphas: ArrayLike, definition: str) -> np.ndarray:
    """Height of each point of a curve above the reference of a definition.

    Args:
        curve: loss or error, (..., points).
        alphas: (points,), rising from 0 to 1, at least 3.
        definition: one of DEFINITIONS.
    Returns:
        Shaped like `curve`. Against the straight line both ends are exactly 0, and everything is where all points are
        equal.
    Raises:
        ValueError: another definition, other alphas, or a curve with another number of points or with NaN.
    """
    curve, alphas = np.asarray(curve, dtype=np.float64), np.asarray(alphas, dtype=np.float64)
    if definition not in DEFINITIONS:
        raise ValueError(f"definition {definition!r} is not one of {', '.join(DEFINITIONS)}")
    if len(alphas) < 3 or alphas[0] != 0 or alphas[-1] != 1 or (np.diff(alphas) <= 0).any():
        raise ValueError(f"alphas must rise from 0 to 1 over at least 3 points, not {alphas.tolist()}")
    if curve.shape[-1] != len(alphas) or not np.isfinite(curve).all():
        raise ValueError(f"a curve of {curve.shape[-1]} points needs as many finite numbers as there are alphas")
    start, end = curve[..., :1], curve[..., -1:]
    if definition == MEAN_OF_ENDS:
        return curve - (start + end) / 2
    # from the nearer end, so that no rounding stands between a curve's ends and themselves
    line = np.where(alphas < 0.5, start + alphas * (end - start), end - (1 - alphas) * (end - start))
    return curve - line


def barrier(curve: ArrayLike, alphas: ArrayLike, definition: str) -> tuple[float, float]:
    """The largest of a curve's heights and its alpha (the first of several).

    It is never negative, because the ends take part: their height above the straight line is 0, and one of them is not
    below their mean. Above the mean of the ends, a barrier is at least half the difference of the ends.

    Source: Frankle et al. (ICML 2020), sec. 2, "linear interpolation instability"; the straight line is that of
        Entezari et al. (ICLR 2022).
    """
    found = barrier_heights(curve, alphas, definition)
    highest = int(found.argmax())
    return float(found[highest]), float(np.asarray(alphas)[highest])


def ends_and_between(points: int, at_ends: float, between: float) -> np.ndarray:
    """A curve with one value at its ends and one at all points between them, (points,)."""
    curve = np.full(points, between)
    curve[[0, -1]] = at_ends
    return curve


def _paired(one: ArrayLike, other: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    one, other = _array(one), _array(other)
    if len(one) != len(other):
        raise ValueError(f"{len(one)} values against {len(other)}: every point needs both")
    return one, other


def _array(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"shape {array.shape} is not that of a list of values")
    _finite(array)
    return array


def _finite(*values: ArrayLike) -> None:
    if not all(np.isfinite(value).all() for value in values):
        raise ValueError("NaN or infinite value; leave out what was not measured")


def _is_constant(values: np.ndarray) -> bool:
    return len(values) == 0 or bool(values.min() == values.max())


def _two_sided(confidence: float) -> float:
    """Probability below the upper bound of a symmetric interval with this confidence."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    return (1 + confidence) / 2
