import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import dense, level_run, perplexity_run, run, write_tree

from analysis.curves import curve_statistics, level_curves, order_cells, slope_order
from analysis.flips import flip_table
from analysis.outcomes import ItemReader, Outcomes, aligned, paired_differences
from analysis.replicates import resampled_curves
from analysis.rescored import with_metric
from analysis.sizes import amount
from analysis.table import LEVEL_COLUMNS, csv_text, figure_sets, level_sets, level_table
from harness import run_folder


@pytest.fixture
def table(tmp_path):
    return lambda *runs: level_table(run_folder.read_runs(write_tree(tmp_path, *runs)))


def find(points, level, compression="wanda", strength=0.5):
    (found,) = [
        point
        for point in points
        if (point["level"], point["compression"], point["strength"]) == (level, compression, strength)
    ]
    return found


def test_a_point_is_the_mean_over_seeds_beside_the_dense_model(table):
    points = table(
        level_run(levels={"easy": (1, 1, 1, 0)}, metrics={"accuracy": 0.75, "accuracy_norm": 0.5}),
        level_run("wanda", 0.5, {"easy": (1, 0, 1, 0)}, 0), level_run("wanda", 0.5, {"easy": (1, 0, 0, 0)}, 1),
    )  # fmt: skip
    reference, point = points
    assert set(point) == set(LEVEL_COLUMNS)
    expected = {
        "setting": 2, "task": "option_count", "model": "lab/model-a", "level": "easy", "difficulty": 0, "seeds": (0, 1),
        "dataset": "mmlu", "reader": "letter", "metric": "accuracy", "num_examples": 4, "mean_score": 0.375,
        "lowest_score": 0.25, "highest_score": 0.5, "dense_mean_score": 0.75, "relative_percent": 50,
        "normalized_drop": -0.5, "points_drop": -0.375, "chance": 0.25, "corrected_drop": -0.75,
        "dense_above_chance": True, "calibrated": True, "reference_only": False, "magnitude_scope": None,
    }  # fmt: skip
    assert {name: point[name] for name in expected} == expected
    assert (reference["compression"], reference["normalized_drop"], reference["points_stderr"]) == ("dense", 0, None)
    assert reference["metrics"] == ("accuracy=0.75", "accuracy_norm=0.5")
    assert point["metrics"] == ("accuracy=0.375",)  # mean over the seeds


def test_the_uncertainty_of_a_drop_is_of_the_items_differences_to_dense(table):
    points = table(
        level_run(levels={"easy": (1, 1, 1, 0)}),
        level_run("wanda", 0.5, {"easy": (1, 0, 1, 0)}, 0), level_run("wanda", 0.5, {"easy": (0, 0, 1, 1)}, 1),
    )  # fmt: skip
    point = find(points, "easy")
    # Means over seeds .5, 0, 1, .5; differences -.5, -1, 0, .5, which lie -.25, -.75, .25, .75 off their mean.
    assert (point["points_drop"], point["paired_items"], point["unpaired_items"]) == (-0.25, 4, 0)
    assert point["points_stderr"] == pytest.approx(math.sqrt(1.25 / (4 * 3)), rel=1e-12)
    # The interval of the normalized drop comes with intervals.with_intervals.
    assert point["drop_low"] is point["drop_high"] is None


def test_the_error_of_a_score_is_over_groups_whatever_the_run_recorded(tmp_path):
    of_groups = {"law": ["law", "law", "art", "art"], "one": ["law"] * 4, "apart": list("abcd")}
    runs = [
        level_run("wanda", strength, {"easy": (1, 1, 1, 0)}, groups=groups, stderr=0.9)
        for strength, groups in zip((0.2, 0.4, 0.6), of_groups.values(), strict=True)
    ]
    points = level_table(run_folder.read_runs(write_tree(tmp_path, *runs)))
    # Deviations .25 .25 .25 -.75 add up to .5 and -.5 in two groups: sqrt(2 / 1 * .5 / 16); apart, sqrt(.75 / 3 / 4).
    assert [point["mean_stderr"] for point in points] == [
        pytest.approx(0.25, rel=1e-12), None, pytest.approx(0.25, rel=1e-12),
    ]  # fmt: skip
    for file in tmp_path.rglob(run_folder.ITEMS_FILE):
        file.unlink()
    points = level_table(run_folder.read_runs(tmp_path))
    assert [point["mean_stderr"] for point in points] == [0.9] * 3


