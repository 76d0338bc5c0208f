"""The walk over a model's decoder blocks: each is compressed with statistics of its layers' calibration inputs."""

import contextlib
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from harness.device import matmul_speed
from harness.progress import Progress
from pruning.block_calls import NotReplayedError, StopForward
from pruning.blocks import BlockStorage, LoadedBlocks
from pruning.hessian import GRAM_AT_ONCE, InverseFactor, add_gram, factor_inverse
from pruning.layers import LinearWeight, block_weights, decoder_blocks, record_inputs
from pruning.replay import Replay, WholeForwards
from pruning.selection import PART
from pruning.validation import all_finite

logger = logging.getLogger(__name__)

WEIGHTS_AT_ONCE = 2**21  # weights that are masked at once
# Of a method, for each element of a weight and for each of those that are ranked at once, and tables of ranks: bytes.
RANKED_BYTES, TABLE_BYTES = 10, 2**21
FACTORING = 2.5  # copies of a Hessian while it is factored, beside it
ROWS_AT_ONCE = 128  # tokens whose squares are summed at once, so that their float32 copies fit into the CPU's cache
# Decoders with per-layer inputs computed from the tokens: arithmetic 1 gave their blocks those of another window.
WRONG_IN_1 = ("gemma4_text", "gemma4_unified_text")


def arithmetic(config: PretrainedConfig) -> int:
    """Version number of the walk's statistics for this model, part of a run's identity; raised when they change.

    1: blocks get the arguments captured from the first batch. 2: if these depend on the tokens, from each batch.
    """
    return 2 if config.get_text_config().model_type in WRONG_IN_1 else 1


def add_sq_norms(sq_norms: Tensor, X: Tensor) -> None:
    """Add the squared Euclidean norm of each column of X, (tokens, in), to `sq_norms`, (in,) float32, in place."""
    for rows in X.split(ROWS_AT_ONCE if X.device.type == "cpu" else max(1, len(X))):
        sq_norms += rows.float().square().sum(dim=0)


class Statistic(NamedTuple):
    """A statistic of a layer's inputs X, (tokens, in_features), which is summed over batches in float32 from zeros.

    Fields:
        shape: of the sum, from in_features.
        add: adds a batch of X, of any float dtype, to the sum in place.
    """

    shape: Callable[[int], tuple[int, ...]]
    add: Callable[[Tensor, Tensor], None]


STATISTICS = {
    "sq_norms": Statistic(lambda in_features: (in_features,), add_sq_norms),
    "hessian": Statistic(lambda in_features: (in_features, in_features), add_gram),
}


class InputStatistics:
    """One of STATISTICS of a layer's inputs X, (tokens, in_features), summed over all tokens.

    Args:
        statistic: its name; "hessian" gives sq_norms too.
    Attributes:
        num_tokens: number of rows of X.
        sq_norms: squared Euclidean norm of each input feature, (in_features,).
        hessian: X^T X, (in_features, in_features).
    Raises:
        ValueError: there is no such statistic, or one is read that was not collected.
    """

    def __init__(self, statistic: str, in_features: int, device: torch.device) -> None:
        if statistic not in STATISTICS:
            raise ValueError(f"there is no statistic {statistic!r}; there are {', '.join(STATISTICS)}")
        self.num_tokens = 0
        self._sum = torch.zeros(STATISTICS[statistic].shape(in_features), device=device)
        self._statistic = statistic
        self._factors: dict[tuple[float, bool], InverseFactor] = {}

    def sum_of(self, statistic: str) -> Tensor:
        """The sum; ValueError unless it is of this statistic. Squared norms are the diagonal of a Hessian."""
        if (statistic, self._statistic) == ("sq_norms", "hessian"):
            return self._sum.diagonal()
        if statistic != self._statistic:
            raise ValueError(f"the method reads the statistic {statistic!r}, but {self._statistic!r} was collected")
        return self._sum

    @property
    def sq_norms(self) -> Tensor:
        return self.sum_of("sq_norms")

    @property
    def hessian(self) -> Tensor:
        return self.sum_of("hessian")

    @property
    def is_finite(self) -> bool:
        """Whether no value of the sum is NaN or infinite."""
        return all_finite(self._sum)

    def add(self, inputs: Tensor) -> None:
        """Add the tokens of `inputs`, (…, in_features)."""
        inputs = inputs.reshape(-1, inputs.shape[-1])
        self.num_tokens += len(inputs)
        STATISTICS[self._statistic].add(self._sum, inputs)

    def inverse_factor(self, damping: float, act_order: bool = False) -> InverseFactor:
        """See factor_inverse; computed once for all layers that share these inputs."""
        key = (damping, act_order)
        if key not in self._factors:
            self._factors[key] = factor_inverse(self.hessian, damping, act_order=act_order)
        return self._factors[key]


