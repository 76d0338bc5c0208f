"""Metrics as functions of sums over items: accuracy, F1, Matthews, Pearson, BLEU.

What each item adds is a row of numbers, and a score is a function of the column sums. A resample of the items is then
one row of a matmul, and all runs that answered the same items are scored on the same resamples, so that their
differences are paired.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from analysis import resampling

BLEU_RESAMPLES = 1000
ORDERS = 4
# What BLEU needs of a sentence: the lengths, then for n = 1 ... 4 the shared n-grams, then those of the translation.
COUNT_NAMES = (
    "translation_length", "reference_length",
    *(f"shared_{n}_grams" for n in range(1, ORDERS + 1)), *(f"translated_{n}_grams" for n in range(1, ORDERS + 1)),
)  # fmt: skip


class Answers(NamedTuple):
    """What the models of several runs answered on the same items.

    Fields:
        labels: (items,).
        predictions: (runs, items).
    """

    labels: np.ndarray
    predictions: np.ndarray


def resampled_scores(answers: Answers, metric: str, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Scores of every run on the items and on resamples of them, the same for all runs.

    Args:
        metric: one of METRICS.
    Returns:
        (1 + resamples, runs); row 0 is the sample. A correlation is 0 where it is not defined, as in the runs.
    Raises:
        ValueError: a metric that is no function of sums over items.
    """
    if metric not in METRICS:
        raise ValueError(f"{metric} cannot be resampled; there are {', '.join(METRICS)}")
    terms, score = METRICS[metric]
    own, shared = terms(answers.predictions, answers.labels)
    runs = len(answers.predictions)
    columns = np.concatenate([shared, *own]).T  # (items, columns), the shared ones first
    found = []
    for part in resampling.resampled_sums(columns, resamples, generator):
        of_all, of_runs = np.split(part, [len(shared)], axis=1)
        of_runs = of_runs.reshape(len(part), len(own), runs)
        found.append(score(of_runs.transpose(1, 0, 2), of_all.T[:, :, None]))
    return np.concatenate(found)


def unseen_item(labels: np.ndarray, metric: str, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """The unseen item's share of each resample, (1 + resamples,); of F1, its share of the positive items."""
    items = max(1, int((labels == 1).sum())) if metric == "f1" else len(labels)
    return resampling.unseen_shares(generator.gamma(items, size=1 + resamples), 1, generator)


def corpus_bleu(counts: ArrayLike) -> np.ndarray:
    """Corpus BLEU, as a fraction, from counts that were added up over sentences.

    Args:
        counts: (..., COUNT_NAMES), sums over the sentences of each text.
    Returns:
        (...), in [0, 1]; 0 where no word is shared.
    Source: Papineni et al. 2002 with the smoothing of mteval-v13a, sacrebleu's default ("smooth:exp", Post 2018): the
        k-th n-gram order without a match counts 1 / 2^k matches.
    """
    counts = np.asarray(counts, dtype=np.float64)
    length, reference = counts[..., 0], counts[..., 1]
    shared, total = counts[..., 2 : 2 + ORDERS], counts[..., 2 + ORDERS :]
    missed = np.cumsum(shared == 0, axis=-1)
    matches = np.where(shared == 0, 0.5**missed, shared)
    known = (shared[..., 0] > 0) & (total > 0).all(axis=-1)
    logs = np.log(matches / np.maximum(total, 1)).mean(axis=-1)
    brevity = np.minimum(0.0, 1 - reference / np.maximum(length, 1))
    return np.where(known, np.exp(logs + brevity), 0.0)


def bleu_replicates(counts: np.ndarray, resamples: int = BLEU_RESAMPLES, seed: int = 0) -> np.ndarray:
    """BLEU of the test set (row 0) and of resamples of its sentences, (1 + resamples,).

    The same seed draws the same sentences, so that two systems are compared by the paired bootstrap (Koehn 2004).

    Args:
        counts: (sentences, COUNT_NAMES).
    """
    sums = resampling.resampled_sums(counts.astype(np.float64), resamples, np.random.default_rng(seed))
    return np.concatenate([corpus_bleu(part) for part in sums])


def bleu_stderr(counts: np.ndarray) -> float:
    """Standard error of corpus BLEU over sentences, (sentences, COUNT_NAMES), by a seeded resampling."""
    return resampling.standard_error(bleu_replicates(counts), len(counts))


# Below, terms give what each item adds: a list of arrays (runs, items), and what all runs share, (terms, items).
# Scores take the sums over the items, (terms, rows, runs) and (terms, rows, 1).


def _right(predictions: np.ndarray, labels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    return [(predictions == labels).astype(np.float64)], np.ones((1, len(labels)))


def _accuracy(own: np.ndarray, shared: np.ndarray) -> np.ndarray:
    return own[0] / shared[0]


def _confusion(predictions: np.ndarray, labels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Of two classes: each run's true positives and all its positives; then all items and those labelled positive."""
    positive, true = (predictions == 1).astype(np.float64), (labels == 1).astype(np.float64)
    return [positive * true, positive], np.stack([np.ones(len(labels)), true])


def _f1(own: np.ndarray, shared: np.ndarray) -> np.ndarray:
    (both, positive), (_, true) = own, shared
    return _ratio(2 * both, positive + true)


def _matthews(own: np.ndarray, shared: np.ndarray) -> np.ndarray:
    (both, positive), (items, true) = own, shared
    # The covariance of two indicators over the root of their variances, all times the square of the items.
    spread = positive * (items - positive) * true * (items - true)
    return _ratio(items * both - positive * true, np.sqrt(spread))


def _moments(predictions: np.ndarray, labels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    # Around the means of the sample, or the squares would swallow a narrow spread.
    x = predictions.astype(np.float64) - predictions.mean(axis=1, keepdims=True)
    y = labels.astype(np.float64) - labels.mean()
    return [x, x * x, x * y], np.stack([np.ones(len(y)), y, y * y])


def _pearson(own: np.ndarray, shared: np.ndarray) -> np.ndarray:
    (x, xx, xy), (items, y, yy) = own, shared
    spread = (items * xx - x * x) * (items * yy - y * y)
    # Rounding leaves a constant prediction a spread that is not quite 0, perhaps below it.
    known = np.where(spread > 1e-12 * (items * xx) * (items * yy), spread, 0)
    return _ratio(items * xy - x * y, np.sqrt(known))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


LOWEST = {"matthews_correlation": -1.0, "pearson": -1.0}
METRICS = {
    "accuracy": (_right, _accuracy),
    "f1": (_confusion, _f1),
    "matthews_correlation": (_confusion, _matthews),
    "pearson": (_moments, _pearson),
}
