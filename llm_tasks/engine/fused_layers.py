"""Layers in bf16 on a CPU, computed by bf16_kernels instead of step by step.

Normalisation, gated MLP and rotary embedding of Llama's kind, and attention where the CPU multiplies bf16 in vectors
and not in matrices, for which torch's is made. A layer that looks like one of these is tried on its own input first
(proven): many models have such layers, and some that look the same compute something else.
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from llm_tasks.engine import bf16_kernels

_own_attention = nn.functional.scaled_dot_product_attention
ATTENTION, ROTARY = "attention", "apply_rotary_pos_emb"
MOST_SCORES = 2**25  # at once: 67 MB
TRIED_TOKENS = 32  # on whose hidden states layers are tried
TWO_ROUNDINGS = 2**-7  # of a number in bf16: what sums in another order may move it by

Block = tuple[int, slice]  # a row of a batch, and contiguous tokens of it
Rotary = Callable[..., tuple[Tensor, Tensor]]

_blocks: ContextVar[list[Block] | None] = ContextVar("blocks", default=None)


class Replacement(NamedTuple):
    """A function, and the layer or Python module that has it under a name."""

    owner: Any
    name: str
    function: Callable[..., Any]


@torch.no_grad()
def proven(model: PreTrainedModel, tokens: Sequence[int]) -> tuple[str, ...]:
    """Kinds of layers that compute the same here as by the model's own code, each on its own input from these tokens.

    The same to rounding: a norm's squares are summed in another order. Attention is torch's function whatever the
    model, and needs no trial; its scores are rounded to bf16, as in transformers' eager attention.

    Args:
        model: in bf16, on a CPU.
        tokens: of one sequence; the first TRIED_TOKENS are fed.
    Returns:
        Names for `replacements`: of classes, ROTARY, ATTENTION.
    """
    fast = {module: _fast_forward(module) for module in model.modules()}
    fast = {module: forward for module, forward in fast.items() if forward}
    failed: set[str] = set()
    angles: list[tuple[Tensor, Tensor]] = []

    def try_layer(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if len(inputs) != 1 or not _same(fast[module](inputs[0]), output):
            failed.add(type(module).__name__)

    def keep_angles(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, tuple) and len(output) == 2 and all(isinstance(part, Tensor) for part in output):
            angles.append(output)

    handles = [module.register_forward_hook(try_layer) for module in fast]
    handles += [
        module.register_forward_hook(keep_angles)
        for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding")
    ]  # fmt: skip
    try:
        model(torch.tensor([list(tokens[:TRIED_TOKENS])]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    names = {type(module).__name__ for module in fast} - failed
    homes = _rotary_homes(model)
    if homes and angles and all(_same_rotary(home, *angle) for home in homes for angle in angles):
        names.add(ROTARY)
    if _multiplies_in_vectors() and model.config.get_text_config()._attn_implementation == "sdpa":
        names.add(ATTENTION)
    return tuple(sorted(names))


def replacements(model: PreTrainedModel, names: Sequence[str]) -> list[Replacement]:
    """The functions that replace the kinds of layers that `proven` named."""
    found = [
        Replacement(module, "forward", _fast_forward(module))
        for module in model.modules() if type(module).__name__ in names and _fast_forward(module)
    ]  # fmt: skip
    if ROTARY in names:
        homes = _rotary_homes(model).items()
        found += [Replacement(home, ROTARY, functools.partial(_rotary, own)) for home, own in homes]
    if ATTENTION in names:
        found.append(Replacement(nn.functional, "scaled_dot_product_attention", _attention))
    return found


def _fast_forward(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The compiled form of a layer that looks like Llama's norm or gated MLP; None of others, and of wrapped ones."""
    if "forward" in vars(module):
        return None
    weights = dict(module.named_parameters(recurse=False))
    if isinstance(getattr(module, "variance_epsilon", None), float) and list(weights) == ["weight"]:
        return functools.partial(_norm, module) if weights["weight"].dim() == 1 else None
    is_gated = {"gate_proj", "up_proj", "down_proj"} <= set(dict(module.named_children()))
    if is_gated and isinstance(getattr(module, "act_fn", None), nn.SiLU | SiLUActivation):
        return functools.partial(_mlp, module)
    return None


def _rotary_homes(model: PreTrainedModel) -> dict[Any, Rotary]:
    """The Python modules of the model's layers that have a function for rotary embeddings, and this function."""
    homes = {sys.modules[type(module).__module__] for module in model.modules()}
    found = {home: getattr(home, ROTARY, None) for home in homes}
    expected = ["q", "k", "cos", "sin"]
    return {home: own for home, own in found.items() if own and list(inspect.signature(own).parameters)[:4] == expected}


