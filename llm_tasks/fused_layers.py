"""Layers of Llama's kind in bf16 on a processor, computed by bf16_kernels instead of step by step.

Normalisation, gated MLP and rotary embedding with Llama's code (same_code); all others stay as they are.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from llm_tasks import bf16_kernels
from llm_tasks.same_code import same_code

_norm_forward, _mlp_forward = LlamaRMSNorm.forward, LlamaMLP.forward


class Replacement(NamedTuple):
    """A function, and the class or module that has it under a name."""

    owner: Any
    name: str
    function: Callable[..., Any]


def replacements(model: PreTrainedModel) -> list[Replacement]:
    """What can be computed faster in a model in bf16 on a processor, with the result that it has otherwise.

    The same but for the order in which a norm's squares are summed, in float32.
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
    return norms + mlps + rotary


@contextlib.contextmanager
def replaced(some: list[Replacement]) -> Iterator[None]:
    """Inside, the functions stand where they belong."""
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


def _rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    if unsqueeze_dim != 1 or not _in_bf16(q, k, cos, sin):
        return apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)
    cos, sin = cos.contiguous(), sin.contiguous()
    return bf16_kernels.rotate(q.transpose(1, 2), cos, sin), bf16_kernels.rotate(k.transpose(1, 2), cos, sin)
