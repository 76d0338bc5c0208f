"""Log-likelihoods of continuations. Shared prefixes are fed once; logits are computed only where they are read.

If a model's logits are just the last hidden states times the output layer's weights, they are computed for a part of
the vocabulary at a time and never stored as a whole: allocating memory for them takes as long as the matmul.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from harness.device import is_out_of_memory, release_memory, to_device
from harness.progress import Progress
from llm_tasks.engine import cpu
from llm_tasks.engine.feed import Engine
from llm_tasks.engine.packing import Continuation, Read, Row, distinct_reads, distinct_tokens
from llm_tasks.engine.processes import ALONE, Processes
from llm_tasks.engine.proof import scoring_ways
from llm_tasks.engine.ways import Ways
from pruning.blocks import BlockStorage

logger = logging.getLogger(__name__)

AT_ONCE, AT_ONCE_CPU = 2**25, 2**21  # logits computed at once, a part of the vocabulary: 67 and 4 MB in bf16
EVEN_ROWS = 16  # rows of a matmul are padded to a multiple: with other numbers, a CPU takes up to a fifth longer
FEWEST_COLUMNS = 1024  # of the output layer at once: with fewer, the matmul is slow
NORMALIZED_AT_ONCE, NORMALIZED_AT_ONCE_CPU = 2**23, 2**19  # logits converted to float32 at once; a CPU's cache has 2 MB
FLOAT32_COST = 4  # time of a matmul in float32, as a multiple of that in bf16 or fp16
FLOAT32_ROWS = 2048  # positions read in float32 at once, since each time the output layer's weights are converted
FLOAT32_SHARE = 0.05  # most that float32 logits of multi-token continuations may cost, as a share of the layers' work


class Work(NamedTuple):
    """Cost of a measurement: tokens computed, padding included, and the fewest that had to be computed."""

    computed: int
    distinct: int


class Scores(NamedTuple):
    """Scores of the continuations, in their order.

    Fields:
        log_likelihood: sum over the tokens from `start` on, in nats, (continuations,) float64.
        first_token: the most likely token at `start`, (continuations,) int64.
        work: cost of computing them.
        greedy: whether every token from `start` on is the most likely one, (continuations,); None unless asked for.
    """

    log_likelihood: np.ndarray
    first_token: np.ndarray
    work: Work
    greedy: np.ndarray | None = None


def log_likelihoods(
    model: PreTrainedModel, continuations: Sequence[Continuation], tokens_per_batch: int, precision: str = "no",
    ways: Ways | None = None, processes: Processes = ALONE, storage: BlockStorage | None = None, greedy: bool = False,
) -> Scores:  # fmt: skip
    """Log-likelihood of every continuation given the tokens before it.

    If the layers compute in bf16 or fp16, logits of continuations with a single scored token, such as letters, are
    computed in float32, since bf16 logits differ by steps of 1/16 and letters would tie. So are all other logits if
    that costs little.

    Args:
        continuations: in any order; equal ones and shared prefixes are computed once.
        tokens_per_batch: tokens computed at once, by all worker threads together, at least 1; a longer sequence is a
            batch alone. Halved, permanently, whenever memory runs out.
        precision: "bf16" computes the matmuls of a float32 model in bf16; logits are always normalised in float32.
        ways: the fast paths to take; None takes those that are proven on these continuations.
        processes: processes that divide the work; all get the same continuations, and return all scores.
        storage: where the blocks are, of a model whose blocks are not on its device; a block is brought there once.
        greedy: also tell whether each continuation is what the model would choose, which reads more maxima.
    Raises:
        ValueError: a continuation without a token to score, or without one before it.
        FloatingPointError: the model's logits are NaN.
        RuntimeError: the processes divided the work differently.
    """
    for index, continuation in enumerate(continuations):
        if not 1 <= continuation.start < len(continuation.tokens):
            raise ValueError(f"continuation {index}: start {continuation.start} of {len(continuation.tokens)} tokens")
    reads = distinct_reads(continuations)
    distinct = distinct_tokens(reads)
    ways = scoring_ways(model, reads) if ways is None else ways
    # Every process cuts all batches as the main one does, which may have another number of threads, and takes its part.
    ways, (workers, budget) = processes.share((ways, cpu.divide(ways, tokens_per_batch, distinct)))
    in_float32 = _in_float32(model, reads, distinct, precision)
    changes_output = not ways.projects and all(in_float32)
    with cpu.prepared(model, ways), output_in_float32(model, changes_output), processes.together():
        scorer = _scored(model, reads, workers, budget, precision, ways, processes, in_float32, storage, greedy)
    check_done_once(processes.merge(scorer.times_scored))
    log_likelihood, first_token = processes.merge(scorer.log_likelihood), processes.merge(scorer.first_token)
    computed = int(processes.merge(np.array([scorer.computed]))[0])
    chosen = processes.merge(scorer.times_missed) == 0 if greedy else None
    return Scores(log_likelihood, first_token, Work(computed, distinct), chosen)


def _scored(
    model: PreTrainedModel, reads: list[Read], workers: int, budget: int, precision: str, ways: Ways,
    processes: Processes, in_float32: list[bool], storage: BlockStorage | None, greedy: bool,
) -> "_Scorer":  # fmt: skip
    """A scorer that has scored this process's part. Block by block, all begins anew where memory runs out."""
    while True:
        with Progress(total=-(-len(in_float32) // processes.count), name="scoring") as progress:
            scorer = _Scorer(model, budget, precision, ways, progress, in_float32, storage, greedy)
            try:
                scorer.feed(reads, workers, processes)
                scorer.finish()
                return scorer
            except RuntimeError as error:
                if storage is None or not is_out_of_memory(error) or budget == 1:
                    raise
        budget = max(1, budget // 2)
        del scorer
        release_memory()
        logger.warning("memory ran out: from here on %d tokens are computed at once", budget)


def check_done_once(times: np.ndarray) -> None:
    """Raises RuntimeError unless every item was computed once, that is, all processes cut the same batches."""
    if not (times == 1).all():
        raise RuntimeError(
            "the processes of a job divided its items differently: all need CPUs, or GPUs, of the same type"
        )


def _in_float32(model: PreTrainedModel, reads: Sequence[Read], tokens: int, precision: str) -> list[bool]:
    """For each continuation, whether its logits are computed in float32 although the layers use another dtype.

    Args:
        tokens: number of tokens that the layers compute.
    """
    targets = {owner: continuation for read in reads for owner, continuation in read.targets}
    scored = [len(targets[owner].tokens) - targets[owner].start for owner in range(len(targets))]
    if model.dtype == torch.float32 and precision == "no":
        return [False] * len(scored)
    embeddings = {id(layer.weight): layer.weight for layer in _embeddings(model)}
    layers = model.num_parameters() - sum(weight.numel() for weight in embeddings.values())
    positions = sum(max(len(target.tokens) - target.start for _, target in read.targets) for read in reads)
    cost = FLOAT32_COST * positions * max((weight.numel() for weight in embeddings.values()), default=0)
    if cost <= FLOAT32_SHARE * tokens * layers:
        return [True] * len(scored)
    return [count == 1 for count in scored]


def _embeddings(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The input embedding and the output layer."""
    return [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]


class _Scorer(Engine):
    """Adds up the log-likelihood of each continuation, (continuations,), and keeps the most likely first token.

    Args:
        progress: is told the number of continuations that are computed.
        in_float32: for each continuation, whether its logits are computed in float32.
        greedy: count of each how many of its tokens are not the most likely ones.
    """

    _projects = True

    def __init__(
        self, model: PreTrainedModel, budget: int, precision: str, ways: Ways, progress: Progress,
        in_float32: list[bool], storage: BlockStorage | None, greedy: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, budget, precision, ways, storage)
        self._in_float32, self._greedy, self._progress = in_float32, greedy, progress
        self._deferred: list[tuple] = []
        self._scored: list[_Scored] = []
        self.log_likelihood = np.zeros(len(in_float32))
        self.first_token = np.zeros(len(in_float32), dtype=np.int64)
        self.times_scored = np.zeros(len(in_float32), dtype=np.int64)
        self.times_missed = np.zeros(len(in_float32), dtype=np.int64)

    def _collect(self, rows: list[Row], wanted: np.ndarray, outputs: Tensor, cache: Cache | None) -> None:
        """Add the log-likelihoods of the batch's scored tokens."""
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
            some = outputs if len(read) == len(outputs) else outputs[to_device(torch.from_numpy(read), outputs.device)]
            if not in_float32:
                with self._autocast():
                    self._add(some, at, tokens, owners, is_first)
            elif self._output_weights is None:  # logits in float32, by output_in_float32
                self._add(some, at, tokens, owners, is_first)
            else:
                self._defer(some.float(), at, tokens, owners, is_first)
        self._progress.update(sum(is_first for *_, is_first, _ in scored))

    def _defer(self, hidden: Tensor, *targets: np.ndarray) -> None:
        """Keep hidden states until there are FLOAT32_ROWS of them."""
        with self._lock:
            self._deferred.append((hidden, *targets))
            enough = sum(len(hidden) for hidden, *_ in self._deferred) >= FLOAT32_ROWS
        if enough:
            self.read_deferred()

    def read_deferred(self) -> None:
        """Add the log-likelihoods of the hidden states that were kept."""
        with self._lock:
            deferred, self._deferred = self._deferred, []
        if not deferred:
            return
        hidden, at, tokens, owners, is_first = zip(*deferred, strict=True)
        first = np.cumsum([0, *map(len, hidden[:-1])])
        rows = np.concatenate([indices + start for indices, start in zip(at, first, strict=True)])
        self._add(torch.cat(hidden), rows, *map(np.concatenate, (tokens, owners, is_first)))

    def _add(
        self, outputs: Tensor, at: np.ndarray, tokens: np.ndarray, owners: np.ndarray, is_first: np.ndarray
    ) -> None:  # fmt: skip
        """Compute log-likelihoods of tokens; they stay on the device until `finish`.

        Args:
            at, tokens: row of `outputs` from which each token is predicted, and the token.
            owners: index of its continuation.
            is_first: whether it is the continuation's first scored token.
        """
        firsts, which = np.unique(at if self._greedy else at[is_first], return_inverse=True)
        targets = Targets(*(to_device(torch.from_numpy(numbers), outputs.device) for numbers in (at, tokens, firsts)))
        values, top = read_logits(outputs, self._output_weights, targets)
        with self._lock:
            self._scored.append(_Scored(values, top, tokens, owners, is_first, which))

    def finish(self) -> None:
        """Add up what was computed.

        Raises:
            FloatingPointError: the model's logits are NaN.
        """
        self.read_deferred()
        if not self._scored:
            return
        values, top, tokens, owners, is_first, which = zip(*self._scored, strict=True)
        counts, owners, is_first = list(map(len, top)), np.concatenate(owners), np.concatenate(is_first)
        values, top = torch.cat(values).cpu().double().numpy(), torch.cat(top).cpu().numpy()
        if np.isnan(values).any():
            raise FloatingPointError("the model's logits are NaN")
        np.add.at(self.log_likelihood, owners, values)
        first_owners = owners[is_first]
        starts = np.cumsum([0, *counts[:-1]])
        self.times_scored[first_owners] += 1
        most_likely = top[np.concatenate([row + start for row, start in zip(which, starts, strict=True)])]
        self.first_token[first_owners] = most_likely[is_first] if self._greedy else most_likely
        if self._greedy:
            np.add.at(self.times_missed, owners, most_likely != np.concatenate(tokens))


class _Scored(NamedTuple):
    """Results of a batch.

    Fields:
        values: log-likelihoods of target tokens, on the device.
        top: most likely tokens of rows, on the device.
        tokens: the token of each value.
        owners: continuation of each value.
        is_first: whether it is of the continuation's first scored token.
        which: of each value whose row's most likely token is read, its index in `top`: of first tokens, or of all.
    """

    values: Tensor
    top: Tensor
    tokens: np.ndarray
    owners: np.ndarray
    is_first: np.ndarray
    which: np.ndarray


class Targets(NamedTuple):
    """What to read from rows of logits.

    Fields:
        at, tokens: rows, and the token whose log-likelihood is read from each, both (targets,) int64.
        firsts: rows whose most likely token is read: of first scored tokens, or of all.
    """

    at: Tensor
    tokens: Tensor
    firsts: Tensor


@contextlib.contextmanager
def output_in_float32(model: PreTrainedModel, enabled: bool) -> Iterator[None]:
    """Inside, if `enabled`, the model's output layer computes logits in float32, whatever the dtype of its weights.

    For models that change their logits after the output layer, such as by a cap.
    """
    layer = model.get_output_embeddings()
    if not enabled or type(layer) is not nn.Linear or "forward" in vars(layer):
        yield
        return

    def forward(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            rows = hidden.float().reshape(-1, hidden.shape[-1])
            parts = [logits for _, logits in _vocabulary_parts(rows, layer.weight)]
            logits = torch.cat(parts, dim=-1)[: len(rows)].view(*hidden.shape[:-1], len(layer.weight))
            return logits if layer.bias is None else logits + layer.bias

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


@torch.no_grad()
def read_logits(outputs: Tensor, weights: Tensor | None, targets: Targets) -> tuple[Tensor, Tensor]:
    """Log-likelihoods of the target tokens, (targets,) float32, and the most likely token of each row of `firsts`.

    Log-likelihoods are NaN where a row has NaN.

    Args:
        outputs: logits, (rows, vocabulary); or with `weights`, hidden states, (rows, width), in whose dtype logits are
            computed.
        weights: weights of the output layer, (vocabulary, width).
        targets: on the device of `outputs`.
    """
    target_logits = torch.zeros(len(targets.at), device=outputs.device)
    largest = torch.full((len(targets.firsts),), -torch.inf, device=outputs.device)
    top = torch.zeros_like(targets.firsts)
    sums = []
    for start, logits in _vocabulary_parts(outputs, weights):
        sums.append(log_sums(logits))
        inside = (targets.tokens >= start) & (targets.tokens < start + logits.shape[1])
        columns = (targets.tokens - start).clamp(0, logits.shape[1] - 1)
        target_logits = torch.where(inside, logits[targets.at, columns].float(), target_logits)
        maxima = [logits[some].max(dim=-1) for some in targets.firsts.split(_rows_at_once(logits))]
        value, token = (torch.cat(parts) for parts in zip(*maxima, strict=True))
        top = torch.where(value > largest, token + start, top)
        largest = largest.maximum(value)
        del logits  # before the next are computed
    return target_logits - torch.stack(sums).logsumexp(dim=0)[targets.at], top


def _vocabulary_parts(outputs: Tensor, weights: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """Logits of consecutive tokens of the vocabulary, (rows, tokens), each with the first of these tokens."""
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
        # callers switch autocast off for float32: it would compute the matmul in its dtype
        yield start, nn.functional.linear(outputs, part.to(outputs.dtype) if outputs.dtype == torch.float32 else part)


def log_sums(logits: Tensor) -> Tensor:
    """logsumexp of every row in float32; some rows at a time, in a buffer that fits into a CPU's cache."""
    if cpu.in_bf16_on_cpu(logits):
        return cpu.compiled_log_sums(logits)
    at_once = _rows_at_once(logits)
    buffer = torch.empty(min(at_once, len(logits)), logits.shape[1], device=logits.device)
    sums = []
    for part in logits.split(at_once):
        values = buffer[: len(part)].copy_(part)
        largest = values.amax(dim=-1, keepdim=True)
        sums.append(values.sub_(largest).exp_().sum(dim=-1).log_().add_(largest[:, 0]))
    return torch.cat(sums)


def _rows_at_once(logits: Tensor) -> int:
    most = NORMALIZED_AT_ONCE_CPU if logits.device.type == "cpu" else NORMALIZED_AT_ONCE
    return max(1, most // logits.shape[1])
