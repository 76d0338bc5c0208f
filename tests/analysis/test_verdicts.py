"""Verdicts and intervals of made-up sweeps in which it is known how fast each level falls."""

import json

import numpy as np
import pytest
import scipy.stats
from synthetic_runs import level_run, write_tree

from analysis import verdicts
from analysis.intervals import with_intervals
from analysis.names import rounded
from analysis.table import level_table
from harness import run_folder

LEVELS = ("easy", "middle", "hard")
STRENGTHS = (0.2, 0.4, 0.6)


@pytest.fixture
def measured(tmp_path):
    def measure(*runs, resamples=400, **options):
        return verdicts.measure(run_folder.read_runs(write_tree(tmp_path, *runs)), resamples, **options)

    return measure


def sweep(
    slopes, items=300, clusters=30, compression="magnitude", seeds=(0,), seed=0, noise=0.0, levels=LEVELS, **changes
):
    """Runs whose levels lose `slopes` of a dense score of .8 per unit of sparsity, in expectation; None is no level."""
    rng = np.random.default_rng(seed)
    luck = rng.random((len(slopes), items))
    groups = [f"subject {number % clusters}" for number in range(items)]
    runs = []
    for name, strength, own in (
        ("dense", None, (0,)),
        *((compression, strength, seeds) for strength in STRENGTHS),
    ):
        for run_seed in own:
            shift = noise * np.random.default_rng([run_seed, 5]).normal()
            rates = [0.8 * (1 + (slope + shift) * (strength or 0)) for slope in slopes]
            scores = {
                level: (own_luck < rate).astype(float).tolist()
                for level, own_luck, rate in zip(levels, luck, rates, strict=False)
                if level is not None
            }
            same = {"chance": 0.0, "groups": groups} | changes
            runs.append(level_run(name, strength, scores, run_seed, **same))
    return runs


def only(rows, **values):
    (row,) = [row for row in rows if all(row[name] == value for name, value in values.items())]
    return row


def test_levels_that_fall_ever_faster_are_monotonic(measured):
    found = measured(*sweep((-0.2, -0.6, -1.0), items=900))
    (row,) = found.orders
    assert (row["measure"], row["levels"], row["order"], row["verdict"]) == ("raw", 3, True, "monotonic")
    assert row["order_share"] > 0.95 and row["luck"] == pytest.approx(1 / 6)
    assert row["p_value"] == row["holm_p"] < 0.01 and row["contrary_p"] > 0.9
    assert row["text"].startswith("monotonic: each harder level falls faster than the next easier one (one-sided p ")
    assert row["page_p"] < 1e-6 and row["page_blocks"] == 30 and "over 30 groups of items the loss grows" in row["text"]
    # From the easiest to the hardest the slope steepens by .8.
    assert row["junk_dna_low"] < 0.8 < row["junk_dna_high"]
    assert row["junk_dna_score"] == pytest.approx(0.8, abs=0.15)
    assert row["items_needed"] is None  # what is told needs none


def test_levels_that_fall_ever_slower_are_not_monotonic(measured):
    (row,) = measured(*sweep((-1.0, -0.6, -0.2)), resamples=2000).orders
    assert (row["order"], row["verdict"]) == (False, "not monotonic")
    assert row["text"].startswith("not monotonic: ") and " falls slower than " in row["text"]
    assert row["contrary_p"] < 0.01 and row["order_share"] == 0 and row["junk_dna_score"] < -0.6
    assert row["items_needed"] is None
    assert "the loss is not shown to grow with difficulty (Page's L, one-sided p = 1.000)" in row["text"]


