import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from analysis import estimators, resampling
from analysis.estimators import MEAN_OF_ENDS, STRAIGHT_LINE


def test_normalized_drop_is_relative_to_dense_and_negative_where_score_is_lost():
    assert estimators.normalized_drop(0.6, 0.8) == pytest.approx(-0.25, abs=1e-15)  # rounding of 0.6 and 0.8
    assert estimators.normalized_drop(0.75, 0.5) == 0.5
    assert estimators.normalized_drop(0.5, 0.5) == 0
    assert estimators.normalized_drop(-0.25, 0.5) == -1.5


@pytest.mark.parametrize("dense", [0.0, -0.1])
def test_drop_from_a_dense_score_of_zero_or_less_is_not_defined(dense):
    assert estimators.normalized_drop(0.3, dense) is None


def test_spearman_is_positive_where_compression_costs_score():
    assert estimators.spearman([0.1, 0.5, 0.9], [0.9, 0.8, 0.1]) == 1
    assert estimators.spearman([0.1, 0.5, 0.9], [0.1, 0.8, 0.9]) == -1
    # Ranks of strength 1 2 3 4, of loss 2 1 3 4: 1 - 6 * (1 + 1) / (4 * 15)
    assert estimators.spearman([1, 2, 3, 4], [0.8, 0.9, 0.7, 0.6]) == pytest.approx(0.8, abs=1e-15)


def test_spearman_gives_ties_their_mean_rank():
    # Ranks of strength 1 2 3, of loss 1.5 1.5 3: covariance 1.5, variances 2 and 1.5.
    assert estimators.spearman([1, 2, 3], [0.9, 0.9, 0.5]) == pytest.approx(1.5 / np.sqrt(2 * 1.5), abs=1e-15)


def test_spearman_of_scores_and_of_their_drops_is_the_same():
    strength, score = [0.1, 0.2, 0.3, 0.4], [0.7, 0.72, 0.6, 0.65]
    drops = [estimators.normalized_drop(value, 0.8) for value in score]
    assert estimators.spearman(strength, score) == estimators.spearman(strength, drops)


def test_spearman_equals_its_definition_by_ranks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        strength, score = rng.integers(0, 6, 12).astype(float), rng.integers(0, 6, 12).astype(float)
        one, other = _ranks(strength), _ranks(-score)
        expected = np.corrcoef(one, other)[0, 1]
        assert estimators.spearman(strength, score) == pytest.approx(expected, abs=1e-12)  # order of summation


def _ranks(values):
    return [(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values]


@pytest.mark.parametrize(
    ("strength", "score"),
    [([], []), ([0.1], [0.5]), ([0.1, 0.2], [0.5, 0.4]), ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5]), ([1, 1, 1], [3, 2, 1])],
)
def test_spearman_is_not_defined_for_constants_or_fewer_than_three_points(strength, score):
    assert estimators.spearman(strength, score) is None


def test_theil_sen_slope_is_drop_per_unit_of_strength():
    assert estimators.theil_sen_slope([0.0, 0.5, 1.0], [0.0, -0.25, -0.5]) == -0.5
    # Slopes of the pairs: -1 (0, .1), -1.5 (0, .2), -2 (.1, .2), so x and y must not be swapped.
    assert estimators.theil_sen_slope([0.0, 0.1, 0.2], [0.0, -0.1, -0.3]) == pytest.approx(-1.5, abs=1e-12)


def test_theil_sen_slope_equals_the_median_over_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        strength, drop = rng.integers(0, 8, 11) / 8, rng.normal(size=11)
        pairs = itertools.combinations(range(11), 2)
        slopes = [(drop[j] - drop[i]) / (strength[j] - strength[i]) for i, j in pairs if strength[i] != strength[j]]
        expected = np.median(slopes)
        assert estimators.theil_sen_slope(strength, drop) == pytest.approx(expected, abs=1e-12)


def test_theil_sen_slope_is_not_moved_by_one_failed_point():
    assert estimators.theil_sen_slope([0, 1, 2, 3, 4], [0, -1, 50, -3, -4]) == -1


@pytest.mark.parametrize(("strength", "drop"), [([], []), ([0.5], [-0.1]), ([0.5, 0.5], [-0.1, -0.2])])
def test_theil_sen_slope_is_not_defined_without_two_strengths(strength, drop):
    assert estimators.theil_sen_slope(strength, drop) is None


