"""Log-likelihoods of continuations. What they share is fed once; logits are computed only where they are read.

Where a model only multiplies its last hidden states by the output layer, logits come a part of the vocabulary at a
time and are never stored whole: fresh memory for them takes as long as the matmul.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from harness.progress import Progress
from llm_tasks.engine import cpu
from llm_tasks.engine.feed import Engine
from llm_tasks.engine.packing import Continuation, Read, Row, distinct_reads, distinct_tokens
from llm_tasks.engine.processes import ALONE, Processes
from llm_tasks.engine.proof import scoring_ways
from llm_tasks.engine.ways import Ways

AT_ONCE, AT_ONCE_CPU = 2**25, 2**21  # logits computed at once, where they need not be stored: 67 and 4 MB in bf16
EVEN_ROWS = 16  # of a matrix: of some other numbers of them, a CPU's matmul takes up to a fifth longer
FEWEST_COLUMNS = 1024  # of the output layer at once: fewer make no fast matmul
NORMALIZED_AT_ONCE, NORMALIZED_AT_ONCE_CPU = 2**23, 2**19  # turned to float32 at once; a CPU's cache holds 2 MB
FLOAT32_COST = 4  # times that of bf16 or fp16: what a matmul in float32 takes
FLOAT32_ROWS = 2048  # positions read in float32 at once: the output layer's weights are widened for each time
FLOAT32_SHARE = 0.05  # of the work of the layers: what logits in float32 may take, where more than one token is scored


class Work(NamedTuple):
    """What a measurement cost: tokens computed, padding included, and the fewest that could have been computed."""

    computed: int
    distinct: int


class Scores(NamedTuple):
    """Of each continuation, in order.

    Fields:
        log_likelihood: summed over the tokens from `start` on, in nats, (continuations,) float64.
        first_token: what the model holds most likely at `start`, (continuations,) int64.
        work: what it cost.
    """

    log_likelihood: np.ndarray
    first_token: np.ndarray
    work: Work


def log_likelihoods(
    model: PreTrainedModel, continuations: Sequence[Continuation], tokens_per_batch: int, precision: str = "no",
    ways: Ways | None = None, processes: Processes = ALONE,
) -> Scores:  # fmt: skip
    """Log-likelihood of every continuation given the tokens before it.

    Where layers compute in bf16 or fp16, positions from which a single token is scored, such as letters, are projected
    to the vocabulary in float32 all the same, and all others where that costs next to nothing: in bf16 logits differ by
    steps of 1/16, and letters would tie.

    Args:
        continuations: in any order; equal ones and equal beginnings are computed once.
        tokens_per_batch: tokens computed at once, by all lanes, at least 1; a longer sequence goes alone. Halved, for
            good, whenever memory runs out.
        precision: "bf16" multiplies a float32 model's matrices in bf16; logits are normalised in float32 always.
        ways: the fast paths to take; None takes those that are proven on these continuations.
        processes: those that divide the work among them; all are given the same continuations, and return all scores.
    Raises:
        ValueError: a continuation without a token to score, or without one before it.
        FloatingPointError: the model's logits are NaN.
        RuntimeError: several processes divided the work in different ways.
    """
    for index, continuation in enumerate(continuations):
        if not 1 <= continuation.start < len(continuation.tokens):
            raise ValueError(f"continuation {index}: start {continuation.start} of {len(continuation.tokens)} tokens")
    reads = distinct_reads(continuations)
    distinct = distinct_tokens(reads)
    ways = scoring_ways(model, reads) if ways is None else ways
    # Every process cuts the batches, of which it computes its own, as the main one does: it may have other threads.
    ways, (lanes, budget) = processes.share((ways, cpu.divide(ways, tokens_per_batch, distinct)))
    in_float32 = _in_float32(model, reads, distinct, precision)
    with Progress(total=len(reads), name="scoring") as progress, cpu.prepared(model, ways):
        scorer = _Scorer(model, budget, precision, ways, progress, in_float32, len(continuations))
        with processes.together(), output_in_float32(model, not ways.projects and all(in_float32)):
            scorer.feed(reads, lanes, processes)
            scorer.read_deferred()
    check_done_once(processes.merge(scorer.times_scored))
    log_likelihood, first_token = processes.merge(scorer.log_likelihood), processes.merge(scorer.first_token)
    computed = int(processes.merge(np.array([scorer.computed]))[0])
    return Scores(log_likelihood, first_token, Work(computed, distinct))


def check_done_once(times: np.ndarray) -> None:
    """Raises RuntimeError unless every count is 1: the processes would have cut different batches."""
    if not (times == 1).all():
        raise RuntimeError("the processes of a job can divide its items only on CPUs, or on GPUs, of one kind")


def _in_float32(model: PreTrainedModel, reads: Sequence[Read], tokens: int, precision: str) -> list[bool]:
    """Whether the logits of each continuation are computed in float32, whatever the layers compute in.

    Args:
        tokens: distinct ones, which the layers compute.
    """
    targets = {owner: continuation for read in reads for owner, continuation in read.targets}
    scored = [len(targets[owner].tokens) - targets[owner].start for owner in range(len(targets))]
    if model.dtype == torch.float32 and precision == "no":
        return [False] * len(scored)
    embeddings = {id(layer.weight): layer.weight for layer in _embeddings(model)}
    layers = model.num_parameters() - sum(weight.numel() for weight in embeddings.values())
    positions = sum(max(len(own.tokens) - own.start for _, own in read.targets) for read in reads)
    cost = FLOAT32_COST * positions * max((weight.numel() for weight in embeddings.values()), default=0)
    if cost <= FLOAT32_SHARE * tokens * layers:
        return [True] * len(scored)
    return [count == 1 for count in scored]


def _embeddings(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The layers from tokens and to logits."""
    return [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]


