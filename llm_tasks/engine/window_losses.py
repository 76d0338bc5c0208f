"""Losses on windows of a text, of a model in memory or streamed block by block from files, and their perplexity.

Beside the dense model also how far the distributions of the next token are from its own (Dutta et al., "Accuracy is not
all you need", 2024).
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.device import autocast, is_out_of_memory, release_memory, to_device
from harness.progress import Progress
from llm_tasks.engine.processes import ALONE, Processes
from pruning.blocks import CPU, BlockStorage
from pruning.replay import Replay

logger = logging.getLogger(__name__)

KL = "window_kl"
LARGEST_LOSS = 700  # nats; of more, the perplexity or its standard error may be larger than any float
POSITIONS_PER_LOSS = 1024  # positions whose logits are converted to float32 at once


def window_losses(logits: Tensor, windows: Tensor) -> list[float]:
    """Mean negative log-likelihood per token of each window, without its first token, in nats.

    Args:
        logits: (windows, seq_len, vocabulary), of any dtype; losses are computed in float32.
        windows: (windows, seq_len) token ids.
    """
    targets = to_device(windows[:, 1:], logits.device)
    total = torch.zeros(len(windows), device=logits.device)
    step = max(1, POSITIONS_PER_LOSS // len(windows))
    for start in range(0, targets.shape[1], step):
        chunk = targets[:, start : start + step]
        scores = logits[:, start : start + chunk.shape[1]].float()
        total += nn.functional.cross_entropy(scores.transpose(1, 2), chunk, reduction="none").sum(dim=1)
    return (total / targets.shape[1]).tolist()


def window_divergences(dense: Tensor, compressed: Tensor) -> list[float]:
    """Mean KL(dense || compressed) per token of each window, over the distributions that window_losses reads, in nats.

    Args:
        dense, compressed: logits, (windows, seq_len, vocabulary), of any dtype; computed in float32.
    """
    total = torch.zeros(len(dense), device=dense.device)
    positions = dense.shape[1] - 1
    step = max(1, POSITIONS_PER_LOSS // len(dense))
    for start in range(0, positions, step):
        chunk = slice(start, min(start + step, positions))
        one, other = (logits[:, chunk].float().log_softmax(-1) for logits in (dense, compressed))
        # A token that the dense model excludes (logit -inf) adds nothing.
        difference = torch.where(one.isneginf(), 0.0, one - other)
        total += (one.exp() * difference).sum(dim=(1, 2))
    return (total / positions).clamp(min=0).tolist()  # rounding may go below 0


@torch.no_grad()
def measured_in_memory(
    model: PreTrainedModel, windows: Tensor, tokens_per_batch: int, precision: str, processes: Processes = ALONE,
    dense: PreTrainedModel | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What is measured on every window, (windows,) float64 each; several processes divide the windows.

    Args:
        windows: (windows, seq_len) token ids.
        tokens_per_batch: tokens computed at once; a batch has at least one window. Halved, for good, where memory runs
            out.
        precision: "bf16" computes the matmuls of a float32 model in bf16.
        dense: in memory too; it is computed on the same batches, and nothing of it is stored or rounded in between.
    Returns:
        window_loss (window_losses); with `dense` also window_kl (window_divergences).
    """
    found = {name: np.zeros(len(windows)) for name in (("window_loss",) if dense is None else ("window_loss", KL))}
    at_once = max(1, tokens_per_batch // windows.shape[1])
    part = processes.local_part([1] * math.ceil(len(windows) / at_once))
    done, end = at_once * part.start, min(at_once * part.stop, len(windows))
    with processes.together(), Progress(name="perplexity", total=end - done) as progress:
        while done < end:
            batch = windows[done : min(done + at_once, end)]
            if (measured := _measured_if_it_fits(model, dense, batch, precision)) is None:
                at_once = (len(batch) + 1) // 2
                release_memory()
                logger.warning("memory ran out: from here on %d windows are computed at once", at_once)
                continue
            for name, values in measured.items():
                found[name][done : done + len(batch)] = values
            done += len(batch)
            progress.update(len(batch))
    return {name: processes.merge(values) for name, values in found.items()}


def _measured_if_it_fits(
    model: PreTrainedModel, dense: PreTrainedModel | None, batch: Tensor, precision: str
) -> dict[str, list[float]] | None:
    """What measured_in_memory measures, of a batch; None where memory runs out, unless it is a single window."""
    try:
        logits = _logits(model, batch, precision)
        measured = {"window_loss": window_losses(logits, batch)}
        if dense is not None:
            measured[KL] = window_divergences(_logits(dense, batch, precision), logits)
        return measured
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(batch) == 1:
            raise
    return None


def _logits(model: PreTrainedModel, batch: Tensor, precision: str) -> Tensor:
    with autocast(precision, model.device.type, model.dtype):
        return model(to_device(batch, model.device), use_cache=False).logits


@torch.no_grad()
def losses_blockwise(
    model: PreTrainedModel, storage: BlockStorage, windows: Tensor, tokens_per_batch: int, precision: str
) -> np.ndarray:
    """Loss of every window, (windows,): as measured_in_memory, with one block on the device at a time.

    A block computes all windows, whose hidden states are in host memory, before the next is brought.
    """
    replay = Replay(model, storage, windows, tokens_per_batch, precision, activations=CPU)
    for index in Progress(range(len(replay.batches.blocks)), "perplexity"):
        with storage.hold(index) as block:
            replay.advance(index, block)
    losses: list[float] = []
    while len(losses) < len(windows):
        try:
            for batch, logits in replay.logits(len(losses)):
                losses += window_losses(logits, batch)
                del logits  # before the next are computed
        except RuntimeError as error:
            replay.batches.halve(error)
    return np.array(losses)


def perplexity(losses: np.ndarray) -> float:
    """exp of the mean of the windows' losses.

    Raises:
        FloatingPointError: the mean exceeds LARGEST_LOSS.
    """
    if (mean := losses.mean()) > LARGEST_LOSS:
        raise FloatingPointError(f"the mean loss is {mean:.6g} nats per token: too large for a perplexity")
    return math.exp(mean)


def describe_perplexity(text: str, items: Mapping[str, np.ndarray], vocabulary: int) -> dict[str, Any]:
    """Result of a run's only level: perplexity, exp of the mean loss. Its chance is that of uniform predictions.

    Args:
        text: name of the level.
        items: of every window the loss (window_loss) and, where it was measured, the divergence (window_kl), in nats;
            standard errors are over windows.
        vocabulary: size of the model's vocabulary.
    Raises:
        FloatingPointError: a loss or divergence is NaN or infinite, or their mean exceeds LARGEST_LOSS.
    """
    if not all(np.isfinite(own).all() for own in items.values()):
        raise FloatingPointError("the compressed model's losses are NaN or infinite")
    losses = items["window_loss"]
    count, score = len(losses), perplexity(losses)
    level = {
        "level": text, "difficulty": 0.0, "metric": "perplexity", "score": score, "chance": vocabulary,
        "stderr": score * losses.std(ddof=1) / math.sqrt(count) if count > 1 else None, "num_examples": count,
    }  # fmt: skip
    if KL in items:
        error = items[KL].std(ddof=1) / math.sqrt(count) if count > 1 else None
        level |= {"kl": items[KL].mean(), "kl_stderr": error}
    return level
