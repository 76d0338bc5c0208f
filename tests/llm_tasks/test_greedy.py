"""Answers of many prompts at once are those of one at a time, and what prompts share is fed once."""

import functools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import slow_cases
from tiny_models import EACH, VOCABULARY, make_model, share_little
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedModel

from llm_tasks.engine import greedy, packing
from llm_tasks.engine.greedy import AnswerEnd, answering_ways, greedy_answers
from llm_tasks.engine.log_likelihood import Work
from llm_tasks.engine.processes import Processes
from llm_tasks.engine.ways import PLAIN, Lengths


def greedy_twin(model: PreTrainedModel, prompt: tuple[int, ...], end: AnswerEnd) -> list[int]:
    answer: list[int] = []
    while len(answer) < end.max_new_tokens and not (answer and end.is_finished(answer)):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, -1]
        if len(answer) < end.min_new_tokens:
            logits[list(end.ends)] = -torch.inf
        answer.append(logits.argmax().item())
    return answer


@pytest.mark.parametrize("name", [*EACH, "mamba"])
def test_answers_are_those_of_one_prompt_at_a_time(name: str):
    draw = random.Random(0)
    if name == "mamba":
        torch.manual_seed(0)
        config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2)
        model = AutoModelForCausalLM.from_config(config).eval()
    else:
        model = make_model(name)
    prompts = [tuple(draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 12))) for _ in range(9)]
    prompts.append(prompts[0])

    def ends(answer: list[int]) -> bool:
        return answer[-1] < 8

    end = AnswerEnd(5, ends)
    found, work = greedy_answers(model, prompts, end, tokens_per_batch=60)
    assert found == [greedy_twin(model, prompt, end) for prompt in prompts]
    assert {len(answer) for answer in found} != {5}  # some ended by themselves
    assert work.computed >= work.distinct
    longer = AnswerEnd(5, ends, min_new_tokens=3, ends=tuple(range(8)))
    later, _ = greedy_answers(model, prompts, longer, tokens_per_batch=60)
    assert later == [greedy_twin(model, prompt, longer) for prompt in prompts]
    assert later != found and min(map(len, later)) > 3  # three tokens, then one that ends


def prompts_about_texts(texts: int = 3, questions: int = 4) -> list[tuple[int, ...]]:
    """Examples that all share, texts that some share, questions of different length."""
    draw = random.Random(0)

    def tokens(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCABULARY) for _ in range(draw.randrange(least, most)))

    examples = tokens(9, 10)
    about = [tokens(2, 14) for _ in range(texts)]
    return [(*examples, *text, *tokens(1, 5)) for text in about for _ in range(questions)]


@pytest.mark.parametrize("gain", [1, *slow_cases(10**9)], ids=["prefixes", "no prefixes"])
@pytest.mark.parametrize("name", EACH)
def test_sharing_changes_no_answer(name: str, gain: int, monkeypatch: pytest.MonkeyPatch):
    share_little(monkeypatch, gain)
    model, prompts = make_model(name), prompts_about_texts()
    end = AnswerEnd(4, lambda answer: answer[-1] < 8)
    found, work = greedy_answers(model, prompts, end, tokens_per_batch=70)  # three batches
    assert found == [greedy_twin(model, prompt, end) for prompt in prompts]
    assert work.distinct <= work.computed


def test_what_prompts_share_is_fed_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "EVEN_KEYS", 1)
    prompts = prompts_about_texts()
    seen = {prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)}
    _, work = greedy_answers(make_model("llama"), prompts, AnswerEnd(1, lambda answer: True), tokens_per_batch=10**6)
    assert work == (len(seen), len(seen)) and len(seen) < sum(map(len, prompts)) / 2
    _, work = greedy_answers(make_model("llama"), prompts, AnswerEnd(3, lambda answer: False), tokens_per_batch=10**6)
    assert work == (len(seen) + 2 * len(prompts), len(seen) + 2 * len(prompts))


def test_prompts_of_any_length_are_answered_together():
    model, calls = make_model("llama"), []
    forward = model.forward

    @functools.wraps(forward)
    def counted(ids: torch.Tensor, **options: object) -> object:
        calls.append(tuple(ids.shape))
        return forward(ids, **options)

    prompts = [(1, 2, 3), tuple(range(3, 35)), tuple(range(2, 37))]
    answering_ways(model, sorted(prompts))
    model.forward = counted
    greedy_answers(model, prompts, AnswerEnd(3, lambda answer: answer[-1] < 0), tokens_per_batch=10**6)
    assert calls[1:] == [(3, 1), (3, 1)] and calls[0][0] == 1


def test_batches_keep_questions_about_one_text_together_and_lengths_alike():
    head = (0, 0)
    about = {text: [(*head, *[text] * 4, *[9] * extra) for extra in range(3)] for text in (1, 2)}
    short, long = (*head, 5), (*head, 7, *range(8, 30))
    distinct = sorted([*about[1], *about[2], short, long])
    found = list(greedy._cut(distinct, max_new_tokens=2, budget=44, together=True))
    assert found == [[short, *about[1]], about[2], [long]]
    apart = list(greedy._cut(distinct, max_new_tokens=2, budget=16, together=False))
    one, other = about[1], about[2]
    assert apart == [[short], [one[0], other[0]], [one[1]], [other[1]], [one[2]], [other[2]], [long]]
    assert list(greedy._cut([], 2, 44, together=True)) == []


