import csv
import io
import os
import statistics
import subprocess
from pathlib import Path

import numpy as np
import pytest
from of_runs import easy_and_hard_tasks, gap_figure_table, gap_lines, gap_table, left_out
from synthetic_runs import dense, run, write_tree

from analysis import human_gap, paper, verdicts
from analysis.table import csv_text
from harness import run_folder

PEARSON = {"metric": "pearson", "chance": 0.0}


@pytest.fixture
def read(tmp_path):
    return lambda *runs: run_folder.read_runs(write_tree(tmp_path, *runs))


def curve(task, score, *scores, strengths=(0.2, 0.4, 0.6), **changes):
    """A dense run and a sparse transfer of one task."""
    compressed = zip(strengths, scores, strict=True)
    return [
        dense(score, task=task, **changes),
        *[run(strength=strength, score=own, task=task, **changes) for strength, own in compressed],
    ]


def test_the_human_scores_of_glue_give_the_average_of_their_source():
    """87.1 in the abstract of Nangia and Bowman, where a task with two metrics counts as their mean."""
    matched_and_mismatched = statistics.fmean((0.920, 0.928))
    others = [human for task, human in human_gap.HUMAN.items() if human.source == human_gap.MUPPET]
    means = [matched_and_mismatched, *(statistics.fmean(human.scores.values()) for human in others)]
    assert len(means) == 9
    assert 100 * statistics.fmean(means) == pytest.approx(87.1, abs=0.051)  # it is printed to one place
    assert {human.category for human in human_gap.HUMAN.values()} == set(human_gap.CATEGORIES)


def test_a_row_by_hand(read):
    rows = read(
        dense(0.75, task="rte", stderr=0.0234), run(score=0.625, task="rte"), run(strength=0.75, score=0.5, task="rte")
    )
    (row,) = gap_table(rows)
    assert set(row) == set(human_gap.HUMAN_GAP_COLUMNS)
    assert (row["human"], row["category"]) == (0.936, "natural language inference")
    assert row["difficulty"] == pytest.approx(0.186 / 0.936, abs=1e-12)
    assert row["difficulty_stderr"] == pytest.approx(0.025, abs=1e-12)
    assert (row["strength_kind"], row["strengths"], row["mean_scores"]) == ("sparsity", (0.5, 0.75), (0.625, 0.5))
    np.testing.assert_allclose(row["normalized_drops"], (-1 / 6, -1 / 3))
    np.testing.assert_allclose(row["corrected_drops"], (-0.5, -1))  # .125 and .25 of the .25 above chance
    assert row["theil_sen_slope"] == pytest.approx(-2 / 3) and row["corrected_slope"] == pytest.approx(-2)
    assert row["mean_drop"] == pytest.approx(-0.25) and row["mean_corrected_drop"] == pytest.approx(-0.75)
    assert "Nangia" in row["source"]
    (line,) = csv.DictReader(io.StringIO(csv_text([row], human_gap.HUMAN_GAP_COLUMNS)))
    assert line["strengths"] == "0.5 0.75" and line["magnitude_scope"] == "global"


def test_tasks_stand_from_easy_to_hard_and_those_without_a_human_score_last(read):
    rows = read(
        *curve("rte", 0.7, 0.6, 0.6, 0.6), *curve("qqp", 0.9, 0.8, 0.8, 0.8), *curve("own", 0.99, 0.8, 0.8, 0.8),
        *curve("stsb", 0.9, 0.8, 0.8, 0.8, **PEARSON), run(strength="2:4", task="qqp"), dense(0.97, task="sst2"),
        run(task="mnli"),
    )  # fmt: skip
    gaps = gap_table(rows)
    found = [(gap["task"], gap["strength_kind"]) for gap in gaps]
    assert found == [
        ("qqp", "sparsity"), ("qqp", "nm"), ("sst2", None), ("stsb", "sparsity"), ("rte", "sparsity"),
        ("own", "sparsity"),
    ]  # fmt: skip
    assert gaps[0]["difficulty"] == pytest.approx((0.804 - 0.9) / 0.804)
    assert gaps[2]["strengths"] == () and gaps[2]["theil_sen_slope"] is None and gaps[2]["mean_drop"] is None
    own = gaps[-1]
    assert own["difficulty"] is own["human"] is own["source"] is own["category"] is None


