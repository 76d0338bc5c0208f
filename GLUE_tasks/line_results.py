"""What a line's run records: score and loss at every point, barriers with their intervals, outcomes per item."""

from typing import Any

import numpy as np

from analysis import barriers
from GLUE_tasks import glue_data

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
            "stderr": float(resampled[:, point].std(ddof=1)),
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
    """The scores of resampled items, (resamples, points)."""
    predictions, labels = line["prediction"], line["label"]
    if metric == "accuracy":
        statistic = barriers.mean_curve(predictions == labels[:, None])
    else:  # Pearson's, or Matthews' of two classes, which is the same
        statistic = barriers.correlation_curve(predictions, labels)
    return barriers.resampled_curves(statistic, len(labels), seed=seed)


def find_barriers(metric: str, alphas: np.ndarray, lines: dict[str, Line], seed: int) -> list[dict[str, Any]]:
    """Barriers in loss and in error (1 - score), by both definitions, on both splits."""
    found = []
    for split, line in lines.items():
        of_loss = barriers.resampled_curves(barriers.mean_curve(line["loss"]), len(line["label"]), seed=seed)
        curves = {
            "loss": (line["loss"].mean(axis=0), of_loss),
            "error": (1 - score_curve(metric, line), 1 - resampled_scores(metric, line, seed)),
        }
        for quantity, (curve, resampled) in curves.items():
            described = barriers.describe(curve, resampled, alphas)
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
