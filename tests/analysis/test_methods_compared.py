"""Methods beside each other: means over levels by hand, intervals as those of flips, looks that differ, figures."""

import itertools

import numpy as np
import pytest
from synthetic_runs import large_tree, level_run, write_tree
from test_flips import choice_run

from analysis.flips import compared_points, flip_table
from analysis.kinds import describe
from analysis.methods_compared import (
    COMPARED_COLUMNS,
    METHOD,
    compared_section,
    compared_table,
    looks,
    methods_compared,
    of_compared,
    positions,
)
from analysis.replicates import resampled_curves
from analysis.summary import summary_text
from analysis.table import FigureKey, level_sets, level_table
from analysis.verdicts import of_figure
from harness import run_folder

RIGHT, WRONG = (0.0, -1.0), (-1.0, 0.0)
KL = 2 / (1 + np.exp(-1)) - 1  # from (0, -1) to (-1, 0): (p - q) * 1 with p = 1 / (1 + e^-1)


def compared(folder, *runs, resamples: int = 200, **arguments):
    rows = run_folder.read_runs(write_tree(folder, *runs, group_size=128, symmetric=False, **arguments))
    ((key, members),) = level_sets(rows).items()
    table = level_table(members)
    curves = resampled_curves(members, resamples, 0, table)
    trends = of_figure(FigureKey(*key), curves)
    points = compared_points(members, table)
    return (
        compared_table(curves, points, trends.orders, resamples),
        flip_table(members, table, resamples),
        trends,
    )


def answers(right: int, items: int = 40) -> list[tuple[float, float]]:
    return [RIGHT] * right + [WRONG] * (items - right)


def test_means_over_levels_by_hand(tmp_path):
    """Dense is right on 40 of 40 and 20 of 40. Wanda loses 10 of the first, half of the second; rtn 4 and 0."""
    rows, _, _ = compared(
        tmp_path, choice_run(easy=answers(40), hard=answers(20), run={"chance": 0.25}),
        choice_run("wanda", 0.5, easy=answers(30), hard=answers(10), run={"chance": 0.25}),
        choice_run("rtn", ("bits", 4), easy=answers(36), hard=answers(20), run={"chance": 0.25}),
    )  # fmt: skip
    assert [row["compression"] for row in rows] == ["wanda", "rtn"]  # from many bytes to few
    assert [row["bytes_fraction"] for row in rows] == pytest.approx([0.5 + 1 / 16, (4 + 20 / 128) / 16])
    assert all(row["levels"] == row["drop_levels"] == ("easy", "hard") for row in rows)
    wanda, rtn = rows
    assert wanda["drop"] == pytest.approx((-0.25 - 0.5) / 2) and rtn["drop"] == pytest.approx(-0.1 / 2)
    assert wanda["flips"] == pytest.approx(0.25) and rtn["flips"] == pytest.approx(0.05)
    assert wanda["kl"] == pytest.approx(0.25 * KL) and rtn["kl"] == pytest.approx(0.05 * KL)
    for row, name in itertools.product(rows, ("drop", "flips", "kl")):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert wanda["reason"].startswith("no Junk DNA score: ") and wanda["junk_dna_score"] is None
    assert set(wanda) == set(COMPARED_COLUMNS)


def test_intervals_of_one_level_are_those_of_flips(tmp_path):
    rng = np.random.default_rng(0)
    items, groups = [f"item {index}" for index in range(60)], [f"text {index // 2}" for index in range(60)]

    def scores():
        return [tuple(own) for own in rng.normal((0.8, 0), size=(60, 2))]

    same = {"items": items, "groups": groups, "run": {"chance": 0.0}}
    rows, flips, _ = compared(
        tmp_path, choice_run(easy=scores(), **same), choice_run("wanda", 0.5, easy=scores(), **same),
        choice_run("wanda", 0.5, seed=1, easy=scores(), **same), choice_run("magnitude", 0.3, easy=scores(), **same),
    )  # fmt: skip
    twins = {row["compression"]: row for row in flips}
    for row in rows:
        twin = twins[row["compression"]]
        for name in ("flips", "flips_low", "flips_high", "kl", "kl_low", "kl_high"):
            assert row[name] == pytest.approx(twin[name], rel=1e-4), name


