"""Tables, figure and summary of lines between models, on made-up lines whose barriers are known."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from of_runs import line_cautions, line_section, lines_between_models
from synthetic_runs import dense, line_run, run, write_tree

from analysis import tuned_plots
from analysis.lines import BARRIER_COLUMNS, LINE_COLUMNS, barrier_table, line_sets, line_table
from analysis.table import csv_text, figure_sets
from harness import run_folder

CONTROL = {"pair": "dense-dense", "strength": None}


@pytest.fixture
def read(tmp_path):
    return lambda *runs: run_folder.read_runs(write_tree(tmp_path, *runs))


def test_sets_part_models_and_shares_of_data_and_pass_over_other_settings(read):
    rows = read(line_run(), line_run(model="lab/model-b"), line_run(data_fraction=0.1), dense(), run())
    sets = line_sets(rows)
    assert list(sets) == [
        ("interpolation", "lab/model-a", 0.1), ("interpolation", "lab/model-a", 1.0),
        ("interpolation", "lab/model-b", 1.0),
    ]  # fmt: skip
    assert {len(members) for members in sets.values()} == {3}
    with pytest.raises(ValueError, match=r"the runs belong in 3 figures .*take those of one"):
        line_table(rows)
    assert figure_sets(rows).keys() == {(1, "lab/model-a", "global")}


def test_no_line_is_an_empty_table(read):
    assert line_table(read(dense())) == []
    with pytest.raises(ValueError, match="hold no line between two models"):
        lines_between_models([])


def test_the_table_has_the_mean_of_the_seeds_at_every_alpha(read):
    rows = read(line_run(scores=(0.9, 0.8, 0.7), seed=41), line_run(scores=(0.7, 0.4, 0.7), losses=(1, 2, 3), seed=42))
    table = line_table(rows)
    assert [point["alpha"] for point in table] == [0, 0.5, 1]
    np.testing.assert_allclose([point["mean_score"] for point in table], [0.8, 0.6, 0.7])
    assert [(point["lowest_score"], point["highest_score"]) for point in table] == [(0.7, 0.9), (0.4, 0.8), (0.7, 0.7)]
    np.testing.assert_allclose([point["mean_validation_loss"] for point in table], [0.625, 1.375, 1.75])
    assert {point["seeds"] for point in table} == {("41", "42")} and table[0]["model"] == "lab/model-a"
    header, first, *_ = csv_text(table, LINE_COLUMNS).splitlines()
    assert header.split(",")[:3] == ["model", "data_fraction", "task"] and first.endswith(",41 42")


def test_lines_stand_in_the_papers_order(read):
    rows = read(
        line_run(task="rte"), line_run(task="cola"), line_run(**CONTROL), line_run("dense-pruned"),
        line_run("sparse-dense"), line_run(strength=0.7), line_run(strength=0.5), line_run(task="stsb"),
    )  # fmt: skip
    table = line_table(rows)[::3]
    assert [(point["task"], point["pair"], point["strength"]) for point in table] == [
        ("qqp", "dense-sparse", 0.5), ("qqp", "dense-sparse", 0.7), ("qqp", "dense-pruned", 0.5),
        ("qqp", "dense-dense", None), ("qqp", "sparse-dense", 0.5), ("stsb", "dense-sparse", 0.5),
        ("rte", "dense-sparse", 0.5), ("cola", "dense-sparse", 0.5),
    ]  # fmt: skip
    assert [point["seeds"] for point in table[3:4]] == [("41-42",)]


def test_lines_with_different_alphas_are_not_averaged(read):
    rows = read(line_run(seed=1), line_run(seed=2, scores=(0.9, 0.8, 0.8, 0.8), losses=(0, 0, 0, 0)))
    with pytest.raises(ValueError, match=r"lines of qqp, dense-sparse, 0.5 have different alphas: .*000 and .*001"):
        line_table(rows)


def test_two_lines_from_one_seed_are_two(read):
    rows = read(line_run(seed=50, **CONTROL), line_run(seed=50, **CONTROL, end_seed=52))
    assert line_table(rows)[0]["seeds"] == ("50-51", "50-52")


def test_the_same_line_twice_is_refused(read):
    with pytest.raises(ValueError, match=r"the same run .*pair dense-sparse.* is there twice"):
        line_sets(read(line_run(), line_run()))


def barrier(table, quantity, definition, split="validation"):
    (row,) = (
        row for row in table if (row["split"], row["quantity"], row["definition"]) == (split, quantity, definition)
    )
    return row


def test_barriers_are_means_over_seeds_with_shares_of_what_was_learned(read):
    """Errors .1 .35 .2 and .1 .25 .2: .2 and .1 above the line (.15 in the middle); dense is .4 above chance."""
    rows = read(
        line_run(scores=(0.9, 0.65, 0.8), seed=41, noise=0.02), line_run(scores=(0.9, 0.75, 0.8), seed=42, noise=0.04)
    )
    table = barrier_table(rows)
    assert len(table) == 8
    row = barrier(table, "error", "straight_line")
    assert row["mean_barrier"] == pytest.approx(0.15)
    assert (row["lowest_barrier"], row["highest_barrier"]) == pytest.approx((0.1, 0.2))
    # Over items .03 to either side on average; over two seeds 12.706 * .05, which goes below 0 barrier.
    high = 0.15 + math.hypot(0.03, 12.7062 * 0.05)
    assert (row["interval_low"], row["interval_high"]) == pytest.approx((0, high), abs=1e-5)
    assert (row["start"], row["end"]) == pytest.approx((0.1, 0.2)) and row["alphas"] == (0.5, 0.5)
    assert row["share_of_learned"] == pytest.approx(0.15 / 0.4)
    assert (row["share_low"], row["share_high"]) == pytest.approx((0, high / 0.4), abs=1e-5)
    loss = barrier(table, "loss", "straight_line")
    # losses .25 .75 .5: .375 on the line in the middle
    assert loss["mean_barrier"] == pytest.approx(0.375) and (loss["start"], loss["end"]) == (0.25, 0.5)
    assert loss["share_of_learned"] is None and loss["connected"] is None
    assert barrier(table, "loss", "mean_of_ends")["mean_barrier"] == pytest.approx(0.375)
    assert barrier(table, "error", "straight_line", "train")["share_of_learned"] is None
    assert csv_text(table, BARRIER_COLUMNS).count("\n") == 9


def test_seeds_that_are_alike_add_nothing_to_the_interval_over_items(read):
    rows = read(
        *[line_run(scores=(0.9, 0.65, 0.8), seed=seed, noise=noise) for seed, noise in ((41, 0.02), (42, 0.04))]
    )
    row = barrier(barrier_table(rows), "error", "straight_line")
    assert (row["interval_low"], row["interval_high"]) == pytest.approx((0.17, 0.23))
    assert (row["share_low"], row["share_high"]) == pytest.approx((0.17 / 0.4, 0.23 / 0.4))


def test_a_seed_without_an_interval_leaves_the_mean_without(read):
    few = line_run(scores=(0.9, 0.65, 0.8), seed=42)
    few["barriers"] = [{**found, "low": None, "high": None} for found in few["barriers"]]
    rows = read(line_run(scores=(0.9, 0.65, 0.8), seed=41), few)
    row = barrier(barrier_table(rows), "error", "straight_line")
    assert row["mean_barrier"] == pytest.approx(0.2) and row["share_of_learned"] == pytest.approx(0.5)
    names = ("interval_low", "interval_high", "share_low", "share_high", "connected")
    assert [row[name] for name in names] == [None] * 5
    assert any("| 0.200 |" in line for line in line_section(rows))


@pytest.mark.parametrize(
    ("middle", "noise", "connected"), [(0.8, 0.01, True), (0.8, 0.03, None), (0.75, 0.01, False), (0.75, 0.04, None)]
)
def test_connected_is_below_two_percent_with_the_whole_interval(read, middle: float, noise: float, connected):
    """Scores .8 x .8: the barrier is .8 - x."""
    table = barrier_table(read(line_run(scores=(0.8, middle, 0.8), noise=noise)))
    assert barrier(table, "error", "straight_line")["connected"] is connected
    assert barrier(table, "error", "mean_of_ends")["connected"] is None


def test_dense_at_chance_learned_nothing_to_lose(read):
    rows = read(line_run(scores=(0.5, 0.45, 0.5)))
    row = barrier(barrier_table(rows), "error", "straight_line")
    assert row["dense_above_chance"] is False and row["share_of_learned"] is row["share_low"] is None
    assert line_cautions(rows)[0] == ("QQP: DENSE AT CHANCE at alpha 0, so barriers from there mean nothing.")
    figure = lines_between_models(rows)
    assert any("DENSE NOT ABOVE CHANCE" in text.get_text() for axes in figure.axes for text in axes.texts)


def panel(figure, task_column: int, row: int, columns: int):
    return figure.axes[row * columns + task_column]


def test_the_figure_draws_every_line_in_the_colour_of_its_pair(read):
    rows = read(
        line_run(strength=0.5), line_run(strength=0.7, scores=(0.9, 0.6, 0.7)), line_run(**CONTROL),
        line_run(task="stsb", scores=(0.6, 0.5, 0.4), metric="pearson", chance=0.0),
    )  # fmt: skip
    figure = lines_between_models(rows)
    scores = [panel(figure, column, 0, 2) for column in (0, 1)]
    assert [axes.get_title() for axes in scores] == ["QQP (accuracy)", "STS-B (pearson)"]
    drawn = [line for line in scores[0].get_lines() if len(line.get_xdata()) == 3]
    np.testing.assert_allclose(
        [line.get_ydata() for line in drawn], [[0.9, 0.8, 0.7], [0.9, 0.6, 0.7], [0.9, 0.8, 0.7]]
    )
    style = tuned_plots.PAIR_STYLE
    assert to_rgb(drawn[1].get_color()) == to_rgb(style["dense-sparse"]["color"])
    assert to_rgb(drawn[2].get_color()) == to_rgb(style["dense-dense"]["color"])
    assert sum(to_rgb(drawn[0].get_color())) > sum(to_rgb(drawn[1].get_color()))  # the weaker strength is paler
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:3] == ["Sparse Transfer, 50 %", "Sparse Transfer, 70 %", "Dense Transfer, another seed"]
    losses = panel(figure, 0, 1, 2)
    straight = [line for line in losses.get_lines() if line.get_linestyle() == ":"]
    np.testing.assert_allclose(straight[0].get_ydata(), [0.25, 0.5])


def test_barriers_are_drawn_with_their_intervals(read):
    figure = lines_between_models(read(line_run(scores=(0.9, 0.65, 0.8), noise=0.05)))
    axes = panel(figure, 0, 3, 1)
    marks = [line.get_ydata()[0] for line in axes.get_lines() if line.get_marker() == "s"]
    np.testing.assert_allclose(marks, [0.2, 0.2])  # above the line and above the mean of the ends, both .15
    np.testing.assert_allclose(
        [part[:, 1] for bar in axes.collections for part in bar.get_segments()], [[0.15, 0.25]] * 2
    )
    assert any(line.get_linestyle() == ":" and line.get_ydata()[0] == 0.02 for line in axes.get_lines())


def test_bands_are_the_seeds_and_one_pair_of_seeds_has_none(read):
    one = lines_between_models(read(line_run(seed=1)))
    assert not panel(one, 0, 0, 1).collections and "One pair of seeds" in one.get_supxlabel()
    two = lines_between_models(
        read(line_run(seed=3, task="rte"), line_run(seed=4, task="rte", scores=(0.8, 0.8, 0.8)))[3:]
    )
    (band,) = panel(two, 0, 0, 1).collections
    corners = {tuple(np.round(vertex, 6)) for vertex in band.get_paths()[0].vertices}
    assert corners == {(0, 0.8), (0, 0.9), (0.5, 0.8), (1, 0.7), (1, 0.8)}


def test_a_steep_loss_gets_a_logarithmic_axis_and_a_far_floor_is_left_out(read):
    rows = read(line_run(losses=(0.01, 0.2, 1.0), scores=(0.9, 0.9, 0.88), chance=0.0))
    figure = lines_between_models(rows)
    assert [panel(figure, 0, row, 1).get_yscale() for row in (0, 1, 2)] == ["linear", "log", "log"]
    assert panel(figure, 0, 0, 1).get_ylim()[0] > 0.8


def section(rows) -> str:
    return "\n".join(line_section(rows))


def test_the_summary_gives_ends_and_barriers(read):
    text = section(read(line_run(scores=(0.9, 0.65, 0.8), noise=0.02)))
    assert (
        "| QQP | Sparse Transfer, 50 % | 41 | 0.900, 0.800 | 0.200 [0.180, 0.220] | 0.200 [0.180, 0.220] | "
        "0.375 [0.355, 0.395] | 0.375 [0.355, 0.395] | 0.375 [0.355, 0.395] | **no** |"
    ) in text
    assert "Neither of the pairs is there with Sparse Transfer at the same strength." in text


@pytest.mark.parametrize(
    ("easy", "hard", "verdict"),
    [
        (0.85, 0.6, "0.0 % [0.0, 5.0] and 62.5 % [57.5, 67.5]: higher on STS-B, as the paper says."),
        (0.6, 0.85, "62.5 % [57.5, 67.5] and 0.0 % [0.0, 5.0]: higher on QQP, against the paper."),
        (
            0.6,
            0.6,
            "62.5 % [57.5, 67.5] and 62.5 % [57.5, 67.5]: the intervals overlap, so which is higher cannot be told.",
        ),
        (
            0.62,
            0.6,
            "57.5 % [52.5, 62.5] and 62.5 % [57.5, 67.5]: the intervals overlap, so which is higher cannot be told.",
        ),
    ],
)
def test_the_papers_pairs_are_judged_by_intervals(read, easy: float, hard: float, verdict: str):
    """Scores .9 x .8: the barrier is .85 - x, dense is .4 above chance."""
    rows = read(*[
        line_run(task=task, scores=(0.9, middle, 0.8), noise=0.02) for task, middle in (("qqp", easy), ("stsb", hard))
    ])  # fmt: skip
    assert f"- QQP and STS-B, Sparse Transfer, 50 %: {verdict}" in section(rows)


def test_a_pair_whose_dense_learned_nothing_is_not_judged(read):
    rows = read(line_run(task="rte", scores=(0.5, 0.5, 0.5)), line_run(task="qnli"))
    assert (
        "- RTE and QNLI, Sparse Transfer, 50 %: dense is not above chance on both, so nothing can be said."
        in section(rows)
    )


def test_a_task_without_the_control_is_named(read):
    rows = read(line_run(), line_run(**CONTROL), line_run(task="stsb"))
    (caution,) = line_cautions(rows)
    assert caution.startswith("STS-B: no dense-dense line")


def test_training_rows_have_their_own_ends_and_barriers(read):
    made = line_run(scores=(0.9, 0.65, 0.8), noise=0.02)
    for level, score in zip(made["levels"], (1.0, 0.9, 0.95), strict=True):
        level["train_score"] = score
    for found in made["barriers"]:
        if (found["split"], found["quantity"]) == ("train", "loss"):
            found |= {"barrier": 0.5, "low": 0.4, "high": 0.7}
    rows = read(made)
    row = barrier(barrier_table(rows), "error", "straight_line", "train")
    assert (row["start"], row["end"]) == pytest.approx((0.0, 0.05))
    assert "| 0.375 [0.355, 0.395] | 0.500 [0.400, 0.700] | **no** |" in section(rows)


def test_barriers_of_both_definitions_have_their_own_intervals(read):
    """Errors .1, .2, .5: nothing above the line, and the end .2 above the mean of the ends."""
    figure = lines_between_models(read(line_run(scores=(0.9, 0.8, 0.5), noise=0.05)))
    segments = [part[:, 1] for bar in panel(figure, 0, 3, 1).collections for part in bar.get_segments()]
    np.testing.assert_allclose(segments, [[0, 0.05], [0.15, 0.25]], atol=1e-12)