@pytest.mark.parametrize("slope", [-0.05, -1.4])
def test_a_level_of_unknown_difficulty_changes_no_verdict_of_the_others(tmp_path, slope):
    """However fast it falls: the same numbers as without it, and words that name it."""
    slopes = (-0.2, slope, -0.6, -1.0)
    unknown = {"new": {"difficulty": None}}
    trees = {
        "with": sweep(slopes, items=900, levels=("easy", "new", "middle", "hard"), of_level=unknown),
        "without": sweep(slopes, items=900, levels=("easy", None, "middle", "hard")),
    }
    for name, runs in trees.items():
        trees[name] = verdicts.measure(run_folder.read_runs(write_tree(tmp_path / name, *runs)), 400)
    (row,), (expected,) = trees["with"].orders, trees["without"].orders
    assert row["verdict"] == "monotonic" and (row["levels"], row["left_out"]) == (3, "new")
    assert row["text"] == f"{expected['text'].rstrip('.')}; without new, of unknown difficulty."
    assert row | {"left_out": "", "text": ""} == expected | {"text": ""} and row["page_p"] < 0.01
    assert only(trees["with"].levels, level="new")["slope"] == pytest.approx(slope, abs=0.1)


def test_one_level_of_known_difficulty_is_no_order_and_the_others_are_named(measured):
    unknown = {name: {"difficulty": None} for name in ("easy", "hard")}
    (row,) = measured(*sweep((-0.2, -0.6, -1.0), of_level=unknown)).orders
    assert (row["order"], row["verdict"], row["junk_dna_score"]) == (None, "cannot tell", None)
    assert row["text"] == (
        "cannot tell: 1 of 3 levels can be compared; without easy, hard, of unknown difficulty."
    )  # fmt: skip


def test_levels_that_fall_alike_cannot_be_told_and_many_items_would_be_needed(measured):
    (row,) = measured(*sweep((-0.5, -0.5, -0.5), items=60)).orders
    assert row["verdict"] == "cannot tell"
    assert row["text"].startswith("cannot tell at this sample size (60 items a level): ")
    assert row["items_needed"] > 60 and "items a level would tell" in row["text"]


def test_more_items_are_needed_where_more_curves_are_judged_together(tmp_path):
    def orders(name, *runs):
        return verdicts.measure(run_folder.read_runs(write_tree(tmp_path / name, *runs)), 500).orders

    one, other = (sweep((-0.5, -0.5, -0.5), items=60, compression=name) for name in ("magnitude", "wanda"))
    (alone,) = orders("one", *one)
    together = only(orders("both", *one, *other[1:]), compression="magnitude")
    # A level falls slower than the next easier one, which any of two pairs could: alpha is .05 / 2, with two curves
    # .05 / 4, and (2.241 + .842)² / (1.960 + .842)² = 1.211.
    assert together["p_value"] == pytest.approx(alone["p_value"])
    assert together["items_needed"] / alone["items_needed"] == pytest.approx(1.211, rel=0.01)


def stretched(estimate, bound, clusters, confidence=0.95):
    """A bound moved away from the estimate as Student's quantile and exponential weights of few clusters ask for."""
    one_sided = (1 + confidence) / 2
    students = scipy.stats.t.ppf(one_sided, clusters - 1) / scipy.stats.norm.ppf(one_sided)
    return estimate + (bound - estimate) * students * ((clusters + 1) / (clusters - 1)) ** 0.5


def test_intervals_hold_the_truth(measured):
    found = measured(*sweep((-0.2, -0.6, -1.0), items=600, clusters=600), resamples=2000)
    for level, slope in zip(LEVELS, (-0.2, -0.6, -1.0), strict=True):
        row = only(found.levels, level=level)
        assert row["slope_low"] < slope < row["slope_high"] and row["slope_high"] - row["slope_low"] < 0.3
        assert (row["corrected_slope"], row["items"], row["clusters"], row["seeds"]) == (row["slope"], 600, 600, 1)
        assert row["spearman"] == 1 and row["spearman_p"] < 0.01
        # At slope s the drop reaches 5 % at .05 / |s|, on a straight line from the dense model on.
        assert row["amount_at_5_low"] < 0.05 / -slope < row["amount_at_5_high"]