def _same(found: Tensor, expected: object) -> bool:
    """Whether every row is the other to rounding in bf16."""
    if not isinstance(expected, Tensor) or expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    distance = (found.float() - expected.float()).norm(dim=-1)
    return bool((distance <= TWO_ROUNDINGS * expected.float().norm(dim=-1)).all())


def _same_rotary(home: Any, cos: Tensor, sin: Tensor) -> bool:
    """Whether a module's function for rotary embeddings is the compiled one, on random queries and keys."""
    own = getattr(home, ROTARY)
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, cos.shape[-2], cos.shape[-1], generator=draw).bfloat16() for heads in (4, 2))
    if cos.dim() != 3 or not _in_bf16(cos, sin):
        return False
    try:
        expected = own(q, k, cos, sin)
    except (RuntimeError, TypeError, ValueError):  # it takes something else
        return False
    return all(map(_same, _rotary(own, q, k, cos, sin), expected))


@contextlib.contextmanager
def in_blocks(blocks: list[Block]) -> Iterator[None]:
    """Inside, in this thread, replaced attention computes these blocks alone, where no tokens stand before the rows.

    Args:
        blocks: outside of which a batch's mask lets no token see another. Where two overlap, the later one holds; a
            token in none attends to nothing.
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
    """Whether the CPU multiplies vectors, but not matrices, in bf16: torch's attention makes no use of that."""
    units = torch.cpu.get_capabilities()
    return units.get("avx512_bf16", False) and not units.get("amx_bf16", False)


def _in_bf16(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 for tensor in tensors)


def _norm(module: nn.Module, hidden_states: Tensor) -> Tensor:
    if not _in_bf16(hidden_states, module.weight):
        return type(module).forward(module, hidden_states)
    return bf16_kernels.rms_norm(hidden_states, module.weight, module.variance_epsilon)


def _mlp(module: nn.Module, x: Tensor) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    if not (_in_bf16(gate, up) and gate.is_contiguous() and up.is_contiguous()):
        return module.down_proj(module.act_fn(gate) * up)
    return module.down_proj(bf16_kernels.silu_times_(gate, up))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """torch's own, with its arguments; with a mask of all heads it is two matmuls, one block after the other.

    So the scores between them stay in the CPU's cache.
    """
    heads, queries, width = query.shape[-3:]
    groups, keys = key.shape[-3:-1]
    plain = dropout_p == 0 and not is_causal and (enable_gqa or groups == heads) and value.shape == key.shape
    plain = plain and attn_mask is not None and attn_mask.shape == (*query.shape[:-3], 1, queries, keys)
    parts: list[tuple[int, slice, slice]] = []
    if plain and query.ndim == 4 and _in_bf16(query, key, value, attn_mask):
        whole = [(row, slice(0, queries), slice(0, keys)) for row in range(len(query))]
        blocks = _blocks.get()
        parts = whole if blocks is None else [(row, queried, queried) for row, queried in blocks]
    scores = [heads * (queried.stop - queried.start) * (seen.stop - seen.start) for _, queried, seen in parts]
    if not 0 < max(scores, default=0) <= MOST_SCORES:
        return _own_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    scale = width**-0.5 if scale is None else scale
    attended = query.new_zeros(len(query), queries, heads, width)
    for row, queried, seen in parts:
        q, k, v = query[row, :, queried], key[row, :, seen], value[row, :, seen]
        mask = attn_mask[row, 0, queried, seen].contiguous()
        weights = q.reshape(groups, -1, width).bmm(k.transpose(1, 2))
        bf16_kernels.softmax_(weights.view(heads, *mask.shape), scale, mask)
        attended[row, queried] = weights.bmm(v).view(q.shape).transpose(0, 1)
    return attended.transpose(1, 2)


def _rotary(
    own: Rotary, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    whole = q.dim() == cos.dim() + 1 == 4 and q.shape[-1] == k.shape[-1] == cos.shape[-1]
    if unsqueeze_dim != 1 or not whole or not _in_bf16(q, k, cos, sin):
        return own(q, k, cos, sin, unsqueeze_dim)
    cos, sin = cos.contiguous(), sin.contiguous()
    return bf16_kernels.rotate(q.transpose(1, 2), cos, sin), bf16_kernels.rotate(k.transpose(1, 2), cos, sin)
