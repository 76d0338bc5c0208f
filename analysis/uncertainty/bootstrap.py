"""Resampling: how far statistics of whole curves would move with other items and other seeds.

Pure functions on arrays. Items that share a document or a prompt are drawn together, as clusters; all curves are summed
over clusters first, so that every resample of every curve is one row of one matrix product. In arrays of replicates row
0 is the sample itself and the others are resamples; NaN stands for a resample in which the statistic is not defined,
counts against both bounds, and never leaves this module's intervals.

What no item of the sample shows may still be: twenty items of which none was lost do not show that none ever is. So
every resample also holds one unit more than the sample does, with an outcome that is the worst that can be for lower
bounds and the best for upper ones. For a share of items, the bounds are then those of Clopper and Pearson.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import ArrayLike

RESAMPLES = 2000
MIN_CLUSTERS = 10  # fewer say too little of the spread
FEW_CLUSTERS = f"fewer than {MIN_CLUSTERS} groups of items"
CHUNK = 2**22  # weights held at a time, in rows of at most CHUNK_ROWS resamples
CHUNK_ROWS = 1024
ONE_SIGMA = 0.8413447460685429  # normal probability below one standard deviation
# Share of the resamples in which a statistic must be defined for its standard error to mean something.
DEFINED = 0.9
TAIL = 0.02  # of the resamples, the highest or lowest, tell how fast a distribution falls off
# How many items with another outcome count as much for how alike a cluster's items are as knowing nothing does.
PRIOR_ITEMS = 2


class Interval(NamedTuple):
    """A statistic of the sample and the bounds between which it is sure to lie; None where not defined."""

    estimate: float | None
    low: float | None
    high: float | None


class Scores(NamedTuple):
    """Scores in the sample (row 0) and in every resample.

    Fields:
        both: clusters of items and seeds resampled, (1 + resamples, ...).
        of_items: clusters alone resampled; `both` itself with one seed.
        unseen: share that the unit which the sample does not hold has in each resample, (1 + resamples,); 0 in row 0.
        items, clusters, seeds: of how many the sample is.
        lowest, highest: what a unit may contribute.
    """

    both: np.ndarray
    of_items: np.ndarray
    unseen: np.ndarray
    items: int
    clusters: int
    seeds: int
    lowest: float = 0.0
    highest: float = 1.0

    def with_unseen(self, is_best: ArrayLike) -> np.ndarray:
        """`both` together with the unseen unit, whose score is the highest where `is_best`, else the lowest."""
        unseen = self.unseen.reshape(-1, *[1] * (self.both.ndim - 1))
        return self.both * (1 - unseen) + unseen * np.where(is_best, self.highest, self.lowest)

    def point(self, index: int | slice) -> "Scores":
        """One of several points, or some."""
        both = self.both[:, index]
        return self._replace(both=both, of_items=both if self.of_items is self.both else self.of_items[:, index])


class Replicates(NamedTuple):
    """A statistic of scores, or one for each of several points, in the sample (row 0) and in every resample.

    Fields:
        both: clusters of items and seeds resampled, (1 + resamples, ...).
        of_items: clusters alone resampled; `both` itself with one seed.
        low, high: as `both`, with an unseen unit that makes the statistic small, or large.
        items, clusters, seeds: of how many the sample is.
    """

    both: np.ndarray
    of_items: np.ndarray
    low: np.ndarray
    high: np.ndarray
    items: int
    clusters: int
    seeds: int

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Replicates":
        """A function of the statistic that grows with it."""
        both = function(self.both)
        of_items = both if self.of_items is self.both else function(self.of_items)
        return self._replace(both=both, of_items=of_items, low=function(self.low), high=function(self.high))

    def point(self, index: int) -> "Replicates":
        """One of several points."""
        return self.map(lambda values: values[:, index])

    @property
    def degrees(self) -> float | None:
        return effective_degrees(self.both, self.of_items, self.clusters, self.seeds)

    def low_bound(self, confidence: float) -> float | None:
        """What the true value exceeds with this one-sided confidence (bootstrap.low_bound)."""
        return low_bound(self.low, self.degrees, self.clusters, confidence)

    def high_bound(self, confidence: float) -> float | None:
        """What the true value stays below with this one-sided confidence."""
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
        """One-sided p-value for "the true value is below 0": of one so far below in the sample, were it truly 0."""
        return one_sided_p(self.high, self.degrees, self.clusters)

    def p_above_zero(self) -> float | None:
        """One-sided p-value for "the true value is above 0"."""
        return one_sided_p(-self.low, self.degrees, self.clusters)

    def p_other_than_zero(self) -> float | None:
        """Two-sided p-value for "the true value is not 0"."""
        below, above = self.p_below_zero(), self.p_above_zero()
        return None if below is None or above is None else min(1.0, 2 * min(below, above))

    def errors(self) -> tuple[float, float] | None:
        """The parts of the standard error that come from items, the unseen one included, and from seeds."""
        both, of_items, low = spread(self.both), spread(self.of_items), spread(self.low)
        if both is None or of_items is None or low is None:
            return None
        of_seeds = max(both**2 - of_items**2, 0.0)
        return max(low**2 - of_seeds, of_items**2) ** 0.5, of_seeds**0.5


def compare(function: Callable[[np.ndarray, np.ndarray], np.ndarray], one: Scores, other: Scores) -> Replicates:
    """A statistic of two scores on the same resamples, which grows with the one and falls with the other."""
    both = function(one.both, other.both)
    has_seeds = one.of_items is not one.both or other.of_items is not other.both
    return Replicates(
        both,
        function(one.of_items, other.of_items) if has_seeds else both,
        low=function(one.with_unseen(False), other.with_unseen(True)),
        high=function(one.with_unseen(True), other.with_unseen(False)),
        items=min(one.items, other.items),
        clusters=min(one.clusters, other.clusters),
        seeds=max(one.seeds, other.seeds),
    )


def weighted_sum(parts: list[Replicates], weights: list[float]) -> Replicates:
    """The weighted sum, resample by resample: what the parts share stays in step."""

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
    """Sums over the clusters of the sample and of each resample, all columns on the same weights of clusters.

    Args:
        sums: what each cluster adds to each column, (clusters, columns); one column may be the number of items.
    Yields:
        (rows, columns), one chunk after the other: the sample's row first, then `resamples` more, in each of which
        every cluster has a weight drawn from the exponential distribution with mean 1.
    Source: Rubin's Bayesian bootstrap (Annals of Statistics 1981).
    """
    yield sums.sum(axis=0, keepdims=True)
    size = max(1, min(CHUNK_ROWS, CHUNK // len(sums)))
    for start in range(0, resamples, size):
        yield generator.exponential(size=(min(size, resamples - start), len(sums))) @ sums


def unseen_shares(sizes: np.ndarray, size: float, generator: np.random.Generator) -> np.ndarray:
    """The share in every resample of one unit that the sample does not hold, (1 + resamples,); 0 in the sample.

    Args:
        sizes: how many items each resample has, (1 + resamples,), the sample first.
        size: items of the unit (unit_size).
    Source: Gaffke (Mathematical Methods of Statistics 2005); Learned-Miller and Thomas (arXiv 1905.06208): weights of
        the sample and of one value at the end of the range give a bound for any bounded outcomes; for outcomes of 0
        and 1 it is that of Clopper and Pearson (Biometrika 1934).
    """
    weights = size * generator.exponential(size=len(sizes))
    weights[0] = 0.0
    return weights / (sizes + weights)


def unit_size(outcomes: np.ndarray, clusters: ArrayLike) -> float:
    """How many items a cluster counts for: 1 where its items have nothing in common, all of them where they are alike.

    Args:
        outcomes: of each item, such as the change of its score, (items,); 0 is the rule.
        clusters: what each belongs to, (items,).
    Returns:
        1 + (m - 1) * r, the design effect, with m the mean size of an item's cluster. r is the correlation within
        clusters, estimated from the items with another outcome than 0, e of them, and taken to be 1 where there is
        none: (PRIOR_ITEMS + e * estimate) / (PRIOR_ITEMS + e).
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
    """Weights of a mean over seeds, (1 + resamples, seeds): equal in row 0, which is the sample, else perturbed.

    Returns:
        1 / seeds + (g - mean of g) / sqrt(seeds * (seeds - 1)) with g normal: over resamples a mean then varies
        normally about the sample's, with the variance that a mean of so many seeds has. Drawing of 2 or 3 seeds with
        replacement has that variance too, but few values. A single seed weighs 1: it says nothing of the spread.
    Source: the wild bootstrap (Wu, Annals of Statistics 1986) of a mean.
    """
    weights = np.full((1 + resamples, seeds), 1 / seeds)
    if seeds > 1:
        drawn = generator.normal(size=(resamples, seeds))
        weights[1:] += (drawn - drawn.mean(axis=1, keepdims=True)) / (seeds * (seeds - 1)) ** 0.5
    return weights