def test_mean_interval_is_students():
    # t(0.975) is 12.706 for 1 and 4.3027 for 2 degrees of freedom (tables); standard errors 0.5 and 1 / sqrt(3).
    assert estimators.mean_interval([0, 1]) == pytest.approx((0.5, 0.5 - 6.3531, 0.5 + 6.3531), abs=1e-4)
    assert estimators.mean_interval([1, 2, 3]) == pytest.approx((2, 2 - 2.4841, 2 + 2.4841), abs=1e-4)
    # t(0.9) for 2 degrees of freedom is 1.8856
    half = 1.8856 / np.sqrt(3)
    assert estimators.mean_interval([1, 2, 3], confidence=0.8) == pytest.approx((2, 2 - half, 2 + half), abs=1e-4)


def test_one_value_has_no_interval_and_equal_values_have_an_empty_one():
    assert estimators.mean_interval([0.7]) == (0.7, None, None)
    assert estimators.mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_mean_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [estimators.mean_interval(values) for values in rng.normal(3, 2, (1000, 3))]
    covered = np.mean([low <= 3 <= high for _, low, high in intervals])
    assert covered == pytest.approx(0.95, abs=0.03)  # more than 4 standard errors of 1000 draws


def test_above_chance_asks_for_the_whole_interval():
    # 1.96 standard errors of 0.05 are 0.098; that of someone who guesses at 1000 items is smaller, .5 / sqrt(1000).
    assert estimators.above_chance(0.599, 0.5, 0.05, 1000)
    assert not estimators.above_chance(0.597, 0.5, 0.05, 1000)
    assert estimators.above_chance(0.597, 0.5, 0.05, 1000, confidence=0.9)
    assert not estimators.above_chance(0.4, 0.5, 0.01, 1000)
    assert not estimators.above_chance(0.5, 0.5, 0.0, 1000)


def test_what_a_guesser_reaches_by_luck_is_not_above_chance():
    # Of 1 in 5 at 64 items: 1.96 * sqrt(.2 * .8 / 64) is .098, whatever the scores' own error.
    assert estimators.above_chance(0.299, 0.2, 0.0, 64)
    assert not estimators.above_chance(0.297, 0.2, 0.0, 64)
    assert not estimators.above_chance(0.299, 0.2, 0.0, 16)
    # All right at 50 %: 1.96 * .5 / sqrt(items) is .49 of 4 items and .566 of 3.
    assert estimators.above_chance(1.0, 0.5, 0.0, 4)
    assert not estimators.above_chance(1.0, 0.5, 0.0, 3)
    # The most frequent of two answers, .7 of 100 items: 1.96 * sqrt(.7 * .3 / 100) is .0898.
    assert estimators.above_chance(0.791, 0.7, 0.0, 100)
    assert not estimators.above_chance(0.789, 0.7, 0.0, 100)
    # Nothing is guessed right where chance is 0, and no score is above one of 1.
    assert estimators.above_chance(0.01, 0.0, 0.0, 1)
    assert not estimators.above_chance(0.0, 0.0, 0.0, 1) and not estimators.above_chance(1.0, 1.0, 0.0, 1)


def test_is_monotonic_wants_every_harder_level_to_fall_faster():
    assert estimators.is_monotonic([0.0, 0.5, 0.9], [-0.1, -0.2, -0.3]) is True
    assert estimators.is_monotonic([0.9, 0.0, 0.5], [-0.3, -0.1, -0.2]) is True
    assert estimators.is_monotonic([0.0, 0.5, 0.9], [-0.1, -0.3, -0.2]) is False
    assert estimators.is_monotonic([0.0, 0.5], [-0.2, -0.2]) is False
    assert estimators.is_monotonic([0.5], [-0.2]) is None
    with pytest.raises(ValueError, match="equal levels"):
        estimators.is_monotonic([0.5, 0.5], [-0.2, -0.3])


