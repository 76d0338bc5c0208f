"""Log-likelihoods from logits; where a model only multiplies its last hidden states, from these.

Then logits of the whole vocabulary are never stored: fresh memory for them takes as long as the product.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_tasks.engine import cpu

AT_ONCE, AT_ONCE_CPU = 2**25, 2**21  # logits computed at once, where they need not be stored: 67 and 4 MB in bf16
EVEN_ROWS = 16  # of a matrix: of some other numbers of them, a processor's product takes up to a fifth longer
FEWEST_COLUMNS = 1024  # of the output layer at once: fewer are no fast product
NORMALIZED_AT_ONCE, NORMALIZED_AT_ONCE_CPU = 2**23, 2**19  # turned to float32 at once; a processor's cache holds 2 MB


class Asked(NamedTuple):
    """What is asked of rows of logits.

    Fields:
        at, tokens: rows and the token each is asked for, both (asked,), int64.
        firsts: rows of which the most likely token is asked.
    """

    at: Tensor
    tokens: Tensor
    firsts: Tensor


@contextlib.contextmanager
def output_in_float32(model: PreTrainedModel, holds: bool) -> Iterator[None]:
    """Inside, the model's output layer computes logits in float32, whatever its weights are in, if it holds.

    For models that do more to their logits than to multiply, such as to cap them.
    """
    layer = model.get_output_embeddings()
    if not holds or type(layer) is not nn.Linear or "forward" in vars(layer):
        yield
        return

    def forward(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            rows = hidden.float().reshape(-1, hidden.shape[-1])
            parts = [logits for _, logits in _vocabulary_parts(rows, layer.weight)]
            found = torch.cat(parts, dim=-1)[: len(rows)].view(*hidden.shape[:-1], len(layer.weight))
            return found if layer.bias is None else found + layer.bias

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


@torch.no_grad()
def read(outputs: Tensor, weights: Tensor | None, asked: Asked) -> tuple[Tensor, Tensor]:
    """Log-likelihoods of the tokens asked for, float32, and the most likely tokens; NaN where a row has NaN.

    Args:
        outputs: logits, (rows, vocabulary), or with weights hidden states, (rows, width), in whose dtype logits are
            computed.
        weights: of the output layer, (vocabulary, width).
        asked: on the outputs' device.
    """
    found = torch.empty(len(asked.at), device=outputs.device)
    largest = torch.full((len(asked.firsts),), -torch.inf, device=outputs.device)
    top = torch.zeros_like(asked.firsts)
    sums = []
    for start, logits in _vocabulary_parts(outputs, weights):
        sums.append(log_sums(logits))
        own = (asked.tokens >= start) & (asked.tokens < start + logits.shape[1])
        found[own] = logits[asked.at[own], asked.tokens[own] - start].float()
        maxima = [logits[some].max(dim=-1) for some in asked.firsts.split(_rows_at_once(logits))]
        value, token = (torch.cat(parts) for parts in zip(*maxima, strict=True))
        top = torch.where(value > largest, token + start, top)
        largest = largest.maximum(value)
        del logits  # before the next are made
    return found - torch.stack(sums).logsumexp(dim=0)[asked.at], top


def _vocabulary_parts(outputs: Tensor, weights: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """Logits of neighbouring tokens, (rows, tokens), and the first of these tokens."""
    if weights is None:
        yield 0, outputs
        return
    if not len(outputs):  # nothing is read
        yield 0, outputs.new_empty(0, len(weights))
        return
    most = AT_ONCE
    if outputs.device.type == "cpu":
        most, outputs = AT_ONCE_CPU, nn.functional.pad(outputs, (0, 0, 0, -len(outputs) % EVEN_ROWS))
    columns = max(FEWEST_COLUMNS, most // len(outputs))
    for start in range(0, len(weights), columns):
        part = weights[start : start + columns]
        # autocast multiplies float32 states by float32 weights in its own dtype: it is off where float32 is wanted
        yield start, nn.functional.linear(outputs, part.to(outputs.dtype) if outputs.dtype == torch.float32 else part)


def log_sums(logits: Tensor) -> Tensor:
    """Float32 logsumexp of every row; some rows at a time, in one place, which a processor's cache holds."""
    if cpu.in_bf16_on_cpu(logits):
        return cpu.compiled_log_sums(logits)
    at_once = _rows_at_once(logits)
    space = torch.empty(min(at_once, len(logits)), logits.shape[1], device=logits.device)
    sums = []
    for part in logits.split(at_once):
        values = space[: len(part)].copy_(part)
        largest = values.amax(dim=-1, keepdim=True)
        sums.append(values.sub_(largest).exp_().sum(dim=-1).log_().add_(largest[:, 0]))
    return torch.cat(sums)


def _rows_at_once(logits: Tensor) -> int:
    most = NORMALIZED_AT_ONCE_CPU if logits.device.type == "cpu" else NORMALIZED_AT_ONCE
    return max(1, most // logits.shape[1])
