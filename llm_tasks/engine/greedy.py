"""Greedy answers of language models: shared prefixes of prompts are fed once, then answers grow token by token.

Prompts of different lengths are answered in one batch. Their keys and values are aligned at the end in a buffer, and
the columns before shorter ones are masked.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel
from transformers.cache_utils import Cache

from harness.device import is_out_of_memory, release_memory, to_device
from harness.progress import Progress
from llm_tasks.engine import cpu, proof
from llm_tasks.engine.caches import GrowingLayer
from llm_tasks.engine.feed import Engine, sliding_window
from llm_tasks.engine.log_likelihood import Work, check_done_once
from llm_tasks.engine.packing import (
    Continuation,
    Read,
    Row,
    Tokens,
    common_length,
    distinct_reads,
    distinct_tokens,
    families,
)
from llm_tasks.engine.processes import ALONE, Processes
from llm_tasks.engine.proof import scoring_ways
from llm_tasks.engine.ways import ANSWER_WAYS, PLAIN, Ways, lengths_of

logger = logging.getLogger(__name__)

ANSWERS_AT_ONCE = 4  # times the budget: every step reads all weights, however few rows it computes
TRIED_TOKENS = 2  # generated after each prompt when fast paths are proven
NO_TOKEN = 0  # placeholder for the token to predict after a prompt


class AnswerEnd(NamedTuple):
    """Where a generated answer ends.

    Fields:
        max_new_tokens: longest answer in tokens, at least 1.
        is_finished: called with the answer's tokens after each new one; True ends the answer.
        min_new_tokens: none of `ends` is chosen before an answer has this many tokens.
        ends: end-of-text tokens.
        processors: change the logits after a prompt and its answer so far, both as token ids, before a token is chosen.
    """

    max_new_tokens: int
    is_finished: Callable[[list[int]], bool]
    min_new_tokens: int = 0
    ends: tuple[int, ...] = ()
    processors: Sequence[LogitsProcessor] = ()


def greedy_answers(
    model: PreTrainedModel, prompts: Sequence[Tokens], end: AnswerEnd, tokens_per_batch: int, precision: str = "no",
    ways: Ways | None = None, processes: Processes = ALONE,
) -> tuple[list[list[int]], Work]:  # fmt: skip
    """Greedy decoding after each prompt until its answer ends.

    Args:
        prompts: in any order, none empty; equal prompts and shared prefixes are computed once.
        end: where answers end.
        tokens_per_batch, precision, ways, processes: see log_likelihoods; the KV cache holds ANSWERS_AT_ONCE times
            tokens_per_batch.
    Returns:
        Tokens of each answer, with the last one that ended it, and the number of tokens computed.
    """
    distinct = sorted(set(prompts))
    ways = answering_ways(model, distinct) if ways is None else ways
    # Every process cuts all batches as the main one does, which may have another number of threads, and takes its part.
    ways, tokens_per_batch = processes.share((ways, tokens_per_batch))
    batches = list(_batches(model, distinct, ways, end.max_new_tokens, ANSWERS_AT_ONCE * tokens_per_batch))
    costs = [sum(len(prompt) + end.max_new_tokens for prompt in batch) for batch, _ in batches]
    local = batches if processes.count == 1 else [batches[index] for index in processes.local_part(costs)]
    with processes.together():
        answers, computed = _answer_all(model, local, end, tokens_per_batch, precision)
    if processes.count > 1:
        answers = _merge_answers(distinct, answers, end.max_new_tokens, processes)
        computed = int(processes.merge(np.array([computed]))[0])
    fewest = distinct_tokens(_as_reads(distinct)) + sum(len(answer) - 1 for answer in answers.values())
    return [answers[prompt] for prompt in prompts], Work(computed, fewest)


def _as_reads(prompts: Iterable[Tokens]) -> list[Read]:
    return distinct_reads([Continuation((*prompt, NO_TOKEN), len(prompt)) for prompt in prompts])


def _batches(
    model: PreTrainedModel, distinct: list[Tokens], ways: Ways, max_new_tokens: int, budget: int
) -> Iterator[tuple[list[Tokens], Ways]]:
    """Batches of the sorted prompts, from short to long, each with its fast paths.

    If the model's arithmetic changes at a length that an answer reaches, all tokens are fed again at every step.
    """
    lengths = lengths_of(model.config.get_text_config())

    def changes(prompt: Tokens) -> bool:
        groups = {lengths.group(len(prompt)), lengths.group(len(prompt) + max_new_tokens - 1)}
        return len(groups) > 1 or (lengths.each and groups != {0})

    fixed = [prompt for prompt in distinct if not changes(prompt)]
    for alike in lengths.grouped(fixed, map(len, fixed)).values():
        for batch in _cut(alike, max_new_tokens, budget, ways.answers == "together"):
            yield from ((part, ways) for part in ([batch] if ways.batches else [[prompt] for prompt in batch]))
    for prompt in filter(changes, distinct):
        yield [prompt], ways._replace(answers="whole")


def _cut(distinct: list[Tokens], max_new_tokens: int, budget: int, together: bool) -> Iterator[list[Tokens]]:
    """Batches of sorted prompts, from short to long.

    Prompts that share more than the prefix of all, such as questions about one text, stay together (packing.families).
    Without `together`, all prompts of a batch have the same length.
    """
    if together:
        common = common_length(distinct[0], distinct[-1]) if distinct else 0
        related = [distinct[members.start : members.stop] for _, members in families(_as_reads(distinct), common)]
        related.sort(key=lambda prompts: max(map(len, prompts)))
        ordered = [list(itertools.chain.from_iterable(related))]
    else:
        ordered = [list(same) for _, same in itertools.groupby(sorted(distinct, key=len), key=len)]
    for prompts in ordered:
        batch: list[Tokens] = []
        longest = 0
        for prompt in prompts:
            longest = max(longest, len(prompt))
            if batch and (len(batch) + 1) * (longest + max_new_tokens) > budget:
                yield batch
                batch, longest = [], len(prompt)
            batch.append(prompt)
        if batch:
            yield batch


def _merge_answers(
    distinct: list[Tokens], local: dict[Tokens, list[int]], max_new_tokens: int, processes: Processes
) -> dict[Tokens, list[int]]:
    """The answers of all processes, exchanged as token ids + 1 with 0 as padding.

    Raises:
        RuntimeError: the processes divided the prompts differently.
    """
    check_done_once(processes.merge(np.array([prompt in local for prompt in distinct], dtype=np.int64)))
    table = np.zeros((len(distinct), max_new_tokens), dtype=np.int64)
    for row, prompt in zip(table, distinct, strict=True):
        answer = local.get(prompt, [])
        row[: len(answer)] = np.add(answer, 1)
    merged = processes.merge(table)
    return {prompt: (row[row > 0] - 1).tolist() for prompt, row in zip(distinct, merged, strict=True)}


def _answer_all(
    model: PreTrainedModel, batches: list[tuple[list[Tokens], Ways]], end: AnswerEnd, tokens_per_batch: int,
    precision: str,
) -> tuple[dict[Tokens, list[int]], int]:  # fmt: skip
    """Answers to the prompts of all batches, longest first, and the number of tokens computed."""
    answers: dict[Tokens, list[int]] = {}
    computed = 0
    paths = batches[0][1] if batches else PLAIN  # the same in all batches but for `answers`
    total = sum(len(batch) for batch, _ in batches)
    with Progress(total=total, name="answers") as progress, cpu.prepared(model, paths):
        while batches:
            *batches, (some, ways) = batches
            writer = _writer(some, end.max_new_tokens, model, tokens_per_batch, precision, ways)
            try:
                written = _write(writer, some, end)
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(some) == 1:
                    raise
                written = None
            if written is None:  # outside of the except block, whose error refers to the writer
                del writer
                release_memory()
                batches = [(half, way) for batch, way in (*batches, (some, ways)) for half in _halves(batch)]
                tokens_per_batch = max(1, tokens_per_batch // 2)
                logger.warning("memory ran out: from here on half as many answers are written at once")
                continue
            answers |= dict(zip(some, written, strict=True))
            computed += writer.computed
            progress.update(len(some))
    return answers, computed


def _halves(batch: list[Tokens]) -> list[list[Tokens]]:
    middle = (len(batch) + 1) // 2
    return [half for half in (batch[:middle], batch[middle:]) if half]


def _write(writer: "_Writer", prompts: list[Tokens], end: AnswerEnd) -> list[list[int]]:
    """The answers to a batch of prompts; finished ones are not computed further.

    At each step the CPU waits for the device once, to read the tokens that were chosen.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    logits = writer.start()
    ends = to_device(torch.tensor(end.ends, dtype=torch.int64), logits.device)
    for written in itertools.count():  # tokens of every answer that is not finished
        broken = logits.isnan().any()
        for processor in end.processors:
            logits = _processed(logits, [(*prompts[index], *answers[index]) for index in active], processor)
        if written < end.min_new_tokens:
            logits.index_fill_(1, ends, -torch.inf)
        chosen = logits.argmax(dim=-1)
        *tokens, is_broken = torch.cat([chosen, broken[None].long()]).tolist()
        if is_broken:
            raise FloatingPointError("the model's logits are NaN")
        kept = []
        for row, (index, token) in enumerate(zip(active, tokens, strict=True)):
            answers[index].append(token)
            if len(answers[index]) < end.max_new_tokens and not end.is_finished(answers[index]):
                kept.append(row)
        if not kept:
            return answers
        rows = None if len(kept) == len(active) else to_device(torch.tensor(kept), chosen.device)
        active = [active[row] for row in kept]
        logits = writer.step(chosen, rows)


