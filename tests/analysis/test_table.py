import csv
import io
import math

import pytest
from of_runs import data_adequacy_table, four_transfers_table
from synthetic_runs import dense, level_run, perplexity_run, run, write_tree

from analysis.curves import TWO_AMOUNTS, curve_statistics, curves_by, slope_order
from analysis.names import file_names, model_name, model_names, text_name, text_names, with_short_names
from analysis.sizes import bytes_fraction
from analysis.table import (
    PERPLEXITY_COLUMNS,
    POINT_COLUMNS,
    csv_text,
    figure_sets,
    is_fine_tuning_run,
    level_table,
    perplexity_sets,
    perplexity_table,
    seed_means,
)
from harness import run_folder

WIKI = "texts/wiki.test.txt.gz"


def read(tmp_path, *runs):
    return run_folder.read_runs(write_tree(tmp_path, *runs))


def test_a_point_is_the_mean_over_seeds_against_the_mean_dense_score(tmp_path):
    rows = read(
        tmp_path, dense(0.7, seed=41, stderr=0.02), dense(0.9, seed=42, stderr=0.04),
        run(score=0.5, seed=42, measured_sparsity=0.75), run(score=0.7, seed=41, measured_sparsity=0.25),
    )  # fmt: skip
    reference, point = seed_means(rows)
    assert list(point) != [] and set(point) == set(POINT_COLUMNS)
    assert reference["mean_score"] == reference["dense_mean_score"] == point["dense_mean_score"] == 0.8
    assert reference["relative_percent"] == 100 and reference["normalized_drop"] == 0
    assert point["mean_score"] == 0.6 and point["seeds"] == (41, 42)
    assert point["relative_percent"] == pytest.approx(75, abs=1e-12)
    assert point["normalized_drop"] == pytest.approx(-0.25, abs=1e-12)
    # Student's 12.706 times the standard error 0.1
    assert point["interval_low"] == pytest.approx(0.6 - 1.2706, abs=1e-4)
    assert point["interval_high"] == pytest.approx(0.6 + 1.2706, abs=1e-4)
    assert (point["lowest_score"], point["highest_score"]) == (0.5, 0.7)
    assert point["measured_sparsity"] == 0.5 and point["chance"] == 0.5
    assert reference["mean_stderr"] == pytest.approx(0.03, abs=1e-15) and point["mean_stderr"] == 0.01
    assert point["dense_above_chance"] is True


def test_the_dense_reference_is_that_of_the_same_task_and_data_fraction(tmp_path):
    rows = read(
        tmp_path, dense(0.8), dense(0.6, fraction=0.5), dense(0.9, task="sst2"), run(score=0.3, fraction=0.5),
    )  # fmt: skip
    point = seed_means(rows)[2]
    assert (point["transfer"], point["data_fraction"], point["dense_mean_score"]) == ("sparse_transfer", 0.5, 0.6)


def test_what_needs_a_missing_dense_run_is_missing_and_not_zero(tmp_path):
    (point,) = seed_means(read(tmp_path, run(score=0.6)))
    for name in ("dense_mean_score", "relative_percent", "normalized_drop", "dense_above_chance", "interval_low"):
        assert point[name] is None
    (line,) = csv.DictReader(io.StringIO(csv_text([point])))
    assert line["dense_mean_score"] == line["relative_percent"] == line["interval_high"] == ""
    assert line["mean_score"] == "0.6" and line["seeds"] == "41" and line["normalized_drop"] == ""


def test_a_dense_score_of_zero_or_less_leaves_the_drop_undefined(tmp_path):
    rows = read(tmp_path, dense(-0.02, chance=0.0), run(score=0.1, chance=0.0))
    point = seed_means(rows)[1]
    assert point["dense_mean_score"] == -0.02 and point["normalized_drop"] is None
    assert point["relative_percent"] is None and point["dense_above_chance"] is False


