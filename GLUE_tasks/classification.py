"""Classification and regression of sentences: tokenized rows of a task, and the scores of a model on them."""

import logging
import tempfile
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from GLUE_tasks import glue_data
from GLUE_tasks.glue_data import Task
from GLUE_tasks.runner import Inputs
from harness import training
from harness.cells import Cell

logger = logging.getLogger(__name__)


def tokenize_task(
    task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int, max_eval_samples: int | None = None
) -> Inputs:
    """All rows that any cell may use, tokenized."""
    splits = {key: first_rows(split, max_eval_samples) for key, split in task.validation.items()}
    train, *rest = (
        glue_data.tokenize(split, task.columns, tokenizer, max_length) for split in (task.train, *splits.values())
    )
    logger.info("%s: %d training rows; evaluated: %s", task.name, len(train), ", ".join(str(len(s)) for s in rest))
    if task.columns == glue_data.COLUMNS["mnli"] and task.name == "mnli" and "_mm" not in splits:
        logger.warning("mnli: no validation_mismatched in --data_dir; the matched split alone is evaluated")
    return Inputs(train, dict(zip(splits, rest, strict=True)), DataCollatorWithPadding(tokenizer))


def first_rows(split: Dataset, count: int | None) -> Dataset:
    """The first `count` rows, all for None."""
    return split.select(range(min(len(split), count or len(split))))


def facts(task: Task) -> dict[str, Any]:
    """Entries of all_results.json: label_names in the order of the class numbers, None for a regression."""
    return {"label_names": list(task.label_names) or None}


def predict_labels(
    accelerator: Accelerator, model: nn.Module, task: Task, inputs: Inputs, split: str, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels of a validation split, each (rows,): class numbers, or floats of a regression.

    Raises:
        FloatingPointError: the model's outputs are NaN or infinite.
    """
    rows = inputs.validation[split]
    outputs = training.finite(training.predict(accelerator, model, rows, inputs.collate, batch_size))
    outputs = inputs.in_order(outputs)
    predictions = outputs[:, 0] if task.is_regression else outputs.argmax(axis=1)
    return predictions, np.asarray(rows["labels"][:])


def score_task(
    accelerator: Accelerator, model: nn.Module, task: Task, inputs: Inputs, batch_size: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores by the original's eval_* keys, and arrays of predictions and labels, for every validation split."""
    from GLUE_tasks.glue_metric import GlueMetric  # here: a mistake or a complete run should not wait for evaluate

    # evaluate's own cache would be made here, and end a run whose training is done where it cannot be
    with tempfile.TemporaryDirectory() as cache:
        metric = GlueMetric(config_name=",".join(task.metrics), keep_in_memory=True, cache_dir=cache)
    scores, items = {}, {}
    for suffix in inputs.validation:
        predictions, labels = predict_labels(accelerator, model, task, inputs, suffix, batch_size)
        computed = metric.compute(predictions=predictions, references=labels)
        scores |= {f"eval_{name}{suffix}": value for name, value in computed.items()}
        items |= {f"prediction{suffix}": predictions, f"label{suffix}": labels}
    return scores, items


def level_of(metric: str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """A level's entries from its predictions: run_folder.LEVEL_KEYS, and whether all predictions are the same."""
    return {
        "metric": metric,
        "score": glue_data.SCORES[metric](predictions, labels),
        "chance": glue_data.chance_level(metric, labels),
        "stderr": glue_data.standard_error(metric, predictions, labels),
        "num_examples": len(labels),
        "constant_prediction": bool(np.ptp(predictions) == 0),
    }


def data_share_level(
    cell: Cell, metric: str, predictions: np.ndarray, labels: np.ndarray, **changed: float
) -> dict[str, Any]:
    """The run's one level on setting 1's axis: the less training data, the harder.

    Args:
        changed: entries to replace, such as chance.
    """
    share = cell["validation_split_percentage"]
    return {"level": share, "difficulty": 1 - share / 100, **level_of(metric, predictions, labels), **changed}
