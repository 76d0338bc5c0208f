import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from analysis import resampling


def generator(seed=0):
    return np.random.default_rng(seed)


def test_resampled_sums_weigh_the_clusters_in_every_chunk_and_the_sample_comes_first(monkeypatch):
    sums = np.array([[1.0, 2], [10, 20], [100, 200], [1000, 2000]])
    monkeypatch.setattr(resampling, "CHUNK", 12)  # three resamples of four units at a time
    chunks = list(resampling.resampled_sums(sums, 7, generator(3)))
    assert [len(chunk) for chunk in chunks] == [1, 3, 3, 1]
    again = generator(3)
    weights = np.concatenate([again.exponential(size=(rows, 4)) for rows in (3, 3, 1)])
    assert chunks[0].tolist() == [[1111, 2222]]
    assert np.concatenate(chunks[1:]) == pytest.approx(weights @ sums)


@pytest.mark.parametrize("units", [2, 3, 5, 60])
def test_the_variance_over_seeds_weights_is_that_of_the_mean(units):
    values = generator(units).normal(size=units)
    weights = resampling.seed_weights(units, 20_000, generator())
    assert weights[0] == pytest.approx(1 / units) and weights.sum(axis=1) == pytest.approx(1)
    # A variance of 20,000 draws has a relative error of about 1 %, 3 of which are allowed.
    assert (weights[1:] @ values).var() == pytest.approx(values.var(ddof=1) / units, rel=0.03)
    assert (resampling.seed_weights(1, 4, generator()) == 1).all()


@pytest.mark.parametrize("units", [10, 60])
def test_the_variance_over_clusters_weights_is_that_of_the_mean_after_the_stretch(units):
    values = generator(units).normal(size=units)
    sums = np.stack([values, np.ones(units)], axis=1)
    drawn = np.concatenate(list(resampling.resampled_sums(sums, 20_000, generator())))[1:]
    widened = (drawn[:, 0] / drawn[:, 1]).var() * (units + 1) / (units - 1)
    assert widened == pytest.approx(values.var(ddof=1) / units, rel=0.04)


@pytest.mark.parametrize(("lost", "of"), [(0, 20), (1, 20), (3, 90), (40, 90)])
def test_bounds_of_a_share_are_those_of_clopper_and_pearson(lost, of):
    """Before what few clusters add: quantiles of 200,000 resamples, whose noise is below .002."""
    kept = np.repeat([0.0, 1.0], [lost, of - lost])
    sums = np.stack([kept, np.ones(of)], axis=1)
    drawn = np.concatenate(list(resampling.resampled_sums(sums, 200_000, generator())))
    unseen = resampling.unseen_shares(drawn[:, 1], 1, generator(1))
    share = drawn[:, 0] / drawn[:, 1]
    scores = resampling.Scores(share, share, unseen, of, of, 1)
    exact = scipy.stats.binomtest(of - lost, of).proportion_ci(0.95, "exact")
    assert np.quantile(scores.with_unseen(False), 0.025) == pytest.approx(exact.low, abs=0.002)
    assert np.quantile(scores.with_unseen(True), 0.975) == pytest.approx(exact.high, abs=0.002)
    assert scores.with_unseen(True)[0] == scores.with_unseen(False)[0] == (of - lost) / of


def test_a_unit_counts_for_what_its_items_have_not_in_common():
    apart, together = np.arange(40), np.repeat(np.arange(4), 10)
    assert resampling.unit_size(np.ones(40), apart) == 1
    assert resampling.unit_size(np.zeros(40), together) == 10  # nothing is known of how alike they are
    assert resampling.unit_size(np.ones(10), np.zeros(10)) == 10
    alike = np.repeat([1.0, 0, 0, 1], 10)
    assert resampling.unit_size(alike, together) == pytest.approx(10)  # correlation 1
    # Each cluster has the same: the correlation is estimated below 0 and taken to be 0; 2 of 22 counts are the prior's.
    even = np.tile(np.repeat([1.0, 0.0], 5), 4)
    assert resampling.unit_size(even, together) == pytest.approx(1 + 9 * 2 / 22)