def test_the_corrected_drop_is_of_what_dense_has_above_chance(tmp_path):
    rows = read(
        tmp_path, dense(0.9), run(score=0.7), dense(0.6, chance=0.0, task="cola"),
        run(score=0.3, chance=0.0, task="cola"), dense(0.51, task="rte"), run(score=0.5, task="rte"),
        dense(chance=None, task="sst2"), run(chance=None, task="sst2"),
    )  # fmt: skip
    found = {point["task"]: point for point in seed_means(rows) if point["transfer"] == "sparse_transfer"}
    assert found["qnli"]["corrected_drop"] == pytest.approx(-0.5)  # .2 of the .4 above .5
    assert found["cola"]["corrected_drop"] == found["cola"]["normalized_drop"] == -0.5
    assert found["rte"]["corrected_drop"] is None and found["rte"]["normalized_drop"] is not None
    assert found["sst2"]["corrected_drop"] is None


def test_the_corrected_slope_is_that_of_the_corrected_drops(tmp_path):
    (level,) = levels_of(read(tmp_path, dense(0.9), run(strength=0.2, score=0.8), run(strength=0.6, score=0.6)))
    assert level["corrected_slope"] == pytest.approx(-0.5 / 0.4)  # from -.25 to -.75
    assert level["theil_sen_slope"] == pytest.approx(-0.5 / 0.4 * 0.4 / 0.9)


def test_other_settings_with_a_transfer_are_passed_over(tmp_path):
    rows = read(tmp_path, dense(), dense(setting="multi_domain", task="movies"), dense(setting="translation"))
    assert list(figure_sets(rows)) == [(1, "lab/model-a", None)] and len(seed_means(rows)) == 1
    assert [is_fine_tuning_run(row) for row in rows] == [True, False, False]


def test_chance_is_unknown_where_one_seed_lacks_it(tmp_path):
    rows = read(tmp_path, dense(0.9), dense(0.9, seed=42, stderr=None), run(), run(seed=42))
    assert seed_means(rows)[1]["dense_above_chance"] is None


def test_points_are_ordered_from_easy_to_hard_and_from_weak_to_strong(tmp_path):
    strengths = [0.9, 0.1, 0.0, "1:8", "7:8", "4:8", "2:4", "1:4"]
    rows = read(tmp_path, *[run(strength=strength) for strength in strengths], dense(fraction=0.1), dense())
    table = seed_means(rows)
    found = [(point["data_fraction"], point["strength"]) for point in table]
    assert found == [
        (1.0, None), *[(1.0, strength) for strength in (0.0, 0.1, 0.9, "7:8", "4:8", "2:4", "1:4", "1:8")], (0.1, None)
    ]  # fmt: skip


def test_a_point_is_compared_with_the_dense_transfer_of_its_own_seeds(tmp_path):
    rows = read(tmp_path, dense(0.9), dense(0.5, seed=42), run(score=0.45), run(score=0.25, seed=42),
                run(strength=0.6, score=0.9))  # fmt: skip
    assert [point["normalized_drop"] for point in seed_means(rows)] == [0, pytest.approx(-0.5), 0]


def test_figures_are_one_per_setting_model_and_scope(tmp_path):
    rows = read(
        tmp_path, dense(), run(), run(magnitude_scope="layer"), run(strength="2:4"),
        dense(model="lab/model-b"), dense(setting=5),
    )  # fmt: skip
    rows.append({**rows[0], "transfer": None, "setting": 2, "folder": "no fine-tuning"})
    sets = figure_sets(rows)
    assert {key: [row["strength"] for row in members] for key, members in sets.items()} == {
        (1, "lab/model-a", "global"): [None, 0.5, "2:4"],
        (1, "lab/model-a", "layer"): [None, 0.5],
        (1, "lab/model-b", None): [None],
        (5, "lab/model-a", None): [None],
    }
    with pytest.raises(ValueError, match=r"belong in 4 figures \(setting 1, model lab/model-a, scope global; "):
        seed_means(rows)


def test_seeds_are_never_counted_twice(tmp_path):
    rows = read(tmp_path, run(seed=41), run(seed=41, score=0.9))
    with pytest.raises(ValueError, match="the same run"):
        seed_means(rows)


def test_a_table_is_empty_where_its_figure_would_be(tmp_path):
    only_freezing = read(tmp_path / "one", dense(), run("dense_transfer_freezing"))
    assert data_adequacy_table(only_freezing) == [] and len(four_transfers_table(only_freezing)) == 2
    only_sparse = read(tmp_path / "two", dense(), run())
    assert four_transfers_table(only_sparse) == [] and len(data_adequacy_table(only_sparse)) == 2
    other_setting = read(tmp_path / "three", dense(setting=5), run(setting=5))
    assert data_adequacy_table(other_setting) == []
    assert seed_means([]) == []