def test_the_bounds_of_a_drop_are_those_of_the_share_that_is_lost(measured, tmp_path):
    """Compressed models lose right answers and find none: of m right ones k are lost, independently of each other.

    Below, the unseen item is one that is lost, which gives the bound of Clopper and Pearson; above, one that is found,
    which weighs as much as an item does.
    """
    items = 300
    found = measured(*sweep((-0.2, -1.0), items=items, clusters=items), resamples=10_000)
    rows = run_folder.read_runs(tmp_path)
    table = level_table(rows)
    rng = np.random.default_rng(1)
    for point in found.points:
        row = only(table, level=point["level"], strength=point["strength"])
        right, kept = (round(items * row[name]) for name in ("dense_mean_score", "mean_score"))
        lost = right - kept
        assert point["normalized_drop"] == row["normalized_drop"] == pytest.approx(-lost / right)
        low = -scipy.stats.beta.ppf(0.975, lost + 1, right - lost)
        of_lost, of_kept, unseen = (
            rng.gamma(lost, size=200_000),
            rng.gamma(kept, size=200_000),
            rng.exponential(size=200_000),
        )
        high = np.quantile((unseen - of_lost) / (of_lost + of_kept), 0.975)
        expected = [stretched(-lost / right, bound, items) for bound in (low, high)]
        # Quantiles of 10,000 resamples, to 4 % of the distance.
        width = expected[1] - expected[0]
        assert [point["drop_low"], point["drop_high"]] == pytest.approx(expected, abs=0.03 * width)
        # No loss is as far below 0 as seen where the unseen item is found and weighs more than all that are lost.
        assert (point["loss_p"] < 0.001) == (lost > 10)


def test_the_p_value_of_a_loss_is_that_of_the_sign_test(measured):
    # Each of k lost items weighs as the unseen one does, which outweighs them with probability 2^-k.
    def right(count):
        return [1.0] * count + [0.0] * (1000 - count)

    runs = [level_run("magnitude", 0.1 * lost, {"easy": right(500 - lost)}, chance=0.0) for lost in (1, 3, 5)]
    found = measured(level_run(levels={"easy": right(500)}, chance=0.0), *runs, resamples=20_000)
    assert [point["loss_p"] for point in found.points] == pytest.approx([1 / 2, 1 / 8, 1 / 32], rel=0.1)


def test_a_drop_of_all_is_no_larger(measured):
    # All of 20 right answers are lost. An unseen one that is found weighs w, the others 20 in all: w / weights - 1,
    # of which the 97.5 % quantile is .025 ** (-1 / 20) - 2.
    runs = level_run(levels={"easy": [1.0] * 20}), level_run("wanda", 0.5, {"easy": [0.0] * 20})
    (point,) = measured(*runs, resamples=20_000).points
    assert (point["normalized_drop"], point["drop_low"]) == (-1, -1)
    assert point["drop_high"] == pytest.approx(stretched(-1, 0.025 ** (-1 / 20) - 2, 20), abs=0.02)


def test_a_run_that_lacks_the_hard_items_gains_nothing(tmp_path):
    """A checkpoint that reads shorter texts skips the second half of the items, of which dense has none right."""
    items = [f"item {number}" for number in range(40)]
    runs = [level_run(levels={"all": [1.0] * 20 + [0.0] * 20}, items=items)]
    runs += [level_run("wanda", strength, {"all": [1.0] * 20}, items=items[:20]) for strength in (0.3, 0.5)]
    runs.append(level_run("magnitude", 0.5, {"all": [1.0] * 10 + [0.0] * 30}, items=items))
    rows = run_folder.read_runs(write_tree(tmp_path, *runs))
    points = {(point["compression"], point["strength"]): point for point in verdicts.measure(rows, 200).points}
    for strength in (0.3, 0.5):
        point = points["wanda", strength]
        assert point["normalized_drop"] == 0 and point["drop_low"] < 0 <= point["drop_high"]
    assert points["magnitude", 0.5]["normalized_drop"] == -0.5  # another curve: all items


def test_intervals_are_put_into_the_table(measured, tmp_path):
    found = measured(*sweep((-0.2, -0.6), items=60, compression="wanda"))
    table = level_table(run_folder.read_runs(tmp_path))
    told = with_intervals(table, found)
    assert [{**row, "drop_low": None, "drop_high": None} for row in told] == table
    for row in told:
        if row["compression"] == "dense":
            assert row["drop_low"] is row["drop_high"] is None
        else:
            point = only(found.points, level=row["level"], strength=row["strength"])
            assert (row["drop_low"], row["drop_high"]) == (point["drop_low"], point["drop_high"])
            assert row["drop_low"] < row["normalized_drop"] < row["drop_high"]
    assert with_intervals(table, verdicts.Trends([], [], [])) == table


