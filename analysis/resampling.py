"""The resampler: how far a statistic of whole curves would move with other items and other seeds.

Pure functions on arrays. Items that share a document or a prompt form a cluster and are drawn together. All curves are
summed over clusters first, so that every resample of every curve is one row of one matmul. Row 0 of an array of
replicates is the sample itself; every other row is a resample. NaN stands for a resample in which the statistic is not
defined; it widens both bounds and never leaves this module's intervals.

A sample cannot show what it holds no case of: twenty items of which none was lost do not prove that none ever is. So
every resample also holds one unseen unit. Its outcome is the worst possible for lower bounds and the best possible for
upper bounds. For a share of items this gives the bounds of Clopper and Pearson.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from numpy.typing import ArrayLike

from analysis import estimators

RESAMPLES = 2000
MIN_CLUSTERS = 10  # fewer clusters say too little about the spread
FEW_CLUSTERS = f"fewer than {MIN_CLUSTERS} groups of items"
CHUNK, CHUNK_ROWS = 2**22, 1024  # most weights, and most resamples, in memory at a time
ONE_SIGMA = 0.8413447460685429  # normal probability below one standard deviation
# Share of the resamples in which a statistic must be defined for its standard error to mean something.
DEFINED = 0.9
TAIL = 0.02  # share of the resamples, the most extreme ones, to which an exponential tail is fitted
PRIOR_ITEMS = 2  # weight, in items, of the prior that the items of a cluster are all alike


class Interval(NamedTuple):
    """A statistic of the sample and its bounds; None where not defined."""

    estimate: float | None
    low: float | None
    high: float | None


class Scores(NamedTuple):
    """Scores in the sample (row 0) and in every resample.

    Fields:
        both: clusters of items and seeds resampled, (1 + resamples, ...).
        of_items: clusters alone resampled; `both` itself with one seed.
        unseen: weight of the unseen unit in each resample, a share of the whole, (1 + resamples,); 0 in row 0.
        items, clusters, seeds: how many the sample has.
        lowest, highest: range of an item's score.
    """

    both: np.ndarray
    of_items: np.ndarray
    unseen: np.ndarray
    items: int
    clusters: int
    seeds: int
    lowest: float = 0.0
    highest: float = 1.0

    @property
    def lowest_drop(self) -> np.ndarray:
        """Normalized drop from each score to the lowest possible: -1, or less where scores may be negative."""
        return self.lowest / self.both[0].astype(np.float64) - 1

    def with_unseen(self, is_best: ArrayLike) -> np.ndarray:
        """`both` with the unseen unit added, whose score is `highest` where `is_best`, else `lowest`."""
        unseen = self.unseen.reshape(-1, *[1] * (self.both.ndim - 1))
        return self.both * (1 - unseen) + unseen * np.where(is_best, self.highest, self.lowest)

    def point(self, index: int | slice | list[int]) -> "Scores":
        """The scores of one point, or of several points."""
        both = self.both[:, index]
        return self._replace(both=both, of_items=both if self.of_items is self.both else self.of_items[:, index])


class Replicates(NamedTuple):
    """A statistic of scores, or one for each of several points, in the sample (row 0) and in every resample.

    Fields:
        both: clusters of items and seeds resampled, (1 + resamples, ...).
        of_items: clusters alone resampled; `both` itself with one seed.
        low, high: as `both`, with an unseen unit that makes the statistic as small, or as large, as it can.
        items, clusters, seeds: how many the sample has.
    """

    both: np.ndarray
    of_items: np.ndarray
    low: np.ndarray
    high: np.ndarray
    items: int
    clusters: int
    seeds: int

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Replicates":
        """The replicates of an increasing function of the statistic."""
        both = function(self.both)
        of_items = both if self.of_items is self.both else function(self.of_items)
        return self._replace(both=both, of_items=of_items, low=function(self.low), high=function(self.high))

    def point(self, index: int) -> "Replicates":
        """The replicates of one of several points."""
        return self.map(lambda values: values[:, index])

    @property
    def degrees(self) -> float | None:
        return effective_degrees(self.both, self.of_items, self.clusters, self.seeds)

    def low_bound(self, confidence: float) -> float | None:
        """The bound that the true value exceeds with this one-sided confidence (see the function low_bound)."""
        return low_bound(self.low, self.degrees, self.clusters, confidence)

    def high_bound(self, confidence: float) -> float | None:
        """The bound that the true value stays below with this one-sided confidence."""
        return high_bound(self.high, self.degrees, self.clusters, confidence)

    def interval(self, confidence: float = 0.95) -> Interval:
        """The statistic of the sample and its two-sided interval.

        Args:
            confidence: probability with which the interval covers the true value, in (0, 1).
        Raises:
            ValueError: a confidence out of range.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence {confidence} is not between 0 and 1")
        one_sided = (1 + confidence) / 2
        return Interval(_number(self.both[0]), self.low_bound(one_sided), self.high_bound(one_sided))

    def p_below_zero(self) -> float | None:
        """One-sided p-value of the null hypothesis that the true value is not below 0."""
        return one_sided_p(self.high, self.degrees, self.clusters)

    def p_above_zero(self) -> float | None:
        """One-sided p-value of the null hypothesis that the true value is not above 0."""
        return one_sided_p(-self.low, self.degrees, self.clusters)

    def p_other_than_zero(self, degrees: float | None = None) -> float | None:
        """Two-sided p-value of the null hypothesis that the true value is 0.

        Args:
            degrees: of freedom, where the statistic's own spread does not give them; None for `degrees` of self.
        """
        degrees = self.degrees if degrees is None else degrees
        tails = [one_sided_p(values, degrees, self.clusters) for values in (self.high, -self.low)]
        return None if None in tails else min(1.0, 2 * min(tails))

    def errors(self) -> tuple[float, float] | None:
        """The parts of the standard error from items, the unseen one included, and from seeds; None if not defined."""
        both, of_items, low = spread(self.both), spread(self.of_items), spread(self.low)
        if both is None or of_items is None or low is None:
            return None
        of_seeds = max(both**2 - of_items**2, 0.0)
        return max(low**2 - of_seeds, of_items**2) ** 0.5, of_seeds**0.5


