"""Curves of made-up runs, resampled, against loops and hand arithmetic."""

import numpy as np
import pytest
from synthetic_runs import level_run, write_tree

from analysis import results
from analysis.levels import level_tables
from analysis.uncertainty import bootstrap, resampling
from analysis.uncertainty.resampling import CurveKey

WANDA = CurveKey("sparsity", "wanda", None)


@pytest.fixture
def curves(tmp_path):
    def read(*runs, resamples=200, seed=0):
        ((_, members),) = level_tables.level_sets(results.read_runs(write_tree(tmp_path, *runs))).items()
        return resampling.resampled_curves(members, resamples, seed)

    return read


def outcomes(generator, rate, items=40):
    return (generator.random(items) < rate).astype(float).tolist()


def test_the_first_row_is_the_sample_and_the_rest_draw_whole_groups(curves):
    groups = ["a"] * 3 + ["b"] * 2 + ["c"]
    dense, other = (1, 1, 0, 1, 1, 0), (1, 0, 0, 0.5, 1, 1)
    found = curves(
        level_run(levels={"easy": dense, "hard": (1, 0, 1, 0, 0, 1)}, groups=groups),
        level_run("wanda", 0.5, {"easy": other, "hard": (0,) * 6}, groups=groups),
    )[WANDA]
    easy, hard = (level.replicates for level in found)
    assert (easy.dense[0], easy.scores[0, 0], hard.scores[0, 0]) == pytest.approx((4 / 6, 3.5 / 6, 0))
    assert (easy.items, easy.clusters, easy.seeds) == (6, 3, 1)
    assert easy.losses == pytest.approx({"a": 1 / 3, "b": 0.25, "c": -1.0})
    # Two of three groups are drawn: means of all pairs, from sums 2 2 0, sizes 3 2 1.
    sums, sizes = np.array([2, 2, 0]), np.array([3, 2, 1])
    allowed = {(sums[i] + sums[j]) / (sizes[i] + sizes[j]) for i in range(3) for j in range(3)}
    assert set(easy.dense[1:].astype(float).round(6).tolist()) == {round(value, 6) for value in allowed}
    # The same groups at the same place in every array: dense 2/3 means only a was drawn, whose hard mean is 2/3 too.
    only_a = np.isclose(easy.dense, 2 / 3) & np.isclose(easy.scores[:, 0], 1 / 3)
    assert only_a.any() and np.allclose(hard.dense[only_a], 2 / 3)


def test_replicates_equal_a_loop_over_items_in_plain_python(curves):
    rng = np.random.default_rng(7)
    groups = [f"group {rng.integers(9)}" for _ in range(40)]
    kept, runs = {}, []
    for name, seeds in (("dense", (0,)), ("wanda", (0, 1))):
        for seed in seeds:
            for strength in (None,) if name == "dense" else (0.3, 0.6):
                kept[strength, seed] = outcomes(rng, 0.9 - (strength or 0))
                runs.append(level_run(name, strength, {"easy": kept[strength, seed]}, seed, groups=groups))
    found = curves(*runs, resamples=50, seed=3)[WANDA][0].replicates
    names = sorted(set(groups))
    counts = np.concatenate(list(bootstrap._chunks(len(names), 50, resampling._generator(3, "mmlu"))))
    weights = bootstrap.draw_counts(2, 50, resampling._generator(3, (0, 1)))
    for row, drawn in enumerate(counts, start=1):
        times = dict(zip(names, drawn, strict=True))
        total = sum(times[group] for group in groups)

        def mean(key, times=times, total=total):
            return sum(times[group] * score for group, score in zip(groups, kept[key], strict=True)) / total

        assert found.dense[row] == pytest.approx(mean((None, 0)), rel=1e-6)
        for column, strength in enumerate((0.3, 0.6)):
            by_seed = [mean((strength, seed)) for seed in (0, 1)]
            assert found.scores_of_items[row, column] == pytest.approx(sum(by_seed) / 2, rel=1e-6)
            expected = np.average(by_seed, weights=weights[row])
            assert found.scores[row, column] == pytest.approx(expected, rel=1e-6)