def test_seeds_are_resampled_too(measured, tmp_path):
    quiet = measured(*sweep((-0.2, -0.6), seeds=(0, 1, 2), compression="wanda"))
    noisy = verdicts.measure(
        run_folder.read_runs(write_tree(tmp_path / "b", *sweep((-0.2, -0.6), seeds=(0, 1, 2), noise=0.15))), 400
    )
    for level in LEVELS[:2]:
        wide, narrow = only(noisy.levels, level=level), only(quiet.levels, level=level)
        assert wide["seeds"] == narrow["seeds"] == 3
        assert wide["slope_high"] - wide["slope_low"] > 2 * (narrow["slope_high"] - narrow["slope_low"])


def test_what_is_alike_at_all_levels_leaves_their_order_be(measured):
    # A seed that hurts all levels moves every slope by the same; their difference is hardly wider than without.
    (row,) = measured(*sweep((-0.2, -0.6, -1.0), seeds=(0, 1, 2), noise=0.15, compression="wanda")).orders
    width = row["junk_dna_high"] - row["junk_dna_low"]
    assert row["verdict"] == "monotonic" and width < 0.6


def test_chance_correction_takes_the_arithmetic_out_of_option_counts(measured):
    # The same share of knowledge lost at every number of options: raw slopes in order, corrected ones not told apart.
    rng = np.random.default_rng(0)
    known, chances = rng.random(4000), {"easy": 1 / 2, "middle": 1 / 3, "hard": 1 / 4}
    luck = {level: rng.random(4000) < chance for level, chance in chances.items()}
    of_level = {level: {"chance": chance} for level, chance in chances.items()}
    runs = [
        level_run(
            "dense" if strength is None else "magnitude",
            strength,
            {
                level: ((known < 0.6 * (1 - (strength or 0))) | own).astype(float).tolist()
                for level, own in luck.items()
            },
            of_level=of_level,
        )
        for strength in (None, 0.2, 0.4, 0.6)
    ]
    raw, corrected = measured(*runs).orders
    assert (raw["measure"], raw["verdict"]) == ("raw", "monotonic")
    assert (corrected["measure"], corrected["verdict"]) == ("chance-corrected", "cannot tell")
    # Raw drops are knowledge lost times (1 - chance) / dense: slopes -.6 * .5 / .8 = -.375 and -.6 * .75 / .7 = -.643.
    assert raw["junk_dna_score"] == pytest.approx(0.268, abs=0.05)
    assert corrected["junk_dna_low"] < 0 < corrected["junk_dna_high"] < 0.2


def test_holms_correction_is_over_the_curves_of_a_figure(measured):
    three = [run for name in ("magnitude", "wanda", "sparsegpt") for run in sweep((-0.5, -0.55), compression=name)[1:]]
    rows = measured(sweep((-0.5, -0.55))[0], *three).orders
    assert len(rows) == 3
    # All three are the same runs under other names: the least of equal p-values counts three times.
    for row in rows:
        assert row["holm_p"] == pytest.approx(min(1, 3 * row["p_value"]))


def test_slopes_that_miss_the_fall_are_not_judged(measured):
    # The hard level has lost 60 % at the weakest strength and little is left to lose: its slope is the flatter one.
    def right(count):
        return [1.0] * count + [0.0] * (200 - count)

    counts = {None: (100, 100), 0.2: (90, 40), 0.4: (60, 36), 0.6: (30, 32)}
    found = measured(*[
        level_run("dense" if strength is None else "magnitude", strength,
                  {"easy": right(easy), "hard": right(hard)}, chance=0.0)
        for strength, (easy, hard) in counts.items()
    ])  # fmt: skip
    (row,) = found.orders
    assert (row["order"], row["verdict"], row["p_value"], row["junk_dna_score"]) == (False, "cannot tell", None, None)
    assert row["text"].startswith(
        "cannot tell: hard has lost 60 % at the weakest strength already, so that its slope misses the fall; measure"
    )
    assert only(found.levels, level="hard")["weakest_drop"] == pytest.approx(-0.6)