# A method: from W (out_features, in_features), the statistics of its inputs (None without calibration) and its name to
# the new W, or to a boolean keep-mask.
CompressLinear = Callable[[Tensor, InputStatistics | None, str], Tensor]


class _Recorder:
    """Sums up the statistics of a block's layers; layers with the same input tensor share one InputStatistics.

    Args:
        num_layers: end a pass (StopForward) once this many layers were called; None runs it to its end.
        to_bf16: round inputs to bf16 first, as the matmuls do.
    """

    def __init__(self, statistic: str, num_layers: int | None, to_bf16: bool) -> None:
        self.statistics: dict[str, InputStatistics] = {}
        self._statistic, self._num_layers, self._to_bf16 = statistic, num_layers, to_bf16

    def start_batch(self) -> None:
        self._seen: list[tuple[Tensor, InputStatistics]] = []
        self._names: set[str] = set()

    def record(self, name: str, inputs: Tensor) -> None:
        self._names.add(name)
        shared = next((statistics for tensor, statistics in self._seen if tensor is inputs), None)
        if shared is None:
            shared = self.statistics.get(name) or InputStatistics(self._statistic, inputs.shape[-1], inputs.device)
            self._seen.append((inputs, shared))
            shared.add(inputs.bfloat16() if self._to_bf16 else inputs)
        self.statistics[name] = shared
        if len(self._names) == self._num_layers:
            raise StopForward


def collect_statistics(
    replay: Replay | WholeForwards, index: int, block: nn.Module, weights: list[LinearWeight], statistic: str,
    seen_once: bool = False,
) -> dict[str, InputStatistics]:  # fmt: skip
    """Statistics of the inputs of `weights`, by name; layers with the same input tensor share one object.

    There is none for a weight that no token reached: whoever reads them calls check_statistics first.

    Args:
        replay: has run the windows up to block `index`.
        block: block `index`, with its weights in memory.
        weights: some of the block's weights.
        statistic: one of STATISTICS.
        seen_once: use only the first batches that together reach all of the weights: one, unless there are experts.
    """
    batches = replay.batches
    while True:
        # nothing after the last of these layers is needed, unless one of them runs twice
        recorder = _Recorder(statistic, len(weights) if replay.uses_layers_once else None, batches.in_bf16)
        autocast = batches.autocast(next(block.parameters()).device)
        try:
            passes = replay.passes(index, block)
            for run in Progress(passes, f"calibration of block {index}", len(batches), bar=False):
                recorder.start_batch()
                with record_inputs(weights, recorder.record), autocast, contextlib.suppress(StopForward):
                    run()
                if seen_once and len(recorder.statistics) == len(weights):
                    break
            return recorder.statistics
        except RuntimeError as error:  # from the first batch on: some layers may have added the failed one, some not
            batches.halve(error)


def check_statistics(weights: Iterable[LinearWeight], statistics: Mapping[str, InputStatistics]) -> None:
    """Raises ValueError where no token reached one of `weights`, or its inputs are NaN or infinite; names it."""
    for weight in weights:
        if weight.name not in statistics:
            more = "; calibrate on more samples"
            if weight.expert is None:
                more = (
                    ": it is unused for text, or its block does not call it as a module; --skip_layers leaves it dense"
                )
            raise ValueError(f"{weight.name}: no calibration token reached it{more}")
        if not statistics[weight.name].is_finite:
            raise ValueError(f"{weight.name}: its inputs are NaN or infinite on the calibration text")