def over_seeds(values: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Means over seeds of what was resampled over items, with seeds resampled and as they are.

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


def theil_sen_slopes(strength: ArrayLike, drops: np.ndarray) -> np.ndarray:
    """monotonicity.theil_sen_slope of every row.

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
    """np.median of every row, seven times as fast; NaN in a row that holds one, since they are sorted to its end."""
    ordered = np.sort(values, axis=1)
    count = ordered.shape[1]
    medians = (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
    return np.where(np.isnan(ordered[:, -1]), np.nan, medians)


def spearmans(strength: ArrayLike, scores: np.ndarray) -> np.ndarray:
    """monotonicity.spearman of every row: 1 where the score falls at every step.

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


def falling_fit(values: np.ndarray) -> np.ndarray:
    """The curves nearest to `values` in least squares that never rise.

    Args:
        values: (rows, points), from weak compression to strong.
    Source: isotonic regression by its min-max formula (Robertson, Wright and Dykstra 1988, theorem 1.4.4): at point i
        the least, over starts up to i, of the greatest mean up to an end from i on; scipy's takes one curve at a time.
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
        amounts: of each point, (points,), from weak compression to strong, above 0.
        fit: the falling_fit of drops, (rows, points).
        tolerance: loss, above 0; 0.05 is 5 % of the dense score.
    Returns:
        (rows,), on the straight lines between the points and the dense model, which lost nothing at amount 0; inf where
        the loss stays below the tolerance at all points, NaN where a drop is NaN.
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


def spread(replicates: np.ndarray) -> float | None:
    """Standard error of a statistic: half the width of the middle 68 % of its resamples, which few wild ones leave be.

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
    """Standard error of a statistic that every resample has, (1 + resamples,); see `stretch` for the second factor."""
    return float(replicates[1:].std(ddof=1)) * ((clusters + 1) / (clusters - 1)) ** 0.5 if clusters > 1 else 0.0


def effective_degrees(replicates: np.ndarray, of_items: np.ndarray, clusters: int, seeds: int) -> float | None:
    """Degrees of freedom of a statistic's standard error, of whose variance items and seeds have a part each.

    Args:
        replicates: of the statistic, items and seeds drawn.
        of_items: items alone drawn.
        clusters, seeds: of how many the draws were.
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
    """How much farther from the estimate a bound stands than the resamples' quantile.

    Student's quantile over the normal one, as few clusters or seeds ask for; and the root of (n + 1) / (n - 1), by
    which the variance over exponential weights of n clusters is smaller than that of a mean.
    """
    students = scipy.special.stdtrit(degrees, confidence) / scipy.special.ndtri(confidence)
    return students * ((clusters + 1) / (clusters - 1)) ** 0.5


def low_bound(replicates: np.ndarray, degrees: float | None, clusters: int, confidence: float) -> float | None:
    """What the true value exceeds with this one-sided confidence.

    Args:
        replicates: of the statistic, (1 + resamples,), with an unseen unit that makes it small.
        degrees: of freedom (effective_degrees).
        clusters: of how many the resamples were drawn.
        confidence: in (0.5, 1).
    Returns:
        The resamples' quantile, moved away from the estimate by `stretch`; None without degrees of freedom or estimate,
        and where too many resamples lack the statistic.
    """
    if degrees is None or not np.isfinite(replicates[0]):
        return None
    distance = replicates[0] - _low_quantile(replicates[1:], 1 - confidence)
    if distance > 0:
        distance *= stretch(degrees, clusters, confidence)
    return _number(replicates[0] - distance)


def high_bound(replicates: np.ndarray, degrees: float | None, clusters: int, confidence: float) -> float | None:
    """What the true value stays below with this one-sided confidence; see low_bound."""
    low = low_bound(-replicates, degrees, clusters, confidence)
    return None if low is None else -low


def _low_quantile(drawn: np.ndarray, share: float) -> float:
    """The value below or at which this share of the resamples lies, where one that is NaN lies below all others."""
    ordered = np.sort(drawn)
    place = int(share * (len(ordered) - 1)) - int(np.isnan(drawn).sum())
    return -np.inf if place < 0 else ordered[place]


def reached_interval(crossing: Replicates, degrees: float | None, confidence: float = 0.95) -> Interval:
    """Estimate and two-sided interval of `crossings`, of which any may be infinite: not reached.

    Args:
        degrees: of freedom of the drops, since a crossing that is not reached has no standard error.
    Returns:
        The resamples' quantiles at the tails that Student's distribution has where the normal one has its own, since
        there is no distance to stretch from an estimate that was not reached. A bound that is not reached is None.
    """
    if degrees is None or np.isnan(crossing.both[0]):
        return Interval(_number(crossing.both[0]), None, None)
    one_sided = (1 + confidence) / 2
    distance = scipy.special.ndtri(one_sided) * stretch(degrees, crossing.clusters, one_sided)
    tail = scipy.special.ndtr(-distance)
    low, high = _low_quantile(crossing.low[1:], tail), -_low_quantile(-crossing.high[1:], tail)
    return Interval(_number(crossing.both[0]), _number(low), _number(high))


def one_sided_p(replicates: np.ndarray, degrees: float | None, clusters: int) -> float | None:
    """Probability of a statistic as far below 0 as the sample's, were it truly 0.

    Args:
        replicates: of the statistic, (1 + resamples,), with an unseen unit that makes it large.
        degrees, clusters: as in low_bound.
    Returns:
        The share of resamples that are not below 0 (_share_not_below), taken through the normal distribution to
        Student's; None without degrees of freedom or estimate.
    """
    if degrees is None or not np.isfinite(replicates[0]):
        return None
    distance = scipy.special.ndtri(_share_not_below(replicates[1:])) / ((clusters + 1) / (clusters - 1)) ** 0.5
    return float(scipy.special.stdtr(degrees, distance))


def _share_not_below(drawn: np.ndarray) -> float:
    """The share of the resamples that are not below 0, counting one more than there are; of rare ones the tail's.

    Where fewer than TAIL of them are above 0, resamples alone could give no small p-value: the TAIL that are highest
    are taken to fall off exponentially, which overstates what lies beyond them where the distribution is normal.

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


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