def test_four_transfers_leaves_out_what_has_only_dense_and_sparse(tmp_path):
    rows = read(
        tmp_path, dense(), run(), run("sparse_to_dense"), run(strength="2:4"), dense(fraction=0.1), run(fraction=0.1),
        dense(task="sst2"), run(task="sst2"), run("sparse_to_dense", "2:4", task="sst2"),
    )  # fmt: skip
    found = [(p["task"], p["transfer"], p["strength"], p["data_fraction"]) for p in four_transfers_table(rows)]
    assert found == [
        ("qnli", "dense_transfer", None, 1.0), ("qnli", "sparse_transfer", 0.5, 1.0),
        ("qnli", "sparse_to_dense", 0.5, 1.0),
        ("sst2", "dense_transfer", None, 1.0), ("sst2", "sparse_to_dense", "2:4", 1.0),
    ]  # fmt: skip


def levels_of(rows):
    table = seed_means(rows)
    found = curves_by(table, "task", "strength_kind", "transfer", "data_fraction")
    return [curve_statistics(points) for points in found.values()]


def falling(fraction, loss, strengths=(0.2, 0.4, 0.6), dense_score=0.8, **changes):
    """A dense run, and runs that lose `loss` of its score for each unit of sparsity."""
    scores = {strength: dense_score * (1 - loss * strength) for strength in strengths}
    compressed = [run(strength=strength, score=score, fraction=fraction) for strength, score in scores.items()]
    return [dense(dense_score, fraction=fraction, **changes), *compressed]


def test_statistics_of_a_curve(tmp_path):
    (level,) = levels_of(read(tmp_path, *falling(0.25, loss=0.5)))
    assert level["spearman"] == 1 and level["theil_sen_slope"] == pytest.approx(-0.5, abs=1e-12)
    assert level["difficulty"] == 0.75 and level["strengths"] == (0.2, 0.4, 0.6) and level["dense_mean_score"] == 0.8


def test_the_slope_of_nm_is_per_unit_of_sparsity_too(tmp_path):
    rows = read(tmp_path, dense(0.8), run(strength="6:8", score=0.7), run(strength="2:8", score=0.5))
    (level,) = levels_of(rows)  # from -0.125 at 1/4 to -0.375 at 3/4
    assert level["theil_sen_slope"] == pytest.approx(-0.5, abs=1e-12) and level["spearman"] is None


def test_slopes_in_the_order_of_difficulty(tmp_path):
    steeper = read(tmp_path / "one", *falling(1.0, 0.1), *falling(0.5, 0.2), *falling(0.1, 0.3))
    assert slope_order(levels_of(steeper)) == (True, "3 of 3 levels compared")
    flatter = read(tmp_path / "two", *falling(1.0, 0.1), *falling(0.5, 0.3), *falling(0.1, 0.2))
    assert slope_order(levels_of(flatter)) == (False, "3 of 3 levels compared")


def test_levels_that_cannot_be_compared_are_left_out_or_said(tmp_path):
    at_chance = falling(0.1, 0.05, dense_score=0.51)
    rows = read(tmp_path / "one", *falling(1.0, 0.1), *falling(0.5, 0.2), *at_chance, run(fraction=0.25))
    assert slope_order(levels_of(rows)) == (True, "2 of 4 levels compared")
    single = read(tmp_path / "two", *falling(1.0, 0.1), *at_chance)
    assert slope_order(levels_of(single)) == (None, "1 of 2 levels can be compared")
    ranges = read(tmp_path / "three", *falling(1.0, 0.1), *falling(0.5, 0.2, strengths=(0.2, 0.4)))
    assert slope_order(levels_of(ranges)) == (None, "the levels were measured at different strengths")
    two = read(tmp_path / "four", *(run for share, loss in ((1.0, 0.1), (0.5, 0.2))
                                    for run in falling(share, loss, strengths=(0.2, 0.4))))  # fmt: skip
    assert all(level["theil_sen_slope"] is not None for level in levels_of(two))
    assert slope_order(levels_of(two)) == (
        None, "two strengths give a difference, not a slope: measure a third",
    )  # fmt: skip
    halves = read(tmp_path / "halves", *(one for share, loss in ((1.0, 0.1), (0.5, 0.2)) for one in (
        dense(0.8, fraction=share),
        *(run(strength=nm, score=0.8 * (1 - loss * amount), fraction=share)
          for nm, amount in (("6:8", 0.25), ("4:8", 0.5), ("2:4", 0.5))),
    )))  # fmt: skip
    assert slope_order(levels_of(halves)) == (None, TWO_AMOUNTS)
    equal = [{**level, "difficulty": 0.3} for level in levels_of(rows)]
    assert slope_order(equal) == (None, "several levels have the same difficulty")


