"""The engine: feeds sequences to a language model in batches, as packing.py plans them.

Prefixes that sequences share are computed once, there is little padding, and logits are computed only at positions
where they are read. `Ways` says which of these fast paths a model takes; proof.py has proven them on it. The result is
that of one sequence at a time, to the rounding of the matmuls. Several processes compute the batches that one process
would, each a part of them, so that the result is the same to the bit.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from harness.device import autocast, available_memory, is_out_of_memory, release_memory, to_device
from llm_tasks.engine import cpu
from llm_tasks.engine.caches import PrefixLayer
from llm_tasks.engine.packing import (
    EVEN_KEYS,
    LONGEST_ROW,
    Block,
    Prefix,
    Read,
    Row,
    cut_into_blocks,
    fast_length,
    pack,
    pack_in_blocks,
    plan,
)
from llm_tasks.engine.processes import ALONE, Processes
from llm_tasks.engine.ways import Ways, lengths_of
from pruning.blocks import CPU, BlockStorage
from pruning.blockwise import Pass, run_blockwise
from pruning.layers import decoder_blocks

logger = logging.getLogger(__name__)

LocalRows = dict[int, slice]  # by id of a prefix, the range of its rows (from short to long) for this process

EVEN_TOKENS = 512  # with so many tokens, a batch takes no row a quarter shorter: padding would cost more than a batch
READS_PER_TOKEN = 0.25  # positions with logits of the whole vocabulary, per token of the budget: these fill the memory


def _any_local(prefix: Prefix, local: LocalRows) -> bool:
    """Whether this process computes any row below a prefix."""
    return id(prefix) in local or any(_any_local(longer, local) for longer in prefix.below)


class _Pass(NamedTuple):
    """A forward pass over a batch.

    Fields:
        run: runs it; every call gives the same.
        use: takes its outputs.
        cache: PrefixLayers, if the batch has a prefix or its keys and values are kept.
        tokens: of the batch, padding included.
        blocks: see cpu.in_blocks.
    """

    run: Callable[[], Tensor]
    use: Callable[[Tensor], None]
    cache: Cache | None
    tokens: int
    blocks: list[Block] | None = None


class Engine:
    """Feeds sequences to a model in batches; a subclass uses the logits in `_collect`.

    Args:
        budget: tokens per batch, at least 1; a longer sequence is a batch alone. Halved, permanently, whenever memory
            runs out.
        precision: "bf16" computes the matmuls of a float32 model in bf16.
        ways: the fast paths to take.
        storage: where the blocks are, of a model whose blocks are not on its device: all batches go through one block
            before the next is brought. Where memory runs out, the error is the caller's.
    """

    _keeps_batch: Literal["batch"] | None = None  # whether _collect gets keys and values of the batch
    _projects = False  # whether _collect computes logits from hidden states, with ways.projects

    def __init__(
        self, model: PreTrainedModel, budget: int, precision: str, ways: Ways,
        storage: BlockStorage | None = None,
    ) -> None:  # fmt: skip
        self._model, self._storage, self._budget, self._precision, self._ways = model, storage, budget, precision, ways
        self._config = model.config.get_text_config()
        self._lengths = lengths_of(self._config)
        self._num_layers = num_layers(model)
        self._output_weights = model.get_output_embeddings().weight if self._projects and ways.projects else None
        self._in_blocks = cpu.attends_in_blocks(ways)  # for rows without a prefix
        self._lock = threading.Lock()  # for counters, and for parts of _collect that only one worker may run
        self._passes: list[_Pass] = []  # that are to be run block by block
        self.computed = 0

    def _collect(self, rows: list[Row], wanted: np.ndarray, outputs: Tensor, cache: Cache | None) -> None:
        """Use the results of a batch.

        Args:
            wanted: True where logits are read, (rows, tokens).
            outputs: logits there, (positions read, vocabulary); hidden states if there are _output_weights.
            cache: PrefixLayers, if the batch has a prefix or _keeps_batch.
        """
        raise NotImplementedError

    def feed(self, reads: list[Read], workers: int, processes: Processes = ALONE) -> None:
        """Compute the sorted sequences, or this process's part of them.

        Sequences of lengths for which the model's arithmetic differs get separate batches (ways.Lengths).

        Args:
            workers: number of worker threads, each with batches of the budget.
        """
        for group, alike in self._lengths.grouped(reads, [len(read.fed) for read in reads]).items():
            if self._lengths.each:
                self._forget_length()
            # A shorter prefix would be computed with the arithmetic of short sequences.
            prefixes = self._plan(alike) if self._ways.shares and not group else Prefix(0, alike, [])
            local = self.local_rows(prefixes, processes) if processes.count > 1 else None
            cpu.run(functools.partial(self._feed_below, prefixes, None, local), workers)
            if self._storage is not None:
                self._run_blockwise()

    def _run(self, one: "_Pass") -> None:
        """Run a forward pass and use its outputs: now, or with all others, block by block."""
        with self._lock:
            self.computed += one.tokens
            if self._storage is not None:
                self._passes.append(one)
        if self._storage is None:
            one.use(one.run())

    def _run_blockwise(self) -> None:
        """Run the passes that wait; at a block, a prefix goes before the rows that attend to it."""
        passes, self._passes = self._passes, []
        caches = [one.cache for one in passes if one.cache is not None]

        def forget(index: int) -> None:
            for cache in caches:
                cache.layers[index].extended = None

        runs = [Pass(one.run, functools.partial(self._within, one.blocks)) for one in passes]
        states = sum(one.tokens for one in passes) * self._config.hidden_size * self._model.dtype.itemsize
        release_memory()  # to see what is free
        fits = 2 * states <= available_memory(self._model.device)  # so much again is for a batch and the next block
        activations = self._model.device if fits else CPU
        outputs = run_blockwise(self._model, self._storage, runs, forget, activations)
        for one, output in zip(passes, outputs, strict=True):
            one.use(output)

    def _plan(self, reads: list[Read]) -> Prefix:
        """The tree of prefixes that sorted sequences share; proof.py overrides it."""
        return plan(reads)

    def _forget_length(self) -> None:
        """Feed one token, or the model would use the rotary frequencies of the previous, longer sequence."""
        with torch.no_grad(), self._autocast():
            self._model(torch.zeros(1, 1, dtype=torch.int64, device=self._model.device), use_cache=False)

    def _feed_below(
        self, prefix: Prefix, past: list[PrefixLayer] | None, local: LocalRows | None, tasks: cpu.Tasks
    ) -> None:
        """Queue the rows and the longer prefixes that begin with a prefix.

        Args:
            past: the prefix's keys and values.
            local: the rows to compute; all if None.
        """
        rows = self._rows(prefix)
        if local is not None:
            rows = rows[local.get(id(prefix), slice(0))]
        for longer in reversed(prefix.below):
            if local is None or _any_local(longer, local):
                tasks.put(functools.partial(self._feed_prefix, longer, prefix.length, past, local))
        if rows:
            tasks.put(functools.partial(self._feed_rows, rows, prefix.length, past))

    def _feed_rows(self, rows: list[Row], before: int, past: list[PrefixLayer] | None, tasks: cpu.Tasks) -> None:
        """Compute a batch of the longest rows and queue the others, so that memory runs out early if at all."""
        count = self._batch_size(rows)
        if count < len(rows):
            tasks.put(functools.partial(self._feed_rows, rows[:-count], before, past))
        self._read(rows[-count:], before, past)

    def _feed_prefix(
        self, prefix: Prefix, before: int, past: list[PrefixLayer] | None, local: LocalRows | None, tasks: cpu.Tasks
    ) -> None:
        """Compute the keys and values of a prefix from token `before` on, then queue what begins with it."""
        cache = self._cache(past, before, "prefix")
        ids = torch.tensor([prefix.example[before : prefix.length]])
        run = functools.partial(self._outputs, ids, torch.zeros_like(ids, dtype=torch.bool), cache)
        self._run(_Pass(run, lambda outputs: None, cache, ids.numel()))
        self._feed_below(prefix, cache.layers, local, tasks)

    def local_rows(self, root: Prefix, processes: Processes) -> LocalRows:
        """By id of a prefix, the rows right below it that this process computes, in whole batches.

        A prefix is computed by every process that has batches below it, all else by one process.
        """
        batches: list[tuple[int, int, int]] = []  # prefix, first and last row, in the order of computing
        costs: list[int] = []

        def visit(prefix: Prefix, before: int) -> None:
            rows, cost = self._rows(prefix), prefix.length - before
            while rows:
                count = self._batch_size(rows)
                batches.append((id(prefix), len(rows) - count, len(rows)))
                costs.append(cost + count * len(rows[-1].tokens))
                rows, cost = rows[:-count], 0
            for longer in prefix.below:
                visit(longer, prefix.length)

        visit(root, 0)
        local: LocalRows = {}
        for index in processes.local_part(costs):
            prefix, start, stop = batches[index]
            local[prefix] = slice(start, local[prefix].stop if prefix in local else stop)
        return local

    def _rows(self, prefix: Prefix) -> list[Row]:
        """Rows of the sequences right below a prefix, from short to long."""
        if self._in_blocks and not prefix.length:
            rows = pack_in_blocks(prefix.reads, min(LONGEST_ROW, self._budget, int(self._max_reads)))
        else:
            rows = pack(prefix.reads, prefix.length, self._ways.packs, self._config.hidden_size)
        return sorted(rows, key=lambda row: len(row.tokens))

    @property
    def _max_reads(self) -> float:
        """Most positions at which a batch may read logits."""
        return self._budget * (READS_PER_TOKEN if self._output_weights is None else 1)

    def _batch_size(self, rows: list[Row]) -> int:
        """How many of the longest rows, which are last, make a batch."""
        width, read = len(rows[-1].tokens), 0
        for count, row in enumerate(reversed(rows), start=1):
            read += len({column for column, *_ in row.reads})
            ends_batch = 4 * len(row.tokens) < 3 * width and (count - 1) * width >= EVEN_TOKENS
            if not (self._ways.packs or self._ways.pads):
                ends_batch = len(row.tokens) < width or not self._ways.batches
            if count > 1 and (ends_batch or count * width > self._budget or read > self._max_reads):
                return count - 1
        return len(rows)

    def _read(self, rows: list[Row], before: int, past: list[PrefixLayer] | None) -> None:
        """Compute a batch; if memory runs out, halve the batch and, permanently, the budget."""
        try:
            self._read_at_once(rows, before, past)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(rows) == 1:
                raise
        release_memory()
        self._budget = max(1, self._budget // 2)
        logger.warning("memory ran out: from here on %d tokens are computed at once", self._budget)
        for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            self._read(part, before, past)

    def _read_at_once(self, rows: list[Row], before: int, past: list[PrefixLayer] | None) -> None:
        longest = max(len(row.tokens) for row in rows)
        in_blocks = self._in_blocks and not before
        # Only where positions are given: without them, padding could exceed the positions that the model has.
        if in_blocks:
            longest += -longest % EVEN_KEYS
        elif self._ways.packs:
            longest = fast_length(longest, before, self._config.hidden_size)
        shape = len(rows), longest
        ids, depths = np.zeros(shape, dtype=np.int64), np.full(shape, before)
        ends, wanted = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
        for index, row in enumerate(rows):
            filled = slice(len(row.tokens))
            ids[index, filled], depths[index, filled], ends[index, filled] = row.tokens, row.depths, row.ends
            wanted[index, [column for column, *_ in row.reads]] = True
        cache = self._cache(past, before, self._keeps_batch) if past or self._keeps_batch else None
        blocks = cut_into_blocks(ends, self._config.hidden_size) if in_blocks else None

        def run() -> Tensor:
            more = self._positions(ends, depths, before)
            return self._outputs(torch.from_numpy(ids), torch.from_numpy(wanted), cache, blocks, **more)

        self._run(_Pass(run, lambda outputs: self._collect(rows, wanted, outputs, cache), cache, ids.size, blocks))

    def _positions(self, ends: np.ndarray, depths: np.ndarray, before: int) -> dict[str, Any]:
        """Position and visible tokens of every token of packed rows, as arguments of the model."""
        if not self._ways.packs:
            return {}
        device = self._model.device
        positions = to_device(torch.from_numpy(depths), device)
        sliding = sliding_window(self._config)
        window = sliding if sliding is not None and depths.max() >= sliding else None
        return {
            "position_ids": positions,
            "attention_mask": self._masks(to_device(torch.from_numpy(ends), device), positions, before, window),
        }

    def _masks(self, ends: Tensor, depths: Tensor, before: int, window: int | None) -> Tensor | dict[str, Tensor]:
        """Attention masks: each token attends to the prefix and to its ancestors in its row's tree (packing.Row).

        Args:
            ends, depths: see packing.Row, (rows, tokens).
            before: tokens of the prefix.
            window: tokens that a token attends to in a sliding layer; None where no row is longer.
        Returns:
            (rows, 1, tokens, before + tokens); by layer type where there is a window.
        """
        column = torch.arange(ends.shape[1], device=ends.device)
        inside = column[:, None] < ends[:, None, :]
        inside &= column[None, :] <= column[:, None]
        # Padding attends to itself: attention to nothing is NaN.
        inside.diagonal(dim1=-2, dim2=-1).fill_(True)
        sees = torch.nn.functional.pad(inside, (before, 0), value=True) if before else inside
        if window is None:
            return self._as_attention(sees)
        earlier = torch.arange(before, device=ends.device).expand(len(ends), -1)
        distance = depths[:, :, None] - torch.cat([earlier, depths], dim=1)[:, None, :]
        return self._by_layer_type(sees, sees & (distance < window))

    def _by_layer_type(self, sees: Tensor, near: Tensor) -> Tensor | dict[str, Tensor]:
        """Masks for layers with full attention (`sees`) and with a sliding window (`near`)."""
        types = set(getattr(self._config, "layer_types", None) or ["sliding_attention"])
        sliding = self._as_attention(near)
        if types == {"sliding_attention"}:
            return sliding
        return {"full_attention": self._as_attention(sees), "sliding_attention": sliding}

    def _as_attention(self, sees: Tensor) -> Tensor:
        """Mask added to attention scores, (rows, 1, tokens, keys): 0 for visible keys, else the lowest number."""
        dtype = self._model.dtype
        hidden = torch.full(sees.shape, torch.finfo(dtype).min, dtype=dtype, device=sees.device)
        return hidden.masked_fill_(sees, 0)[:, None]

    def _cache(self, past: list[PrefixLayer] | None, before: int, keeps: Literal["batch", "prefix"] | None) -> Cache:
        layers = range(self._num_layers)
        return Cache(layers=[PrefixLayer(past[index] if past else None, before, keeps) for index in layers])

    def _outputs(
        self, ids: Tensor, wanted: Tensor, cache: Cache | None, blocks: list[Block] | None = None,
        **more: Tensor | dict[str, Tensor],
    ) -> Tensor:  # fmt: skip
        """Logits or hidden states at the wanted positions, as for _collect.

        Args:
            wanted: on the CPU, where the number of True values is known without waiting for a device.
        """
        device = self._model.device
        # For a mask, an accelerator would have to tell how many positions it has.
        is_whole = device.type != "cpu" and bool(wanted.all())
        ids, at = to_device(ids, device), slice(None)
        if not is_whole:
            at = to_device(wanted.flatten().nonzero()[:, 0], device)
        more |= {"past_key_values": cache, "use_cache": cache is not None}
        with torch.no_grad(), self._within(blocks):
            if self._output_weights is not None:
                return self._model.base_model(ids, **more).last_hidden_state.flatten(0, 1)[at]
            if self._ways.keeps and not is_whole:
                return self._model(ids, logits_to_keep=to_device(wanted, device), **more).logits
            return self._model(ids, **more).logits.flatten(0, 1)[at]

    @contextlib.contextmanager
    def _within(self, blocks: list[Block] | None) -> Iterator[None]:
        """What the model computes a batch in."""
        with self._autocast(), cpu.in_blocks(blocks):
            yield

    def _autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self._precision, self._model.device.type, self._model.dtype)


def num_layers(model: PreTrainedModel) -> int:
    """Number of blocks that may have a KV cache; some configs count an encoder's blocks instead."""
    try:
        blocks = len(decoder_blocks(model)[1])
    except ValueError:  # not in one list
        blocks = 0
    return max(blocks, model.config.get_text_config().num_hidden_layers)


def sliding_window(config: PretrainedConfig) -> int | None:
    """Number of tokens, itself included, that a token attends to in a sliding layer; None without such layers."""
    types = getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", True) is False or (types and "sliding_attention" not in types):
        return None
    return getattr(config, "sliding_window", None)