def test_a_unit_of_clusters_that_differ_in_size_by_hand():
    """Both items of one cluster, one of four of the other: between .75, within .1875, typical size 6 - 20 / 6."""
    correlation = (0.75 - 0.1875) / (0.75 + (6 - 20 / 6 - 1) * 0.1875)
    found = resampling.unit_size(np.array([1.0, 1, 0, 0, 0, 1]), np.array([0, 0, 1, 1, 1, 1]))
    assert found == pytest.approx(1 + (20 / 6 - 1) * (2 + 3 * correlation) / (2 + 3))


MANY = 10**9


def normal_replicates(seed=0, mean=1.0, error=0.5, size=200_000):
    drawn = generator(seed).normal(mean, error, size)
    return np.concatenate([[mean], drawn])


def replicates(values, clusters=MANY, seeds=1, of_items=None, low=None, high=None):
    of_items, low, high = (values if given is None else given for given in (of_items, low, high))
    return resampling.Replicates(values, of_items, low, high, clusters, clusters, seeds)


def test_intervals_of_many_clusters_are_normal_and_of_few_students():
    values = normal_replicates()
    # 1.96 and 2.262 (Student's with 9 degrees of freedom, times the root of 11 / 9) standard errors of .5.
    for clusters, width in ((MANY, 1.96), (10, 2.2622 * (11 / 9) ** 0.5)):
        found = replicates(values, clusters).interval()
        assert found == pytest.approx((1, 1 - width / 2, 1 + width / 2), abs=0.02)  # noise of the 2.5 % quantile
    many = replicates(values)
    assert many.low_bound(0.95) == pytest.approx(1 - 1.645 / 2, abs=0.02)
    assert many.high_bound(0.95) == pytest.approx(1 + 1.645 / 2, abs=0.02)
    assert resampling.spread(values) == pytest.approx(0.5, abs=0.005)
    assert replicates(values - 2).p_below_zero() == pytest.approx(scipy.stats.norm.cdf(-2), abs=0.002)
    assert replicates(values).p_above_zero() == pytest.approx(scipy.stats.norm.cdf(-2), abs=0.002)
    assert replicates(values).p_other_than_zero() == pytest.approx(2 * scipy.stats.norm.cdf(-2), abs=0.004)
    few = replicates(values - 2, 10).p_below_zero()
    assert few == pytest.approx(scipy.stats.t.cdf(-2 / (11 / 9) ** 0.5, 9), abs=0.004)


def test_low_bounds_rest_on_the_low_replicates_and_high_ones_on_the_high():
    values = normal_replicates()
    moved = np.where(np.arange(len(values)) == 0, 0, 0.3)
    found = replicates(values, low=values - moved, high=values + moved).interval()
    assert found == pytest.approx((1, 1 - 0.98 - 0.3, 1 + 0.98 + 0.3), abs=0.02)


def test_a_difference_takes_the_low_of_the_one_and_the_high_of_the_other():
    values, moved = normal_replicates(size=1000), np.concatenate([[0], np.full(1000, 0.25)])
    part = replicates(values, clusters=20, low=values - moved, high=values + 2 * moved)
    both = resampling.weighted_sum([part, part], [1.0, -1.0])
    assert both.both == pytest.approx(0) and both.of_items is both.both
    assert both.low[1:] == pytest.approx(-0.75) and both.high[1:] == pytest.approx(0.75)
    assert resampling.weighted_sum([part, part], [0.5, 0.5]).low == pytest.approx(part.low)
    assert (both.clusters, both.items, both.seeds) == (20, 20, 1)


def test_what_is_of_two_sides_has_the_fewest_items_and_clusters_and_the_most_seeds():
    """A dense model of one seed beside a compressed one of three: the spread of the three counts."""
    values = normal_replicates(size=10)
    parts = [replicates(values, clusters=20, seeds=3), replicates(values, clusters=30, seeds=1)]
    scores = [
        resampling.Scores(values, values, np.zeros(11), count, count, seeds) for count, seeds in ((20, 3), (30, 1))
    ]
    for turn in (1, -1):
        for found in (
            resampling.weighted_sum(parts[::turn], [1.0, -1.0]),
            resampling.compare(np.subtract, *scores[::turn]),
        ):
            assert (found.items, found.clusters, found.seeds) == (20, 20, 3)