def test_csv_holds_every_column_in_order(tmp_path):
    table = seed_means(read(tmp_path, dense(0.9), run(strength="6:8", score=0.6, seed=42)))
    header, first, second = csv.reader(io.StringIO(csv_text(table)))
    assert tuple(header) == POINT_COLUMNS
    expected = {
        "task": "qnli", "data_fraction": "1.0", "transfer": "sparse_transfer", "strength_kind": "nm",
        "strength": "6:8", "requested_sparsity": "0.25", "metric": "accuracy", "seeds": "42", "magnitude_scope": "",
        "dense_above_chance": "True",
    }  # fmt: skip
    line = dict(zip(header, second, strict=True))
    assert {name: line[name] for name in expected} == expected
    assert first[header.index("strength")] == "" and first[header.index("mean_score")] == "0.9"


def test_models_go_by_a_name_without_whose_they_are_or_where_they_lie(tmp_path):
    paths = ["lab/model-a", "models/model-a/", "model-a", "cache/model-a/model", "C:\\models\\model-a"]
    assert [model_name(path) for path in paths] == ["model-a"] * 5
    assert model_name("model") == "model" and model_name("model b") == "model b"
    names = model_names(["lab/model-a", "copy/model-a", "lab/model-b"])
    assert names["lab/model-b"] == "model-b" and len(set(names.values())) == 3
    assert all(name.startswith("model-a-") for model, name in names.items() if model != "lab/model-b")
    runs = [dense(model="one/model-a/model"), dense(model="two/model-a"), perplexity_run(level="en/a.txt"),
            perplexity_run(level="de/a.txt"), perplexity_run(model="b", level="a.txt.gz")]  # fmt: skip
    rows = with_short_names(read(tmp_path, *runs))
    assert {row["model"][:8] for row in rows} == {"model-a-", "b"} and len({row["model"] for row in rows}) == 4
    assert rows[0]["task"] == "qnli" and rows[0]["level"] == 100
    assert all(row["level"] == row["task"] and row["task"].startswith("a-") for row in rows[2:])
    assert len({row["task"] for row in rows[2:]}) == 3 and with_short_names(rows) == rows


def test_a_perplexity_point_is_the_mean_over_seeds_with_the_paired_difference_to_dense(tmp_path):
    rows = read(
        tmp_path, perplexity_run(losses=(1.0, 2.0, 3.0)),
        perplexity_run("wanda", 0.5, (1.5, 2.0, 4.0), seed=1, measured_sparsity=0.25),
        perplexity_run("wanda", 0.5, (2.5, 3.0, 5.0), seed=0, measured_sparsity=0.75),
    )  # fmt: skip
    reference, point = perplexity_table(rows)
    assert tuple(sorted(point)) == tuple(sorted(PERPLEXITY_COLUMNS))
    assert (reference["compression"], reference["loss_difference"], reference["calibrated"]) == ("dense", 0, False)
    assert reference["mean_perplexity"] == math.exp(2)
    assert point["mean_perplexity"] == pytest.approx((math.exp(2.5) + math.exp(3.5)) / 2, rel=1e-12)
    assert (point["lowest_perplexity"], point["highest_perplexity"]) == (math.exp(2.5), math.exp(3.5))
    # Means over seeds 2, 2.5, 4.5 against 1, 2, 3: differences 1, .5, 1.5, whose deviation is .5.
    assert point["loss_difference"] == pytest.approx(1, abs=1e-12)
    assert point["loss_difference_stderr"] == pytest.approx(0.5 / math.sqrt(3), abs=1e-12)
    assert (point["measured_sparsity"], point["windows"], point["vocabulary"]) == (0.5, 3, 1000)
    assert (point["model"], point["text"], point["seeds"]) == ("lab/model-a", "texts/wiki.test.txt.gz", (0, 1))
    assert point["calibrated"] and point["parameter_ratio"] is None and point["mean_stderr"] == 0.5


