"""Statistics of curves: how a score falls as compression grows, whether harder levels fall faster, how sure that is.

Pure functions on numbers and arrays. What is not defined is None, never NaN and never 0; a point that was not measured
is left out by the caller, and NaN in an argument is an error.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import ArrayLike

MIN_STRENGTHS = 3  # of a rank correlation and of a slope: two points give a difference
MOST_EXACT_BLOCKS = 12  # of Page's test; the normal approximation is close from there on


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
    if _is_constant(strength):
        return None
    # scipy takes y first.
    return float(scipy.stats.theilslopes(drop, strength).slope)


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
    """Standard error of the mean of values that are alike within groups.

    Args:
        values: (values,), such as an item's score, or its compressed minus its dense score; at least one.
        groups: (values,), what each belongs to, such as a document; groups are independent of each other.
    Returns:
        With n values d in G groups the root of G / (G - 1) * sum over groups of (sum of d - mean in the group)² / n²,
        which is the usual error of a mean where each value is its own group; None with one group, which says nothing
        of the spread.
    Raises:
        ValueError: no value, a NaN, or another number of groups than of values.
    Source: the cluster-robust variance of Liang and Zeger (Biometrika 1986) for a mean, with its usual factor for few
        groups.
    """
    values = _array(values)
    if len(values) == 0 or len(values) != len(groups):
        raise ValueError(f"{len(values)} values in {len(groups)} places: each needs its group, and one is needed")
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(group, values - statistics.fmean(values))
    count = len(sums)
    if count == 1:
        return None
    return float(np.sqrt(count / (count - 1) * (sums**2).sum())) / len(values)


def above_chance(score: float, chance: float, stderr: float, items: int, confidence: float = 0.95) -> bool:
    """Whether `score` is above `chance` by more than the items' luck explains.

    Args:
        score, chance: chance is what guessing or the most frequent answer gives.
        stderr: standard error of the score over groups of evaluated items, not over seeds: all seeds see the same
            items. Scores near 1 leave it little, so that it counts at least as much as that of a guesser.
        items: how many were evaluated.
        confidence: of the two-sided normal interval that must lie wholly above chance, in (0, 1).
    """
    _finite(score, chance, stderr)
    guesser = math.sqrt(chance * (1 - chance) / items) if 0 < chance < 1 else 0.0
    return bool(score - scipy.special.ndtri(_two_sided(confidence)) * max(stderr, guesser) > chance)


def human_gap(human: float, score: float) -> float:
    """(human - score) / human: how far a model's score lies below people's, as a share of theirs.

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
        None with fewer than 2 levels. Equal slopes are not in order. By luck alone k levels are in order once in k!.
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
        statistic: L, the sum over levels of the level's place times the sum of its ranks.
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
    """Each p-value as it counts among all of them: below .05 the chance that any true null is refused is below .05.

    Args:
        p_values: of the tests of one family; None for one that could not be made, which stays None and does not count.
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
    """How many items would tell the sign of a difference as large as the one seen.

    Args:
        items: from how many the difference was measured.
        difference: such as that of two neighbouring slopes.
        item_error, seed_error: the parts of its standard error that come from items, which more of them make smaller as
            1 / sqrt(items), and from seeds, which they do not.
        confidence: of the one-sided test, in (0.5, 1).
        power: how often a sweep of that size would tell, in (0.5, 1).
    Returns:
        items * (z * item_error)² / (difference² - (z * seed_error)²), rounded up, z the sum of the normal quantiles of
        confidence and power (2.49 by default); None where no number would do: the difference is 0, or less than what
        the seeds alone bring about.
    """  # fmt: skip
    z = float(scipy.special.ndtri(confidence) + scipy.special.ndtri(power))
    left = difference**2 - (z * seed_error) ** 2
    return None if left <= 0 else math.ceil(items * (z * item_error) ** 2 / left)


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
    """The quantile whose symmetric interval has this confidence."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    return (1 + confidence) / 2