def test_one_strength_has_no_slope_but_losses(measured):
    dense, first, *_ = sweep((-0.2, -0.6, -1.0))
    found = measured(dense, first)
    (row,) = found.orders
    assert (row["order"], row["verdict"], row["levels"]) == (None, "cannot tell", 0)
    assert row["text"].startswith(
        "cannot tell: 0 of 3 levels can be compared (left out: one strength only); over 30 groups"
    )
    assert row["page_p"] < 0.05
    level = only(found.levels, level="hard")
    assert level["slope"] is level["slope_low"] is level["spearman"] is level["spearman_p"] is None
    assert 0.03 < level["amount_at_5"] < 0.08 and level["reason"] == "one strength only"
    point = only(found.points, level="hard")
    assert point["drop_low"] < point["normalized_drop"] < point["drop_high"]


def test_two_strengths_give_a_difference_and_no_order(measured):
    found = measured(*sweep((-0.2, -0.6, -1.0), items=900)[:3])
    (row,) = found.orders
    assert (row["order"], row["verdict"], row["p_value"], row["junk_dna_score"]) == (None, "cannot tell", None, None)
    assert row["text"].startswith("cannot tell: two strengths give a difference, not a slope: measure a third; over 30")
    level = only(found.levels, level="hard")
    first, second = (only(found.points, level="hard", strength=strength)["normalized_drop"] for strength in (0.2, 0.4))
    assert level["slope"] == pytest.approx((second - first) / 0.2)
    assert level["slope_low"] < level["slope"] < level["slope_high"] and level["spearman"] is None


def test_one_level_has_no_order(measured):
    (row,) = measured(*sweep((-0.4,))).orders
    assert row["text"] == "cannot tell: 1 of 1 levels can be compared."
    assert (row["order"], row["luck"], row["junk_dna_score"]) == (None, None, None)


def test_without_a_dense_run_nothing_is_told(measured):
    found = measured(*sweep((-0.2, -0.6))[1:])
    (row,) = found.orders
    assert row["text"].endswith("levels can be compared (left out: there is no dense run of this level).")
    assert {level["reason"] for level in found.levels} == {"there is no dense run of this level"}
    assert {point["drop_low"] for point in found.points} == {None}


def test_constant_scores_have_no_correlation_and_are_never_reached(measured):
    constant = {"easy": [1.0, 0.0] * 20, "hard": [1.0, 1.0, 0.0, 0.0] * 10}
    runs = [level_run(levels=constant, chance=0.0)]
    runs += [level_run("magnitude", strength, constant, chance=0.0) for strength in STRENGTHS]
    found = measured(*runs, resamples=10_000)
    (row,) = found.orders
    assert (row["order"], row["verdict"], row["items_needed"]) == (False, "cannot tell", None)
    assert "more items alone would not tell" in row["text"]
    level = only(found.levels, level="easy")
    # An unseen item that is right at .2 and .4 and wrong at .6 is w of the w + weights of 20 right ones, and one that
    # is right at .6 alone is w of the weights; the median of the slopes is that from .2 to .6.
    share = 1 - 0.025 ** (1 / 20)
    expected = [stretched(0, bound / 0.4, 40) for bound in (-share, share / (1 - share))]
    assert level["slope"] == 0 and [level["slope_low"], level["slope_high"]] == pytest.approx(expected, rel=0.05)
    assert level["spearman"] is level["spearman_p"] is level["amount_at_5"] is level["amount_at_5_high"] is None
    # With an unseen item that is lost everywhere, 5 % are reached on the way to .2.
    tail = scipy.stats.norm.cdf(-stretched(0, scipy.stats.norm.ppf(0.975), 40))
    shortest = [0.2 * tolerance / (1 - tail ** (1 / 20)) for tolerance in (0.05, 0.1)]
    assert [level["amount_at_5_low"], level["amount_at_10_low"]] == pytest.approx(shortest, rel=0.05)
    assert level["largest_amount"] == 0.6
    assert level["amount_reason"] == "a loss of 5 % and 10 % is not reached within 0.6"


