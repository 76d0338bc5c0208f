"""Replaces layers of a bf16 model on a CPU by the compiled loops of bf16_kernels.

These are RMS norms, gated MLPs and rotary embeddings like Llama's; and attention, on CPUs that have vector but no
matrix instructions for bf16: with the latter torch's attention is fast. A layer that looks like one of these is first
tried on its input (proven): many models have such layers, and some that look the same compute something else.
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
from llm_tasks.engine.packing import Block

_torch_attention = nn.functional.scaled_dot_product_attention
ATTENTION, ROTARY = "attention", "apply_rotary_pos_emb"
MOST_SCORES = 2**25  # attention scores at once: 67 MB
TRIED_TOKENS = 32  # length of the sequence on which layers are tried
TWO_ROUNDINGS = 2**-7  # relative error of two roundings to bf16, which another order of a sum may cause

Rotary = Callable[..., tuple[Tensor, Tensor]]

_blocks: ContextVar[list[Block] | None] = ContextVar("blocks", default=None)


class Replacement(NamedTuple):
    """A function that replaces the attribute `name` of `target`, a layer or a Python module."""

    target: Any
    name: str
    function: Callable[..., Any]


@torch.no_grad()
def proven(model: PreTrainedModel, tokens: Sequence[int]) -> tuple[str, ...]:
    """Names of the layer types whose compiled loops compute what the model does, each tried on its input.

    Equal to rounding: a norm's squares are summed in another order. Attention is the same function of torch in every
    model and is not tried; its scores are rounded to bf16, as in transformers' eager attention.

    Args:
        model: in bf16, on a CPU.
        tokens: a sequence, of which the first TRIED_TOKENS are fed.
    Returns:
        Names of classes, ROTARY and ATTENTION, for `replacements`.
    """
    fast = {module: _fast_forward(module) for module in model.modules()}
    fast = {module: forward for module, forward in fast.items() if forward}
    failed: set[str] = set()
    angles: list[tuple[Tensor, Tensor]] = []

    def try_layer(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if len(inputs) != 1 or not _equal_to_rounding(fast[module](inputs[0]), output):
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
    functions = _rotary_functions(model).values()
    if functions and angles and all(_equal_rotary(function, *angle) for function in functions for angle in angles):
        names.add(ROTARY)
    if _has_vector_bf16_only() and model.config.get_text_config()._attn_implementation == "sdpa":
        names.add(ATTENTION)
    return tuple(sorted(names))


def replacements(model: PreTrainedModel, names: Sequence[str]) -> list[Replacement]:
    """The replacements for the layer types that `proven` returned."""
    result = [
        Replacement(module, "forward", _fast_forward(module))
        for module in model.modules() if type(module).__name__ in names and _fast_forward(module)
    ]  # fmt: skip
    if ROTARY in names:
        functions = _rotary_functions(model).items()
        result += [Replacement(module, ROTARY, functools.partial(_rotary, original)) for module, original in functions]
    if ATTENTION in names:
        result.append(Replacement(nn.functional, "scaled_dot_product_attention", _attention))
    return result


def _fast_forward(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Compiled forward of a layer that looks like Llama's norm or gated MLP; None for others and for wrapped ones."""
    if "forward" in vars(module):
        return None
    weights = dict(module.named_parameters(recurse=False))
    if isinstance(getattr(module, "variance_epsilon", None), float) and list(weights) == ["weight"]:
        return functools.partial(_norm, module) if weights["weight"].dim() == 1 else None
    is_gated = {"gate_proj", "up_proj", "down_proj"} <= set(dict(module.named_children()))
    if is_gated and isinstance(getattr(module, "act_fn", None), nn.SiLU | SiLUActivation):
        return functools.partial(_mlp, module)
    return None


def _rotary_functions(model: PreTrainedModel) -> dict[Any, Rotary]:
    """By Python module of the model's layers, its function apply_rotary_pos_emb, if it takes q, k, cos and sin."""
    modules = {sys.modules[type(module).__module__] for module in model.modules()}
    functions = {module: getattr(module, ROTARY, None) for module in modules}
    return {
        module: function
        for module, function in functions.items()
        if function and list(inspect.signature(function).parameters)[:4] == ["q", "k", "cos", "sin"]
    }


def _equal_to_rounding(computed: Tensor, expected: object) -> bool:
    """Whether all rows are equal to rounding in bf16."""
    if not isinstance(expected, Tensor) or expected.shape != computed.shape or expected.dtype != computed.dtype:
        return False
    distance = (computed.float() - expected.float()).norm(dim=-1)
    return bool((distance <= TWO_ROUNDINGS * expected.float().norm(dim=-1)).all())


def _equal_rotary(original: Rotary, cos: Tensor, sin: Tensor) -> bool:
    """Whether the compiled rotary embedding computes what the original does, on random queries and keys."""
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, cos.shape[-2], cos.shape[-1], generator=draw).bfloat16() for heads in (4, 2))
    if cos.dim() != 3 or not _in_bf16(cos, sin):
        return False
    try:
        expected = original(q, k, cos, sin)
    except (RuntimeError, TypeError, ValueError):  # it takes something else
        return False
    return all(map(_equal_to_rounding, _rotary(original, q, k, cos, sin), expected))


@contextlib.contextmanager
def in_blocks(blocks: list[Block]) -> Iterator[None]:
    """Inside, in this thread, compiled attention computes only these blocks of rows without a prefix.

    Args:
        blocks: all that the batch's mask leaves visible: no token attends to one outside its block. Where two overlap,
            the result is the later one's; tokens in none get zeros.
    """
    token = _blocks.set(blocks)
    try:
        yield
    finally:
        _blocks.reset(token)


@contextlib.contextmanager
def replaced(some: list[Replacement]) -> Iterator[None]:
    """Inside, in all threads, the replacements are in effect."""
    before = [vars(target).get(name) for target, name, _ in some]
    try:
        for target, name, function in some:
            setattr(target, name, function)
        yield
    finally:
        for (target, name, _), original in zip(some, before, strict=True):
            if original is None:
                delattr(target, name)
            else:
                setattr(target, name, original)


def _has_vector_bf16_only() -> bool:
    """Whether the CPU has vector but no matrix instructions for bf16; torch's attention does not use the former."""
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
    """scaled_dot_product_attention; with a mask for all heads, as two matmuls per block.

    The scores of a block stay in the CPU's cache between them.
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
        return _torch_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
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
    original: Rotary, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    whole = q.dim() == cos.dim() + 1 == 4 and q.shape[-1] == k.shape[-1] == cos.shape[-1]
    if unsqueeze_dim != 1 or not whole or not _in_bf16(q, k, cos, sin):
        return original(q, k, cos, sin, unsqueeze_dim)
    cos, sin = cos.contiguous(), sin.contiguous()
    return bf16_kernels.rotate(q.transpose(1, 2), cos, sin), bf16_kernels.rotate(k.transpose(1, 2), cos, sin)
