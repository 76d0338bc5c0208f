"""Log-likelihoods from logits; where a model only multiplies its last hidden states, from these.

Then logits of the whole vocabulary are never stored: fresh memory for them takes as long as the product.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from llm_tasks.same_code import same_code

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


def projects_plainly(model: PreTrainedModel) -> bool:
    """Whether logits are the last hidden states times the output layer's weights, as in Llama, and nothing else."""
    output = model.get_output_embeddings()
    if type(output) is not nn.Linear or output.bias is not None or is_spread(model):
        return False
    hooked = "forward" in vars(model)
    return not hooked and same_code(type(model).forward, LlamaForCausalLM.forward)


def is_spread(model: PreTrainedModel) -> bool:
    """Whether a model's layers are on several devices."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def in_bf16_on_cpu(computed: PreTrainedModel | Tensor) -> bool:
    """Whether bf16_kernels are for it."""
    return computed.device.type == "cpu" and computed.dtype == torch.bfloat16


@torch.no_grad()
def read(outputs: Tensor, weights: Tensor | None, asked: Asked) -> tuple[Tensor, Tensor]:
    """Log-likelihoods of the tokens asked for, float32, and the most likely tokens; NaN where a row has NaN.

    Args:
        outputs: logits, (rows, vocabulary), or with weights hidden states, (rows, width).
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
    most = AT_ONCE
    if outputs.device.type == "cpu":
        most, outputs = AT_ONCE_CPU, nn.functional.pad(outputs, (0, 0, 0, -len(outputs) % EVEN_ROWS))
    columns = max(FEWEST_COLUMNS, most // len(outputs))
    for start in range(0, len(weights), columns):
        yield start, nn.functional.linear(outputs, weights[start : start + columns])


def log_sums(logits: Tensor) -> Tensor:
    """Float32 logsumexp of every row; some rows at a time, in one place, which a processor's cache holds."""
    if in_bf16_on_cpu(logits):
        from llm_tasks import bf16_kernels  # its compiler takes half a second and 90 MB

        return bf16_kernels.log_sums(logits)
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
