"""Scores of fine-tuned models on resampled items: accuracy, F1, Matthews and Pearson from sums over items.

Each of these is a function of sums over the evaluated items, so that a resample of the items is one row of a matrix
product, and all runs that answered the same items are scored on the same resamples: their differences are paired.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analysis.tables import Row
from analysis.uncertainty import bootstrap
from analysis.uncertainty.bootstrap import RESAMPLES, Scores
from harness import run_folder

RUNS_AT_A_TIME = 256
COLUMNS = ("prediction", "label")


class Answers(NamedTuple):
    """What the models of several runs answered on the same items.

    Fields:
        labels: (items,).
        predictions: (runs, items).
    """

    labels: np.ndarray
    predictions: np.ndarray


class ResampledRuns(NamedTuple):
    """Scores of runs on the same items and on the same resamples of them.

    Fields:
        items: how many.
        scores: by the run's folder, (1 + resamples,); the items as they are come first.
        unseen: share of an item that the sample does not hold, (1 + resamples,).
        lowest: score of the worst predictions.
    """

    items: int
    scores: dict[str, np.ndarray]
    unseen: np.ndarray
    lowest: float

    def of_points(self, folders: list[list[str]], generator: np.random.Generator) -> Scores:
        """The mean scores of several points, (1 + resamples, points), each with one run for every seed.

        Args:
            folders: of each point, one per seed, in the same order of seeds.
            generator: draws the seeds, the same for all points.
        """
        values = np.stack([np.stack([self.scores[one] for one in own], axis=1) for own in folders], axis=2)
        both, of_items = bootstrap.over_seeds(values, generator)
        return Scores(both, of_items, self.unseen, self.items, self.items, len(folders[0]), self.lowest)


def replicates(runs: list[Row], resamples: int = RESAMPLES, seed: int | list[int] = 0) -> ResampledRuns:
    """Every run's score on its items and on resamples of them, the same for all.

    Args:
        runs: of one task.
        seed: of the resamples.
    Returns:
        Without the runs that kept no predictions or answered other items than most, and without any where the metric
        is not one of METRICS. Items are known by their labels and order: check_runs has seen that the data are the
        same, and a run evaluates them from the first on.
    """
    metrics = {row["metric"] for row in runs}
    found = {row["folder"]: _items(Path(row["folder"])) for row in runs}
    labels = Counter(items["label"].tobytes() for items in found.values() if items)
    if not labels or len(metrics) > 1 or not metrics <= METRICS.keys():
        return ResampledRuns(0, {}, np.zeros(1 + resamples), 0.0)
    ((most, _),) = labels.most_common(1)
    kept = {folder: items for folder, items in found.items() if items and items["label"].tobytes() == most}
    (metric,), folders = metrics, list(kept)
    reference, scores = kept[folders[0]]["label"], {}
    for start in range(0, len(folders), RUNS_AT_A_TIME):
        own = folders[start : start + RUNS_AT_A_TIME]
        answers = Answers(reference, np.array([kept[folder]["prediction"] for folder in own]))
        drawn = resampled_scores(answers, metric, resamples, np.random.default_rng(seed))
        scores |= dict(zip(own, drawn.T, strict=True))
    unseen = unseen_item(reference, metric, resamples, np.random.default_rng([*np.atleast_1d(seed), 1]))
    return ResampledRuns(len(reference), scores, unseen, LOWEST.get(metric, 0.0))


def unseen_item(labels: np.ndarray, metric: str, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """The share in each resample of an item that the sample does not hold (bootstrap.unseen_shares).

    Of F1 it is a share of the positive items, the only ones that it is about.
    """
    items = max(1, int((labels == 1).sum())) if metric == "f1" else len(labels)
    return bootstrap.unseen_shares(generator.gamma(items, size=1 + resamples), 1, generator)


def _items(folder: Path) -> dict[str, np.ndarray]:
    """Predictions and labels of a run; empty where it kept none."""
    items = run_folder.read_items(folder, COLUMNS) if (folder / run_folder.ITEMS_FILE).is_file() else {}
    return items if len(items) == len(COLUMNS) else {}


def resampled_scores(answers: Answers, metric: str, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Scores of every run on the items and on resamples of them, the same for all runs.

    Args:
        metric: one of METRICS.
    Returns:
        (1 + resamples, runs), the items as they are in row 0. A correlation is 0 where it is not defined, as in runs.
    Raises:
        ValueError: a metric that is no function of sums over items.
    """
    if metric not in METRICS:
        raise ValueError(f"{metric} cannot be resampled; there are {', '.join(METRICS)}")
    terms, score = METRICS[metric]
    own, shared = terms(answers.predictions, answers.labels)
    runs = len(answers.predictions)
    columns = np.concatenate([shared, *own]).T  # (items, columns): those of all runs first
    found = []
    for part in bootstrap.resampled_sums(columns, resamples, generator):
        of_all, of_runs = np.split(part, [len(shared)], axis=1)
        of_runs = of_runs.reshape(len(part), len(own), runs)
        found.append(score(of_runs.transpose(1, 0, 2), of_all.T[:, :, None]))
    return np.concatenate(found)


# Below, terms give what each item adds: a list of arrays (runs, items), and those that all runs share, (terms, items).
# Scores take their sums over the items, (terms, rows, runs) and (terms, rows, 1).


def _right(predictions: np.ndarray, labels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    return [(predictions == labels).astype(np.float64)], np.ones((1, len(labels)))


def _accuracy(own: np.ndarray, shared: np.ndarray) -> np.ndarray:
    return own[0] / shared[0]


def _confusion(predictions: np.ndarray, labels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Of two classes: true and all positives of each run; items and those that are positive."""
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
