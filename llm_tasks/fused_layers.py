"""Layers of Llama's kind in bf16 on a processor, computed by bf16_kernels instead of step by step.

Normalisation, gated MLP and rotary embedding with Llama's code (same_code), and attention where the processor
multiplies bf16 in vectors and not in matrices, for which torch's is made; all others stay as they are.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from llm_tasks import bf16_kernels
from llm_tasks.same_code import same_code

_norm_forward, _mlp_forward = LlamaRMSNorm.forward, LlamaMLP.forward
_own_attention = nn.functional.scaled_dot_product_attention
MOST_SCORES = 2**25  # at once: 67 MB

Block = tuple[int, slice]  # a row of a batch, and neighbouring places in it

_blocks: ContextVar[list[Block] | None] = ContextVar("blocks", default=None)


class Replacement(NamedTuple):
    """A function, and the class or module that has it under a name."""

    owner: Any
    name: str
    function: Callable[..., Any]


def replacements(model: PreTrainedModel) -> list[Replacement]:
    """What can be computed faster in a model in bf16 on a processor, with the result that it has otherwise.

    The same but for the order in which a norm's squares are summed, in float32, and for scores of attention, which are
    rounded to bf16 as in transformers' eager attention.
    """
    kinds = {type(module) for module in model.modules()}
    norms = [Replacement(kind, "forward", _norm) for kind in kinds if same_code(kind.forward, _norm_forward)]
    mlps = [Replacement(kind, "forward", _mlp) for kind in kinds if same_code(kind.forward, _mlp_forward)]
    homes = {sys.modules[kind.__module__] for kind in kinds}
    rotary = [
        Replacement(home, "apply_rotary_pos_emb", _rotary)
        for home in homes
        if same_code(getattr(home, "apply_rotary_pos_emb", None), apply_rotary_pos_emb)
    ]
    attention = Replacement(nn.functional, "scaled_dot_product_attention", _attention)
    return norms + mlps + rotary + ([attention] if _multiplies_in_vectors() else [])


def attends_in_blocks(model: PreTrainedModel) -> bool:
    """Whether attention of a model in bf16 costs what the blocks of its rows cost, however long the rows."""
    return _multiplies_in_vectors() and model.config.get_text_config()._attn_implementation == "sdpa"


@contextlib.contextmanager
def in_blocks(blocks: list[Block]) -> Iterator[None]:
    """Inside, in this thread, replaced attention computes these blocks alone, where no tokens stand before the rows.

    Args:
        blocks: outside of which a batch's mask lets no place see another. Where two overlap, the later one holds; a
            place in none attends to nothing.
    """
    token = _blocks.set(blocks)
    try:
        yield
    finally:
        _blocks.reset(token)


@contextlib.contextmanager
def replaced(some: list[Replacement]) -> Iterator[None]:
    """Inside, in all threads, the functions stand where they belong."""
    before = [vars(owner).get(name) for owner, name, _ in some]
    try:
        for owner, name, function in some:
            setattr(owner, name, function)
        yield
    finally:
        for (owner, name, _), own in zip(some, before, strict=True):
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


def _multiplies_in_vectors() -> bool:
    """Whether the processor has bf16 products of vectors alone, which torch's attention makes no use of."""
    units = torch.cpu.get_capabilities()
    return units.get("avx512_bf16", False) and not units.get("amx_bf16", False)


def _in_bf16(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 for tensor in tensors)


def _norm(self: nn.Module, hidden_states: Tensor) -> Tensor:
    if not _in_bf16(hidden_states, self.weight):
        return _norm_forward(self, hidden_states)
    return bf16_kernels.rms_norm(hidden_states, self.weight, self.variance_epsilon)


def _mlp(self: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(self.act_fn, nn.SiLU | SiLUActivation):
        return _mlp_forward(self, x)
    gate, up = self.gate_proj(x), self.up_proj(x)
    if not (_in_bf16(gate, up) and gate.is_contiguous() and up.is_contiguous()):
        return self.down_proj(self.act_fn(gate) * up)
    return self.down_proj(bf16_kernels.silu_times_(gate, up))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """torch's own, with its arguments; with a mask of all heads it is two products, one block after the other.

    So the scores between them stay in the processor's cache.
    """
    heads, queries, width = query.shape[-3:]
    groups, keys = key.shape[-3:-1]
    plain = dropout_p == 0 and not is_causal and (enable_gqa or groups == heads) and value.shape == key.shape
    plain = plain and attn_mask is not None and attn_mask.shape == (*query.shape[:-3], 1, queries, keys)
    parts: list[tuple[int, slice, slice]] = []
    if plain and query.ndim == 4 and _in_bf16(query, key, value, attn_mask):
        whole = [(row, slice(0, queries), slice(0, keys)) for row in range(len(query))]
        blocks = _blocks.get()
        parts = whole if blocks is None else [(row, places, places) for row, places in blocks]
    scores = [heads * (places.stop - places.start) * (seen.stop - seen.start) for _, places, seen in parts]
    if not 0 < max(scores, default=0) <= MOST_SCORES:
        return _own_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    scale = width**-0.5 if scale is None else scale
    attended = query.new_zeros(len(query), queries, heads, width)
    for row, places, seen in parts:
        q, k, v = query[row, :, places], key[row, :, seen], value[row, :, seen]
        mask = attn_mask[row, 0, places, seen].contiguous()
        weights = q.reshape(groups, -1, width).bmm(k.transpose(1, 2))
        bf16_kernels.softmax_(weights.view(heads, *mask.shape), scale, mask)
        attended[row, places] = weights.bmm(v).view(q.shape).transpose(0, 1)
    return attended.transpose(1, 2)


def _rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    if unsqueeze_dim != 1 or not _in_bf16(q, k, cos, sin):
        return apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)
    cos, sin = cos.contiguous(), sin.contiguous()
    return bf16_kernels.rotate(q.transpose(1, 2), cos, sin), bf16_kernels.rotate(k.transpose(1, 2), cos, sin)
