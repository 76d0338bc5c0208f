"""What a job needs, from the shapes of its model alone: memory on the device and on the host, and operations."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel

from harness.device import available_memory
from llm_tasks.compressions import method_of
from llm_tasks.engine.greedy import ANSWERS_AT_ONCE
from llm_tasks.engine.log_likelihood import AT_ONCE
from llm_tasks.engine.packing import LONGEST_ROW
from llm_tasks.engine.window_losses import POSITIONS_PER_LOSS
from pruning.layers import LinearWeight, block_weights, decoder_blocks, decoder_weights
from pruning.walk import WalkCost, batch_bytes, walk_cost

logger = logging.getLogger(__name__)

PREFIX_PER_TOKEN = 8  # keys of a shared prefix that a batch repeats for its rows, per token of the batch
STATES = "hidden states of all windows"
LAYOUTS = {
    "device": "on the device",
    "host": "in host memory, one at a time on the device",
    "files": "in files, one at a time in memory",
}
SMALLER = "--tokens_per_batch, --nsamples and --calibration_length decide how much is computed at once"
NO_COPY = (
    "one compressed model in a process needs no copy of the dense weights, and --stream leaves the decoder blocks "
)
# By layout and by what is short of memory.
WAYS_OUT = {
    ("device", "device"): "--blocks host computes on one GPU with the decoder blocks in host memory, --stream with "
    "them in files (both without --kl)",
    ("device", "host"): f"{NO_COPY}in files",
    ("host", "device"): f"--activations host leaves hidden states in host memory; {SMALLER}",
    ("host", "host"): f"{NO_COPY}in files",
    ("files", "device"): SMALLER,
    ("files", "host"): SMALLER,
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
    model: PreTrainedModel,
    compressions: Iterable[str],
    shape: tuple[int, int],
    dtype: torch.dtype,
    tokens: int,
    more: Iterable[str] = (),
) -> dict[str | None, WalkCost]:
    """What a walk over the blocks costs, by the statistic that it collects, None where it collects none.

    Args:
        model: may be without weights.
        shape: number of calibration windows, and tokens in each.
        tokens: computed at once.
        more: statistics that are collected besides, whatever the compression.
    """
    methods = filter(None, map(method_of, compressions))
    statistics = dict.fromkeys([*(method.statistic for method in methods), *more])
    return {name: walk_cost(model, shape, name, dtype, tokens) for name in statistics}


def memory_needed(
    model: PreTrainedModel,
    dtype: torch.dtype,
    layout: str,
    on_accelerator: bool,
    costs: Iterable[WalkCost] = (),
    tokens_per_batch: int = 4096,
    *,
    whole_logits: bool = False,
    activations: str = "device",
    several: bool = False,
    shared_rank: int = 0,
    exports: bool = False,
    processes: int = 1,
    writes_answers: bool = False,
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
        writes_answers: whether the model is to answer in words, which takes a KV cache of all its blocks.

    Batches are smaller where an accelerator's memory runs out, so that prompts that share more than is counted here, or
    long answers, take more time instead.
    """
    blocks = decoder_blocks(model)[1]
    costs = list(costs)
    sizes = [sum(weight.numel() for weight in block.parameters()) * dtype.itemsize for block in blocks]
    largest = blocks[sizes.index(max(sizes))]
    outside = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize - sum(sizes)
    states = max((cost.activations_bytes for cost in costs), default=0)
    states_on_host = activations == "host" or layout == "files"
    keys = 0 if whole_logits else tokens_per_batch * (len(blocks) if layout == "device" or writes_answers else 1)
    # An accelerator would answer fewer at once where its memory runs out.
    keys *= ANSWERS_AT_ONCE if writes_answers and not on_accelerator else 1
    device = {} if states_on_host else {STATES: states}
    stages = compression_stages(costs) + evaluation_stages(model, dtype, tokens_per_batch, keys)
    device |= max(stages, key=lambda stage: sum(stage.values()))
    host: dict[str, int] = {}
    if layout == "device":
        device["weights"] = outside + sum(sizes)
    else:
        device["embeddings, output layer"] = outside
        # On an accelerator the next block is on its way while one is computed.
        device["blocks that are computed"] = (2 if on_accelerator else 1) * max(sizes)
        if on_accelerator:
            host["pinned copy of a block"] = sum(
                map(pinned, [w.numel() * dtype.itemsize for w in largest.parameters()])
            )
        if layout == "host":
            host["weights of the blocks"] = sum(sizes)
        elif on_accelerator:
            host["block that is read, or written"] = max(sizes)
        else:
            device["embeddings, output layer"] = 0  # mapped from the files
    if beside_dense:
        logits = tokens_per_batch * model.config.get_text_config().vocab_size
        device["dense model beside the compressed one (--kl)"] = outside + sum(sizes) + logits * dtype.itemsize
    if states_on_host and layout != "files":  # there they are mapped from a file
        host[STATES] = pinned(states) if on_accelerator else states
    if not on_accelerator:
        host, device = {what: device.get(what, 0) + host.get(what, 0) for what in {**device, **host}}, {}
    host = {what: bytes * processes for what, bytes in host.items()}
    shapes = [weight.matrix.shape for weight in decoder_weights(model).values()]
    copies = dtype.itemsize if several and layout != "files" else 0
    return Memory(layout, device, host | kept_by_main(shapes, copies, shared_rank, exports))


