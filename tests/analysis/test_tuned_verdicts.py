import numpy as np
import pytest
from synthetic_runs import run, write_tree

from analysis import estimators, tuned_sections, verdicts
from analysis.contrasts import difference_table
from analysis.kinds import tuning_parts
from analysis.replicates import resampled_figures
from harness import run_folder

ITEMS = 400
STRENGTHS = (0.2, 0.4, 0.6)


def answered(score, strength=None, seed=41, items=ITEMS, **changes):
    """A run with the score given, wrong on items drawn for this run alone; classes are of equal size."""
    labels = np.arange(items) % 2
    wrong = np.random.default_rng([seed, round(1000 * score)]).permutation(items)[: round((1 - score) * items)]
    predictions = labels.copy()
    predictions[wrong] = 1 - predictions[wrong]
    transfer = "dense_transfer" if strength is None else "sparse_transfer"
    kept = {"prediction": predictions, "label": labels}
    return run(transfer, strength, float(np.mean(predictions == labels)), seed=seed, items=kept, **changes)


def curve(*scores, dense=0.9, strengths=STRENGTHS, **changes):
    return [
        answered(dense, **changes),
        *[answered(score, strength, **changes) for score, strength in zip(scores, strengths, strict=True)],
    ]


@pytest.fixture
def measure(tmp_path):
    return lambda *runs: verdicts.measure(run_folder.read_runs(write_tree(tmp_path, *runs)), resamples=500)


def test_a_slope_and_its_interval(measure):
    found = measure(*curve(0.85, 0.8, 0.75), *curve(0.85, 0.8, 0.75, seed=42))
    (level,) = found.levels
    assert (level["setting"], level["task"], level["level"], level["strength_kind"]) == (1, "qnli", "100 %", "sparsity")
    slope = -0.05 / 0.9 / 0.2
    assert level["slope"] == pytest.approx(slope) and level["corrected_slope"] == pytest.approx(slope * 0.9 / 0.4)
    assert level["slope_low"] < slope < level["slope_high"] < 0
    assert (level["items"], level["seeds"], level["points"]) == (ITEMS, 2, 3)
    assert level["spearman"] == 1 and level["amount_at_5"] == pytest.approx(0.18, abs=1e-9)  # .05 / (.05 / .9 / .2)
    drops = [(point["strength"], point["normalized_drop"]) for point in found.points]
    assert drops == [(strength, pytest.approx(slope * strength)) for strength in STRENGTHS]
    assert all(point["drop_low"] < point["normalized_drop"] < point["drop_high"] for point in found.points)


def test_the_interval_is_as_wide_as_theory_says(measure):
    """Of a single point and seed, s / a - 1: its relative variance is that of two independent shares."""
    (level,) = measure(*curve(0.6, strengths=(0.5,)))[0]
    relative = 0.4 / 0.6 / ITEMS + 0.1 / 0.9 / ITEMS
    half = 1.966 * (0.6 / 0.9) * relative**0.5
    assert level["drop_high"] - level["drop_low"] == pytest.approx(2 * half, rel=0.2)


def test_less_data_that_falls_faster_is_monotonic_and_the_contrary_is_not(measure, tmp_path):
    easy, hard = curve(0.89, 0.88, 0.87), curve(0.8, 0.7, 0.6, fraction=0.1)
    (raw, corrected) = measure(*easy, *hard).orders
    assert (raw["measure"], corrected["measure"]) == ("raw", "chance-corrected")
    assert raw["verdict"] == corrected["verdict"] == verdicts.MONOTONIC and raw["order_share"] > 0.95
    other = run_folder.read_runs(write_tree(
        tmp_path / "other", *curve(0.8, 0.7, 0.6), *curve(0.89, 0.88, 0.87, fraction=0.1),
    ))  # fmt: skip
    assert [row["verdict"] for row in verdicts.measure(other, 500).orders] == [verdicts.NOT_MONOTONIC] * 2


def test_an_easy_and_a_hard_task_are_levels_of_their_category(measure):
    found = measure(*curve(0.89, 0.88, 0.87, task="sst2"), *curve(0.8, 0.7, 0.6, task="rte"), *curve(0.89, 0.88, 0.87))
    levels = [row for row in found.levels if row["setting"] == 5]
    assert [(row["task"], row["level"]) for row in levels] == [
        ("natural language inference", "QNLI"), ("natural language inference", "RTE"),
    ]  # fmt: skip
    assert levels[1]["difficulty"] == pytest.approx(estimators.human_gap(0.936, 0.9))
    orders = [row for row in found.orders if row["setting"] == 5]
    assert [row["verdict"] for row in orders] == [verdicts.MONOTONIC] * 2


def test_the_transfers_against_each_other_are_measured_too(tmp_path):
    repaired = {"seed": 41, "strength_kind": "sparsity"}
    tree = write_tree(
        tmp_path, *curve(0.8, 0.7, 0.6), {**answered(0.85, 0.4, **repaired), "transfer": "sparse_to_dense"}
    )
    rows = run_folder.read_runs(tree)
    (part,) = tuning_parts(rows, resamples=500)
    assert part.tables["differences"] == difference_table(rows, resamples=500)
    assert [(row["strength"], row["against"]) for row in part.tables["differences"]] == [
        (0.4, "dense_transfer"), (0.4, "sparse_transfer"),
    ]  # fmt: skip