@torch.no_grad()
def compress_blocks(
    model: PreTrainedModel,
    tokens: Tensor | None,
    compress_linear: CompressLinear,
    statistic: str | None = None,
    *,
    true_sequential: bool = False,
    tokens_per_batch: int = 4096,
    precision: str = "no",
    storage: BlockStorage | None = None,
    activations: torch.device | None = None,
    chosen: Collection[str] | None = None,
) -> None:
    """Compress every linear weight of the decoder blocks, or those of `chosen`, block by block, in place.

    The inputs of a block's layers are those that the already compressed blocks before it produce. All layers of a block
    are compressed with statistics of the still dense block.

    Args:
        tokens: calibration windows, (num_samples, seq_len); may be None for a method without statistics.
        compress_linear: the method; called once per weight, returns the new weight or a keep-mask.
        statistic: what the method reads of the inputs: one of STATISTICS, or None.
        true_sequential: within a block, collect statistics again for each group of layers that share inputs, after the
            groups before it are compressed.
        tokens_per_batch: a batch holds as many windows as fit into this many tokens; more need more memory, and change
            results by rounding only. Where memory runs out, batches are halved.
        precision: "bf16" computes the matmuls of a float32 model in bf16; statistics stay float32.
        storage: where the blocks are; None means in memory, in `model`.
        activations: device that holds the hidden states of all windows; None means that of the model's embeddings.
        chosen: names of the weights that are compressed; the others stay as they are, to the bit. None means all.
    Raises:
        ValueError: a weight or an input is NaN or infinite, or the method refuses a weight (the message names it).
    Source: the sequential scheme of GPTQ, SparseGPT and Wanda (reference repositories). Here layers with the same input
        share a statistic, outputs that are not needed are not computed, and each block gets the arguments that the
        model gives it.
    """
    name, blocks = decoder_blocks(model)
    storage = storage or LoadedBlocks(blocks)
    with _ready_to_walk(model):
        replay = _replay(model, storage, tokens, tokens_per_batch, precision, activations) if statistic else None
        start, last = replay.start if replay else storage.resume()[0], last_block(name, len(blocks), chosen)
        for index in Progress(range(start, len(blocks)), name="blocks", initial=start, total=len(blocks)):
            with storage.hold(index) as block:
                weights = block_weights(block, f"{name}.{index}")
                _check_finite(weights)
                weights = [weight for weight in weights if chosen is None or weight.name in chosen]
                if replay is None:
                    _compress(weights, {}, compress_linear)
                elif index <= last:
                    for group in _groups(replay, index, block, weights) if true_sequential and weights else [weights]:
                        found = collect_statistics(replay, index, block, group, statistic) if group else {}
                        check_statistics(group, found)
                        _compress(group, found, compress_linear)
                    if index < last:
                        replay.advance(index, block)
                storage.finished(index, block)


def last_block(name: str, count: int, chosen: Collection[str] | None) -> int:
    """Index of the last block that holds one of the chosen weights; of the last block where all are chosen."""
    if chosen is None:
        return count - 1
    return max(int(weight.removeprefix(f"{name}.").partition(".")[0]) for weight in chosen)


@torch.no_grad()
def visit_blocks(
    model: PreTrainedModel,
    tokens: Tensor,
    visit: Callable[[int, list[LinearWeight], dict[str, InputStatistics]], None],
    statistic: str,
    *,
    tokens_per_batch: int = 4096,
    precision: str = "no",
    storage: BlockStorage | None = None,
    activations: torch.device | None = None,
    chosen: Collection[str] | None = None,
) -> None:
    """Call `visit` for each block that holds chosen weights with its index, these, and collect_statistics of them.

    The walk of compress_blocks, but the blocks stay as they are: the statistics are those of the dense model. The
    arguments are those of compress_blocks.

    Raises:
        ValueError: a weight is NaN or infinite (the message names it).
    """
    name, blocks = decoder_blocks(model)
    storage = storage or LoadedBlocks(blocks)
    with _ready_to_walk(model):
        replay = _replay(model, storage, tokens, tokens_per_batch, precision, activations)
        last = last_block(name, len(blocks), chosen)
        for index in Progress(range(last + 1), "blocks of the dense model"):
            with storage.hold(index) as block:
                weights = block_weights(block, f"{name}.{index}")
                _check_finite(weights)
                if weights := [weight for weight in weights if chosen is None or weight.name in chosen]:
                    visit(index, weights, collect_statistics(replay, index, block, weights, statistic))
                if index < last:
                    replay.advance(index, block)


