"""What a fine-tuning script gives the frame in experiment.py: its data, its head, its loss and its scores."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from GLUE_tasks import finetune, glue_data
from harness.cells import Cell
from harness.data import Source
from harness.models import SEGMENTS, has_segments


class Inputs(NamedTuple):
    """A task's tokenised rows.

    Fields:
        train: rows with `labels`, `length` (tokens) and the model's inputs, nothing else.
        validation: a data set per split that is scored, by a name of the script's own.
        collate: makes a padded batch of rows.
        order: which of the model's outputs stands for each class; None for their own order.
    """

    train: Dataset
    validation: dict[str, Dataset]
    collate: Callable[[list[dict]], Mapping[str, Tensor]]
    order: tuple[int, ...] | None = None

    def in_order(self, outputs: np.ndarray) -> np.ndarray:
        """A model's outputs, (rows, outputs), in the order of the task's classes."""
        return outputs if self.order is None else outputs[:, self.order]


def fit_inputs(inputs: Inputs, model: PreTrainedModel) -> Inputs:
    """The inputs without segment ids, if the model has no embedding of them: others would look them up elsewhere."""
    if has_segments(model):
        return inputs
    plain = inputs.collate

    def collate(rows: list[dict[str, Any]]) -> Mapping[str, Tensor]:
        return plain([{name: value for name, value in row.items() if name != SEGMENTS} for row in rows])

    return inputs._replace(collate=collate)


class Outcome(NamedTuple):
    """How a trained model did.

    Fields:
        scores: numbers by the name that all_results.json gives them, eval_*.
        items: arrays for items.npz, one value per evaluated item.
        levels: the run's points on its axis of difficulty, dicts of results.LEVEL_KEYS.
    """

    scores: dict[str, float]
    items: dict[str, np.ndarray]
    levels: list[dict[str, Any]]


def random_share(inputs: Inputs, task: Any, cell: Cell, args: argparse.Namespace) -> list[int]:
    """Rows of inputs.train that the cell trains on: its share of them, by its seed."""
    share, seed = cell["validation_split_percentage"], cell["seed"]
    return glue_data.subset_indices(len(inputs.train), share, seed, args.subset, args.max_train_samples)


def no_labels(task: Any) -> None:
    return None


def no_label_names(task: Any) -> tuple[str, ...]:
    return ()


def fit_segments(task: Any, inputs: Inputs, model: PreTrainedModel, order: Sequence[int] | None) -> Inputs:
    return fit_inputs(inputs, model)


def no_facts(task: Any) -> dict[str, Any]:
    return {}


def no_hub(task: Cell, args: argparse.Namespace) -> Sequence[Source]:
    return ()


class Problem(NamedTuple):
    """One kind of fine-tuning problem, as free functions. `args` are the script's options, its own and the frame's.

    Fields:
        setting: its name in results.
        auto_class: what its head is, such as AutoModelForSequenceClassification.
        add_options: adds its own options to the parser that has all others; may change defaults.
        check_options: parser.error where they do not go together.
        tasks: what its cells cover besides seeds, shares of data and strengths: dicts with `task_name` and any other
            option that takes several values, under the option's name; one dict per task, in order.
        load: a task (with `name` and `files`) of such a dict; ValueError where it is not usable.
        tokenize: the task's Inputs, with at most args.max_eval_samples rows in each validation split.
        score: the trained model's Outcome; by finetune.predict or in its own way. Every process calls it.
        num_labels: size of the task's head; None where the head does not depend on the task.
        loss: of a batch, a mean over its rows.
        choose_rows: indices of the rows of inputs.train that a cell trains on.
        facts: what all_results.json says of the task besides; may replace what the frame says.
        hub_data: where on the hub the task of such a dict is, if it is not read from files.
        label_names: of the classes that the head's outputs stand for; none where there are no classes.
        fit: the Inputs as a loaded model takes them; may write into the model's config. It is given the order of the
            model's outputs, None for the classes' own.
    """

    setting: int | str
    auto_class: type
    add_options: Callable[[argparse.ArgumentParser], None]
    check_options: Callable[[argparse.ArgumentParser, argparse.Namespace], None]
    tasks: Callable[[argparse.Namespace], list[Cell]]
    load: Callable[[Cell, argparse.Namespace], Any]
    tokenize: Callable[[Any, PreTrainedTokenizerBase, argparse.Namespace], Inputs]
    score: Callable[[Accelerator, nn.Module, Any, Inputs, Cell, argparse.Namespace], Outcome]
    num_labels: Callable[[Any], int | None] = no_labels
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor] = finetune.own_loss
    choose_rows: Callable[[Inputs, Any, Cell, argparse.Namespace], list[int]] = random_share
    facts: Callable[[Any], dict[str, Any]] = no_facts
    hub_data: Callable[[Cell, argparse.Namespace], Sequence[Source]] = no_hub
    label_names: Callable[[Any], tuple[str, ...]] = no_label_names
    fit: Callable[[Any, Inputs, PreTrainedModel, Sequence[int] | None], Inputs] = fit_segments


def data_share_level(
    cell: Cell, metric: str, score: float, chance: float, stderr: float, num_examples: int, **facts: Any
) -> dict[str, Any]:
    """The run's one point on setting 1's axis: the less data, the harder."""
    share = cell["validation_split_percentage"]
    return {
        "level": share, "difficulty": 1 - share / 100, "metric": metric, "score": score, "chance": chance,
        "stderr": stderr, "num_examples": num_examples, **facts,
    }  # fmt: skip