def compare(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
    one: Scores,
    other: Scores,
    small: tuple[ArrayLike, ArrayLike] = (False, True),
    large: tuple[ArrayLike, ArrayLike] = (True, False),
) -> Replicates:
    """A statistic of two scores, computed on every resample; both scores are of the same resamples.

    Args:
        function: the statistic; of arrays shaped like `one.both` and `other.both`.
        small: whether the item that the sample does not hold is right for `one`, and for `other`, where the statistic
            is to be as small as it can be; an array says it for each point.
        large: the same where the statistic is to be as large as it can be. By default the statistic grows with `one`
            and falls with `other`.
    Returns:
        The replicates, and those with the item at its worst (low) and at its best (high).
    """
    both = function(one.both, other.both)
    has_seeds = one.of_items is not one.both or other.of_items is not other.both
    return Replicates(
        both,
        function(one.of_items, other.of_items) if has_seeds else both,
        low=function(one.with_unseen(small[0]), other.with_unseen(small[1])),
        high=function(one.with_unseen(large[0]), other.with_unseen(large[1])),
        items=min(one.items, other.items),
        clusters=min(one.clusters, other.clusters),
        seeds=max(one.seeds, other.seeds),
    )


def weighted_sum(parts: list[Replicates], weights: list[float]) -> Replicates:
    """The weighted sum of several statistics, resample by resample, so that what they share cancels."""

    def summed(names: list[str]) -> np.ndarray:
        return np.tensordot(weights, [getattr(part, name) for part, name in zip(parts, names, strict=True)], axes=1)

    both = summed(["both"] * len(parts))
    has_seeds = any(part.of_items is not part.both for part in parts)
    return Replicates(
        both,
        summed(["of_items"] * len(parts)) if has_seeds else both,
        low=summed(["low" if weight > 0 else "high" for weight in weights]),
        high=summed(["high" if weight > 0 else "low" for weight in weights]),
        items=min(part.items for part in parts),
        clusters=min(part.clusters for part in parts),
        seeds=max(part.seeds for part in parts),
    )