@contextmanager
def _ready_to_walk(model: PreTrainedModel) -> Iterator[None]:
    """Inside, dropout is off, and experts are computed one by one, so that the inputs of each can be recorded."""
    training, experts = model.training, model.get_experts_implementation()
    model.eval()
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.train(training)
        if model._can_set_experts_implementation():
            model.set_experts_implementation(experts)


def _replay(
    model: PreTrainedModel, storage: BlockStorage, tokens: Tensor, tokens_per_batch: int, precision: str,
    activations: torch.device | None,
) -> Replay | WholeForwards:  # fmt: skip
    """Replay if the blocks, run one by one, compute what the model computes; else whole forward passes, in memory."""
    try:
        return Replay(model, storage, tokens, tokens_per_batch, precision, activations=activations)
    except NotReplayedError as error:
        if not storage.all_held:  # for every block, passes of the whole model would bring all of them
            raise
        logger.info("%s; every block's statistics come from whole forward passes, which takes longer", error)
        return WholeForwards(model, tokens, tokens_per_batch, precision)


def _groups(
    replay: Replay | WholeForwards, index: int, block: nn.Module, weights: list[LinearWeight]
) -> list[list[LinearWeight]]:
    """Groups of weights with the same inputs, in the order in which the block uses them."""
    statistics = collect_statistics(replay, index, block, weights, "sq_norms", seen_once=True)
    check_statistics(weights, statistics)
    groups: dict[int, list[LinearWeight]] = {}
    for weight in sorted(weights, key=lambda weight: list(statistics).index(weight.name)):
        groups.setdefault(id(statistics[weight.name]), []).append(weight)
    return list(groups.values())


def _check_finite(weights: list[LinearWeight]) -> None:
    for weight in weights:
        if not all_finite(weight.matrix):
            raise ValueError(f"{weight.name}: the weight holds NaN or infinite values")


def _compress(
    weights: list[LinearWeight], statistics: dict[str, InputStatistics], compress_linear: CompressLinear
) -> None:
    """Compress the weights in place; `statistics` is emptied, so that those of other inputs are freed one by one."""
    for weight in Progress(weights, "weights of a block", bar=False):
        try:
            result = compress_linear(weight.matrix, statistics.pop(weight.name, None), weight.name)
            if result.dtype == torch.bool:
                _drop(weight.matrix, result)
            else:
                weight.matrix.copy_(result)
            del result  # before the next is made
        except ValueError as error:
            raise ValueError(f"{weight.name}: {error}") from error


