"""A multiple-choice head on questions with different numbers of options: padded options never count."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from GLUE_tasks.mcq_data import Question, Task
from GLUE_tasks.runner import Inputs
from harness import training

logger = logging.getLogger(__name__)

IS_OPTION = "is_option"


def tokenize_task(
    task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int, max_eval_samples: int | None = None
) -> Inputs:
    """All questions that any cell may use, tokenized."""
    train, validation = (
        tokenize(questions, tokenizer, max_length) for questions in (task.train, task.validation[:max_eval_samples])
    )
    cut = sum(length == max_length for length in train["length"][:])
    logger.info(
        "%s: %d training questions, %d evaluated; %.1f %% of the first reach --max_length %d",
        task.name, len(train), len(validation), 100 * cut / len(train), max_length,
    )  # fmt: skip
    return Inputs(train, {"": validation}, functools.partial(collate, tokenizer))


def tokenize(questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """A row for each question, with one list of tokens per option; `length` is that of the longest."""
    contexts = [question.context for question in questions for _ in question.options]
    options = [option for question in questions for option in question.options]
    encoded = tokenizer(contexts, options, max_length=max_length, truncation=True)
    ends = np.cumsum([len(question.options) for question in questions]).tolist()
    spans = list(zip([0, *ends], ends, strict=False))
    rows = {name: [values[start:end] for start, end in spans] for name, values in encoded.items()}
    rows["labels"] = [question.gold for question in questions]
    rows["length"] = [max(map(len, ids)) for ids in rows["input_ids"]]
    return Dataset.from_dict(rows)


def collate(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A padded batch: inputs (questions, options, tokens), labels (questions,), and is_option (questions, options).

    Missing options, where is_option is False, repeat the first: an empty one would have nothing to attend to.
    """
    count = max(len(row["input_ids"]) for row in rows)
    names = [name for name in rows[0] if name != "labels"]
    options = [
        {name: row[name][index if index < len(row[name]) else 0] for name in names}
        for row in rows
        for index in range(count)
    ]
    batch = {
        name: tensor.view(len(rows), count, -1) for name, tensor in tokenizer.pad(options, return_tensors="pt").items()
    }
    batch["labels"] = torch.tensor([row["labels"] for row in rows])
    batch[IS_OPTION] = torch.tensor([[index < len(row["input_ids"]) for index in range(count)] for row in rows])
    return batch


def option_logits(model: nn.Module, batch: Mapping[str, Tensor], count: int | None = None) -> Tensor:
    """Logits (questions, options), the smallest float where there is no option; `count` sets the number of columns."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in (IS_OPTION, "labels")}
    logits = model(**inputs).logits.float()
    lowest = torch.finfo(logits.dtype).min
    logits = logits.masked_fill(~batch[IS_OPTION], lowest)
    missing = (count or logits.shape[1]) - logits.shape[1]
    return functional.pad(logits, (0, missing), value=lowest)


def option_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy over the options that exist; the model's loss where all questions have as many."""
    return functional.cross_entropy(option_logits(model, batch), batch["labels"])


def predict_options(
    accelerator: Accelerator, model: nn.Module, inputs: Inputs, batch_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index of the predicted and of the right option, and number of options, of every validation question.

    Raises:
        FloatingPointError: the model's outputs are NaN or infinite.
    """
    rows = inputs.validation[""]
    counts = np.array([len(ids) for ids in rows["input_ids"][:]])
    outputs: Callable[[nn.Module, Mapping[str, Tensor]], Tensor] = functools.partial(option_logits, count=counts.max())
    logits = training.finite(training.predict(accelerator, model, rows, inputs.collate, batch_size, outputs))
    return logits.argmax(axis=1), np.asarray(rows["labels"][:]), counts
