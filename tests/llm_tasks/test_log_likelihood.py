import functools
import itertools
import math
import random
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import slow_cases
from tiny_models import EACH, VOCABULARY, continuations, make_model, one_at_a_time, share_little
from transformers import AutoModelForCausalLM, GPT2Config, MambaConfig, PreTrainedModel

from harness.progress import Progress
from llm_tasks.engine import cpu, feed, log_likelihood, packing
from llm_tasks.engine.greedy import AnswerEnd, answering_ways, greedy_answers
from llm_tasks.engine.log_likelihood import Work, log_likelihoods
from llm_tasks.engine.packing import Continuation
from llm_tasks.engine.processes import Processes
from llm_tasks.engine.proof import scoring_ways
from llm_tasks.engine.ways import PLAIN, Lengths, Ways


def assert_like_twin(model: PreTrainedModel, asked: list[Continuation], **options: object) -> Work:
    found = log_likelihoods(model, asked, **options)
    totals, firsts = one_at_a_time(model, asked)
    np.testing.assert_allclose(found.log_likelihood, totals, atol=1e-4, rtol=0)
    assert found.first_token.tolist() == firsts
    return found.work


@pytest.mark.parametrize("gain", [1, *slow_cases(10**9)], ids=["prefixes", "no prefixes"])
@pytest.mark.parametrize("name", EACH)
def test_sharing_and_batching_change_nothing(name: str, gain: int, monkeypatch: pytest.MonkeyPatch):
    share_little(monkeypatch, gain)
    assert_like_twin(make_model(name), continuations(), tokens_per_batch=64)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_masks_of_eager_attention(name: str):
    assert_like_twin(make_model(name, "eager"), continuations(), tokens_per_batch=200)


@pytest.mark.parametrize("budget", [1, 7, 10**6])
def test_any_budget_gives_the_same(budget: int):
    assert_like_twin(make_model("qwen2"), continuations(1, 3), tokens_per_batch=budget)


def test_a_recurrent_model_shares_nothing_and_is_still_right():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2))
    work = assert_like_twin(model.eval(), continuations(1, 3), tokens_per_batch=64)
    assert work.computed > work.distinct


def test_only_distinct_tokens_are_computed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "EVEN_KEYS", 1)  # in a model so narrow, keys alone count, and rows grow by a third
    asked = continuations(subjects=12, questions=12)
    seen = {tokens[: end + 1] for tokens, _ in asked for end in range(len(tokens) - 1)}
    work = log_likelihoods(make_model("llama"), asked, tokens_per_batch=10**6).work
    assert work.distinct == len(seen)
    assert work.distinct <= work.computed <= 1.25 * work.distinct  # a row that ends repeats its beginning


def test_the_examples_of_a_subject_are_computed_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "PREFIX_GAIN", 50)
    monkeypatch.setattr(packing, "PREFIX_TOKENS", 8)
    draw = random.Random(1)
    examples = tuple(draw.randrange(VOCABULARY) for _ in range(40))
    # Of 0, 1 and 2 examples, 20 tokens each: the shorter prompts are read below the beginning of the longest.
    asked = [
        Continuation((*examples[:shots], number, number + 1, option), shots + 2)
        for shots, number, option in itertools.product((0, 20, 40), range(10), (1, 2))
        if shots
    ]
    work = assert_like_twin(make_model("llama"), asked, tokens_per_batch=64)
    assert work.distinct == 40 + 2 * 10 * 2


@pytest.mark.parametrize("ways", [None, PLAIN])
def test_progress_counts_what_is_computed_and_not_what_is_planned(ways: Ways | None, monkeypatch: pytest.MonkeyPatch):
    """It said "1834 of 1834, 00:00 left" after the first of many batches."""
    told: list[tuple[int, int]] = []  # forward passes so far, continuations told

    class Told(Progress):
        def __exit__(self, *error: object) -> None:
            assert self._total == sum(steps for _, steps in told)

        def update(self, steps: int = 1) -> None:
            told.append((passes, steps))

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    monkeypatch.setattr(log_likelihood, "Progress", Told)
    model, asked, passes = make_model("llama"), continuations(), 0
    if ways is None:
        scoring_ways(model, packing.distinct_reads(asked))  # the trials
    model.model.register_forward_hook(count)
    log_likelihoods(model, [*asked, *asked[:5]], tokens_per_batch=32, ways=ways)
    assert sum(steps for _, steps in told) == len(asked) + 5
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert 1 <= told[0][0] < told[-1][0] == passes  # the first batch is told before the last is begun


