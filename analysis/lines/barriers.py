"""How high a loss or an error stands on the line between two models: the barrier, and its interval over items.

A curve is the loss, or the error (1 - score), at points alpha that rise from 0, the start, to 1, the end. Everything
here is numpy on such curves; how they are measured is GLUE_tasks.interpolation's business.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from analysis.uncertainty import bootstrap

# Frankle et al. (ICML 2020): the highest point of the curve minus the mean of its two ends.
MEAN_OF_ENDS = "mean_of_ends"
# The highest point above the straight line from end to end: a better start than end is no barrier by itself.
STRAIGHT_LINE = "straight_line"
DEFINITIONS = (MEAN_OF_ENDS, STRAIGHT_LINE)
CONNECTED_ERROR = 0.02  # Frankle et al. call two models connected below this barrier in error


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


class Resampled(NamedTuple):
    """A curve on resamples of its items.

    Fields:
        curves: (resamples, points): one draw of items serves all points, so that what an item adds at every alpha
            cancels out.
        unseen: share in each resample of an item that the sample does not hold (bootstrap.unseen_shares), (resamples,).
        tall, flat: what such an item adds at every point where it raises a barrier, and where it lowers it, (points,).
        items: of how many the sample is.
    """

    curves: np.ndarray
    unseen: np.ndarray
    tall: np.ndarray
    flat: np.ndarray
    items: int

    def highest(self, alphas: ArrayLike, definition: str, unseen_item: np.ndarray | None = None) -> np.ndarray:
        """The barrier of each resample, with one unseen item or without, (resamples,)."""
        curves = self.curves
        if unseen_item is not None:
            curves = curves * (1 - self.unseen[:, None]) + self.unseen[:, None] * unseen_item
        return heights(curves, alphas, definition).max(axis=1)


def describe(
    curve: ArrayLike, resampled: Resampled, alphas: ArrayLike, confidence: float = 0.95
) -> list[dict[str, Any]]:
    """Both barriers of one curve with their bootstrap intervals over items.

    Args:
        curve: (points,), of all items.
        confidence: of the interval, in (0, 1).
    Returns:
        One dict per definition: definition, barrier, alpha, low, high. The highest of noisy points is higher on average
        than the highest of their means, in resamples once more: low and high are the resamples' quantiles less what
        their median is above the barrier, stretched as bootstrap.low_bound does, and not below 0. The barrier itself
        keeps that bias, so that a low bound slightly above 0 proves little. Fewer than bootstrap.MIN_CLUSTERS items
        have the bounds None.
    """
    one_sided = (1 + confidence) / 2
    found = []
    for definition in DEFINITIONS:
        height, alpha = barrier(curve, alphas, definition)
        interval: dict[str, float | None] = {"low": None, "high": None}
        if resampled.items >= bootstrap.MIN_CLUSTERS:
            middle = float(np.median(resampled.highest(alphas, definition)))
            low = float(np.quantile(resampled.highest(alphas, definition, resampled.flat), 1 - one_sided))
            high = float(np.quantile(resampled.highest(alphas, definition, resampled.tall), one_sided))
            wider = bootstrap.stretch(resampled.items - 1, resampled.items, one_sided)
            interval = {
                "low": max(0.0, height - wider * max(middle - low, 0.0)),
                "high": height + wider * max(high - middle, 0.0),
            }
        found.append({"definition": definition, "barrier": height, "alpha": alpha, **interval})
    return found


def ends_and_between(points: int, at_ends: float, between: float) -> np.ndarray:
    """A curve with one value at its ends and one at all points between them, (points,)."""
    curve = np.full(points, between)
    curve[[0, -1]] = at_ends
    return curve
