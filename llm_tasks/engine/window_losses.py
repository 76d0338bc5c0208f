"""Losses on windows of a text, of a model in memory or streamed block by block from files, and their perplexity."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.device import autocast
from harness.progress import Progress
from llm_tasks.engine.processes import ALONE, Processes
from pruning.blocks import CPU, BlockStorage
from pruning.replay import Replay

POSITIONS_PER_LOSS = 1024  # positions whose logits are converted to float32 at once


def window_losses(logits: Tensor, windows: Tensor) -> list[float]:
    """Mean negative log-likelihood per token of each window, without its first token, in nats.

    Args:
        logits: (windows, seq_len, vocabulary), of any dtype; losses are computed in float32.
        windows: (windows, seq_len) token ids.
    """
    targets = windows[:, 1:].to(logits.device)
    total = torch.zeros(len(windows), device=logits.device)
    step = max(1, POSITIONS_PER_LOSS // len(windows))
    for start in range(0, targets.shape[1], step):
        chunk = targets[:, start : start + step]
        scores = logits[:, start : start + chunk.shape[1]].float()
        total += nn.functional.cross_entropy(scores.transpose(1, 2), chunk, reduction="none").sum(dim=1)
    return (total / targets.shape[1]).tolist()


@torch.no_grad()
def losses_in_memory(
    model: PreTrainedModel, windows: Tensor, tokens_per_batch: int, precision: str, processes: Processes = ALONE
) -> np.ndarray:
    """Loss of every window (window_losses), (windows,) float64; several processes divide the windows.

    Args:
        windows: (windows, seq_len) token ids.
        tokens_per_batch: tokens computed at once; a batch has at least one window.
        precision: "bf16" computes the matmuls of a float32 model in bf16.
    """
    losses = np.zeros(len(windows))
    starts = range(0, len(windows), max(1, tokens_per_batch // windows.shape[1]))
    part = processes.local_part([1] * len(starts))
    with processes.together():
        for start in Progress(starts[part.start : part.stop], "perplexity"):
            batch = windows[start : start + starts.step]
            with autocast(precision, model.device.type, model.dtype):
                logits = model(batch.to(model.device), use_cache=False).logits
            losses[start : start + len(batch)] = window_losses(logits, batch)
            del logits  # before the next are computed
    return processes.merge(losses)


@torch.no_grad()
def losses_blockwise(
    model: PreTrainedModel, storage: BlockStorage, windows: Tensor, tokens_per_batch: int, precision: str
) -> np.ndarray:
    """losses_in_memory with one block on the device at a time: it computes all windows before the next is brought.

    Their hidden states are in host memory.
    """
    replay = Replay(model, storage, windows, tokens_per_batch, precision, activations=CPU)
    for index in Progress(range(len(replay.batches.blocks)), "perplexity"):
        with storage.hold(index) as block:
            replay.advance(index, block)
    losses: list[float] = []
    for batch, logits in replay.logits():
        losses += window_losses(logits, batch)
        del logits  # before the next are computed
    return np.array(losses)


def describe_perplexity(text: str, losses: np.ndarray, vocabulary: int) -> dict[str, Any]:
    """Result of a run's only level: perplexity, exp of the mean loss. Its chance is that of uniform predictions.

    Args:
        text: name of the level.
        losses: loss of every window, in nats; the standard error is over windows.
        vocabulary: size of the model's vocabulary.
    Raises:
        FloatingPointError: a loss is NaN or infinite.
    """
    if not np.isfinite(losses).all():
        raise FloatingPointError("the compressed model's losses are NaN or infinite")
    score = math.exp(losses.mean())
    stderr = score * losses.std(ddof=1) / math.sqrt(len(losses)) if len(losses) > 1 else None
    return {
        "level": text, "difficulty": 0.0, "metric": "perplexity", "score": score, "chance": vocabulary,
        "stderr": stderr, "num_examples": len(losses),
    }  # fmt: skip
