import json
import re

import numpy as np
import pytest
import scipy.stats
from synthetic_runs import level_run, write_tree

from analysis import tolerance, verdicts
from analysis.replicates import Columns, CurveKey, LevelCurve, curve_replicates, resampled_curves
from analysis.table import FigureKey, level_sets
from harness import run_folder


@pytest.fixture
def strongest(tmp_path):
    def find(*runs, resamples=2000, **options):
        ((key, members),) = level_sets(run_folder.read_runs(write_tree(tmp_path, *runs))).items()
        return tolerance.max_strengths(key, resampled_curves(members, resamples, 0), **options)

    return find


def lost(count, of=100, items=200):
    """Scores of which the first `of` are right, less the first `count`."""
    return [0.0] * count + [1.0] * (of - count) + [0.0] * (items - of)


def worst(count, of=100, items=200, confidence=0.95):
    """The largest share of right answers that may be lost, by Clopper and Pearson and, for few items, by Student."""
    bound = scipy.stats.beta.ppf(confidence, count + 1, of - count)
    students = scipy.stats.t.ppf(confidence, items - 1) / scipy.stats.norm.ppf(confidence)
    return count / of + (bound - count / of) * students * ((items + 1) / (items - 1)) ** 0.5


def curve(*losses, compression="magnitude", strengths=(0.2, 0.4, 0.6), **changes):
    changes = {"chance": 0.0} | changes
    runs = [level_run(levels={"task": lost(0)}, **changes)]
    return runs + [
        level_run(compression, strength, {"task": lost(count)}, **changes)
        for strength, count in zip(strengths, losses, strict=False)
    ]


def test_the_strongest_that_passes_is_named_with_its_drop_and_bound(strongest):
    # Of 100 right answers 1, 4 and 30 are lost, with 95 % confidence no more than 4.7, 9.0 and 38.6 %.
    (row,) = strongest(*curve(1, 4, 30), tolerance=0.1)
    assert (row["level"], row["largest_strength"], row["largest_amount"]) == ("task", 0.4, 0.4)
    assert row["drop"] == pytest.approx(-0.04, abs=1e-6) and row["worst_drop"] == pytest.approx(-worst(4), abs=0.004)
    assert row["bytes_fraction"] == pytest.approx(0.6 + 1 / 16)
    assert (row["first_failing"], row["failing_drop"]) == (0.6, pytest.approx(-0.3, abs=1e-6))
    assert row["failing_worst_drop"] == pytest.approx(-worst(30), abs=0.008)
    assert (row["all_passed"], row["reason"], row["items"], row["seeds"]) == (False, "", 200, 1)
    assert set(row) == set(tolerance.STRENGTH_COLUMNS)
    json.dumps(row, allow_nan=False)


def test_no_more_is_lost_than_all(strongest):
    """Of 6 right answers in 24 items 5 are lost: by the spread of the items alone the bound lies below -100 %."""
    runs = [level_run(levels={"task": lost(0, 6, 24)}, chance=0.0)]
    (row,) = strongest(*runs, level_run("magnitude", 0.2, {"task": lost(5, 6, 24)}, chance=0.0), tolerance=0.1)
    assert row["failing_drop"] == pytest.approx(-5 / 6, abs=1e-6) and row["failing_worst_drop"] == -1


def test_the_bound_and_not_the_drop_must_be_within_the_tolerance(strongest):
    (row,) = strongest(*curve(1, 4, 30), tolerance=0.05)
    assert (row["largest_strength"], row["first_failing"]) == (0.2, 0.4)
    assert row["failing_drop"] == pytest.approx(-0.04, abs=1e-6) and row["failing_worst_drop"] < -0.05
    # The standard error is .0196, to be 2.49 times smaller than the .01 that are left: 200 items times 23.8.
    assert row["items_needed"] == pytest.approx(200 * (2.486 * 0.0196 / 0.01) ** 2, rel=0.15)
    assert row["reason"].startswith("what fails is within the tolerance, but not surely: about ")


def test_less_confidence_allows_more(strongest):
    # Of 4 lost no more than 9.0 % with 95 % confidence, and 5.2 % with 60 %.
    (row,), (sure,) = strongest(*curve(1, 4, 30), tolerance=0.06, confidence=0.6), strongest(tolerance=0.06)
    assert (row["largest_strength"], sure["largest_strength"]) == (0.4, 0.2)
    assert row["worst_drop"] == pytest.approx(-worst(4, confidence=0.6), abs=0.003)
    assert sure["failing_worst_drop"] == pytest.approx(-worst(4), abs=0.004)


def test_a_weaker_strength_that_fails_ends_the_search(strongest):
    (row,) = strongest(*curve(30, 1, 1), tolerance=0.1)
    assert (row["largest_strength"], row["first_failing"]) == (None, 0.2)
    assert row["reason"] == "the weakest measured fails already"


def test_where_all_pass_more_may_be_possible(strongest):
    (row,) = strongest(*curve(0, 0, 1), tolerance=0.1)
    assert (row["largest_strength"], row["all_passed"], row["first_failing"]) == (0.6, True, None)
    assert row["reason"] == "the strongest measured passes too"


