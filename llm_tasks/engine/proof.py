"""Whether fast paths compute what a model computes: each is tried on the model at hand, with sequences of the run.

No list of architectures that can be packed is complete: models differ in how they count positions, read masks, fill
caches and treat their logits. So the shortest and the longest sequences of the run are computed by themselves, then by
the fast path, at the end of rows as long as any; the path is taken only where every log-likelihood is the same to
rounding. All of this is done in float32, whatever the weights are in: the rounding of bf16 would hide a wrong mask. Of
blocks that are alike the first two are computed, and the others pass their input on: a wrong position is wrong in every
block, and what a later token changes in an earlier one is seen by the next block.
"""

import contextlib
import logging
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

from harness.progress import Progress
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
SAME = 5e-4  # nats: float32 rounds log-likelihoods by 1e-5 to 1e-4
# What a model may raise on a path that it does not support.
REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError,
            ValueError)  # fmt: skip
# Functions that only look at a weight: it is widened when something is computed with it.
_VIEWS = {
    "__get__", "__getitem__", "size", "dim", "numel", "view", "reshape", "transpose", "t", "permute", "unsqueeze",
    "expand", "is_floating_point", "data_ptr", "stride", "is_contiguous", "chunk", "split", "narrow", "select",
    "detach", "unbind",
}  # fmt: skip
BETWEEN, MIDDLING = 3, 256  # sequences that are compared too, of up to so many tokens
READ_TOKENS = 16  # at the end of each sequence that is compared
TOGETHER = 2**30  # tokens of a batch that takes all that is tried
NOBODY = -1  # owns what fills a row and is not compared


class _Proven(NamedTuple):
    """What was proven on a model, and with sequences of which lengths."""

    ways: Ways
    shortest: int
    longest: int


# By model, and by what was asked.
_proven: weakref.WeakKeyDictionary[PreTrainedModel, dict[str, list[_Proven]]] = weakref.WeakKeyDictionary()


def scoring_ways(model: PreTrainedModel, reads: Sequence[Read], plain: bool = False) -> Ways:
    """The fast paths that compute these sequences as the model does; tried once for sequences of such lengths.

    Paths are tried on the model's present weights: call this before they are compressed, since a broken model may not
    tell one position from another.

    Args:
        reads: sorted sequences; of none nothing is tried.
        plain: take none.
    """
    if plain or not reads:
        return PLAIN
    return once(model, "scores", reads, lambda: _prove(model, [read.fed for read in reads]))


def once(model: PreTrainedModel, what: str, reads: Sequence[Read], prove: Callable[[], Ways]) -> Ways:
    """The result of `prove` for a model; proven again only where sequences are shorter or longer than those tried."""
    shortest, longest = (edge(len(read.fed) for read in reads) for edge in (min, max))
    known = _proven.setdefault(model, {}).setdefault(what, [])
    for proven in known:
        if proven.shortest <= shortest and longest <= proven.longest:
            return proven.ways
    known.append(_Proven(prove(), shortest, longest))
    return known[-1].ways


def tried(model: PreTrainedModel, attempt: Callable[[], Result]) -> Result:
    """Result of an attempt in float32, with two of the blocks that are alike if the model allows to skip the others."""
    with alike_blocks_skipped(model) as skipped, computed_in_float32(model):
        try:
            return attempt()
        except (_NotSkippable, *REFUSALS):
            skipped.restore()
            return attempt()


def is_right(
    model: PreTrainedModel, what: str, found: Callable[[], list[np.ndarray]], expected: list[np.ndarray]
) -> bool:
    """Whether a path finds the log-likelihoods expected, to rounding; why not is logged."""
    try:
        largest = max(np.abs(one - other).max() for one, other in zip(found(), expected, strict=True))
    except REFUSALS as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        reason = "" if largest <= SAME else f"log-likelihoods move by {largest:.2g} nats"
    if reason:
        logger.info("engine: %s: not used on %s: %s", what, type(model).__name__, reason)
    return not reason