def test_a_metric_that_nobody_measured_people_by_has_no_difficulty(read):
    (row,) = gap_table(read(dense(0.8, task="cola")))  # accuracy; the authors measured Matthews
    assert row["difficulty"] is None and row["difficulty_stderr"] is None and row["category"] == "single sentence"
    assert human_gap.human_score("mrpc", "f1") == 0.863 and human_gap.human_score("own", "accuracy") is None


def test_the_largest_amount_of_data_counts(read):
    rows = read(
        dense(0.8, fraction=0.1, task="rte"), dense(0.9, fraction=0.5, task="rte"), run(fraction=0.1, task="rte")
    )
    (row,) = gap_table(rows)
    assert row["data_fraction"] == 0.5 and row["dense_mean_score"] == 0.9 and row["strength_kind"] is None


def test_drops_that_are_not_defined_are_empty(read):
    (row,) = gap_table(read(*curve("cola", -0.1, 0, 0, 0, metric="matthews_correlation", chance=0.0)))
    assert row["normalized_drops"] == row["corrected_drops"] == () and row["mean_drop"] is None
    assert row["strengths"] == (0.2, 0.4, 0.6) and row["difficulty"] == pytest.approx(0.764 / 0.664)
    (line,) = csv.DictReader(io.StringIO(csv_text([row], human_gap.HUMAN_GAP_COLUMNS)))
    assert line["normalized_drops"] == line["mean_drop"] == ""


def test_the_figure_shows_the_extremes_of_a_category_among_what_was_learned(read):
    rows = read(
        *curve("qnli", 0.9, 0.8, 0.7, 0.6), *curve("mnli", 0.8, 0.7, 0.6, 0.5), *curve("rte", 0.7, 0.6, 0.5, 0.5),
        *curve("wnli", 0.5, 0.5, 0.5, 0.5), *curve("sst2", 0.9, 0.8, 0.7, 0.6), run(strength="2:4", task="rte"),
        *curve("qqp", 0.5, 0.5, 0.5, 0.5), *curve("stsb", 0.1, 0, 0, 0, **PEARSON),
    )  # fmt: skip
    shown = human_gap.easy_and_hard(gap_table(rows))
    assert {key: {place: gap["task"] for place, gap in places.items()} for key, places in shown.items()} == {
        ("sparsity", "single sentence"): {"only": "sst2"},
        ("sparsity", "sentence similarity"): {"easy": "qqp", "hard": "stsb"},  # one learned is not enough: both
        ("sparsity", "natural language inference"): {"easy": "qnli", "hard": "rte"},
        ("nm", "natural language inference"): {"only": "rte"},
    }
    table = gap_figure_table(rows)
    assert all(set(point) == set(human_gap.FIGURE_COLUMNS) for point in table)
    of_rte = [(point["place"], point["transfer"], point["strength"]) for point in table if point["task"] == "rte"]
    assert of_rte == [
        ("hard", "dense_transfer", None), *[("hard", "sparse_transfer", strength) for strength in (0.2, 0.4, 0.6)],
        ("only", "dense_transfer", None), ("only", "sparse_transfer", "2:4"),
    ]  # fmt: skip
    assert {point["task"] for point in table} == {"sst2", "qqp", "stsb", "qnli", "rte"}
    assert next(point for point in table if point["task"] == "rte")["difficulty"] == pytest.approx(0.236 / 0.936)


def test_a_point_counted_from_the_floor():
    point = {
        "mean_score": 0.625, "lowest_score": 0.5, "highest_score": 0.75, "dense_mean_score": 0.75, "chance": 0.5,
        "corrected_drop": -0.5, "relative_percent": 80.0,
    }  # fmt: skip
    found = human_gap.from_the_floor(point)
    assert (found["relative_percent"], found["chance"]) == (50, 0)
    assert (found["lowest_score"], found["mean_score"], found["highest_score"]) == (0, 0.125, 0.25)
    assert found["dense_mean_score"] == 0.25
    assert human_gap.from_the_floor({**point, "corrected_drop": None})["relative_percent"] is None


