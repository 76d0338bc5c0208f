"""What a line's run records: score and loss at every point, barriers with their intervals, outcomes per item."""

from typing import Any

import numpy as np

from analysis import metrics, resampling
from analysis.estimators import STRAIGHT_LINE, barrier_heights, ends_and_between
from analysis.metrics import Answers
from analysis.resampling import ResampledLine
from GLUE_tasks import glue_data

RESAMPLES = 1000  # behind the intervals of barriers
Line = dict[str, np.ndarray]  # what interpolation.along_line returns


def levels(metric: str, alphas: np.ndarray, lines: dict[str, Line], seed: int) -> list[dict[str, Any]]:
    """One level per point of the line: score and loss on the validation rows, and on the training rows."""
    labels = lines["validation"]["label"]
    scores, losses, resampled = {}, {}, resampled_scores(metric, lines["validation"], seed)
    for split, line in lines.items():
        scores[split], losses[split] = score_curve(metric, line).tolist(), line["loss"].mean(axis=0).tolist()
    return [
        {
            "level": f"{alpha:.4g}",
            "difficulty": alpha,
            "alpha": alpha,
            "metric": metric,
            "score": scores["validation"][point],
            "chance": glue_data.chance_level(metric, labels),
            "stderr": resampling.standard_error(resampled[:, point], len(labels)),
            "num_examples": len(labels),
            "train_score": scores["train"][point],
            "train_loss": losses["train"][point],
            "validation_loss": losses["validation"][point],
        }
        for point, alpha in enumerate(alphas.tolist())
    ]


def score_curve(metric: str, line: Line) -> np.ndarray:
    """The score at every point of a line, as Glue_prune_oneshot.py scores a model."""
    return np.array([glue_data.SCORES[metric](column, line["label"]) for column in line["prediction"].T])


def resampled_scores(metric: str, line: Line, seed: int) -> np.ndarray:
    """The scores of the items and of resamples of them at every point, (1 + RESAMPLES, points)."""
    answers = Answers(line["label"], line["prediction"].T)
    return metrics.resampled_scores(answers, metric, RESAMPLES, np.random.default_rng(seed))


def resampled_errors(metric: str, line: Line, seed: int) -> ResampledLine:
    """The error (1 - score) of resampled items at every point; the unseen item is wrong between the ends, or there."""
    errors, labels = 1 - resampled_scores(metric, line, seed)[1:], line["label"]
    unseen = metrics.unseen_item(labels, metric, RESAMPLES, np.random.default_rng([seed, 1]))
    points, worst = errors.shape[1], 1 - metrics.LOWEST.get(metric, 0.0)
    tall, flat = ends_and_between(points, 0.0, worst), ends_and_between(points, worst, 0.0)
    return ResampledLine(errors, unseen[1:], tall, flat, len(labels))


def resampled_losses(line: Line, alphas: np.ndarray, seed: int) -> ResampledLine:
    """The mean losses of resampled items at every point; the unseen item is like that with the highest or lowest bow.

    A loss has no upper end that could be counted on instead.
    """
    losses, generator = line["loss"], np.random.default_rng(seed)
    columns = np.concatenate([losses, np.ones((len(losses), 1))], axis=1)
    sums = np.concatenate(list(resampling.resampled_sums(columns, RESAMPLES, generator)))
    unseen = resampling.unseen_shares(sums[:, -1], 1, generator)
    bows = barrier_heights(losses, alphas, STRAIGHT_LINE)[:, 1:-1].mean(axis=1)
    tall, flat = losses[bows.argmax()], losses[bows.argmin()]
    return ResampledLine(sums[1:, :-1] / sums[1:, -1:], unseen[1:], tall, flat, len(losses))


def find_barriers(metric: str, alphas: np.ndarray, lines: dict[str, Line], seed: int) -> list[dict[str, Any]]:
    """Barriers in loss and in error (1 - score), by both definitions, on both splits."""
    found = []
    for split, line in lines.items():
        curves = {
            "loss": (line["loss"].mean(axis=0), resampled_losses(line, alphas, seed)),
            "error": (1 - score_curve(metric, line), resampled_errors(metric, line, seed)),
        }
        for quantity, (curve, resampled) in curves.items():
            described = resampling.barrier_intervals(curve, resampled, alphas)
            found += [{"split": split, "quantity": quantity, **barrier} for barrier in described]
    return found


def items(lines: dict[str, Line], train_rows: list[int]) -> dict[str, np.ndarray]:
    """Loss and answer of every item at every point, for items.npz; training rows by their place in the data."""
    train, validation = lines["train"], lines["validation"]
    return {
        **{name: validation[name].astype(np.float32) if name == "loss" else validation[name] for name in validation},
        **{f"train_{name}": train[name].astype(np.float32) if name == "loss" else train[name] for name in train},
        "train_row": np.array(train_rows),
    }
