import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from synthetic_runs import run, write_tree

from analysis import results
from analysis.fine_tuning import prediction_scores
from analysis.fine_tuning.prediction_scores import Answers
from analysis.uncertainty import bootstrap

TWINS = {
    "accuracy": lambda guess, label: np.mean(guess == label),
    "f1": lambda guess, label: sklearn.metrics.f1_score(label, guess, zero_division=0),
    "matthews_correlation": lambda guess, label: sklearn.metrics.matthews_corrcoef(label, guess),
    "pearson": lambda guess, label: scipy.stats.pearsonr(guess, label).statistic,
}


def test_scores_by_hand():
    answers = Answers(np.array([1, 1, 0, 0]), np.array([[1, 0, 0, 0], [1, 1, 1, 1]]))
    expected = {
        "accuracy": [0.75, 0.5],
        "f1": [2 / 3, 2 / 3],  # precision 1 and recall 1/2; precision 1/2 and recall 1
        "matthews_correlation": [1 / 3**0.5, 0],  # (1 * 2 - 0 * 1) / sqrt(1 * 2 * 2 * 3); always 1 is not defined
        "pearson": [1 / 3**0.5, 0],  # of two classes the same
    }
    assert expected.keys() == prediction_scores.METRICS.keys()
    for metric, scores in expected.items():
        found = prediction_scores.resampled_scores(answers, metric, 0, np.random.default_rng(0))
        np.testing.assert_allclose(found, [scores], atol=1e-12)


@pytest.mark.parametrize("metric", TWINS)
def test_every_resample_is_the_score_of_the_items_drawn(metric):
    generator = np.random.default_rng(1)
    labels = generator.random(30) * 5 if metric == "pearson" else generator.integers(0, 2, 30)
    noise = generator.normal(0, 1, (3, 30))
    predictions = labels + noise if metric == "pearson" else (labels + noise > 0.5).astype(int)
    found = prediction_scores.resampled_scores(Answers(labels, predictions), metric, 20, np.random.default_rng(2))
    counts = bootstrap.draw_counts(30, 20, np.random.default_rng(2)).astype(int)
    for row, count in zip(found, counts, strict=True):
        drawn = [TWINS[metric](np.repeat(guess, count), np.repeat(labels, count)) for guess in predictions]
        np.testing.assert_allclose(row, drawn, atol=1e-9)
    assert found.shape == (21, 3) and len(np.unique(found[:, 0])) > 5


def test_a_constant_prediction_has_no_correlation_and_no_nan():
    answers = Answers(np.linspace(0, 5, 9), np.full((1, 9), 2.3))
    found = prediction_scores.resampled_scores(answers, "pearson", 50, np.random.default_rng(0))
    assert (found == 0).all()


def test_a_metric_that_is_no_sum_is_refused():
    with pytest.raises(ValueError, match="spearmanr cannot be resampled; there are accuracy, f1"):
        prediction_scores.resampled_scores(Answers(np.ones(1), np.ones((1, 1))), "spearmanr", 1, None)


def answered(*predictions, labels=(1, 1, 0, 0, 1), **changes):
    items = {"prediction": np.array(predictions), "label": np.array(labels)}
    return run(items=items, score=float(np.mean(items["prediction"] == items["label"])), **changes)


def test_runs_with_the_same_items_are_scored_on_the_same_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_scores, "RUNS_AT_A_TIME", 2)
    rows = results.read_runs(write_tree(
        tmp_path, answered(1, 1, 0, 0, 1), answered(1, 0, 0, 1, 1, seed=42), answered(0, 0, 1, 1, 0, seed=43),
        answered(1, 0, 0, 1, 1, seed=44), answered(1, 1, 1, 1, 1, labels=(0, 1, 0, 1, 1), seed=45), run(seed=46),
    ))  # fmt: skip
    found = prediction_scores.replicates(rows, resamples=100, seed=3)
    assert found.items == 5 and list(found.scores) == [row["folder"] for row in rows[:4]]
    right, one, wrong, other = found.scores.values()
    assert (right == 1).all() and (wrong == 0).all() and one[0] == 0.6 and one.std() > 0
    np.testing.assert_array_equal(one, other)  # in different batches of runs, on the same draws
    again = prediction_scores.replicates(rows, resamples=100, seed=3)
    np.testing.assert_array_equal(again.scores[rows[1]["folder"]], one)


def test_without_predictions_or_a_known_metric_there_are_no_replicates(tmp_path):
    rows = results.read_runs(write_tree(tmp_path, run(), answered(1, 1, 0, 0, 1, metric="spearmanr", task="stsb")))
    (tmp_path / "000" / results.ITEMS_FILE).unlink()
    for row in rows:
        assert prediction_scores.replicates([row]) == (0, {})
    assert prediction_scores.replicates([]) == (0, {})