def test_items_of_a_group_count_together(table):
    groups = ["law", "law", "art", "art"]
    points = table(
        level_run(levels={"easy": (1, 1, 1, 0)}, groups=groups),
        level_run("rtn", ("bits", 4), {"easy": (0.5, 0, 1, 0.5)}, groups=groups),
        level_run("rtn", ("bits", 3), {"easy": (0, 0, 0, 0)}, groups=["law"] * 4),
    )  # fmt: skip
    # Deviations add up to -1 in law and 1 in art: 2 / 1 * (1 + 1) / 16.
    assert find(points, "easy", "rtn", 4)["points_stderr"] == pytest.approx(0.5, rel=1e-12)


def test_one_group_says_nothing_of_the_spread(table):
    points = table(
        level_run(levels={"easy": (1, 1)}, groups=["law"] * 2),
        level_run("wanda", 0.5, {"easy": (1, 0)}, groups=["law"] * 2),
    )
    point = find(points, "easy")
    assert point["paired_items"] == 2
    assert point["points_stderr"] is point["mean_stderr"] is point["dense_above_chance"] is None


def test_a_seed_is_compared_with_the_dense_run_that_was_asked_the_same(table):
    points = table(
        level_run(levels={"easy": (1, 1, 0, 0)}, seed=0), level_run(levels={"easy": (0, 0, 1, 1)}, seed=1),
        level_run("magnitude", 0.5, {"easy": (1, 0, 0, 0)}, 0), level_run("magnitude", 0.5, {"easy": (0, 0, 1, 0)}, 1),
    )  # fmt: skip
    # Differences 0, -1, 0, 0 and 0, 0, 0, -1: means over seeds 0, -.5, 0, -.5.
    assert find(points, "easy", "magnitude")["points_stderr"] == pytest.approx(math.sqrt(0.25 / 12), rel=1e-12)


def test_a_seed_without_a_dense_run_is_compared_with_the_mean_of_all():
    def outcomes(*scores):
        return Outcomes(np.array(["a", "b"]), np.array(["a", "b"]), np.array(scores, dtype=float))

    dense_runs = {0: outcomes(1, 1), 1: outcomes(0, 1)}
    found = paired_differences({0: outcomes(1, 0), 7: outcomes(0, 0)}, dense_runs)
    differences, groups, unpaired = found
    # Seed 0: 0 and -1; seed 7, against .5 and 1: -.5 and -1.
    assert differences.tolist() == [-0.25, -1]
    assert groups.tolist() == ["a", "b"] and unpaired == 0


def test_where_runs_disagree_in_groups_the_coarser_ones_count(tmp_path):
    """Of ten rows that are there twice, older runs had twenty groups: the copies are no further evidence."""
    items = [f"row {number % 10} #{number // 10}" for number in range(20)]
    scores = {"dense": [1.0] * 6 + [0.0] * 4, "wanda": [1.0] * 3 + [0.0] * 7}
    found = {}
    for name, older in (("new", ()), ("mixed", ("dense",)), ("mixed the other way", ("wanda",))):
        runs = [
            level_run(method, strength, {"all": scores[method] * 2}, items=items, groups=items if method in older else
                      [item.partition(" #")[0] for item in items])
            for method, strength in (("dense", None), ("wanda", 0.5))
        ]  # fmt: skip
        rows = run_folder.read_runs(write_tree(tmp_path / name, *runs))
        table = level_table(rows)
        (flipped,) = flip_table(rows, table, 100)
        found[name] = table[1]["points_stderr"], flipped["clusters"]
    assert found["new"] == found["mixed"] == found["mixed the other way"] and found["new"][1] == 10