def test_levels_on_the_same_items_are_drawn_together(tmp_path):
    """The mean over two copies of a level is that level: its interval must not shrink as for two independent ones."""
    rng = np.random.default_rng(1)
    one, other = ([tuple(own) for own in rng.normal((0.8, 0), size=(60, 2))] for _ in range(2))
    runs = [("dense", None, one), ("wanda", 0.5, other), ("magnitude", 0.5, other)]
    ends = {}
    for count in (1, 2):
        made = [choice_run(name, strength, **{f"copy {index}": scores for index in range(count)}, run={"chance": 0.0})
                for name, strength, scores in runs]  # fmt: skip
        rows = compared(tmp_path / str(count), *made)[0]
        ends[count] = [row[f"{name}{end}"] for row in rows for name in ("drop", "flips", "kl")
                       for end in ("", "_low", "_high")]  # fmt: skip
    assert ends[2] == pytest.approx(ends[1], rel=1e-5)


def test_the_score_is_that_of_the_curve(tmp_path):
    """Three strengths at two levels; the hard one falls twice as fast."""
    runs = [level_run(levels={"easy": [1.0] * 60, "hard": [1.0] * 60})]
    for name, strength, lost in itertools.product(("wanda", "mine"), (0.2, 0.4, 0.6), (30,)):
        easy, hard = round(lost * strength), round(2 * lost * strength)
        levels = {"easy": [0.0] * easy + [1.0] * (60 - easy), "hard": [0.0] * hard + [1.0] * (60 - hard)}
        runs.append(level_run(name, strength, levels))
    rows, _, trends = compared(tmp_path, *runs)
    assert len(rows) == 6 and {row["compression"] for row in rows} == {"wanda", "mine"}  # a user's appears by itself
    (order,) = (row for row in trends.orders if (row["compression"], row["measure"]) == ("mine", "raw"))
    for row in rows:
        assert row["junk_dna_score"] == pytest.approx(0.5) and row["reason"] == ""
        assert (row["junk_dna_low"], row["junk_dna_high"]) == (order["junk_dna_low"], order["junk_dna_high"])
        assert row["kl"] is None and row["flips"] == pytest.approx(-row["drop"])


def test_levels_that_dense_does_not_know_are_left_out_of_drops_alone(tmp_path):
    known, unknown = [1.0] * 60, [1.0] * 15 + [0.0] * 45
    made = [level_run(name, strength, {"easy": known, "hard": unknown}, of_level={"hard": {"stderr": 0.056}})
            for name, strength in (("dense", None), ("wanda", 0.5), ("rtn", ("bits", 4)))]  # fmt: skip
    rows = compared(tmp_path / "one", *made)[0]
    assert {(row["levels"], row["drop_levels"]) for row in rows} == {(("easy", "hard"), ("easy",))}
    assert all(row["flips"] == 0 and row["drop"] == 0 for row in rows)
    made = [level_run(name, strength, {"hard": unknown}, stderr=0.056)
            for name, strength in (("dense", None), ("wanda", 0.5), ("rtn", ("bits", 4)))]  # fmt: skip
    rows = compared(tmp_path / "other", *made)[0]
    assert all(row["drop"] is None and row["drop_levels"] == () and row["flips"] == 0 for row in rows)
    assert all(row["reason"].startswith("no drop: the dense score is not above chance; ") for row in rows)
    methods_compared({"Setting 2": rows})
    five = [f"group {number % 5}" for number in range(60)]
    made = [level_run(name, strength, {"easy": known}, groups=five)
            for name, strength in (("dense", None), ("wanda", 0.5), ("rtn", ("bits", 4)))]  # fmt: skip
    rows = compared(tmp_path / "few", *made)[0]
    assert all(row["reason"].startswith("no drop: fewer than 10 groups of items; ") for row in rows)
    words = " ".join(text.get_text() for axes in methods_compared({"Setting 2": rows}).axes for text in axes.texts)
    assert "fewer than 10 groups of items" in words and "chance" not in words


