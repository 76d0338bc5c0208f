import itertools
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from tiny_models import make_model
from transformers import LlamaConfig, LlamaForCausalLM

from llm_tasks.engine.cpu import Task, Tasks, allows_workers, divide_among_workers, run

WORKERS = [1, 2, 5]


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield 6
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", WORKERS)
def test_tasks_that_put_tasks_are_all_done_once(count: int):
    done = []

    def numbered(number: int) -> Task:
        def task(tasks: Tasks) -> None:
            time.sleep(0.001)  # so that other workers find the queue empty
            for child in (2 * number, 2 * number + 1):
                if child < 64:
                    tasks.put(numbered(child))
            done.append(number)

        return task

    run(numbered(1), count)
    assert sorted(done) == list(range(1, 64))


def test_one_worker_is_the_calling_thread_and_takes_the_latest_first():
    done = []

    def first(tasks: Tasks) -> None:
        for number in range(3):
            tasks.put(lambda tasks, number=number: done.append((number, threading.current_thread())))

    run(first, 1)
    assert done == [(number, threading.main_thread()) for number in (2, 1, 0)]


def test_workers_work_at_the_same_time_with_a_part_of_the_threads_each(threads: int):
    both, found = threading.Barrier(2, timeout=10), []

    def meet(tasks: Tasks) -> None:
        both.wait()
        found.append(torch.get_num_threads())

    def first(tasks: Tasks) -> None:
        tasks.put(meet)
        tasks.put(meet)

    run(first, 2)
    assert found == [3, 3]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("count", WORKERS)
def test_an_error_is_raised_and_nothing_is_begun_after_it(count: int, threads: int):
    begun = []

    def fail(tasks: Tasks) -> None:
        for _ in range(3):
            tasks.put(begun.append)
        raise FloatingPointError("the model's logits are NaN")

    with pytest.raises(FloatingPointError, match="logits are NaN"):
        run(fail, count)
    assert not begun
    assert torch.get_num_threads() == threads


def test_an_interrupt_ends_the_workers_after_what_they_are_doing(threads: int):
    begun, numbers = [], itertools.count()

    def endless(tasks: Tasks) -> None:
        begun.append(number := next(numbers))
        tasks.put(endless)
        if number == 5:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.01)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    try:
        with pytest.raises(KeyboardInterrupt):
            run(endless, 2)
    finally:
        signal.signal(signal.SIGINT, before)
    count = len(begun)
    time.sleep(0.05)
    assert len(begun) == count
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("budget", "tokens", "expected"),
    [
        (2048, 10**6, 2),
        (4096, 10**6, 4),
        (10**6, 10**6, 6),  # as many as threads
        (10**6, 1024, 1),
        (10**6, 1025, 2),
        (1000, 10**6, 1),
        (2048, 0, 1),
    ],
)
def test_workers_are_worth_their_tokens(budget: int, tokens: int, expected: int):
    assert divide_among_workers(budget, tokens)[0] == expected


def rotary_model(kind: str) -> LlamaForCausalLM:
    factors = {"long_factor": [1.0] * 4, "short_factor": [1.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 8, **factors}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, rope_parameters=rope,
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "expected"), [("linear", True), ("llama3", True), ("dynamic", False), ("longrope", False)]
)
def test_frequencies_that_follow_a_batch_allow_one_worker(kind: str, expected: bool):
    assert allows_workers(rotary_model(kind)) is expected


def test_modules_that_are_moved_as_they_are_needed_allow_one_worker():
    model = make_model("llama")
    model.model.layers[0]._hf_hook = object()  # as accelerate leaves it
    assert not allows_workers(model)


def test_a_model_elsewhere_has_one_worker():
    assert not allows_workers(make_model("llama").to("meta"))


@pytest.mark.parametrize(
    ("budget", "tokens", "expected"),
    [
        (2048, 16_000, (2, 916)),  # 16,480 with what is uneven: 9 turns of 2, not 8.05
        (2048, 1500, (2, 773)),
        (4096, 10**6, (4, 1022)),  # 252 turns of 4
        (5000, 4500, (4, 1159)),  # 4635 in one turn
        (1500, 10**6, (1, 1500)),
    ],
)
def test_workers_have_as_many_batches_each(budget: int, tokens: int, expected: tuple[int, int]):
    assert divide_among_workers(budget, tokens) == expected


def test_code_of_others_has_one_worker(monkeypatch: pytest.MonkeyPatch):
    model = make_model("llama")
    monkeypatch.setattr(type(model), "__module__", "transformers_modules.some.model")
    assert not allows_workers(model)