def sample(sequences: Sequence[Tokens], lengths: Lengths) -> list[Tokens]:
    """The sequences that are compared: the shortest, the one most like it, the longest of every kind, some between."""
    ordered = sorted(sequences, key=len)
    shortest = ordered[0]
    others = [tokens for tokens in ordered if tokens != shortest]
    likest = max(others, key=lambda tokens: (common_length(tokens, shortest), -len(tokens)), default=shortest)
    kinds = list(lengths.grouped(ordered, map(len, ordered)).values())
    few = [tokens for tokens in ordered if len(tokens) <= MIDDLING] or [shortest]
    between = [few[len(few) * part // (BETWEEN + 1)] for part in range(1, BETWEEN + 1)]
    return list(dict.fromkeys([shortest, likest, kinds[0][-1], kinds[-1][-1], *between]))


def _prove(model: PreTrainedModel, sequences: list[Tokens]) -> Ways:
    if not is_of_transformers(model):
        logger.info("engine: one sequence at a time, plainly: the model's code is not that of transformers")
        return PLAIN
    limit = most_keys(model.config.get_text_config())
    if limit is not None and limit < LONGEST_ROW + max(map(len, sequences)):
        logger.info("engine: one sequence at a time, plainly: of more than %d keys the model chooses some", limit)
        return PLAIN
    compared = sample(sequences, lengths_of(model.config.get_text_config()))
    before = _state(model)
    with tensors_put_back(model):
        ways = tried(model, lambda: _prove_feeding(model, compared, sequences))
        lanes = cpu.takes_lanes(model) and _state(model) == before
    return ways._replace(compiles=cpu.proven_layers(model, max(compared, key=len)), lanes=lanes)


@contextlib.contextmanager
def tensors_put_back(model: PreTrainedModel) -> Iterator[None]:
    """Afterwards modules hold the buffers that they held: some make longer tables of positions, here in float32."""
    before = [
        (module, dict(module._buffers), {name: own for name, own in vars(module).items() if isinstance(own, Tensor)})
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
    """What modules hold besides their parameters; where a pass changes it, two passes at once would disturb each other.

    Returns:
        By module and name, a plain value, or of a tensor where its numbers are and how often they were written; and the
        state of torch's random numbers.
    """
    found: dict[tuple[str, str], object] = {("", "random numbers"): torch.get_rng_state().numpy().tobytes()}
    for path, module in model.named_modules():
        for name, value in {**vars(module), **module._buffers}.items():
            if isinstance(value, Tensor) and not value.is_meta:
                found[path, name] = value.data_ptr(), value._version
            elif isinstance(value, bool | int | float | str | None):
                found[path, name] = value
    return found


def _prove_feeding(model: PreTrainedModel, compared: list[Tokens], sequences: list[Tokens]) -> Ways:
    """Which of sharing, packing, padding and reading of single positions are right."""

    def scores(ways: Ways, some: list[Tokens] = compared) -> list[np.ndarray]:
        return _log_likelihoods(model, some, sequences, ways)

    def right(what: str, ways: Ways) -> bool:
        return is_right(model, what, lambda: scores(ways), expected)

    ways, short = PLAIN, compared[:1]
    kept = ways._replace(keeps=True)
    plainly = scores(ways, short)
    if takes_kept_logits(model) and is_right(model, "single logits", lambda: scores(kept, short), plainly):
        ways = kept
    expected = scores(ways)
    both = ways._replace(shares=True, packs=True)
    candidates = {"shared keys in packed rows": both, "packed rows": ways._replace(packs=True)}
    candidates = candidates if takes_positions(model) else {}
    candidates["shared keys"] = ways._replace(shares=True)
    ways = next((candidate for what, candidate in candidates.items() if right(what, candidate)), ways)
    if not ways.packs and right("padded batches", ways._replace(pads=True)):
        ways = ways._replace(pads=True)
    if not ways.batches and not right("the model itself", ways):
        logger.warning("%s computes something else every time: its scores are drawn at random", type(model).__name__)
    return ways._replace(projects=_projects_plainly(model, short[0]))


@torch.no_grad()
def _projects_plainly(model: PreTrainedModel, tokens: Tokens) -> bool:
    """Whether the model's logits are what its output layer gives, to the bit, of what its decoder gives.

    To the bit, since a cap on logits hardly moves small ones.
    """
    output, seen = model.get_output_embeddings(), []
    if type(output) is not nn.Linear or output.bias is not None or is_spread(model) or "forward" in vars(model):
        return False
    handle = output.register_forward_hook(lambda module, inputs, found: seen.append((inputs[0], found.clone())))
    ids = torch.tensor([list(tokens)], device=model.device)
    try:
        logits = model(ids, use_cache=False).logits
        hidden = model.base_model(ids, use_cache=False).last_hidden_state
    except REFUSALS:
        return False
    finally:
        handle.remove()
    return len(seen) == 1 and torch.equal(seen[0][1], logits) and torch.equal(seen[0][0], hidden)


def _log_likelihoods(
    model: PreTrainedModel, compared: list[Tokens], fillers: list[Tokens], ways: Ways
) -> list[np.ndarray]:
    """Of every sequence, log-likelihoods of its last tokens, each given those before it.

    Args:
        fillers: sequences that are packed before those compared.
    """
    starts = (max(len(tokens) // 2, len(tokens) - READ_TOKENS) + 1 for tokens in compared)
    asked = [Continuation((*tokens, tokens[-1]), start) for tokens, start in zip(compared, starts, strict=True)]
    with Progress(quiet=True) as progress, cpu.prepared(model, ways):
        recorder = _Recorder(model, TOGETHER if ways.batches else 1, "no", ways, progress)
        recorder.fillers = [filler for filler in fillers if len(filler) <= LONGEST_ROW]
        recorder.feed(distinct_reads(asked), lanes=1)
    found = [np.array([value for _, value in sorted(recorder.found[owner])]) for owner in range(len(asked))]
    if any(np.isnan(values).any() for values in found):
        raise FloatingPointError("the model's logits are NaN")
    return found


class _Recorder(Engine):
    """Keeps every log-likelihood, and shares and packs all that can be, however little it gains."""

    _projects = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.fillers: list[Tokens] = []
        self.found: dict[int, list[tuple[int, float]]] = {}

    def _plan(self, reads: list[Read]) -> Prefix:
        """Half of the longest sequence is a prefix."""
        longest = max(reads, key=lambda read: len(read.fed))
        others = [read for read in reads if read is not longest]
        length = min(longest.first, len(longest.fed) // 2)
        return Prefix(0, others, [Prefix(length, [longest], [])]) if length else Prefix(0, reads, [])

    def _rows(self, prefix: Prefix) -> list[Row]:
        """All sequences below a prefix at the end of one row that is as long as any row of a run."""
        if not self._ways.packs or not prefix.reads:
            return super()._rows(prefix)
        kind = self._lengths.kind(len(prefix.reads[0].fed))
        most = max(len(read.fed) for read in prefix.reads) if prefix.length else None
        beginning, parts, tokens = prefix.example[: prefix.length], [], 0
        for filler in self.fillers:
            filler = (*beginning, *filler)[:most]
            if self._lengths.kind(len(filler)) == kind and len(filler) > prefix.length and tokens < LONGEST_ROW:
                tokens += len(filler) - prefix.length
                parts += [[Read(filler, len(filler) - 1, [(NOBODY, Continuation((*filler, filler[-1]), len(filler)))])]]
        return [row_of([*parts, prefix.reads], prefix.length)]

    def _collect(self, rows: list[Row], wanted: np.ndarray, outputs: Tensor, cache: Cache | None) -> None:
        number = wanted.ravel().cumsum().reshape(wanted.shape) - 1
        logits = outputs if self._output_weights is None else nn.functional.linear(outputs, self._output_weights)
        scores = logits.detach().float().log_softmax(dim=-1)
        for index, row in enumerate(rows):
            for column, token, owner, _ in row.reads:
                known = self.found.setdefault(owner, [])
                known.append((row.depths[column], float(scores[int(number[index, column]), token])))


class _NotSkippable(Exception):
    """A block gives more than hidden states to the next one; no error."""


class _Skipped:
    """Blocks that pass their input on, until they are restored."""

    def __init__(self) -> None:
        self._own: list[tuple[nn.Module, Callable[..., Any] | None]] = []
        self._output: object = None
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def begin(self, first: nn.Module, skipped: Sequence[nn.Module]) -> None:
        self._handle = first.register_forward_hook(self._note)
        for block in skipped:
            self._own.append((block, vars(block).get("forward")))
            block.forward = self._pass_on

    def restore(self) -> None:
        if self._handle:
            self._handle.remove()
            self._handle = None
        while self._own:
            block, forward = self._own.pop()
            del block.forward
            if forward is not None:
                block.forward = forward

    def _note(self, block: nn.Module, inputs: object, output: object) -> None:
        self._output = output

    def _pass_on(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if isinstance(self._output, Tensor):
            return hidden
        if isinstance(self._output, tuple | list) and len(self._output) == 1:
            return (hidden,)
        raise _NotSkippable


@contextlib.contextmanager
def alike_blocks_skipped(model: PreTrainedModel) -> Iterator[_Skipped]:
    """Inside, of the decoder blocks that are alike only the first two compute something; see `_kind`."""
    skipped = _Skipped()
    try:
        blocks = list(decoder_blocks(model)[1])
    except ValueError:
        blocks = []
    kinds: Counter[tuple] = Counter()
    alike = []
    for index, block in enumerate(blocks):
        kind = _kind(model, index, block, len(blocks))
        if kinds[kind] == 2:
            alike.append(block)
        else:
            kinds[kind] += 1
    try:
        if alike:
            skipped.begin(blocks[0], alike)
        yield skipped
    finally:
        skipped.restore()


def _kind(model: PreTrainedModel, index: int, block: nn.Module, count: int) -> tuple:
    """What tells a block from others: its modules with their settings, and what the config says of its index."""
    config = model.config.get_text_config()
    said = [value[index] for value in vars(config).values() if isinstance(value, list | tuple) and len(value) == count]
    settings = []
    for path, module in block.named_modules():
        plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        own = sorted((name, str(value)) for name, value in plain.items() if name not in ("layer_idx", "layer_id"))
        settings.append((path, type(module).__name__, own))
    return tuple(map(str, (said, settings)))


class _InFloat32(TorchFunctionMode):
    """Every function of torch is given its floating-point tensors in float32, weights too, one function at a time."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func == torch.Tensor.dtype.__get__:  # a new object at every access
            own = func(*args)
            return torch.float32 if own in (torch.bfloat16, torch.float16) else own
        if name in _VIEWS:
            return func(*args, **kwargs)
        if func is nn.functional.embedding:
            return func(*args, **kwargs).float()
        args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        return func(*args, **kwargs)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def computed_in_float32(model: PreTrainedModel) -> contextlib.AbstractContextManager:
    """Inside, in this thread, a model whose weights are in another dtype computes in float32 all the same."""
    return contextlib.nullcontext() if model.dtype == torch.float32 else _InFloat32()
