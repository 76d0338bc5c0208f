"""Proves fast paths on the loaded model: each must give the log-likelihoods of feeding sequences one at a time.

No list of architectures that can be packed is complete: models differ in how they count positions, read masks, fill
caches and change their logits. So the shortest and longest sequences of the run are computed one at a time, then by the
fast path, in rows as long as the longest: behind other tokens, and with other branches between the beginning and the
end of the longest sequence. The path is taken only if all log-likelihoods are equal to rounding. This is done in
float32, whatever the dtype of the weights: the rounding of bf16 would hide a wrong mask. Of identical blocks only the
first two are computed, which is enough: a wrong position is wrong in every block, and if an earlier token depends on a
later one, the second block shows it.
"""

import contextlib
import itertools
import logging
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from harness.errors import describe_error
from llm_tasks.engine import cpu
from llm_tasks.engine.feed import Engine
from llm_tasks.engine.packing import (
    LONGEST_ROW,
    Continuation,
    Prefix,
    Read,
    Row,
    Tokens,
    common_length,
    distinct_reads,
    row_of,
)
from llm_tasks.engine.ways import (
    PLAIN,
    Lengths,
    Ways,
    is_of_transformers,
    is_spread,
    lengths_of,
    most_keys,
    takes_kept_logits,
    takes_positions,
)
from pruning.layers import decoder_blocks

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
TOLERANCE = 5e-4  # largest difference in nats; rounding in float32 changes log-likelihoods by 1e-5 to 1e-4
# Errors that a model may raise on a fast path that it does not support.
REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError,
            ValueError)  # fmt: skip
# Functions that compute nothing with a weight: it is converted to float32 only for those that do.
_VIEWS = {
    "__get__", "__getitem__", "size", "dim", "numel", "view", "reshape", "transpose", "t", "permute", "unsqueeze",
    "expand", "is_floating_point", "data_ptr", "stride", "is_contiguous", "chunk", "split", "narrow", "select",
    "detach", "unbind",
}  # fmt: skip
MORE_SEQUENCES, MORE_LENGTH = 3, 256  # number of further sequences that are compared, and their longest length
READ_TOKENS = 16  # tokens at the end of each sequence whose log-likelihoods are compared
UNLIMITED = 2**30  # budget that puts all sequences into one batch


class _Proven(NamedTuple):
    """Fast paths that were proven on a model, and the lengths of the sequences of that proof."""

    ways: Ways
    shortest: int
    longest: int


# By model, and by "scores" or "answers".
_proven: weakref.WeakKeyDictionary[PreTrainedModel, dict[str, list[_Proven]]] = weakref.WeakKeyDictionary()


def scoring_ways(model: PreTrainedModel, reads: Sequence[Read], plain: bool = False) -> Ways:
    """The fast paths that compute these sequences as the model does; proven once for sequences of these lengths.

    Call this before the weights are compressed: a compressed model may be so broken that positions make no difference,
    and then a wrong path passes.

    Args:
        reads: sorted sequences; without any, the result is PLAIN.
        plain: return PLAIN.
    """
    if plain or not reads:
        return PLAIN
    return proven_once(model, "scores", reads, lambda: _prove(model, [read.fed for read in reads]))


def proven_once(model: PreTrainedModel, results: str, reads: Sequence[Read], prove: Callable[[], Ways]) -> Ways:
    """The result of `prove` for a model, cached; proven again if sequences are shorter or longer than in the proof.

    Args:
        results: "scores" or "answers".
    """
    shortest, longest = (edge(len(read.fed) for read in reads) for edge in (min, max))
    known = _proven.setdefault(model, {}).setdefault(results, [])
    for proven in known:
        if proven.shortest <= shortest and longest <= proven.longest:
            return proven.ways
    known.append(_Proven(prove(), shortest, longest))
    return known[-1].ways


def run_reduced(model: PreTrainedModel, attempt: Callable[[], Result]) -> Result:
    """Run `attempt` in float32, with only two of each group of identical blocks if the others can be skipped."""
    with alike_blocks_skipped(model) as skipped, computed_in_float32(model):
        try:
            return attempt()
        except (_NotSkippable, *REFUSALS):
            skipped.restore()
            return attempt()