def test_log_likelihood_by_hand():
    """A model without layers' influence: the logits of a zero model are equal, each token has probability 1 / 40."""
    model = make_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = log_likelihoods(model, [Continuation((1, 2, 3), 1), Continuation((1, 2), 1)], tokens_per_batch=8)
    np.testing.assert_allclose(found.log_likelihood, [-2 * math.log(40), -math.log(40)], rtol=1e-6)


def test_bf16_chooses_what_float32_chooses():
    model = make_model("llama")
    asked = continuations()[:-1]
    exact = log_likelihoods(model, asked, tokens_per_batch=64).log_likelihood.reshape(-1, 4)
    rounded = log_likelihoods(model, asked, tokens_per_batch=64, precision="bf16").log_likelihood.reshape(-1, 4)
    ranked = np.sort(exact)
    clear = ranked[:, -1] - ranked[:, -2] > 2 * np.abs(exact - rounded).max()
    assert clear.sum() >= 6
    assert (exact.argmax(axis=1) == rounded.argmax(axis=1))[clear].all()
    assert np.abs(exact - rounded).max() > 1e-3  # the precision arrives


@pytest.mark.parametrize("inner", [False, True], ids=["model", "decoder"])
def test_memory_that_runs_out_halves_the_batch(inner: bool):
    model, asked = make_model("llama"), continuations()
    expected = log_likelihoods(make_model("llama"), asked, tokens_per_batch=10**6).log_likelihood
    limits = model.model if inner else model
    largest, forward = [], limits.forward

    @functools.wraps(forward)
    def limited(input_ids: torch.Tensor, **options: object) -> object:
        if input_ids.numel() > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        largest.append(input_ids.numel())
        return forward(input_ids, **options)

    limits.forward = limited
    found = log_likelihoods(model, asked, tokens_per_batch=10**6).log_likelihood
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert max(largest) <= 300


def test_an_error_that_is_not_about_memory_is_raised():
    model = make_model("llama")

    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("a shape is wrong")

    model.forward = broken
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        log_likelihoods(model, continuations(), tokens_per_batch=64)


def test_nan_is_an_error():
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        log_likelihoods(model, continuations(), tokens_per_batch=64)
    with pytest.raises(FloatingPointError, match="NaN"):
        greedy_answers(model, [(1, 2)], AnswerEnd(3, lambda tokens: False), tokens_per_batch=64)


def test_nan_after_one_of_several_prompts_is_an_error():
    model, end = make_model("llama"), AnswerEnd(3, lambda tokens: False)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = math.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        log_likelihoods(model, [Continuation((1, 2), 1), Continuation((7, 2), 1)], 64, ways=PLAIN)
    with pytest.raises(FloatingPointError, match="NaN"):
        greedy_answers(model, [(1, 2), (7, 2)], end, 64, ways=Ways(pads=True, answers="cached"))


@pytest.mark.parametrize(("tokens", "start"), [((1, 2), 0), ((1, 2), 2), ((1,), 1)])
def test_a_continuation_needs_a_token_before_it_and_one_of_its_own(tokens: tuple[int, ...], start: int):
    with pytest.raises(ValueError, match="continuation 0: start"):
        log_likelihoods(make_model("llama"), [Continuation(tokens, start)], tokens_per_batch=8)


def test_nothing_asked_is_nothing_computed():
    model = make_model("llama")
    assert log_likelihoods(model, [], tokens_per_batch=8).work == (0, 0)
    assert greedy_answers(model, [], AnswerEnd(3, lambda tokens: False), tokens_per_batch=8) == ([], (0, 0))