def test_more_items_are_not_asked_for_where_the_loss_itself_is_too_large(strongest):
    """Of 20 right answers 6 are lost: so few could not show a loss of 5 %, and more of them would not make it one."""
    runs = [level_run(levels={"task": lost(0, of=20, items=40)}, chance=0.0)]
    (row,) = strongest(*runs, level_run("magnitude", 0.2, {"task": lost(6, of=20, items=40)}, chance=0.0))
    assert (row["first_failing"], row["failing_drop"]) == (0.2, pytest.approx(-0.3, abs=1e-6))
    assert (row["reason"], row["items_needed"]) == ("the weakest measured fails already", None)


def test_items_too_few_to_show_so_small_a_loss_are_said_beforehand(strongest):
    # Of 20 right answers none is lost, yet 1 - .05 ** (1 / 20) = 13.9 % may be, 14.6 % with what Student's adds for 40.
    few = {"task": lost(0, of=20, items=40)}
    runs = [level_run(levels=few, chance=0.0), level_run("magnitude", 0.2, few, chance=0.0)]
    (row,) = strongest(*runs, tolerance=0.05, resamples=20_000)
    assert (row["largest_strength"], row["first_failing"], row["items"], row["seeds"]) == (None, 0.2, 40, 1)
    found = re.fullmatch(
        r"the weakest measured fails already; too few items: had none been lost, (.*) % might be; "
        r"at least (.*) are needed",
        row["reason"],
    )
    assert float(found[1]) == pytest.approx(100 * worst(0, 20, 40), rel=0.03)
    assert float(found[2]) == pytest.approx(40 * worst(0, 20, 40) / 0.05, rel=0.05)
    assert row["items_needed"] == pytest.approx(40 * worst(0, 20, 40) / 0.05, rel=0.03)
    # What might be lost is within a tolerance of 20 %, and is not known to be more than measured ones lose.
    (row,) = strongest(tolerance=0.2, resamples=20_000)
    assert row["largest_strength"] == 0.2 and row["worst_drop"] == pytest.approx(-worst(0, 20, 40), rel=0.03)


def test_few_bits_are_strong(strongest):
    levels = {"task": lost(0)}
    runs = [level_run(levels=levels, chance=0.0)]
    runs += [
        level_run("rtn", ("bits", bits), {"task": lost(count)}, chance=0.0) for bits, count in ((3, 40), (8, 0), (4, 1))
    ]
    (row,) = strongest(*runs, tolerance=0.1)
    assert (row["largest_strength"], row["first_failing"], row["largest_amount"]) == (4, 3, 0.75)


def test_of_the_score_above_chance_the_same_answers_are_a_larger_share(strongest):
    # 4 of 100 right answers are 4 %, surely less than 9.0, but of the 50 above a chance of .25 they are 8 %.
    runs = curve(1, 4, 30, chance=0.25)
    (raw,), (corrected,) = strongest(*runs, tolerance=0.12), strongest(tolerance=0.12, corrected=True)
    assert (raw["measure"], raw["largest_strength"]) == ("raw", 0.4)
    assert (corrected["measure"], corrected["largest_strength"]) == ("chance-corrected", 0.2)
    assert corrected["failing_drop"] == pytest.approx(-0.08, abs=1e-6)


def test_one_calibration_sample_is_remarked(strongest):
    (row,) = strongest(*curve(1, 30, compression="wanda"), tolerance=0.1)
    assert row["reason"] == "one calibration sample, whose spread is left out"


def test_a_calibration_that_may_fail_is_not_sure(strongest):
    # Two of three calibration samples lose nothing, one 30 %: 10 % on average.
    runs = [level_run(levels={"task": lost(0)}, chance=0.0)]
    runs += [level_run("wanda", 0.5, {"task": lost(count)}, seed, chance=0.0) for seed, count in enumerate((0, 0, 30))]
    (row,) = strongest(*runs, tolerance=0.2)
    assert (row["largest_strength"], row["seeds"]) == (None, 3)
    assert row["failing_drop"] == pytest.approx(-0.1, abs=1e-6) and row["failing_worst_drop"] < -0.2


def test_what_has_no_bound_says_why(strongest, tmp_path):
    (row,) = strongest(*curve(1, 4)[1:])
    assert (row["largest_strength"], row["reason"]) == (None, "there is no dense run of this level")
    ((key, members),) = level_sets(
        run_folder.read_runs(
            write_tree(tmp_path / "b", *curve(1, 4, groups=[f"{number % 9}" for number in range(200)]))
        )
    ).items()
    (row,) = tolerance.max_strengths(key, resampled_curves(members, 50, 0))
    assert row["reason"] == "fewer than 10 groups of items"
    ((key, members),) = level_sets(run_folder.read_runs(write_tree(tmp_path / "c", *curve(1, 4, chance=None)))).items()
    (row,) = tolerance.max_strengths(key, resampled_curves(members, 50, 0), corrected=True)
    assert row["reason"] == "chance is not known"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 5}, "tolerance 5 is not between 0 and 1"),
        ({"confidence": 95}, "confidence 95 is not between 0.5"),
    ],
)
def test_shares_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tolerance.max_strengths(None, {}, **options)