def test_tasks_have_draws_of_their_own_and_data_fractions_share_theirs(tmp_path):
    places = [(task, share) for task in ("qnli", "rte") for share in (1.0, 0.1)]
    rows = run_folder.read_runs(write_tree(
        tmp_path, *[answered(0.8, strength, task=task, fraction=share) for task, share in places
                    for strength in (None, 0.5)],
    ))  # fmt: skip
    drawn = {key.task: [level.replicates.dense.both[:, 0] for level in next(iter(found.values()))]
             for key, found in resampled_figures(rows, 100, 0) if key.setting == 1}  # fmt: skip
    np.testing.assert_array_equal(drawn["qnli"][0], drawn["qnli"][1])
    assert abs(np.corrcoef(drawn["qnli"][0], drawn["rte"][0])[0, 1]) < 0.4


def test_seeds_that_differ_widen_the_interval(measure, tmp_path):
    steady = measure(*curve(0.7, 0.6, 0.5), *curve(0.7, 0.6, 0.5, seed=42), *curve(0.7, 0.6, 0.5, seed=43)).levels
    wild = verdicts.measure(run_folder.read_runs(write_tree(
        tmp_path / "wild", *curve(0.85, 0.8, 0.75), *curve(0.7, 0.6, 0.5, seed=42), *curve(0.55, 0.5, 0.5, seed=43),
    )), 500).levels  # fmt: skip
    widths = [level["slope_high"] - level["slope_low"] for (level,) in (steady, wild)]
    assert widths[1] > 1.5 * widths[0]


def test_why_there_are_no_intervals_is_said(measure):
    found = measure(
        answered(0.8, 0.5), *curve(0.8, 0.7, 0.6, task="rte"), answered(0.8, 0.7, seed=42, task="rte"),
        run("dense_transfer", None, task="mnli"), run(task="mnli"), *curve(0.5, 0.5, 0.5, dense=0.5, task="cola"),
    )  # fmt: skip
    reasons = {row["task"]: row["reason"] for row in found.levels}
    assert reasons["qnli"] == "no dense transfer"
    assert reasons["rte"] == "dense and strengths do not have the same seeds"
    assert reasons["mnli"] == "no predictions on the same items"
    assert reasons["cola"] == verdicts.NOT_ABOVE_CHANCE
    assert all(row["slope_low"] is None for row in found.levels)


def test_the_summary_names_tasks_levels_and_verdicts(measure):
    lines = tuned_sections.trend_lines(measure(*curve(0.89, 0.88, 0.87), *curve(0.8, 0.7, 0.6, fraction=0.1)))
    assert lines[4].startswith("| QNLI | sparsity | 100 % | -0.056 [-") and lines[4].endswith(" | 1 | 400 |")
    assert " | -0.125 [-" in lines[4]  # of .4 above chance
    assert lines[5].startswith("| QNLI | sparsity | 10 % | -0.556 [-")
    assert lines[-2].startswith("- QNLI by unstructured sparsity, raw slopes: monotonic: each harder level falls")
    assert tuned_sections.trend_lines(verdicts.Trends([], [], [])) == []


def test_a_single_level_has_no_verdict_to_print(measure):
    lines = tuned_sections.trend_lines(measure(*curve(0.8, 0.7, 0.6)))
    assert not [line for line in lines if line.startswith("- ")] and len(lines) == 6


def test_the_order_of_the_folders_changes_no_interval(measure, tmp_path):
    """The dense runs of the seeds change places: a seed is compared with its own."""
    runs = [*curve(0.85, 0.8, 0.75), *curve(0.6, 0.55, 0.5, dense=0.7, seed=42)]
    (level,) = measure(*runs).levels
    turned = run_folder.read_runs(write_tree(tmp_path / "turned", runs[4], *runs[1:4], runs[0], *runs[5:]))
    (other,) = verdicts.measure(turned, 500).levels
    names = ("slope", "slope_low", "slope_high")
    assert [level[name] for name in names] == pytest.approx([other[name] for name in names])


@pytest.mark.parametrize(
    ("seeds", "told"),
    [((41,), "One seed; band: 95 % interval over items of one training."),
     ((41, 42), "Mean of 2 seeds; band: lowest to highest seed.")],
)  # fmt: skip
def test_the_band_of_one_seed_is_over_items(tmp_path, seeds, told):
    """An interval over two seeds would cover the panel."""
    runs = [own for seed in seeds for task in ("qnli", "rte") for own in curve(0.85, 0.8, 0.7, task=task, seed=seed)]
    (part,) = tuning_parts(run_folder.read_runs(write_tree(tmp_path, *runs)), 200)
    drawn = {name: plot for plot in part.plots for name in ("data_adequacy", "human_gap") if name in plot.stem}
    for name in drawn:
        assert told in drawn[name].draw().get_supxlabel().replace("\n", " ")
    points = [row for row in drawn["data_adequacy"].table if row["task"] == "qnli" and row["strength"]]
    assert all(row["drop_low"] < row["normalized_drop"] < row["drop_high"] for row in points)
    assert all(row["corrected_low"] < row["corrected_drop"] < row["corrected_high"] for row in points)
    raw, floor = drawn["human_gap"].draw().axes
    for axes, names in ((raw, ("drop_low", "drop_high")), (floor, ("corrected_low", "corrected_high"))):
        assert len(axes.collections) == 2 * (seeds == (41,))  # two seeds with one score have no range
        if axes.collections:
            heights = axes.collections[0].get_paths()[0].vertices[:, 1]
            expected = [100 + 100 * row[name] for row in points for name in names]
            assert (heights.min(), heights.max()) == pytest.approx((min(expected), max(expected)))
