"""Curves of made-up runs, resampled, against loops and hand arithmetic."""

import numpy as np
import pytest
from synthetic_runs import level_run, write_tree

from analysis import resampling
from analysis.replicates import CurveKey, named_generator, resampled_curves
from analysis.table import level_sets
from harness import run_folder

WANDA = CurveKey("sparsity", "wanda", None)


@pytest.fixture
def curves(tmp_path):
    def read(*runs, resamples=200, seed=0):
        ((_, members),) = level_sets(run_folder.read_runs(write_tree(tmp_path, *runs))).items()
        return resampled_curves(members, resamples, seed)

    return read


def outcomes(generator, rate, items=40):
    return (generator.random(items) < rate).astype(float).tolist()


def test_the_first_row_is_the_sample_and_the_rest_weigh_whole_groups(curves):
    groups = ["a"] * 3 + ["b"] * 2 + ["c"]
    dense, other = (1, 1, 0, 1, 1, 0), (1, 0, 0, 0.5, 1, 1)
    found = curves(
        level_run(levels={"easy": dense, "hard": (1, 0, 1, 0, 0, 1)}, groups=groups),
        level_run("wanda", 0.5, {"easy": other, "hard": (0,) * 6}, groups=groups),
        resamples=2000,
    )[WANDA]
    easy, hard = (level.replicates for level in found)
    assert (easy.dense.both[0, 0], easy.points.both[0, 0], hard.points.both[0, 0]) == pytest.approx((4 / 6, 3.5 / 6, 0))
    assert (easy.points.items, easy.points.clusters, easy.points.seeds) == (6, 3, 1)
    assert easy.losses == pytest.approx({"a": 1 / 3, "b": 0.25, "c": -1.0})
    # Groups with weights x, y, z: the dense scores of a, b and c add up to 2x + 2y + 0 of 3x + 2y + z items, those of
    # hard to 2x + 0 + z. From both, the compressed ones, x + 1.5y + z, follow if and only if the weights are the same.
    one, two = easy.dense.both[1:, 0].astype(float), hard.dense.both[1:, 0].astype(float)
    x, y, z = np.linalg.solve([[2, 2, 0], [2, 0, 1], [3, 2, 1]], [one, two, np.ones(2000)])
    assert min(x.min(), y.min(), z.min()) > -1e-5
    assert easy.points.both[1:, 0] == pytest.approx(x + 1.5 * y + z, abs=1e-5)
    assert (hard.points.both == 0).all()
    # Exponential weights with the same mean: each is the largest of three as often, x / (x + y) uniform.
    assert np.bincount(np.argmax([x, y, z], axis=0)) / 2000 == pytest.approx([1 / 3] * 3, abs=0.04)
    assert np.quantile(x / (x + y), [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.04)


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
    drawn = named_generator(3, "mmlu").exponential(size=(50, len(names)))
    weights = resampling.seed_weights(2, 50, named_generator(3, (0, 1)))
    luck = named_generator(3, "mmlu", "unseen").exponential(size=51)
    size = design_effect(kept, groups)
    for row, of_groups in enumerate(drawn, start=1):
        own = dict(zip(names, of_groups, strict=True))
        total = sum(own[group] for group in groups)

        def mean(key, own=own, total=total):
            return sum(own[group] * score for group, score in zip(groups, kept[key], strict=True)) / total

        assert found.dense.both[row] == pytest.approx(mean((None, 0)), rel=1e-6)
        for column, strength in enumerate((0.3, 0.6)):
            by_seed = [mean((strength, seed)) for seed in (0, 1)]
            assert found.points.of_items[row, column] == pytest.approx(sum(by_seed) / 2, rel=1e-6)
            expected = sum(weight * score for weight, score in zip(weights[row], by_seed, strict=True))
            assert found.points.both[row, column] == pytest.approx(expected, rel=1e-5)
        assert found.dense.unseen[row] == pytest.approx(size * luck[row] / (total + size * luck[row]), rel=1e-9)
    assert found.dense.unseen[0] == 0 and found.points.unseen is found.dense.unseen
    assert (found.points.lowest, found.points.highest) == (0, 1)


def design_effect(kept, groups):
    """1 + (m - 1) r of the items' changes: analysis of variance, drawn towards 1 by two items that changed."""
    changes = [
        sum(kept[strength, seed][item] for strength in (0.3, 0.6) for seed in (0, 1)) / 4 - kept[None, 0][item]
        for item in range(40)
    ]
    members = {name: [change for own, change in zip(groups, changes, strict=True) if own == name] for name in groups}
    sizes, mean = [len(own) for own in members.values()], sum(changes) / 40
    between = sum(len(own) * (sum(own) / len(own) - mean) ** 2 for own in members.values()) / (len(sizes) - 1)
    within = sum((one - sum(own) / len(own)) ** 2 for own in members.values() for one in own) / (40 - len(sizes))
    mean_size = sum(size**2 for size in sizes) / 40
    typical = (40 - mean_size) / (len(sizes) - 1)
    correlation = min(1, max(0, (between - within) / (between + (typical - 1) * within)))
    changed = sum(change != 0 for change in changes)
    return 1 + (mean_size - 1) * (2 + changed * correlation) / (2 + changed)


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
        [level.replicates.dense for level in resampled_curves(members, 100, 0)[WANDA]]
        for members in level_sets(run_folder.read_runs(tree)).values()
    ]
    (five_a, five_b), (six_a, six_b) = drawn
    for one, other in ((five_a, six_a), (five_b, six_b)):
        assert (one.both == other.both).all() and (one.unseen == other.unseen).all()
    assert not (five_a.both == five_b.both)[1:].any() and not (five_a.unseen == five_b.unseen)[1:].any()


