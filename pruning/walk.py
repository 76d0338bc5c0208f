"""The walk over decoder blocks that brings every weight the calibration inputs it is compressed with."""

import contextlib
import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel

from harness.device import autocast
from harness.progress import Progress
from pruning.hessian import InverseFactor, add_gram, factor_inverse
from pruning.layers import LinearWeight, block_weights, decoder_blocks
from pruning.validation import all_finite

logger = logging.getLogger(__name__)

PROOF_TOKENS = 32  # of two windows, on which the replay of blocks is compared with the model itself
WEIGHTS_AT_ONCE = 2**21  # masked at once
ROWS_AT_ONCE = 128  # tokens whose squares are summed at once: their float32 copies stay in the processor's cache
STATISTICS = ("sq_norms", "hessian")
# Decoders whose blocks arithmetic 1 gave what belongs to other windows: inputs of each layer made from its tokens.
WRONG_IN_1 = ("gemma4_text", "gemma4_unified_text")


def arithmetic(config: PretrainedConfig) -> int:
    """Number of the arithmetic by which the walk takes statistics of a model; raised where a change gives others.

    1: the first. 2: blocks get their own captured call for every batch where that makes a difference.
    """
    return 2 if config.get_text_config().model_type in WRONG_IN_1 else 1


class InputStatistics:
    """What calibrated methods know of a layer's inputs X (tokens x in_features), summed in float32 over all tokens.

    Attributes:
        num_tokens: rows of X.
        sq_norms: squared Euclidean norm of each input feature, (in_features,); kind "sq_norms".
        hessian: X^T X, (in_features, in_features); kind "hessian".
    Raises:
        ValueError: another kind than these, or a Hessian asked of squared norms.
    """

    def __init__(self, kind: str, in_features: int, device: torch.device) -> None:
        if kind not in STATISTICS:
            raise ValueError(f"there is no statistic {kind!r}; there are {', '.join(STATISTICS)}")
        shape = (in_features,) if kind == "sq_norms" else (in_features, in_features)
        self.num_tokens = 0
        self._sum = torch.zeros(shape, device=device)
        self._kind = kind
        self._factors: dict[tuple[float, bool], InverseFactor] = {}

    @property
    def sq_norms(self) -> Tensor:
        return self._sum if self._kind == "sq_norms" else self._sum.diagonal()

    @property
    def hessian(self) -> Tensor:
        if self._kind != "hessian":
            raise ValueError(f"a method that reads the Hessian has the statistic 'hessian', not {self._kind!r}")
        return self._sum

    def add(self, inputs: Tensor) -> None:
        """Count the rows of `inputs`, (…, in_features)."""
        inputs = inputs.reshape(-1, inputs.shape[-1])
        self.num_tokens += len(inputs)
        if self._kind == "hessian":
            add_gram(self._sum, inputs)
        else:
            for rows in inputs.split(ROWS_AT_ONCE if inputs.device.type == "cpu" else max(1, len(inputs))):
                self._sum += rows.float().square().sum(dim=0)

    def inverse_factor(self, damping: float, act_order: bool = False) -> InverseFactor:
        """The factor of the damped Hessian's inverse, computed once for all layers that share these inputs."""
        key = (damping, act_order)
        if key not in self._factors:
            self._factors[key] = factor_inverse(self.hessian, damping, act_order=act_order)
        return self._factors[key]


# W (out_features, in_features), its inputs' statistics (None for a method without calibration), its name -> the new W,
# or a keep-mask where weights only go
CompressLinear = Callable[[Tensor, InputStatistics | None, str], Tensor]


class BlockStorage(Protocol):
    """Where the walk finds blocks, and what it does with a finished one."""

    def hold(self, index: int) -> AbstractContextManager[nn.Module]:
        """Block `index` with its weights in memory; what happens to them afterwards is the storage's business."""

    def resume(self) -> tuple[int, Tensor | None]:
        """First block that is not finished, and the hidden states that enter it if they were kept."""

    def activations(self, shape: torch.Size, dtype: torch.dtype, turn: int) -> Tensor:
        """Room for the hidden states that enter block `turn`."""

    def finished(self, index: int, block: nn.Module) -> None:
        """Block `index`, still held, is compressed; its outputs are in the activations of turn index + 1."""