class _Scorer(Engine):
    """Sums the log-likelihood of each continuation, (continuations,), and notes the most likely first token.

    Args:
        in_float32: of each continuation, whether its logits are computed in float32.
    """

    _projects = True

    def __init__(
        self, model: PreTrainedModel, budget: int, precision: str, ways: Ways, progress: Progress,
        in_float32: list[bool], continuations: int,
    ) -> None:  # fmt: skip
        super().__init__(model, budget, precision, ways, progress)
        self._in_float32 = in_float32
        self._deferred: list[tuple] = []
        self.log_likelihood = np.zeros(continuations)
        self.first_token = np.zeros(continuations, dtype=np.int64)
        self.times_scored = np.zeros(continuations, dtype=np.int64)

    def _collect(self, rows: list[Row], wanted: np.ndarray, outputs: Tensor, cache: Cache | None) -> None:
        """Add the log-likelihoods that continuations need of the positions read."""
        number = wanted.ravel().cumsum().reshape(wanted.shape) - 1
        scored = [
            (number[index, column], token, owner, is_first, self._in_float32[owner])
            for index, row in enumerate(rows)
            for column, token, owner, is_first in row.reads
        ]
        columns = list(map(np.array, zip(*scored, strict=True)))
        for in_float32 in np.unique(columns[-1]):
            at, tokens, owners, is_first = (column[columns[-1] == in_float32] for column in columns[:-1])
            read, at = np.unique(at, return_inverse=True)
            some = outputs if len(read) == len(outputs) else outputs[torch.from_numpy(read).to(outputs.device)]
            if not in_float32:
                with self._autocast():
                    self._add(some, at, tokens, owners, is_first)
            elif self._output_weights is None:  # output_in_float32 made them
                self._add(some, at, tokens, owners, is_first)
            else:
                self._defer(some.float(), at, tokens, owners, is_first)

    def _defer(self, hidden: Tensor, *asked: np.ndarray) -> None:
        """Keep hidden states until there are FLOAT32_ROWS of them."""
        with self._lock:
            self._deferred.append((hidden, *asked))
            enough = sum(len(hidden) for hidden, *_ in self._deferred) >= FLOAT32_ROWS
        if enough:
            self.read_deferred()

    def read_deferred(self) -> None:
        """Add the log-likelihoods of the positions that were kept."""
        with self._lock:
            deferred, self._deferred = self._deferred, []
        if not deferred:
            return
        hidden, at, tokens, owners, is_first = zip(*deferred, strict=True)
        first = np.cumsum([0, *map(len, hidden[:-1])])
        rows = np.concatenate([own + start for own, start in zip(at, first, strict=True)])
        self._add(torch.cat(hidden), rows, *map(np.concatenate, (tokens, owners, is_first)))

    def _add(
        self, outputs: Tensor, at: np.ndarray, tokens: np.ndarray, owners: np.ndarray, is_first: np.ndarray
    ) -> None:  # fmt: skip
        """Add log-likelihoods of tokens, given the row of `outputs`, the continuation, and whether it is the first."""
        firsts, which = np.unique(at[is_first], return_inverse=True)
        asked = Asked(*(torch.from_numpy(numbers).to(outputs.device) for numbers in (at, tokens, firsts)))
        found, top = read_logits(outputs, self._output_weights, asked)
        if found.isnan().any():
            raise FloatingPointError("the model's logits are NaN")
        np.add.at(self.log_likelihood, owners, found.double().cpu().numpy())
        self.times_scored[owners[is_first]] += 1
        self.first_token[owners[is_first]] = top.cpu().numpy()[which]


