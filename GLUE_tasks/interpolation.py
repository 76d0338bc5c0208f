"""The line between two fine-tuned models: walked in place, with loss and answer of every item at every point."""

import itertools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from scipy.special import logsumexp
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Measured = TypeVar("Measured")


def points(num_points: int) -> np.ndarray:
    """Evenly spaced alphas from exactly 0, the start, to exactly 1, the end.

    Raises:
        ValueError: fewer than 3, which leave nothing between the ends.
    """
    if num_points < 3:
        raise ValueError(f"{num_points} points: at least 3 are needed, the two ends and one between them")
    return np.linspace(0, 1, num_points)


@torch.no_grad()
def walk(
    model: nn.Module, end: Mapping[str, Tensor], alphas: np.ndarray, measure: Callable[[], Measured]
) -> list[Measured]:
    """What `measure` finds at every point of the line; `model` is the start at first and bit-equal to the end at last.

    Each point is reached from the one before it, in the model's own memory: with `end` that is two models, not three.
    The rounding of the steps adds up to some units in a weight's last place (float32).

    Args:
        model: the start; its parameters and float buffers are overwritten.
        end: what line_tensors returned of the other model, on the same device.
        alphas: what points returned.
        measure: looks at the model as it then is; it must leave the weights alone.
    """
    tensors = line_tensors(model)
    check_same_tensors({name: tensor.shape for name, tensor in tensors.items()},
                       {name: tensor.shape for name, tensor in end.items()})  # fmt: skip
    found = [measure()]
    for before, alpha in itertools.pairwise(alphas):
        step_toward(tensors, end, (alpha - before) / (1 - before))
        found.append(measure())
    return found


def step_toward(tensors: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> None:
    """Move every tensor, in place, by `share` of its way to the end's; a share of 1 copies, without any rounding."""
    for name, tensor in tensors.items():
        if share >= 1:
            tensor.copy_(end[name])
        else:
            tensor.lerp_(end[name], share)


def line_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a line is drawn through, in the model's own memory: parameters and buffers of float kind."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach() for name, tensor in named.items() if tensor.is_floating_point()}


def check_buffers(start: nn.Module, end: nn.Module) -> list[str]:
    """Names of the float buffers that differ and are therefore interpolated too, which is said in the log.

    Raises:
        ValueError: a buffer of whole numbers differs: nothing lies between.
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


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a saved model, from the headers of its files alone.

    Raises:
        ValueError: a file is no safetensors, or cut off.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as stored:
                names = stored.keys()
                shapes.update({name: tuple(stored.get_slice(name).get_shape()) for name in names})
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    return shapes


def check_same_tensors(start: Mapping[str, tuple[int, ...]], end: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse two models between which there is no line.

    Raises:
        ValueError: names the first parameter that only one of them has or that has another shape.
    """
    for name in [*start, *end]:
        if name not in start or name not in end:
            owner, other = ("start", "end") if name in start else ("end", "start")
            raise ValueError(f"the {owner} has a parameter {name}, which the {other} lacks: there is no line between")
        if tuple(start[name]) != tuple(end[name]):
            raise ValueError(
                f"the parameter {name} is {list(start[name])} at the start and {list(end[name])} at the end: models of "
                "different shapes or heads have no line between them"
            )


def item_losses(outputs: np.ndarray, labels: np.ndarray, is_regression: bool) -> np.ndarray:
    """The loss of every item as training takes it: cross entropy, or the squared difference of a regression.

    Args:
        outputs: the model's, (items, classes); of a regression (items, 1).
        labels: class numbers or floats, (items,).
    Returns:
        (items,), float64.
    Raises:
        FloatingPointError: an output is NaN or infinite.
    """
    if not np.isfinite(outputs).all():
        raise FloatingPointError("the model's outputs are NaN or infinite between the two models")
    outputs = outputs.astype(np.float64)
    if is_regression:
        return (outputs[:, 0] - labels) ** 2
    return logsumexp(outputs, axis=1) - outputs[np.arange(len(labels)), labels]


def predictions(outputs: np.ndarray, is_regression: bool) -> np.ndarray:
    """The model's answer to every item: a class number, or the float of a regression, (items,)."""
    return outputs[:, 0] if is_regression else outputs.argmax(axis=1)


def along_line(outputs: list[np.ndarray], labels: np.ndarray, is_regression: bool) -> dict[str, np.ndarray]:
    """Loss and answer of every item at every point.

    Args:
        outputs: per point (items, classes).
    Returns:
        loss (items, points) float64, prediction (items, points), label (items,).
    """
    return {
        "loss": np.stack([item_losses(output, labels, is_regression) for output in outputs], axis=1),
        "prediction": np.stack([predictions(output, is_regression) for output in outputs], axis=1),
        "label": labels,
    }