def test_groups_are_joined_that_any_run_joins():
    """Of five items one run has a and b in one group, the other b and c; d and e are not joined by any."""
    one = Outcomes(np.array(["a", "b", "c", "d"]), np.array(["x", "x", "c", "d"]), np.ones(4))
    other = Outcomes(np.array(["b", "c", "d", "e"]), np.array(["y", "y", "d", "e"]), np.zeros(4))
    for runs in ([one, other], [other, one]):
        scores, groups = aligned(runs)
        assert len(set(groups[:3])) == 1 and groups[3:].tolist() == ["d", "e"] and scores.shape == (2, 5)
    alike = other._replace(items=one.items, groups=np.array(["a", "y", "y", "d"]))
    assert len(set(aligned([one, alike])[1][:3])) == 1


def test_a_run_that_lacks_an_item_and_groups_none_leaves_documents_whole(tmp_path):
    """Five documents of four items each, the last run without one item: no run makes twenty groups of them."""
    items, documents = ([f"{name}{number // size}" for number in range(20)] for name, size in (("i", 1), ("d", 4)))
    runs = [level_run(levels={"a": [1.0] * 20}, items=items, groups=documents)]
    runs.append(level_run("wanda", 0.5, {"a": [1.0] * 10 + [0.0] * 9}, items=items[:19], groups=items[:19]))
    ((_, own, _),) = resampled_curves(run_folder.read_runs(write_tree(tmp_path, *runs)), 100, 0).popitem()[1]
    assert (own.points.items, own.points.clusters) == (19, 5)


def test_items_that_one_side_lacks_are_left_out_and_counted(table):
    points = table(
        level_run(levels={"easy": (1, 0, 1)}, items=["a", "b", "c"]),
        level_run("wanda", 0.5, {"easy": (1, 1, 0)}, items=["d", "c", "b"]),
        level_run("sparsegpt", 0.5, {"easy": (1, 1, 0)}, items=["x", "y", "z"]),
    )
    point = find(points, "easy")
    # b: 0 - 0; c: 1 - 1. Neither a nor d.
    assert (point["paired_items"], point["unpaired_items"], point["points_stderr"]) == (2, 2, 0)
    assert (point["mean_score"], point["dense_mean_score"], point["num_examples"]) == (0.5, 0.5, 2)
    assert points[0]["compression"] == "dense" and points[0]["mean_score"] == pytest.approx(2 / 3)
    none = find(points, "easy", "sparsegpt")
    assert none["mean_score"] == pytest.approx(2 / 3)
    assert (none["paired_items"], none["unpaired_items"], none["points_stderr"]) == (0, 6, None)


def test_an_item_that_stands_several_times_is_paired_in_order(table):
    points = table(
        level_run(levels={"easy": (1, 0, 1)}, items=["a", "a", "b"]),
        level_run("wanda", 0.5, {"easy": (1, 0, 1)}, items=["a", "a", "b"]),
    )
    assert (find(points, "easy")["paired_items"], find(points, "easy")["points_stderr"]) == (3, 0)


def test_runs_without_items_have_no_uncertainty(tmp_path):
    other_columns = {**level_run("ria", 0.5), "items": {"correct": np.zeros(8)}}
    tree = write_tree(tmp_path, level_run(), level_run("wanda", 0.5), other_columns)
    (tree / "001" / run_folder.ITEMS_FILE).unlink()
    points = level_table(run_folder.read_runs(tree))
    for compression in ("wanda", "ria"):
        point = find(points, "2 options", compression)
        assert point["points_drop"] == 0
        assert point["paired_items"] is point["unpaired_items"] is point["points_stderr"] is None


