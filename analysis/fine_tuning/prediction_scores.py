"""Scores of fine-tuned models on resampled items: accuracy, F1, Matthews and Pearson from sums over items.

Each of these is a function of sums over the evaluated items, so that a resample of the items is one row of a matrix
product, and all runs that answered the same items are scored on the same resamples: their differences are paired.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analysis import metrics, resampling
from analysis.resampling import RESAMPLES, Scores
from analysis.tables import Row
from harness import run_folder

RUNS_AT_A_TIME = 256
COLUMNS = ("prediction", "label")


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
        both, of_items = resampling.over_seeds(values, generator)
        return Scores(both, of_items, self.unseen, self.items, self.items, len(folders[0]), self.lowest)


def replicates(runs: list[Row], resamples: int = RESAMPLES, seed: int | list[int] = 0) -> ResampledRuns:
    """Every run's score on its items and on resamples of them, the same for all.

    Args:
        runs: of one task.
        seed: of the resamples.
    Returns:
        Without the runs that kept no predictions or answered other items than most, and without any where the metric
        is not one of metrics.METRICS. Items are matched by labels and order: check_runs has seen that the data are the
        same, and a run evaluates them from the first on.
    """
    named = {row["metric"] for row in runs}
    found = {row["folder"]: _items(Path(row["folder"])) for row in runs}
    labels = Counter(items["label"].tobytes() for items in found.values() if items)
    if not labels or len(named) > 1 or not named <= metrics.METRICS.keys():
        return ResampledRuns(0, {}, np.zeros(1 + resamples), 0.0)
    ((most, _),) = labels.most_common(1)
    kept = {folder: items for folder, items in found.items() if items and items["label"].tobytes() == most}
    (metric,), folders = named, list(kept)
    reference, scores = kept[folders[0]]["label"], {}
    for start in range(0, len(folders), RUNS_AT_A_TIME):
        own = folders[start : start + RUNS_AT_A_TIME]
        answers = metrics.Answers(reference, np.array([kept[folder]["prediction"] for folder in own]))
        drawn = metrics.resampled_scores(answers, metric, resamples, np.random.default_rng(seed))
        scores |= dict(zip(own, drawn.T, strict=True))
    unseen = metrics.unseen_item(reference, metric, resamples, np.random.default_rng([*np.atleast_1d(seed), 1]))
    return ResampledRuns(len(reference), scores, unseen, metrics.LOWEST.get(metric, 0.0))


def _items(folder: Path) -> dict[str, np.ndarray]:
    """Predictions and labels of a run; empty where it kept none."""
    items = run_folder.read_items(folder, COLUMNS) if (folder / run_folder.ITEMS_FILE).is_file() else {}
    return items if len(items) == len(COLUMNS) else {}


# Below, terms give what each item adds: a list of arrays (runs, items), and those that all runs share, (terms, items).
# Scores take their sums over the items, (terms, rows, runs) and (terms, rows, 1).