def gap(difficulty, slope, strengths=(0.5, 0.7), learned=True):
    return {"difficulty": difficulty, "theil_sen_slope": slope, "strengths": strengths, "dense_above_chance": learned}


def test_pairs_of_tasks_in_the_order_of_difficulty():
    count = human_gap.pairs_in_order
    assert count([gap(0.1, -0.2), gap(0.2, -0.3), gap(0.3, -0.1)], "theil_sen_slope") == (1, 3)
    assert count([gap(0.1, -0.2), gap(0.2, -0.2)], "theil_sen_slope") == (0, 1)  # equal is not in order
    others = [gap(0.2, -0.3, (0.5,)), gap(None, -0.3), gap(0.3, None), gap(0.4, -0.5, learned=False)]
    assert count([gap(0.1, -0.2), *others], "theil_sen_slope") == (0, 0)


def test_what_the_figure_lacks_is_listed(read):
    rows = read(
        *curve("qnli", 0.9, 0.8, 0.7, 0.6), *curve("mnli", 0.8, 0.7, 0.6, 0.5), *curve("rte", 0.7, 0.6, 0.5, 0.5),
        *curve("sst2", 0.9, 0.8, 0.7, 0.6), *curve("own", 0.9, 0.8, 0.7, 0.6), run(task="cola"), dense(task="qqp"),
    )  # fmt: skip
    assert left_out(rows) == [
        "Single sentence has SST-2 alone in unstructured sparsity.",
        "No curve of sentence similarity.",
        "No curve of commonsense reasoning.",
        "No curve of arithmetic reasoning.",
        "No human score is known of own.",
        "Not drawn: QQP, MNLI (no curve, not learned, or between easy and hard).",
        "No dense run, so no difficulty: CoLA.",
    ]


def test_the_summary_says_what_the_floor_does_to_the_order(read):
    """STS-B loses half of its range and so falls more than QQP, which loses all of its own."""
    rows = read(
        *curve("qqp", 0.9, 0.8, 0.7, 0.6, chance=0.6), *curve("stsb", 0.9, 0.75, 0.6, 0.45, **PEARSON),
    )  # fmt: skip
    lines = gap_lines(rows)
    (qqp,) = [line for line in lines if line.startswith("| QQP")]
    assert "| -11.9 % ± 2.4 | yes | 20 %: -11.1 %; 40 %: -22.2 %; 60 %: -33.3 % | -0.556 | -1.667 | -0.667 |" in qqp
    assert lines[-5] == (
        "- unstructured sparsity: the harder task loses more by the raw slope in 1 of 1 pairs of tasks and 1 of 1 "
        "categories, by the slope from the floor in 0 of 1 pairs of tasks and 0 of 1 categories, by the mean drop from "
        "the floor in 0 of 1 pairs of tasks and 0 of 1 categories (by luck alone in half)."
    )


def test_slopes_over_other_strengths_are_not_compared(read):
    rows = read(*curve("qnli", 0.9, 0.8, 0.7, 0.6), *curve("rte", 0.7, 0.6, 0.5, 0.5, strengths=(0.2, 0.4, 0.7)))
    (sentence,) = human_gap.order_sentences(gap_table(rows))
    assert sentence.endswith(
        "no two tasks of known difficulty have the same strengths, so it cannot be told which loses more."
    )


def test_without_a_human_score_there_is_nothing_to_say_or_draw(read):
    rows = read(*curve("own", 0.9, 0.8, 0.7, 0.6))
    assert gap_lines(rows) == gap_figure_table(rows) == []
    with pytest.raises(ValueError, match="no sparse_transfer of a task with a known human score"):
        easy_and_hard_tasks(rows)


