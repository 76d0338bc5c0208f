"""Verdicts and intervals of made-up sweeps in which it is known how fast each level falls."""

import json

import numpy as np
import pytest
from synthetic_runs import level_run, write_tree

from analysis import results
from analysis.levels import level_tables
from analysis.uncertainty import trends

LEVELS = ("easy", "middle", "hard")
STRENGTHS = (0.2, 0.4, 0.6)


@pytest.fixture
def measured(tmp_path):
    def measure(*runs, resamples=400, **options):
        return trends.measure(results.read_runs(write_tree(tmp_path, *runs)), resamples, **options)

    return measure


def sweep(slopes, items=300, clusters=30, compression="magnitude", seeds=(0,), seed=0, noise=0.0, **changes):
    """Runs whose levels lose `slopes` of a dense score of .8 per unit of sparsity, in expectation."""
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
            levels = {
                level: (own_luck < rate).astype(float).tolist()
                for level, own_luck, rate in zip(LEVELS, luck, rates, strict=False)
            }
            same = {"chance": 0.0, "groups": groups} | changes
            runs.append(level_run(name, strength, levels, run_seed, **same))
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
    assert row["text"].startswith("monotonic: each harder level falls faster than the next easier one (p ")
    assert row["page_p"] < 1e-6 and row["page_blocks"] == 30 and "over 30 groups of items the loss grows" in row["text"]
    # From the easiest to the hardest the slope steepens by .8.
    assert row["junk_dna_low"] < 0.8 < row["junk_dna_high"]
    assert row["junk_dna_score"] == pytest.approx(0.8, abs=0.15)


def test_levels_that_fall_ever_slower_are_not_monotonic(measured):
    (row,) = measured(*sweep((-1.0, -0.6, -0.2))).orders
    assert (row["order"], row["verdict"]) == (False, "not monotonic")
    assert row["text"].startswith("not monotonic: ") and " falls slower than " in row["text"]
    assert row["contrary_p"] < 0.01 and row["order_share"] == 0 and row["junk_dna_score"] < -0.6
    assert "the loss is not shown to grow with difficulty (Page's L, p = 1.000)" in row["text"]


def test_levels_that_fall_alike_cannot_be_told_and_many_items_would_be_needed(measured):
    (row,) = measured(*sweep((-0.5, -0.5, -0.5), items=60)).orders
    assert row["verdict"] == "cannot tell"
    assert row["text"].startswith("cannot tell at this sample size (60 items a level): ")
    assert row["items_needed"] > 60 and "items a level would tell" in row["text"]


def test_more_items_are_needed_where_more_curves_are_judged_together(tmp_path):
    def orders(name, *runs):
        return trends.measure(results.read_runs(write_tree(tmp_path / name, *runs)), 500).orders

    one, other = (sweep((-0.5, -0.5, -0.5), items=60, compression=name) for name in ("magnitude", "wanda"))
    (alone,) = orders("one", *one)
    together = only(orders("both", *one, *other[1:]), compression="magnitude")
    # A level falls slower than the next easier one, which any of two pairs could: alpha is .05 / 2, with two curves
    # .05 / 4, and (2.241 + .842)² / (1.960 + .842)² = 1.211.
    assert together["p_value"] == pytest.approx(alone["p_value"])
    assert together["items_needed"] / alone["items_needed"] == pytest.approx(1.211, rel=0.01)


def test_intervals_hold_the_truth_and_agree_with_the_paired_error(measured, tmp_path):
    found = measured(*sweep((-0.2, -0.6, -1.0), items=600, clusters=600), resamples=2000)
    table = level_tables.level_table(results.read_runs(tmp_path))
    for level, slope in zip(LEVELS, (-0.2, -0.6, -1.0), strict=True):
        row = only(found.levels, level=level)
        assert row["slope_low"] < slope < row["slope_high"] and row["slope_high"] - row["slope_low"] < 0.3
        assert (row["corrected_slope"], row["items"], row["clusters"], row["seeds"]) == (row["slope"], 600, 600, 1)
        assert (row["spearman"], row["spearman_high"]) == (1, 1)
        # At slope s the drop reaches 5 % at .05 / |s|, on a straight line from the dense model on.
        assert row["amount_at_5_low"] < 0.05 / -slope < row["amount_at_5_high"]
    for point in found.points:
        same = {"level": point["level"], "strength": point["strength"]}
        expected = only(table, **same)
        assert point["normalized_drop"] == expected["normalized_drop"]
        ours = point["drop_high"] - point["drop_low"]
        assert ours == pytest.approx(expected["drop_high"] - expected["drop_low"], rel=0.1)


