"""What a job needs, from the shapes of its model alone: memory on the device and on the host, and operations."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from harness.device import available_memory
from llm_tasks.engine.log_likelihood import AT_ONCE
from llm_tasks.methods import DENSE, METHODS
from pruning.layers import decoder_blocks, decoder_weights
from pruning.walk import WalkCost, batch_bytes, walk_cost

logger = logging.getLogger(__name__)

COPIES = 6  # float32 copies of a weight that a method without statistics makes: scores, masks, their order
LAYOUTS = ("device", "host", "files")
WAYS_OUT = {
    "device": "one run alone keeps no dense copy; without --kl, --blocks host leaves the decoder blocks in host "
    "memory, --stream in files",
    "host": "one run alone keeps no dense copy, and --stream leaves the decoder blocks in files",
    "files": "--tokens_per_batch and --nsamples decide how much a calibration takes",
}


@dataclass(frozen=True)
class Memory:
    """Bytes that a job needs at its peak, by what they are for.

    Attributes:
        layout: where the decoder blocks are, one of LAYOUTS.
        device: on the accelerator; empty where the job computes on the CPU.
        host: in host memory.
    """

    layout: str
    device: Mapping[str, int]
    host: Mapping[str, int]

    def described(self) -> list[str]:
        """A line for each entry and a sum, the largest first."""
        lines = []
        for name, parts in (("device", self.device), ("host", self.host)):
            if parts:
                lines.append(f"{name}: {sum(parts.values()) / 1e9:.2f} GB")
                lines += [
                    f"  {bytes / 1e9:8.2f} GB  {what}"
                    for what, bytes in sorted(parts.items(), key=lambda part: -part[1])
                    if bytes
                ]
        return lines


def walk_costs(
    model: PreTrainedModel, compressions: Iterable[str], shape: tuple[int, int], dtype: torch.dtype, tokens: int
) -> dict[str, WalkCost]:
    """What a walk over the blocks costs, by the statistic that it collects.

    Args:
        model: may be without weights.
        shape: number of calibration windows, and tokens in each.
        tokens: computed at once.
    """
    statistics = {METHODS[name].statistic for name in compressions if name != DENSE} - {None}
    return {name: walk_cost(model, shape, name, dtype, tokens) for name in sorted(statistics)}


def memory_needed(
    model: PreTrainedModel,
    dtype: torch.dtype,
    layout: str,
    on_accelerator: bool,
    costs: Iterable[WalkCost] = (),
    tokens_per_batch: int = 4096,
    whole_logits: bool = False,
    activations: str = "device",
    several: bool = False,
    shared_rank: int = 0,
    exports: bool = False,
    processes: int = 1,
    beside_dense: bool = False,
) -> Memory:
    """Memory that a job needs at its peak.

    Args:
        model: without weights.
        dtype: of the weights.
        layout: where the decoder blocks are, one of LAYOUTS.
        on_accelerator: whether blocks are computed on another device than the CPU.
        costs: of the walks that the job makes.
        tokens_per_batch: evaluated at once.
        whole_logits: whether the logits of a batch are stored whole, as for perplexity.
        activations: "device" or "host", where the hidden states of all calibration windows are.
        several: whether several compressed models are made, so that a copy of the dense weights is kept.
        shared_rank: rank whose factors are kept for several strengths; 0 where none are.
        exports: whether the integers of quantized weights are packed.
        processes: of the job on this machine; each has an accelerator of its own, and all share the host.
        beside_dense: whether the dense model is held and computed beside the compressed one.
    """
    blocks = decoder_blocks(model)[1]
    costs = list(costs)
    sizes = [sum(weight.numel() for weight in block.parameters()) * dtype.itemsize for block in blocks]
    outside = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize - sum(sizes)
    shapes = [weight.matrix.shape for weight in decoder_weights(model).values()]
    compressible = sum(shape.numel() for shape in shapes)
    in_flight = 2 if on_accelerator else 1  # blocks: the one that is computed, and the next one on its way
    copies = COPIES * 4 * max(shape.numel() for shape in shapes)
    logits = tokens_per_batch * model.config.get_text_config().vocab_size * (dtype.itemsize + 4)
    device = {
        "statistics, factors and copies of a weight": max([copies, *(cost.statistics_bytes for cost in costs)]),
        "intermediate results of a batch": max(
            [batch_bytes(model, dtype, tokens_per_batch), *(cost.batch_bytes for cost in costs)]
        ),
        "logits of a batch": logits if whole_logits else min(logits, AT_ONCE * (dtype.itemsize + 4)),
    }
    host: dict[str, int] = {}
    states = max((cost.activations_bytes for cost in costs), default=0)
    (host if activations == "host" or layout == "files" else device)["hidden states of all windows"] = states
    if layout == "device":
        device["weights"] = outside + sum(sizes)
    else:
        device["embeddings, output layer"] = outside
        device["blocks that are computed"] = in_flight * max(sizes)
        if on_accelerator:
            host["pinned copy of a block"] = max(sizes)
        if layout == "host":
            host["weights of the blocks"] = sum(sizes)
        elif on_accelerator:
            host["block that is read"] = max(sizes)
        else:
            device["embeddings, output layer"] = 0  # mapped from the files
    if beside_dense:
        device["dense model beside the compressed one (--kl)"] = outside + sum(sizes) + logits
    if several and layout != "files":
        host["copy of the dense weights"] = compressible * dtype.itemsize
    host["low-rank factors"] = sum(min(shared_rank, *shape) * sum(shape) * 4 for shape in shapes)  # float32
    if exports:  # a byte each before they are packed, and up to one after
        host["integers of quantized weights"] = compressible * 2
    if not on_accelerator:
        host = {what: device.get(what, 0) + host.get(what, 0) for what in {**device, **host}}
        device = {}
    return Memory(layout, device, {what: bytes * processes for what, bytes in host.items()})


def choose_layout(
    layouts: Sequence[str], needed: Callable[[str], Memory], devices: Sequence[torch.device], model_name: str
) -> Memory:
    """What the first of some layouts needs whose memory is free.

    Args:
        layouts: some of LAYOUTS, the best first.
        needed: what each needs.
        devices: over which the model is spread, or its one device.
    Raises:
        ValueError: none fits; says how much the last one needs, how much is free, and the way out.
    """
    on_devices = sum(map(available_memory, devices))
    free = {"the device": on_devices, "the host": available_memory(torch.device("cpu"))}
    for layout in layouts:
        memory = needed(layout)
        totals = {"the device": sum(memory.device.values()), "the host": sum(memory.host.values())}
        short = [where for where, total in totals.items() if total > free[where]]
        if not short:
            return memory
    where = short[0]
    raise ValueError(
        f"--model_name_or_path {model_name}: {totals[where] / 1e9:.1f} GB are needed on {where}, "
        f"{free[where] / 1e9:.1f} GB are free; {WAYS_OUT[memory.layout]}"
    )


def report_plan(model: PreTrainedModel, costs: Mapping[str, WalkCost], device: torch.device) -> None:
    """Log which weights are compressed, and what one compression will cost."""
    weights = decoder_weights(model).values()
    kinds = Counter(weight.name.partition("[")[0].removesuffix(".weight").rpartition(".")[2] for weight in weights)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    total = sum(weight.matrix.numel() for weight in weights)
    logger.info("compressible: %d weights in %d matrices of the decoder blocks (%s)", total, len(weights), listed)
    for name, cost in costs.items():
        speed = cost.measured_flops_per_second(device)
        logger.info(
            "a compression that reads %s: %.1f TFLOP, about %.1f minutes at the %.0f GFLOP/s of a matmul here, "
            "%.2f GB beside the model", name, cost.flops / 1e12, cost.flops / speed / 60, speed / 1e9, cost.bytes / 1e9,
        )  # fmt: skip
