import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from analysis import monotonicity
from analysis.uncertainty import bootstrap


def generator(seed=0):
    return np.random.default_rng(seed)


def test_a_resample_draws_one_unit_less_than_there_are_and_the_sample_comes_first():
    counts = bootstrap.draw_counts(7, 3000, generator())
    assert counts.shape == (3001, 7) and (counts[0] == 1).all() and (counts[1:].sum(axis=1) == 6).all()
    # Each unit is drawn 6/7 times on average; standard error of the mean of 3000 draws below 0.02.
    assert counts[1:].mean(axis=0) == pytest.approx(6 / 7, abs=0.08)
    assert (bootstrap.draw_counts(1, 4, generator()) == 1).all()
    with pytest.raises(ValueError, match="nothing to draw from"):
        bootstrap.draw_counts(0, 4, generator())


def test_resampled_sums_are_those_of_the_drawn_units_in_every_chunk(monkeypatch):
    sums = np.array([[1.0, 2], [10, 20], [100, 200], [1000, 2000]])
    monkeypatch.setattr(bootstrap, "CHUNK", 12)  # three resamples of four units at a time
    chunks = list(bootstrap.resampled_sums(sums, 7, generator(3)))
    assert [len(chunk) for chunk in chunks] == [1, 3, 3, 1]
    counts = np.concatenate(list(bootstrap._chunks(4, 7, generator(3))))
    assert chunks[0].tolist() == [[1111, 2222]]
    assert np.concatenate(chunks[1:]).tolist() == (counts @ sums).tolist()


@pytest.mark.parametrize("units", [2, 3, 5, 60])
def test_the_variance_over_resamples_is_that_of_the_mean(units):
    values = generator(units).normal(size=units)
    counts = bootstrap.draw_counts(units, 20_000, generator())[1:]
    means = counts @ values / counts.sum(axis=1)
    # A variance of 20,000 draws has a relative error of about 1 %, 3 of which are allowed.
    assert means.var() == pytest.approx(values.var(ddof=1) / units, rel=0.03)


def test_slopes_and_correlations_of_rows_are_those_of_each_row_alone():
    strength, drops = [0.1, 0.2, 0.2, 0.5, 0.7], generator().normal(size=(30, 5)).round(1)
    slopes, correlations = bootstrap.theil_sen_slopes(strength, drops), bootstrap.spearmans(strength, drops)
    for row, slope, correlation in zip(drops, slopes, correlations, strict=True):
        assert slope == pytest.approx(scipy.stats.theilslopes(row, strength).slope, abs=1e-12)
        assert correlation == pytest.approx(scipy.stats.spearmanr(strength, -row).statistic, abs=1e-12)
        assert slope == pytest.approx(monotonicity.theil_sen_slope(strength, row), abs=1e-12)


def test_rows_without_a_slope_or_correlation_are_marked():
    drops = np.array([[0.0, -0.1, -0.2], [0, 0, 0], [0, np.nan, -0.1]])
    assert np.isnan(bootstrap.spearmans([1, 2, 3], drops)).tolist() == [False, True, True]
    assert np.isnan(bootstrap.theil_sen_slopes([1, 2, 3], drops)).tolist() == [False, False, True]
    assert np.isnan(bootstrap.theil_sen_slopes([1, 1, 1], drops)).all()
    assert np.isnan(bootstrap.theil_sen_slopes([1], drops[:, :1])).all()
    assert np.isnan(bootstrap.spearmans([1, 2], drops[:, :2])).all()
    assert np.isnan(bootstrap.spearmans([1, 1, 1], drops)).all()


def test_the_falling_fit_is_isotonic_regression():
    # 0.125 and 0.375 rise, so both become their mean; the rest falls already.
    assert bootstrap.falling_fit(np.array([[0.5, 0.125, 0.375, 0.0]])).tolist() == [[0.5, 0.25, 0.25, 0.0]]
    values = generator().normal(size=(40, 9))
    for row, fit in zip(values, bootstrap.falling_fit(values), strict=True):
        assert fit == pytest.approx(scipy.optimize.isotonic_regression(row, increasing=False).x, abs=1e-12)