def test_a_strength_that_loses_more_is_named_as_rarely_as_promised(tmp_path):
    """Truth: 10 % are lost at the only strength; a tolerance of 10 % must be granted in at most 5 % of the sweeps."""
    generator = np.random.default_rng(0)
    granted = 0
    for _ in range(100):
        right = generator.random(300) < 0.5
        kept = right & (generator.random(300) < 0.9)
        runs = {"dense": right, "magnitude": kept}
        granted += grants(runs, tolerance=0.1)
    assert granted / 100 <= 0.05 + 2 * (0.05 * 0.95 / 100) ** 0.5


def grants(runs, **options):
    replicates = curve_replicates({("key", "task"): columns_of(runs)}, np.arange(300), 300, (0, "data"))[
        ("key", "task")
    ]
    point = {"level": "task", "strength": 0.5, "dense_above_chance": True, "chance": 0.0, "calibrated": False,
             "strength_kind": "sparsity", "requested_sparsity": 0.5, "bytes_fraction": None}  # fmt: skip
    curves = {CurveKey("sparsity", "magnitude", None): [LevelCurve([point], replicates, "")]}
    (row,) = tolerance.max_strengths(FigureKey(2, "m", "t"), curves, **options)
    return row["largest_strength"] is not None


def columns_of(runs):
    scores = np.array([runs["dense"], runs["magnitude"]], dtype=float)
    return Columns(np.arange(300), scores, [{0: 0}, {0: 1}])


def test_junk_dna_scores_put_the_method_first_that_spares_hard_levels(tmp_path):
    runs = [level_run(levels={"easy": lost(0), "hard": lost(0)}, chance=0.0)]
    for name, easy, hard in (("magnitude", 5, 30), ("wanda", 5, 8)):
        runs += [
            level_run(name, strength, {"easy": lost(easy * step), "hard": lost(hard * step)}, chance=0.0)
            for step, strength in ((1, 0.2), (2, 0.4), (3, 0.6))
        ]
    runs += [level_run("rtn", ("bits", 4), {"easy": lost(1), "hard": lost(1)}, chance=0.0)]
    found = verdicts.measure(run_folder.read_runs(write_tree(tmp_path, *runs)), 200)
    rows = tolerance.junk_dna_scores(found.orders)
    assert [row["compression"] for row in rows] == ["wanda", "magnitude", "rtn"]
    # Slopes per unit of sparsity: -.25 and -.4 for Wanda, -.25 and -1.5 for magnitude.
    assert [row["junk_dna_score"] for row in rows] == [
        pytest.approx(0.15, abs=1e-6),
        pytest.approx(1.25, abs=1e-6),
        None,
    ]
    assert rows[1]["junk_dna_low"] < 1.25 < rows[1]["junk_dna_high"] and rows[2]["text"].endswith("one strength only).")
    assert all(set(row) == set(tolerance.SCORE_COLUMNS) for row in rows)


def test_one_calibration_sample_at_any_strength_is_remarked(strongest):
    runs = [level_run(levels={"task": lost(0)}, chance=0.0)]
    runs += [level_run("wanda", strength, {"task": lost(1)}, seed, chance=0.0)
             for strength, seed in ((0.2, 0), (0.2, 1), (0.4, 0))]  # fmt: skip
    (row,) = strongest(*runs, tolerance=0.2)
    assert row["reason"].endswith("one calibration sample, whose spread is left out")


def test_fewer_items_are_needed_for_less_confidence(strongest):
    # Of 100 right answers 4 are lost. 1.282 + .842 standard errors of .0196 must be the .01 that are left.
    (row,) = strongest(*curve(1, 4, 30), tolerance=0.05, confidence=0.9)
    assert row["first_failing"] == 0.4
    assert row["items_needed"] == pytest.approx(200 * (2.123 * 0.0196 / 0.01) ** 2, rel=0.15)


def test_above_chance_more_might_be_lost_unseen(strongest):
    """Unchanged answers, 20 of 40 right: an unseen one that is lost counts against right ones less a quarter of all."""
    few = {"task": lost(0, of=20, items=40)}
    runs = [level_run(levels=few), level_run("magnitude", 0.2, few)]
    (row,) = strongest(*runs, resamples=20_000, corrected=True)
    rng = np.random.default_rng(0)
    right, rest, unseen = rng.gamma(20, size=200_000), rng.gamma(20, size=200_000), rng.exponential(size=200_000)
    bound = np.quantile(unseen / (right + unseen - 0.25 * (right + rest + unseen)), 0.95)
    bound *= scipy.stats.t.ppf(0.95, 39) / scipy.stats.norm.ppf(0.95) * (41 / 39) ** 0.5
    assert row["items_needed"] == pytest.approx(40 * bound / 0.05, rel=0.05)