def resampled_sums(sums: np.ndarray, resamples: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Column sums over the clusters of the sample and of each resample; all columns share the clusters' weights.

    Args:
        sums: what each cluster adds to each column, (clusters, columns); one column may be the number of items.
    Yields:
        Chunks of rows, (rows, columns): first the sample's row, then `resamples` more. In each of these every cluster
        has a weight drawn from the exponential distribution with mean 1.
    Source: Rubin's Bayesian bootstrap (Annals of Statistics 1981).
    """
    yield sums.sum(axis=0, keepdims=True)
    size = max(1, min(CHUNK_ROWS, CHUNK // len(sums)))
    for start in range(0, resamples, size):
        yield generator.exponential(size=(min(size, resamples - start), len(sums))) @ sums


def unseen_shares(sizes: np.ndarray, size: float, generator: np.random.Generator) -> np.ndarray:
    """The unseen unit's share of every resample, (1 + resamples,); 0 in row 0, the sample.

    Args:
        sizes: total weight of the items in each resample, (1 + resamples,), the sample first.
        size: how many items the unit counts for (unit_size).
    Source: Gaffke (Mathematical Methods of Statistics 2005); Learned-Miller and Thomas (arXiv 1905.06208): weights of
        the sample and of one value at the end of the range give a bound for any bounded outcomes; for outcomes of 0
        and 1 it is that of Clopper and Pearson (Biometrika 1934).
    """
    weights = size * generator.exponential(size=len(sizes))
    weights[0] = 0.0
    return weights / (sizes + weights)


def unit_size(outcomes: np.ndarray, clusters: ArrayLike) -> float:
    """How many independent items the unseen unit counts for: the design effect of the clusters.

    Args:
        outcomes: such as the change of each item's score, (items,); most are 0.
        clusters: the cluster of each item, (items,).
    Returns:
        1 + (m - 1) * r with m the mean size of an item's cluster and r the correlation of outcomes within clusters: 1
        where items are independent, m where those of a cluster are all alike. r is estimated from the e items whose
        outcome is not 0 and drawn towards 1 where there are few: (PRIOR_ITEMS + e * estimate) / (PRIOR_ITEMS + e).
    Source: Kish, Survey Sampling (1965), sec. 5.4; the estimate from the analysis of variance.
    """
    _, cluster, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    items, count = len(outcomes), len(sizes)
    if count == items:
        return 1.0
    mean_size = float((sizes**2).sum() / items)
    if count == 1:
        return mean_size
    between = (np.bincount(cluster, outcomes) ** 2 / sizes).sum()
    of_clusters = (between - items * np.mean(outcomes) ** 2) / (count - 1)
    within = (np.square(outcomes, dtype=np.float64).sum() - between) / (items - count)
    typical = (items - mean_size) / (count - 1)
    total = of_clusters + (typical - 1) * within
    correlation = min(1.0, max(0.0, (of_clusters - within) / total)) if total > 0 else 0.0
    changed = int(np.count_nonzero(outcomes))
    return 1 + (mean_size - 1) * (PRIOR_ITEMS + changed * correlation) / (PRIOR_ITEMS + changed)


def seed_weights(seeds: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Weights of a mean over seeds, (1 + resamples, seeds): equal in row 0, the sample, and perturbed in all others.

    Returns:
        1 / seeds + (g - mean of g) / sqrt(seeds * (seeds - 1)) with g normal. A mean then varies normally about that of
        the sample, with the variance of a mean of so many seeds. (Drawing 2 or 3 seeds with replacement has that
        variance too, but few values.) A single seed weighs 1: it says nothing about the spread.
    Source: the wild bootstrap (Wu, Annals of Statistics 1986) of a mean.
    """
    weights = np.full((1 + resamples, seeds), 1 / seeds)
    if seeds > 1:
        drawn = generator.normal(size=(resamples, seeds))
        weights[1:] += (drawn - drawn.mean(axis=1, keepdims=True)) / (seeds * (seeds - 1)) ** 0.5
    return weights


def over_seeds(values: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Means over seeds of replicates, with the seeds resampled and with the seeds as they are.

    Args:
        values: (1 + resamples, seeds, ...).
    Returns:
        `both` and `of_items` of Scores, (1 + resamples, ...); the same array with one seed.
    """
    of_items = values.mean(axis=1)
    if values.shape[1] == 1:
        return of_items, of_items
    weights = seed_weights(values.shape[1], len(values) - 1, generator)
    return np.einsum("rs...,rs->r...", values, weights), of_items


def spread(replicates: np.ndarray) -> float | None:
    """Standard error of a statistic, robust to outliers: half the width of the middle 68 % of its resamples.

    Returns:
        None where fewer than DEFINED of the resamples have the statistic.
    """
    ordered = np.sort(replicates[1:])  # infinite ones and NaN come last
    count = int(np.isfinite(ordered).sum())
    if count == 0 or count < DEFINED * len(ordered):
        return None
    below = round((1 - ONE_SIGMA) * (count - 1))
    return float(ordered[count - 1 - below] - ordered[below]) / 2


def standard_error(replicates: np.ndarray, clusters: int) -> float:
    """Standard error of a statistic that is defined in every resample, (1 + resamples,); 0 with one cluster.

    The second factor is that of `stretch`.
    """
    return float(replicates[1:].std(ddof=1)) * ((clusters + 1) / (clusters - 1)) ** 0.5 if clusters > 1 else 0.0


def effective_degrees(replicates: np.ndarray, of_items: np.ndarray, clusters: int, seeds: int) -> float | None:
    """Degrees of freedom of a statistic's standard error, to which items and seeds both contribute.

    Args:
        replicates: of the statistic, items and seeds resampled.
        of_items: the same, items alone resampled.
        clusters, seeds: how many the sample has.
    Returns:
        Between seeds - 1, where all the spread is the seeds', and clusters - 1; None with fewer than MIN_CLUSTERS.
    Source: Satterthwaite (Biometrics 1946).
    """
    if clusters < MIN_CLUSTERS:
        return None
    if seeds < 2:
        return clusters - 1
    both, items = spread(replicates), spread(of_items)
    if not both or items is None:
        return clusters - 1
    of_clusters, of_seeds = min(items, both) ** 2, max(both**2 - items**2, 0)
    return both**4 / (of_clusters**2 / (clusters - 1) + of_seeds**2 / (seeds - 1))


def stretch(degrees: float, clusters: int, confidence: float) -> float:
    """Factor by which a bound is farther from the estimate than the quantile of the resamples.

    It is Student's quantile over the normal one, which corrects for few clusters or seeds, times the root of
    (n + 1) / (n - 1), because exponential weights of n clusters give less variance than a mean of n has.
    """
    students = scipy.special.stdtrit(degrees, confidence) / scipy.special.ndtri(confidence)
    return students * ((clusters + 1) / (clusters - 1)) ** 0.5


def low_bound(replicates: np.ndarray, degrees: float | None, clusters: int, confidence: float) -> float | None:
    """The bound that the true value exceeds with this one-sided confidence.

    Args:
        replicates: of the statistic, (1 + resamples,), with an unseen unit that makes it small.
        degrees: of freedom (effective_degrees).
        clusters: how many the sample has.
        confidence: in (0.5, 1).
    Returns:
        The quantile of the resamples, moved away from the estimate by `stretch`. None without degrees of freedom or
        estimate, and where the statistic is undefined in too many resamples.
    """
    if degrees is None or not np.isfinite(replicates[0]):
        return None
    distance = replicates[0] - _low_quantile(replicates[1:], 1 - confidence)
    if distance > 0:
        distance *= stretch(degrees, clusters, confidence)
    return _number(replicates[0] - distance)


def high_bound(replicates: np.ndarray, degrees: float | None, clusters: int, confidence: float) -> float | None:
    """The bound that the true value stays below with this one-sided confidence; see low_bound."""
    low = low_bound(-replicates, degrees, clusters, confidence)
    return None if low is None else -low


def _low_quantile(drawn: np.ndarray, share: float) -> float:
    """The value that this share of the resamples does not exceed; NaN counts as lower than all others."""
    ordered = np.sort(drawn)
    place = int(share * (len(ordered) - 1)) - int(np.isnan(drawn).sum())
    return -np.inf if place < 0 else ordered[place]


def reached_interval(crossing: Replicates, degrees: float | None, confidence: float = 0.95) -> Interval:
    """Estimate and two-sided interval of estimators.crossings, any of which may be infinite: not reached.

    Args:
        degrees: of freedom of the drops, because a crossing that is not reached has no standard error.
    Returns:
        Quantiles of the resamples. Their tails are widened as `stretch` widens a distance, since an estimate that was
        not reached has no distance to stretch. A bound that is not reached is None.
    """
    if degrees is None or np.isnan(crossing.both[0]):
        return Interval(_number(crossing.both[0]), None, None)
    one_sided = (1 + confidence) / 2
    distance = scipy.special.ndtri(one_sided) * stretch(degrees, crossing.clusters, one_sided)
    tail = scipy.special.ndtr(-distance)
    low, high = _low_quantile(crossing.low[1:], tail), -_low_quantile(-crossing.high[1:], tail)
    return Interval(_number(crossing.both[0]), _number(low), _number(high))


def one_sided_p(replicates: np.ndarray, degrees: float | None, clusters: int) -> float | None:
    """Probability of a statistic as far below 0 as the sample's if the true value were 0.

    Args:
        replicates: of the statistic, (1 + resamples,), with an unseen unit that makes it large.
        degrees, clusters: as in low_bound.
    Returns:
        The share of resamples that are not below 0 (_share_not_below), turned into a normal quantile and back into a
        probability by Student's distribution; None without degrees of freedom or estimate.
    """
    if degrees is None or not np.isfinite(replicates[0]):
        return None
    distance = scipy.special.ndtri(_share_not_below(replicates[1:])) / ((clusters + 1) / (clusters - 1)) ** 0.5
    return float(scipy.special.stdtr(degrees, distance))


def _share_not_below(drawn: np.ndarray) -> float:
    """The share of the resamples that are not below 0, with one added; from a fitted tail where they are rare.

    Counting resamples cannot give a small p-value. Where fewer than TAIL of them are above 0, the highest TAIL are
    taken to fall off exponentially, which overstates the p-value where the distribution is normal.

    Source: Knijnenburg et al. (Bioinformatics 2009), with the exponential tail, of the generalised Pareto's.
    """
    above = np.count_nonzero(~(drawn < 0))
    counted = (1 + above) / (1 + len(drawn))
    tail = int(TAIL * len(drawn))
    if above >= tail or tail < 1:
        return counted
    ordered = np.sort(drawn)  # NaN last
    threshold = ordered[-tail - 1]
    excess = float(np.mean(ordered[-tail:]) - threshold)
    if not np.isfinite(excess) or excess <= 0:
        return counted
    return min(counted, tail / len(drawn) * float(np.exp(threshold / excess)))


class ResampledLine(NamedTuple):
    """A line between two models, as a curve of loss or error, on resamples of its items.

    Fields:
        curves: (resamples, points). One draw of items serves all points, so that what an item adds at every alpha
            cancels.
        unseen: share of the unseen item in each resample (unseen_shares), (resamples,).
        tall, flat: curves of the unseen item that raise a barrier, and that lower it, (points,).
        items: how many the sample has.
    """

    curves: np.ndarray
    unseen: np.ndarray
    tall: np.ndarray
    flat: np.ndarray
    items: int

    def highest(self, alphas: ArrayLike, definition: str, unseen_item: np.ndarray | None = None) -> np.ndarray:
        """The barrier of each resample, (resamples,), with the unseen item's curve where one is given."""
        curves = self.curves
        if unseen_item is not None:
            curves = curves * (1 - self.unseen[:, None]) + self.unseen[:, None] * unseen_item
        return estimators.barrier_heights(curves, alphas, definition).max(axis=1)


def barrier_intervals(
    curve: ArrayLike, resampled: ResampledLine, alphas: ArrayLike, confidence: float = 0.95
) -> list[dict[str, Any]]:
    """Both barriers of one curve with their intervals over items.

    Args:
        curve: (points,), of all items.
        confidence: of the interval, in (0, 1).
    Returns:
        One dict per definition: definition, barrier, alpha, low, high. The maximum over noisy points is biased upwards,
        and in resamples once more. So low and high are quantiles of the resamples, less the excess of their median over
        the barrier, stretched as low_bound does, and not below 0. The barrier itself keeps the first bias: a low bound
        slightly above 0 proves little. With fewer than MIN_CLUSTERS items the bounds are None.
    """
    one_sided = (1 + confidence) / 2
    found = []
    for definition in estimators.DEFINITIONS:
        height, alpha = estimators.barrier(curve, alphas, definition)
        interval: dict[str, float | None] = {"low": None, "high": None}
        if resampled.items >= MIN_CLUSTERS:
            middle = float(np.median(resampled.highest(alphas, definition)))
            low = float(np.quantile(resampled.highest(alphas, definition, resampled.flat), 1 - one_sided))
            high = float(np.quantile(resampled.highest(alphas, definition, resampled.tall), one_sided))
            wider = stretch(resampled.items - 1, resampled.items, one_sided)
            interval = {
                "low": max(0.0, height - wider * max(middle - low, 0.0)),
                "high": height + wider * max(high - middle, 0.0),
            }
        found.append({"definition": definition, "barrier": height, "alpha": alpha, **interval})
    return found


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