class Asked(NamedTuple):
    """What is asked of rows of logits.

    Fields:
        at, tokens: rows and the token each is asked for, both (asked,), int64.
        firsts: rows of which the most likely token is asked.
    """

    at: Tensor
    tokens: Tensor
    firsts: Tensor


@contextlib.contextmanager
def output_in_float32(model: PreTrainedModel, holds: bool) -> Iterator[None]:
    """Inside, the model's output layer computes logits in float32, whatever its weights are in, if it holds.

    For models that do more to their logits than to multiply, such as to cap them.
    """
    layer = model.get_output_embeddings()
    if not holds or type(layer) is not nn.Linear or "forward" in vars(layer):
        yield
        return

    def forward(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            rows = hidden.float().reshape(-1, hidden.shape[-1])
            parts = [logits for _, logits in _vocabulary_parts(rows, layer.weight)]
            found = torch.cat(parts, dim=-1)[: len(rows)].view(*hidden.shape[:-1], len(layer.weight))
            return found if layer.bias is None else found + layer.bias

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


@torch.no_grad()
def read_logits(outputs: Tensor, weights: Tensor | None, asked: Asked) -> tuple[Tensor, Tensor]:
    """Log-likelihoods of the tokens asked for, float32, and the most likely tokens; NaN where a row has NaN.

    Args:
        outputs: logits, (rows, vocabulary), or with weights hidden states, (rows, width), in whose dtype logits are
            computed.
        weights: of the output layer, (vocabulary, width).
        asked: on the outputs' device.
    """
    found = torch.empty(len(asked.at), device=outputs.device)
    largest = torch.full((len(asked.firsts),), -torch.inf, device=outputs.device)
    top = torch.zeros_like(asked.firsts)
    sums = []
    for start, logits in _vocabulary_parts(outputs, weights):
        sums.append(log_sums(logits))
        own = (asked.tokens >= start) & (asked.tokens < start + logits.shape[1])
        found[own] = logits[asked.at[own], asked.tokens[own] - start].float()
        maxima = [logits[some].max(dim=-1) for some in asked.firsts.split(_rows_at_once(logits))]
        value, token = (torch.cat(parts) for parts in zip(*maxima, strict=True))
        top = torch.where(value > largest, token + start, top)
        largest = largest.maximum(value)
        del logits  # before the next are made
    return found - torch.stack(sums).logsumexp(dim=0)[asked.at], top


def _vocabulary_parts(outputs: Tensor, weights: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """Logits of neighbouring tokens, (rows, tokens), and the first of these tokens."""
    if weights is None:
        yield 0, outputs
        return
    if not len(outputs):  # nothing is read
        yield 0, outputs.new_empty(0, len(weights))
        return
    most = AT_ONCE
    if outputs.device.type == "cpu":
        most, outputs = AT_ONCE_CPU, nn.functional.pad(outputs, (0, 0, 0, -len(outputs) % EVEN_ROWS))
    columns = max(FEWEST_COLUMNS, most // len(outputs))
    for start in range(0, len(weights), columns):
        part = weights[start : start + columns]
        # autocast multiplies float32 states by float32 weights in its own dtype: it is off where float32 is wanted
        yield start, nn.functional.linear(outputs, part.to(outputs.dtype) if outputs.dtype == torch.float32 else part)


def log_sums(logits: Tensor) -> Tensor:
    """Float32 logsumexp of every row; some rows at a time, in one buffer that a CPU's cache holds."""
    if cpu.in_bf16_on_cpu(logits):
        return cpu.compiled_log_sums(logits)
    at_once = _rows_at_once(logits)
    space = torch.empty(min(at_once, len(logits)), logits.shape[1], device=logits.device)
    sums = []
    for part in logits.split(at_once):
        values = space[: len(part)].copy_(part)
        largest = values.amax(dim=-1, keepdim=True)
        sums.append(values.sub_(largest).exp_().sum(dim=-1).log_().add_(largest[:, 0]))
    return torch.cat(sums)


def _rows_at_once(logits: Tensor) -> int:
    most = NORMALIZED_AT_ONCE_CPU if logits.device.type == "cpu" else NORMALIZED_AT_ONCE
    return max(1, most // logits.shape[1])