def test_levels_at_chance_and_few_groups_have_no_intervals(measured, tmp_path):
    found = measured(*sweep((-0.2, -0.6), of_level={"hard": {"chance": 0.9}, "middle": {"chance": 0.9}}))
    assert only(found.levels, level="middle")["reason"] == "the dense score is not above chance"
    assert only(found.levels, level="easy")["slope_low"] is not None
    few = verdicts.measure(run_folder.read_runs(write_tree(tmp_path / "b", *sweep((-0.2, -0.6), clusters=9))), 100)
    assert {level["reason"] for level in few.levels} == {"fewer than 10 groups of items"}
    assert few.levels[0]["slope"] is not None and few.levels[0]["slope_low"] is None
    assert few.orders[0]["text"] == "cannot tell: no intervals: fewer than 10 groups of items."
    enough = verdicts.measure(run_folder.read_runs(write_tree(tmp_path / "c", *sweep((-0.2, -0.6), clusters=10))), 100)
    assert {level["reason"] for level in enough.levels} == {""} and enough.levels[0]["slope_low"] is not None


def test_a_dense_score_near_chance_leaves_corrected_slopes_without_interval(measured):
    # Dense scores .8 and .4: their mean, .6, has an error of .2 over seeds and is below a chance of .45 in 23 % of the
    # resamples, and below 0 in .1 %, though it is above chance by the errors of the items.
    def right(count):
        return {level: [1.0] * count + [0.0] * (100 - count) for level in ("easy", "hard")}

    runs = [level_run(levels=right(count), seed=seed, chance=0.45) for seed, count in enumerate((80, 40))]
    runs += [
        level_run("magnitude", strength, right(count), seed, chance=0.45)
        for strength in STRENGTHS
        for seed, count in enumerate((78, 38))
    ]
    found = measured(*runs)
    corrected = only(found.orders, measure="chance-corrected")
    at_chance = "in too many resamples the dense score is at chance"
    assert corrected["p_value"] is None and corrected["text"].startswith(f"cannot tell: {at_chance}; the slopes are")
    level = only(found.levels, level="easy")
    assert level["corrected_slope_low"] is None and level["slope_low"] is not None and level["reason"] == at_chance
    assert only(found.orders, measure="raw")["p_value"] is not None


def test_a_dense_model_that_gets_nothing_right_has_no_slope(measured):
    nothing = {"easy": [0.0] * 20, "hard": [0.0] * 20}
    runs = [level_run("magnitude", strength, nothing, chance=None) for strength in STRENGTHS]
    found = measured(level_run(levels=nothing, chance=None), *runs)
    json.dumps(found, allow_nan=False)
    assert found.orders[0]["text"].startswith("cannot tell: 0 of 2 levels can be compared")
    assert {level["slope_low"] for level in found.levels} == {None}


def test_large_numbers_of_items_are_rounded():
    assert [rounded(count) for count in (7, 1449, 36_712, 999_999, 1_000_001)] == [
        "7", "1,400", "37,000", "1,000,000", "more than a million",
    ]  # fmt: skip


def test_ranks_of_unknown_size_have_no_slope(measured):
    levels = {"easy": [1.0, 0.0] * 10, "hard": [1.0, 0.0] * 10}
    found = measured(level_run(levels=levels), *[level_run("low_rank", ("rank", rank), levels) for rank in (8, 4)])
    assert {row["reason"] for row in found.levels} == {"the share of the parameters that the ranks save is not known"}


def test_columns_are_complete_and_nothing_is_nan(measured):
    found = measured(*sweep((-0.2, -0.6, -1.0), items=40, clusters=10))
    assert all(set(row) == set(verdicts.TREND_POINT_COLUMNS) for row in found.points)
    assert all(set(row) == set(verdicts.SLOPE_COLUMNS) for row in found.levels)
    assert all(set(row) == set(verdicts.ORDER_COLUMNS) for row in found.orders)
    json.dumps(found, allow_nan=False)
    assert verdicts.measure([]) == ([], [], [])


def test_the_same_seed_gives_the_same_numbers(measured, tmp_path):
    runs = sweep((-0.2, -0.6), items=60)
    assert measured(*runs, seed=4) == verdicts.measure(run_folder.read_runs(tmp_path), 400, seed=4)
    assert measured(seed=4) != measured(seed=5)