def test_levels_and_settings_that_share_groups_are_drawn_together_and_others_apart(tmp_path):
    rng = np.random.default_rng(0)
    groups = [f"subject {number % 10}" for number in range(40)]
    same = outcomes(rng, 0.6)
    of_level = {"b": {"dataset": "piqa"}}
    tree = write_tree(
        tmp_path,
        *[
            level_run(name, strength, {"a": same, "b": same}, groups=groups, of_level=of_level, setting=setting)
            for setting in (5, 6)
            for name, strength in (("dense", None), ("wanda", 0.5))
        ],
    )
    drawn = [
        [level.replicates.dense for level in resampling.resampled_curves(members, 100, 0)[WANDA]]
        for members in level_tables.level_sets(results.read_runs(tree)).values()
    ]
    (five_a, five_b), (six_a, six_b) = drawn
    assert (five_a == six_a).all() and (five_b == six_b).all()
    assert not (five_a == five_b)[1:].all()


def test_the_same_seed_draws_the_same_and_another_others(curves):
    runs = level_run(levels={"easy": (1, 0, 1, 1)}), level_run("wanda", 0.5, {"easy": (1, 0, 0, 1)})
    one = curves(*runs)[WANDA][0].replicates.dense
    again = curves(seed=0)[WANDA][0].replicates.dense
    other = curves(seed=1)[WANDA][0].replicates.dense
    assert (one == again).all() and not (one == other).all()


def test_only_items_that_all_runs_have_are_drawn(curves):
    found = curves(
        level_run(levels={"easy": (1, 0, 1)}, items=["a", "b", "c"]),
        level_run("wanda", 0.5, {"easy": (1, 1, 0)}, items=["d", "c", "b"]),
        level_run("wanda", 0.6, {"easy": (0, 0, 1)}, items=["a", "b", "c"]),
    )[WANDA][0].replicates
    # b and c: dense 0 and 1; at .5 0 and 1, at .6 0 and 1.
    assert found.items == 2 and found.dense[0] == 0.5 and found.scores[0].tolist() == [0.5, 0.5]


def test_what_cannot_be_drawn_says_why(tmp_path, curves):
    strange = level_run("wanda", 0.5, {"easy": (1, 0), "other": (1, 1), "new": (1, 0)}, items=["x", "y"])
    levels = curves(level_run(levels={"easy": (1, 1), "other": (1, 0)}), strange)[WANDA]
    assert [level.replicates for level in levels] == [None] * 3
    assert [level.reason for level in levels] == [
        "the runs have no items in common",
        "the runs have no items in common",
        "there is no dense run of this level",
    ]
    (tmp_path / "001" / results.ITEMS_FILE).unlink()
    assert curves()[WANDA][0].reason == "some runs kept no outcomes per item"


def test_a_resample_without_a_levels_groups_has_no_score(curves):
    # The hard level has items of one of three groups alone; two of three are drawn.
    items, groups = [f"item {number}" for number in range(6)], ["a", "a", "b", "b", "c", "c"]
    runs = []
    for name, strength in (("dense", None), ("wanda", 0.5)):
        run = level_run(name, strength, {"easy": (1, 0, 1, 0, 1, 0), "hard": (1, 0)}, items=items, groups=groups)
        run["items"]["item"], run["items"]["group"] = (
            np.concatenate([run["items"][name][:6], run["items"][name][:2]]) for name in ("item", "group")
        )
        runs.append(run)
    easy, hard = (level.replicates for level in curves(*runs)[WANDA])
    missing = np.isnan(hard.dense)
    assert 0 < missing.mean() < 0.7 and not np.isnan(easy.dense).any() and not missing[0]