def test_what_falls_with_a_score_has_its_bounds_the_other_way_round():
    drawn = np.array([0.5, 0.5])
    scores = resampling.Scores(drawn, drawn, np.array([0, 0.2]), 10, 10, 1)
    found = resampling.compare(np.subtract, scores, scores)
    # With a fifth of the weight: .4 of a lowest and .6 of a highest unseen score.
    assert found.low.tolist() == pytest.approx([0, -0.2]) and found.high.tolist() == pytest.approx([0, 0.2])


def test_a_skewed_statistic_has_a_skewed_interval():
    _, low, high = replicates(np.exp(normal_replicates(mean=0.0))).interval()
    assert (low, high) == pytest.approx((np.exp(-0.98), np.exp(0.98)), rel=0.02)


def test_resamples_without_the_statistic_count_against_both_bounds():
    values = normal_replicates(size=1000)
    values[1:11] = np.nan
    wide, narrow = replicates(values, 50).interval(), replicates(normal_replicates(size=1000), 50).interval()
    assert wide.low < narrow.low and wide.high > narrow.high
    values[1:40] = np.nan  # more than the 2.5 % beyond a bound
    assert replicates(values, 50).interval() == (1.0, None, None)
    values[1:200] = np.nan
    assert resampling.spread(values) is None and replicates(values).errors() is None


def test_without_clusters_or_estimate_there_is_no_interval():
    values = normal_replicates(size=100)
    few = replicates(values, resampling.MIN_CLUSTERS - 1, 3)
    assert few.degrees is None
    assert few.interval() == (1.0, None, None)
    assert few.p_below_zero() is None and few.p_other_than_zero() is None
    undefined = replicates(np.full(101, np.nan), 50)
    assert undefined.interval() == (None, None, None)
    assert undefined.p_below_zero() is None and resampling.spread(undefined.both) is None
    assert resampling.reached_interval(undefined, 50) == (None, None, None)
    with pytest.raises(ValueError, match="confidence 95 is not between 0 and 1"):
        few.interval(confidence=95)


def test_a_statistic_that_no_resample_moves():
    constant = np.full(101, 0.25)
    assert replicates(constant, 20, 3).interval() == (0.25, 0.25, 0.25)
    # None of 100 is below 0, one more is counted: 101 of 101.
    assert replicates(constant, 20).p_below_zero() == 1
    # None of 100 is 0 or above; one of 101.
    assert replicates(-constant).p_below_zero() == pytest.approx(1 / 101, rel=1e-6)


def test_a_p_value_smaller_than_the_resamples_can_count_comes_from_their_tail():
    """Six standard errors below 0 are 1e-9; the exponential tail is thicker than the normal one, and no p is 0."""
    few = replicates(normal_replicates(mean=-6.0, error=1.0, size=2000)).p_below_zero()
    assert 1e-9 < few < 1e-4
    near = replicates(normal_replicates(mean=-2.5, error=1.0, size=2000)).p_below_zero()
    assert near == pytest.approx(scipy.stats.norm.cdf(-2.5), rel=0.5)
    exponential = -1 + np.concatenate([[0], generator().exponential(0.1, size=2000)])  # 1 is ten means away
    assert np.log(replicates(exponential).p_below_zero()) == pytest.approx(-10, rel=0.2)


def test_errors_tell_items_and_seeds_apart():
    both, of_items = normal_replicates(error=0.5), normal_replicates(error=0.3)
    assert replicates(both, 100, 3, of_items=of_items).errors() == pytest.approx((0.3, 0.4), abs=0.01)
    wider = normal_replicates(error=0.5 * 1.1)
    assert replicates(both, 100, low=wider).errors() == pytest.approx((0.55, 0.0), abs=0.01)


def test_degrees_of_freedom_lie_between_those_of_seeds_and_of_clusters():
    both = normal_replicates(error=0.5)
    for of_items, seeds, expected in (
        (both, 1, 99),
        (both, 3, 99),
        (normal_replicates(error=1e-9), 3, 2),
        # Half of the variance each: 1 / (1/4 / 99 + 1/4 / 2)
        (normal_replicates(error=0.5 / 2**0.5), 3, 1 / (0.25 / 99 + 0.25 / 2)),
    ):
        assert resampling.effective_degrees(both, of_items, 100, seeds) == pytest.approx(expected, rel=0.03)