@pytest.mark.parametrize(
    "call",
    [
        lambda: estimators.normalized_drop(float("nan"), 0.5),
        lambda: estimators.normalized_drop(0.5, float("inf")),
        lambda: estimators.spearman([0.1, 0.2, 0.3], [0.5, float("nan"), 0.3]),
        lambda: estimators.theil_sen_slope([0.1, float("nan")], [0.5, 0.4]),
        lambda: estimators.mean_interval([0.1, float("nan")]),
        lambda: estimators.above_chance(0.5, 0.5, float("nan"), 10),
        lambda: estimators.clustered_error([0.1, float("nan")], ["a", "b"]),
        lambda: estimators.human_gap(float("nan"), 0.5),
        lambda: estimators.is_monotonic([0.1, 0.2], [float("nan"), 0.1]),
    ],
)
def test_nan_is_an_error(call):
    with pytest.raises(ValueError, match="NaN or infinite"):
        call()


def test_values_that_do_not_pair_up_are_an_error():
    with pytest.raises(ValueError, match="3 values against 2"):
        estimators.spearman([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="shape"):
        estimators.theil_sen_slope([[1, 2]], [[1, 2]])
    with pytest.raises(ValueError, match="no values"):
        estimators.mean_interval([])
    with pytest.raises(ValueError, match="confidence 95"):
        estimators.mean_interval([1, 2], confidence=95)


def test_a_mean_of_independent_values_has_its_usual_error():
    values = [0.0, 1.0, 1.0, -2.0, 0.5]
    found = estimators.clustered_error(values, list("abcde"))
    assert found == pytest.approx(np.std(values, ddof=1) / np.sqrt(5), rel=1e-12)


def test_values_that_repeat_their_group_tell_no_more_than_one_of_them():
    values = [0.0, 1.0, -2.0]
    once = estimators.clustered_error(values, list("abc"))
    assert estimators.clustered_error(values * 3, list("abc") * 3) == pytest.approx(once, rel=1e-12)


def test_groups_of_values_add_up():
    # Mean 0; sums of the groups 3 and -3, as many values as 4: sqrt(2 / 1 * 18 / 16).
    assert estimators.clustered_error([1, 2, -1, -2], [7, 7, 9, 9]) == 1.5
    # Groups that are alike as a whole leave the mean no spread, whatever lies within.
    assert estimators.clustered_error([1, -1, 2, -2], [7, 7, 9, 9]) == 0
    assert estimators.clustered_error([1, 2], ["a", "a"]) is None
    assert estimators.clustered_error([0.5, 0.5, 0.5], ["a", "a", "b"]) == 0


def test_values_without_a_group_are_an_error():
    for values, groups in (([1, 2], ["a"]), ([], [])):
        with pytest.raises(ValueError, match="each needs its group"):
            estimators.clustered_error(values, groups)


@pytest.mark.parametrize(
    ("human", "model", "printed"),
    [
        (95.0, 78.35, 17.53), (95.6, 59.68, 37.57), (92.0, 36.40, 60.43),  # table 3: PIQA, HellaSwag, OpenBookQA
        # Appendix B: SST-2, CoLA, QQP, STS-B, QNLI, RTE, WinoGrande, CommonsenseQA
        (97.8, 96.2, 1.64), (66.4, 64.9, 2.26), (80.4, 91.8, -14.18), (92.7, 92.2, 0.54), (91.2, 94.4, -3.51),
        (93.6, 84.3, 9.94), (94.0, 78.1, 16.91), (89.0, 72.1, 18.99),
    ],
)  # fmt: skip
def test_the_gap_to_people_is_what_the_paper_prints(human, model, printed):
    assert 100 * estimators.human_gap(human / 100, model / 100) == pytest.approx(printed, abs=0.0051)


def test_a_gap_to_people_who_score_nothing_is_not_defined():
    with pytest.raises(ValueError, match="human score 0 is not above 0"):
        estimators.human_gap(0, 0.5)


def test_the_order_of_few_levels_is_likely_by_luck():
    assert [estimators.order_probability(levels) for levels in (1, 2, 4)] == [1, 1 / 2, 1 / 24]
    assert estimators.order_probability(3) == pytest.approx(0.167, abs=0.0005)
    with pytest.raises(ValueError, match="0 levels have no order"):
        estimators.order_probability(0)


def test_the_same_loss_of_knowledge_gives_steeper_raw_slopes_with_more_options():
    # A model knows 30 % of the answers and guesses the rest among k: score = 1/k + (1 - 1/k) * knowledge. Where .4983
    # of it is lost per unit of compression, the drop falls by .4983 * (1 - 1/k) / dense; dense is .65, .5333, .475.
    strength = np.array([0.1, 0.2, 0.3, 0.4])
    knowledge = 0.3 - 0.4983 * strength
    raw, corrected = [], []
    for chance in (1 / 2, 1 / 3, 1 / 4):
        score, dense = chance + (1 - chance) * knowledge, chance + (1 - chance) * 0.3
        drops = [estimators.normalized_drop(value, dense) for value in score]
        above = [estimators.normalized_drop(value - chance, dense - chance) for value in score]
        raw.append(estimators.theil_sen_slope(strength, drops))
        corrected.append(estimators.theil_sen_slope(strength, above))
    # .4983 * .5 / .65, .4983 * .6667 / .5333, .4983 * .75 / .475
    assert raw == pytest.approx([-0.383, -0.623, -0.787], abs=0.0005)
    assert corrected == pytest.approx([-1.661] * 3, abs=0.0005)  # .4983 / .3
    assert estimators.is_monotonic([2, 3, 4], raw) is True


def test_pages_statistic_by_hand():
    # Ranks 1 2 3, 1 3 2, 2 1 3: sums 4, 6, 8, so L = 4 + 12 + 24. The six orders of one block have L = 14, 13, 13, 11,
    # 11, 10. Three blocks reach 42 in 1 of 216 ways, 41 in 3 * 2 and 40 in 3 * 2 * 2.
    found = estimators.page_trend([[0.0, 0.1, 0.2], [0.0, 0.2, 0.1], [0.1, 0.0, 0.2]])
    assert found == (40, pytest.approx(19 / 6**3, abs=1e-12), 3)


def test_pages_test_agrees_with_scipy():
    losses = np.random.default_rng(0).normal(size=(12, 4)) + 0.2 * np.arange(4)
    theirs = scipy.stats.page_trend_test(losses, method="exact")
    assert estimators.page_trend(losses) == (theirs.statistic, pytest.approx(theirs.pvalue, rel=1e-9), 12)
    many = np.random.default_rng(1).normal(size=(57, 4)) + 0.2 * np.arange(4)
    theirs = scipy.stats.page_trend_test(many, method="asymptotic")
    assert estimators.page_trend(many) == (theirs.statistic, pytest.approx(theirs.pvalue, rel=1e-9), 57)


def test_pages_test_with_ties_is_that_of_shuffled_ranks():
    rng = np.random.default_rng(2)
    losses = rng.integers(0, 3, (15, 3)).astype(float)
    found = estimators.page_trend(losses)
    ranks = scipy.stats.rankdata(losses, axis=1)
    shuffled = rng.permuted(np.broadcast_to(ranks, (20_000, *ranks.shape)), axis=2)
    drawn = (shuffled.sum(axis=1) * [1, 2, 3]).sum(axis=1)
    # Half of those that are equal: the normal approximation knows no steps. Three standard errors of 20,000 draws.
    expected = (drawn > found.statistic).mean() + (drawn == found.statistic).mean() / 2
    assert found.p_value == pytest.approx(expected, abs=0.02)


def test_pages_test_of_few_blocks_with_ties_is_normal_too():
    """Ranks 1.5, 1.5, 3 in 3 blocks: L is 40.5, its mean 36, its variance 2 * 4.5 / 2; scipy's exact table has .032."""
    found = estimators.page_trend([[0.0, 0.0, 1.0]] * 3)
    assert found == (40.5, pytest.approx(scipy.stats.norm.sf(4.5 / 4.5**0.5), rel=1e-9), 3)


def test_pages_test_needs_blocks_levels_and_differences():
    assert estimators.page_trend([[0.1, 0.2, 0.3]]) is None
    assert estimators.page_trend([[0.1, 0.2], [0.1, 0.3]]) is None
    assert estimators.page_trend([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2]]) is None
    with pytest.raises(ValueError, match="NaN or infinite"):
        estimators.page_trend([[0.1, float("nan"), 0.3], [0.1, 0.2, 0.3]])