def test_fewer_than_two_methods_are_not_compared(tmp_path):
    assert compared(tmp_path, level_run(), level_run("wanda", 0.5), level_run("wanda", 0.3))[0] == []
    assert describe(run_folder.read_runs(tmp_path), resamples=100).parts[-1].title == "Flips and distances"
    with pytest.raises(ValueError, match="nothing to compare"):
        methods_compared({"Setting 2": []})


def test_no_two_methods_look_alike():
    names = ["magnitude", "wanda", "ria", "sparsegpt", "rtn", "gptq", "low_rank", "sparsegpt+gptq", "sparsegpt+rtn",
             "wanda+rtn", "wanda+gptq", *(f"method_{number}" for number in range(20)), "method_1+rtn"]  # fmt: skip
    rows = [{"compression": name, "magnitude_scope": None, "strength_kind": kind}
            for name in names for kind in ("sparsity", "nm")]  # fmt: skip
    rows += [{**rows[0], "magnitude_scope": scope} for scope in ("layer", "global")]
    found = looks(rows)
    seen = {(look["color"], look["marker"], look.get("markerfacecolor")) for look in found.values()}
    assert len(found) == len(rows) == len(seen)
    assert found["wanda", None, "sparsity"]["color"] == "#0072B2"


def test_points_of_one_size_stand_side_by_side(tmp_path):
    same = {"magnitude_scope": None, "strength_kind": "sparsity"}
    rows = [{**same, "compression": name, "strength": strength, "bytes_fraction": strength}
            for name in ("magnitude", "wanda", "ria") for strength in (0.75, 0.5, 0.25)]  # fmt: skip
    found = positions(rows)
    assert len({round(place, 6) for place in found.values()}) == 9
    for (_, strength), place in found.items():
        assert abs(place - 100 * strength) <= 4
    assert positions(rows[:3])[tuple(rows[0][name] for name in METHOD), 0.5] == 50


def test_a_point_without_neighbours_stands_at_its_size():
    """Two methods at 56 %, one of them at 88 % alone: 0.35 of the distance of its two points are 11, at most 8."""
    names = dict.fromkeys(METHOD)
    rows = [{**names, "compression": name, "strength": size, "bytes_fraction": size} for name, size in
            (("magnitude", 0.56), ("magnitude", 0.88), ("wanda", 0.56))]  # fmt: skip
    places = {(key[0], strength): round(place, 6) for (key, strength), place in positions(rows).items()}
    assert places == {("magnitude", 0.56): 60, ("wanda", 0.56): 52, ("magnitude", 0.88): 88}


def test_a_tree_has_one_figure_of_all_its_settings(tmp_path):
    runs = [level_run(), level_run("wanda", 0.55), level_run("rtn", ("bits", 8))]
    runs += [{**run, "setting": 4, "task": "k_shot"} for run in runs]
    write_tree(tmp_path, *runs, group_size=128, symmetric=False)
    tree = describe(run_folder.read_runs(tmp_path), resamples=100)
    (part,) = (part for part in tree.parts if part.title.startswith("Methods compared"))
    (plot,) = part.plots
    assert plot.stem == "methods_compared_model-a" and plot.columns == COMPARED_COLUMNS
    assert {row["setting"] for row in plot.table} == {2, 4} and len(plot.table) == 4
    figure = plot.draw()
    assert len(figure.axes) == 6  # two settings; drop, flips, KL: with one strength each no method has a score
    scored = [{**row, "junk_dna_score": 0.5, "junk_dna_low": 0.1, "junk_dna_high": 0.9} for row in plot.table]
    assert len(methods_compared({"settings": scored}).axes) == 4
    top = figure.axes[0]
    assert {round(line.get_ydata()[0], 6) for line in top.get_lines()[:2]} == {
        round(100 * row["drop"], 6) for row in plot.table if row["setting"] == 2
    }  # fmt: skip
    text = summary_text(tree, ["png"])
    assert "Methods compared" in text and "flips fewest of 2 methods" in text


@pytest.mark.slow
def test_a_large_tree_is_drawn(tmp_path):
    tree = describe(run_folder.read_runs(large_tree(tmp_path)), resamples=100)
    (plot,) = (plot for part in tree.parts for plot in part.plots if plot.stem.startswith("methods_compared"))
    assert len({tuple(row[name] for name in METHOD) for row in plot.table}) == 11
    plot.draw()