def test_without_a_dense_model_there_is_no_drop(table):
    point = find(table(level_run("wanda", 0.5)), "2 options")
    names = ("dense_mean_score", "dense_above_chance", "relative_percent", "normalized_drop", "corrected_drop",
             "points_drop", "drop_low", "paired_items")  # fmt: skip
    assert [point[name] for name in names] == [None] * len(names) and point["mean_score"] == 0.75


def test_a_dense_score_whose_interval_includes_chance_has_no_corrected_drop(table):
    scores = {"easy": (1,) * 33 + (0,) * 67}
    points = table(
        level_run(levels=scores, chance=0.24), level_run("wanda", 0.5, scores, chance=0.24),
        level_run(levels=scores, chance=0.23, model="other"),
        level_run("wanda", 0.5, scores, chance=0.23, model="other"),
    )  # fmt: skip
    # 1.96 standard errors of sqrt(.33 * .67 / 99) below .33 lies .2374.
    at_chance, above = (point for point in points if point["compression"] == "wanda")
    assert (at_chance["dense_above_chance"], at_chance["corrected_drop"]) == (False, None)
    assert above["dense_above_chance"] is True and above["corrected_drop"] == 0


def test_the_difficulty_of_setting_5_follows_from_people_and_the_dense_model(table):
    human = {"hard": {"difficulty": None, "human": 0.8}, "easy": {"difficulty": None, "human": 1.0}}
    levels = {"hard": (1, 0, 0, 0, 0), "easy": (1, 1, 1, 0, 0)}
    points = table(
        level_run(levels=levels, of_level=human, setting=5), level_run("wanda", 0.5, levels, of_level=human, setting=5)
    )
    assert [(point["level"], point["compression"]) for point in points] == [
        ("easy", "dense"), ("easy", "wanda"), ("hard", "dense"), ("hard", "wanda"),
    ]  # fmt: skip
    assert [point["difficulty"] for point in points] == pytest.approx([0.4, 0.4, 0.75, 0.75])


def test_without_difficulties_levels_stand_as_the_runs_list_them(table):
    human = {"hard": {"difficulty": None, "human": 0.8}, "easy": {"difficulty": None, "human": 1.0}}
    levels = {"hard": (1, 0), "easy": (1, 1)}
    points = table(level_run("wanda", 0.5, levels, of_level=human, setting=5))
    assert [(point["level"], point["difficulty"]) for point in points] == [("hard", None), ("easy", None)]
    statistics = [curve_statistics([point]) for point in points]
    assert slope_order(statistics) == (None, "0 of 2 levels can be compared")
    sloped = [{**level, "theil_sen_slope": -1.0, "strengths": (0.3, 0.5, 0.7)} for level in statistics]
    assert slope_order(sloped) == (None, "0 of 2 levels can be compared")
    assert order_cells(sloped) == [
        "cannot be told", "0 of 2 levels can be compared; without hard, easy, of unknown difficulty",
    ]  # fmt: skip


def test_levels_of_unknown_difficulty_come_after_the_others_and_before_references(table):
    """PIQA .75 below people's .8; a set without a human score takes nobody else's place."""
    human = {"none": None, "hard": 0.8, "nor this": None, "easy": 1.0, "mere": None}
    of_level = {name: {"difficulty": None, "human": score} for name, score in human.items()}
    of_level["mere"]["facts"] = {"reference_only": 1}
    levels = {"none": (1, 1), "hard": (0.4, 0), "nor this": (1, 0), "easy": (1, 0.2), "mere": (1, 1)}
    points = table(level_run(levels=levels, of_level=of_level, setting=5))
    assert [point["level"] for point in points] == ["easy", "hard", "none", "nor this", "mere"]
    assert [point["difficulty"] for point in points] == [pytest.approx(0.4), pytest.approx(0.75), None, None, None]


