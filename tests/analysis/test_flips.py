"""Flips and distances: by hand, against a plain twin, where nothing and where everything flips, and their coverage."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
from conftest import slow_cases
from synthetic_runs import choice_run, level_run, perplexity_run, write_tree

from analysis import compression_plots, flips
from analysis.flips import Answers, compare, divergence, flip_table, padded, replicates
from analysis.kinds import describe
from analysis.names import SETTING_TITLE, with_bounds
from analysis.outcomes import ItemReader
from analysis.rescored import with_metric
from analysis.summary import summary_text
from analysis.table import level_sets, level_table, perplexity_table
from harness import run_folder

RIGHT = (0.0, -1.0)  # log-likelihoods of two options, of which the first is right
WRONG = (-1.0, 0.0)


def flipped(tmp_path, *runs: dict[str, Any], resamples: int = 200) -> list[dict]:
    rows = run_folder.read_runs(write_tree(tmp_path / "tree", *runs))
    (members,) = level_sets(rows).values()
    return flip_table(members, level_table(members), resamples)


def test_divergence_by_hand():
    """Of (3/4, 1/4) from (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2; an item with fewer options has no third one."""
    dense = np.array([[math.log(3), 0.0, -np.inf], [5.0, 5.0, -np.inf]])
    compressed = np.array([[7.0, 7.0, -np.inf], [math.log(3) - 9, -9.0, -np.inf]])
    expected = [0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.5 * math.log(2 / 3) + 0.5 * math.log(2)]
    assert divergence(dense, compressed) == pytest.approx(expected)
    assert divergence(dense, dense).tolist() == [0, 0]
    assert divergence(np.zeros((1, 2)), np.array([[0.0, -np.inf]])).tolist() == [np.inf]


def test_divergence_is_scipys_relative_entropy():
    rng = np.random.default_rng(0)
    dense, compressed = 5 * rng.normal(size=(2, 50, 4))
    one, other = (np.exp(scores) / np.exp(scores).sum(1, keepdims=True) for scores in (dense, compressed))
    assert divergence(dense, compressed) == pytest.approx(scipy.stats.entropy(one, other, axis=1))


def test_options_of_unequal_number_are_filled():
    assert padded(np.arange(5.0), np.array([2, 3])).tolist() == [[0, 1, -np.inf], [2, 3, 4]]


def test_flips_by_hand(tmp_path):
    """Of ten items, three are lost and one is gained; two wrong answers become other wrong ones."""
    dense = [(2.0, 0, 0)] * 6 + [(0, 2.0, 0)] * 4
    wanda = [(0, 2.0, 0)] * 3 + [(2.0, 0, 0)] * 3 + [(2.0, 0, 0)] + [(0, 0, 2.0)] * 2 + [(0, 2.0, 0)]
    (row,) = flipped(tmp_path, choice_run(easy=dense), choice_run("wanda", 0.5, easy=wanda))
    assert (row["right_to_wrong"], row["wrong_to_right"], row["flips"]) == pytest.approx((0.3, 0.1, 0.4))
    assert (row["changed"], row["score_change"], row["items"]) == pytest.approx((0.6, -0.2, 10))
    # Six of the ten moved their 2 to another option: p = e² / (e² + 2) there, so KL = 2 (e² - 1) / (e² + 2).
    assert row["kl"] == pytest.approx(0.6 * 2 * (math.exp(2) - 1) / (math.exp(2) + 2))
    # Four flips, three of them losses: 2 (4 + 1) / 16.
    assert (row["test"], row["p_value"], row["verdict"]) == ("exact McNemar", pytest.approx(0.625), "cannot tell")
    assert row["kl_of"] == "log-likelihoods" and row["reason"] == ""
    for name in ("right_to_wrong", "wrong_to_right", "flips", "changed", "kl"):
        assert 0 <= row[f"{name}_low"] < row[name] < row[f"{name}_high"]


def test_a_plain_twin_finds_the_same(tmp_path):
    """Items in another order, some on one side alone, two to four options, answers read one by one."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(2, 5, 60)
    gold = [int(rng.integers(size)) for size in sizes]
    sides = [[tuple(rng.normal(size=size)) for size in sizes] for _ in range(2)]
    order = rng.permutation(60)
    kept = [list(range(55)), [index for index in order if index >= 5]]
    names = [f"item {index}" for index in range(60)]
    runs = [
        choice_run(
            *made, items=[names[index] for index in own], gold=[gold[index] for index in own],
            easy=[scores[index] for index in own],
        )
        for made, own, scores in zip((("dense", None), ("wanda", 0.5)), kept, sides, strict=True)
    ]  # fmt: skip
    (row,) = flipped(tmp_path, *runs)
    counts = dict.fromkeys(("lost", "gained", "changed"), 0)
    total = 0.0
    for index in range(5, 55):
        one, other = (np.array(scores[index]) for scores in sides)
        is_right = one.argmax() == gold[index], other.argmax() == gold[index]
        counts["lost"] += is_right == (True, False)
        counts["gained"] += is_right == (False, True)
        counts["changed"] += one.argmax() != other.argmax()
        p, q = np.exp(one) / sum(np.exp(one)), np.exp(other) / sum(np.exp(other))
        total += sum(p * np.log(p / q))
    assert row["items"] == 50
    assert (row["right_to_wrong"], row["wrong_to_right"], row["changed"]) == pytest.approx(
        (counts["lost"] / 50, counts["gained"] / 50, counts["changed"] / 50)
    )
    assert row["kl"] == pytest.approx(total / 50)


def test_a_model_beside_itself_flips_nothing(tmp_path):
    same = [RIGHT] * 20 + [WRONG] * 10
    (row,) = flipped(tmp_path, choice_run(easy=same), choice_run("rtn", 0.5, easy=same))
    assert [row[name] for name in flips.RANGES] == [0, 0, 0, 0, 0, 0]
    assert (row["p_value"], row["verdict"], row["kl_high"]) == (1.0, "cannot tell", 0.0)
    # The bound of Clopper and Pearson for none of 30, a little wider.
    assert 0.11 < row["flips_high"] < 0.14


def test_all_items_flip(tmp_path):
    runs = choice_run(easy=[RIGHT] * 30), choice_run("rtn", 0.5, easy=[WRONG] * 30)
    (row,) = flipped(tmp_path, *runs)
    assert (row["right_to_wrong"], row["wrong_to_right"], row["changed"]) == (1, 0, 1)
    assert (row["p_value"], row["verdict"]) == (pytest.approx(2**-29), "right to wrong")
    assert row["right_to_wrong_high"] == 1 and row["score_change_low"] == -1
    # All items have KL tanh(1/2): (p - q) * 1, with p and q of sigmoid(1) and sigmoid(-1).
    assert (row["kl"], row["kl_high"]) == pytest.approx((math.tanh(0.5), math.tanh(0.5)))


def test_items_in_groups_are_tested_by_the_resampler(tmp_path):
    """Groups of five alike: a McNemar test would take 40 flips of 8 groups for 40 and be sure."""
    groups = [f"text {index // 5}" for index in range(100)]
    wanda = [WRONG] * 20 + [RIGHT] * 80
    (row,) = flipped(
        tmp_path, choice_run(groups=groups, easy=[RIGHT] * 100), choice_run("wanda", 0.5, groups=groups, easy=wanda)
    )
    assert (row["test"], row["items"], row["clusters"]) == ("resampled", 100, 20)
    assert scipy.stats.binomtest(20, 20).pvalue < 1e-5 < 0.01 < row["p_value"] < 0.2
    (row,) = flipped(
        tmp_path / "few", *(choice_run(*made, groups=groups[:40], easy=[RIGHT] * 40) for made in ((), ("wanda", 0.5)))
    )
    assert row["p_value"] is None and row["flips_low"] is None and row["verdict"] == "cannot tell"
    assert row["reason"] == "fewer than 10 groups of items"


def test_p_values_are_corrected_over_all_points_of_a_figure(tmp_path):
    """Eight losses of eight flips, twice: .0078 each, times two; a third point flips nothing."""
    dense = [RIGHT] * 40
    lost = [WRONG] * 8 + [RIGHT] * 32
    rows = flipped(
        tmp_path, choice_run(easy=dense, hard=dense), choice_run("wanda", 0.5, easy=lost, hard=lost),
        choice_run("magnitude", 0.5, easy=dense),
    )  # fmt: skip
    assert [row["p_value"] for row in rows] == pytest.approx([1, 2**-7, 2**-7])
    assert [row["holm_p"] for row in rows] == pytest.approx([1, 3 * 2**-7, 3 * 2**-7])
    assert [row["verdict"] for row in rows] == ["cannot tell", "right to wrong", "right to wrong"]


def test_seeds_are_paired_with_their_own_dense_run(tmp_path):
    """Seed 1 was asked with other options right; a compressed run that equals its dense run has no flip."""
    first, second = [RIGHT] * 20 + [WRONG] * 20, [WRONG] * 20 + [RIGHT] * 20
    runs = [
        choice_run(*made, seed=seed, easy=scores)
        for made in (("dense", None), ("wanda", 0.5))
        for seed, scores in ((0, first), (1, second))
    ]
    (row,) = flipped(tmp_path, *runs)
    assert row["seeds"] == (0, 1) and row["flips"] == row["changed"] == row["kl"] == 0
    assert row["test"] == "resampled"
    # A seed without a dense run of its own is compared with each: half of its answers differ from one of them.
    (row,) = flipped(tmp_path / "third", *runs[:2], choice_run("wanda", 0.5, seed=2, easy=[RIGHT] * 40))
    assert (row["wrong_to_right"], row["right_to_wrong"], row["changed"]) == pytest.approx((0.5, 0, 0.5))


def test_dense_runs_that_were_asked_something_else_tell_no_changes(tmp_path):
    gold = [0] * 20 + [1] * 20
    runs = choice_run(easy=[RIGHT] * 40), choice_run("wanda", 0.5, seed=1, gold=gold, easy=[RIGHT] * 40)
    (row,) = flipped(tmp_path, *runs)
    assert row["right_to_wrong"] == 0.5 and row["changed"] is None and row["kl"] is None
    assert row["reason"].startswith("no dense run was asked the same questions")


def written(compression: str, strength: float | None, texts: Sequence[str], scores: Sequence[float], metric: str):
    run = level_run(
        compression, strength, {"written": scores}, reader="answer", metric=metric, chance=0.0,
        metrics={metric: float(np.mean(scores))},
    )  # fmt: skip
    run["items"]["level0_predicted"] = np.array(texts)
    return run


def test_written_answers_change_by_their_text(tmp_path):
    dense, wanda = ["Paris", "Rome", "", "Bonn"] * 5, ["Paris", "Rome!", "", "Bern"] * 5
    runs = [written("dense", None, dense, [1, 1, 0, 1] * 5, "exact_match"),
            written("wanda", 0.5, wanda, [1, 1, 0, 0] * 5, "exact_match")]  # fmt: skip
    (row,) = flipped(tmp_path, *runs)
    assert (row["changed"], row["right_to_wrong"], row["kl"], row["reason"]) == (0.5, 0.25, None, "")
    assert row["test"] == "exact McNemar"
    # Of a score between 0 and 1 it is the part that is lost and gained, and the resampler tests it.
    runs = [written("dense", None, dense, [1, 0.5, 0, 1] * 5, "f1"),
            written("wanda", 0.5, wanda, [1, 0.7, 0, 0.4] * 5, "f1")]  # fmt: skip
    (row,) = flipped(tmp_path / "f1", *runs)
    assert (row["right_to_wrong"], row["wrong_to_right"]) == pytest.approx((0.15, 0.05))
    assert row["score_change"] == pytest.approx(-0.1) and row["test"] == "resampled"


def test_cloze_scores_are_normalised_where_the_answer_was_chosen_so(tmp_path):
    """The metric accuracy_norm chooses per character; runs without lengths have KL of the log-likelihoods."""
    lengths = np.array([2, 4] * 20)
    runs = []
    for made, scores in ((("dense", None), (-2.0, -2.0)), (("wanda", 0.5), (-4.0, -2.0))):
        run = choice_run(*made, run={"metric": "accuracy_norm", "reader": "cloze"}, easy=[scores] * 20)
        normed = np.array(scores) / (2, 4)
        run["items"] |= {"level0_predicted_norm": np.full(20, normed.argmax()), "level0_option_length": lengths}
        runs.append(run)
    (row,) = flipped(tmp_path, *runs)
    assert (row["changed"], row["kl_of"]) == (0, "log-likelihoods per character")
    expected = divergence(np.array([[-1, -0.5]]), np.array([[-2, -0.5]]))
    assert row["kl"] == pytest.approx(expected[0])
    for run in runs:
        del run["items"]["level0_option_length"]
    (row,) = flipped(tmp_path / "older", *runs)
    assert row["kl_of"] == "log-likelihoods"
    assert row["kl"] == pytest.approx(divergence(np.array([[-2.0, -2]]), np.array([[-4.0, -2]]))[0])


def lm_eval_runs(metric: str) -> list[dict[str, Any]]:
    """Of twenty items with options of 1 and 4 letters, acc changes its answer and acc_norm does not."""
    runs = []
    for made, scores in ((("dense", None), (-1.0, -2.0)), (("wanda", 0.5), (-3.0, -2.0))):
        run = choice_run(*made, run={"metric": metric, "reader": "lm_eval"}, easy=[scores] * 20)
        normed = (np.array(scores) / (1, 4)).argmax()
        run["items"] |= {
            "level0_predicted_norm": np.full(20, normed), "level0_option_length": np.array([1, 4] * 20),
            "level0_acc": run["items"]["score"], "level0_acc_norm": np.full(20, float(normed == 0)),
        }  # fmt: skip
        run["items"]["score"] = run["items"].get(f"level0_{metric}", run["items"]["score"])
        run["levels"][0]["metrics"] = dict.fromkeys(("acc", "acc_norm", "acc_bytes"), 0.5)
        runs.append(run)
    return runs


@pytest.mark.parametrize("recorded", ["acc", "acc_norm"])
def test_lm_evals_answers_are_those_of_the_metric_that_is_read(tmp_path, recorded: str):
    """Whichever metric the runs have as their score, and whichever is asked for."""
    rows = run_folder.read_runs(write_tree(tmp_path / "tree", *lm_eval_runs(recorded)))
    for metric, changed, kl_of, scores in [
        ("acc", 1, "log-likelihoods", [(-1, -2), (-3, -2)]),
        ("acc_norm", 0, "log-likelihoods per character", [(-1, -0.5), (-3, -0.5)]),
    ]:
        (members,) = level_sets(with_metric(rows, [metric])).values()
        (row,) = flip_table(members, level_table(members), 200)
        assert (row["flips"], row["changed"], row["kl_of"]) == (changed, changed, kl_of)
        dense, wanda = (np.array([own], float) for own in scores)
        assert row["kl"] == pytest.approx(divergence(dense, wanda)[0])


def test_what_lm_evals_metric_does_not_choose_has_no_answers(tmp_path):
    """Another metric than acc and acc_norm; and of older runs, with one column, another than their own."""
    (row,) = flipped(tmp_path / "bytes", *lm_eval_runs("acc_bytes"))
    assert (row["flips"], row["changed"], row["kl"], row["reason"]) == (1, None, None, "the answers are not recorded")
    older = lm_eval_runs("acc_norm")
    for run in older:
        run["items"]["level0_predicted"] = run["items"].pop("level0_predicted_norm")
    (row,) = flipped(tmp_path / "older", *older)
    assert (row["changed"], row["kl_of"]) == (0, "log-likelihoods per character")
    rows = with_metric(run_folder.read_runs(tmp_path / "older/tree"), ["acc"])
    (row,) = flip_table(rows, level_table(rows), 200)
    assert (row["flips"], row["changed"], row["kl"]) == (1, None, None)


@pytest.mark.parametrize(
    ("removed", "reason"),
    [
        ("option_log_likelihood", "no option scores are recorded, so no KL"),
        ("predicted", "the answers are not recorded"),
    ],
)
def test_older_runs_without_some_columns_say_so(tmp_path, removed: str, reason: str):
    runs = [choice_run(*made, easy=[RIGHT] * 20) for made in ((), ("wanda", 0.5))]
    for run in runs:
        del run["items"][f"level0_{removed}"]
    (row,) = flipped(tmp_path, *runs)
    assert (row["flips"], row["kl"], row["reason"]) == (0, None, reason)
    assert (row["changed"] is None) == (removed == "predicted")


def test_points_that_cannot_be_compared_say_why(tmp_path):
    alone = [choice_run("wanda", 0.5, easy=[RIGHT] * 20)]
    (row,) = flipped(tmp_path / "alone", *alone)
    assert (row["reason"], row["flips"], row["verdict"]) == ("there is no dense run of this level", None, None)
    others = choice_run(items=[f"other {index}" for index in range(20)], easy=[RIGHT] * 20)
    (row,) = flipped(tmp_path / "others", others, *alone)
    assert row["reason"] == "the runs have no items in common"
    bare = level_run(levels={"easy": [1.0] * 20}) | {"items": {"idx": np.arange(3)}}
    (row,) = flipped(tmp_path / "bare", bare, *alone)
    assert row["reason"] == "some runs kept no outcomes per item"


def test_they_stand_in_summary_table_and_figure(tmp_path):
    dense, wanda = [RIGHT] * 30 + [WRONG] * 30, [WRONG] * 10 + [RIGHT] * 30 + [WRONG] * 20
    runs = [choice_run(easy=dense, hard=dense), choice_run("wanda", 0.5, easy=wanda, hard=dense)]
    other = [{**run, "setting": 4, "task": "k_shot"} for run in runs]
    tree = describe(run_folder.read_runs(write_tree(tmp_path, *runs, *other)), resamples=200)
    (part,) = [part for part in tree.parts if part.title == "Flips and distances"]
    (plot,) = part.plots
    assert (plot.stem, len(plot.table)) == ("flips", 4)
    figure = plot.draw()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [SETTING_TITLE[setting] for setting in (2, 4)] and "model-a" in figure.get_supxlabel()
    points = figure.axes[0].lines[0]
    assert points.get_xdata() == pytest.approx([0, 0]) and points.get_ydata() == pytest.approx([100 / 3, 0])
    lines = summary_text(tree, ["png"]).splitlines()
    assert "![flips.png](flips.png)" in lines and f"### {titles[0]}, model-a" in lines
    (row,) = [line for line in lines if line.startswith("| easy | Wanda | 50 % | 60 | +0.0 [")][:1] or [""]
    first = plot.table[0]
    assert f"| {with_bounds(first['kl'], first['kl_low'], first['kl_high'])} | cannot tell" in row
    assert "| 16.7 [" in row and "| 33.3 [" in row and "cannot tell (p = 1.000)" in row
    assert plot.finding.startswith(
        f"{titles[0]}, model-a: of 2 points, flips from right to wrong surely outweigh in 0, those from wrong to "
        "right in 0; of those whose score may stand still, most flip at easy by Wanda, 50 %: 33.3 % ["
    )


def test_nothing_compressed_has_no_part(tmp_path):
    tree = describe(run_folder.read_runs(write_tree(tmp_path, choice_run(easy=[RIGHT] * 20))), resamples=100)
    assert [part.title for part in tree.parts] == [f"{SETTING_TITLE[2]}, model-a"]
    with pytest.raises(ValueError, match="no compressed run has items in common with a dense run"):
        compression_plots.flips({})


def test_divergences_of_a_text_stand_beside_its_perplexity(tmp_path):
    """Mean over windows and seeds: (1 + 3) / 2 and (2 + 6) / 2 are 2 and 4, so 3 ± 1."""
    losses = np.array([3.0, 3.5])
    runs = [
        perplexity_run("wanda", 0.5, seed=seed, items={"window_loss": losses, "window_kl": np.array(own)})
        for seed, own in enumerate(((1.0, 2.0), (3.0, 6.0)))
    ]
    rows = run_folder.read_runs(write_tree(tmp_path / "tree", perplexity_run(), *runs))
    dense, point = perplexity_table(rows)
    assert (dense["kl"], point["kl"], point["kl_stderr"]) == pytest.approx((None, 3, 1))
    assert any(line.endswith("| 3 ± 1 |") for line in summary_text(describe(rows), ["png"]).splitlines())
    bare = run_folder.read_runs(write_tree(tmp_path / "bare", perplexity_run(), perplexity_run("wanda", 0.5), runs[1]))
    assert [row["kl"] for row in perplexity_table(bare)] == [None, None]
    assert " KL" not in summary_text(describe(bare), ["png"])


def answers(scores: np.ndarray, groups: np.ndarray) -> Answers:
    """Of items whose first option is right."""
    said, items = scores.argmax(axis=1), np.arange(len(scores))
    first = np.zeros(len(scores), int)
    return Answers(items, groups, (said == 0).astype(float), said, first, first + scores.shape[1], scores, flips.RAW)


def covered(items: int, size: int, noise: float, draws: int) -> dict[str, float]:
    """How often the interval of each quantity holds its true value, known from many items.

    Args:
        size: items of a group, which share half of the variance of their noise.
    """
    rng = np.random.default_rng([items, size, int(100 * noise)])

    def drawn(count: int) -> dict[int, Answers]:
        groups = np.arange(count) // size
        dense = rng.normal(size=(count, 4)) + np.array([1.0, 0, 0, 0])
        shared = rng.normal(size=(count // size, 4)).repeat(size, axis=0)
        moved = dense + noise * (shared * 0.5**0.5 + rng.normal(size=(count, 4)) * 0.5**0.5)
        return {kind: answers(scores, groups) for kind, scores in enumerate((dense, moved))}

    def point(count: int) -> flips.Compared:
        made = drawn(count)
        return compare({0: made[1]}, {0: made[0]})

    truth = {name: values.mean() for name, values in point(200_000 // size * size).values.items()}
    hits = dict.fromkeys(truth, 0)
    for draw in range(draws):
        (found,) = replicates([point(items)], 400, (draw, "simulated"))
        for name, own in found.items():
            _, low, high = own.interval()
            hits[name] += low <= truth[name] <= high
    return {name: count / draws for name, count in hits.items()}


@pytest.mark.parametrize(("items", "size", "noise"), [*slow_cases((40, 1, 0.5)), (120, 4, 0.8)])
def test_intervals_cover_the_truth(items: int, size: int, noise: float):
    """At 95 %; 200 draws are off by 1.5 % at one standard error."""
    found = covered(items, size, noise, 200)
    assert min(found.values()) >= 0.905, found


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.15, 0.5, 1.0])
@pytest.mark.parametrize(("items", "size"), [(20, 1), (40, 1), (200, 1), (100, 5), (400, 10)])
def test_intervals_cover_the_truth_at_many_sizes(items: int, size: int, noise: float):
    found = covered(items, size, noise, 1000)
    assert min(found.values()) >= 0.93, found


def test_the_reader_reads_a_run_once(tmp_path, monkeypatch):
    """ItemReader is shared with the tables: its items are those of the same arrays."""
    rows = run_folder.read_runs(write_tree(tmp_path, choice_run(easy=[RIGHT] * 20)))
    read = ItemReader()
    first, second = (flips.answers_of(rows[0], read) for _ in range(2))
    assert first.items is second.items


def test_the_figure_has_both_intervals_of_a_point_and_the_fewest_flips(tmp_path):
    """8 of 40 are lost: -20 points to the side, 20 % above; as many must flip as the score changes by."""
    runs = choice_run(easy=[RIGHT] * 40), choice_run("wanda", 0.5, easy=[WRONG] * 8 + [RIGHT] * 32)
    (row,) = flipped(tmp_path, *runs)
    (axes,) = compression_plots.flips({"one": [row]}).axes
    across, upwards = (bars.get_segments() for bars in axes.collections)
    ends = {name: [100 * row[f"{name}_{end}"] for end in ("low", "high")] for name in ("score_change", "flips")}
    np.testing.assert_allclose(across, [[[end, 20] for end in ends["score_change"]]])
    np.testing.assert_allclose(upwards, [[[-20, end] for end in ends["flips"]]])
    (fewest,) = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
    np.testing.assert_allclose(fewest.get_ydata(), np.abs(fewest.get_xdata()))


def test_a_model_that_all_panels_share_is_named_below_them_alone(tmp_path):
    (row,) = flipped(tmp_path, choice_run(easy=[RIGHT] * 40), choice_run("wanda", 0.5, easy=[WRONG] * 40))
    other = {**row, "model": "other"}

    def titles(**shown):
        return [axes.get_title() for axes in compression_plots.flips(shown).axes]

    same = {f"Setting {number}, {row['model']}": [row] for number in (2, 5)}
    assert titles(**same) == ["Setting 2", "Setting 5"]
    assert row["model"] in compression_plots.flips(same).get_supxlabel()
    assert titles(**same, **{"Setting 2, other": [other]}) == [*same, "Setting 2, other"]


def test_distances_are_of_the_dense_runs_that_were_asked_the_same(tmp_path):
    """Seed 2 was asked as seed 0, and answers as it; seed 1 had the other option right."""
    gold = [1] * 40
    (row,) = flipped(
        tmp_path, choice_run(easy=[RIGHT] * 40), choice_run(seed=1, gold=gold, easy=[WRONG] * 40),
        choice_run("wanda", 0.5, seed=2, easy=[RIGHT] * 40),
    )  # fmt: skip
    assert (row["changed"], row["kl"], row["flips"]) == (0, 0, 0)


def test_the_summary_tells_the_direction_with_the_corrected_p_value(tmp_path):
    """Eight losses of eight flips at two of three points: 2 / 2 ** 8, times three."""
    dense, lost = [RIGHT] * 40, [WRONG] * 8 + [RIGHT] * 32
    runs = [choice_run(easy=dense, hard=dense), choice_run("wanda", 0.5, easy=lost, hard=lost)]
    runs.append(choice_run("magnitude", 0.5, easy=dense))
    lines = summary_text(describe(run_folder.read_runs(write_tree(tmp_path, *runs)), resamples=100), []).splitlines()
    assert sum("| right to wrong (p = 0.023) |" in line for line in lines) == 2