def kept_by_main(shapes: Sequence[torch.Size], copies: int, shared_rank: int, exports: bool) -> dict[str, int]:
    """What the main process, which alone compresses, keeps in host memory.

    Args:
        shapes: of the weights that are compressed.
        copies: bytes of each weight of a copy of the dense ones.
        shared_rank, exports: see memory_needed.
    """
    compressible = sum(shape.numel() for shape in shapes)
    return {
        "copy of the dense weights": compressible * copies,
        "low-rank factors": sum(min(shared_rank, *shape) * sum(shape) * 4 for shape in shapes),  # float32
        # a byte each before they are packed, and up to one after
        "integers of quantized weights": compressible * 2 * exports,
    }


def pinned(bytes: int) -> int:
    """What a tensor takes in pinned memory, which torch allocates in powers of two."""
    return 1 << (bytes - 1).bit_length() if bytes else 0


def compression_stages(costs: Iterable[WalkCost]) -> list[dict[str, int]]:
    """What each stage of the compressions takes beside the model and the hidden states of the windows."""
    stages = []
    for cost in costs:
        stages.append({"statistics of a block, batch of calibration": cost.collecting_bytes})
        stages.append({"statistics, factors and copies of a weight": cost.compressing_bytes})
    return stages


def evaluation_stages(
    model: PreTrainedModel, dtype: torch.dtype, tokens_per_batch: int, keys: int
) -> list[dict[str, int]]:
    """What each stage of an evaluation takes beside the model.

    Args:
        keys: tokens times blocks whose keys and values are kept; 0 for perplexity, whose logits are stored whole.
    """
    config = model.config.get_text_config()
    batch = {"intermediate results of a batch": batch_bytes(model, dtype, tokens_per_batch)}
    logits = tokens_per_batch * config.vocab_size
    if not keys:
        in_float32 = 2 * 4 * min(logits, POSITIONS_PER_LOSS * config.vocab_size)  # of a part, and their softmax
        return [batch, {"logits of a batch": logits * dtype.itemsize + in_float32}]
    kept = keys * key_width(config) + PREFIX_PER_TOKEN * tokens_per_batch * config.hidden_size
    batch["keys and values"] = 2 * kept * dtype.itemsize
    output = model.get_output_embeddings()
    in_float32 = 0 if dtype == torch.float32 or output is None else 4 * output.weight.numel()
    # Trials compare sequences that fill about two rows, in float32, with a mask: through two blocks, then their logits.
    tried = 2 * LONGEST_ROW
    trials = max(batch_bytes(model, torch.float32, tried), 2 * 4 * tried * config.vocab_size) + 4 * tried**2
    return [
        batch,
        {"output layer in float32, logits": in_float32 + 2 * 4 * min(logits, AT_ONCE)},
        {"trials of the fast paths": trials + 4 * max(weight.matrix.numel() for weight in first_weights(model))},
    ]


def key_width(config: PretrainedConfig) -> int:
    """Features of a token's keys in one block."""
    heads = getattr(config, "num_attention_heads", None) or 1
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return (getattr(config, "num_key_value_heads", None) or heads) * width


def first_weights(model: PreTrainedModel) -> list[LinearWeight]:
    """The weights of the first decoder block that are compressed."""
    name, blocks = decoder_blocks(model)
    return block_weights(blocks[0], f"{name}.0")


def choose_layout(
    layouts: Sequence[str], needed: Callable[[str], Memory], devices: Sequence[torch.device], model_name: str
) -> Memory:
    """What the first of some layouts needs whose memory is free.

    Args:
        layouts: some of LAYOUTS, the best first.
        needed: what each needs.
        devices: over which a model on the device is spread, or its one device; the others are computed on the first.
    Raises:
        ValueError: none fits; says how much the last one needs, how much is free, and the way out.
    """
    on_devices, on_host = [available_memory(device) for device in devices], available_memory(torch.device("cpu"))
    for layout in layouts:
        memory = needed(layout)
        free = {"device": sum(on_devices) if layout == "device" else on_devices[0], "host": on_host}
        totals = {"device": sum(memory.device.values()), "host": sum(memory.host.values())}
        short = [where for where, total in totals.items() if total > free[where]]
        if not short:
            return memory
    where = short[0]
    raise ValueError(
        f"--model_name_or_path {model_name}: {totals[where] / 1e9:.1f} GB are needed on the {where}, "
        f"{free[where] / 1e9:.1f} GB are free; {WAYS_OUT[memory.layout, where]}"
    )


def report_plan(model: PreTrainedModel, costs: Mapping[str | None, WalkCost], device: torch.device) -> None:
    """Log which weights are compressed, and what one compression will cost."""
    weights = decoder_weights(model).values()
    kinds = Counter(weight.name.partition("[")[0].removesuffix(".weight").rpartition(".")[2] for weight in weights)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    total = sum(weight.matrix.numel() for weight in weights)
    logger.info("compressible: %d weights in %d matrices of the decoder blocks (%s)", total, len(weights), listed)
    for name, cost in costs.items():
        if name is None:
            continue
        speed = cost.measured_flops_per_second(device)
        logger.info(
            "a compression that reads %s: %.1f TFLOP, about %.1f minutes at the %.0f GFLOP/s of a matmul here, "
            "%.2f GB beside the model", name, cost.flops / 1e12, cost.flops / speed / 60, speed / 1e9, cost.bytes / 1e9,
        )  # fmt: skip
