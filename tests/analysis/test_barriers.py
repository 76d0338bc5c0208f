import numpy as np
import pytest

from analysis import estimators, resampling
from analysis.estimators import MEAN_OF_ENDS, STRAIGHT_LINE

ALPHAS = np.array([0, 0.25, 0.5, 0.75, 1])


def resampled_means(values: np.ndarray, resamples: int = 1000) -> np.ndarray:
    """Means of resampled items, (resamples, points), of values (items, points)."""
    columns = np.concatenate([values, np.ones((len(values), 1))], axis=1)
    sums = np.concatenate(list(resampling.resampled_sums(columns, resamples, np.random.default_rng(0))))
    return sums[1:, :-1] / sums[1:, -1:]


def test_a_hump_is_measured_against_the_ends_mean_and_against_the_line_between_them():
    curve = [1.0, 2.0, 4.0, 3.5, 3.0]
    # mean of the ends 2; line 1, 1.5, 2, 2.5, 3
    assert estimators.barrier(curve, ALPHAS, MEAN_OF_ENDS) == (2.0, 0.5)
    assert estimators.barrier(curve, ALPHAS, STRAIGHT_LINE) == (2.0, 0.5)
    np.testing.assert_array_equal(estimators.barrier_heights(curve, ALPHAS, STRAIGHT_LINE), [0, 0.5, 2, 1, 0])


def test_a_slope_without_a_hump_is_a_barrier_by_the_mean_of_the_ends_alone():
    curve = [0.0, 0.5, 1.0, 1.5, 2.0]
    assert estimators.barrier(curve, ALPHAS, MEAN_OF_ENDS) == (1.0, 1.0)
    assert estimators.barrier(curve, ALPHAS, STRAIGHT_LINE) == (0.0, 0.0)


def test_a_bowl_has_no_barrier():
    """Loss (alpha - 0.5)^2, a quadratic whose minimum lies halfway: below the line everywhere but at its ends."""
    curve = (ALPHAS - 0.5) ** 2
    assert estimators.barrier(curve, ALPHAS, STRAIGHT_LINE) == estimators.barrier(curve, ALPHAS, MEAN_OF_ENDS) == (0, 0)


@pytest.mark.parametrize("level", [0.1, 0.3, 1 / 3, 0.7, 1e-3, 12.34567])
@pytest.mark.parametrize("definition", estimators.DEFINITIONS)
def test_of_a_model_with_itself_it_is_exactly_0(level: float, definition: str):
    alphas = np.linspace(0, 1, 21)
    assert estimators.barrier(np.full(21, level), alphas, definition) == (0, 0)
    described = resampling.barrier_intervals(np.full(21, level), resampled(np.full((5, 21), level)), alphas)
    assert {(row["barrier"], row["low"], row["high"]) for row in described} == {(0, 0, 0)}


def test_the_ends_stand_on_the_line_whatever_they_are():
    draw = np.random.default_rng(0)
    curves = draw.normal(size=(200, 5)) * 10.0 ** draw.integers(-6, 6, size=(200, 5))
    found = estimators.barrier_heights(curves, ALPHAS, STRAIGHT_LINE)
    assert (found[:, 0] == 0).all() and (found[:, -1] == 0).all()


@pytest.mark.parametrize(
    ("curve", "alphas", "definition", "message"),
    [
        ([0, 0, 0], [0, 0.5, 1], "frankle", "definition 'frankle' is not one of mean_of_ends, straight_line"),
        ([0, 0], [0, 1], MEAN_OF_ENDS, r"rise from 0 to 1 over at least 3 points, not \[0.0, 1.0\]"),
        ([0, 0, 0], [0, 0.5, 0.9], MEAN_OF_ENDS, "rise from 0 to 1"),
        ([0, 0, 0], [0, 1, 0.5], MEAN_OF_ENDS, "rise from 0 to 1"),
        ([0, np.nan, 0], [0, 0.5, 1], MEAN_OF_ENDS, "3 points needs as many finite numbers"),
        ([0, 0, 0, 0], [0, 0.5, 1], MEAN_OF_ENDS, "4 points needs as many finite numbers"),
    ],
)
def test_what_has_no_barrier_is_refused(curve, alphas, definition: str, message: str):
    with pytest.raises(ValueError, match=message):
        estimators.barrier(curve, alphas, definition)


