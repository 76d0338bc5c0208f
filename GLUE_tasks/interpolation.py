"""The straight line between two fine-tuned models: loss and prediction of every item at every point."""

import copy
import functools
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from scipy.special import logsumexp
from torch import Tensor, nn

from analysis import metrics, resampling
from analysis.estimators import STRAIGHT_LINE, barrier_heights, ends_and_between
from analysis.metrics import Answers
from analysis.resampling import ResampledLine
from GLUE_tasks import classification, glue_data, model_pairs, pretrained, runner, transfers
from GLUE_tasks.glue_data import Task
from GLUE_tasks.model_pairs import Pair, check_same_tensors
from GLUE_tasks.runner import Inputs
from harness import models, records, run_folder, training
from harness.content import files_content, model_content
from harness.device import peak_memory, reset_peak_memory
from pruning.masks import apply_masks, zero_fraction

logger = logging.getLogger(__name__)

RESAMPLES = 1000  # of the bootstrap, for the intervals of barriers
Line = dict[str, np.ndarray]  # what along_line returns
Measured = TypeVar("Measured")


def points(num_points: int) -> np.ndarray:
    """Evenly spaced alphas from exactly 0, the start, to exactly 1, the end.

    Raises:
        ValueError: fewer than 3 points.
    """
    if num_points < 3:
        raise ValueError(f"{num_points} points: at least 3 are needed, the two ends and one between them")
    return np.linspace(0, 1, num_points)


@torch.no_grad()
def walk(
    model: nn.Module, end: Mapping[str, Tensor], alphas: np.ndarray, measure: Callable[[], Measured]
) -> list[Measured]:
    """Move `model` along the line and return what `measure` returns at every point; it ends bit-equal to the end.

    Each point is computed in place from the one before, so that memory holds two models, not three. The rounding of the
    steps adds up to a few units in a float32 weight's last place.

    Args:
        model: the start; its parameters and floating-point buffers are overwritten.
        end: line_tensors of the other model, on the same device.
        alphas: what points returned.
        measure: called at every point; must not change the weights.
    """
    tensors = line_tensors(model)
    check_same_tensors({name: tensor.shape for name, tensor in tensors.items()},
                       {name: tensor.shape for name, tensor in end.items()})  # fmt: skip
    measured = [measure()]
    for before, alpha in itertools.pairwise(alphas):
        step_toward(tensors, end, (alpha - before) / (1 - before))
        measured.append(measure())
    return measured


