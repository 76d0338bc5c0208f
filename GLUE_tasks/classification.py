"""Classification and regression of sentences: tokenised rows of a task, and the scores of a model on them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from GLUE_tasks import finetune, glue_data, labels
from GLUE_tasks.glue_data import Task
from GLUE_tasks.problem import Inputs, fit_inputs

logger = logging.getLogger(__name__)


def tokenize_task(
    task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int, max_eval_samples: int | None = None
) -> Inputs:
    """All rows that any cell may see, tokenised."""
    splits = {key: first_rows(split, max_eval_samples) for key, split in task.validation.items()}
    train, *rest = (
        glue_data.tokenize(split, task.columns, tokenizer, max_length) for split in (task.train, *splits.values())
    )
    logger.info("%s: %d training rows; evaluated: %s", task.name, len(train), ", ".join(str(len(s)) for s in rest))
    if task.columns == glue_data.COLUMNS["mnli"] and task.name == "mnli" and "_mm" not in splits:
        logger.warning("mnli: no validation_mismatched in --data_dir; the matched split alone is evaluated")
    return Inputs(train, dict(zip(splits, rest, strict=True)), DataCollatorWithPadding(tokenizer))


def fit(task: Task, inputs: Inputs, model: PreTrainedModel, order: Sequence[int] | None) -> Inputs:
    """The inputs as this model takes them; its config says from now on what its outputs are and how they are trained.

    Args:
        order: which of the model's outputs stands for each class (labels.head_order); None for their own order.
    """
    labels.name_head(model.config, task.label_names, order)
    inputs = fit_inputs(inputs, model)
    if order is None:
        return inputs
    outputs, plain = np.asarray(order), inputs.collate

    def collate(rows: list[dict[str, Any]]) -> Mapping[str, Tensor]:
        return plain([{**row, "labels": int(outputs[row["labels"]])} for row in rows])

    return inputs._replace(collate=collate, order=tuple(order))


def facts(task: Task) -> dict[str, Any]:
    """What results say of a task: its classes in the order of their numbers, None of a regression."""
    return {"label_names": list(task.label_names) or None}


def first_rows(split: Dataset, count: int | None) -> Dataset:
    return split.select(range(min(len(split), count or len(split))))


def predict_labels(
    accelerator: Accelerator, model: nn.Module, task: Task, inputs: Inputs, split: str, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prediction (class, or value of a regression) and label of every row of a validation split.

    Raises:
        FloatingPointError: the model's outputs are NaN or infinite.
    """
    rows = inputs.validation[split]
    outputs = inputs.in_order(finetune.finite(finetune.predict(accelerator, model, rows, inputs.collate, batch_size)))
    predictions = outputs[:, 0] if task.is_regression else outputs.argmax(axis=1)
    return predictions, np.asarray(rows["labels"][:])


def score_task(
    accelerator: Accelerator, model: nn.Module, task: Task, inputs: Inputs, batch_size: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The original's eval_* keys, and prediction and label per item, for every split."""
    from GLUE_tasks.glue_metric import GlueMetric  # here: a mistake or a complete run should not wait for evaluate

    metric = GlueMetric(config_name=",".join(task.metrics))
    scores, items = {}, {}
    for suffix in inputs.validation:
        predictions, labels = predict_labels(accelerator, model, task, inputs, suffix, batch_size)
        found = metric.compute(predictions=predictions, references=labels)
        scores |= {f"eval_{name}{suffix}": value for name, value in found.items()}
        items |= {f"prediction{suffix}": predictions, f"label{suffix}": labels}
    return scores, items