def pages_rejections(trend, tables, blocks, levels):
    rng = np.random.default_rng(3)
    losses = rng.normal(size=(tables, blocks, levels)) + trend * np.arange(levels)
    return np.mean([estimators.page_trend(table).p_value <= 0.05 for table in losses])


def test_pages_test_finds_a_trend_where_there_is_none_as_rarely_as_it_says():
    assert 0.04 <= pages_rejections(0.0, 2000, 57, 3) <= 0.06


def test_pages_test_finds_a_trend_of_a_third_of_the_noise_nearly_always():
    # Power at 57 blocks of 3 levels that each lose a third of a standard deviation more than the one before.
    assert pages_rejections(1 / 3, 100, 57, 3) > 0.9


def test_holms_correction_by_hand():
    # Sorted .01 .02 .03 .04: times 4, 3, 2, 1 gives .04 .06 .06 .04, never less than before.
    assert estimators.holm([0.03, 0.01, None, 0.04, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert estimators.holm([0.5, 0.6]) == [1.0, 1.0]
    assert estimators.holm([]) == [] and estimators.holm([None]) == [None]
    with pytest.raises(ValueError, match="NaN or infinite"):
        estimators.holm([float("nan")])


def test_the_items_that_would_tell_a_difference():
    # (1.6449 + .8416) * .1 = .24865; to tell .05 this must become five times smaller, which 24.7 times the items bring.
    assert estimators.items_needed(100, -0.05, 0.1) == math.ceil(100 * (0.248648 / 0.05) ** 2)
    assert estimators.items_needed(100, 0.5, 0.1) == 25
    # Seeds leave .25 * .25 - .1243² of it: a share of 1 / .7528.
    assert estimators.items_needed(100, 0.25, 0.1, 0.05) == math.ceil(100 * 0.248648**2 / (0.0625 - 0.124324**2))
    assert estimators.items_needed(100, 0.1, 0.1, 0.05) is None
    assert estimators.items_needed(100, 0.0, 0.1) is None


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


def test_slopes_and_correlations_of_rows_are_those_of_each_row_alone():
    strength, drops = [0.1, 0.2, 0.2, 0.5, 0.7], np.random.default_rng(0).normal(size=(30, 5)).round(1)
    slopes, correlations = estimators.theil_sen_slopes(strength, drops), estimators.spearmans(strength, drops)
    for row, slope, correlation in zip(drops, slopes, correlations, strict=True):
        assert slope == pytest.approx(scipy.stats.theilslopes(row, strength).slope, abs=1e-12)
        assert correlation == pytest.approx(scipy.stats.spearmanr(strength, -row).statistic, abs=1e-12)
        assert slope == pytest.approx(estimators.theil_sen_slope(strength, row), abs=1e-12)


def test_rows_without_a_slope_or_correlation_are_marked():
    drops = np.array([[0.0, -0.1, -0.2], [0, 0, 0], [0, np.nan, -0.1]])
    assert np.isnan(estimators.spearmans([1, 2, 3], drops)).tolist() == [False, True, True]
    assert np.isnan(estimators.theil_sen_slopes([1, 2, 3], drops)).tolist() == [False, False, True]
    assert np.isnan(estimators.theil_sen_slopes([1, 1, 1], drops)).all()
    assert np.isnan(estimators.theil_sen_slopes([1], drops[:, :1])).all()
    assert np.isnan(estimators.spearmans([1, 2], drops[:, :2])).all()
    assert np.isnan(estimators.spearmans([1, 1, 1], drops)).all()


def test_the_falling_fit_is_isotonic_regression():
    # 0.125 and 0.375 rise, so both become their mean; the rest falls already.
    assert estimators.falling_fit(np.array([[0.5, 0.125, 0.375, 0.0]])).tolist() == [[0.5, 0.25, 0.25, 0.0]]
    values = np.random.default_rng(0).normal(size=(40, 9))
    for row, fit in zip(values, estimators.falling_fit(values), strict=True):
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
    found = estimators.crossings([0.1, 0.2, 0.4], estimators.falling_fit(drops), 0.05)
    assert found[:5] == pytest.approx([0.275, 0.05, np.inf, 0.2, 0.275], abs=1e-12)
    assert np.isnan(found[5])


def test_a_loss_of_exactly_the_tolerance_reaches_it():
    assert estimators.crossings([0.2, 0.4], np.array([[0.0, -0.5]]), 0.5).tolist() == [0.4]
