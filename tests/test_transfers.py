import csv
import io

import numpy as np
import pytest
from synthetic_runs import run, write_tree

from analysis import results, tables
from analysis.fine_tuning import transfers
from analysis.uncertainty import bootstrap

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
    return lambda *runs: transfers.difference_table(results.read_runs(write_tree(tmp_path, *runs)), resamples=500)


def of_pair(rows, transfer, against):
    (row,) = [row for row in rows if (row["transfer"], row["against"]) == (transfer, against)]
    return row


def test_differences_by_hand(table):
    rows = table(
        answered("dense_transfer", None, range(20)), answered("dense_transfer_freezing", 0.5, range(20)),
        answered("sparse_transfer", 0.5, range(100)), answered("sparse_to_dense", 0.5, range(60)),
    )  # fmt: skip
    assert [(row["transfer"], row["against"]) for row in rows] == list(transfers.PAIRS)
    assert all(set(row) == set(transfers.DIFFERENCE_COLUMNS) for row in rows)
    repaired = of_pair(rows, "sparse_to_dense", "sparse_transfer")
    assert (repaired["score"], repaired["against_score"]) == (0.7, 0.5)
    assert repaired["difference"] == pytest.approx(0.2) and repaired["verdict"] == "higher"
    # 40 of 200 items differ: the standard error is sqrt(.2 * .8 / 200) = .0283.
    half = (repaired["difference_high"] - repaired["difference_low"]) / 2
    assert half == pytest.approx(1.97 * 0.0283, rel=0.15)
    assert repaired["items"] == 200 and repaired["seeds"] == (41,) and repaired["reason"] == ""
    assert of_pair(rows, "sparse_to_dense", "dense_transfer")["verdict"] == "lower"
    same = of_pair(rows, "dense_transfer_freezing", "dense_transfer")
    assert (same["difference"], same["difference_low"], same["difference_high"]) == (0, 0, 0)
    assert same["verdict"] == "cannot tell"


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
    one_seed = transfers.difference_table(
        [row for row in results.read_runs(tmp_path) if row["seed"] == 41], resamples=500
    )
    width = [own["difference_high"] - own["difference_low"] for own in (row, *one_seed)]
    assert width[0] > 1.5 * width[1]


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
    lines = csv.DictReader(io.StringIO(tables.csv_text(rows, transfers.DIFFERENCE_COLUMNS)))
    assert [line["difference_low"] for line in lines] == [""] * 4


def test_few_items_say_nothing(table):
    few = {"labels": np.array([0, 1])}
    (row,) = table(answered("sparse_transfer", 0.5, (), **few), answered("sparse_to_dense", 0.5, (0,), **few))
    assert row["difference"] == -0.5 and row["difference_low"] is None and row["reason"] == "too few items"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.2, "higher"), (-0.2, -0.1, "lower"), (-0.1, 0.1, "cannot tell"), (0.0, 0.1, "cannot tell"),
     (None, None, "cannot tell")],
)  # fmt: skip
def test_verdicts(low, high, expected):
    assert transfers.verdict(bootstrap.Interval(0.1, low, high)) == expected


def test_the_summary_counts_what_is_sure(tmp_path):
    rows = results.read_runs(write_tree(
        tmp_path, answered("dense_transfer", None, range(10)), answered("sparse_to_dense", 0.5, range(90)),
        answered("sparse_transfer", 0.5, range(100)), answered("sparse_transfer", "2:4", range(50)),
        answered("sparse_to_dense", "2:4", range(50)),
        answered("dense_transfer", None, range(100), task="rte"), answered("sparse_to_dense", 0.5, (), task="rte"),
    ))  # fmt: skip
    lines = transfers.summary_lines(rows, resamples=200)
    assert lines[2] == "| task | data | strength | sparse to dense - dense | sparse to dense - sparse |"
    half, nm, rte = lines[4:7]
    assert half.startswith("| QNLI | 100 % | 50 % | **-0.400 [-0.4") and "| **+0.050 [+0.0" in half
    assert nm.startswith("| QNLI | 100 % | 2:4 | **-0.200 [") and nm.endswith("| +0.000 [+0.000, +0.000] |")
    assert rte.startswith("| RTE |") and rte.endswith(" |  |")
    assert lines[-2:] == [
        "- Sparse to dense against dense: higher in 0, lower in 2, cannot tell in 0 of 2 comparisons.",
        "- Sparse to dense against sparse: higher in 1, lower in 0, cannot tell in 1 of 2 comparisons.",
    ]


def test_dense_and_sparse_alone_have_no_table(tmp_path):
    rows = results.read_runs(write_tree(tmp_path, run("dense_transfer", None), run()))
    assert transfers.summary_lines(rows) == transfers.difference_table(rows) == []
