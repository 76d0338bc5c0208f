import csv
import io
import re

import numpy as np
import pytest
import scipy.stats
from synthetic_runs import run, write_tree

from analysis import tuned_sections
from analysis.contrasts import DIFFERENCE_COLUMNS, PAIRS, difference_table
from analysis.table import csv_text
from harness import run_folder

LABELS = np.arange(200) % 2


def answered(transfer, strength, wrong, seed=41, task="qnli", labels=LABELS, **changes):
    """A run that is wrong on the items given."""
    predictions = labels.copy()
    predictions[list(wrong)] = 1 - predictions[list(wrong)]
    score = float(np.mean(predictions == labels))
    items = {"prediction": predictions, "label": labels}
    return run(transfer, strength, score, seed=seed, task=task, items=items, **changes)


@pytest.fixture
def table(tmp_path):
    def read(*runs, resamples=500):
        return difference_table(run_folder.read_runs(write_tree(tmp_path, *runs)), resamples=resamples)

    return read


def of_pair(rows, transfer, against):
    (row,) = [row for row in rows if (row["transfer"], row["against"]) == (transfer, against)]
    return row


def test_differences_by_hand(table):
    rows = table(
        answered("dense_transfer", None, range(20)), answered("dense_transfer_freezing", 0.5, range(20)),
        answered("sparse_transfer", 0.5, range(100)), answered("sparse_to_dense", 0.5, range(60)),
    )  # fmt: skip
    assert [(row["transfer"], row["against"]) for row in rows] == list(PAIRS)
    assert all(set(row) == set(DIFFERENCE_COLUMNS) for row in rows)
    repaired = of_pair(rows, "sparse_to_dense", "sparse_transfer")
    assert (repaired["score"], repaired["against_score"]) == (0.7, 0.5)
    assert repaired["difference"] == pytest.approx(0.2) and repaired["verdict"] == "higher"
    # 40 of 200 items differ: the standard error is sqrt(.2 * .8 / 200) = .0283.
    half = (repaired["difference_high"] - repaired["difference_low"]) / 2
    assert half == pytest.approx(1.97 * 0.0283, rel=0.15)
    assert repaired["items"] == 200 and repaired["seeds"] == (41,) and repaired["reason"] == ""
    assert of_pair(rows, "sparse_to_dense", "dense_transfer")["verdict"] == "lower"
    same = of_pair(rows, "dense_transfer_freezing", "dense_transfer")
    # An unseen item may be right on one side alone: 1 - .025 ** (1 / 200) = .0183, and 1 % for Student's.
    bounds = [same["difference_low"], same["difference_high"]]
    assert same["difference"] == 0 and bounds == pytest.approx([-0.0185, 0.0185], rel=0.2)
    assert same["verdict"] == "cannot tell" and same["p_value"] == same["holm_p"] == 1


def test_items_that_both_find_hard_cancel(table):
    """The same 80 items are wrong on both sides: unpaired, the difference of .05 would drown in +- .1."""
    (row,) = table(
        answered("sparse_transfer", 0.5, range(90)), answered("sparse_to_dense", 0.5, range(80)),
    )  # fmt: skip
    assert row["difference"] == pytest.approx(0.05) and row["verdict"] == "higher"
    assert row["difference_high"] - row["difference_low"] < 0.08


def test_only_seeds_that_both_have_are_compared_and_their_spread_widens_the_interval(table, tmp_path):
    wrong = {41: range(40), 42: range(40, 90)}
    runs = [answered("sparse_to_dense", 0.5, (), seed=seed) for seed in (41, 42, 43)]
    rows = table(*runs, *[answered("sparse_transfer", 0.5, items, seed=seed) for seed, items in wrong.items()])
    (row,) = rows
    assert row["seeds"] == (41, 42) and row["difference"] == pytest.approx(0.225)
    one_seed = difference_table([row for row in run_folder.read_runs(tmp_path) if row["seed"] == 41], resamples=500)
    width = [own["difference_high"] - own["difference_low"] for own in (row, *one_seed)]
    assert width[0] > 1.5 * width[1]