def test_the_output_layer_reads_no_strided_rows():
    """On a processor it would copy its weights for every row: 71 s and 14 GB for 254 prompts of a 135M model."""
    model, layouts = make_model("llama"), []

    def record(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        layouts.append((inputs[0].dim(), inputs[0].is_contiguous()))

    prompts, asked, end = [(1, 2, 3), (4, 5, 6)], continuations(1, 3), AnswerEnd(3, lambda tokens: False)
    ways = answering_ways(model, prompts), scoring_ways(model, packing.distinct_reads(asked))
    model.lm_head.register_forward_pre_hook(record)
    greedy_answers(model, prompts, end, tokens_per_batch=64, ways=ways[0])
    log_likelihoods(model, asked, tokens_per_batch=64, ways=ways[1])
    assert set(layouts) == {(2, True)}


@pytest.mark.parametrize("columns", [1, 7, VOCABULARY - 1, VOCABULARY])
def test_a_vocabulary_in_parts_is_that_of_the_whole(columns: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_likelihood, "AT_ONCE_CPU", 1)
    monkeypatch.setattr(log_likelihood, "FEWEST_COLUMNS", columns)
    widths = []
    whole = log_likelihood.log_sums
    monkeypatch.setattr(log_likelihood, "log_sums", lambda part: widths.append(part.shape[1]) or whole(part))
    assert_like_twin(make_model("llama"), continuations(), tokens_per_batch=64)
    assert max(widths) == columns


def test_of_equally_likely_tokens_the_first_is_taken_in_whatever_part(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_likelihood, "AT_ONCE_CPU", 1)
    monkeypatch.setattr(log_likelihood, "FEWEST_COLUMNS", 8)
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = log_likelihoods(model, [Continuation((1, 2, 30), 2)], tokens_per_batch=8)
    assert found.first_token.tolist() == [0]
    assert found.log_likelihood[0] == pytest.approx(-math.log(VOCABULARY))


@pytest.mark.parametrize(("name", "projects"), [("llama", True), ("gpt2", True), ("gemma2", False)])
def test_logits_are_taken_in_parts_only_of_models_that_do_nothing_to_them(name: str, projects: bool):
    """Gemma 2 caps its logits."""
    assert scoring_ways(make_model(name), packing.distinct_reads(continuations())).projects is projects


@pytest.mark.parametrize("ways", [None, PLAIN])
def test_rows_as_long_as_the_model_takes_grow_past_no_learned_position(ways: Ways | None):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=47, n_embd=16, n_layer=1, n_head=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = [place % VOCABULARY for place in range(47)]  # of which 46 are read: EVEN_KEYS would make 48 of them
    found = log_likelihoods(model, [Continuation(tuple(tokens), 1)], tokens_per_batch=64, ways=ways)
    with torch.no_grad():
        scores = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(dim=-1)
    expected = scores[range(46), tokens[1:]].sum().item()
    assert found.log_likelihood[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_an_accelerator_scores_as_the_cpu(accelerator: str, name: str):
    model, asked = make_model(name), continuations()
    expected = log_likelihoods(model, asked, tokens_per_batch=64)
    found = log_likelihoods(model.to(accelerator), asked, tokens_per_batch=64)
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, atol=1e-3)


@pytest.mark.parametrize("count", [2, 3, 50])
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_processes_divide_the_batches_of_one_among_them(name: str, count: int, monkeypatch: pytest.MonkeyPatch):
    """Every process has its own part and 0 elsewhere; the sum is that of one process, to the last bit."""
    share_little(monkeypatch)
    monkeypatch.setattr(Processes, "merge", lambda self, values: values)
    monkeypatch.setattr(Processes, "share", lambda self, value: value)
    model, asked = make_model(name), continuations(3, 5)
    alone = log_likelihoods(model, asked, tokens_per_batch=64)
    times = []
    monkeypatch.setattr(log_likelihood, "check_done_once", times.append)
    parts = [log_likelihoods(model, asked, 64, processes=Processes(index, count)) for index in range(count)]
    assert sum(times).tolist() == [1] * len(asked)
    assert np.array_equal(sum(part.log_likelihood for part in parts), alone.log_likelihood)
    assert np.array_equal(sum(part.first_token for part in parts), alone.first_token)
    assert sum(np.count_nonzero(part.log_likelihood) for part in parts) == len(asked)
    assert sum(part.work.computed for part in parts) <= alone.work.computed + (count - 1) * 12
    monkeypatch.setattr(Processes, "merge", lambda self, values: 0 * values)
    found = log_likelihoods(model, asked, 64, greedy=True)
    assert found.greedy.all() and found.work.computed == 0  # of these too all processes have the sum


def test_continuations_of_one_token_are_those_in_float32_whatever_their_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_likelihood, "FLOAT32_SHARE", 0)  # float32 for all would cost too much
    asked = [Continuation((9, 9, 9, 9), 2), Continuation((1, 2, 3), 2), Continuation((1, 2, 3, 4, 5), 2)]
    reads, model = packing.distinct_reads(asked), make_model("llama")
    assert log_likelihood._in_float32(model.bfloat16(), reads, 1, "no") == [False, True, False]
    assert log_likelihood._in_float32(model.float(), reads, 1, "no") == [False, False, False]
    assert log_likelihood._in_float32(model, reads, 1, "bf16") == [False, True, False]