def _processed(logits: Tensor, sequences: Sequence[Tokens], processor: LogitsProcessor) -> Tensor:
    """The logits after each sequence, (sequences, vocabulary), as a processor of transformers changes them."""
    rows = [
        processor(torch.tensor([sequence], device=logits.device), logits[row : row + 1].float())
        for row, sequence in enumerate(sequences)
    ]
    return torch.cat(rows)


class _Writer(Engine):
    """Feeds a batch of prompts, then their answers token by token."""

    def __init__(
        self, prompts: list[Tokens], max_new_tokens: int, model: PreTrainedModel, budget: int, precision: str,
        ways: Ways,
    ) -> None:  # fmt: skip
        super().__init__(model, budget, precision, ways)
        self._prompts = prompts
        self._longest = max(map(len, prompts))
        capacity = self._longest + max_new_tokens
        self._layers = [GrowingLayer(capacity) for _ in range(self._num_layers)]

    def start(self) -> Tensor:
        """Logits after each prompt, (prompts, vocabulary)."""
        raise NotImplementedError

    def step(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """Logits after one more token of the answers that are not finished.

        Args:
            tokens: the token chosen for each answer of the previous step, (previous answers,).
            rows: indices of the answers to continue, ascending, (answers,); None for all.
        Returns:
            (answers, vocabulary).
        """
        if rows is None:
            return self._feed_newest(tokens[:, None])
        self._keep(rows)
        return self._feed_newest(tokens[rows, None])

    def _keep(self, rows: Tensor) -> None:
        """Forget all answers but these."""
        for layer in self._layers:
            layer.select(rows)

    def _feed_newest(self, new: Tensor) -> Tensor:
        """Logits after the newest token of each answer, (answers, 1)."""
        raise NotImplementedError

    def _after_last(self, ids: Tensor, cache: Cache | None, **more: Tensor | dict[str, Tensor]) -> Tensor:
        # A mask, not logits_to_keep=1: that gives a strided slice, for which a CPU copies the output layer's weights
        # once per row.
        last = torch.zeros(ids.shape, dtype=torch.bool)
        last[:, -1] = True
        self.computed += ids.numel()
        return self._outputs(ids, last, cache, **more)


class _PackedWriter(_Writer):
    """Prompts of any length, fed in packed rows."""

    _keeps_batch = "batch"

    def start(self) -> Tensor:
        device = self._model.device
        # Of the prompts whose answers are not finished.
        self._prompt_lengths = to_device(torch.tensor(list(map(len, self._prompts))), device)
        self._first: Tensor | None = None
        reads = _as_reads(self._prompts)
        workers, self._budget = cpu.divide(self._ways, self._budget, distinct_tokens(reads))
        self.feed(reads, workers)
        return self._first

    def _collect(self, rows: list[Row], wanted: np.ndarray, outputs: Tensor, cache: Cache | None) -> None:
        """Copy each prompt's keys and values to the end of its row of the buffers, and keep the logits after it."""
        reads = [(index, column, owner) for index, row in enumerate(rows) for column, _, owner, _ in row.reads]
        index, column, owner = map(np.array, zip(*reads, strict=True))
        # A prompt's tokens in its row: the ancestors of its last token.
        branches = [np.flatnonzero(np.array(rows[row].ends[: last + 1]) > last) for row, last, _ in reads]
        counts = np.array(list(map(len, branches)))
        before = cache.layers[0].get_seq_length()
        branch_columns = np.concatenate([np.arange(self._longest - count, self._longest) for count in counts])
        shared_columns = (self._longest - before - counts)[:, None] + np.arange(before)
        number = wanted.ravel().cumsum().reshape(wanted.shape) - 1

        def on_device(*indices: np.ndarray) -> list[Tensor]:
            return [to_device(torch.from_numpy(each), outputs.device) for each in indices]

        from_row, from_column = on_device(index.repeat(counts), np.concatenate(branches))
        to_row, to_column = on_device(owner.repeat(counts), branch_columns)
        shared_row, shared_column = on_device(owner[:, None], shared_columns)
        answer, read = on_device(owner, number[index, column])
        with self._lock:
            for layer, fed in zip(self._layers, cache.layers, strict=True):
                if fed.new is None:  # a block without a cache
                    continue
                if not layer.is_initialized:
                    layer.open(len(self._prompts), self._longest, *fed.new)
                for kept, new, past in zip((layer.keys, layer.values), fed.new, fed.past or (None, None), strict=True):
                    kept[to_row, :, to_column] = new[from_row, :, from_column]
                    if past is not None:
                        kept[shared_row, :, shared_column] = past[0].transpose(0, 1)
            if self._first is None:
                self._first = outputs.new_empty(len(self._prompts), outputs.shape[1])
            self._first[answer] = outputs[read]

    def _keep(self, rows: Tensor) -> None:
        super()._keep(rows)
        self._prompt_lengths = self._prompt_lengths[rows.to(self._prompt_lengths.device)]

    def _feed_newest(self, new: Tensor) -> Tensor:
        newest = self._layers[0].get_seq_length()
        columns = torch.arange(newest + 1, device=self._prompt_lengths.device)
        sees = (columns >= self._longest - self._prompt_lengths[:, None])[:, None]
        window = sliding_window(self._config)
        mask = (
            self._as_attention(sees)
            if window is None
            else self._by_layer_type(sees, sees & (columns > newest - window))
        )
        positions = (self._prompt_lengths + newest - self._longest)[:, None]
        cache = Cache(layers=self._layers)
        return self._after_last(new, cache, position_ids=positions, attention_mask=mask)


class _UnpackedWriter(_Writer):
    """Prompts of one length, one per row."""

    def start(self) -> Tensor:
        self._fed = torch.tensor(self._prompts, device=self._model.device)
        # Without a cache, every step feeds all tokens again.
        self._cache = Cache(layers=self._layers) if self._ways.answers == "cached" else None
        if self._lengths.each:
            self._forget_length()
        return self._after_last(self._fed, self._cache)

    def _keep(self, rows: Tensor) -> None:
        super()._keep(rows)
        if self._cache is None:
            self._fed = self._fed[rows.to(self._fed.device)]

    def _feed_newest(self, new: Tensor) -> Tensor:
        if self._cache is not None:
            return self._after_last(new, self._cache)
        self._fed = torch.cat([self._fed, new.to(self._fed.device)], dim=1)
        return self._after_last(self._fed, None)


def _writer(
    prompts: list[Tokens], max_new_tokens: int, model: PreTrainedModel, budget: int, precision: str, ways: Ways
) -> _Writer:
    writer = _PackedWriter if ways.answers == "together" else _UnpackedWriter
    return writer(prompts, max_new_tokens, model, budget, precision, ways)


def answering_ways(model: PreTrainedModel, prompts: Sequence[Tokens], plain: bool = False) -> Ways:
    """The fast paths that answer these prompts as the model does when all tokens are fed at every step.

    Args:
        prompts: sorted.
        plain: return no fast paths.
    """
    reads = _as_reads(prompts)
    ways = scoring_ways(model, reads, plain)
    if ways == PLAIN:
        return ways
    return proof.proven_once(
        model, "answers", reads, lambda: ways._replace(answers=_proven_answers(model, ways, prompts))
    )


def _proven_answers(model: PreTrainedModel, ways: Ways, prompts: Sequence[Tokens]) -> str:
    """The first of ANSWER_WAYS whose logits equal, to rounding, those of feeding all tokens at every step."""
    lengths = lengths_of(model.config.get_text_config())
    sample = proof.sample(prompts, lengths)
    fixed = [prompt for prompt in sample if lengths.group(len(prompt)) == lengths.group(len(prompt) + TRIED_TOKENS)]
    alike = [some for group, some in lengths.grouped(fixed, map(len, fixed)).items() if not (group and lengths.each)]

    def prove() -> str:
        expected = [_tried_logits(model, [prompt], PLAIN) for some in alike for prompt in some]
        for answers in ANSWER_WAYS[:-1]:
            if answers == "together" and not ways.packs:
                continue
            trials = alike if answers == "together" else [[prompt] for some in alike for prompt in some]
            way = ways._replace(answers=answers, compiles=())

            def computed(trials: list[list[Tokens]] = trials, way: Ways = way) -> list[np.ndarray]:
                return [row for some in trials for row in _by_prompt(_tried_logits(model, some, way))]

            wanted = [row for table in expected for row in _by_prompt(table)]
            if proof.is_right(model, f"answers {answers}", computed, wanted):
                return answers
        return ANSWER_WAYS[-1]

    with proof.tensors_restored(model):
        return proof.run_reduced(model, prove) if alike else ANSWER_WAYS[-1]


def _tried_logits(model: PreTrainedModel, prompts: list[Tokens], ways: Ways) -> np.ndarray:
    """Log-probabilities after each prompt and after each of TRIED_TOKENS more, (tokens + 1, prompts, vocabulary)."""
    with cpu.prepared(model, ways):
        writer = _writer(prompts, TRIED_TOKENS + 1, model, 1, "no", ways)
        logits = [writer.start()]
        for step in range(TRIED_TOKENS):
            following = torch.tensor([prompt[step % len(prompt)] for prompt in prompts], device=model.device)
            logits.append(writer.step(following, None))
        return torch.stack([each.float().log_softmax(dim=-1).cpu() for each in logits]).numpy()


def _by_prompt(table: np.ndarray) -> list[np.ndarray]:
    return list(table.swapaxes(0, 1))
