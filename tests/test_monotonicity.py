import itertools

import numpy as np
import pytest

from analysis import monotonicity


def test_normalized_drop_is_relative_to_dense_and_negative_where_score_is_lost():
    assert monotonicity.normalized_drop(0.6, 0.8) == pytest.approx(-0.25, abs=1e-15)  # rounding of 0.6 and 0.8
    assert monotonicity.normalized_drop(0.75, 0.5) == 0.5
    assert monotonicity.normalized_drop(0.5, 0.5) == 0
    assert monotonicity.normalized_drop(-0.25, 0.5) == -1.5


@pytest.mark.parametrize("dense", [0.0, -0.1])
def test_drop_from_a_dense_score_of_zero_or_less_is_not_defined(dense):
    assert monotonicity.normalized_drop(0.3, dense) is None


def test_spearman_is_positive_where_compression_costs_score():
    assert monotonicity.spearman([0.1, 0.5, 0.9], [0.9, 0.8, 0.1]) == 1
    assert monotonicity.spearman([0.1, 0.5, 0.9], [0.1, 0.8, 0.9]) == -1
    # Ranks of strength 1 2 3 4, of loss 2 1 3 4: 1 - 6 * (1 + 1) / (4 * 15)
    assert monotonicity.spearman([1, 2, 3, 4], [0.8, 0.9, 0.7, 0.6]) == pytest.approx(0.8, abs=1e-15)


def test_spearman_gives_ties_their_mean_rank():
    # Ranks of strength 1 2 3, of loss 1.5 1.5 3: covariance 1.5, variances 2 and 1.5.
    assert monotonicity.spearman([1, 2, 3], [0.9, 0.9, 0.5]) == pytest.approx(1.5 / np.sqrt(2 * 1.5), abs=1e-15)


def test_spearman_of_scores_and_of_their_drops_is_the_same():
    strength, score = [0.1, 0.2, 0.3, 0.4], [0.7, 0.72, 0.6, 0.65]
    drops = [monotonicity.normalized_drop(value, 0.8) for value in score]
    assert monotonicity.spearman(strength, score) == monotonicity.spearman(strength, drops)


def test_spearman_equals_its_definition_by_ranks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        strength, score = rng.integers(0, 6, 12).astype(float), rng.integers(0, 6, 12).astype(float)
        one, other = _ranks(strength), _ranks(-score)
        expected = np.corrcoef(one, other)[0, 1]
        assert monotonicity.spearman(strength, score) == pytest.approx(expected, abs=1e-12)  # order of summation


def _ranks(values):
    return [(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values]


@pytest.mark.parametrize(
    ("strength", "score"),
    [([], []), ([0.1], [0.5]), ([0.1, 0.2], [0.5, 0.4]), ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5]), ([1, 1, 1], [3, 2, 1])],
)
def test_spearman_is_not_defined_for_constants_or_fewer_than_three_points(strength, score):
    assert monotonicity.spearman(strength, score) is None


def test_theil_sen_slope_is_drop_per_unit_of_strength():
    assert monotonicity.theil_sen_slope([0.0, 0.5, 1.0], [0.0, -0.25, -0.5]) == -0.5
    # Slopes of the pairs: -1 (0, .1), -1.5 (0, .2), -2 (.1, .2), so x and y must not be swapped.
    assert monotonicity.theil_sen_slope([0.0, 0.1, 0.2], [0.0, -0.1, -0.3]) == pytest.approx(-1.5, abs=1e-12)


def test_theil_sen_slope_equals_the_median_over_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        strength, drop = rng.integers(0, 8, 11) / 8, rng.normal(size=11)
        pairs = itertools.combinations(range(11), 2)
        slopes = [(drop[j] - drop[i]) / (strength[j] - strength[i]) for i, j in pairs if strength[i] != strength[j]]
        expected = np.median(slopes)
        assert monotonicity.theil_sen_slope(strength, drop) == pytest.approx(expected, abs=1e-12)


def test_theil_sen_slope_is_not_moved_by_one_failed_point():
    assert monotonicity.theil_sen_slope([0, 1, 2, 3, 4], [0, -1, 50, -3, -4]) == -1


@pytest.mark.parametrize(("strength", "drop"), [([], []), ([0.5], [-0.1]), ([0.5, 0.5], [-0.1, -0.2])])
def test_theil_sen_slope_is_not_defined_without_two_strengths(strength, drop):
    assert monotonicity.theil_sen_slope(strength, drop) is None


def test_mean_interval_is_students():
    # t(0.975) is 12.706 for 1 and 4.3027 for 2 degrees of freedom (tables); standard errors 0.5 and 1 / sqrt(3).
    assert monotonicity.mean_interval([0, 1]) == pytest.approx((0.5, 0.5 - 6.3531, 0.5 + 6.3531), abs=1e-4)
    assert monotonicity.mean_interval([1, 2, 3]) == pytest.approx((2, 2 - 2.4841, 2 + 2.4841), abs=1e-4)
    # t(0.9) for 2 degrees of freedom is 1.8856
    half = 1.8856 / np.sqrt(3)
    assert monotonicity.mean_interval([1, 2, 3], confidence=0.8) == pytest.approx((2, 2 - half, 2 + half), abs=1e-4)