def test_hidden_states_that_are_kept_are_read_at_their_rows(monkeypatch: pytest.MonkeyPatch):
    scorer, added = log_likelihood._Scorer.__new__(log_likelihood._Scorer), []
    scorer._lock, scorer._deferred = threading.Lock(), []
    monkeypatch.setattr(scorer, "_add", lambda hidden, rows, *more: added.append(hidden[torch.from_numpy(rows), 0]))
    for first, rows in ((10, [0, 2]), (20, [1]), (30, [0, 3])):
        hidden = torch.arange(first, first + rows[-1] + 1)[:, None]
        scorer._defer(hidden, np.array(rows), *[np.array(rows)] * 3)
    scorer.read_deferred()
    assert [read.tolist() for read in added] == [[10, 12, 21, 30, 33]]


@pytest.mark.parametrize("times", [[1, 0], [1, 2]])
def test_an_item_that_no_process_or_two_computed_is_an_error(times: list[int]):
    log_likelihood.check_done_once(np.array([1, 1]))
    with pytest.raises(RuntimeError, match="divided its items differently"):
        log_likelihood.check_done_once(np.array(times))


def test_processes_that_divide_the_work_in_different_ways_stop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Processes, "share", lambda self, value, source=0: value)
    end = AnswerEnd(2, lambda tokens: False)
    for answers in (lambda values: values, lambda values: 2 * values):  # what the other left out; what both computed
        monkeypatch.setattr(Processes, "merge", lambda self, values, answers=answers: answers(values))
        for measure in (
            lambda processes: log_likelihoods(make_model("llama"), continuations(), 64, processes=processes),
            lambda processes: greedy_answers(make_model("llama"), [(1, 2), (3,)], end, 1, processes=processes),
        ):
            with pytest.raises(RuntimeError, match="divided its items differently"):
                measure(Processes(1, 2))


