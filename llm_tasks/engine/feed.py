"""The engine: sequences are fed to a language model in batches, as packing.py plans them.

What sequences share is computed once, little is padded, and only positions that are read are projected to the
vocabulary. `Ways` says which of these fast paths a model takes; proof.py has proven them on it. The result is that of
one sequence at a time, to the rounding of the matmuls. Several processes compute the batches that one would, each a
part of them, so that their result is the same to the bit.
"""

import contextlib
import functools
import threading

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from harness.device import autocast, is_out_of_memory, release_memory
from harness.progress import Progress
from llm_tasks.engine import cpu
from llm_tasks.engine.caches import KeysValues, PrefixLayer, joined
from llm_tasks.engine.packing import (
    EVEN_KEYS,
    LONGEST_ROW,
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
from pruning.layers import decoder_blocks

OwnRows = dict[int, slice]  # by id of a prefix, of its rows from short to long

EVEN_TOKENS = 512  # a batch of so many takes no row that is shorter by a quarter: more is padded than a batch costs
READS_PER_TOKEN = 0.25  # positions with logits of the whole vocabulary, per token of the budget: they fill the memory


def _any_own(prefix: Prefix, own: OwnRows) -> bool:
    """Whether this process computes any row below a prefix."""
    return id(prefix) in own or any(_any_own(longer, own) for longer in prefix.below)


class Engine:
    """Feeds sequences to a model in batches of a budget; what is done with the logits, a subclass says in `_collect`.

    Args:
        budget: tokens computed at once, at least 1; a longer sequence goes alone. Halved, for good, whenever memory
            runs out.
        precision: "bf16" multiplies a float32 model's matrices in bf16.
        ways: the fast paths to take.
        progress: told of the sequences that were fed.
    """

    _keeps_own = False  # keys and values of a batch, for _collect
    _projects = False  # whether _collect multiplies hidden states by the output layer's weights, where that is all

    def __init__(self, model: PreTrainedModel, budget: int, precision: str, ways: Ways, progress: Progress) -> None:
        self._model, self._budget, self._precision, self._ways = model, budget, precision, ways
        self._config = model.config.get_text_config()
        self._lengths = lengths_of(self._config)
        self._num_layers = num_layers(model)
        self._progress = progress
        self._output_weights = model.get_output_embeddings().weight if self._projects and ways.projects else None
        self._in_blocks = cpu.attends_in_blocks(ways)  # where nothing stands before a row
        self._lock = threading.Lock()  # of what lanes count, and of what _collect may not do in two of them
        self.computed = 0

    def _collect(self, rows: list[Row], wanted: np.ndarray, outputs: Tensor, cache: Cache | None) -> None:
        """Keep what is needed of a computed batch.

        Args:
            wanted: True where logits are read, (rows, tokens).
            outputs: logits at these, (positions read, vocabulary); hidden states where there are _output_weights.
            cache: of PrefixLayers, where there is one.
        """
        raise NotImplementedError

    def feed(self, reads: list[Read], lanes: int, processes: Processes = ALONE) -> None:
        """Compute the sorted sequences, once; of several processes each its part.

        Sequences of lengths that the model computes in different ways are kept apart (ways.Lengths).

        Args:
            lanes: each of which takes batches of the budget.
        """
        for kind, alike in self._lengths.grouped(reads, [len(read.fed) for read in reads]).items():
            if self._lengths.each:
                self._forget_length()
            # The keys of a shorter beginning would have been computed as those of a short sequence.
            prefixes = self._plan(alike) if self._ways.shares and not kind else Prefix(0, alike, [])
            own = self.own_rows(prefixes, processes) if processes.count > 1 else None
            cpu.run(functools.partial(self._feed_below, prefixes, None, own), lanes)

    def _plan(self, reads: list[Read]) -> Prefix:
        """The tree of prefixes that sorted sequences share, each computed once; a trial chooses another."""
        return plan(reads)

    def _forget_length(self) -> None:
        """Feed one token: frequencies of a longer sequence would stay for the next one."""
        with torch.no_grad(), self._autocast():
            self._model(torch.zeros(1, 1, dtype=torch.int64, device=self._model.device), use_cache=False)

    def _feed_below(self, prefix: Prefix, held: KeysValues | None, own: OwnRows | None, tasks: cpu.Tasks) -> None:
        """Queue what begins with a prefix: the rows right below it and longer prefixes.

        Args:
            held: the prefix's keys and values.
            own: the rows to compute; all if None.
        """
        rows = self._rows(prefix)
        if own is not None:
            rows = rows[own.get(id(prefix), slice(0))]
        for longer in reversed(prefix.below):
            if own is None or _any_own(longer, own):
                tasks.put(functools.partial(self._feed_prefix, longer, prefix.length, held, own))
        if rows:
            tasks.put(functools.partial(self._feed_rows, rows, prefix.length, held))
        with self._lock:
            self._progress.update(len(prefix.reads))

    def _feed_rows(self, rows: list[Row], before: int, held: KeysValues | None, tasks: cpu.Tasks) -> None:
        """Compute a batch of the longest rows and queue the others: if memory runs out, then at the beginning."""
        count = self._fitting(rows)
        if count < len(rows):
            tasks.put(functools.partial(self._feed_rows, rows[:-count], before, held))
        self._read(rows[-count:], before, held)

    def _feed_prefix(
        self, prefix: Prefix, before: int, held: KeysValues | None, own: OwnRows | None, tasks: cpu.Tasks
    ) -> None:
        """Compute the keys and values of a prefix from token `before` on, then queue what begins with it."""
        cache = self._cache(held, keep=True)
        ids = torch.tensor([prefix.example[before : prefix.length]])
        self._outputs(ids, torch.zeros_like(ids, dtype=torch.bool), cache)
        beginning = [joined(layer.held, layer.own) if layer.own else None for layer in cache.layers]
        self._feed_below(prefix, beginning, own, tasks)

    def own_rows(self, root: Prefix, processes: Processes) -> OwnRows:
        """By id of a prefix, the rows right below it that this process computes: whole batches.

        Nothing is computed by two processes but a prefix whose batches both of them have.
        """
        batches: list[tuple[int, int, int]] = []  # prefix, first and last row, in the order of computing
        costs: list[int] = []

        def visit(prefix: Prefix, before: int) -> None:
            rows, cost = self._rows(prefix), prefix.length - before
            while rows:
                count = self._fitting(rows)
                batches.append((id(prefix), len(rows) - count, len(rows)))
                costs.append(cost + count * len(rows[-1].tokens))
                rows, cost = rows[:-count], 0
            for longer in prefix.below:
                visit(longer, prefix.length)

        visit(root, 0)
        own: OwnRows = {}
        for index in processes.own_part(costs):
            prefix, start, stop = batches[index]
            own[prefix] = slice(start, own[prefix].stop if prefix in own else stop)
        return own

    def _rows(self, prefix: Prefix) -> list[Row]:
        """The sequences right below a prefix in rows, from short to long."""
        if self._in_blocks and not prefix.length:
            rows = pack_in_blocks(prefix.reads, min(LONGEST_ROW, self._budget, int(self._most_read)))
        else:
            rows = pack(prefix.reads, prefix.length, self._ways.packs, self._config.hidden_size)
        return sorted(rows, key=lambda row: len(row.tokens))

    @property
    def _most_read(self) -> float:
        """Positions that a batch may read."""
        return self._budget * (READS_PER_TOKEN if self._output_weights is None else 1)

    def _fitting(self, rows: list[Row]) -> int:
        """How many of the longest rows, at the end, go into one batch."""
        width, read = len(rows[-1].tokens), 0
        for count, row in enumerate(reversed(rows), start=1):
            read += len({column for column, *_ in row.reads})
            apart = 4 * len(row.tokens) < 3 * width and (count - 1) * width >= EVEN_TOKENS
            if not (self._ways.packs or self._ways.pads):
                apart = len(row.tokens) < width or not self._ways.batches
            if count > 1 and (apart or count * width > self._budget or read > self._most_read):
                return count - 1
        return len(rows)

    def _read(self, rows: list[Row], before: int, held: KeysValues | None) -> None:
        """Read the rows at once, or in halves where memory runs out; the budget shrinks with them, for good."""
        try:
            self._read_at_once(rows, before, held)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(rows) == 1:
                raise
        release_memory()
        self._budget = max(1, self._budget // 2)
        for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            self._read(part, before, held)

    def _read_at_once(self, rows: list[Row], before: int, held: KeysValues | None) -> None:
        longest = max(len(row.tokens) for row in rows)
        in_blocks = self._in_blocks and not before
        # A packed row's padding has a position of its own; elsewhere it could go beyond those that the model has.
        if in_blocks:
            longest += -longest % EVEN_KEYS
        elif self._ways.packs:
            longest = fast_length(longest, before, self._config.hidden_size)
        shape = len(rows), longest
        ids, depths = np.zeros(shape, dtype=np.int64), np.full(shape, before)
        ends, wanted = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
        for index, row in enumerate(rows):
            own = slice(len(row.tokens))
            ids[index, own], depths[index, own], ends[index, own] = row.tokens, row.depths, row.ends
            wanted[index, [column for column, *_ in row.reads]] = True
        more = {}
        if self._ways.packs:
            positions = torch.from_numpy(depths).to(self._model.device)
            masks = self._masks(torch.from_numpy(ends).to(self._model.device), positions, before)
            more = {"position_ids": positions, "attention_mask": masks}
        cache = self._cache(held, self._keeps_own) if held or self._keeps_own else None
        blocks = cut_into_blocks(ends, self._config.hidden_size) if in_blocks else None
        outputs = self._outputs(torch.from_numpy(ids), torch.from_numpy(wanted), cache, blocks, **more)
        self._collect(rows, wanted, outputs, cache)

    def _masks(self, ends: Tensor, depths: Tensor, before: int) -> Tensor | dict[str, Tensor]:
        """Which tokens each token sees: those before the row, and those that its branch hangs from.

        Args:
            ends, depths: as Row has them, (rows, tokens).
            before: tokens that stand before every row.
        Returns:
            (rows, 1, tokens, before + tokens); by kind of layer where a model's layers do not all see equally far.
        """
        column = torch.arange(ends.shape[1], device=ends.device)
        inside = column[:, None] < ends[:, None, :]
        inside &= column[None, :] <= column[:, None]
        # What pads a row sees itself too: attention to nothing is NaN.
        inside.diagonal(dim1=-2, dim2=-1).fill_(True)
        sees = torch.nn.functional.pad(inside, (before, 0), value=True) if before else inside
        window = sliding_window(self._config)
        if window is None or int(depths.max()) < window:
            return self._as_attention(sees)
        earlier = torch.arange(before, device=ends.device).expand(len(ends), -1)
        distance = depths[:, :, None] - torch.cat([earlier, depths], dim=1)[:, None, :]
        return self._by_kind(sees, sees & (distance < window))

    def _by_kind(self, sees: Tensor, near: Tensor) -> Tensor | dict[str, Tensor]:
        """What layers that see all are given, and those that see what is `near`."""
        kinds = set(getattr(self._config, "layer_types", None) or ["sliding_attention"])
        sliding = self._as_attention(near)
        if kinds == {"sliding_attention"}:
            return sliding
        return {"full_attention": self._as_attention(sees), "sliding_attention": sliding}

    def _as_attention(self, sees: Tensor) -> Tensor:
        """What is added to attention scores, (rows, 1, tokens, keys): 0 where a key is seen, else the lowest number."""
        dtype = self._model.dtype
        hidden = torch.full(sees.shape, torch.finfo(dtype).min, dtype=dtype, device=sees.device)
        return hidden.masked_fill_(sees, 0)[:, None]

    def _cache(self, held: KeysValues | None, keep: bool) -> Cache:
        layers = range(self._num_layers)
        return Cache(layers=[PrefixLayer(held[index] if held else None, keep) for index in layers])

    def _outputs(
        self, ids: Tensor, wanted: Tensor, cache: Cache | None, blocks: list[cpu.Block] | None = None,
        **more: Tensor | dict[str, Tensor],
    ) -> Tensor:  # fmt: skip
        """Logits at the wanted positions, (number of them, vocabulary), or hidden states, as _collect takes them."""
        device = self._model.device
        with self._lock:
            self.computed += ids.numel()
        ids, wanted = ids.to(device), wanted.to(device)
        more |= {"past_key_values": cache, "use_cache": cache is not None}
        with torch.no_grad(), self._autocast(), cpu.in_blocks(blocks):
            if self._output_weights is not None:
                return self._model.base_model(ids, **more).last_hidden_state[wanted]
            if self._ways.keeps:
                return self._model(ids, logits_to_keep=wanted, **more).logits
            return self._model(ids, **more).logits[wanted]

    def _autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self._precision, self._model.device.type, self._model.dtype)


def num_layers(model: PreTrainedModel) -> int:
    """How many blocks may keep keys and values; some configs count those of an encoder."""
    try:
        blocks = len(decoder_blocks(model)[1])
    except ValueError:  # no one list of them
        blocks = 0
    return max(blocks, model.config.get_text_config().num_hidden_layers)


def sliding_window(config: PretrainedConfig) -> int | None:
    """How many tokens, itself included, a token of a sliding layer attends to; None without such layers."""
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", True) is False or (kinds and "sliding_attention" not in kinds):
        return None
    return getattr(config, "sliding_window", None)