def resampled(curves: np.ndarray, items: int = 50, unseen: float = 0.0) -> resampling.ResampledLine:
    """Resamples with an unseen item that stands 1 between its ends, or at them."""
    points = curves.shape[1]
    tall, flat = estimators.ends_and_between(points, 0.0, 1.0), estimators.ends_and_between(points, 1.0, 0.0)
    return resampling.ResampledLine(curves, np.full(len(curves), unseen), tall, flat, items)


def test_what_no_item_shows_may_still_be():
    """No item errs anywhere; an unseen one that weighs a twentieth would, at the middle or at both ends."""
    for row in resampling.barrier_intervals(np.zeros(3), resampled(np.zeros((5, 3)), 20, unseen=0.05), [0, 0.5, 1]):
        assert (row["low"], row["barrier"]) == (0, 0)
        # Student's 2.093 over the normal 1.96, and the root of 21 / 19.
        assert row["high"] == pytest.approx(0.05 * 2.093 / 1.96 * (21 / 19) ** 0.5, rel=1e-3)
    few = resampling.barrier_intervals(np.zeros(3), resampled(np.zeros((5, 3)), 9), [0, 0.5, 1])
    assert [(row["low"], row["high"]) for row in few] == [(None, None)] * 2


def test_the_interval_is_that_of_a_mean_where_the_barrier_is_one():
    """One interior point high above two ends that are 0: the barrier is the mean of its items, +- 1.96 s / sqrt(n)."""
    items = np.random.default_rng(6).normal(5, 1, size=400)
    values = np.stack([0 * items, items, 0 * items], axis=1)
    described = resampling.barrier_intervals(
        values.mean(axis=0), resampled(resampled_means(values, 4000), 400), [0, 0.5, 1]
    )
    half = 1.96 * items.std() / 20
    for row in described:
        assert row["barrier"] == pytest.approx(items.mean()) and row["alpha"] == 0.5
        # quantiles of 4,000 draws are off by about 3 % of the half width
        assert row["low"] == pytest.approx(items.mean() - half, abs=0.1 * half)
        assert row["high"] == pytest.approx(items.mean() + half, abs=0.1 * half)


def test_the_interval_holds_the_barrier_and_ends_at_0():
    """Points that are equal but for noise: every resample's highest point is above the sample's."""
    values = np.random.default_rng(8).normal(0, 1, size=(60, 21))
    means = resampled_means(values)
    for row in resampling.barrier_intervals(values.mean(axis=0), resampled(means, 60), np.linspace(0, 1, 21)):
        assert 0 <= row["low"] <= row["barrier"] <= row["high"]
    assert (
        np.median(estimators.barrier_heights(means, np.linspace(0, 1, 21), MEAN_OF_ENDS).max(axis=1)) > row["barrier"]
    )
    bowl = (np.linspace(0, 1, 21) - 0.5) ** 2
    line, _ = resampling.barrier_intervals(bowl, resampled(np.tile(bowl, (5, 1))), np.linspace(0, 1, 21))[::-1]
    assert (line["low"], line["barrier"], line["high"]) == (0, 0, 0)


def test_what_every_alpha_shares_does_not_widen_the_interval():
    """Items differ by 100 between each other and by nothing along the line."""
    items = np.random.default_rng(7).normal(0, 100, size=50)
    values = items[:, None] + np.array([0.0, 0.25, 0.0])
    for row in resampling.barrier_intervals(values.mean(axis=0), resampled(resampled_means(values), 50), [0, 0.5, 1]):
        assert row["low"] == pytest.approx(0.25) and row["high"] == pytest.approx(0.25)