def test_the_tolerance_is_crossed_on_the_straight_line_between_two_points():
    drops = np.array(
        [
            [0.0, -0.02, -0.10],  # from -.02 at .2 to -.1 at .4: -.05 after 3/8 of the way
            [-0.10, -0.20, -0.3],  # from the dense model, 0 at 0, to -.1 at .1: half way
            [0.3, 0.1, -0.02],  # never
            [0.0, -0.05, -0.06],  # at a point
            [-0.08, 0.04, -0.10],  # the first two become -.02, since the curve cannot rise: again 3/8 of the way
            [0.0, np.nan, -0.1],
        ]
    )
    found = bootstrap.crossings([0.1, 0.2, 0.4], bootstrap.falling_fit(drops), 0.05)
    assert found[:5] == pytest.approx([0.275, 0.05, np.inf, 0.2, 0.275], abs=1e-12)
    assert np.isnan(found[5])


def normal_replicates(seed=0, mean=1.0, error=0.5, size=200_000):
    drawn = generator(seed).normal(mean, error, size)
    return np.concatenate([[mean], drawn])


def test_intervals_of_many_clusters_are_normal_and_of_few_students():
    replicates = normal_replicates()
    # 1.96 and 2.776 (Student's with 4 degrees of freedom) standard errors of .5.
    for degrees, width in ((10**9, 1.96), (4, 2.7764)):
        found = bootstrap.interval(replicates, degrees)
        assert found == pytest.approx((1, 1 - width / 2, 1 + width / 2), abs=0.02)  # noise of the 2.5 % quantile
    assert bootstrap.low_bound(replicates, 10**9, 0.95) == pytest.approx(1 - 1.645 / 2, abs=0.02)
    assert bootstrap.high_bound(replicates, 10**9, 0.95) == pytest.approx(1 + 1.645 / 2, abs=0.02)
    assert bootstrap.spread(replicates) == pytest.approx(0.5, abs=0.005)
    assert bootstrap.one_sided_p(replicates - 2.0, 10**9) == pytest.approx(scipy.stats.norm.cdf(-2), abs=0.002)
    assert bootstrap.one_sided_p(replicates - 2.0, 4) == pytest.approx(scipy.stats.t.cdf(-2, 4), abs=0.004)


def test_a_skewed_statistic_has_a_skewed_interval():
    replicates = np.exp(normal_replicates(mean=0.0))
    _, low, high = bootstrap.interval(replicates, 10**9)
    assert (low, high) == pytest.approx((np.exp(-0.98), np.exp(0.98)), rel=0.02)


def test_resamples_without_the_statistic_count_against_both_bounds():
    replicates = normal_replicates(size=1000)
    replicates[1:11] = np.nan
    wide, narrow = bootstrap.interval(replicates, 50), bootstrap.interval(normal_replicates(size=1000), 50)
    assert wide.low < narrow.low and wide.high > narrow.high
    replicates[1:40] = np.nan  # more than the 2.5 % beyond a bound
    assert bootstrap.interval(replicates, 50) == (1.0, None, None)
    replicates[1:200] = np.nan
    assert bootstrap.spread(replicates) is None


def test_without_clusters_or_estimate_there_is_no_interval():
    replicates = normal_replicates(size=100)
    assert bootstrap.effective_degrees(replicates, replicates, bootstrap.MIN_CLUSTERS - 1, 3) is None
    assert bootstrap.interval(replicates, None) == (1.0, None, None)
    assert bootstrap.one_sided_p(replicates, None) is None
    undefined = np.full(101, np.nan)
    assert bootstrap.interval(undefined, 50) == (None, None, None)
    assert bootstrap.one_sided_p(undefined, 50) is None and bootstrap.spread(undefined) is None
    assert bootstrap.reached_interval(undefined, 50) == (None, None, None)
    with pytest.raises(ValueError, match="confidence 95 is not between 0 and 1"):
        bootstrap.interval(replicates, 50, confidence=95)


def test_a_statistic_that_no_resample_moves_has_an_empty_interval():
    constant = np.full(101, 0.25)
    assert bootstrap.interval(constant, bootstrap.effective_degrees(constant, constant, 20, 3)) == (0.25, 0.25, 0.25)
    # None of 100 is below 0, one more is counted: 101 of 101.
    assert bootstrap.one_sided_p(constant, 19) == 1
    # None of 100 is 0 or above; one of 101.
    assert bootstrap.one_sided_p(-constant, 10**9) == pytest.approx(1 / 101, rel=1e-6)


def test_degrees_of_freedom_lie_between_those_of_seeds_and_of_clusters():
    both = normal_replicates(error=0.5)
    for of_items, seeds, expected in (
        (both, 1, 99),
        (both, 3, 99),
        (normal_replicates(error=1e-9), 3, 2),
        # Half of the variance each: 1 / (1/4 / 99 + 1/4 / 2)
        (normal_replicates(error=0.5 / 2**0.5), 3, 1 / (0.25 / 99 + 0.25 / 2)),
    ):
        assert bootstrap.effective_degrees(both, of_items, 100, seeds) == pytest.approx(expected, rel=0.03)