def test_windows_that_are_not_the_dense_ones_are_not_subtracted(tmp_path):
    compressed = perplexity_run("rtn", ("bits", 4), (1.0, 2.0))
    for name, reference in {"none": [], "other": [perplexity_run(losses=(1.0,))]}.items():
        point = perplexity_table(read(tmp_path / name, *reference, compressed))[-1]
        assert point["loss_difference"] is None and point["loss_difference_stderr"] is None
    rows = read(tmp_path / "lost", perplexity_run(), compressed)
    (tmp_path / "lost" / "001" / run_folder.ITEMS_FILE).unlink()
    assert perplexity_table(rows)[1]["loss_difference"] is None
    rows = read(tmp_path / "single", perplexity_run(losses=(2.0,)), perplexity_run("rtn", ("bits", 4), (2.5,)))
    point = perplexity_table(rows)[1]
    assert point["loss_difference"] == 0.5 and point["loss_difference_stderr"] is None


def test_perplexity_is_ordered_by_kind_strength_and_compression(tmp_path):
    cells = [
        ("low_rank", ("rank", 8)), ("low_rank", ("rank", 16)), ("rtn", ("bits", 3)), ("gptq", ("bits", 4)),
        ("rtn", ("bits", 4)), ("wanda", "2:4"), ("wanda", "4:8"), ("wanda", 0.5), ("magnitude", 0.5), ("wanda", 0.1),
    ]  # fmt: skip
    rows = read(tmp_path, *[perplexity_run(*cell) for cell in cells], perplexity_run())
    table = perplexity_table(rows)
    assert [(point["compression"], point["strength"]) for point in table] == [
        ("dense", None), ("wanda", 0.1), ("magnitude", 0.5), ("wanda", 0.5), ("wanda", "4:8"), ("wanda", "2:4"),
        ("rtn", 4), ("gptq", 4), ("rtn", 3), ("low_rank", 16), ("low_rank", 8),
    ]  # fmt: skip
    curves = curves_by(table, "strength_kind", "compression", "magnitude_scope")
    assert {key: len(points) for key, points in curves.items()} == {
        ("sparsity", "magnitude", "layer"): 1, ("sparsity", "wanda", None): 2, ("nm", "wanda", None): 2,
        ("bits", "rtn", None): 2, ("bits", "gptq", None): 1, ("rank", "low_rank", None): 2,
    }  # fmt: skip


def test_models_texts_and_magnitude_scopes_are_not_mixed(tmp_path):
    rows = read(
        tmp_path, perplexity_run(losses=(1.0,)), perplexity_run(losses=(2.0,), model="lab/model-b"),
        perplexity_run(losses=(3.0,), level="wikitext2"), perplexity_run("magnitude", 0.5, (1.5,)),
        perplexity_run("magnitude", 0.5, (1.75,), magnitude_scope="global"),
        perplexity_run("wanda", 0.5, (4.0,), level="wikitext2"),
    )  # fmt: skip
    assert list(perplexity_sets(rows)) == [
        ("perplexity", "lab/model-a", WIKI), ("perplexity", "lab/model-a", "wikitext2"),
        ("perplexity", "lab/model-b", WIKI),
    ]  # fmt: skip
    found = [(point["text"], point["magnitude_scope"], point["loss_difference"]) for point in perplexity_table(rows)]
    assert found == [
        (WIKI, None, 0), (WIKI, "layer", 0.5), (WIKI, "global", 0.75), ("wikitext2", None, 0), ("wikitext2", None, 1),
        (WIKI, None, 0),
    ]  # fmt: skip


def test_perplexity_and_fine_tuning_pass_each_other_over(tmp_path):
    rows = read(tmp_path, dense(), run(), perplexity_run(), perplexity_run("wanda", 0.5))
    assert len(perplexity_table(rows)) == 2 and len(seed_means(rows)) == 2
    assert list(figure_sets(rows)) == [(1, "lab/model-a", "global")]
    assert data_adequacy_table(rows) == data_adequacy_table(rows[:2]) != []
    assert perplexity_table(rows[:2]) == []