@pytest.mark.parametrize(("tokens", "rows"), [(30, 10**6), (10**6, 5)], ids=["fed", "written"])
def test_memory_that_runs_out_halves_the_batches(tokens: int, rows: int):
    model, prompts = make_model("llama"), prompts_about_texts()
    end = AnswerEnd(4, lambda answer: answer[-1] < 8)
    expected, _ = greedy_answers(model, prompts, end, tokens_per_batch=10**6)
    forward, largest = model.forward, []

    @functools.wraps(forward)
    def limited(ids: torch.Tensor, **options: object) -> object:
        if ids.numel() > tokens or (ids.shape[1] == 1 and len(ids) > rows):
            raise torch.OutOfMemoryError("CUDA out of memory")
        largest.append(len(ids) if ids.shape[1] == 1 else 0)
        return forward(ids, **options)

    model.forward = limited
    found, _ = greedy_answers(model, prompts, end, tokens_per_batch=10**6)
    assert found == expected
    assert 1 <= max(largest) <= rows


@pytest.mark.parametrize("name", ["llama", *slow_cases("gemma3")])
def test_an_accelerator_answers_as_the_cpu(accelerator: str, name: str):
    model, prompts, end = make_model(name), prompts_about_texts(), AnswerEnd(4, lambda answer: False)
    expected, _ = greedy_answers(model, prompts, end, tokens_per_batch=70)
    assert greedy_answers(model.to(accelerator), prompts, end, tokens_per_batch=70)[0] == expected


@pytest.mark.parametrize("count", [2, 3, 50])
def test_processes_divide_the_answers_of_one_among_them(count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Processes, "merge", lambda self, values: tables.append(values) or values)
    model, draw = make_model("llama"), random.Random(3)
    prompts = [tuple(draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 20))) for _ in range(11)]
    options = {"end": AnswerEnd(3, lambda tokens: tokens[-1] < 9), "tokens_per_batch": 10}
    tables: list[np.ndarray] = []
    alone, work = greedy_answers(model, prompts, **options)
    tables.clear()
    times: list[np.ndarray] = []
    monkeypatch.setattr(Processes, "share", lambda self, value: value)
    monkeypatch.setattr(greedy, "check_done_once", times.append)
    for index in range(count):
        greedy_answers(model, prompts, **options, processes=Processes(index, count))
    assert sum(times).tolist() == [1] * len(prompts)
    table = sum(table for table in tables if table.ndim == 2)
    rows = dict(zip(sorted(set(prompts)), table, strict=True))
    assert [(rows[prompt][rows[prompt] > 0] - 1).tolist() for prompt in prompts] == alone
    assert sum(int(table[0]) for table in tables if table.shape == (1,)) == work.computed
    kept = {(1,): [0, 5, 0]}  # of which token 0 is as good as any
    assert greedy._merge_answers([(1,)], kept, 4, Processes(0, 2)) == kept


def test_the_tokens_of_all_batches_are_counted():
    """Prompts of three and five tokens, each a batch; the second token of each answer needs the first one."""
    end = AnswerEnd(2, lambda answer: False)
    _, work = greedy_answers(
        make_model("llama"), [(1, 2, 3), (4, 5, 6, 7, 8)], end, 1, ways=PLAIN._replace(answers="cached")
    )
    assert work == Work(3 + 1 + 5 + 1, 3 + 1 + 5 + 1)


def test_a_processor_sees_each_prompt_with_its_answer_and_its_logits():
    """Of three answers the first one ends at once; the processor then sees the other two."""
    seen, kept = [], []

    def scores(*tokens: int) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(tokens), 9).float()

    def step(tokens: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        kept.append((tokens.tolist(), rows.tolist()))
        return scores(4, 5)

    def processor(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        seen.append((ids.tolist(), logits.argmax(-1).tolist()))
        return logits

    writer = SimpleNamespace(start=lambda: scores(1, 2, 3), step=step)
    end = AnswerEnd(2, lambda answer: answer == [1], processors=[processor])
    assert greedy._write(writer, [(10,), (20, 21), (30,)], end) == [[1], [2, 4], [3, 5]]
    assert kept == [([1, 2, 3], [1, 2])]
    assert seen == [
        ([[10]], [1]), ([[20, 21]], [2]), ([[30]], [3]), ([[20, 21, 2]], [4]), ([[30, 3]], [5]),
    ]  # fmt: skip


@pytest.mark.parametrize("each", [False, True])
def test_a_longer_prompt_before_leaves_no_frequencies_where_every_length_has_its_own(each: bool):
    done, writer = [], greedy._UnpackedWriter.__new__(greedy._UnpackedWriter)
    vars(writer).update(
        _prompts=[(1, 2, 3)], _model=SimpleNamespace(device=torch.device("cpu")), _ways=PLAIN, _layers=[],
        _lengths=Lengths(2, each), _forget_length=lambda: done.append("forgotten"),
        _after_last=lambda ids, cache: done.append(ids.tolist()),
    )  # fmt: skip
    writer.start()
    assert done == ["forgotten"] * each + [[[1, 2, 3]]]
