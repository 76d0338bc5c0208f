"""Export of quantized weights as a checkpoint in gptqmodel's packed format, which other libraries load too.

gptqmodel is optional (requirements-export.txt), and imported only in the functions that need it: that takes seconds.
"""

import copy
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.models import written_whole
from pruning.layers import LinearWeight, decoder_weights
from quantization.gptq import Quantized

BITS = (2, 3, 4, 8)
GROUP_SIZES = (-1, 16, 32, 64, 128, 256, 512, 1024)  # those of TorchLinear, the kernel that runs everywhere
WORD = 32  # bits of the words into which codes are packed along the inputs, and zeros along the outputs


def check_exportable(model: PreTrainedModel, bits: Iterable[int], group_size: int) -> None:
    """Check that the packed format and gptqmodel's kernels support this model and these grids.

    Args:
        model: may be on the meta device.
        bits, group_size: as in quantization.gptq.
    Raises:
        ValueError: unsupported bits or group size, a weight whose shape is no multiple of group_size and WORD, expert
            weights, an unsupported architecture, or gptqmodel is not installed (the message says how to install it).
    """
    if unknown := [number for number in bits if number not in BITS]:
        raise ValueError(f"--export gptqmodel packs {', '.join(map(str, BITS))} bits, not --bits {unknown[0]}")
    if group_size not in GROUP_SIZES:
        raise ValueError(
            f"--export gptqmodel supports --group_size {', '.join(map(str, GROUP_SIZES))}, not {group_size}"
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
            f"--export gptqmodel: {weight.name} is {rows} x {inputs}; the packed format needs multiples of {WORD}"
        )


def _check_installed() -> None:
    if importlib.util.find_spec("gptqmodel") is None:
        raise ValueError(
            "--export gptqmodel needs the gptqmodel library: python -m pip install -r requirements-export.txt"
        )


def _check_architecture(model: PreTrainedModel, weights: Mapping[str, LinearWeight]) -> None:
    """Raises ValueError unless gptqmodel, which decides by architecture which layers are packed, packs `weights`."""
    from gptqmodel.models.auto import MODEL_MAP
    from gptqmodel.quantization import QuantizeConfig

    model_type = model.config.model_type
    if model_type not in MODEL_MAP:
        raise ValueError(f"--export gptqmodel: the library does not support models of type {model_type}")
    groups = MODEL_MAP[model_type].simple_layer_modules(model.config, QuantizeConfig(offload_to_disk=False))
    packed = tuple(name for group in groups for name in group)
    for name in weights:
        if not name.removesuffix(".weight").endswith(packed):
            raise ValueError(f"--export gptqmodel: the library does not pack {name} of a model of type {model_type}")


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
    """Write a folder that GPTQModel.load and from_pretrained load; it gets its name once it is complete.

    Scales are rounded to float16, the format's dtype, and so are the other tensors of a float32 model.

    Args:
        folder: replaced if it exists.
        model: gives the tensors that are not in `grids`, and the config; not changed.
        grids: all compressible weights of the model (decoder_weights), quantized, by name.
        bits, group_size, symmetric: those of all grids.
        texts: further files by name, such as a model card.
    Source: gptqmodel 7.6, checkpoint formats. "gptq" stores zero - 1, which for a zero of 0 borrows from the next zero
        in the word: other libraries than gptqmodel then read other weights. Asymmetric grids, which have such zeros,
        are therefore written as "gptq_v2", which stores zeros unchanged.
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
    with written_whole(folder, texts) as partial:
        model.save_pretrained(partial, state_dict=state, save_original_format=False)  # names as gptqmodel reads them
        config = copy.deepcopy(model.config)  # in which save_pretrained names the architecture
        config.dtype, config.quantization_config = dtype, quantize_config.to_dict()
        del config.quantization_config["meta"]  # options of gptqmodel's quantization, which was not used
        config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def _untied(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's tensors; of those that are tied, only the first."""
    tied = set(model.all_tied_weights_keys)
    return {name: value for name, value in model.state_dict().items() if name not in tied}


@torch.no_grad()
def _pack(grid: Quantized, bits: int, group_size: int, symmetric: bool) -> dict[str, Tensor]:
    """qweight, qzeros, scales and g_idx of one weight; zeros of a symmetric grid are stored as zero - 1 ("gptq")."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    rows, inputs = grid.codes.shape
    linear = nn.Linear(inputs, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(grid.dequantize().cpu(), requires_grad=False)
    kernel = TorchLinear(bits, group_size, symmetric, False, inputs, rows, register_buffers=False)
    # pack_original recomputes the codes from weights, scales and zeros; in float32, codes up to 255 come out the same
    kernel.pack_original(linear, grid.scales.cpu(), grid.zeros.cpu(), grid.group_index.cpu().int())
    if symmetric:
        convert_gptq_v2_to_v1_format_module(kernel, QuantizeConfig(bits=bits, offload_to_disk=False))
    return {name: getattr(kernel, name).contiguous() for name in ("qweight", "qzeros", "scales", "g_idx")}