def test_one_value_has_no_interval_and_equal_values_have_an_empty_one():
    assert monotonicity.mean_interval([0.7]) == (0.7, None, None)
    assert monotonicity.mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_mean_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [monotonicity.mean_interval(values) for values in rng.normal(3, 2, (1000, 3))]
    covered = np.mean([low <= 3 <= high for _, low, high in intervals])
    assert covered == pytest.approx(0.95, abs=0.03)  # more than 4 standard errors of 1000 draws


def test_above_chance_asks_for_the_whole_interval():
    # 1.96 standard errors of 0.05 are 0.098.
    assert monotonicity.above_chance(0.599, 0.5, 0.05)
    assert not monotonicity.above_chance(0.597, 0.5, 0.05)
    assert monotonicity.above_chance(0.597, 0.5, 0.05, confidence=0.9)
    assert not monotonicity.above_chance(0.4, 0.5, 0.01)
    assert monotonicity.above_chance(1.0, 0.5, 0.0)
    assert not monotonicity.above_chance(0.5, 0.5, 0.0)


def test_is_monotonic_wants_every_harder_level_to_fall_faster():
    assert monotonicity.is_monotonic([0.0, 0.5, 0.9], [-0.1, -0.2, -0.3]) is True
    assert monotonicity.is_monotonic([0.9, 0.0, 0.5], [-0.3, -0.1, -0.2]) is True
    assert monotonicity.is_monotonic([0.0, 0.5, 0.9], [-0.1, -0.3, -0.2]) is False
    assert monotonicity.is_monotonic([0.0, 0.5], [-0.2, -0.2]) is False
    assert monotonicity.is_monotonic([0.5], [-0.2]) is None
    with pytest.raises(ValueError, match="equal levels"):
        monotonicity.is_monotonic([0.5, 0.5], [-0.2, -0.3])


@pytest.mark.parametrize(
    "call",
    [
        lambda: monotonicity.normalized_drop(float("nan"), 0.5),
        lambda: monotonicity.normalized_drop(0.5, float("inf")),
        lambda: monotonicity.spearman([0.1, 0.2, 0.3], [0.5, float("nan"), 0.3]),
        lambda: monotonicity.theil_sen_slope([0.1, float("nan")], [0.5, 0.4]),
        lambda: monotonicity.mean_interval([0.1, float("nan")]),
        lambda: monotonicity.above_chance(0.5, 0.5, float("nan")),
        lambda: monotonicity.clustered_interval([0.1, float("nan")], ["a", "b"]),
        lambda: monotonicity.human_gap(float("nan"), 0.5),
        lambda: monotonicity.is_monotonic([0.1, 0.2], [float("nan"), 0.1]),
    ],
)
def test_nan_is_an_error(call):
    with pytest.raises(ValueError, match="NaN or infinite"):
        call()


def test_values_that_do_not_pair_up_are_an_error():
    with pytest.raises(ValueError, match="3 values against 2"):
        monotonicity.spearman([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="shape"):
        monotonicity.theil_sen_slope([[1, 2]], [[1, 2]])
    with pytest.raises(ValueError, match="no values"):
        monotonicity.mean_interval([])
    with pytest.raises(ValueError, match="confidence 95"):
        monotonicity.mean_interval([1, 2], confidence=95)


def test_a_mean_of_independent_values_has_its_usual_error():
    values = [0.0, 1.0, 1.0, -2.0, 0.5]
    mean, stderr, half = monotonicity.clustered_interval(values, list("abcde"))
    assert (mean, stderr) == pytest.approx((0.1, np.std(values, ddof=1) / np.sqrt(5)), rel=1e-12)
    assert (mean - half, mean + half) == pytest.approx(monotonicity.mean_interval(values)[1:], rel=1e-12)


def test_values_that_repeat_their_group_tell_no_more_than_one_of_them():
    values = [0.0, 1.0, -2.0]
    once = monotonicity.clustered_interval(values, list("abc"))
    thrice = monotonicity.clustered_interval(values * 3, list("abc") * 3)
    assert thrice == pytest.approx(once, rel=1e-12)


def test_groups_of_values_add_up():
    # Mean 0; sums of the groups 3 and -3, as many values as 4: sqrt(2 / 1 * 18 / 16).
    mean, stderr, half = monotonicity.clustered_interval([1, 2, -1, -2], [7, 7, 9, 9])
    assert (mean, stderr) == (0, 1.5) and half == pytest.approx(12.706204736174694 * 1.5, rel=1e-9)
    assert monotonicity.clustered_interval([1, 2], ["a", "a"]) == (1.5, None, None)


def test_values_without_a_group_are_an_error():
    for values, groups in (([1, 2], ["a"]), ([], [])):
        with pytest.raises(ValueError, match="each needs its group"):
            monotonicity.clustered_interval(values, groups)


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
    assert 100 * monotonicity.human_gap(human / 100, model / 100) == pytest.approx(printed, abs=0.0051)


def test_a_gap_to_people_who_score_nothing_is_not_defined():
    with pytest.raises(ValueError, match="human score 0 is not above 0"):
        monotonicity.human_gap(0, 0.5)