def test_an_interval_of_what_is_not_reached_says_so():
    reached = np.concatenate([[0.5], np.linspace(0.4, 0.6, 1000)])
    # Two-sided 95 % with very many degrees: the 2.5 % quantiles.
    assert resampling.reached_interval(replicates(reached), MANY) == pytest.approx((0.5, 0.405, 0.595), abs=0.001)
    moved = replicates(reached, low=reached - 0.1, high=reached + 0.1)
    assert resampling.reached_interval(moved, MANY) == pytest.approx((0.5, 0.305, 0.695), abs=0.001)
    reached[901:] = np.inf
    estimate, low, high = resampling.reached_interval(replicates(reached), MANY)
    assert (estimate, low, high) == (0.5, pytest.approx(0.405, abs=0.001), None)
    reached[0] = np.inf
    assert resampling.reached_interval(replicates(reached), MANY)[0] is None
    assert resampling.reached_interval(replicates(np.full(11, np.inf)), 30) == (None, None, None)


def test_pairing_narrows_the_interval_of_what_varies_together():
    rng = generator(1)
    ability = rng.normal(size=(50, 1))
    easy, hard = 0.8 + 0.1 * ability, 0.5 + 0.1 * ability + 0.02 * rng.normal(size=(50, 1))
    sums = np.hstack([easy, hard, np.ones((50, 1))])
    paired, apart = (np.concatenate(list(resampling.resampled_sums(sums, 2000, generator(seed)))) for seed in (2, 3))

    def width(one, other):
        _, low, high = replicates(one[:, 0] / one[:, 2] - other[:, 1] / other[:, 2], 50).interval()
        return high - low

    # Correlation .98: the difference varies a fifth as much where both are drawn together.
    assert width(paired, paired) < 0.3 * width(paired, apart)


@pytest.mark.parametrize(("lowest", "expected"), [(0.0, -1.0), (-1.0, -3.0)])
def test_the_lowest_drop_is_to_the_lowest_score_that_the_metric_has(lowest: float, expected: float):
    """Of a correlation of 0.5 more than everything can be lost: -1 is a drop of 300 %."""
    dense = resampling.Scores(np.array([0.5, 0.4]), np.array([0.5, 0.4]), np.zeros(2), 20, 20, 1, lowest)
    assert dense.lowest_drop == expected


def test_a_bound_that_all_resamples_exceed_is_not_moved():
    """Only the distance to the far side of the estimate is stretched for few clusters."""
    assert resampling.low_bound(np.array([0.0, *[1.0] * 100]), 9, 10, 0.95) == 1.0


def test_the_standard_error_of_resamples_by_hand():
    # Deviation sqrt(2) of 1 and 3; exponential weights of 10 clusters give 9 / 11 of the variance.
    assert resampling.standard_error(np.array([0.0, 1, 3]), 10) == pytest.approx((2 * 11 / 9) ** 0.5)
    assert resampling.standard_error(np.array([0.0, 1, 3]), 1) == 0


def test_the_bounds_of_a_barrier_by_hand():
    """Barriers from .4 to .6 on ten items; an unseen one with a tenth of the weight has none, or one of 1."""
    heights = np.linspace(0.4, 0.6, 1001)
    curves = np.stack([0 * heights, heights, 0 * heights], axis=1)
    line = resampling.ResampledLine(curves, np.full(1001, 0.1), np.array([0.0, 1, 0]), np.zeros(3), 10)
    wider = scipy.stats.t.ppf(0.975, 9) / scipy.stats.norm.ppf(0.975) * (11 / 9) ** 0.5
    for found in resampling.barrier_intervals([0.0, 0.5, 0.0], line, [0, 0.5, 1]):
        assert (found["barrier"], found["alpha"]) == (0.5, 0.5)
        assert found["low"] == pytest.approx(0.5 - wider * (0.5 - 0.9 * 0.405))
        assert found["high"] == pytest.approx(0.5 + wider * (0.9 * 0.595 + 0.1 - 0.5))