def test_perplexities_of_different_windows_are_never_compared(tmp_path):
    rows = read(tmp_path, perplexity_run(), perplexity_run("wanda", 0.5, recipe="other windows"))
    with pytest.raises(ValueError, match=r"setting perplexity, .* different recipes"):
        perplexity_table(rows)


def test_texts_go_by_a_name_without_where_they_lie_or_how_they_are_stored():
    names = {
        "data/text/wiki-raw.test.txt.gz": "wiki-raw.test", "c4/train.jsonl.gz": "train", "wikitext2": "wikitext2",
        "C:\\texts\\a b.parquet": "a b", ".txt": ".txt",
    }  # fmt: skip
    assert {text: text_name(text) for text in names} == names
    distinct = text_names(["one/train.txt", "two/train.txt", "wikitext2"])
    assert distinct["wikitext2"] == "wikitext2" and len(set(distinct.values())) == 3


def test_a_perplexity_csv_leaves_unknown_fields_empty(tmp_path):
    table = perplexity_table(read(tmp_path, perplexity_run("low_rank", ("rank", 8), parameter_ratio=0.25)))
    (line,) = csv.DictReader(io.StringIO(csv_text(table, PERPLEXITY_COLUMNS)))
    assert tuple(line) == PERPLEXITY_COLUMNS
    assert (line["strength_kind"], line["strength"], line["parameter_ratio"]) == ("rank", "8", "0.25")
    assert line["loss_difference"] == line["magnitude_scope"] == ""


def test_file_names_are_short_ascii_and_distinct():
    names = file_names(["model b", "a/b", "a:b", "模型", "x" * 240, "plain_1.5"])
    assert names["model b"] == "model-b" and names["plain_1.5"] == "plain_1.5"
    assert names["模型"].startswith("-") and names["x" * 240].startswith("x" * 60 + "-")
    assert len(set(names.values())) == 6 and all(name.isascii() and len(name) < 70 for name in names.values())


def row(kind, strength, **known):
    return {"strength_kind": kind, "strength": strength, "requested_sparsity": known.pop("requested", 0.0), **known}


@pytest.mark.parametrize(
    ("kind", "strength", "known", "expected"),
    [
        (None, None, {}, 1.0),
        ("sparsity", 0.5, {"requested": 0.5}, 0.5 + 1 / 16),  # half of the values and a bit each
        ("sparsity", 0.5, {"requested": 0.5, "measured_sparsity": 0.6}, 0.4 + 1 / 16),
        ("sparsity", 0.05, {"requested": 0.05}, 1.0),  # .95 + .0625 is more than dense
        ("nm", "2:4", {}, 0.5 + 0.5 * 2 / 16),  # two bits for each value that is kept
        ("nm", "1:8", {}, 0.125 + 0.125 * 3 / 16),
        ("nm", "7:8", {}, 0.875 + 1 / 16),  # three bits for 7 of 8 are more than a bitmap
        ("rank", 64, {"parameter_ratio": 0.4}, 0.4),
        ("rank", 64, {"parameter_ratio": None}, None),
        ("rank", 64, {}, None),
    ],
)
def test_what_compressed_weights_take_of_the_dense_bytes(kind, strength, known, expected):
    assert bytes_fraction(row(kind, strength, **known)) == (expected and pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"group_size": 128, "symmetric": False}, (4 + 20 / 128) / 16),  # scale and zero point: 16 + 4 bits
        ({"group_size": 32, "symmetric": True}, (4 + 16 / 32) / 16),
        ({"group_size": -1, "symmetric": False}, None),
        ({"group_size": 128}, None),
        (None, None),
    ],
)
def test_bits_come_with_their_scales(arguments, expected):
    found = bytes_fraction(row("bits", 4), arguments)
    assert found == (expected and pytest.approx(expected, abs=1e-12))


def test_a_table_says_what_each_point_takes(tmp_path):
    write_tree(tmp_path, level_run(), level_run("magnitude", 0.5), level_run("rtn", ("bits", 3)))
    write_tree(tmp_path, level_run("gptq", ("bits", 4)), group_size=64, symmetric=False)
    table = level_table(run_folder.read_runs(tmp_path))
    found = {point["compression"]: point["bytes_fraction"] for point in table}
    assert found == {"dense": 1.0, "magnitude": 0.5625, "rtn": None, "gptq": (4 + 20 / 64) / 16}