def test_a_confidence_that_is_none_is_refused(measured):
    with pytest.raises(ValueError, match=r"confidence 95 is not between 0.5 and 1"):
        measured(*sweep((-0.2,), items=10), confidence=95)


def test_verdict_needs_its_p_values():
    assert verdicts.verdict(0.05, 1.0) == "monotonic"
    assert verdicts.verdict(0.06, 0.04) == "not monotonic"
    assert verdicts.verdict(0.06, 0.06) == verdicts.verdict(None, None) == "cannot tell"
    assert verdicts.verdict(0.06, 0.06, alpha=0.1) == "monotonic"


def test_verdicts_name_the_curve(measured):
    (line,) = verdicts.verdict_lines(measured(*sweep((-0.4,))).orders)
    assert line == ("Magnitude (threshold: layer) by sparsity, raw slopes: cannot tell: 1 of 1 levels can be compared.")


def lost(*counts, of=500, items=1000):
    """Dense and three strengths of one level that get `of` items right, less those that are lost."""
    return [
        level_run("dense" if strength is None else "magnitude", strength,
                  {"easy": [0.0] * count + [1.0] * (of - count) + [0.0] * (items - of)}, chance=0.0)
        for strength, count in zip((None, *STRENGTHS), (0, *counts), strict=True)
    ]  # fmt: skip


def test_the_p_value_of_a_correlation_is_that_of_the_sign_test(measured):
    """Three items lost at the last strength: an unseen one that is found there outweighs them with probability 1/8."""
    (level,) = measured(*lost(0, 0, 3), resamples=20_000).levels
    assert level["spearman_p"] == pytest.approx(2 / 8, rel=0.1)


def test_two_seeds_that_differ_make_no_correlation_sure(measured):
    """All resamples fall at every step, so that they tell nothing of seeds: drops do, by one degree of freedom.

    A resample in a thousand is 3.1 standard errors, which Student's distribution exceeds once in ten on one side.
    """
    runs = sweep((-0.6,), items=3000, clusters=3000, seeds=(0, 1), noise=0.3)
    (level,) = measured(*runs, resamples=1000).levels
    assert level["spearman"] == 1 and 0.1 < level["spearman_p"] < 0.4


def test_groups_too_small_to_be_ranked_have_no_pages_test(measured, tmp_path):
    """Of 5 items of a group dense gets 4 right, of 8 it gets 6.4."""
    (row,) = measured(*sweep((-0.2, -0.6, -1.0), items=150)).orders
    assert row["page_p"] is None
    tree = write_tree(tmp_path / "more", *sweep((-0.2, -0.6, -1.0), items=240))
    (row,) = verdicts.measure(run_folder.read_runs(tree), 400).orders
    assert row["page_p"] < 0.05 and row["page_blocks"] == 30


def test_a_level_that_lost_most_of_what_is_above_chance_is_not_judged(measured):
    """.33 is 66 % of the dense .5, and 32 % of it above a chance of .25."""
    counts = {None: (100, 100), 0.2: (98, 66), 0.4: (96, 64), 0.6: (94, 62)}
    found = measured(*[
        level_run("dense" if strength is None else "magnitude", strength,
                  {"easy": [1.0] * easy + [0.0] * (200 - easy), "hard": [1.0] * hard + [0.0] * (200 - hard)})
        for strength, (easy, hard) in counts.items()
    ])  # fmt: skip
    assert only(found.levels, level="hard")["weakest_drop"] == pytest.approx(-0.68)
    for row in found.orders:
        assert row["text"].startswith("cannot tell: hard has lost 68 % at the weakest strength already")


def test_that_some_level_falls_slower_is_tested_of_every_pair(tmp_path):
    def contrary(*levels):
        tree = write_tree(tmp_path / "-".join(map(str, levels)), *sweep((-0.6, -0.5, -0.42), items=150, levels=levels))
        (row,) = verdicts.measure(run_folder.read_runs(tree), 400).orders
        return row["contrary_p"]

    pairs = [contrary("easy", "middle", None), contrary(None, "middle", "hard")]
    assert contrary("easy", "middle", "hard") == pytest.approx(2 * min(pairs)) and 2 * min(pairs) < 1