def _drop(matrix: Tensor, keep_mask: Tensor) -> None:
    """Zero in place the weights that the mask drops; by some rows at a time, so that no large copy is needed.

    Multiplying by False may give -0, which adding 0 turns into 0; masked_fill_ is twice as slow in bfloat16.
    """
    rows = max(1, WEIGHTS_AT_ONCE // matrix.shape[1])
    for part, kept in zip(matrix.split(rows), keep_mask.split(rows), strict=True):
        part.mul_(kept).add_(0)


class WalkCost(NamedTuple):
    """Estimated cost of one compression.

    Fields:
        flops: of two forward passes over the blocks and of the statistics; factorisations and updates take fewer.
        activations_bytes: hidden states of all windows.
        collecting_bytes: most while a block's statistics are collected: their sums, intermediate results of a batch.
        compressing_bytes: most while a weight is compressed: sums that are still needed, factors, copies of a weight.
        dtype: dtype in which the model computes.
    """

    flops: float
    activations_bytes: int
    collecting_bytes: int
    compressing_bytes: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Memory besides the model."""
        return self.activations_bytes + max(self.collecting_bytes, self.compressing_bytes)

    def measured_flops_per_second(self, device: torch.device) -> float:
        """Speed of matmuls in this dtype on `device`, measured."""
        return matmul_speed(device, self.dtype)


def walk_cost(
    model: PreTrainedModel, windows_shape: tuple[int, int], statistic: str | None, dtype: torch.dtype,
    tokens_per_batch: int = 4096,
) -> WalkCost:  # fmt: skip
    """Estimate the cost of compress_blocks from shapes.

    Args:
        model: may be on the meta device.
        windows_shape: (num_samples, seq_len) of the calibration windows.
        statistic, tokens_per_batch: see compress_blocks.
        dtype: dtype in which the model computes.
    """
    name, blocks = decoder_blocks(model)
    weights = block_weights(blocks[0], f"{name}.0")
    numels = [weight.matrix.numel() for weight in weights]
    copies = weight_bytes(max(numels), dtype)
    if statistic is None:
        return WalkCost(0.0, 0, 0, copies, dtype)
    tokens, at_once = math.prod(windows_shape), max(tokens_per_batch, windows_shape[1])
    inputs = distinct_inputs(model, weights)
    shapes = [STATISTICS[statistic].shape(size) for size in inputs]
    sums = [math.prod(shape) for shape in shapes]
    # A sum is freed after the last weight that needs it; of a Hessian there is a factor too.
    factored = [shape == (size, size) for shape, size in zip(shapes, inputs, strict=True)]
    held = [4 * sum(sums[index:]) for index in range(len(sums))]
    compressing = [
        kept + max(int(FACTORING * 4 * size), 4 * size + copies) if has_factor else kept + copies
        for kept, size, has_factor in zip(held, sums, factored, strict=True)
    ]
    # float32 copies of a batch of the widest inputs: for squares, for a Hessian, or a part of X^T X
    widest = max(inputs)
    summed = max(widest * at_once, min(widest**2, GRAM_AT_ONCE)) if any(factored) else 2 * widest * at_once
    narrow = at_once * (4 * model.config.get_text_config().hidden_size + widest) * dtype.itemsize
    matrices = sum(size for shape, size in zip(shapes, sums, strict=True) if len(shape) > 1)
    return WalkCost(
        flops=2.0 * tokens * len(blocks) * (2 * sum(numels) + matrices),
        activations_bytes=tokens * model.config.get_text_config().hidden_size * dtype.itemsize,
        collecting_bytes=held[0] + max(batch_bytes(model, dtype, at_once), narrow + 4 * summed),
        compressing_bytes=max(compressing),
        dtype=dtype,
    )


def weight_bytes(numel: int, dtype: torch.dtype) -> int:
    """What a method takes for one weight: a float32 copy, the new weight, and scores and masks of what it ranks."""
    return (4 + dtype.itemsize) * numel + RANKED_BYTES * min(numel, PART) + TABLE_BYTES


def batch_bytes(model: PreTrainedModel, dtype: torch.dtype, tokens: int) -> int:
    """Estimate of the intermediate results of a block for a batch of so many tokens, with fused attention.

    In a mixture of experts a token meets some experts only, which are not counted.
    """
    name, blocks = decoder_blocks(model)
    rows = [weight.matrix.shape[0] for weight in block_weights(blocks[0], f"{name}.0") if weight.expert is None]
    return tokens * (2 * model.config.get_text_config().hidden_size + sum(rows)) * dtype.itemsize


def distinct_inputs(model: PreTrainedModel, weights: list[LinearWeight]) -> list[int]:
    """Sizes of the different inputs that a block gives its weights; layers with the same input tensor share one.

    They are seen in a forward pass of two tokens. Where that fails, every weight counts by itself.

    Args:
        model: may be on the meta device.
        weights: of the model's first block.
    """
    dense = [weight for weight in weights if weight.expert is None]
    inputs: dict[str, Tensor] = {}

    def record(name: str, tensor: Tensor) -> None:
        inputs[name] = tensor
        if len(inputs) == len(dense):
            raise StopForward

    device = model.get_input_embeddings().weight.device
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    mask = torch.zeros(1, 1, 2, 2, dtype=model.dtype, device=device)  # of this form its values are not looked into
    try:
        with record_inputs(dense, record), torch.no_grad():
            model.base_model(ids, attention_mask=mask, use_cache=False)
    except StopForward:
        pass
    except Exception:  # whatever a model's code raises for tensors without values
        inputs = {}
    sizes = {id(tensor): tensor.shape[-1] for tensor in inputs.values()}
    alone = [weight for weight in weights if weight.name not in inputs]
    return [*sizes.values(), *(weight.matrix.shape[1] for weight in alone)]