def test_seeds_are_resampled_too(measured, tmp_path):
    quiet = measured(*sweep((-0.2, -0.6), seeds=(0, 1, 2), compression="wanda"))
    noisy = trends.measure(
        results.read_runs(write_tree(tmp_path / "b", *sweep((-0.2, -0.6), seeds=(0, 1, 2), noise=0.15))), 400
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
    assert level["slope"] is level["slope_low"] is level["spearman"] is level["spearman_low"] is None
    assert 0.03 < level["amount_at_5"] < 0.08 and level["reason"] == "one strength only"
    point = only(found.points, level="hard")
    assert point["drop_low"] < point["normalized_drop"] < point["drop_high"]


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
    found = measured(*runs)
    (row,) = found.orders
    assert (row["order"], row["verdict"], row["items_needed"]) == (False, "cannot tell", None)
    assert "more items alone would not tell" in row["text"]
    level = only(found.levels, level="easy")
    assert (level["slope"], level["slope_low"], level["slope_high"]) == (0, 0, 0)
    assert level["spearman"] is level["spearman_low"] is level["amount_at_5"] is level["amount_at_5_high"] is None
    assert level["largest_amount"] == 0.6
    assert level["amount_reason"] == "a loss of 5 % and 10 % is not reached within 0.6"


def test_levels_at_chance_and_few_groups_have_no_intervals(measured, tmp_path):
    found = measured(*sweep((-0.2, -0.6), of_level={"hard": {"chance": 0.9}, "middle": {"chance": 0.9}}))
    assert only(found.levels, level="middle")["reason"] == "the dense score is not above chance"
    assert only(found.levels, level="easy")["slope_low"] is not None
    few = trends.measure(results.read_runs(write_tree(tmp_path / "b", *sweep((-0.2, -0.6), clusters=4))), 100)
    assert {level["reason"] for level in few.levels} == {"fewer than 5 groups of items"}
    assert few.levels[0]["slope"] is not None and few.levels[0]["slope_low"] is None
    assert few.orders[0]["text"] == "cannot tell: no intervals: fewer than 5 groups of items."


def test_a_dense_score_near_chance_leaves_corrected_slopes_without_interval(measured):
    # .05 above chance, five of its standard errors of 0.01, but by groups of items it is not.
    groups = [f"group {number // 10}" for number in range(100)]
    dense = [1.0] * 50 + [0.0] * 50
    runs = [level_run(levels={"easy": dense, "hard": dense}, groups=groups, chance=0.45)]
    runs += [
        level_run("magnitude", strength, {"easy": [0.0] * 2 + dense[2:], "hard": dense}, groups=groups, chance=0.45)
        for strength in (0.2, 0.4)
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
    assert [trends.rounded(count) for count in (7, 1449, 36_712, 999_999, 1_000_001)] == [
        "7", "1,400", "37,000", "1,000,000", "more than a million",
    ]  # fmt: skip


def test_ranks_of_unknown_size_have_no_slope(measured):
    levels = {"easy": [1.0, 0.0] * 10, "hard": [1.0, 0.0] * 10}
    found = measured(level_run(levels=levels), *[level_run("low_rank", ("rank", rank), levels) for rank in (8, 4)])
    assert {row["reason"] for row in found.levels} == {"the share of the parameters that the ranks save is not known"}


def test_columns_are_complete_and_nothing_is_nan(measured):
    found = measured(*sweep((-0.2, -0.6, -1.0), items=40, clusters=8))
    assert all(set(row) == set(trends.POINT_COLUMNS) for row in found.points)
    assert all(set(row) == set(trends.LEVEL_COLUMNS) for row in found.levels)
    assert all(set(row) == set(trends.ORDER_COLUMNS) for row in found.orders)
    json.dumps(found, allow_nan=False)
    assert trends.measure([]) == ([], [], [])


def test_the_same_seed_gives_the_same_numbers(measured, tmp_path):
    runs = sweep((-0.2, -0.6), items=60)
    assert measured(*runs, seed=4) == trends.measure(results.read_runs(tmp_path), 400, seed=4)
    assert measured(seed=4) != measured(seed=5)


def test_a_confidence_that_is_none_is_refused(measured):
    with pytest.raises(ValueError, match=r"confidence 95 is not between 0.5 and 1"):
        measured(*sweep((-0.2,), items=10), confidence=95)


def test_verdict_needs_its_p_values():
    assert trends.verdict(0.05, 1.0) == "monotonic"
    assert trends.verdict(0.06, 0.04) == "not monotonic"
    assert trends.verdict(0.06, 0.06) == trends.verdict(None, None) == "cannot tell"
    assert trends.verdict(0.06, 0.06, alpha=0.1) == "monotonic"


def test_verdicts_name_the_curve(measured):
    (line,) = trends.verdict_lines(measured(*sweep((-0.4,))).orders)
    assert line == ("Magnitude (threshold: layer) by sparsity, raw slopes: cannot tell: 1 of 1 levels can be compared.")
