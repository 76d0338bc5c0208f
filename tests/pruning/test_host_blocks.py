"""Blocks in host memory or in files, computed on a device: the same bits as with all of them on the device.

The device is the CPU, the stand-in of fake_accelerator.py, or (mark gpu) a GPU.
"""

import copy
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from conftest import decoder_configs, slow_cases
from fake_accelerator import Meter, fake_accelerator
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from llm_tasks.methods import METHODS, Options, Strength
from pruning.blocks import CPU, BlockStorage, HostBlocks, LoadedBlocks, StreamedBlocks, move_outside
from pruning.layers import decoder_blocks
from pruning.prefetch import Prefetcher
from pruning.walk import compress_blocks
from pruning.wanda import wanda_mask

WINDOWS = torch.randint(3, 17, (6, 12), generator=torch.Generator().manual_seed(0))
METHODS_TRIED = [
    ("magnitude", Strength("sparsity", 0.5)),
    ("wanda", Strength("nm_ratio", "2:4")),
    *slow_cases(("sparsegpt", Strength("sparsity", 0.5)), ("gptq", Strength("bits", 4))),
]


@pytest.fixture
def meter() -> Iterator[Meter]:
    with fake_accelerator() as meter:
        yield meter


def llama(layers: int = 3) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def compress(
    model: PreTrainedModel, name: str, strength: Strength, storage: BlockStorage | None = None, **more: object
):
    def compress_linear(W: Tensor, inputs: object, _: str) -> Tensor:
        return METHODS[name].compress(W, inputs, strength, Options())

    more = {"tokens_per_batch": 24, **more}
    compress_blocks(model, WINDOWS, compress_linear, METHODS[name].statistic, storage=storage, **more)


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("architecture", decoder_configs())
def test_host_blocks_equal_blocks_in_memory(architecture: str, ahead: bool) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(decoder_configs()[architecture]).eval()
    twin = copy.deepcopy(model)
    compress(model, "wanda", Strength("sparsity", 0.5))
    compress(twin, "wanda", Strength("sparsity", 0.5), HostBlocks(decoder_blocks(twin)[1], CPU, ahead))
    assert equal(state(model), state(twin))


@pytest.mark.parametrize(("name", "strength"), METHODS_TRIED)
def test_a_streamed_walk_that_reads_ahead_equals_the_plain_one(
    tiny_decoder: Path, tmp_path: Path, name: str, strength: Strength
) -> None:
    for ahead in (False, True):
        storage = StreamedBlocks(tiny_decoder, tmp_path / str(ahead), ahead=ahead)
        compress(storage.model, name, strength, storage)
        storage.complete()
    for path in (tmp_path / "False").glob("*.safetensors"):
        assert equal(load_file(path), load_file(tmp_path / "True" / path.name))


@pytest.mark.parametrize("activations", [CPU, *slow_cases(None)])
@pytest.mark.parametrize(("name", "strength"), METHODS_TRIED)
def test_blocks_of_the_host_are_computed_on_the_device(
    meter: Meter, name: str, strength: Strength, activations: torch.device | None
) -> None:
    whole, model = llama().to("fake"), llama()
    compress(whole, name, strength)
    move_outside(model, torch.device("fake"))
    compress(model, name, strength, HostBlocks(model.model.layers, torch.device("fake")), activations=activations)
    assert {parameter.device.type for parameter in model.model.layers.parameters()} == {"cpu"}
    assert model.lm_head.weight is model.model.embed_tokens.weight  # still tied
    assert equal(state(whole), state(model))


@pytest.mark.parametrize(("name", "strength"), METHODS_TRIED)
def test_streamed_blocks_are_computed_on_the_device(
    meter: Meter, tiny_decoder: Path, tmp_path: Path, name: str, strength: Strength
) -> None:
    whole = AutoModelForCausalLM.from_pretrained(tiny_decoder).to("fake")
    compress(whole, name, strength)
    storage = StreamedBlocks(tiny_decoder, tmp_path / "out", device=torch.device("fake"))
    compress(storage.model, name, strength, storage)
    storage.complete()
    assert equal(state(whole), state(AutoModelForCausalLM.from_pretrained(tmp_path / "out")))


@pytest.mark.parametrize(("name", "strength"), METHODS_TRIED)
def test_the_device_holds_two_blocks(meter: Meter, name: str, strength: Strength) -> None:
    """Beside embeddings, and what one block of the same model needs when nothing else is there."""
    peaks = {}
    for layers in (2, 5):
        model = llama(layers)
        move_outside(model, torch.device("fake"))
        meter.reset()
        compress(model, name, strength, HostBlocks(model.model.layers, torch.device("fake")), activations=CPU)
        peaks[layers] = meter.peak_bytes
        del model
    assert peaks[5] <= peaks[2] * 1.01