def test_an_interval_of_what_is_not_reached_says_so():
    reached = np.concatenate([[0.5], np.linspace(0.4, 0.6, 1000)])
    # Two-sided 95 % with very many degrees: the 2.5 % quantiles.
    assert bootstrap.reached_interval(reached, 10**9) == pytest.approx((0.5, 0.405, 0.595), abs=0.001)
    reached[901:] = np.inf
    estimate, low, high = bootstrap.reached_interval(reached, 10**9)
    assert (estimate, low, high) == (0.5, pytest.approx(0.405, abs=0.001), None)
    reached[0] = np.inf
    assert bootstrap.reached_interval(reached, 10**9)[0] is None
    assert bootstrap.reached_interval(np.full(11, np.inf), 30) == (None, None, None)


STRENGTHS = np.array([0.2, 0.4, 0.6, 0.8])


def simulated_slopes(datasets, clusters=40, items=8, resamples=300, seeds=1, seed_noise=0.0, seed=0):
    """Intervals of the slope of simulated sweeps whose items are right with a probability that falls with strength.

    Returns:
        Intervals of a slope and the slope itself, which is that of expected scores.
    """
    rng = generator(seed)
    truth = -0.5  # expected scores are p and p * (1 - strength / 2)
    found = []
    for _ in range(datasets):
        rate = np.clip(0.6 + 0.15 * rng.normal(size=clusters), 0.05, 0.95)[:, None, None]
        luck = rng.random((clusters, items, 1))
        dense = (luck < rate).sum(axis=(1, 2))
        loss = 0.5 * (1 + seed_noise * rng.normal(size=(seeds, 1, 1, 1)))
        answered = luck / rate < 1 - STRENGTHS * loss  # (seeds, clusters, items, strengths)
        sums = np.concatenate([dense[:, None], answered.sum(axis=2).transpose(1, 0, 2).reshape(clusters, -1)], axis=1)
        drawn = np.concatenate(list(bootstrap.resampled_sums(sums.astype(float), resamples, rng)))
        ratios = (drawn[:, 1:] / drawn[:, :1] - 1).reshape(-1, seeds, len(STRENGTHS))
        weights = bootstrap.draw_counts(seeds, resamples, rng)
        weights /= weights.sum(axis=1, keepdims=True)
        of_items = bootstrap.theil_sen_slopes(STRENGTHS, ratios.mean(axis=1))
        both = bootstrap.theil_sen_slopes(STRENGTHS, np.einsum("rsp,rs->rp", ratios, weights))
        found.append(bootstrap.interval(both, bootstrap.effective_degrees(both, of_items, clusters, seeds)))
    return found, truth


def coverage(found, truth):
    return np.mean([low <= truth <= high for _, low, high in found])


def test_intervals_of_slopes_cover_the_truth_as_often_as_they_say():
    assert 0.93 <= coverage(*simulated_slopes(400, resamples=200)) <= 0.97


def test_intervals_cover_the_truth_where_seeds_bring_most_of_the_noise():
    found, truth = simulated_slopes(150, seeds=3, seed_noise=0.3, resamples=200)
    assert 0.93 <= coverage(found, truth) <= 0.99


def test_noise_of_seeds_widens_the_interval():
    def width(noise):
        found, _ = simulated_slopes(20, seeds=3, seed_noise=noise, seed=5)
        return np.mean([high - low for _, low, high in found])

    assert width(0.3) > 1.5 * width(0.0)


def test_pairing_narrows_the_interval_of_what_varies_together():
    rng = generator(1)
    ability = rng.normal(size=(50, 1))
    easy, hard = 0.8 + 0.1 * ability, 0.5 + 0.1 * ability + 0.02 * rng.normal(size=(50, 1))
    sums = np.hstack([easy, hard])
    paired = np.concatenate(list(bootstrap.resampled_sums(sums, 2000, generator(2)))) / 50
    apart = np.concatenate(list(bootstrap.resampled_sums(sums, 2000, generator(3)))) / 50

    def width(difference):
        _, low, high = bootstrap.interval(difference, 49)
        return high - low

    # Correlation .98: the difference varies a fifth as much where both are drawn together.
    assert width(paired[:, 0] - paired[:, 1]) < 0.3 * width(paired[:, 0] - apart[:, 1])