def test_the_same_seed_draws_the_same_and_another_others(curves):
    runs = level_run(levels={"easy": (1, 0, 1, 1)}), level_run("wanda", 0.5, {"easy": (1, 0, 0, 1)})
    one = curves(*runs)[WANDA][0].replicates.dense
    again = curves(seed=0)[WANDA][0].replicates.dense
    other = curves(seed=1)[WANDA][0].replicates.dense
    assert (one.both == again.both).all() and (one.unseen == again.unseen).all()
    assert not (one.both == other.both)[1:].any() and not (one.unseen == other.unseen)[1:].any()


def test_only_items_that_all_runs_have_are_drawn(curves):
    found = curves(
        level_run(levels={"easy": (1, 0, 1)}, items=["a", "b", "c"]),
        level_run("wanda", 0.5, {"easy": (1, 1, 0)}, items=["d", "c", "b"]),
        level_run("wanda", 0.6, {"easy": (0, 0, 1)}, items=["a", "b", "c"]),
    )[WANDA][0].replicates
    # b and c: dense 0 and 1; at .5 0 and 1, at .6 0 and 1.
    assert found.points.items == found.points.clusters == 2
    assert found.dense.both[0].tolist() == found.points.both[0].tolist() == [0.5, 0.5]
    assert (found.points.both == found.dense.both).all()


def test_what_cannot_be_drawn_says_why(tmp_path, curves):
    strange = level_run("wanda", 0.5, {"easy": (1, 0), "other": (1, 1), "new": (1, 0)}, items=["x", "y"])
    levels = curves(level_run(levels={"easy": (1, 1), "other": (1, 0)}), strange)[WANDA]
    assert [level.replicates for level in levels] == [None] * 3
    assert [level.reason for level in levels] == [
        "the runs have no items in common",
        "the runs have no items in common",
        "there is no dense run of this level",
    ]
    (tmp_path / "001" / run_folder.ITEMS_FILE).unlink()
    assert curves()[WANDA][0].reason == "some runs kept no outcomes per item"


def test_every_resample_holds_all_groups_of_every_level(curves):
    # The hard level has items of one of three groups alone, which no weight takes away.
    items, groups = [f"item {number}" for number in range(6)], ["a", "a", "b", "b", "c", "c"]
    runs = []
    for name, strength in (("dense", None), ("wanda", 0.5)):
        run = level_run(name, strength, {"easy": (1, 0, 1, 0, 1, 0), "hard": (1, 0)}, items=items, groups=groups)
        run["items"]["item"], run["items"]["group"] = (
            np.concatenate([run["items"][name][:6], run["items"][name][:2]]) for name in ("item", "group")
        )
        runs.append(run)
    easy, hard = (level.replicates for level in curves(*runs)[WANDA])
    assert easy.dense.clusters == 3 and hard.dense.clusters == 1 and hard.losses == {"a": 0.0}
    assert np.isfinite(easy.dense.both).all() and hard.dense.both == pytest.approx(0.5)
    # A level of one group counts for all of its items: w of 2 x + 2 w, exponential both, uniform.
    assert np.quantile(hard.dense.unseen[1:], [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.1)


def test_the_losses_of_groups_are_means_over_the_strengths(curves):
    """Of two items in each of two groups: a loses none and one, b one and both."""
    same = {"groups": ["a", "a", "b", "b"]}
    runs = [level_run(levels={"easy": (1, 1, 1, 1)}, **same), level_run("wanda", 0.3, {"easy": (1, 1, 1, 0)}, **same)]
    found = curves(*runs, level_run("wanda", 0.6, {"easy": (0, 1, 0, 0)}, **same))[WANDA][0].replicates
    assert found.losses == {"a": 0.25, "b": 0.75}