@pytest.mark.parametrize("activations", [None, *slow_cases(CPU)])
def test_transfers_per_block_and_batch_are_few(
    meter: Meter, activations: torch.device | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block goes to the device and back; a batch of hidden states, if on the host, twice there and once back."""
    # Whether a block that is no longer wanted has begun to come depends on the threads: here each always has.
    monkeypatch.setattr(Future, "cancel", lambda future: False)
    found = {}
    for layers in (2, 4):
        for batches in (2, 3):
            model = llama(layers)
            move_outside(model, torch.device("fake"))
            meter.reset()
            storage = HostBlocks(model.model.layers, torch.device("fake"))
            per_batch = 12 * len(WINDOWS) // batches
            compress(
                model, "wanda", Strength("sparsity", 0.5), storage, activations=activations, tokens_per_batch=per_batch
            )
            found[layers, batches] = meter.traffic
    tensors = len(list(llama(1).model.layers[0].parameters()))
    more_layers = [found[4, batches].copies_in - found[2, batches].copies_in for batches in (2, 3)]
    # the proof's two whole passes and two replays, and the walk itself, bring each block
    assert more_layers[0] <= 2 * (8 * tensors + 4 * 2)
    per_layer_and_batch = (more_layers[1] - more_layers[0]) / 2
    assert per_layer_and_batch == (0 if activations is None else 2)
    back = [found[4, batches].copies_out - found[2, batches].copies_out for batches in (2, 3)]
    assert (back[1] - back[0]) / 2 == (0 if activations is None else 1)
    waits = [found[4, batches].waits - found[2, batches].waits for batches in (2, 3)]
    assert waits[1] == waits[0]  # none per batch


@pytest.mark.parametrize("activations", [None, *slow_cases(CPU)])
@pytest.mark.parametrize("statistic", ["hessian", *slow_cases("sq_norms")])
def test_where_memory_runs_out_batches_are_halved(
    meter: Meter, statistic: str, activations: torch.device | None, caplog: pytest.LogCaptureFixture
) -> None:
    device, many = torch.device("fake"), WINDOWS.repeat(8, 1)

    def compressed(tokens_per_batch: int) -> dict[str, Tensor]:
        model = llama()
        move_outside(model, device)
        storage = HostBlocks(model.model.layers, device)
        compress_blocks(
            model, many, lambda W, inputs, _: wanda_mask(W, inputs.sq_norms, 0.5), statistic, storage=storage,
            tokens_per_batch=tokens_per_batch, activations=activations,
        )  # fmt: skip
        return state(model)

    meter.reset()
    expected = compressed(48)
    meter.limit(int(1.2 * meter.peak_bytes))  # when the next block is there is up to the threads
    found = compressed(960)
    assert "windows are computed at once" in caplog.text
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)


def test_out_of_memory_with_one_window_is_an_error(meter: Meter) -> None:
    model = llama().to("fake")
    meter.limit(meter.held_bytes + 1000)
    with pytest.raises(torch.OutOfMemoryError):
        compress(model, "wanda", Strength("sparsity", 0.5))


def test_the_prefetcher_reads_each_step_once_in_order_and_whatever_is_asked() -> None:
    read: list[int] = []

    def tensors(step: int) -> list[Tensor]:
        read.append(step)
        return [torch.full((2,), float(step))]

    prefetcher = Prefetcher(tensors, 4, CPU, ahead=True)
    assert [int(prefetcher.take(step)[0][0]) for step in (0, 1, 2, 3)] == [0, 1, 2, 3]
    assert read == [0, 1, 2, 3]
    assert [int(prefetcher.take(step)[0][0]) for step in (2, 0, 3)] == [2, 0, 3]  # out of order: read anew


def test_what_fails_in_reading_ahead_is_raised_where_it_is_taken() -> None:
    def tensors(step: int) -> list[Tensor]:
        if step == 1:
            raise OSError("the disk is gone")
        return [torch.zeros(1)]

    prefetcher = Prefetcher(tensors, 3, CPU, ahead=True)
    prefetcher.take(0)
    with pytest.raises(OSError, match="the disk is gone"):
        prefetcher.take(1)


def test_what_does_not_fit_beside_the_step_before_is_brought_after_it(meter: Meter) -> None:
    steps = [[torch.full((1000,), float(step)), torch.zeros(1000)] for step in range(3)]
    meter.limit(meter.held_bytes + 12_000)  # a step and a half
    prefetcher = Prefetcher(steps.__getitem__, len(steps), torch.device("fake"))
    for step in range(3):
        brought = prefetcher.take(step)
        time.sleep(0.05)  # the next is tried beside it
        assert float(brought[0][0]) == step
        del brought


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "strength"), METHODS_TRIED)
def test_on_a_gpu_host_blocks_equal_a_model_on_it(name: str, strength: Strength) -> None:
    whole, model = llama().to("cuda", torch.float16), llama().to(torch.float16)
    compress(whole, name, strength)
    move_outside(model, torch.device("cuda"))
    compress(model, name, strength, HostBlocks(model.model.layers, torch.device("cuda")), activations=CPU)
    assert equal(state(whole), state(model))


def test_loaded_blocks_are_what_they_are() -> None:
    model = llama()
    with LoadedBlocks(model.model.layers).hold(1) as block:
        assert block is model.model.layers[1]