def test_seeds_are_paired_in_whatever_order_their_folders_stand(table):
    """Ten items lie between the transfers under each seed; seeds differ by thirty, which cancels."""
    wrong = {41: 20, 42: 50, 43: 80}
    (row,) = table(
        *(answered("sparse_transfer", 0.5, range(wrong[seed]), seed=seed) for seed in (41, 42, 43)),
        *(answered("sparse_to_dense", 0.5, range(wrong[seed] - 10), seed=seed) for seed in (43, 42, 41)),
    )
    assert row["difference"] == pytest.approx(0.05) and row["verdict"] == "higher"
    assert row["difference_high"] - row["difference_low"] < 0.1


def test_why_there_is_no_interval_is_said(table):
    rows = table(
        answered("sparse_transfer", 0.5, (), seed=41), answered("sparse_to_dense", 0.5, (), seed=42),
        answered("sparse_transfer", 0.7, ()), answered("sparse_to_dense", 0.7, (), labels=1 - LABELS),
        answered("sparse_transfer", 0.9, ()), run("sparse_to_dense", 0.9, 0.6),
        run("sparse_transfer", 0.5, task="stsb", metric="spearmanr"),
        run("sparse_to_dense", 0.5, task="stsb", metric="spearmanr"),
    )  # fmt: skip
    assert [row["reason"] for row in rows] == ["no seed in common", *["no predictions on the same items"] * 3]
    assert {row["verdict"] for row in rows} == {"cannot tell"}
    assert rows[0]["difference"] is None and rows[0]["seeds"] == () and rows[2]["difference"] == pytest.approx(-0.4)
    lines = csv.DictReader(io.StringIO(csv_text(rows, DIFFERENCE_COLUMNS)))
    assert [line["difference_low"] for line in lines] == [""] * 4


def test_few_items_say_nothing(table):
    few = {"labels": np.arange(9) % 2}
    (row,) = table(answered("sparse_transfer", 0.5, (), **few), answered("sparse_to_dense", 0.5, (0, 1, 2), **few))
    assert row["difference"] == pytest.approx(-1 / 3) and row["difference_low"] is row["p_value"] is None
    assert row["holm_p"] is None and row["verdict"] == "cannot tell" and row["reason"] == "fewer than 10 items"


def test_ten_items_say_something(table):
    enough = {"labels": np.arange(10) % 2}
    (row,) = table(answered("sparse_transfer", 0.5, (), **enough), answered("sparse_to_dense", 0.5, (0,), **enough))
    assert row["difference_low"] < -0.1 < row["difference_high"] and row["reason"] == "" and row["p_value"] > 0.05


def sparse_and_repaired(strength, repaired, **changes):
    """Of 200 items that sparse gets right all but some, which sparse to dense repairs."""
    return [
        answered("sparse_transfer", strength, range(repaired), **changes),
        answered("sparse_to_dense", strength, (), **changes),
    ]


@pytest.mark.parametrize("repaired", [3, 5, 7])
def test_the_p_value_is_that_of_the_sign_test(table, repaired):
    """All items that differ do so in one direction; an unseen one outweighs each of them with probability 1/2."""
    (row,) = table(*sparse_and_repaired(0.5, repaired), resamples=40_000)
    # Two-sided, from the normal distribution to Student's of 200 items.
    students = scipy.stats.t.cdf(scipy.stats.norm.ppf(0.5**repaired) / (201 / 199) ** 0.5, 199)
    assert row["p_value"] == pytest.approx(2 * students, rel=0.12)
    assert row["holm_p"] == row["p_value"]
    assert row["verdict"] == ("higher" if repaired > 5 else "cannot tell")