class LoadedBlocks:
    """Blocks of a model that is in memory as a whole; their outputs overwrite their inputs."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        self._blocks = blocks
        self._activations: Tensor | None = None

    @contextmanager
    def hold(self, index: int) -> Iterator[nn.Module]:
        yield self._blocks[index]

    def resume(self) -> tuple[int, Tensor | None]:
        return 0, None

    def activations(self, shape: torch.Size, dtype: torch.dtype, turn: int) -> Tensor:
        if self._activations is None or self._activations.dtype != dtype:
            device = next(self._blocks.parameters()).device
            self._activations = torch.empty(shape, dtype=dtype, device=device)
        return self._activations

    def finished(self, index: int, block: nn.Module) -> None:
        pass


class Call(NamedTuple):
    """What a block is called with besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Stop(Exception):
    """Ends a forward pass whose rest nobody reads; no error."""


def run_block(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """The hidden states that leave `block`; some architectures wrap them in a tuple."""
    output = block(hidden, *call.args, **call.kwargs)
    return output[0] if isinstance(output, tuple | list) else output


class NotReplayedError(ValueError):
    """Blocks that, run one by one, do not give what the whole model gives."""


class _Passes:
    """Forward passes of the calibration windows in which a block's layers show their inputs.

    Attributes:
        start: first block that is not finished.
    """

    start = 0

    def __init__(self, model: PreTrainedModel, tokens: Tensor, tokens_per_batch: int, precision: str) -> None:
        self._model, self._precision = model, precision
        self._name, self._blocks = decoder_blocks(model)
        self._batches = tokens.split(max(1, tokens_per_batch // tokens.shape[1]))
        self._ends_early = False

    def _passes(self, index: int, block: nn.Module) -> Iterator[Callable[[], None]]:
        """Per batch, what runs it through block `index`."""
        raise NotImplementedError

    def advance(self, index: int, block: nn.Module) -> None:
        """Block `index` is compressed: what comes next sees its outputs."""
        raise NotImplementedError

    def _forward(self, batch: Tensor) -> None:
        device = self._model.get_input_embeddings().weight.device
        with self._autocast(device):
            self._model.base_model(batch.to(device), use_cache=False)

    def _autocast(self, device: torch.device) -> AbstractContextManager:
        return autocast(self._precision, device.type, self._model.dtype)

    def collect(
        self, index: int, block: nn.Module, weights: list[LinearWeight], kind: str, num_batches: int | None = None
    ) -> dict[str, InputStatistics]:
        """Statistics of the inputs of `weights`, by name; layers that are given the same tensor share one object.

        A batch's pass ends where the last of `weights` is reached, unless one of them is used more than once: what
        comes after is not read by anybody.

        Args:
            num_batches: only so many batches; all when None.
        Raises:
            ValueError: an input is NaN or infinite, or no token reached a layer (names it).
        """
        device = next(block.parameters()).device
        to_bf16 = self._precision == "bf16" and self._model.dtype == torch.float32
        recorder = _Recorder(kind, len(weights) if self._ends_early else None, to_bf16)
        passes = itertools.islice(self._passes(index, block), num_batches)
        for run in Progress(passes, f"calibration of block {index}", num_batches or len(self._batches), bar=False):
            recorder.start_batch()
            with _inputs_shown(weights, recorder.record), self._autocast(device), contextlib.suppress(_Stop):
                run()
        for weight in weights:
            if weight.name not in recorder.statistics:
                more = "; calibrate on more samples"
                if weight.expert is None:
                    more = ": text alone does not use it, or its block does not call it as a layer"
                raise ValueError(f"{weight.name}: no calibration token reached it{more}")
            if not recorder.statistics[weight.name].sq_norms.isfinite().all():
                raise ValueError(f"{weight.name}: its inputs are NaN or infinite on the calibration text")
        return recorder.statistics


class WholeForwards(_Passes):
    """Statistics from whole forward passes, for every block anew: for models whose blocks cannot be run alone."""

    def _passes(self, index: int, block: nn.Module) -> Iterator[Callable[[], None]]:
        return (functools.partial(self._forward, batch) for batch in self._batches)

    def advance(self, index: int, block: nn.Module) -> None:
        pass


class Replay(_Passes):
    """Calibration windows on their way through the blocks: hidden states, and the call each block wants.

    A block is replayed with its OWN captured arguments: masks and rotary embeddings differ between the blocks of
    sliding-window models. Caches are off, or every window would attend to the one before. Before anything relies on
    it, two short windows go through the blocks one by one and through the model as a whole, and must come out the same.

    Args:
        model: the decoder; embeddings and everything else outside the blocks must be in memory.
        tokens: (num_samples, seq_len), without padding.
        tokens_per_batch: windows are run together up to this many tokens.
        precision: "bf16" computes a float32 model's products in bf16.
        calls: "shared" gives all batches of a size the calls captured from the first, "own" captures each batch's;
            "proven" takes the first of these that gives what the model gives.
    Raises:
        NotReplayedError: neither does.
    """

    def __init__(
        self, model: PreTrainedModel, storage: BlockStorage, tokens: Tensor, tokens_per_batch: int, precision: str,
        calls: Literal["proven", "shared", "own"] = "proven",
    ) -> None:  # fmt: skip
        super().__init__(model, tokens, tokens_per_batch, precision)
        self._storage = storage
        if calls == "proven":
            calls, self._ends_early = _prove(model, storage, tokens, precision)
        self._output, self._calls = self._capture_of_each_size()
        self._own_calls = calls == "own"
        self.start, hidden = storage.resume()
        self._hidden = self._embed_all(hidden)

    def _embed_all(self, hidden: Tensor | None) -> Tensor:
        """Hidden states entering the first block, unless a killed job's are given.

        Batches whose calls turn out to differ are given their own from then on.
        """
        into = hidden
        for place, batch in self._places():
            first, call = self._enter_first_block(batch)
            self._own_calls |= not _same(call, self._calls[len(batch)][0])
            if hidden is None:
                if into is None:
                    shape = torch.Size((sum(map(len, self._batches)), *first.shape[1:]))
                    into = self._storage.activations(shape, first.dtype, 0)
                into[place] = first
        return into

    def _places(self) -> Iterator[tuple[slice, Tensor]]:
        """The batches, and which windows they hold."""
        position = 0
        for batch in self._batches:
            yield slice(position, position + len(batch)), batch
            position += len(batch)

    def _enter_first_block(self, batch: Tensor) -> tuple[Tensor, Call]:
        """What the model gives its first block for these windows."""
        seen = []

        def look(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            seen.append(_split_call(type(module).__name__, args, kwargs))
            raise _Stop

        handle = self._blocks[0].register_forward_pre_hook(look, with_kwargs=True)
        try:
            with contextlib.suppress(_Stop):
                self._forward(batch)
        finally:
            handle.remove()
        if not seen:
            raise NotReplayedError(f"{type(self._model).__name__} does not run its blocks {self._name}")
        return seen[0]

    def _capture_of_each_size(self) -> tuple[Any, dict[int, list[Call]]]:
        """What a block returns, and by number of windows the calls of all blocks."""
        of_each_size = {len(batch): batch for batch in reversed(self._batches)}
        hidden, call = self._enter_first_block(self._batches[0])
        with self._storage.hold(0) as block, self._autocast(hidden.device):
            self._output = block(hidden, *call.args, **call.kwargs)
        return self._output, {size: self._capture_calls(batch) for size, batch in of_each_size.items()}

    def _capture_calls(self, batch: Tensor) -> list[Call]:
        """The call of every block for these windows: a forward pass in which no block computes anything."""
        with _blocks_replaced(self._blocks, self._output) as seen:
            self._forward(batch)
        if len(seen) != len(self._blocks):
            raise NotReplayedError(
                f"{type(self._model).__name__} runs its {len(self._blocks)} blocks {len(seen)} times"
            )
        return [call for _, call in seen]

    def _runs(self, index: int) -> Iterator[tuple[slice, Tensor, Call]]:
        """Per batch: its windows' places, the hidden states that enter block `index`, the block's call."""
        for place, batch in self._places():
            calls = self._capture_calls(batch) if self._own_calls else self._calls[len(batch)]
            yield place, self._hidden[place], calls[index]

    def _passes(self, index: int, block: nn.Module) -> Iterator[Callable[[], None]]:
        device = next(block.parameters()).device
        for _, hidden, call in self._runs(index):
            yield functools.partial(run_block, block, hidden.to(device), call)

    def advance(self, index: int, block: nn.Module) -> None:
        """Run all windows through block `index`; its outputs take the place of its inputs."""
        device, target = next(block.parameters()).device, None
        for place, hidden, call in self._runs(index):
            with self._autocast(device):
                output = run_block(block, hidden.to(device), call)
            if target is None:  # some blocks return float32 where they are given less
                target = self._storage.activations(self._hidden.shape, output.dtype, index + 1)
            target[place] = output
        self._hidden = target

    def logits(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Per batch, its windows and the model's logits, when all windows have gone through all blocks."""
        device = self._model.get_input_embeddings().weight.device
        for place, batch in self._places():
            hidden = self._hidden[place].to(device)
            with self._autocast(device), _blocks_replaced(self._blocks, self._output, hidden):
                yield batch, self._model(batch.to(device), use_cache=False).logits


class _InMemory:
    """Blocks of another storage, for windows of which nothing is kept."""

    def __init__(self, storage: BlockStorage) -> None:
        self.hold = storage.hold

    def resume(self) -> tuple[int, Tensor | None]:
        return 0, None

    def activations(self, shape: torch.Size, dtype: torch.dtype, turn: int) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def finished(self, index: int, block: nn.Module) -> None:
        pass


def check_replayed(model: PreTrainedModel, storage: BlockStorage, precision: str) -> None:
    """Raises NotReplayedError where a model's blocks, run one by one, do not give what the model gives."""
    tokens = torch.arange(2 * 2 * PROOF_TOKENS).view(2, -1) % model.config.get_text_config().vocab_size
    _prove(model, storage, tokens, precision)


@torch.no_grad()
def _prove(
    model: PreTrainedModel, storage: BlockStorage, tokens: Tensor, precision: str
) -> tuple[Literal["shared", "own"], bool]:
    """Which calls of the blocks give what the model gives, and whether no layer is used twice in a pass.

    Raises:
        NotReplayedError: none does (says what differs).
    """
    length = min(PROOF_TOKENS, max(1, tokens.shape[1] // 2))
    windows = torch.cat([tokens[:1, :length], tokens[-1:, -length:]])
    whole = _WholePass(model, storage, precision)
    wanted = [whole.run(window[None]) for window in windows]
    reason = ""
    for calls in ("shared", "own"):
        try:
            replay = Replay(model, _InMemory(storage), windows, 1, precision, calls)
            for index in range(len(whole.blocks)):
                _compare(f"what enters {whole.name}.{index}", replay._hidden, [states[index] for states, _ in wanted])
                with storage.hold(index) as block:
                    replay.advance(index, block)
            given = torch.cat([logits for _, logits in replay.logits()])
            _compare("its logits", given, [logits for _, logits in wanted])
            return calls, whole.most_uses == 1
        except Exception as error:  # whatever a block says that is called in a way it is not made for
            reason = reason or str(error).partition("\n")[0]
    kind = type(model).__name__
    raise NotReplayedError(f"{kind} cannot be run block by block, only as a whole and in memory: {reason}")


class _WholePass:
    """Forward passes of the whole model that note what enters each block, which storage brings when it is called."""

    def __init__(self, model: PreTrainedModel, storage: BlockStorage, precision: str) -> None:
        self._model, self._storage, self._precision = model, storage, precision
        self.name, self.blocks = decoder_blocks(model)
        self.most_uses = 1

    def run(self, window: Tensor) -> tuple[list[Tensor], Tensor]:
        """What entered the blocks, in the order of their calls, and the logits."""
        seen: list[Tensor] = []
        uses: dict[str, int] = {}

        def replace(index: int, block: nn.Module) -> Callable:
            own = block.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                seen.append(next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None))
                with self._storage.hold(index):
                    return own(*args, **kwargs)

            return forward

        def count(name: str, inputs: Tensor) -> None:
            uses[name] = uses.get(name, 0) + 1

        weights = [
            weight
            for index, block in enumerate(self.blocks)
            for weight in block_weights(block, f"{self.name}.{index}")
            if weight.expert is None
        ]
        device = self._model.get_input_embeddings().weight.device
        with (
            _forwards([replace(index, block) for index, block in enumerate(self.blocks)], self.blocks),
            _inputs_shown(weights, count),
            autocast(self._precision, device.type, self._model.dtype),
        ):
            logits = self._model(window.to(device), use_cache=False).logits
        self.most_uses = max(self.most_uses, *uses.values(), 1)
        if len(seen) != len(self.blocks):
            kind = type(self._model).__name__
            raise NotReplayedError(
                f"{kind} cannot be run block by block, only as a whole and in memory: it runs its {len(self.blocks)} "
                f"blocks {len(seen)} times"
            )
        return seen, logits


def _compare(what: str, given: Tensor, wanted: list[Tensor]) -> None:
    """Raises NotReplayedError where two ways to the same numbers differ by more than rounding."""
    wanted = torch.cat([part.to(given.device) for part in wanted])
    if (given.shape, given.dtype) != (wanted.shape, wanted.dtype):
        raise NotReplayedError(f"{what} has another shape or precision")
    tolerance = 1e-5 if given.dtype == torch.float32 else 0.02
    scale = float(wanted.float().abs().nan_to_num().max())
    if not torch.allclose(given.float(), wanted.float(), rtol=0, atol=tolerance * scale, equal_nan=True):
        raise NotReplayedError(f"{what} differs from the whole model's, so that blocks take more than hidden states")


class _Recorder:
    """Sums the inputs of layers, once per distinct input, and ends a pass when `num_layers` layers have had theirs."""

    def __init__(self, kind: str, num_layers: int | None, to_bf16: bool) -> None:
        self.statistics: dict[str, InputStatistics] = {}
        self._kind, self._num_layers, self._to_bf16 = kind, num_layers, to_bf16

    def start_batch(self) -> None:
        self._seen: list[tuple[Tensor, InputStatistics]] = []
        self._names: set[str] = set()

    def record(self, name: str, inputs: Tensor) -> None:
        self._names.add(name)
        shared = next((found for tensor, found in self._seen if tensor is inputs), None)
        if shared is None:
            shared = self.statistics.get(name) or InputStatistics(self._kind, inputs.shape[-1], inputs.device)
            self._seen.append((inputs, shared))
            shared.add(inputs.bfloat16() if self._to_bf16 else inputs)
        self.statistics[name] = shared
        if len(self._names) == self._num_layers:
            raise _Stop


def _split_call(block: str, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """Hidden states and the rest of what a block is called with."""
    if not args or not isinstance(args[0], Tensor) or args[0].dim() != 3:
        raise NotReplayedError(f"{block} does not take hidden states (batch, tokens, features) first")
    if any(hasattr(value, "get_seq_length") for value in (*args, *kwargs.values())):
        raise NotReplayedError(f"{block} is given a cache although use_cache is off")
    return args[0], Call(args[1:], kwargs)


def _same(one: Any, other: Any) -> bool:
    """Whether two calls say the same: tensors by their values, containers by what they hold, objects by their kind."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.dtype == other.dtype and one.device == other.device and torch.equal(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, int | float | str | bool):
        return one == other
    return type(one) is type(other)


@contextmanager
def _forwards(forwards: list[Callable], blocks: nn.ModuleList) -> Iterator[None]:
    """While this holds, blocks compute these instead of their own."""
    own = [vars(block).get("forward") for block in blocks]  # accelerate puts a forward of its own on a placed module
    for block, forward in zip(blocks, forwards, strict=True):
        block.forward = forward
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


@contextmanager
def _blocks_replaced(
    blocks: nn.ModuleList, like: Any, output: Tensor | None = None
) -> Iterator[list[tuple[Tensor, Call]]]:
    """Blocks that pass hidden states through unchanged and note what they were called with, in order.

    Args:
        like: what one of these blocks returned: hidden states, by themselves or first in a tuple.
        output: what they return instead of the hidden states that they are given.
    """
    seen: list[tuple[Tensor, Call]] = []

    def replacement(block: nn.Module) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            seen.append(_split_call(type(block).__name__, args, kwargs))
            hidden = args[0] if output is None else output
            return hidden if isinstance(like, Tensor) else type(like)((hidden, *like[1:]))

        return forward

    with _forwards([replacement(block) for block in blocks], blocks):
        yield seen


class _ExpertInputs(TorchFunctionMode):
    """Shows the input of every product with a slice of a 3-D expert weight, which no module of its own computes."""

    def __init__(self, weights: list[LinearWeight], record: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._names = {weight.matrix.data_ptr(): weight.name for weight in weights}
        self._record = record

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is nn.functional.linear and args[1].data_ptr() in self._names:
            self._record(self._names[args[1].data_ptr()], args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def _inputs_shown(weights: list[LinearWeight], record: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While this holds, `record(name, inputs)` is called whenever one of `weights` is about to be used."""

    def hook_of(name: str) -> Callable[[nn.Module, tuple], None]:
        return lambda _, args: record(name, args[0])

    experts = [weight for weight in weights if weight.expert is not None]
    handles = [w.owner.register_forward_pre_hook(hook_of(w.name)) for w in weights if w.expert is None]
    try:
        with _ExpertInputs(experts, record) if experts else contextlib.nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _drop(matrix: Tensor, keep_mask: Tensor) -> None:
    """Zero in place what the mask does not keep, part by part: a large weight in memory has no copy beside it.

    A product with False may be -0, which adding 0 mends; masked_fill_ is twice as slow in bfloat16.
    """
    rows = max(1, WEIGHTS_AT_ONCE // matrix.shape[1])
    for part, kept in zip(matrix.split(rows), keep_mask.split(rows), strict=True):
        part.mul_(kept).add_(0)


class WalkCost(NamedTuple):
    """What one calibrated compression takes beside the model.

    Fields:
        flops: of two forward passes over the blocks and of the statistics; factorisations and updates are less.
        bytes: activations, statistics of one block, and a batch's intermediate results.
        dtype: in which it computes.
    """

    flops: float
    bytes: int
    dtype: torch.dtype

    def measured_flops_per_second(self, device: torch.device) -> float:
        """Speed of a matrix product of this dtype, measured now: on small matrices where that takes long already."""
        for size in (256, 1024):
            matrix = torch.ones(size, size, dtype=self.dtype, device=device)
            float((matrix @ matrix)[0, 0])  # the first product sets things up
            started = time.perf_counter()
            for _ in range(4):
                float((matrix @ matrix)[0, 0])
            seconds = time.perf_counter() - started
            if seconds > 0.1:  # bf16 on a CPU without instructions for it: a hundred times as slow
                break
        return 4 * 2 * size**3 / seconds


def walk_cost(
    model: PreTrainedModel, windows_shape: tuple[int, int], statistic: str | None, dtype: torch.dtype,
    tokens_per_batch: int = 4096,
) -> WalkCost:  # fmt: skip
    """Estimate from shapes alone; `model` may be on the meta device."""
    name, blocks = decoder_blocks(model)
    if statistic is None:
        return WalkCost(0.0, 0, dtype)
    tokens = windows_shape[0] * windows_shape[1]
    shapes = [tuple(weight.matrix.shape) for weight in block_weights(blocks[0], f"{name}.0")]
    inputs = {shape[1] for shape in shapes}
    products = sum(rows * columns for rows, columns in shapes) * 2
    squares = sum(size**2 for size in inputs) * (statistic == "hessian")
    hidden = model.config.get_text_config().hidden_size
    widest = max(max(shape) for shape in shapes)
    return WalkCost(
        flops=2.0 * tokens * len(blocks) * (products + squares),
        bytes=tokens * hidden * dtype.itemsize + 8 * squares + 4 * tokens_per_batch * widest * 4,
        dtype=dtype,
    )


@contextmanager
def _ready_to_walk(model: PreTrainedModel) -> Iterator[None]:
    """No dropout, and experts computed one by one so that each one's inputs can be seen."""
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
) -> None:
    """Compress every linear weight of the decoder blocks, block by block, in place.

    Each block's layers see the calibration inputs as the already compressed blocks before it deliver them, once all
    compressed from the statistics of the uncompressed block.

    Args:
        tokens: calibration windows, (num_samples, seq_len); may be None for a method without statistics.
        compress_linear: the method; called once per weight, returns the new weight or a keep-mask of its own.
        statistic: what it reads of the inputs: None, "sq_norms" or "hessian".
        true_sequential: inside a block too, statistics are taken again after each group of layers that share inputs.
        tokens_per_batch: windows are run together up to this many tokens; memory grows with it, results do not change
            but for rounding.
        precision: "bf16" computes a float32 model's products in bf16; statistics stay float32.
        storage: where blocks come from; by default the model's own, in memory.
    Raises:
        ValueError: a weight or an input is NaN or infinite, or the method refuses a weight; names the layer.
    Source: the sequential scheme of GPTQ, SparseGPT and Wanda (reference repositories), with one statistic per
        distinct input, without the outputs that are never read, and with every block's own arguments.
    """
    name, blocks = decoder_blocks(model)
    storage = storage or LoadedBlocks(blocks)
    with _ready_to_walk(model):
        replay = _passes(model, storage, tokens, tokens_per_batch, precision) if statistic else None
        start = replay.start if replay else storage.resume()[0]
        for index in Progress(range(start, len(blocks)), name="blocks", initial=start, total=len(blocks)):
            with storage.hold(index) as block:
                weights = block_weights(block, f"{name}.{index}")
                _check_finite(weights)
                if replay is None:
                    _compress(weights, {}, compress_linear)
                else:
                    for stage in _stages(replay, index, block, weights, statistic, true_sequential):
                        _compress(stage, replay.collect(index, block, stage, statistic), compress_linear)
                    if index < len(blocks) - 1:
                        replay.advance(index, block)
                storage.finished(index, block)


def _passes(
    model: PreTrainedModel, storage: BlockStorage, tokens: Tensor, tokens_per_batch: int, precision: str
) -> _Passes:
    """Block by block where that gives what the model gives; else whole forward passes, which need the whole model."""
    try:
        return Replay(model, storage, tokens, tokens_per_batch, precision)
    except NotReplayedError as error:
        if not isinstance(storage, LoadedBlocks):
            raise
        logger.info("%s; every block's statistics come from whole forward passes, which takes longer", error)
        return WholeForwards(model, tokens, tokens_per_batch, precision)


def _stages(
    replay: _Passes, index: int, block: nn.Module, weights: list[LinearWeight], statistic: str, true_sequential: bool
) -> list[list[LinearWeight]]:
    """Groups of weights compressed from one pass over the windows, in the order in which the block uses them."""
    if not true_sequential:
        return [weights]
    statistics = replay.collect(index, block, weights, "sq_norms", num_batches=1)
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
    for weight in Progress(weights, "weights of a block", bar=False):
        try:
            found = compress_linear(weight.matrix, statistics.get(weight.name), weight.name)
            if found.dtype == torch.bool:
                _drop(weight.matrix, found)
            else:
                weight.matrix.copy_(found)
        except ValueError as error:
            raise ValueError(f"{weight.name}: {error}") from error