@pytest.fixture
def worker_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """Small batches in three workers; the threads that computed some."""
    before, found, outputs = torch.get_num_threads(), set(), feed.Engine._outputs

    def noted(*given: object, **more: object) -> torch.Tensor:
        found.add(threading.get_ident())
        time.sleep(0.002)  # or one worker could do all before another wakes up
        return outputs(*given, **more)

    monkeypatch.setattr(cpu, "WORKER_TOKENS", 16)
    monkeypatch.setattr(feed.Engine, "_outputs", noted)
    torch.set_num_threads(3)
    yield found
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("gemma3", torch.float32),
        ("llama", torch.bfloat16),
        *slow_cases(
            *((name, torch.float32) for name in ("llama", "qwen2", "bloom", "mixtral")), ("mixtral", torch.bfloat16)
        ),
    ],
)
def test_workers_change_nothing(
    name: str, dtype: torch.dtype, worker_threads: set[int], monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    share_little(monkeypatch)
    model, asked = make_model(name).to(dtype), continuations(4, 8)
    scoring_ways(model, packing.distinct_reads(asked))
    worker_threads.clear()
    found = log_likelihoods(model, asked, tokens_per_batch=48)
    used = len(worker_threads)
    monkeypatch.setattr(cpu, "divide", lambda ways, budget, tokens: (1, budget))
    expected = log_likelihoods(model, asked, tokens_per_batch=48)
    # Other batches, other roundings of products: in bf16 by 2^-8, as in test_fused_layers; logits here are large.
    close = {"atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, **close)
    assert found.work.distinct == expected.work.distinct
    assert used in (2, 3)


def test_workers_answer_the_same(worker_threads: set[int], monkeypatch: pytest.MonkeyPatch):
    share_little(monkeypatch)
    model = make_model("llama")
    prompts = [asked.tokens[: asked.start] for asked in continuations(4, 8)]
    end = AnswerEnd(4, lambda tokens: False)
    answering_ways(model, sorted(prompts))
    worker_threads.clear()
    found, _ = greedy_answers(model, prompts, end, tokens_per_batch=48)
    used = len(worker_threads)
    monkeypatch.setattr(cpu, "divide", lambda ways, budget, tokens: (1, budget))
    assert found == greedy_answers(model, prompts, end, tokens_per_batch=48)[0]
    assert used > 1


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_log_sums_in_parts_are_those_of_the_whole(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_likelihood, "NORMALIZED_AT_ONCE_CPU", 2 * 7)
    values = 30 * torch.randn(rows, 7)
    torch.testing.assert_close(log_likelihood.log_sums(values), values.logsumexp(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [3, 10, 100])
def test_hidden_states_are_read_as_their_logits(columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_likelihood, "AT_ONCE_CPU", 1)
    monkeypatch.setattr(log_likelihood, "FEWEST_COLUMNS", columns)
    monkeypatch.setattr(log_likelihood, "NORMALIZED_AT_ONCE_CPU", 1)
    draw = torch.Generator().manual_seed(0)
    hidden, weights = (torch.randn(size, 8, generator=draw).to(dtype) for size in (6, 20))
    at, tokens = torch.tensor([0, 0, 3, 5]), torch.tensor([0, 19, 7, 19])
    asked = log_likelihood.Targets(at, tokens, firsts=torch.tensor([5, 0, 2]))
    whole = hidden @ weights.T
    for outputs, factor in ((hidden, weights), (whole, None)):
        found, top = log_likelihood.read_logits(outputs, factor, asked)
        torch.testing.assert_close(found, whole.float().log_softmax(dim=-1)[at, tokens], rtol=1e-5, atol=1e-5)
        assert top.tolist() == whole[[5, 0, 2]].argmax(dim=-1).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_anywhere_in_a_row_is_seen(dtype: torch.dtype):
    values = torch.zeros(2, 9, dtype=dtype)
    values[1, 4] = torch.nan
    asked = log_likelihood.Targets(torch.tensor([0, 1]), torch.tensor([2, 2]), torch.tensor([0]))
    found, _ = log_likelihood.read_logits(values, None, asked)
    assert found.isnan().tolist() == [False, True]


def engine_of(**more: object) -> feed.Engine:
    """An engine that has only these attributes."""
    engine = feed.Engine.__new__(feed.Engine)
    vars(engine).update(more)
    return engine


@pytest.mark.parametrize(("each", "groups"), [(False, [[3, 4], [5, 6]]), (True, [[3, 4], [5], [6]])])
def test_prefixes_are_shared_up_to_the_boundary_and_lengths_beyond_it_are_kept_apart(each: bool, groups: list):
    planned, fed, forgotten = [], [], []
    engine = engine_of(
        _lengths=Lengths(4, each), _ways=Ways(shares=True), _storage=None,
        _plan=lambda reads: planned.append(reads) or packing.Prefix(0, reads, []),
        _feed_below=lambda prefix, *more: fed.append([len(read.fed) for read in prefix.reads]),
        _forget_length=lambda: forgotten.append(len(fed)),
    )  # fmt: skip
    reads = [packing.Read((1,) * length, 0, []) for length in (3, 4, 5, 6)]
    engine.feed(reads, 1)
    assert planned == [reads[:2]] and fed == groups
    assert forgotten == (list(range(3)) if each else [])  # before every group


@pytest.mark.parametrize(
    ("ways", "budget", "count"),
    [(Ways(), 100, 1), (Ways(shares=True), 100, 2), (Ways(pads=True), 100, 3), (Ways(packs=True), 14, 2)],
)
def test_rows_of_a_batch_have_one_length_where_nothing_pads_them(ways: Ways, budget: int, count: int):
    rows = [packing.Row((1,) * length, [], [], []) for length in (4, 5, 5)]
    engine = engine_of(_ways=ways, _budget=budget, _output_weights=None)
    assert engine._batch_size(rows) == count