def test_a_level_of_unknown_difficulty_takes_no_order_from_the_others(table):
    levels = [{"level": name, "difficulty": value, "theil_sen_slope": slope, "strengths": (0.3, 0.5, 0.7),
               "amounts": (0.3, 0.5, 0.7), "dense_above_chance": True}
              for name, value, slope in (("easy", 0.1, -1.0), ("new", None, -9.0), ("hard", 0.2, -2.0))]  # fmt: skip
    assert slope_order(levels) == (True, "2 of 3 levels compared")
    assert order_cells(levels) == [
        "yes", "2 of 3 levels compared; by luck alone once in 2; without new, of unknown difficulty",
    ]  # fmt: skip


def test_references_come_last_and_are_in_no_curve(table):
    levels = {"untouched": (1, 1), "4": (1, 0), "2": (1, 1)}
    of_level = {"untouched": {"facts": {"reference_only": 1}, "difficulty": None}, "4": {"difficulty": 4},
                "2": {"difficulty": 2}}  # fmt: skip
    points = table(level_run(levels=levels, of_level=of_level), level_run("wanda", 0.5, levels, of_level=of_level))
    assert [point["level"] for point in points] == ["2", "2", "4", "4", "untouched", "untouched"]
    (curves,) = level_curves(points).values()
    assert list(curves) == ["2", "4"]


def test_points_stand_by_kind_strength_and_compression_and_curves_by_kind_and_compression(table):
    points = table(
        level_run("gptq", ("bits", 3)), level_run("gptq", ("bits", 8)), level_run("wanda", "2:4"),
        level_run("wanda", 0.7), level_run("wanda", 0.2), level_run("magnitude", 0.2, magnitude_scope="global"),
        level_run("magnitude", 0.2), level_run(),
    )  # fmt: skip
    easy = [point for point in points if point["level"] == "2 options"]
    assert [(point["compression"], point["magnitude_scope"], point["strength"]) for point in easy] == [
        ("dense", None, None), ("magnitude", "layer", 0.2), ("magnitude", "global", 0.2), ("wanda", None, 0.2),
        ("wanda", None, 0.7), ("wanda", None, "2:4"), ("gptq", None, 8), ("gptq", None, 3),
    ]  # fmt: skip
    found = level_curves(points)
    assert list(found) == [
        ("sparsity", "magnitude", "layer"), ("sparsity", "magnitude", "global"), ("sparsity", "wanda", None),
        ("nm", "wanda", None), ("bits", "gptq", None),
    ]  # fmt: skip
    assert {level: len(curve) for level, curve in found["sparsity", "wanda", None].items()} == {
        "2 options": 2, "4 options": 2,
    }  # fmt: skip


def test_equal_loss_of_knowledge_gives_equal_chance_corrected_slopes_and_ordered_raw_ones(table):
    """A model that knows 30 % and guesses the rest, of whose knowledge nothing, a half and all is lost."""
    chances = {"2 options": 1 / 2, "3 options": 1 / 3, "4 options": 1 / 4}
    of_level = {level: {"chance": chance} for level, chance in chances.items()}

    def scores(known):
        return {level: [chance + (1 - chance) * known] * 100 for level, chance in chances.items()}

    points = table(
        level_run(levels=scores(0.3), of_level=of_level),
        *[level_run("wanda", sparsity, scores(known), of_level=of_level)
          for sparsity, known in {0.2: 0.3, 0.4: 0.15, 0.6: 0.0}.items()],
    )  # fmt: skip
    (curves,) = level_curves(points).values()
    found = [curve_statistics(curve) for curve in curves.values()]
    assert [level["corrected_slope"] for level in found] == pytest.approx([-2.5] * 3)
    # Of dense scores .65, .5333, .475, .15, .2, .225 lie above chance.
    expected = [-2.5 * above / dense for above, dense in ((0.15, 0.65), (0.2, 0.8 / 1.5), (0.225, 0.475))]
    assert [level["theil_sen_slope"] for level in found] == pytest.approx(expected)
    assert slope_order(found) == (True, "3 of 3 levels compared")
    assert all(level["spearman"] == 1 and level["strengths"] == (0.2, 0.4, 0.6) for level in found)


