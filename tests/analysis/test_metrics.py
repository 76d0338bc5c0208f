"""analysis/domains/bleu.py: the formula by hand and against sacrebleu, and its bootstrap."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from sacrebleu.metrics import BLEU
from synthetic_runs import run, write_tree

from analysis import metrics, replicates
from analysis.metrics import Answers
from analysis.replicates import resampled_runs
from harness import run_folder

# "the cat sat on the mat" against "the cat sat on a mat": 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours
CAT = [6, 6, 5, 3, 2, 1, 6, 5, 4, 3]


def test_bleu_by_hand():
    assert float(metrics.corpus_bleu(CAT)) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    shorter = [6, 12, 5, 3, 2, 1, 6, 5, 4, 3]  # half as long as the reference: exp(1 - 2) of it
    assert float(metrics.corpus_bleu(shorter)) == pytest.approx(math.exp(-1) * float(metrics.corpus_bleu(CAT)))
    longer = [6, 3, 5, 3, 2, 1, 6, 5, 4, 3]  # no penalty
    assert float(metrics.corpus_bleu(longer)) == float(metrics.corpus_bleu(CAT))
    # two orders without a match count 1/2 and 1/4
    smoothed = [6, 6, 5, 3, 0, 0, 6, 5, 4, 3]
    assert float(metrics.corpus_bleu(smoothed)) == pytest.approx((5 / 6 * 3 / 5 * 0.5 / 4 * 0.25 / 3) ** 0.25)


@pytest.mark.parametrize(
    "counts",
    [[6, 6, 0, 0, 0, 0, 6, 5, 4, 3], [0, 6, 0, 0, 0, 0, 0, 0, 0, 0], [2, 2, 2, 1, 0, 0, 2, 1, 0, 0]],
    ids=["nothing shared", "empty", "no three words anywhere"],
)
def test_bleu_is_0_where_it_is_not_defined(counts: list[int]):
    assert float(metrics.corpus_bleu(counts)) == 0.0


def test_bleu_equals_sacrebleu_on_random_texts_also_of_resamples():
    draw = np.random.default_rng(0)
    metric = BLEU(tokenize="none")
    words = np.array(list("abcdefg"))
    references = [" ".join(draw.choice(words, size=draw.integers(1, 12))) for _ in range(40)]
    translations = [" ".join(np.append(draw.permutation(text.split())[:8], "a")) for text in references]
    translations[3] = ""
    pairs = zip(translations, [[text] for text in references], strict=True)
    scores = [BLEU(tokenize="none").sentence_score(*pair) for pair in pairs]
    counts = np.array([[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores])
    for rows in (range(40), range(5), draw.integers(40, size=40)):
        expected = metric.corpus_score([translations[i] for i in rows], [[references[i] for i in rows]]).score
        assert 100 * float(metrics.corpus_bleu(counts[list(rows)].sum(axis=0))) == pytest.approx(expected, abs=1e-9)


def test_replicates_begin_with_the_test_set_and_are_the_same_draws_for_two_systems():
    counts = np.array([CAT, [4, 4, 4, 3, 2, 1, 4, 3, 2, 1], [5, 6, 1, 0, 0, 0, 5, 4, 3, 2]] * 4)
    found = metrics.bleu_replicates(counts, resamples=20)
    assert found.shape == (21,) and found[0] == metrics.corpus_bleu(counts.sum(axis=0))
    assert np.array_equal(found, metrics.bleu_replicates(counts, resamples=20))
    assert np.ptp(found) > 0


def test_equal_sentences_have_no_standard_error():
    assert metrics.bleu_stderr(np.array([CAT] * 10)) == pytest.approx(0, abs=1e-12)
    assert metrics.bleu_stderr(np.array([CAT, [5, 6, 1, 0, 0, 0, 5, 4, 3, 2]] * 5)) > 0.01


TWINS = {
    "accuracy": lambda guess, label, weight: np.average(guess == label, weights=weight),
    "f1": lambda guess, label, weight: sklearn.metrics.f1_score(label, guess, sample_weight=weight, zero_division=0),
    "matthews_correlation": lambda guess, label, weight: sklearn.metrics.matthews_corrcoef(
        label, guess, sample_weight=weight
    ),
    "pearson": lambda guess, label, weight: pearson(guess, label, weight),
}


def pearson(guess, label, weight):
    (of_guess, both), (_, of_label) = np.cov(guess, label, aweights=weight, ddof=0)
    return both / (of_guess * of_label) ** 0.5


def test_scores_by_hand():
    answers = Answers(np.array([1, 1, 0, 0]), np.array([[1, 0, 0, 0], [1, 1, 1, 1]]))
    expected = {
        "accuracy": [0.75, 0.5],
        "f1": [2 / 3, 2 / 3],  # precision 1 and recall 1/2; precision 1/2 and recall 1
        "matthews_correlation": [1 / 3**0.5, 0],  # (1 * 2 - 0 * 1) / sqrt(1 * 2 * 2 * 3); always 1 is not defined
        "pearson": [1 / 3**0.5, 0],  # of two classes the same
    }
    assert expected.keys() == metrics.METRICS.keys()
    for metric, scores in expected.items():
        found = metrics.resampled_scores(answers, metric, 0, np.random.default_rng(0))
        np.testing.assert_allclose(found, [scores], atol=1e-12)


@pytest.mark.parametrize("metric", TWINS)
def test_every_resample_is_the_score_of_the_weighted_items(metric):
    generator = np.random.default_rng(1)
    labels = generator.random(30) * 5 if metric == "pearson" else generator.integers(0, 2, 30)
    noise = generator.normal(0, 1, (3, 30))
    predictions = labels + noise if metric == "pearson" else (labels + noise > 0.5).astype(int)
    found = metrics.resampled_scores(Answers(labels, predictions), metric, 20, np.random.default_rng(2))
    weights = np.concatenate([np.ones((1, 30)), np.random.default_rng(2).exponential(size=(20, 30))])
    for row, weight in zip(found, weights, strict=True):
        expected = [TWINS[metric](guess, labels, weight) for guess in predictions]
        np.testing.assert_allclose(row, expected, atol=1e-9)
    unweighted = scipy.stats.pearsonr(predictions[0], labels).statistic
    assert metric == "accuracy" or metric == "f1" or found[0, 0] == pytest.approx(unweighted)  # of classes the same
    assert found.shape == (21, 3) and len(np.unique(found[:, 0])) > 5


def test_a_constant_prediction_has_no_correlation_and_no_nan():
    answers = Answers(np.linspace(0, 5, 9), np.full((1, 9), 2.3))
    found = metrics.resampled_scores(answers, "pearson", 50, np.random.default_rng(0))
    assert (found == 0).all()


def test_a_metric_that_is_no_sum_is_refused():
    with pytest.raises(ValueError, match="spearmanr cannot be resampled; there are accuracy, f1"):
        metrics.resampled_scores(Answers(np.ones(1), np.ones((1, 1))), "spearmanr", 1, None)


def answered(*predictions, labels=(1, 1, 0, 0, 1), **changes):
    items = {"prediction": np.array(predictions), "label": np.array(labels)}
    return run(items=items, score=float(np.mean(items["prediction"] == items["label"])), **changes)


def test_runs_with_the_same_items_are_scored_on_the_same_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(replicates, "RUNS_AT_A_TIME", 2)
    rows = run_folder.read_runs(write_tree(
        tmp_path, answered(1, 1, 0, 0, 1), answered(1, 0, 0, 1, 1, seed=42), answered(0, 0, 1, 1, 0, seed=43),
        answered(1, 0, 0, 1, 1, seed=44), answered(1, 1, 1, 1, 1, labels=(0, 1, 0, 1, 1), seed=45), run(seed=46),
    ))  # fmt: skip
    found = resampled_runs(rows, resamples=100, seed=3)
    assert found.items == 5 and list(found.scores) == [row["folder"] for row in rows[:4]]
    right, one, wrong, other = found.scores.values()
    assert (right == 1).all() and (wrong == 0).all() and one[0] == 0.6 and one.std() > 0
    np.testing.assert_array_equal(one, other)  # in different batches of runs, on the same draws
    again = resampled_runs(rows, resamples=100, seed=3)
    np.testing.assert_array_equal(again.scores[rows[1]["folder"]], one)


def test_without_predictions_or_a_known_metric_there_are_no_replicates(tmp_path):
    rows = run_folder.read_runs(write_tree(tmp_path, run(), answered(1, 1, 0, 0, 1, metric="spearmanr", task="stsb")))
    (tmp_path / "000" / run_folder.ITEMS_FILE).unlink()
    for members in ([rows[0]], [rows[1]], []):
        found = resampled_runs(members, resamples=20)
        assert (found.items, found.scores) == (0, {}) and found.unseen.tolist() == [0] * 21


@pytest.mark.parametrize(("metric", "items"), [("accuracy", 12), ("pearson", 12), ("f1", 3)])
def test_an_unseen_item_has_its_share_of_the_items_that_the_metric_is_about(metric, items):
    """One weight of so many and one: F1 is about the positive items alone."""
    labels = np.repeat([1, 0], [3, 9])
    shares = metrics.unseen_item(labels, metric, 20_000, np.random.default_rng(0))
    assert shares[0] == 0 and shares.shape == (20_001,)
    # A share of the sum of independent exponential weights is beta distributed; noise of 20,000 quantiles.
    for level in (0.1, 0.5, 0.9):
        expected = scipy.stats.beta.ppf(level, 1, items)
        assert np.quantile(shares[1:], level) == pytest.approx(expected, rel=0.06)


def test_f1_without_positive_items_counts_as_of_one():
    shares = metrics.unseen_item(np.zeros(9), "f1", 20_000, np.random.default_rng(0))
    assert shares[1:].mean() == pytest.approx(1 / 2, abs=0.01)


def test_points_share_the_draws_of_items_and_seeds(tmp_path):
    """Points that differ in nothing have the same mean in every resample; a point of one seed has its items' alone."""
    first, second = (1, 1, 0, 0, 1), (1, 0, 0, 1, 1)
    rows = run_folder.read_runs(write_tree(
        tmp_path, *[answered(*own, seed=seed, strength=strength)
                    for strength in (0.3, 0.5) for seed, own in ((41, first), (42, second))],
    ))  # fmt: skip
    drawn = resampled_runs(rows, resamples=4000)
    folders = [[row["folder"] for row in rows if row["strength"] == strength] for strength in (0.3, 0.5)]
    found = drawn.of_points(folders, np.random.default_rng(0))
    assert (found.both[:, 0] == found.both[:, 1]).all() and (found.items, found.clusters, found.seeds) == (5, 5, 2)
    assert found.both[0].tolist() == found.of_items[0].tolist() == [0.8, 0.8] and found.unseen is drawn.unseen
    of_seeds = [drawn.scores[folder] for folder in folders[0]]
    assert found.of_items[:, 0] == pytest.approx((of_seeds[0] + of_seeds[1]) / 2)
    # Two seeds that differ by d leave the mean an error of d / 2, from one normal number for all points.
    moved = (found.both - found.of_items)[1:, 0] / (of_seeds[0] - of_seeds[1])[1:]
    assert (moved.mean(), moved.std()) == pytest.approx((0, 1 / 2), abs=0.03)
    single = drawn.of_points([folders[0][:1]], np.random.default_rng(0)).point(0)
    assert single.both is single.of_items and (single.both == of_seeds[0]).all() and single.seeds == 1


@pytest.mark.parametrize(
    ("metric", "lowest"), [("accuracy", 0), ("f1", 0), ("matthews_correlation", -1), ("pearson", -1)]
)
def test_the_worst_score_is_that_of_the_metric(tmp_path, metric, lowest):
    rows = run_folder.read_runs(write_tree(tmp_path, answered(1, 1, 0, 0, 1, metric=metric)))
    drawn = resampled_runs(rows, resamples=10)
    found = drawn.of_points([[rows[0]["folder"]]], np.random.default_rng(0)).point(0)
    assert (found.lowest, found.highest) == (lowest, 1)
    assert found.with_unseen(False) == pytest.approx(1 - (1 - lowest) * drawn.unseen)


def test_a_mean_over_seeds_does_not_depend_on_the_order_of_the_runs(tmp_path):
    rows = run_folder.read_runs(write_tree(
        tmp_path, answered(1, 1, 0, 0, 1, seed=41), answered(1, 0, 0, 1, 1, seed=42), answered(0, 0, 1, 0, 1, seed=43),
    ))  # fmt: skip
    drawn = resampled_runs(rows, resamples=100)
    np.testing.assert_allclose(drawn.mean(rows).both, drawn.mean(rows[::-1]).both)
