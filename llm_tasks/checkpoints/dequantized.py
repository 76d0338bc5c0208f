"""Dense linear layers in the place of GPTQ's and AWQ's packed ones, so that a CPU computes in the parent's dtype.

For a CPU gptqmodel chooses kernels that round weights and outputs to bfloat16, whatever the model's dtype is.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

# By kind of checkpoint, gptqmodel's kernel that keeps the packed integers as they are stored.
PLAIN_KERNELS = {"gptq": "torch", "awq": "torch_awq"}


def with_plain_kernel(config: PretrainedConfig, kind: str) -> PretrainedConfig:
    """Set, in a checkpoint's config, the kernel whose layers `dequantize` can read.

    Args:
        kind: one of PLAIN_KERNELS.
    """
    stored: Any = config.quantization_config
    entries = dict(stored) if isinstance(stored, Mapping) else stored.to_dict()
    config.quantization_config = {**entries, "backend": PLAIN_KERNELS[kind]}
    return config


def dequantize(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace every packed layer by a dense one with the weight that its integers, zero points and scales stand for.

    Call it before the first forward pass, in which some kernels change their tensors.
    """
    for name, module in list(model.named_modules()):
        if hasattr(module, "qweight"):
            weight = dense_weight(module)
            dense = nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None, device="meta")
            dense.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
            if module.bias is not None:
                dense.bias = nn.Parameter(module.bias.to(dtype), requires_grad=False)
            model.set_submodule(name, dense)


@torch.no_grad()
def dense_weight(module: nn.Module) -> Tensor:
    """scale * (code - zero point) of one of gptqmodel's layers, (out_features, in_features), in float32."""
    module.scales = module.scales.float()  # else the products are rounded to float16
    if hasattr(module, "dequantize_weight"):  # of the class: the module's own is compiled, which takes a minute
        weight = type(module).dequantize_weight(module)
    else:
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

        weight = dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size)
    return weight.T.contiguous()