def test_slopes_are_per_unit_of_what_is_gone(table):
    points = table(
        level_run(levels={"easy": (1,) * 8}),
        level_run("rtn", ("bits", 8), {"easy": (1,) * 8}),
        level_run("rtn", ("bits", 4), {"easy": (1,) * 6 + (0, 0)}),
        level_run("low_rank", ("rank", 6), {"easy": (1,) * 8}, parameter_ratio=0.75),
        level_run("low_rank", ("rank", 2), {"easy": (1,) * 4 + (0,) * 4}, parameter_ratio=0.25),
    )
    curves = level_curves(points)
    found = {kind: curve_statistics(levels["easy"]) for (kind, *_), levels in curves.items()}
    assert found["bits"]["theil_sen_slope"] == pytest.approx(-0.25 / (12 / 16 - 8 / 16))
    assert found["rank"]["theil_sen_slope"] == pytest.approx(-0.5 / (0.75 - 0.25))
    unknown = [{**point, "parameter_ratio": None} for point in points[-2:]]
    assert amount(unknown[0]) is None
    assert curve_statistics(unknown)["theil_sen_slope"] is None


def test_settings_models_and_tasks_are_not_mixed(tmp_path):
    rows = run_folder.read_runs(
        write_tree(
            tmp_path, level_run(setting="own_task", task="b"), level_run(setting=5, task="human_gap"),
            level_run(setting=5, task="human_gap", model="b"), level_run(setting="own_task", task="a"),
            level_run(setting=77), run(setting=5, score=0.5), dense(setting=5), perplexity_run(),
        )
    )  # fmt: skip
    assert list(level_sets(rows)) == [
        (5, "b", "human_gap"), (5, "lab/model-a", "human_gap"), ("own_task", "lab/model-a", "a"),
        ("own_task", "lab/model-a", "b"),
    ]  # fmt: skip
    assert list(figure_sets(rows)) == [(5, "lab/model-a", "global")]


def test_answers_that_were_read_otherwise_are_never_compared(tmp_path):
    rows = run_folder.read_runs(write_tree(tmp_path, level_run(), level_run("wanda", 0.5, recipe="cloze")))
    with pytest.raises(ValueError, match=r"setting 2, .* different recipes"):
        level_table(rows)


def test_a_csv_holds_every_column(table):
    points = table(level_run(), level_run("low_rank", ("rank", 8), parameter_ratio=0.25))
    lines = list(csv.DictReader(io.StringIO(csv_text(points, LEVEL_COLUMNS))))
    assert tuple(lines[1]) == LEVEL_COLUMNS
    assert (lines[1]["strength_kind"], lines[1]["strength"], lines[1]["metrics"]) == ("rank", "8", "accuracy=0.75")
    assert lines[1]["human"] == "" and lines[1]["seeds"] == "0"