def is_right(
    model: PreTrainedModel, path: str, compute: Callable[[], list[np.ndarray]], expected: list[np.ndarray]
) -> bool:
    """Whether `compute` returns the expected log-likelihoods, to rounding; if not, the reason is logged."""
    try:
        # numpy's maximum of all: Python's forgets a NaN that is not the first.
        largest = np.max([np.abs(one - other).max() for one, other in zip(compute(), expected, strict=True)])
    except REFUSALS as error:
        reason = describe_error(error)
    else:
        reason = "" if largest <= TOLERANCE else f"log-likelihoods differ by {largest:.2g} nats"
    if reason:
        logger.info("engine: %s: not used on %s: %s", path, type(model).__name__, reason)
    return not reason


def sample(sequences: Sequence[Tokens], lengths: Lengths) -> list[Tokens]:
    """Sequences to compare: the shortest, one that shares most with it, the longest (also up to the boundary), more."""
    ordered = sorted(sequences, key=len)
    shortest = ordered[0]
    others = [tokens for tokens in ordered if tokens != shortest]
    most_similar = max(others, key=lambda tokens: (common_length(tokens, shortest), -len(tokens)), default=shortest)
    groups = list(lengths.grouped(ordered, map(len, ordered)).values())
    few = [tokens for tokens in ordered if len(tokens) <= MORE_LENGTH] or [shortest]
    between = [few[len(few) * part // (MORE_SEQUENCES + 1)] for part in range(1, MORE_SEQUENCES + 1)]
    return list(dict.fromkeys([shortest, most_similar, groups[0][-1], groups[-1][-1], *between]))


def _prove(model: PreTrainedModel, sequences: list[Tokens]) -> Ways:
    if not is_of_transformers(model):
        logger.info("engine: one sequence at a time: the model's code is not that of transformers")
        return PLAIN
    limit = most_keys(model.config.get_text_config())
    if limit is not None and limit < LONGEST_ROW + max(map(len, sequences)):
        logger.info("engine: one sequence at a time: of more than %d keys the model selects some", limit)
        return PLAIN
    compared = sample(sequences, lengths_of(model.config.get_text_config()))
    before = _state(model)
    with tensors_restored(model):
        ways = run_reduced(model, lambda: _prove_feeding(model, compared))
        workers = cpu.allows_workers(model) and _state(model) == before
    return ways._replace(compiles=cpu.proven_layers(model, max(compared, key=len)), workers=workers)


@contextlib.contextmanager
def tensors_restored(model: PreTrainedModel) -> Iterator[None]:
    """Restores the modules' buffers afterwards: some models replace position tables, which would be float32 here."""
    before = [
        (module, dict(module._buffers), {name: item for name, item in vars(module).items() if isinstance(item, Tensor)})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, buffers, others in before:
            module._buffers.clear()
            module._buffers.update(buffers)
            vars(module).update(others)


def _state(model: PreTrainedModel) -> dict[tuple[str, str], object]:
    """State of the modules besides their parameters; if a forward pass changes it, passes must not run in parallel.

    Returns:
        By module and name, a plain value, or a tensor's address and version counter; and the state of torch's random
        numbers.
    """
    state: dict[tuple[str, str], object] = {("", "random numbers"): torch.get_rng_state().numpy().tobytes()}
    for path, module in model.named_modules():
        for name, value in {**vars(module), **module._buffers}.items():
            if isinstance(value, Tensor) and not value.is_meta:
                state[path, name] = value.data_ptr(), value._version
            elif isinstance(value, bool | int | float | str | None):
                state[path, name] = value
    return state


def _prove_feeding(model: PreTrainedModel, compared: list[Tokens]) -> Ways:
    """The fast paths for scores, except compiled layers and workers, that are right on the compared sequences."""

    def scores(ways: Ways, some: list[Tokens] = compared) -> list[np.ndarray]:
        return _log_likelihoods(model, some, ways)

    def right(path: str, ways: Ways) -> bool:
        return is_right(model, path, lambda: scores(ways), expected)

    ways, short = PLAIN, compared[:1]
    kept = ways._replace(keeps=True)
    all_logits = scores(ways, short)
    if takes_kept_logits(model) and is_right(model, "single logits", lambda: scores(kept, short), all_logits):
        ways = kept
    expected = scores(ways)
    both = ways._replace(shares=True, packs=True)
    candidates = {"shared keys in packed rows": both, "packed rows": ways._replace(packs=True)}
    candidates = candidates if takes_positions(model) else {}
    candidates["shared keys"] = ways._replace(shares=True)
    ways = next((candidate for path, candidate in candidates.items() if right(path, candidate)), ways)
    if not ways.packs and right("padded batches", ways._replace(pads=True)):
        ways = ways._replace(pads=True)
    if not ways.batches and not right("the model itself", ways):
        logger.warning("%s gives other scores at every computation: they depend on chance", type(model).__name__)
    return ways._replace(projects=_only_projects(model, short[0]))


@torch.no_grad()
def _only_projects(model: PreTrainedModel, tokens: Tokens) -> bool:
    """Whether the model's logits are, to the bit, its output layer's result for its decoder's hidden states.

    To the bit, since a cap hardly changes small logits.
    """
    output, seen = model.get_output_embeddings(), []
    if type(output) is not nn.Linear or output.bias is not None or is_spread(model) or "forward" in vars(model):
        return False
    handle = output.register_forward_hook(lambda module, inputs, logits: seen.append((inputs[0], logits.clone())))
    ids = torch.tensor([list(tokens)], device=model.device)
    try:
        logits = model(ids, use_cache=False).logits
        hidden = model.base_model(ids, use_cache=False).last_hidden_state
    except REFUSALS:
        return False
    finally:
        handle.remove()
    return len(seen) == 1 and torch.equal(seen[0][1], logits) and torch.equal(seen[0][0], hidden)


def _log_likelihoods(model: PreTrainedModel, compared: list[Tokens], ways: Ways) -> list[np.ndarray]:
    """For every sequence, log-likelihoods of its last tokens, each given those before it."""
    starts = (max(len(tokens) // 2, len(tokens) - READ_TOKENS) + 1 for tokens in compared)
    continuations = [Continuation((*tokens, tokens[-1]), start) for tokens, start in zip(compared, starts, strict=True)]
    with cpu.prepared(model, ways):
        recorder = _Recorder(model, UNLIMITED if ways.batches else 1, "no", ways)
        recorder.feed(distinct_reads(continuations), workers=1)
    scores = [[value for _, value in sorted(recorder.recorded[index])] for index in range(len(continuations))]
    if np.isnan(list(itertools.chain(*scores))).any():
        raise FloatingPointError("the model's logits are NaN")
    return list(map(np.array, scores))


class _Recorder(Engine):
    """Records every log-likelihood; shares a prefix and packs rows even if that gains little.

    Attributes:
        recorded: by index of a continuation, (index of the token, log-likelihood).
    """

    _projects = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.recorded: dict[int, list[tuple[int, float]]] = {}

    def _plan(self, reads: list[Read]) -> Prefix:
        """A prefix of half of the longest sequence."""
        longest = max(reads, key=lambda read: len(read.fed))
        others = [read for read in reads if read is not longest]
        length = min(longest.first, len(longest.fed) // 2)
        return Prefix(0, others, [Prefix(length, [longest], [])]) if length else Prefix(0, reads, [])

    def _rows(self, prefix: Prefix) -> list[Row]:
        """All sequences below a prefix in one row; the longest as the last of many that share all but its end."""
        if not self._ways.packs or not prefix.reads:
            return super()._rows(prefix)
        longest = max(prefix.reads, key=lambda read: len(read.fed))
        others = [read for read in prefix.reads if read is not longest]
        row = row_of([[longest], others], prefix.length)
        return [_with_branches(row, longest.first - prefix.length, len(longest.fed) - longest.first)]

    def _collect(self, rows: list[Row], wanted: np.ndarray, outputs: Tensor, cache: Cache | None) -> None:
        number = wanted.ravel().cumsum().reshape(wanted.shape) - 1
        logits = outputs if self._output_weights is None else nn.functional.linear(outputs, self._output_weights)
        scores = logits.detach().float().log_softmax(dim=-1)
        for index, row in enumerate(rows):
            for column, token, owner, _ in row.reads:
                score = float(scores[int(number[index, column]), token])
                self.recorded.setdefault(owner, []).append((row.depths[column], score))


def _with_branches(row: Row, at: int, length: int) -> Row:
    """The row with LONGEST_ROW more tokens from index `at` of its first tree on, as branches of `length` tokens.

    What follows there is far from its ancestors in the row, though not in its sequence, as in the rows of a run: a
    model whose windows are counted in the row (GPT-Neo) no longer attends to them.
    """
    added = range(LONGEST_ROW)

    def inserted(items: list[int], new: list[int]) -> list[int]:
        return [*items[:at], *new, *items[at:]]

    return Row(
        inserted(row.tokens, random.Random(0).choices(row.tokens, k=LONGEST_ROW)),
        inserted(row.depths, [row.depths[at] + index % length for index in added]),
        inserted(
            [end + LONGEST_ROW for end in row.ends],
            [at + min(index - index % length + length, LONGEST_ROW) for index in added],
        ),
        [(column + LONGEST_ROW, *read) for column, *read in row.reads],
    )


class _NotSkippable(Exception):
    """A block returns more than hidden states, so that it cannot be skipped; not an error."""


class _Skipped:
    """Blocks that return their input, until restore is called."""

    def __init__(self) -> None:
        self._forwards: list[tuple[nn.Module, Callable[..., Any] | None]] = []
        self._output: object = None
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def begin(self, first: nn.Module, skipped: Sequence[nn.Module]) -> None:
        self._handle = first.register_forward_hook(self._keep_output)
        for block in skipped:
            self._forwards.append((block, vars(block).get("forward")))
            block.forward = self._return_input

    def restore(self) -> None:
        if self._handle:
            self._handle.remove()
            self._handle = None
        while self._forwards:
            block, forward = self._forwards.pop()
            del block.forward
            if forward is not None:
                block.forward = forward

    def _keep_output(self, block: nn.Module, inputs: object, output: object) -> None:
        self._output = output

    def _return_input(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if isinstance(self._output, Tensor):
            return hidden
        if isinstance(self._output, tuple | list) and len(self._output) == 1:
            return (hidden,)
        raise _NotSkippable


@contextlib.contextmanager
def alike_blocks_skipped(model: PreTrainedModel) -> Iterator[_Skipped]:
    """Inside, only the first two of each group of identical decoder blocks (_signature) are computed."""
    skipped = _Skipped()
    try:
        blocks = list(decoder_blocks(model)[1])
    except ValueError:
        blocks = []
    counts: Counter[tuple] = Counter()
    alike = []
    for index, block in enumerate(blocks):
        signature = _signature(model, index, block, len(blocks))
        if counts[signature] == 2:
            alike.append(block)
        else:
            counts[signature] += 1
    try:
        if alike:
            skipped.begin(blocks[0], alike)
        yield skipped
    finally:
        skipped.restore()


def _signature(model: PreTrainedModel, index: int, block: nn.Module, count: int) -> tuple:
    """Equal for identical blocks: the types and settings of its modules, and the config's entries for its index."""
    config = model.config.get_text_config()
    entries = [
        value[index] for value in vars(config).values() if isinstance(value, list | tuple) and len(value) == count
    ]
    settings = []
    for path, module in block.named_modules():
        plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        values = sorted((name, str(value)) for name, value in plain.items() if name not in ("layer_idx", "layer_id"))
        settings.append((path, type(module).__name__, values))
    return tuple(map(str, (entries, settings)))


class _InFloat32(TorchFunctionMode):
    """Converts the bf16 and fp16 arguments of every torch function to float32, weights too, one call at a time."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func == torch.Tensor.dtype.__get__:  # a new object at every access
            dtype = func(*args)
            return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
        if name in _VIEWS:
            return func(*args, **kwargs)
        if func is nn.functional.embedding:
            return func(*args, **kwargs).float()
        args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        return func(*args, **kwargs)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def computed_in_float32(model: PreTrainedModel) -> contextlib.AbstractContextManager:
    """Inside, in this thread, the model computes in float32, whatever the dtype of its weights."""
    return contextlib.nullcontext() if model.dtype == torch.float32 else _InFloat32()