def test_verdicts_count_all_comparisons_of_the_table(table, tmp_path):
    """p is .031 and more: one comparison is told, of two neither, and with a third that is plain it alone is."""
    (alone,) = table(*sparse_and_repaired(0.5, 6), resamples=20_000)
    assert 0.025 < alone["p_value"] < 0.05 and alone["verdict"] == "higher"
    rows = table(*sparse_and_repaired(0.7, 6), *sparse_and_repaired(0.9, 100), resamples=20_000)
    first, second, plain = rows
    assert first["p_value"] == pytest.approx(alone["p_value"]) == second["p_value"]
    # Three tests: the smallest p counts three times, the next twice, the last no less than that.
    assert plain["holm_p"] == pytest.approx(3 * plain["p_value"]) and plain["verdict"] == "higher"
    assert [row["holm_p"] for row in (first, second)] == pytest.approx([2 * alone["p_value"]] * 2)
    assert first["verdict"] == second["verdict"] == "cannot tell"


def test_tasks_whose_dense_transfer_is_at_chance_are_not_judged_and_do_not_count(table):
    rows = table(
        answered("dense_transfer", None, range(100)), *sparse_and_repaired(0.5, 100),
        answered("dense_transfer", None, range(20), task="rte"), *sparse_and_repaired(0.5, 7, task="rte"),
    )  # fmt: skip
    qnli, rte = (of_pair([row for row in rows if row["task"] == task], "sparse_to_dense", "sparse_transfer")
                 for task in ("qnli", "rte"))  # fmt: skip
    assert qnli["p_value"] < 0.01 and qnli["holm_p"] is None and qnli["verdict"] == "cannot tell"
    counted = [row for row in rows if row["task"] == "rte"]
    least = min(row["p_value"] for row in counted)
    assert min(row["holm_p"] for row in counted) == pytest.approx(len(counted) * least)
    assert rte["dense_above_chance"] is True and qnli["dense_above_chance"] is False


def test_the_summary_counts_what_is_sure(tmp_path):
    rows = run_folder.read_runs(write_tree(
        tmp_path, answered("dense_transfer", None, range(10)), answered("sparse_to_dense", 0.5, range(90)),
        answered("sparse_transfer", 0.5, range(100)), answered("sparse_transfer", "2:4", range(50)),
        answered("sparse_to_dense", "2:4", range(50)),
        answered("dense_transfer", None, range(100), task="rte"), answered("sparse_to_dense", 0.5, (), task="rte"),
    ))  # fmt: skip
    lines = tuned_sections.transfer_lines(difference_table(rows, resamples=2000))
    assert lines[2] == "| task | data | strength | sparse to dense - dense | sparse to dense - sparse |"
    half, nm, rte = lines[4:7]
    assert half.startswith("| QNLI | 100 % | 50 % | **-0.400 [-0.4") and "| **+0.050 [+0.0" in half
    assert nm.startswith("| QNLI | 100 % | 2:4 | **-0.200 [") and re.search(
        r"\| \+0\.000 \[-0\.0\d\d, \+0\.0\d\d\] \|$", nm
    )
    assert rte.startswith("| RTE |") and rte.endswith(" |  |")
    assert lines[-2:] == [
        "- Sparse to dense against dense: higher in 0, lower in 2, cannot tell in 0 of 2 comparisons.",
        "- Sparse to dense against sparse: higher in 1, lower in 0, cannot tell in 1 of 2 comparisons.",
    ]


def test_dense_and_sparse_alone_have_no_table(tmp_path):
    rows = run_folder.read_runs(write_tree(tmp_path, run("dense_transfer", None), run()))
    table = difference_table(rows)
    assert table == tuned_sections.transfer_lines(table) == []
    against_dense = difference_table(run_folder.read_runs(write_tree(tmp_path, run("sparse_to_dense"))))
    assert [(row["transfer"], row["against"]) for row in against_dense] == [
        ("sparse_to_dense", "dense_transfer"), ("sparse_to_dense", "sparse_transfer"),
    ]  # fmt: skip
    assert tuned_sections.transfer_lines(against_dense) != []