def test_the_uncertainty_equals_that_of_a_loop_in_plain_python(tmp_path):
    generator = np.random.default_rng(4)
    items = [f"item {number}" for number in range(60)]
    runs, kept = [], {}
    for name, seed in (("dense", 0), ("dense", 1), ("wanda", 0), ("wanda", 1), ("wanda", 2)):
        own = sorted(generator.choice(60, 50, replace=False).tolist(), key=lambda _: generator.random())
        scores = generator.integers(0, 2, 50).tolist()
        kept[name, seed] = {items[number]: score for number, score in zip(own, scores, strict=True)}
        places = {"items": [items[number] for number in own], "groups": [f"group {number % 7}" for number in own]}
        runs.append(level_run(name, None if name == "dense" else 0.5, {"easy": scores}, seed, **places))
    point = find(level_table(run_folder.read_runs(write_tree(tmp_path, *runs))), "easy")
    differences = {}
    for item in items:
        dense_scores = {seed: kept["dense", seed][item] for seed in (0, 1) if item in kept["dense", seed]}
        found = []
        for seed in range(3):
            reference = None
            if seed in (0, 1):
                reference = dense_scores.get(seed)
            elif dense_scores:
                reference = sum(dense_scores.values()) / len(dense_scores)
            if item in kept["wanda", seed] and reference is not None:
                found.append(kept["wanda", seed][item] - reference)
        if found:
            differences[item] = sum(found) / len(found)
    mean = sum(differences.values()) / len(differences)
    sums = {}
    for item, difference in differences.items():
        group = int(item.split()[1]) % 7
        sums[group] = sums.get(group, 0) + difference - mean
    variance = 7 / 6 * sum(total**2 for total in sums.values()) / len(differences) ** 2
    assert point["paired_items"] == len(differences)
    assert point["paired_items"] + point["unpaired_items"] == len(set().union(*kept.values()))
    assert point["points_stderr"] == pytest.approx(math.sqrt(variance), rel=1e-12)
    # Scores are of the items that all five runs have.
    everyone = set.intersection(*map(set, kept.values()))
    means = {run: sum(own[item] for item in everyone) / len(everyone) for run, own in kept.items()}
    assert point["mean_score"] == pytest.approx(sum(means["wanda", seed] for seed in range(3)) / 3, rel=1e-12)
    assert point["dense_mean_score"] == pytest.approx((means["dense", 0] + means["dense", 1]) / 2, rel=1e-12)
    errors = []
    for seed in range(3):
        own = {item: kept["wanda", seed][item] for item in everyone}
        sums = {}
        for item, score in own.items():
            group = int(item.split()[1]) % 7
            sums[group] = sums.get(group, 0) + score - sum(own.values()) / len(own)
        factor = len(sums) / (len(sums) - 1)
        errors.append(math.sqrt(factor * sum(total**2 for total in sums.values())) / len(own))
    assert point["mean_stderr"] == pytest.approx(sum(errors) / 3, rel=1e-12)


def test_a_point_is_compared_with_the_dense_runs_of_its_own_seeds(tmp_path):
    """Seeds change what is asked: answers exactly as dense of that seed lose nothing, whatever other seeds ask."""
    right = {0: 42, 1: 50, 2: 52}

    def answered(compression, strength, seed):
        return level_run(compression, strength, {"easy": [1.0] * right[seed] + [0.0] * (100 - right[seed])}, seed=seed)

    dense_runs = [answered("dense", None, seed) for seed in right]
    one = [answered("wanda", strength, 0) for strength in (0.3, 0.5)]
    two = [answered("magnitude", 0.3, 0), answered("magnitude", 0.5, 0), answered("magnitude", 0.5, 1)]
    other = [answered("sparsegpt", 0.3, seed) | {"seed": seed + 7} for seed in (0, 1, 2)]
    rows = run_folder.read_runs(write_tree(tmp_path, *dense_runs, *one, *two, *other))
    points = {(row["compression"], row["strength"]): row for row in level_table(rows)}
    of_dense = {seed: count / 100 for seed, count in right.items()}
    assert points["dense", None]["mean_score"] == pytest.approx(sum(of_dense.values()) / 3)
    for strength in (0.3, 0.5):
        assert points["wanda", strength]["points_drop"] == points["wanda", strength]["points_stderr"] == 0
    for strength, expected in ((0.3, 0.42), (0.5, 0.46)):
        assert points["magnitude", strength]["dense_mean_score"] == pytest.approx(expected)
        assert points["magnitude", strength]["points_drop"] == points["magnitude", strength]["points_stderr"] == 0
    assert points["sparsegpt", 0.3]["dense_mean_score"] == pytest.approx(sum(of_dense.values()) / 3)
    drawn = {key.compression: own for key, own in resampled_curves(rows, 100, 0).items()}
    for name, expected in (("wanda", [0.42, 0.42]), ("magnitude", [0.42, 0.46])):
        ((_, own, _),) = drawn[name]
        assert own.dense.both[0] == pytest.approx(expected) == own.points.both[0]
        assert (own.dense.both == own.points.both).all()


