"""Packed checkpoints that serve: our integers, packed by the gptqmodel library, in a folder that it and others load.

gptqmodel is optional (requirements-export.txt) and imported where it is needed alone: importing it takes seconds.
"""

import copy
import importlib.util
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.layers import LinearWeight, decoder_weights
from quantization.gptq import Quantized

BITS = (2, 3, 4, 8)
GROUP_SIZES = (-1, 16, 32, 64, 128, 256, 512, 1024)  # TorchLinear, the kernel that runs everywhere, has no others
WORD = 32  # codes are packed into words of so many bits, along the inputs; zeros along the outputs


def check_exportable(model: PreTrainedModel, bits: Iterable[int], group_size: int) -> None:
    """Refuse what the packed format or the library's kernels cannot have.

    Args:
        model: may be on the meta device.
        bits, group_size: of the grids, as in quantization.gptq.
    Raises:
        ValueError: bits or group size that the format lacks, groups or words that do not divide a weight, expert
            weights, an architecture that the library does not know, or no library (the command that installs it).
    """
    if unknown := [number for number in bits if number not in BITS]:
        raise ValueError(f"--export gptqmodel packs {', '.join(map(str, BITS))} bits, not --bits {unknown[0]}")
    if group_size not in GROUP_SIZES:
        raise ValueError(
            f"--export gptqmodel: --group_size {group_size} has no kernel; there are {', '.join(map(str, GROUP_SIZES))}"
        )
    weights = decoder_weights(model)
    for weight in weights.values():
        _check_shape(weight, group_size)
    _check_installed()
    _check_architecture(model, weights)


def _check_shape(weight: LinearWeight, group_size: int) -> None:
    if weight.expert is not None:
        raise ValueError(f"--export gptqmodel: {weight.name} is an expert's; expert weights are not packed")
    rows, inputs = weight.matrix.shape
    if group_size != -1 and inputs % group_size:
        raise ValueError(
            f"--export gptqmodel: {weight.name} has {inputs} inputs, no multiple of --group_size {group_size}, and the "
            "packed format has no short last group"
        )
    if inputs % WORD or rows % WORD:
        raise ValueError(
            f"--export gptqmodel: {weight.name} is {rows} x {inputs}; the packed format wants multiples of {WORD}"
        )


def _check_installed() -> None:
    if importlib.util.find_spec("gptqmodel") is None:
        raise ValueError(
            "--export gptqmodel needs the gptqmodel library: python -m pip install -r requirements-export.txt"
        )


def _check_architecture(model: PreTrainedModel, weights: Mapping[str, LinearWeight]) -> None:
    """The library, which knows by architecture which layers of a folder are packed, packs the layers that we do."""
    from gptqmodel.models.auto import MODEL_MAP
    from gptqmodel.quantization import QuantizeConfig

    kind = model.config.model_type
    if kind not in MODEL_MAP:
        raise ValueError(f"--export gptqmodel: the library knows no model of type {kind}")
    groups = MODEL_MAP[kind].simple_layer_modules(model.config, QuantizeConfig(offload_to_disk=False))
    packed = tuple(name for group in groups for name in group)
    for name in weights:
        if not name.removesuffix(".weight").endswith(packed):
            raise ValueError(f"--export gptqmodel: the library does not pack {name} of a model of type {kind}")


def save_packed(
    folder: Path,
    model: PreTrainedModel,
    grids: Mapping[str, Quantized],
    bits: int,
    group_size: int,
    symmetric: bool,
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, str] | None = None,
) -> None:
    """A folder that GPTQModel.load and from_pretrained serve; half a folder never stands under this name.

    Scales are rounded to float16, the format's type, and so is the rest of a float32 model.

    Args:
        model: what lies outside the grids is taken from it; it stays as it is.
        grids: the compressed weights, by name; together they are all that check_exportable looks at.
        bits, group_size, symmetric: of all grids.
        texts: further files, such as a model card, by name.
    Source: gptqmodel 7.6, checkpoint formats. "gptq" stores zeros less one, which borrows from the neighbour where
        a zero is 0: readers other than gptqmodel then see other weights. Asymmetric grids, which have such zeros,
        are therefore "gptq_v2", which stores zeros as they are.
    """
    from gptqmodel.quantization import FORMAT, QuantizeConfig

    quantize_config = QuantizeConfig(
        bits=bits,
        group_size=group_size,
        sym=symmetric,
        desc_act=any(bool((grid.group_index.diff() < 0).any()) for grid in grids.values()),
        format=FORMAT.GPTQ if symmetric else FORMAT.GPTQ_V2,
        offload_to_disk=False,
    )
    dtype = torch.float16 if model.dtype == torch.float32 else model.dtype
    state = {name: value for name, value in _untied(model).items() if name not in grids}
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    for name, grid in grids.items():
        packed = _pack(grid, bits, group_size, symmetric)
        state |= {f"{name.removesuffix('weight')}{key}": value for key, value in packed.items()}
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, state_dict=state, save_original_format=False)  # names as gptqmodel reads them
    config = copy.deepcopy(model.config)
    config.dtype, config.quantization_config = dtype, quantize_config.to_dict()
    del config.quantization_config["meta"]  # how the library would have quantized
    config.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for name, text in (texts or {}).items():
        (partial / name).write_text(text)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _untied(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's tensors; of tied ones the first alone."""
    tied = set(model.all_tied_weights_keys)
    return {name: value for name, value in model.state_dict().items() if name not in tied}


@torch.no_grad()
def _pack(grid: Quantized, bits: int, group_size: int, symmetric: bool) -> dict[str, Tensor]:
    """qweight, qzeros, scales and g_idx of one weight; a symmetric grid's zeros less one (format "gptq")."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    rows, inputs = grid.codes.shape
    linear = nn.Linear(inputs, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(grid.dequantize().cpu(), requires_grad=False)
    kernel = TorchLinear(bits, group_size, symmetric, False, inputs, rows, register_buffers=False)
    # pack finds the codes again from weights, scales and zeros; in float32, of codes up to 255, it finds the same
    kernel.pack_original(linear, grid.scales.cpu(), grid.zeros.cpu(), grid.group_index.cpu().int())
    if symmetric:
        convert_gptq_v2_to_v1_format_module(kernel, QuantizeConfig(bits=bits, offload_to_disk=False))
    return {name: getattr(kernel, name).contiguous() for name in ("qweight", "qzeros", "scales", "g_idx")}