def step_toward(tensors: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> None:
    """Move every tensor in place by `share` of its way to that of the end; 1 copies it, without rounding."""
    for name, tensor in tensors.items():
        if share >= 1:
            tensor.copy_(end[name])
        else:
            tensor.lerp_(end[name], share)


def line_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are interpolated, sharing the model's memory: parameters and floating-point buffers."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach() for name, tensor in named.items() if tensor.is_floating_point()}


def check_buffers(start: nn.Module, end: nn.Module) -> list[str]:
    """Names of the floating-point buffers that differ and are therefore interpolated too; they are logged.

    Raises:
        ValueError: a buffer differs that only one model has or that holds whole numbers.
    """
    others = dict(end.named_buffers())
    moved = []
    for name, buffer in start.named_buffers():
        if name in others and torch.equal(buffer, others[name]):
            continue
        if name not in others or not buffer.is_floating_point():
            raise ValueError(f"the buffer {name} differs between the two models and cannot be interpolated")
        moved.append(name)
    if moved:
        logger.info("buffers that differ are interpolated too: %s", ", ".join(moved))
    return moved


def item_losses(outputs: np.ndarray, labels: np.ndarray, is_regression: bool) -> np.ndarray:
    """The training loss of every item: cross entropy, or the squared error of a regression.

    Args:
        outputs: the model's, (items, classes); of a regression (items, 1).
        labels: class numbers or floats, (items,).
    Returns:
        (items,), float64.
    Raises:
        FloatingPointError: an output is NaN or infinite.
    """
    if not np.isfinite(outputs).all():
        raise FloatingPointError("the model's outputs are NaN or infinite at a point of the line")
    outputs = outputs.astype(np.float64)
    if is_regression:
        return (outputs[:, 0] - labels) ** 2
    return logsumexp(outputs, axis=1) - outputs[np.arange(len(labels)), labels]


def predictions(outputs: np.ndarray, is_regression: bool) -> np.ndarray:
    """The prediction for every item: a class number, or the float of a regression, (items,)."""
    return outputs[:, 0] if is_regression else outputs.argmax(axis=1)


def along_line(outputs: list[np.ndarray], labels: np.ndarray, is_regression: bool) -> dict[str, np.ndarray]:
    """Loss and prediction of every item at every point.

    Args:
        outputs: an array (items, classes) for each point.
    Returns:
        loss (items, points) float64, prediction (items, points), label (items,).
    """
    return {
        "loss": np.stack([item_losses(output, labels, is_regression) for output in outputs], axis=1),
        "prediction": np.stack([predictions(output, is_regression) for output in outputs], axis=1),
        "label": labels,
    }


def levels(metric: str, alphas: np.ndarray, lines: dict[str, Line], seed: int) -> list[dict[str, Any]]:
    """One level for each point of the line: score and loss on the validation rows and on the training rows."""
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
    """The scores at every point of the items (row 0) and of RESAMPLES resamples, (1 + RESAMPLES, points)."""
    answers = Answers(line["label"], line["prediction"].T)
    return metrics.resampled_scores(answers, metric, RESAMPLES, np.random.default_rng(seed))


def resampled_errors(metric: str, line: Line, seed: int) -> ResampledLine:
    """The error (1 - score) of resampled items at every point.

    The unseen item (resampling.unseen_shares) raises a barrier most if it is wrong only between the ends, and lowers it
    most if it is wrong only at the ends.
    """
    errors, labels = 1 - resampled_scores(metric, line, seed)[1:], line["label"]
    unseen = metrics.unseen_item(labels, metric, RESAMPLES, np.random.default_rng([seed, 1]))
    points, worst = errors.shape[1], 1 - metrics.LOWEST.get(metric, 0.0)
    tall, flat = ends_and_between(points, 0.0, worst), ends_and_between(points, worst, 0.0)
    return ResampledLine(errors, unseen[1:], tall, flat, len(labels))


def resampled_losses(line: Line, alphas: np.ndarray, seed: int) -> ResampledLine:
    """The mean losses of resampled items at every point.

    A loss has no upper bound, so the unseen item is like the item whose curve rises most, or least, above its ends.
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
    rows = []
    for split, line in lines.items():
        curves = {
            "loss": (line["loss"].mean(axis=0), resampled_losses(line, alphas, seed)),
            "error": (1 - score_curve(metric, line), resampled_errors(metric, line, seed)),
        }
        for quantity, (curve, resampled) in curves.items():
            described = resampling.barrier_intervals(curve, resampled, alphas)
            rows += [{"split": split, "quantity": quantity, **barrier} for barrier in described]
    return rows


def items(lines: dict[str, Line], train_rows: list[int]) -> dict[str, np.ndarray]:
    """Loss and prediction of every item at every point for items.npz, and the indices of the training rows."""
    train, validation = lines["train"], lines["validation"]
    return {
        **{name: validation[name].astype(np.float32) if name == "loss" else validation[name] for name in validation},
        **{f"train_{name}": train[name].astype(np.float32) if name == "loss" else train[name] for name in train},
        "train_row": np.array(train_rows),
    }


@dataclass(frozen=True)
class Measurement:
    """How lines are measured: the options, by name, that all lines of a command share."""

    num_points: int
    max_train_samples: int
    per_device_eval_batch_size: int
    seed: int
    max_eval_samples: int | None = None
    data_dir: Path | None = None
    trust_remote_code: bool = False

    def evaluated_rows(self, pair: Pair) -> int | None:
        """Most validation rows to evaluate; by default as many as the start's run evaluated, None for all."""
        return self.max_eval_samples or pair.start.arguments["max_eval_samples"]


def load_task(pair: Pair, data_dir: Path | None) -> Task:
    """The rows of a line's task, cached: from `data_dir`, or if None from where the start's run read them."""
    return _load_task(*_task_source(pair, data_dir))


def _task_source(pair: Pair, data_dir: Path | None) -> tuple:
    """The task's name, its --data_dir, training and validation file, and the text columns that the run recorded."""
    recorded = pair.start.arguments
    names = ("data_dir", "train_file", "validation_file")
    folder, train_file, validation_file = (recorded[name] and Path(recorded[name]) for name in names)
    if data_dir and not train_file:
        folder = data_dir
    return pair.start.result["task"], folder, train_file, validation_file, tuple(recorded.get("text_columns") or ())


@functools.cache
def _load_task(
    name: str, data_dir: Path | None, train_file: Path | None, validation_file: Path | None, columns: tuple[str, ...]
) -> Task:
    if train_file is None:
        return glue_data.load_glue(name, data_dir)
    return glue_data.load_files(train_file, validation_file, columns, by_order=True)


def check_data(pair: Pair, task: Task) -> None:
    """Refuse data files other than those that the models were fine-tuned on.

    Raises:
        ValueError: names the run and the files.
    """
    recorded = _data_content(pair)
    has_hashes = any(form.endswith("sha256") for form in recorded)
    if has_hashes and task.files and records.differences(recorded, files_content(task.files)):
        names = ", ".join(map(str, task.files))
        raise ValueError(f"{pair.start.folder} was fine-tuned on other data than {names}; give its --data_dir")


def _data_content(pair: Pair) -> dict[str, str]:
    """Hashes or commit of the data that the start was fine-tuned on."""
    return {name: value for name, value in pair.start.identity.items() if name in records.DATA_FORMS}


def _ends_content(pair: Pair, with_code: bool) -> dict[str, str]:
    """Hashes of the files of both saved models: start_sha256 of the weights, start_config_sha256, end_sha256, …"""
    ends = {"start": pair.start} | ({"end": pair.end} if pair.end else {})
    return {
        f"{word}_{name.removeprefix('model_')}": value
        for word, end in ends.items()
        for name, value in model_content(str(end.files), with_code=with_code).items()
    }


def identity(measurement: Measurement, pair: Pair) -> dict[str, Any]:
    """The identity of a line's run: hashes of its ends, and every option that changes what is measured.

    Of an end that is pruned here, `pruning` has the start's options that select weights, beside `magnitude_scope`.
    """
    line, ends = model_pairs.describe(pair), [end for end in (pair.start, pair.end) if end]
    return {
        "num_points": measurement.num_points,
        "max_train_samples": measurement.max_train_samples,
        "per_device_eval_batch_size": measurement.per_device_eval_batch_size,
        "seed": measurement.seed,
        "max_eval_samples": measurement.evaluated_rows(pair),
        "task_name": line["task"],
        **_data_content(pair),
        **{name: line[name] for name in ("pair", "data_fraction", "strength", "magnitude_scope")},
        "start_seed": line["seed"],
        "end_seed": line["end_seed"],
        **_ends_content(pair, measurement.trust_remote_code),
        "pruning": model_pairs.pruning_options(pair),
        "training": sorted({records.recipe(end.identity, records.COORDINATES["fine-tuning"]) for end in ends}),
        "method_arithmetic": model_pairs.method_arithmetic(pair, measurement.trust_remote_code),
        "precision_used": "no",
    }


def shared_inputs(measurement: Measurement) -> Callable[[Pair], Inputs]:
    """A function that returns a line's tokenized rows; lines of one task and model share them."""
    cached: dict[tuple, Inputs] = {}

    def inputs(pair: Pair) -> Inputs:
        data_dir, sizes = measurement.data_dir, (pair.start.arguments["max_length"], measurement.evaluated_rows(pair))
        key = (_task_source(pair, data_dir), pair.start.result["model"], sizes)
        if key not in cached:
            tokenizer = models.load_tokenizer(str(pair.start.files), measurement.trust_remote_code)
            cached[key] = classification.tokenize_task(load_task(pair, data_dir), tokenizer, *sizes)
        return cached[key]

    return inputs


def run(
    folder: Path, pair: Pair, identity: dict[str, Any], measurement: Measurement, accelerator: Accelerator,
    inputs: Inputs,
) -> None:  # fmt: skip
    """Measure one line and write its run."""
    started, task = time.monotonic(), load_task(pair, measurement.data_dir)
    accelerator.free_memory()
    reset_peak_memory([accelerator.device])
    if accelerator.is_main_process:
        run_folder.start_run(folder, identity, run_folder.describe_environment(str(accelerator.device), precision="no"))
    accelerator.wait_for_everyone()
    ends = pair.end.folder if pair.end else f"its copy pruned to {pair.pruned.name}"
    logger.info("%s: from %s to %s, %d points", folder, pair.start.folder, ends, measurement.num_points)
    model, end, sparsity = load_ends(pair, len(task.label_names) or 1, measurement.trust_remote_code, accelerator)
    seed, train_rows = (
        measurement.seed,
        common_rows(pair, len(inputs.train), measurement.max_train_samples, measurement.seed),
    )
    inputs = runner.fit_inputs(inputs, model, task.label_names, pair.start.arguments.get("label_order"))
    rows = {"train": inputs.train.select(train_rows), "validation": inputs.validation[""]}
    alphas, batch_size = points(measurement.num_points), measurement.per_device_eval_batch_size

    def measure() -> dict[str, np.ndarray]:
        return {
            split: inputs.in_order(training.predict(accelerator, model, data, inputs.collate, batch_size))
            for split, data in rows.items()
        }

    outputs = walk(model, end, alphas, measure)
    if not accelerator.is_main_process:
        return
    lines = {
        split: along_line([point[split] for point in outputs], np.asarray(data["labels"][:]), task.is_regression)
        for split, data in rows.items()
    }
    result = {
        **model_pairs.describe(pair),
        "measured_sparsity": sparsity,
        "recipe": records.recipe(identity, records.COORDINATES["line"]),
        "method_recipe": records.method_recipe(identity),
        "precision": "no",
        "seconds": time.monotonic() - started,
        "peak_memory_bytes": peak_memory([accelerator.device]),
        "num_train_examples": len(train_rows),
        "start": str(pair.start.folder),
        "end": str(pair.end.folder) if pair.end else None,
        "barriers": find_barriers(task.metrics[0], alphas, lines, seed),
        "levels": levels(task.metrics[0], alphas, lines, seed),
    }
    if pair.start.result["transfer"] == model_pairs.DENSE:
        runner.warn_at_chance(folder, result["levels"][:1])
    run_folder.write_run(folder, result, items(lines, train_rows))


def load_ends(
    pair: Pair, num_labels: int, trust_remote_code: bool, accelerator: Accelerator
) -> tuple[nn.Module, dict[str, Tensor], float]:
    """The start as a model, the end as line_tensors, and the measured sparsity of the compressed end."""

    def loaded(folder: Path) -> nn.Module:
        loaded = pretrained.load_pretrained(str(folder), num_labels, trust_remote_code)
        if loaded.new_parameters:
            raise ValueError(f"{folder} lacks {', '.join(sorted(loaded.new_parameters))}")
        return loaded.model.to(accelerator.device)

    # Copied to aligned memory, as in training. Weights mapped from a file start at any multiple of 4 bytes, and on some
    # CPUs MKL orders sums by alignment, where a head has one output or a batch one row.
    start = copy.deepcopy(loaded(pair.start.files))
    if pair.end is not None:
        other = loaded(pair.end.files)
        check_buffers(start, other)
        return start, line_tensors(other), (pair.sparser or pair.start).result["measured_sparsity"]
    body = {id(parameter) for parameter in start.base_model.parameters()}
    head = {name for name, parameter in start.named_parameters() if id(parameter) not in body}
    masks = transfers.select_masks(start, head, model_pairs.pruning_of(pair))[pair.pruned]
    end = {name: tensor.clone() for name, tensor in line_tensors(start).items()}
    apply_masks(end, masks)
    return start, end, zero_fraction(end[name] for name in masks)


def common_rows(pair: Pair, num_rows: int, limit: int, seed: int) -> list[int]:
    """Sorted indices of training rows that both ends were trained on, at most `limit`, drawn by `seed`.

    Raises:
        ValueError: there are none.
    """
    seen = [
        set(glue_data.subset_indices(num_rows, *(end.arguments[name] for name in model_pairs.SAMPLE)))
        for end in (pair.start, pair.end) if end is not None
    ]  # fmt: skip
    common = sorted(set.intersection(*seen))
    if not common:
        raise ValueError(f"{pair.start.folder} and {pair.end.folder} were trained on no row in common")
    return sorted(np.random.default_rng(seed).permutation(common)[:limit].tolist())