def test_another_recorded_metric_becomes_the_score(tmp_path):
    runs = [
        level_run(levels={"easy": (1, 1, 1, 0)}, metrics={"accuracy": 0.75, "accuracy_norm": 0.5}),
        level_run("wanda", 0.5, {"easy": (1, 1, 0, 0)}, metrics={"accuracy": 0.5, "accuracy_norm": 0.25}),
    ]
    for like, other in zip(runs, ((1, 0, 1, 0), (0, 0, 1, 0)), strict=True):
        like["items"]["level0_accuracy_norm"] = np.array(other, dtype=float)
    rows = run_folder.read_runs(write_tree(tmp_path, *runs))
    reference, point = level_table(with_metric(rows, ["accuracy_norm"]))
    assert (point["metric"], point["mean_score"], point["dense_mean_score"]) == ("accuracy_norm", 0.25, 0.5)
    assert reference["mean_stderr"] == pytest.approx(math.sqrt(1 / 3 / 4))  # of 1, 0, 1, 0
    assert point["points_stderr"] == pytest.approx(0.25)  # of differences -1, 0, 0, 0: sqrt(3/4 / 3 / 4)
    assert with_metric(rows, []) == rows


def test_a_metric_that_is_lower_where_better_is_no_score(tmp_path):
    run = level_run(levels={"easy": (1, 1, 1, 0)}, metrics={"accuracy": 0.75, "empty": 0.25})
    run["items"]["level0_empty"] = np.array([0.0, 0, 0, 1])
    message = r"--metric empty is lower where better, and no score: the runs recorded accuracy$"
    with pytest.raises(ValueError, match=message):
        with_metric(run_folder.read_runs(write_tree(tmp_path, run)), ["empty"])


def test_a_metric_of_all_items_together_is_refused(tmp_path):
    """Perplexity is no mean over items: accuracy's errors and resamples would stand beside it."""
    runs = [
        level_run(levels={"easy": (1, 1, 1, 0)}, metrics={"accuracy": 0.75, "perplexity": 10.0}),
        level_run("wanda", 0.5, {"easy": (1, 1, 1, 0)}, metrics={"accuracy": 0.75, "perplexity": 90.0}),
    ]
    rows = run_folder.read_runs(write_tree(tmp_path, *runs))
    with pytest.raises(
        ValueError, match=r"--metric perplexity is not kept of each item.*: the runs recorded accuracy$"
    ):
        with_metric(rows, ["perplexity"])
    # A level has one metric in all its runs, so that one which a run did not keep is none of the level's.
    kept = run_folder.read_items(rows[0]["folder"])
    np.savez(Path(rows[0]["folder"]) / run_folder.ITEMS_FILE, **kept, level0_accuracy_norm=kept["score"])
    both = [{**row, "metrics": {**row["metrics"], "accuracy_norm": 0.5}} for row in rows]
    with pytest.raises(ValueError, match="--metric accuracy_norm is not kept of each item"):
        with_metric(both, ["accuracy_norm"])
    other = [{**row, "item_column": "perplexity"} for row in rows]
    assert list(map(ItemReader(), other)) == [None, None]  # not the items of accuracy


def test_a_metric_that_no_run_recorded_is_refused(tmp_path):
    rows = run_folder.read_runs(write_tree(tmp_path, level_run()))
    with pytest.raises(ValueError, match="--metric f1: the runs recorded accuracy"):
        with_metric(rows, ["f1"])


def test_items_of_dense_runs_of_other_seeds_are_not_said_to_lack(table):
    """Seed 1 was asked others: the curve of seed 0 is compared with seed 0 alone."""
    points = table(
        level_run(levels={"easy": (1, 0)}, items=["a", "b"], seed=0),
        level_run(levels={"easy": (1, 0)}, items=["c", "d"], seed=1),
        level_run("wanda", 0.5, {"easy": (1, 0)}, items=["a", "b"], seed=0),
    )
    point = find(points, "easy")
    assert (point["paired_items"], point["unpaired_items"], point["points_stderr"]) == (2, 0, 0)
