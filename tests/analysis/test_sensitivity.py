"""Layers compressed one at a time, and allocated against uniform sparsity: by hand, and what is told apart."""

import itertools
import math
from pathlib import Path

import pytest
from synthetic_runs import choice_run, level_run, perplexity_run, write_tree

from analysis import sensitivity
from analysis.kinds import Part, describe
from analysis.names import compression_name, full_name, method_name
from analysis.style import compression_style
from analysis.table import level_table, perplexity_table
from harness import run_folder

DENSE = {"easy": (1,) * 36 + (0,) * 4, "hard": (1,) * 30 + (0,) * 10}  # scores 0.9 and 0.75, chance 0.25
FEW, MANY = {**DENSE, "hard": (0,) * 2 + DENSE["hard"][2:]}, {**DENSE, "hard": (0,) * 20 + DENSE["hard"][20:]}


def layered(layers: str, levels: dict, strength: float = 0.5, **changes: object) -> dict:
    return level_run("magnitude", strength, levels, layers=layers, measured_sparsity=strength / 30, **changes)


@pytest.fixture
def tree(tmp_path: Path) -> list[dict]:
    """Dense; blocks 0, 2, 10 and two kinds of weights alone: block 10 breaks the hard level, block 2 takes 2 of 30."""
    runs = [layered("10", MANY), layered("2", FEW), layered("0", DENSE), layered("mlp", FEW), layered("k_proj", DENSE)]
    return run_folder.read_runs(write_tree(tmp_path, level_run(levels=DENSE), *runs))


def layer_part(rows: list[dict]) -> Part:
    (part,) = (part for part in describe(rows, resamples=400).parts if "layer by layer" in part.title)
    return part


def test_drops_and_marks_by_hand(tree: list[dict]):
    table = layer_part(tree).plots[0].table
    assert [(row["layers"], row["level"]) for row in table] == list(
        itertools.product(("0", "2", "10", "k_proj", "mlp"), ("easy", "hard"))
    )
    found = {(row["layers"], row["level"]): row for row in table}
    assert found["10", "hard"]["normalized_drop"] == pytest.approx(-20 / 30)
    assert found["10", "hard"]["corrected_drop"] == pytest.approx((0.25 - 0.75) / (0.75 - 0.25))
    assert found["2", "hard"]["normalized_drop"] == pytest.approx(-2 / 30)
    assert found["0", "hard"]["normalized_drop"] == found["10", "easy"]["normalized_drop"] == 0
    # 20 of 40 right answers lost are sure among ten points, 2 are not.
    assert {place for place, row in found.items() if row["verdict"] == sensitivity.LOSES} == {("10", "hard")}
    assert found["10", "hard"]["drop_high"] < 0 < found["2", "hard"]["drop_high"]
    assert all(row["verdict"] == sensitivity.CANNOT_TELL for place, row in found.items() if place != ("10", "hard"))
    corrected = sorted(row["holm_p"] for row in table)
    assert corrected[0] == pytest.approx(min(row["p_value"] for row in table) * len(table))


def test_the_heat_map_shows_them(tree: list[dict]):
    part = layer_part(tree)
    figure = part.plots[0].draw()
    blocks, kinds = (axes for axes in figure.axes if axes.get_images())
    assert [label.get_text() for label in blocks.get_xticklabels()] == ["0", "2", "10"]
    assert [label.get_text() for label in kinds.get_xticklabels()] == ["k_proj", "mlp"]
    values = blocks.get_images()[0].get_array()
    assert values.tolist()[0] == [0, 0, 0]
    assert values.tolist()[1] == pytest.approx([0, -100 * 2 / 30, -100 * 20 / 30])
    rings = [line.get_xydata().tolist() for line in blocks.get_lines() if line.get_marker() == sensitivity.SURE]
    assert rings == [[[2.0, 1.0]]] and not kinds.get_lines()
    assert "hard by layers 10" in part.plots[0].finding and "1 surely lose" in part.plots[0].finding
    text = "\n".join(part.lines)
    assert "| 10 | +0.0" in text and "**-66.7 [" in text


def test_a_level_at_chance_is_crossed_out_and_not_judged(tmp_path: Path):
    at_chance = {"easy": DENSE["easy"], "hard": (1,) * 10 + (0,) * 30}
    lost = {"easy": DENSE["easy"], "hard": (0,) * 40}
    rows = run_folder.read_runs(write_tree(tmp_path, level_run(levels=at_chance, stderr=0.07), layered("0", lost)))
    part = layer_part(rows)
    hard = part.plots[0].table[1]
    assert (hard["level"], hard["dense_above_chance"], hard["verdict"]) == ("hard", False, None)
    (axes,) = (axes for axes in part.plots[0].draw().axes if axes.get_images())
    assert [text.get_text() for text in axes.texts] == [sensitivity.AT_CHANCE]
    assert axes.get_images()[0].get_array().mask.tolist() == [[False], [True]]


