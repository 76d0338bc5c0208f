"""Run token windows through the decoder blocks one block at a time, with the arguments that the model gives each block.

The arguments are captured for every block, since masks and rotary embeddings differ between the blocks of
sliding-window models. The KV cache is off, or every window would attend to the one before.
"""

import contextlib
import functools
import logging
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.device import WITH_STREAMS, autocast, is_out_of_memory, release_memory, to_device
from pruning.block_calls import (
    Call,
    NotReplayedError,
    StopForward,
    blocks_held,
    blocks_replaced,
    forwards_replaced,
    run_block,
    split_call,
)
from pruning.blocks import BlockStorage
from pruning.layers import block_weights, decoder_blocks, record_inputs

logger = logging.getLogger(__name__)

PROOF_TOKENS = 32  # length of the two windows on which the replay is compared with the whole model


class Batches:
    """Token windows in batches, and forward passes of the whole model over a batch.

    Iterating gives, per batch, its rows in `tokens` as a slice, and the windows.

    Args:
        tokens: (num_samples, seq_len), without padding.
        tokens_per_batch: a batch holds as many windows as fit into this many tokens, at least one.
        precision: "bf16" computes the matmuls of a float32 model in bf16.

    Attributes:
        name, blocks: the model's list of decoder blocks (see decoder_blocks).
        in_bf16: whether a float32 model computes in bf16.
    """

    def __init__(self, model: PreTrainedModel, tokens: Tensor, tokens_per_batch: int, precision: str) -> None:
        self.model, self.num_windows = model, len(tokens)
        self.name, self.blocks = decoder_blocks(model)
        self.in_bf16 = precision == "bf16" and model.dtype == torch.float32
        self._tokens, self._precision = tokens, precision
        self._at_once = max(1, tokens_per_batch // tokens.shape[1])

    def __len__(self) -> int:
        return math.ceil(self.num_windows / self._at_once)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        return self.starting_at(0)

    def starting_at(self, first: int) -> Iterator[tuple[slice, Tensor]]:
        """The batches of window `first` and all after it."""
        for start in range(first, self.num_windows, self._at_once):
            windows = self._tokens[start : start + self._at_once]
            yield slice(start, start + len(windows)), windows

    def halve(self, error: RuntimeError) -> None:
        """Halve the number of windows in a batch, for good, after an error that says that memory ran out.

        Raises:
            RuntimeError: `error`, if it is another one or a batch is a single window.
        """
        if not is_out_of_memory(error) or self._at_once == 1:
            raise error
        self._at_once //= 2
        release_memory()
        logger.warning("memory ran out: from here on %d windows are computed at once", self._at_once)

    def run_without_head(self, windows: Tensor) -> None:
        self._forward(self.model.base_model, windows)

    def logits(self, windows: Tensor) -> Tensor:
        return self._forward(self.model, windows).logits

    def autocast(self, device: torch.device) -> AbstractContextManager:
        return autocast(self._precision, device.type, self.model.dtype)

    def _forward(self, module: nn.Module, windows: Tensor) -> Any:
        device = self.model.get_input_embeddings().weight.device
        with self.autocast(device):
            return module(to_device(windows, device), use_cache=False)


class WholeForwards:
    """Stands in for Replay if a model's blocks cannot be run one by one: a whole forward pass for every block.

    Attributes:
        start, uses_layers_once: see Replay.
    """

    def __init__(self, model: PreTrainedModel, tokens: Tensor, tokens_per_batch: int, precision: str) -> None:
        self.batches = Batches(model, tokens, tokens_per_batch, precision)
        self.start, self.uses_layers_once = 0, False

    def passes(self, index: int, block: nn.Module) -> Iterator[Callable[[], object]]:
        return (functools.partial(self.batches.run_without_head, windows) for _, windows in self.batches)

    def advance(self, index: int, block: nn.Module) -> None:
        """Does nothing: the next forward pass goes through the compressed block."""


class Replay:
    """Hidden states of all windows at one block after the other, and the arguments with which each block is called.

    First, two short windows are run both ways, block by block and through the whole model; the results must be equal.

    Args:
        model: the decoder; all modules outside the blocks must be in memory.
        storage: where the blocks are.
        tokens, tokens_per_batch, precision: see Batches.
        calls: "shared" uses the arguments captured from the first batch for all batches of its size, "per_batch"
            captures them from each batch; "proven" takes the first of these that computes what the model computes.
            Only with "proven" are hidden states stored in `storage`.
        activations: device that holds the hidden states of all windows; None: where the model's embeddings are.

    Attributes:
        hidden: (num_samples, seq_len, features), the hidden states that enter the next block.
        start: index of the first block that is not compressed yet.
        calls_per_batch: whether arguments are captured from each batch.
        uses_layers_once: whether every layer is known to run at most once in a forward pass.
    Raises:
        NotReplayedError: with neither do the blocks compute what the model computes.
    """

    def __init__(
        self, model: PreTrainedModel, storage: BlockStorage, tokens: Tensor, tokens_per_batch: int, precision: str,
        calls: Literal["proven", "shared", "per_batch"] = "proven", activations: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.batches = Batches(model, tokens, tokens_per_batch, precision)
        self._blocks, self._storage, self._activations_on = self.batches.blocks, storage, activations
        self._is_stored = calls == "proven"
        self.uses_layers_once = self._is_pinned = False
        if calls == "proven":
            calls, self.uses_layers_once = _prove(model, storage, tokens, precision)
        self._output = self._capture_first_output()
        self.calls_per_batch = calls == "per_batch"
        self.start, self.hidden = storage.resume() if self._is_stored else (0, None)
        is_resumed = self.hidden is not None
        while True:
            try:
                self._calls = self._capture_each_batch_size()
                self._enter_all(is_resumed)
                break
            except RuntimeError as error:
                self.batches.halve(error)

    def _enter_all(self, is_resumed: bool) -> None:
        """Compute the hidden states that enter the first block, unless an interrupted job stored those of a later one.

        If the arguments of any batch differ from the captured ones, they are captured from each batch.
        """
        for rows, windows in self.batches:
            first, call = self._enter_first_block(windows)
            self.calls_per_batch |= not _equal(call, self._calls[len(windows)][0])
            if is_resumed:
                continue
            if self.hidden is None:
                self.hidden = self._activations(torch.Size((self.batches.num_windows, *first.shape[1:])), first, 0)
            self._store(self.hidden, rows, first)

    def _activations(self, shape: torch.Size, like: Tensor, index: int) -> Tensor:
        """Tensor for the hidden states that enter block `index`: the storage's, else the one in use, to be overwritten.

        Args:
            like: hidden states of the dtype and device that are needed; another dtype needs new memory.
        """
        stored = self._storage.activations(shape, like.dtype, index) if self._is_stored else None
        if stored is not None:
            return stored
        if self.hidden is not None and self.hidden.dtype == like.dtype:
            return self.hidden
        device = self._activations_on or like.device
        self._is_pinned = device.type == "cpu" and like.device.type in WITH_STREAMS
        return torch.empty(shape, dtype=like.dtype, device=device, pin_memory=self._is_pinned)

    def _store(self, target: Tensor, rows: slice, states: Tensor) -> None:
        """Write hidden states to rows of a tensor of _activations.

        The CPU does not wait for a copy to pinned memory, which the device alone reads, in the order of its work.
        """
        target[rows].copy_(states, non_blocking=self._is_pinned)

    def _enter_first_block(self, windows: Tensor) -> tuple[Tensor, Call]:
        """The hidden states and other arguments with which the model calls its first block for these windows."""
        seen = []

        def capture(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            seen.append(split_call(type(module).__name__, args, kwargs))
            raise StopForward

        handle = self._blocks[0].register_forward_pre_hook(capture, with_kwargs=True)
        try:
            with contextlib.suppress(StopForward):
                self.batches.run_without_head(windows)
        finally:
            handle.remove()
        if not seen:
            raise NotReplayedError(f"{type(self.batches.model).__name__} does not run its blocks {self.batches.name}")
        return seen[0]

    def _capture_first_output(self) -> Any:
        """What the first block returns for the first window."""
        hidden, call = self._enter_first_block(next(iter(self.batches))[1][:1])
        with self._storage.hold(0) as block, self.batches.autocast(hidden.device):
            return block(hidden, *call.args, **call.kwargs)

    def _capture_each_batch_size(self) -> dict[int, list[Call]]:
        """The arguments of all blocks, by number of windows in a batch."""
        of_each_size: dict[int, Tensor] = {}
        for _, windows in self.batches:
            of_each_size.setdefault(len(windows), windows)
        return {size: self._capture_calls(windows) for size, windows in of_each_size.items()}

    def _capture_calls(self, windows: Tensor) -> list[Call]:
        """The arguments of every block for these windows, from a forward pass in which no block computes anything."""
        with blocks_replaced(self._blocks, self._output) as seen:
            self.batches.run_without_head(windows)
        if len(seen) != len(self._blocks):
            class_name = type(self.batches.model).__name__
            raise NotReplayedError(f"{class_name} runs its {len(self._blocks)} blocks {len(seen)} times")
        return [call for _, call in seen]

    def _runs(self, index: int, first: int = 0) -> Iterator[tuple[slice, Tensor, Call]]:
        """Per batch: its rows in `hidden`, the hidden states that enter block `index`, the block's other arguments.

        Args:
            first: the window at which to begin.
        """
        for rows, windows in self.batches.starting_at(first):
            if self.calls_per_batch:
                calls = self._capture_calls(windows)
            else:
                if len(windows) not in self._calls:  # batches have been halved
                    self._calls[len(windows)] = self._capture_calls(windows)
                calls = self._calls[len(windows)]
            yield rows, self.hidden[rows], calls[index]

    def passes(self, index: int, block: nn.Module) -> Iterator[Callable[[], object]]:
        """One function per batch that runs it through block `index`."""
        device = next(block.parameters()).device
        for _, hidden, call in self._runs(index):
            yield functools.partial(run_block, block, to_device(hidden, device), call)

    def advance(self, index: int, block: nn.Module) -> None:
        """Run all windows through block `index`; its outputs replace its inputs. If memory runs out, batches shrink."""
        device, target, done = next(block.parameters()).device, None, 0
        while done < self.batches.num_windows:
            try:
                for rows, hidden, call in self._runs(index, done):
                    with self.batches.autocast(device):
                        output = run_block(block, to_device(hidden, device), call)
                    if target is None:  # here, since some blocks return float32 for bfloat16
                        target = self._activations(self.hidden.shape, output, index + 1)
                    self._store(target, rows, output)
                    done = rows.stop
            except RuntimeError as error:
                self.batches.halve(error)
        self.hidden = target

    def logits(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Per batch, its windows and the model's logits; call it after `advance` through all blocks.

        Args:
            first: the window at which to begin.
        """
        for rows, windows in self.batches.starting_at(first):
            yield windows, self._logits(rows, windows)  # not kept here while the next are computed

    def _logits(self, rows: slice, windows: Tensor) -> Tensor:
        device = self.batches.model.get_input_embeddings().weight.device
        with blocks_replaced(self._blocks, self._output, to_device(self.hidden[rows], device)):
            return self.batches.logits(windows)


def check_replayed(model: PreTrainedModel, storage: BlockStorage, precision: str) -> None:
    """Raises NotReplayedError if the blocks, run one by one, do not compute what the whole model computes."""
    tokens = torch.arange(2 * 2 * PROOF_TOKENS).view(2, -1) % model.config.get_text_config().vocab_size
    _prove(model, storage, tokens, precision)


_replays: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


def replays(model: PreTrainedModel, storage: BlockStorage, precision: str) -> bool:
    """Whether the blocks, run one by one, compute what the whole model computes; tried once for a model."""
    if model not in _replays:
        try:
            check_replayed(model, storage, precision)
            _replays[model] = True
        except NotReplayedError as error:
            logger.info("%s; every batch brings all blocks to the device", error)
            _replays[model] = False
    return _replays[model]


@torch.no_grad()
def _prove(
    model: PreTrainedModel, storage: BlockStorage, tokens: Tensor, precision: str
) -> tuple[Literal["shared", "per_batch"], bool]:
    """The value of `calls` (see Replay) that reproduces the model, and whether no layer runs twice in a forward pass.

    Raises:
        NotReplayedError: none does (the message says what differs).
    """
    length = min(PROOF_TOKENS, max(1, tokens.shape[1] // 2))
    windows = torch.cat([tokens[:1, :length], tokens[-1:, -length:]])
    batches = Batches(model, windows, 1, precision)
    whole = [_whole_pass(batches, storage, window) for _, window in batches]
    reason = ""
    for calls in ("shared", "per_batch"):
        try:
            replay = Replay(model, storage, windows, 1, precision, calls)
            for index in range(len(batches.blocks)):
                expected = [passed.seen[index] for passed in whole]
                _compare(f"the input of {batches.name}.{index}", replay.hidden, expected)
                with storage.hold(index) as block:
                    replay.advance(index, block)
            logits = torch.cat([logits for _, logits in replay.logits()])
            _compare("the output (logits)", logits, [passed.logits for passed in whole])
            return calls, all(passed.most_uses <= 1 for passed in whole)
        except torch.OutOfMemoryError:  # of two short windows
            raise
        except Exception as error:  # a block with arguments that it does not expect may raise anything
            reason = reason or str(error).partition("\n")[0]
    raise _only_whole(model, reason)


def _only_whole(model: PreTrainedModel, reason: str) -> NotReplayedError:
    class_name = type(model).__name__
    return NotReplayedError(f"{class_name} cannot be run block by block, only as a whole and in memory: {reason}")


class _WholePass(NamedTuple):
    """Results of a forward pass of the whole model.

    Fields:
        seen: hidden states that entered the blocks, in the order of their calls.
        most_uses: the highest number of times that a layer ran.
    """

    seen: list[Tensor]
    logits: Tensor
    most_uses: int


def _whole_pass(batches: Batches, storage: BlockStorage, window: Tensor) -> _WholePass:
    """Run the whole model; `storage` loads each block when it is called."""
    seen: list[Tensor] = []
    uses: dict[str, int] = {}

    def watched(block: nn.Module) -> Callable:
        original = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            seen.append(next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None))
            return original(*args, **kwargs)

        return forward

    def count(name: str, inputs: Tensor) -> None:
        uses[name] = uses.get(name, 0) + 1

    blocks = batches.blocks
    weights = [
        weight
        for index, block in enumerate(blocks)
        for weight in block_weights(block, f"{batches.name}.{index}")
        if weight.expert is None
    ]
    with (
        blocks_held(blocks, storage),
        forwards_replaced(blocks, [watched(block) for block in blocks]),
        record_inputs(weights, count),
    ):
        logits = batches.logits(window)
    if len(seen) != len(blocks):
        raise _only_whole(batches.model, f"it runs its {len(blocks)} blocks {len(seen)} times")
    return _WholePass(seen, logits, max(uses.values(), default=0))


def _compare(name: str, computed: Tensor, expected: list[Tensor]) -> None:
    """Raises NotReplayedError if `computed` (by blocks) differs from `expected` (whole model) by more than rounding."""
    expected = torch.cat([part.to(computed.device) for part in expected])
    if (computed.shape, computed.dtype) != (expected.shape, expected.dtype):
        raise NotReplayedError(f"{name} has another shape or dtype than in the whole model")
    tolerance = 1e-5 if computed.dtype == torch.float32 else 0.02
    scale = float(expected.float().abs().nan_to_num().max())
    if not torch.allclose(computed.float(), expected.float(), rtol=0, atol=tolerance * scale, equal_nan=True):
        raise NotReplayedError(f"{name} differs from the whole model's: blocks pass on more than hidden states")


def _equal(one: Any, other: Any) -> bool:
    """Whether two arguments are equal: tensors by value, containers by content, other objects by type."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.dtype == other.dtype and one.device == other.device and torch.equal(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, int | float | str | bool):
        return one == other
    return type(one) is type(other)
