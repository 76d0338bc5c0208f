"""How high a loss or an error stands on the line between two models: the barrier, and its interval over items.

A curve is the loss, or the error (1 - score), at points alpha that rise from 0, the start, to 1, the end. Everything
here is numpy on such curves; how they are measured is GLUE_tasks.interpolation's business.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# Frankle et al. (ICML 2020): the highest point of the curve minus the mean of its two ends.
MEAN_OF_ENDS = "mean_of_ends"
# The highest point above the straight line from end to end: a better start than end is no barrier by itself.
STRAIGHT_LINE = "straight_line"
DEFINITIONS = (MEAN_OF_ENDS, STRAIGHT_LINE)
CONNECTED_ERROR = 0.02  # Frankle et al. call two models connected below this barrier in error
CHUNK_BYTES = 2**25
SMALLEST_SPREAD = 1e-10  # of the squared values: less is the rounding of a constant

Statistic = Callable[[np.ndarray], np.ndarray]  # counts (resamples, items) -> curves (resamples, points)


def heights(curve: ArrayLike, alphas: ArrayLike, definition: str) -> np.ndarray:
    """How far each point of a curve lies above the level that a definition compares it with.

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
    """The greatest of a curve's heights, and the alpha where it stands (the first of several).

    Never negative: the ends take part, whose height is 0 against the straight line, and of whose mean one end is above.
    Against the mean of the ends it is therefore at least half of what the ends differ by, whatever lies between.

    Source: Frankle et al. (ICML 2020), sec. 2, "linear interpolation instability"; the straight line is that of
        Entezari et al. (ICLR 2022).
    """
    found = heights(curve, alphas, definition)
    highest = int(found.argmax())
    return float(found[highest]), float(np.asarray(alphas)[highest])


def describe(
    curve: ArrayLike, resampled: np.ndarray, alphas: ArrayLike, confidence: float = 0.95
) -> list[dict[str, Any]]:
    """Both barriers of one curve with their bootstrap intervals.

    Args:
        curve: (points,), of all items.
        resampled: (resamples, points), what resampled_curves returned: one draw of items serves all points, so that
            what an item adds at every alpha cancels out.
        confidence: of the interval, in (0, 1).
    Returns:
        One dict per definition: definition, barrier, alpha, low, high. The highest of noisy points is higher on average
        than the highest of their means, in resamples once more: low and high are the resamples' quantiles less what
        their median is above the barrier, and not below 0. The barrier itself keeps that bias, so that a low bound
        slightly above 0 proves little.
    """
    quantiles = (1 - confidence) / 2, 0.5, (1 + confidence) / 2
    found = []
    for definition in DEFINITIONS:
        height, alpha = barrier(curve, alphas, definition)
        low, middle, high = np.quantile(heights(resampled, alphas, definition).max(axis=1), quantiles).tolist()
        interval = {"low": max(0.0, height + low - middle), "high": height + high - middle}
        found.append({"definition": definition, "barrier": height, "alpha": alpha, **interval})
    return found


def resampled_curves(statistic: Statistic, num_items: int, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """The curves of `resamples` draws of `num_items` items with replacement, the same draws for the same seed.

    Returns:
        (resamples, points).
    """
    return np.concatenate([statistic(counts) for counts in _draws(num_items, resamples, seed)])


def _draws(num_items: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each item is drawn, (some, items) at a time: all at once would not fit for a large data set."""
    generator = np.random.default_rng(seed)
    size = max(1, CHUNK_BYTES // (8 * num_items))
    for first in range(0, resamples, size):
        count = min(size, resamples - first)
        yield generator.multinomial(num_items, np.full(num_items, 1 / num_items), size=count).astype(np.float64)


def mean_curve(values: np.ndarray) -> Statistic:
    """The statistic for losses and for errors counted one by one.

    Args:
        values: (items, points).
    """
    values = np.asarray(values, dtype=np.float64)
    return lambda counts: counts @ values / counts.sum(axis=1, keepdims=True)


def correlation_curve(predictions: np.ndarray, labels: np.ndarray) -> Statistic:
    """The statistic for Pearson's correlation, which for two classes is Matthews'; 0 where a side is constant.

    Args:
        predictions: (items, points).
        labels: (items,).
    """
    x = predictions - np.mean(predictions, axis=0, dtype=np.float64)
    y = (labels - np.mean(labels, dtype=np.float64))[:, None]

    def statistic(counts: np.ndarray) -> np.ndarray:
        n = counts.sum(axis=1, keepdims=True)
        mean_x, mean_y = counts @ x / n, counts @ y / n
        square_x, square_y = counts @ x**2 / n, counts @ y**2 / n
        spread_x, spread_y = square_x - mean_x**2, square_y - mean_y**2
        constant = (spread_x <= SMALLEST_SPREAD * square_x) | (spread_y <= SMALLEST_SPREAD * square_y)
        product = np.where(constant, 1.0, spread_x * spread_y)
        return np.where(constant, 0.0, (counts @ (x * y) / n - mean_x * mean_y) / np.sqrt(product))

    return statistic