def test_a_heat_map_of_nothing_but_levels_at_chance_is_not_drawn(tmp_path: Path):
    at_chance = {"hard": (1,) * 10 + (0,) * 30}
    part = layer_part(run_folder.read_runs(write_tree(tmp_path, level_run(levels=at_chance, stderr=0.07),
                                                      layered("0", {"hard": (0,) * 40}))))  # fmt: skip
    assert part.plots[0].draw is None and len(part.plots[0].table) == 1


def test_how_far_the_distribution_moves_is_told_at_chance_too(tmp_path: Path):
    """By hand: from (3/4, 1/4) to (1/2, 1/2) is 3/4 ln 3/2 + 1/4 ln 1/2; a right and a wrong option alternate."""
    dense = [(math.log(3), 0.0), (0.0, math.log(3))] * 20  # half are right, of two options: at chance
    block = {"run": {"layers": "3", "measured_sparsity": 0.02}}
    runs = [
        choice_run(run={"chance": 0.5, "stderr": 0.08}, hard=dense),
        choice_run("magnitude", 0.5, hard=[(0.0, 0.0)] * 40, run={"chance": 0.5, **block["run"]}),
    ]
    part = layer_part(run_folder.read_runs(write_tree(tmp_path, *runs)))
    (row,) = part.plots[0].table
    distance = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert row["kl"] == pytest.approx(distance) and row["dense_above_chance"] is False
    assert row["changed"] == 0.5 and row["changed_low"] < 0.5 < row["changed_high"]
    (axes,) = (axes for axes in part.plots[0].draw().axes if axes.get_images())  # no panel of drops
    assert axes.get_images()[0].get_array().tolist() == [[pytest.approx(distance)]]
    assert "moves most at hard where layers 3 alone" in part.plots[0].finding
    bounds = ", ".join(f"{1000 * row[name]:.3g}" for name in ("kl_low", "kl_high"))
    assert f"KL 131 [{bounds}] |" in "\n".join(part.lines)


def test_layers_stand_in_no_other_figure_and_are_missed_nowhere(tree: list[dict], tmp_path: Path):
    whole = write_tree(tmp_path / "more", level_run("magnitude", 0.3, FEW), level_run("magnitude", 0.5, MANY))
    described = describe([*tree, *run_folder.read_runs(whole)], resamples=200)
    stems = [plot.stem for part in described.parts for plot in part.plots]
    curves = next(plot for part in described.parts for plot in part.plots if plot.stem.endswith("model-a"))
    assert {row["compression"] for row in curves.table} == {"dense", "magnitude"} and described.lacking == []
    assert sum(stem.endswith("_layers") for stem in stems) == 1
    assert all("sparsity is" not in caution for part in described.parts for caution in part.cautions)


def allocated(strength: float, levels: dict, allocation: str | None = "owl") -> dict:
    return level_run("wanda", strength, levels, allocation=allocation)


def test_owl_and_uniform_are_two_curves_and_never_averaged(tmp_path: Path):
    runs = [allocated(0.5, FEW), allocated(0.7, FEW), allocated(0.5, MANY, None), allocated(0.7, MANY, None)]
    rows = run_folder.read_runs(write_tree(tmp_path, level_run(levels=DENSE), *runs))
    points = {(row["compression"], row["strength"], row["level"]): row for row in level_table(rows)}
    assert points["wanda", 0.5, "hard"]["mean_score"] == 0.25 and points["wanda, owl", 0.5, "hard"]["mean_score"] == 0.7
    described = describe(rows, resamples=400)
    drawn = [plot for part in described.parts for plot in part.plots if plot.stem.startswith("setting")]
    plots = {plot.stem.rpartition("_")[2]: plot for plot in drawn}
    titles = [axes.get_title() for axes in plots["model-a"].draw().axes]
    assert "Wanda" in titles and "Wanda, OWL" in titles
    rows = plots["allocation"].table
    assert [(row["strength"], row["level"], row["difference"]) for row in rows] == [
        (0.5, "easy", 0), (0.5, "hard", pytest.approx(18 / 30)), (0.7, "easy", 0), (0.7, "hard", pytest.approx(0.6)),
    ]  # fmt: skip
    assert [row["verdict"] for row in rows] == [sensitivity.CANNOT_TELL, sensitivity.GAINS] * 2
    assert rows[1]["difference_low"] > 0 and rows[1]["uniform_score"] == 0.25 and rows[1]["allocated_score"] == 0.7
    figure = plots["allocation"].draw()
    assert [axes.get_title() for axes in figure.axes] == ["Sparsity 50 %", "Sparsity 70 %"]
    assert "surely keeps more in 2 and less in 0" in plots["allocation"].finding
    for axes, own in zip(figure.axes, (rows[:2], rows[2:]), strict=True):
        marks = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
        assert marks == pytest.approx([100 * row["difference"] for row in own])
        bars = [part[:, 0].tolist() for bar in axes.collections for part in bar.get_segments()]
        assert bars == [pytest.approx([100 * row["difference_low"], 100 * row["difference_high"]]) for row in own]


