"""What must hold on a GPU, small and complete: on the stand-in for a device, and with `-m gpu` on a GPU.

Zeros, bits that do not depend on where the blocks are, jobs that were killed, memory that runs out, what is brought
ahead, and two GPUs beside one. What a single kernel computes is tested beside its CPU twin, in that kernel's own file.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import slow_cases
from fake_accelerator import Meter, fake_accelerator
from tiny_models import VOCABULARY, continuations
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from harness import run_folder
from llm_tasks.engine.greedy import AnswerEnd, answering_ways, greedy_answers
from llm_tasks.engine.log_likelihood import log_likelihoods
from llm_tasks.engine.packing import distinct_reads
from llm_tasks.engine.proof import scoring_ways
from llm_tasks.engine.window_losses import losses_blockwise, measured_in_memory
from llm_tasks.evaluation import held
from llm_tasks.methods import METHODS, Options, Strength
from pruning.blocks import CPU, BlockStorage, HostBlocks, StreamedBlocks, move_outside
from pruning.layers import decoder_weights
from pruning.prefetch import Prefetcher
from pruning.walk import compress_blocks

ROOT = Path(__file__).parents[1]
DTYPES = [torch.float32, *slow_cases(torch.bfloat16, torch.float16)]  # slow on the stand-in; -m gpu runs all
PRUNED = [
    ("magnitude", Strength("sparsity", 0.5)),
    ("wanda", Strength("sparsity", 0.5)),
    ("wanda", Strength("nm_ratio", "2:4")),
    ("ria", Strength("sparsity", 0.5)),
    ("sparsegpt", Strength("sparsity", 0.5)),
    ("sparsegpt", Strength("nm_ratio", "2:4")),
]
WALKED = [
    ("wanda", Strength("sparsity", 0.5)),
    *slow_cases(("sparsegpt", Strength("nm_ratio", "2:4")), ("gptq", Strength("bits", 4))),
]
TWO_GPUS = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.device_count() < 2, reason="there are no two GPUs"
)


def llama(layers: int = 2, hidden: int = 16, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def windows(count: int = 4, length: int = 8) -> Tensor:
    return torch.randint(3, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0))


def compress(model: PreTrainedModel, name: str, strength: Strength, storage: BlockStorage | None = None, **more: Any):
    def compress_linear(W: Tensor, inputs: object, _: str) -> Tensor:
        return METHODS[name].compress(W, inputs, strength, Options(group_size=8))

    asked = {"tokens": windows(), "tokens_per_batch": 16, **more}
    compress_blocks(model, asked.pop("tokens"), compress_linear, METHODS[name].statistic, storage=storage, **asked)


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "strength"), PRUNED)
def test_every_method_leaves_exact_zeros(accelerator: str, name: str, strength: Strength, dtype: torch.dtype):
    model = llama(1).to(dtype).to(accelerator)
    compress(model, name, strength)
    for weight in decoder_weights(model).values():
        matrix = weight.matrix.cpu()
        zeros = matrix == 0
        assert int(zeros.sum()) == matrix.numel() // 2, weight.name
        if strength.kind == "nm_ratio":
            assert (zeros.view(len(matrix), -1, 4).sum(dim=2) == 2).all()
        if name != "sparsegpt":  # a weight times False may be -0
            assert not matrix[zeros].signbit().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "strength"), WALKED)
def test_in_files_in_host_memory_and_on_the_device_the_bits_are_the_same(
    accelerator: str, tmp_path: Path, name: str, strength: Strength, dtype: torch.dtype
):
    device = torch.device(accelerator)
    llama().to(dtype).save_pretrained(tmp_path / "dense")
    whole, on_host = (AutoModelForCausalLM.from_pretrained(tmp_path / "dense").requires_grad_(False) for _ in range(2))
    whole.to(device)
    compress(whole, name, strength)
    move_outside(on_host, device)
    compress(on_host, name, strength, HostBlocks(on_host.model.layers, device), activations=CPU)
    storage = StreamedBlocks(tmp_path / "dense", tmp_path / "out", device=device)
    compress(storage.model, name, strength, storage)
    storage.complete()
    assert equal(state(whole), state(on_host))
    assert equal(state(whole), state(AutoModelForCausalLM.from_pretrained(tmp_path / "out")))


class Killed(Exception):
    pass


@pytest.mark.parametrize(("name", "strength"), WALKED)
def test_a_streamed_job_that_was_killed_ends_with_the_same_bits(
    accelerator: str, tmp_path: Path, name: str, strength: Strength, monkeypatch: pytest.MonkeyPatch
):
    device = torch.device(accelerator)
    llama(3).save_pretrained(tmp_path / "dense")
    storage = StreamedBlocks(tmp_path / "dense", tmp_path / "whole", job="it", device=device)
    compress(storage.model, name, strength, storage)
    storage.complete()
    finished = StreamedBlocks.finished

    def dies(self: StreamedBlocks, index: int, block: torch.nn.Module) -> None:
        if index == 1:
            raise Killed
        finished(self, index, block)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StreamedBlocks, "finished", dies)
        storage = StreamedBlocks(tmp_path / "dense", tmp_path / "out", job="it", device=device)
        compress(storage.model, name, strength, storage)
    storage = StreamedBlocks(tmp_path / "dense", tmp_path / "out", job="it", device=device)
    assert storage.resume()[0] == 1
    compress(storage.model, name, strength, storage)
    storage.complete()
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "out"))
    assert equal(state(one), state(other))


def test_what_is_brought_ahead_are_the_bits_of_the_host(accelerator: str):
    """The device is kept busy between steps, so that a copy that did not wait, or memory used too early, would show."""
    numel = 4 * 10**6 if accelerator == "cuda" else 100
    draw = torch.Generator().manual_seed(0)
    steps = [[torch.randn(numel, generator=draw), torch.randn(7, generator=draw)] for _ in range(6)]
    prefetcher = Prefetcher(steps.__getitem__, len(steps), torch.device(accelerator))
    busy = torch.full((2048, 2048) if accelerator == "cuda" else (4, 4), 0.1, device=accelerator)
    found = []
    for step in range(len(steps)):
        brought = prefetcher.take(step)
        for _ in range(20):
            busy @ busy
        found.append([tensor * 1 for tensor in brought])
        del brought
    for mine, own in zip(found, steps, strict=True):
        assert all(torch.equal(one.cpu(), other) for one, other in zip(mine, own, strict=True))


@pytest.mark.parametrize(("name", "strength"), WALKED)
def test_blocks_that_are_brought_ahead_give_the_same_bits(accelerator: str, name: str, strength: Strength):
    states = []
    for ahead in (False, True):
        model, device = llama(3), torch.device(accelerator)
        move_outside(model, device)
        compress(model, name, strength, HostBlocks(model.model.layers, device, ahead))
        states.append(state(model))
    assert equal(*states)


@pytest.mark.gpu
def test_a_device_never_holds_more_than_two_blocks():
    """However far the CPU is ahead: 32 MB each, and the device busy with the first."""
    steps = [[torch.zeros(2**23)] for _ in range(12)]
    prefetcher = Prefetcher(steps.__getitem__, len(steps), torch.device("cuda"))
    busy = torch.eye(4096, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for step in range(len(steps)):
        (tensor,) = prefetcher.take(step)
        for _ in range(10):
            torch.mm(busy, busy, out=busy)
        tensor.add_(1)
        del tensor
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 2.1 * 4 * 2**23


class Memory(NamedTuple):
    """A device whose memory can be limited, and sizes of works that show it there.

    Fields:
        hidden: width of models.
        many: factor of the number of windows, prompts and tokens.
    """

    device: torch.device
    hidden: int
    many: int

    def peak_of(self, work: Callable[[], Any]) -> tuple[Any, int]:
        """What the work returns, and the most memory that the device took for it from the system."""
        if self.device.type == "fake":
            meter = Meter()
            return work(), meter.peak_bytes
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return work(), torch.cuda.max_memory_reserved()

    @contextlib.contextmanager
    def limited(self, number: int) -> Iterator[None]:
        """Inside, the device has so many bytes."""
        if self.device.type == "fake":
            Meter().limit(number)
            yield
            Meter().limit(None)
            return
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(number / torch.cuda.get_device_properties(0).total_memory)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    def recovers(self, work: Callable[[int], Any], few: int, lots: int) -> tuple[Any, Any]:
        """What a work returns with few tokens at once, and with lots where memory is for fewer."""
        work(few)  # libraries take their memory
        expected, least = self.peak_of(lambda: work(few))
        _, most = self.peak_of(lambda: work(lots))
        assert most > 1.2 * least, f"{lots} tokens at once take {most} bytes, {few} take {least}: make the work larger"
        with self.limited(least + (most - least) // 4):
            return expected, work(lots)


@pytest.fixture
def memory(accelerator: str) -> Memory:
    return Memory(torch.device(accelerator), *((16, 1) if accelerator == "fake" else (1024, 16)))


RAN_OUT = "memory ran out: from here on"


@pytest.mark.parametrize("layout", [*slow_cases("device"), "host"])
def test_the_walk_recovers_where_memory_runs_out(memory: Memory, layout: str, caplog: pytest.LogCaptureFixture):
    tokens = windows(64, 8 * memory.many)

    def work(at_once: int) -> dict[str, Tensor]:
        model = llama(2, memory.hidden)
        storage = HostBlocks(model.model.layers, memory.device) if layout == "host" else None
        model.to(memory.device) if layout == "device" else move_outside(model, memory.device)
        compress(model, *PRUNED[1], storage, tokens=tokens, tokens_per_batch=at_once)
        return state(model)

    expected, found = memory.recovers(work, 2 * tokens.shape[1], tokens.numel())
    assert RAN_OUT in caplog.text
    for name, tensor in expected.items():  # sums of other batches: a few of the masks' closest calls fall differently
        assert (found[name] != tensor).float().mean() < 0.01, name


@pytest.mark.parametrize("layout", [*slow_cases("device"), "host"])
def test_scoring_recovers_where_memory_runs_out(memory: Memory, layout: str, caplog: pytest.LogCaptureFixture):
    model, asked = llama(2, memory.hidden), continuations(4 * memory.many, 6 * memory.many)
    model.to(memory.device) if layout == "device" else move_outside(model, memory.device)

    def storage() -> HostBlocks | None:
        return HostBlocks(model.model.layers, memory.device) if layout == "host" else None

    with held(model, storage()):
        ways = scoring_ways(model, distinct_reads(asked))

    def work(at_once: int) -> np.ndarray:
        return log_likelihoods(model, asked, at_once, ways=ways, storage=storage()).log_likelihood

    expected, found = memory.recovers(work, 40 * memory.many, 10**6)
    assert RAN_OUT in caplog.text
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
def test_answers_recover_where_memory_runs_out(memory: Memory, caplog: pytest.LogCaptureFixture):
    draw = random.Random(0)
    prompts = [
        tuple(draw.randrange(3, VOCABULARY) for _ in range(12 + 4 * memory.many)) for _ in range(16 * memory.many)
    ]
    model, end = llama(2, memory.hidden).to(memory.device), AnswerEnd(4, lambda tokens: False)
    ways = answering_ways(model, sorted(set(prompts)))

    def work(at_once: int) -> list[list[int]]:
        return greedy_answers(model, prompts, end, at_once, ways=ways)[0]

    expected, found = memory.recovers(work, 12 * memory.many, 10**6)
    assert RAN_OUT in caplog.text
    same = sum(one == other for one, other in zip(expected, found, strict=True))
    assert same >= 0.97 * len(prompts)  # where two tokens are as likely, batches of another size may choose the other


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["device", "host"])
def test_perplexity_recovers_where_memory_runs_out(memory: Memory, layout: str, caplog: pytest.LogCaptureFixture):
    model, text = llama(2, memory.hidden, 500 * memory.many), windows(12, 16 * memory.many)
    model.to(memory.device) if layout == "device" else move_outside(model, memory.device)

    def work(at_once: int) -> np.ndarray:
        if layout == "device":
            return measured_in_memory(model, text, at_once, "no")["window_loss"]
        return losses_blockwise(model, HostBlocks(model.model.layers, memory.device), text, at_once, "no")

    expected, found = memory.recovers(work, text.shape[1], text.numel())
    np.testing.assert_allclose(found, expected, atol=1e-4)
    halved = [record.message for record in caplog.records if RAN_OUT in record.message]
    assert 0 < len(halved) == len(set(halved))  # each time once


def test_a_window_that_does_not_fit_by_itself_is_an_error(memory: Memory):
    if memory.device.type != "fake":
        pytest.skip("a GPU's allocator has no limit so narrow")
    model, text = llama().to("fake"), windows()
    with memory.limited(Meter().held_bytes + 1000), pytest.raises(torch.OutOfMemoryError):
        measured_in_memory(model, text, 8, "no")


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_answers_and_losses_are_those_of_the_cpu(accelerator: str, dtype: torch.dtype):
    model, asked, text = llama().to(dtype), continuations(2, 4), windows()

    def measured() -> tuple[np.ndarray, np.ndarray]:
        return log_likelihoods(model, asked, 64).log_likelihood, measured_in_memory(model, text, 16, "no")[
            "window_loss"
        ]

    expected = measured()
    model.to(accelerator)
    close = 1e-3 if dtype == torch.float32 else 0.1  # of sums of up to six log-likelihoods, in 8 or 11 bits
    for mine, own in zip(measured(), expected, strict=True):
        np.testing.assert_allclose(mine, own, atol=close)


def test_a_step_of_written_answers_waits_for_the_device_once():
    """It reads the tokens that were chosen, and sends nothing for which the device has first to do all it was given."""
    prompts = [tuple(range(3, 9 + index)) for index in range(3)]
    with fake_accelerator() as meter:
        model, traffic = llama().to("fake"), {}
        ways = answering_ways(model, prompts)
        for steps in (3, 7):
            meter.reset()
            greedy_answers(model, prompts, AnswerEnd(steps, lambda tokens: False, 5, (1, 2)), 4096, ways=ways)
            traffic[steps] = meter.traffic
    assert ways.answers == "together"
    assert traffic[7].copies_out - traffic[3].copies_out == 4
    assert traffic[7].waits == traffic[3].waits and traffic[7].blocking_in == traffic[3].blocking_in == 0


def launch(*words: str, count: int) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)] if count > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, *words]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr


@TWO_GPUS
@pytest.mark.gpu
def test_two_gpus_measure_what_one_does_to_the_bit(tiny_decoder: Path, text_file: Path, tmp_path: Path):
    rows = [
        {"question": f"the film is {word} a", "choices": ["good", "bad", "story"], "answer": index % 3}
        for index, word in enumerate(["a", "the", "so", "and", "plot", "great", "fine", "poor", "awful"])
    ]
    task = tmp_path / "questions.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = ["--model_name_or_path", str(tiny_decoder), "--device", "cuda", "--compression", "dense", "wanda",
              "--sparsity", "0.5", "--calibration", str(text_file), "--nsamples", "4", "--calibration_length", "8",
              "--tokens_per_batch", "16"]  # fmt: skip
    scripts = {
        "own_task": ["--task_file", str(task), "--answer_mode", "cloze"],
        "perplexity": ["--text", str(text_file), "--seq_len", "16"],
    }
    for name, words in scripts.items():
        for count in (1, 2):
            out = str(tmp_path / name / str(count) / "{compression}")
            launch(f"llm_tasks/{name}.py", *shared, *words, "--output_dir", out, count=count)
        for compression in ("dense", "wanda"):
            one, two = (run_folder.read_items(tmp_path / name / str(count) / compression) for count in (1, 2))
            assert one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)


@TWO_GPUS
@pytest.mark.gpu
def test_two_gpus_fine_tune_and_evaluate_as_one(
    tiny_encoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path
):  # fmt: skip
    """A learning rate of 0 leaves the same model to evaluate: 37 rows in batches of 8, on one GPU and on two."""
    train, validation = map(str, sentence_files)
    words = ["GLUE_tasks/Glue_prune_oneshot.py", "--model_name_or_path", str(tiny_encoder), "--train_file", train,
             "--validation_file", validation, "--max_length", "16", "--per_device_train_batch_size", "8",
             "--per_device_eval_batch_size", "8", "--num_train_epochs", "1", "--learning_rate", "0",
             "--mixed_precision", "no", "--noembed", "--sparse_method", "sparse_transfer", "--sparsity", "0.4",
             "--seed", "1"]  # fmt: skip
    for count in (1, 2):
        launch(*words, "--output_dir", str(tmp_path / str(count)), count=count)
    one, two = (run_folder.read_items(tmp_path / str(count)) for count in (1, 2))
    assert np.array_equal(one["prediction"], two["prediction"]) and np.array_equal(one["label"], two["label"])
    (alone,), (together,) = (run_folder.read_runs(tmp_path / str(count)) for count in (1, 2))
    assert alone["score"] == together["score"]
    assert (alone["num_steps"], together["num_steps"]) == (12, 6)