def fallen(easy, middle, hard, items=60):
    """Levels of which so many items are lost at each of the three strengths; dense gets all right."""
    return [
        level_run("dense" if strength is None else "magnitude", strength, {
            name: [0.0] * round(step * own) + [1.0] * (items - round(step * own))
            for name, own in zip(LEVELS, (easy, middle, hard), strict=True)
        }, chance=0.0)
        for step, strength in enumerate((None, *STRENGTHS))
    ]  # fmt: skip


def test_the_fewest_items_would_tell_the_pair_that_contradicts_most(measured):
    """Middle falls much slower than easy, and hard a little slower than middle."""
    (row,) = measured(*fallen(7, 6, 5.7), resamples=1000).orders
    assert row["verdict"] == "cannot tell" and "middle falls slower than easy here, against the" in row["text"]


def test_what_is_surely_not_in_order_is_named(measured):
    (row,) = measured(*fallen(14, 5, 4.7), resamples=1000).orders
    assert row["text"].startswith("not monotonic: middle falls slower than easy, which is easier")


def test_the_least_number_of_items_of_a_level_is_told(measured):
    runs = [
        level_run("dense" if strength is None else "magnitude", strength,
                  {name: [0.0] * round(0.1 * step * items) + [1.0] * (items - round(0.1 * step * items))
                   for name, items in (("easy", 60), ("hard", 40))}, chance=0.0)
        for step, strength in enumerate((None, *STRENGTHS))
    ]  # fmt: skip
    (row,) = measured(*runs).orders
    assert row["items"] == 40 and row["text"].startswith("cannot tell at this sample size (40 items a level): ")


def test_pages_test_is_told_after_holms_correction(measured):
    """A p-value of .03 of one of three curves is .1."""
    dense, *runs = sweep((-0.5, -0.52, -0.54), items=300, seed=10)
    three = [{**run, "compression": name} for name in ("magnitude", "rtn", "mine") for run in runs]
    rows = measured(dense, *three).orders
    assert len(rows) == 3
    for row in rows:
        assert 0.017 < row["page_p"] < 0.05 and row["holm_page_p"] == pytest.approx(3 * row["page_p"])
        assert "the loss is not shown to grow with difficulty" in row["text"]


def test_a_level_at_chance_leaves_pages_test_to_the_others(tmp_path):
    """It has a difficulty, but no drops that could be ranked."""
    slopes, trees = (-0.2, -0.3, -0.6, -1.0), {}
    for name, new in (("with", "new"), ("without", None)):
        runs = sweep(slopes, items=900, levels=("easy", new, "middle", "hard"), of_level={"new": {"chance": 0.8}})
        (trees[name], *_) = verdicts.measure(run_folder.read_runs(write_tree(tmp_path / name, *runs)), 400).orders
    assert trees["with"]["page_p"] == trees["without"]["page_p"] < 0.01
    assert (trees["with"]["page_l"], trees["with"]["levels"]) == (trees["without"]["page_l"], 3)


def test_levels_at_other_strengths_have_no_pages_test(measured):
    runs = sweep((-0.2, -0.6, -1.0))
    short = sweep((-0.2, -0.6, -1.0), levels=("easy", "middle", None))[-1]
    (row,) = measured(*runs[:-1], short).orders
    assert row["text"].startswith("cannot tell: the levels were measured at different strengths")
    assert row["page_p"] is row["page_l"] is None and "Page" not in row["text"]


def test_the_score_has_the_confidence_that_is_asked_for(measured, tmp_path):
    (sure,) = measured(*sweep((-0.2, -0.6, -1.0)), resamples=2000).orders
    (rows,) = verdicts.measure(run_folder.read_runs(tmp_path), 2000, confidence=0.6).orders
    widths = [row["junk_dna_high"] - row["junk_dna_low"] for row in (rows, sure)]
    # Two-sided 60 % are .854 standard errors of 30 groups, 95 % are 2.045; what an unseen item adds is less of these.
    assert widths[0] / widths[1] == pytest.approx(0.854 / 2.045, rel=0.2)
