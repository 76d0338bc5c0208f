"""Resampling: how far statistics of whole curves would move with other items and other seeds.

Pure functions on arrays. Items that share a document or a prompt are drawn together, as clusters; all curves are summed
over clusters first, so that every resample of every curve is one row of one matrix product. In arrays of replicates row
0 is the sample itself and the others are resamples; NaN stands for a resample in which the statistic is not defined,
counts against both bounds, and never leaves this module's intervals.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import ArrayLike

MIN_CLUSTERS = 5  # fewer say too little of the spread for percentiles
CHUNK = 2**22  # counts held at a time, in rows of at most CHUNK_ROWS resamples
CHUNK_ROWS = 1024
ONE_SIGMA = 0.8413447460685429  # normal probability below one standard deviation
# Share of the resamples in which a statistic must be defined for its standard error to mean something.
DEFINED = 0.9


class Interval(NamedTuple):
    """A statistic of the sample and the bounds between which it is sure to lie; None where not defined."""

    estimate: float | None
    low: float | None
    high: float | None


def draw_counts(units: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each unit counts: once in row 0, which is the sample, and as drawn in the others.

    Args:
        units: clusters of items, or seeds, at least one.
        resamples: rows after the first.
    Returns:
        (1 + resamples, units). A resample draws units - 1 units with replacement, which makes the variance of a
        mean over resamples that of the mean itself: with 3 seeds, drawing 3 would make it a third too small. A single
        unit always counts once: it says nothing of the spread.
    Source: Rao and Wu (JASA 1988), the rescaled bootstrap for means.
    """
    return np.concatenate([np.ones((1, units)), *_chunks(units, resamples, generator)])


def resampled_sums(sums: np.ndarray, resamples: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Sums over the clusters of the sample and of each resample, all columns on the same clusters.

    Args:
        sums: what each cluster adds to each column, (clusters, columns); one column may be the number of items.
    Yields:
        (rows, columns), one chunk after the other: the sample's row first, then `resamples` more.
    """
    yield sums.sum(axis=0, keepdims=True)
    for counts in _chunks(len(sums), resamples, generator):
        yield counts @ sums


def _chunks(units: int, resamples: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    if units < 1:
        raise ValueError("there is nothing to draw from: no units")
    size = max(1, min(CHUNK_ROWS, CHUNK // units))
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        if units == 1:
            yield np.ones((rows, 1))
            continue
        drawn = generator.integers(0, units, (rows, units - 1), dtype=np.int32)
        flat = (drawn + units * np.arange(rows)[:, None]).ravel()
        yield np.bincount(flat, minlength=rows * units).reshape(rows, units).astype(np.float64)


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


def interval(replicates: np.ndarray, degrees: float | None, confidence: float = 0.95) -> Interval:
    """The statistic of the sample and its two-sided interval.

    Args:
        replicates: (1 + resamples,).
        degrees: of freedom (effective_degrees).
        confidence: probability with which the interval covers the true value, in (0, 1). The simulations of
            tests/test_bootstrap.py hold it to 95 % within 2; with 2 seeds that bring most of the noise it is 91 %.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    one_sided = (1 + confidence) / 2
    return Interval(
        _number(replicates[0]),
        low_bound(replicates, degrees, one_sided),
        high_bound(replicates, degrees, one_sided),
    )


def low_bound(replicates: np.ndarray, degrees: float | None, confidence: float) -> float | None:
    """What the true value exceeds with this one-sided confidence.

    Returns:
        The resamples' quantile, moved away from the estimate by Student's quantile over the normal one, as few clusters
        or seeds ask for; None without degrees of freedom or estimate, and where too many resamples lack the statistic.
    """
    if degrees is None or not np.isfinite(replicates[0]):
        return None
    distance = replicates[0] - _low_quantile(replicates[1:], 1 - confidence)
    if distance > 0:
        distance *= scipy.special.stdtrit(degrees, confidence) / scipy.special.ndtri(confidence)
    return _number(replicates[0] - distance)


def high_bound(replicates: np.ndarray, degrees: float | None, confidence: float) -> float | None:
    """What the true value stays below with this one-sided confidence; see low_bound."""
    low = low_bound(-replicates, degrees, confidence)
    return None if low is None else -low


def _low_quantile(drawn: np.ndarray, share: float) -> float:
    """The value below or at which this share of the resamples lies, where one that is NaN lies below all others."""
    ordered = np.sort(drawn)
    place = int(share * (len(ordered) - 1)) - int(np.isnan(drawn).sum())
    return -np.inf if place < 0 else ordered[place]


def reached_interval(replicates: np.ndarray, degrees: float | None, confidence: float = 0.95) -> Interval:
    """Estimate and two-sided interval of `crossings`, of which any may be infinite: not reached.

    Returns:
        The resamples' quantiles at the tails that Student's distribution has where the normal one has its own, since
        there is no distance to stretch from an estimate that was not reached. A bound that is not reached is None.
    """
    if degrees is None or np.isnan(replicates[0]):
        return Interval(_number(replicates[0]), None, None)
    tail = scipy.special.ndtr(-scipy.special.stdtrit(degrees, (1 + confidence) / 2))
    low, high = _low_quantile(replicates[1:], tail), -_low_quantile(-replicates[1:], tail)
    return Interval(_number(replicates[0]), _number(low), _number(high))


def one_sided_p(replicates: np.ndarray, degrees: float | None) -> float | None:
    """Probability of a statistic as far below 0 as the sample's, were it truly 0.

    Returns:
        The share of resamples that are not below 0, counting one more than there are, taken through the normal
        distribution to Student's; None without degrees of freedom or estimate.
    """
    if degrees is None or not np.isfinite(replicates[0]):
        return None
    above = 1 + np.count_nonzero(~(replicates[1:] < 0))
    return float(scipy.special.stdtr(degrees, scipy.special.ndtri(above / len(replicates))))


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