def allocation_plot(rows: list[dict]):
    drawn = [plot for part in describe(rows, resamples=400).parts for plot in part.plots]
    (plot,) = [plot for plot in drawn if plot.stem.endswith("_allocation")]
    return plot


def test_the_uniform_model_is_that_of_the_same_strength(tmp_path: Path):
    """Uniform was measured at 30 % too, where it loses nothing; at 50 % it loses 18 of 30 more than OWL."""
    runs = [allocated(0.3, DENSE, None), allocated(0.5, MANY, None), allocated(0.5, FEW)]
    plot = allocation_plot(run_folder.read_runs(write_tree(tmp_path, level_run(levels=DENSE), *runs)))
    easy, hard = plot.table
    assert (easy["difference"], hard["difference"]) == (0, pytest.approx(18 / 30))
    assert easy["difference_low"] < 0 < easy["difference_high"]
    assert 0.2 < hard["difference_low"] < 0.6 < hard["difference_high"] and hard["verdict"] == sensitivity.GAINS


def test_the_largest_difference_may_be_a_loss(tmp_path: Path):
    runs = [allocated(0.5, FEW, None), allocated(0.5, MANY)]
    plot = allocation_plot(run_folder.read_runs(write_tree(tmp_path, level_run(levels=DENSE), *runs)))
    assert "in 0 and less in 1; the largest difference is that of hard, Wanda, OWL, 50 %: -60.0 [" in plot.finding


def test_layers_without_which_the_model_is_better_surely_gain(tmp_path: Path):
    known, better = {"hard": (1,) * 20 + (0,) * 20}, {"hard": (1,) * 38 + (0,) * 2}
    part = layer_part(run_folder.read_runs(write_tree(tmp_path, level_run(levels=known), layered("3", better))))
    (row,) = part.plots[0].table
    assert row["normalized_drop"] == pytest.approx(0.9) and row["verdict"] == sensitivity.GAINS
    assert row["p_value"] < 0.01


def test_small_drops_have_faint_colours(tmp_path: Path):
    """The colours reach to a quarter of the dense score, or to the largest drop: 20 of 30."""
    for name, levels, limit in (("few", FEW, 25), ("many", MANY, 100 * 20 / 30)):
        rows = run_folder.read_runs(write_tree(tmp_path / name, level_run(levels=DENSE), layered("0", levels)))
        (axes,) = (axes for axes in layer_part(rows).plots[0].draw().axes if axes.get_images())
        norm = axes.get_images()[0].norm
        assert (norm.vmin, norm.vmax) == pytest.approx((-limit, limit))


def test_perplexity_has_a_curve_for_each(tmp_path: Path):
    runs = [perplexity_run("wanda", 0.5, (3.6, 3.7)), perplexity_run("wanda", 0.5, (3.4, 3.5), allocation="owl")]
    rows = run_folder.read_runs(write_tree(tmp_path, perplexity_run(), *runs))
    assert [row["compression"] for row in perplexity_table(rows)] == ["dense", "wanda", "wanda, owl"]
    (part,) = (part for part in describe(rows).parts if part.title.startswith("Perplexity"))
    names = {line.get_label() for line in part.plots[0].draw().axes[0].get_lines()}
    assert {"Wanda", "Wanda, OWL"} <= names


def test_the_same_run_twice_is_refused_but_not_another_allocation(tmp_path: Path):
    runs = [allocated(0.5, FEW), allocated(0.5, MANY, None), layered("0", FEW), layered("1", FEW)]
    run_folder.check_runs(run_folder.read_runs(write_tree(tmp_path, level_run(levels=DENSE), *runs)))
    again = write_tree(tmp_path, allocated(0.5, FEW))
    with pytest.raises(ValueError, match=r"the same run .*allocation owl.* is there twice"):
        run_folder.check_runs(run_folder.read_runs(again))


def test_names():
    assert full_name("wanda", "owl", None) == full_name("wanda, owl", "owl", None) == "wanda, owl"
    assert [method_name(name) for name in ("wanda", "wanda, owl", "magnitude, owl_M3, layers 0-3", "mine, early")] == [
        "Wanda", "Wanda, OWL", "Magnitude, OWL, M3, layers 0-3", "mine, early",
    ]  # fmt: skip
    assert compression_name({"compression": "wanda, owl", "magnitude_scope": None}) == "Wanda, OWL"
    uniform, owl = compression_style("wanda"), compression_style("wanda, owl")
    assert uniform["color"] == owl["color"] and uniform != owl and owl["label"] == "Wanda, OWL"


def test_without_runs_of_layers_there_is_no_part(tmp_path: Path):
    rows = run_folder.read_runs(write_tree(tmp_path, level_run(levels=DENSE), level_run("magnitude", 0.5, FEW)))
    assert not any("layer by layer" in part.title for part in describe(rows, resamples=200).parts)
    with pytest.raises(ValueError, match="no run that compresses some layers alone has a drop"):
        sensitivity.heat_map([])
    with pytest.raises(ValueError, match="beside a uniform one"):
        sensitivity.allocation_plot([])