def test_tasks_that_nobody_measured_stand_in_the_first_versions_order(read):
    rows = read(*curve("svamp", 0.8, 0.6, 0.4, 0.2, chance=0.2), *curve("mawps", 0.9, 0.9, 0.8, 0.8, chance=0.2))
    shown = human_gap.easy_and_hard(gap_table(rows))
    assert {place: gap["task"] for place, gap in shown["sparsity", "arithmetic reasoning"].items()} == {
        "easy": "mawps", "hard": "svamp"
    }  # fmt: skip
    assert left_out(rows)[-1] == ("No human score is known of MAWPS, SVAMP: in the order of the paper's first version.")
    (mawps,) = [line for line in gap_lines(rows) if line.startswith("| MAWPS")]
    assert "| arithmetic reasoning | accuracy | 0.900 | 0.200 |  |  | yes |" in mawps  # no people, no difficulty
    raw, from_floor = easy_and_hard_tasks(rows).axes
    assert [line.get_label().partition(":")[0] for line in raw.get_lines() if ":" in line.get_label()] == [
        "MAWPS (easy), accuracy", "SVAMP (hard), accuracy"
    ]  # fmt: skip
    assert any(line.get_label().startswith("SVAMP, people not measured:") for line in from_floor.get_lines())
    found = verdicts.measure(rows, resamples=100)
    assert {row["setting"] for row in found.orders} <= {1}  # no verdict on difficulty


def test_the_figure_draws_both_measures_and_each_tasks_own_floor(read):
    rows = read(
        *curve("qqp", 0.8, 0.7, 0.6, 0.6, chance=0.6), *curve("stsb", 0.9, 0.45, 0.0, 0.0, **PEARSON),
        *curve("rte", 0.75, 0.75, 0.5, 0.5), run(strength="2:4", score=0.7, task="qqp", chance=0.6),
    )  # fmt: skip
    figure = easy_and_hard_tasks(rows)
    drawn = [axes for axes in figure.axes if axes.axison]
    titles = [axes.get_title() for axes in drawn]
    assert titles == ["Sentence similarity", "Natural language inference", "", "", "Sentence similarity", ""]
    raw, _, from_floor, *_ = drawn
    assert raw.get_ylabel() == "Score (% of dense)" and from_floor.get_ylabel() == "Score above floor (% of dense)"
    floors = [[line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == ":"] for axes in drawn[:3]]
    np.testing.assert_allclose(floors[0], [75, 0])
    np.testing.assert_allclose(floors[1], [100 * 0.5 / 0.75])
    np.testing.assert_allclose(floors[2], [0, 0])
    lines = {line.get_label(): line.get_ydata() for axes in (raw, from_floor) for line in axes.get_lines()}
    np.testing.assert_allclose(lines["QQP (easy), accuracy: -0.31 (3)"], [87.5, 75, 75])
    np.testing.assert_allclose(lines["STS-B (hard), pearson: -1.25 (3)"], [50, 0, 0])
    np.testing.assert_allclose(lines["QQP, +0.5 %: -1.25 (3)"], [50, 0, 0], atol=1e-12)
    np.testing.assert_allclose(lines["STS-B, +2.9 %: -1.25 (3)"], [50, 0, 0])
    assert "RTE alone in unstructured sparsity" in figure.get_supxlabel().replace("\n", " ")


def test_a_task_that_dense_did_not_learn_is_warned_about(read):
    figure = easy_and_hard_tasks(read(*curve("rte", 0.5, 0.5, 0.5, 0.5)))
    raw, from_floor = figure.axes
    assert raw.texts[0].get_text().startswith("DENSE NOT ABOVE CHANCE")
    assert [len(line.get_xdata()) for line in from_floor.get_lines() if line.get_marker() == "D"] == [0]


def test_the_sweep_trains_the_tasks_of_the_papers_table(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    script = Path(__file__).parents[2] / "scripts" / "human_gap.sh"
    done = subprocess.run(
        ["bash", str(script), "--list_cells"], capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path)},
    )  # fmt: skip
    words = done.stdout.split()
    tasks = {row["item"] for row in paper.printed() if row["place"] == "appendix B, table"}
    assert tasks | {"mawps", "svamp"} <= set(words) and not {"mnli", "mrpc"} & set(words)
    assert {"dense_transfer", "sparse_transfer"} <= set(words) and "sparse_to_dense" not in words