def test_a_measure_that_a_level_lacks_has_no_mean(tmp_path):
    runs = [choice_run(*made, easy=answers(40), hard=answers(20), run={"chance": 0.25})
            for made in (("dense", None), ("wanda", 0.5), ("rtn", ("bits", 4)))]  # fmt: skip
    for run in runs:
        del run["items"]["level1_option_log_likelihood"]
    for row in compared(tmp_path, *runs)[0]:
        assert row["kl"] is row["kl_low"] is None and row["flips"] == 0


def test_no_more_than_all_is_lost(tmp_path):
    """39 of 40; the lowest of the resamples is drawn away from that for few groups, beyond what there is."""
    runs = [level_run(name, strength, {"easy": scores}) for name, strength, scores in (
        ("dense", None, [1.0] * 40), ("wanda", 0.5, [1.0] + [0.0] * 39), ("rtn", ("bits", 4), [1.0] * 40))]  # fmt: skip
    wanda, _ = compared(tmp_path, *runs)[0]
    assert wanda["drop"] == pytest.approx(-39 / 40) and wanda["drop_low"] == -1


def row_of(name: str, size: float, flips: float, low: float, high: float, **more):
    """A row of a compared_table by hand; the drop is as the flips, and KL twice that."""
    kind = "bits" if name in ("rtn", "gptq") else "sparsity"
    shown = {f"{measure}{end}": factor * value for measure, factor in (("drop", 1), ("flips", 1), ("kl", 2))
             for end, value in (("", flips), ("_low", low), ("_high", high))}  # fmt: skip
    return {**dict.fromkeys(COMPARED_COLUMNS), "model": "model-a", "compression": name, "strength_kind": kind,
            "strength": round(16 * size) if kind == "bits" else size, "bytes_fraction": size, "seeds": (0,),
            "levels": ("easy",), "drop_levels": ("easy",), "reason": "", **shown, **more}  # fmt: skip


SIDE_BY_SIDE = [
    row_of("wanda", 0.5, 0.1, 0.05, 0.15), row_of("wanda", 0.25, 0.4, 0.3, 0.5), row_of("rtn", 0.5, 0.14, 0.12, 0.2),
    row_of("gptq", 0.5, 0.3, 0.25, 0.35),
]  # fmt: skip


def test_the_fewest_flips_at_the_bytes_that_all_have_and_whose_interval_is_apart():
    assert of_compared("Setting 2", SIDE_BY_SIDE) == (
        "Setting 2: at about 50 % of the bytes Wanda flips fewest of 3 methods: 10.0 [5.0, 15.0] % of the answers, "
        "KL 0.200; its interval is apart from GPTQ; it overlaps with Round to nearest."
    )


def test_every_point_has_its_own_interval_in_the_figure_and_in_the_table():
    scores = {"junk_dna_score": 0.5, "junk_dna_low": 0.1, "junk_dna_high": 0.8}
    rows = [{**row, **scores} for row in SIDE_BY_SIDE]
    figure = methods_compared({"Setting 2": rows})
    for axes, unit in zip(figure.axes, (100, 100, 2), strict=False):
        heights = [height for line in axes.get_lines() for height in line.get_ydata() if line.get_linestyle() != "--"]
        assert sorted(heights) == pytest.approx(sorted(unit * row["flips"] for row in rows))
        bars = [part[:, 1].tolist() for bar in axes.collections for part in bar.get_segments()]
        assert sorted(bars) == [pytest.approx([unit * row["flips_low"], unit * row["flips_high"]])
                                for row in sorted(rows, key=lambda row: row["flips_low"])]  # fmt: skip
    bars = [part[:, 1].tolist() for bar in figure.axes[3].collections for part in bar.get_segments()]
    assert bars == [pytest.approx([0.1, 0.8])] * 3
    (line,) = [line for line in compared_section("Setting 2", rows) if line.startswith("| Wanda | 25 % |")]
    assert "| 40.0 [30.0, 50.0] | 40.0 [30.0, 50.0] | 0.800 [0.600, 1.000] | 0.500 [0.100, 0.800] |" in line
