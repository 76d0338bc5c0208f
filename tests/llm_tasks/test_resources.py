"""What a job is said to need: by hand from shapes, and beside what the stand-in for an accelerator measures."""

import gc
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import slow_cases
from fake_accelerator import Meter, fake_accelerator
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from llm_tasks import compressed_model, resources
from llm_tasks.compressed_model import ModelSource, load_model
from llm_tasks.compressions import PairStrength, method_of
from llm_tasks.engine.log_likelihood import log_likelihoods
from llm_tasks.engine.packing import Continuation, distinct_reads
from llm_tasks.engine.proof import scoring_ways
from llm_tasks.engine.window_losses import measured_in_memory
from llm_tasks.methods import METHODS, Options, Strength
from llm_tasks.resources import LAYOUTS, Memory, choose_layout, memory_needed, walk_costs
from pruning.blocks import HostBlocks, move_outside
from pruning.layers import decoder_blocks
from pruning.walk import compress_blocks

VOCABULARY, WINDOWS = 1000, (16, 64)
TOKENS = 256  # at once
FAKE, HOST = "fake", torch.device("cpu")
STRENGTHS = {name: Strength("bits", 4) if name in ("gptq", "rtn") else Strength("sparsity", 0.5) for name in METHODS}
STRENGTHS["low_rank"] = Strength("rank", 16)
STRENGTHS["sparsegpt+gptq"] = PairStrength(Strength("sparsity", 0.5), Strength("bits", 4))
SURE = 1.6  # a prediction is at least what was measured, and at most so many times as much


@pytest.fixture
def meter() -> Iterator[Meter]:
    with fake_accelerator() as meter:
        yield meter


def llama(dtype: torch.dtype, layers: int = 6) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=layers, num_attention_heads=4
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)


def placed(model: PreTrainedModel, layout: str) -> HostBlocks | None:
    """Move the model, or what is outside of its blocks, to the stand-in; returns what brings the blocks."""
    if layout == "device":
        model.to(FAKE)
        return None
    move_outside(model, torch.device(FAKE))
    return HostBlocks(decoder_blocks(model)[1], torch.device(FAKE))


def held(meter: Meter) -> int:
    """Bytes on the stand-in, without what earlier tests left there."""
    gc.collect()
    return meter.held_bytes


def on_device(memory: Memory) -> int:
    return sum(memory.device.values())


QUICK = [("host", "magnitude", "device")]
SHORT = [("device", "wanda", "device"), ("host", "wanda", "host"), ("host", "sparsegpt+gptq", "device")]
ALL = [
    (layout, name, activations)
    for layout in ("device", "host")
    for name in METHODS
    for activations in (("device", "host") if METHODS[name].statistic else ("device",))
]


@pytest.mark.parametrize(
    ("layout", "name", "activations", "dtype"),
    [
        *((*case, torch.bfloat16) for case in QUICK),
        *slow_cases(*((*case, torch.bfloat16) for case in SHORT), *((*case, torch.float32) for case in ALL)),
    ],
)  # fmt: skip
def test_a_compression_takes_what_is_predicted(
    meter: Meter, layout: str, name: str, activations: str, dtype: torch.dtype
) -> None:
    before = held(meter)
    model, method, options = llama(dtype, layers=3), method_of(name), Options()
    storage = placed(model, layout)
    windows = torch.randint(VOCABULARY, WINDOWS, generator=torch.Generator().manual_seed(0))
    meter.reset()
    compress_blocks(
        model,
        windows,
        lambda W, inputs, _: method.compress(W, inputs, STRENGTHS[name], options),
        method.statistic,
        tokens_per_batch=TOKENS,
        storage=storage,
        activations=HOST if activations == "host" else None,
    )
    measured = meter.peak_bytes - before
    costs = walk_costs(model, [name], WINDOWS, dtype, TOKENS).values()
    needed = memory_needed(model, dtype, layout, True, costs, TOKENS, whole_logits=True, activations=activations)
    assert 1 <= on_device(needed) / measured <= SURE


def questions(shared: int) -> list[Continuation]:
    """20 questions of 60 tokens with four answers of two, all after the same tokens."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(count)]

    prefix, asked = tokens(shared), []
    for _ in range(20):
        question = [*prefix, *tokens(60)]
        asked += [Continuation((*question, *tokens(2)), len(question)) for _ in range(4)]
    return asked


@pytest.mark.parametrize("shared", [0, *slow_cases(400)])
@pytest.mark.parametrize("dtype", [torch.float32, *slow_cases(torch.bfloat16)])
def test_scores_take_what_is_predicted(meter: Meter, shared: int, dtype: torch.dtype) -> None:
    before = held(meter)
    model, asked = llama(dtype), questions(shared)
    placed(model, "device")
    meter.reset()
    log_likelihoods(model, asked, 1024, ways=scoring_ways(model, distinct_reads(asked)))
    measured = meter.peak_bytes - before
    assert 1 <= on_device(memory_needed(model, dtype, "device", True, tokens_per_batch=1024)) / measured <= SURE


@pytest.mark.parametrize("dtype", [torch.float32, *slow_cases(torch.bfloat16)])
def test_perplexity_takes_what_is_predicted(meter: Meter, dtype: torch.dtype) -> None:
    before = held(meter)
    model = llama(dtype, layers=1)
    placed(model, "device")
    meter.reset()
    measured_in_memory(model, torch.zeros(24, 128, dtype=torch.int64), 1024, "no")
    measured = meter.peak_bytes - before
    needed = memory_needed(model, dtype, "device", True, tokens_per_batch=1024, whole_logits=True)
    assert 1 <= on_device(needed) / measured <= SURE


@pytest.fixture
def shapes() -> PreTrainedModel:
    """q, o: 8x8; k, v: 4x8; gate, up: 16x8; down: 8x16; two norms of 8: 592 weights a block; 648 outside of the two."""
    config = LlamaConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16,
    )  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


MODEL, BLOCK, OUTSIDE = 2 * (2 * 592 + 648), 2 * 592, 2 * 648  # bytes in bfloat16
RANKED = 6 * 128 + 10 * 128 + 2**21  # for the largest weight
WEIGHTS = {"device": ("weights", MODEL), "host": ("blocks that are computed", 2 * BLOCK)}


def parts(memory: Memory) -> tuple[dict[str, int], dict[str, int]]:
    return tuple({what: bytes for what, bytes in where.items() if bytes} for where in (memory.device, memory.host))


def test_the_dense_model_by_hand(shapes: PreTrainedModel) -> None:
    """Perplexity of ten tokens: their logits are in bfloat16, and twice in float32; the block's results are more."""
    batch = {"intermediate results of a batch": 10 * (2 * 8 + 8 + 4 + 4 + 8 + 16 + 16 + 8) * 2}
    logits = {"logits of a batch": 10 * 40 * 2 + 2 * 4 * 10 * 40}
    assert sum(logits.values()) > sum(batch.values())

    def needed(layout: str, on_accelerator: bool) -> tuple[dict[str, int], dict[str, int]]:
        return parts(memory_needed(shapes, torch.bfloat16, layout, on_accelerator, (), 10, whole_logits=True))

    outside = {"embeddings, output layer": OUTSIDE}
    two = {"blocks that are computed": 2 * BLOCK}
    assert needed("device", True) == ({"weights": MODEL, **logits}, {})
    pinned = {"pinned copy of a block": 2 * (2 * 64 + 2 * 32 + 3 * 128 + 2 * 8)}  # powers of two already
    assert needed("host", True) == ({**logits, **outside, **two}, {**pinned, "weights of the blocks": 2 * BLOCK})
    assert needed("files", True) == ({**logits, **outside, **two}, {**pinned, "block that is read, or written": BLOCK})
    assert needed("device", False) == ({}, {"weights": MODEL, **logits})
    assert needed("files", False) == ({}, {"blocks that are computed": BLOCK, **logits})


def test_pinned_memory_comes_in_powers_of_two() -> None:
    assert [resources.pinned(bytes) for bytes in (0, 1, 4, 5, 8, 9)] == [0, 1, 4, 8, 8, 16]


def test_a_calibrated_compression_by_hand(shapes: PreTrainedModel) -> None:
    """Ten windows of five tokens; two windows at once."""
    costs = walk_costs(shapes, ["wanda", "magnitude", "dense"], (10, 5), torch.bfloat16, 10)
    norms, none = costs["sq_norms"], costs[None]
    assert (none.flops, none.activations_bytes, none.collecting_bytes, none.compressing_bytes) == (0, 0, 0, RANKED)
    sums = 4 * (8 + 8 + 8 + 16)
    forward, squares = 10 * 80 * 2, 10 * (4 * 8 + 16) * 2 + 4 * 2 * 16 * 10
    assert norms.activations_bytes == 50 * 8 * 2
    assert norms.collecting_bytes == sums + max(forward, squares)
    assert norms.compressing_bytes == sums + RANKED

    def needed(layout: str, activations: str) -> tuple[dict[str, int], dict[str, int]]:
        return parts(
            memory_needed(
                shapes, torch.bfloat16, layout, True, costs.values(), 10, whole_logits=True, activations=activations
            )
        )

    states = {"hidden states of all windows": 800}
    most = {"statistics, factors and copies of a weight": norms.compressing_bytes}
    assert needed("device", "device") == ({"weights": MODEL, **states, **most}, {})
    pinned = {"hidden states of all windows": 1024}  # a power of two
    assert needed("device", "host") == ({"weights": MODEL, **most}, pinned)
    device, host = needed("files", "device")  # mapped from a file
    assert most.items() <= device.items() and not states.items() & {**device, **host}.items()


def test_a_hessian_by_hand(shapes: PreTrainedModel) -> None:
    """Sums of 8, 8, 8 and 16 inputs. The last one is factored, or its weight compressed, when the others are freed."""
    (cost,) = walk_costs(shapes, ["gptq"], (10, 5), torch.bfloat16, 10).values()
    sums = [4 * 64] * 3 + [4 * 256]
    assert cost.compressing_bytes == max(
        sum(sums[index:]) + max(int(2.5 * size), size + RANKED) for index, size in enumerate(sums)
    )
    assert cost.collecting_bytes == sum(sums) + max(10 * 80 * 2, 10 * (4 * 8 + 16) * 2 + 4 * min(16 * 16, 2**27))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_else_a_job_keeps_by_hand(shapes: PreTrainedModel, layout: str) -> None:
    def host(**more: object) -> dict[str, int]:
        return memory_needed(shapes, torch.bfloat16, layout, True, (), 10, **more).host

    assert host(several=True).get("copy of the dense weights", 0) == (0 if layout == "files" else 2 * 576 * 2)
    left = 2 * (2 * 3 * 16 + 2 * 3 * 12 + 3 * 3 * 24) * 4
    assert host(shared_rank=3)["low-rank factors"] == left
    assert host(exports=True)["integers of quantized weights"] == 2 * 2 * 576
    one, three = (sum(host(several=True, exports=True, processes=count).values()) for count in (1, 3))
    of_main = sum(host(several=True, exports=True).values()) - sum(host().values())
    assert three - of_main == 3 * (one - of_main)


def test_scores_and_answers_by_hand(shapes: PreTrainedModel) -> None:
    """Keys and values: 4 features each of 10 tokens in each block, and 8 of 8 prefix tokens for each in one block."""

    def needed(**more: object) -> dict[str, int]:
        memory = memory_needed(shapes, torch.bfloat16, tokens_per_batch=10**5, **more)
        return {**memory.device, **memory.host}

    keys, prefixes = 2 * 2 * 10**5 * 4, 2 * 2 * 10**5 * 8 * 8
    for more, blocks in (
        ({"layout": "device", "on_accelerator": True}, 2),
        ({"layout": "host", "on_accelerator": True}, 1),
        ({"layout": "host", "on_accelerator": True, "writes_answers": True}, 2),
        ({"layout": "files", "on_accelerator": False, "writes_answers": True}, 8),  # four batches of answers
    ):
        assert needed(**more)["keys and values"] == blocks * keys + prefixes
        assert needed(**more)["intermediate results of a batch"] == 10**5 * 80 * 2


def test_the_stages_of_scores_by_hand(shapes: PreTrainedModel) -> None:
    """With few tokens, the most is taken by trials in float32: two rows of 1,024 tokens, their logits and a mask."""
    memory = memory_needed(shapes, torch.bfloat16, "device", True, tokens_per_batch=10)
    trials = max(2048 * 80 * 4, 2 * 4 * 2048 * 40) + 4 * 2048**2 + 4 * 128
    assert parts(memory) == ({"weights": MODEL, "trials of the fast paths": trials}, {})


def test_a_second_model_and_weights_in_float32_by_hand(shapes: PreTrainedModel) -> None:
    """The logits of the second one too are whole; the output layer is converted only from another dtype."""
    needed = memory_needed(shapes, torch.bfloat16, "device", True, (), 10, whole_logits=True, beside_dense=True)
    assert needed.device["dense model beside the compressed one (--kl)"] == MODEL + 10 * 40 * 2
    for dtype, converted in ((torch.bfloat16, 4 * 40 * 8), (torch.float32, 0)):
        assert resources.evaluation_stages(shapes, dtype, 10, 20)[1] == {
            "output layer in float32, logits": converted + 2 * 4 * 10 * 40
        }
    assert resources.key_width(LlamaConfig(hidden_size=8, num_attention_heads=2, num_key_value_heads=1)) == 4
    assert resources.key_width(LlamaConfig(hidden_size=8, num_attention_heads=2, head_dim=6)) == 2 * 6


@pytest.mark.parametrize(
    ("layouts", "free", "message"),
    [
        (
            ["device"],
            10,
            "1.0 GB are needed on the device, 0.0 GB are free; --blocks host computes on one GPU with the",
        ),
        (["device", "host"], 10, "2.0 GB are needed on the device, 0.0 GB are free; --activations host leaves"),
        (["host"], 3 * 10**9, "4.0 GB are needed on the host, 3.0 GB are free; one compressed model in a process"),
        (["files"], 10, "3.0 GB are needed on the device, 0.0 GB are free; --tokens_per_batch, --nsamples and"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, layouts: list[str], free: int, message: str
) -> None:
    def needed(layout: str) -> Memory:
        size = (list(LAYOUTS).index(layout) + 1) * 10**9
        return Memory(layout, {"weights": size}, {"weights of the blocks": 2 * size})

    monkeypatch.setattr(resources, "available_memory", lambda device: free)
    with pytest.raises(ValueError, match=re.escape(message)):
        choose_layout(layouts, needed, [torch.device("cpu")], "model")


def test_the_first_layout_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Memory("host", {"weights": 10}, {"weights of the blocks": 90})
    needed = {"device": Memory("device", {"weights": 101}, {}), "host": taken, "files": Memory("files", {}, {})}
    monkeypatch.setattr(resources, "available_memory", lambda device: 100)
    assert choose_layout(LAYOUTS, needed.__getitem__, [torch.device("cpu")], "model") is taken
    assert taken.described() == ["device: 0.00 GB", "      0.00 GB  weights", "host: 0.00 GB",
                                 "      0.00 GB  weights of the blocks"]  # fmt: skip


def test_only_blocks_on_the_device_are_spread_over_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two accelerators hold 200 bytes together, one of them 100; the machine holds more."""
    monkeypatch.setattr(resources, "available_memory", lambda device: 10_000 if device.type == "cpu" else 100)
    two = [torch.device("cuda", index) for index in range(2)]

    def chosen(on_device: int, of_block: int) -> str:
        memory = {"device": Memory("device", {"weights": on_device}, {}), "host": Memory("host", {"b": of_block}, {})}
        return choose_layout(["device", "host"], memory.__getitem__, two, "model").layout

    assert chosen(200, 0) == "device"
    assert chosen(201, 100) == "host"
    with pytest.raises(ValueError, match=r"0.0 GB are needed on the device, 0.0 GB are free; --activations host"):
        chosen(201, 101)
    spread = ModelSource("my/model", two[0], device_map="auto")
    assert spread.laid_out("device").device_map == "auto" and spread.laid_out("host").device_map is None


def test_a_model_that_all_gpus_together_do_not_hold_is_refused_with_a_way_out(
    shapes: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate leaves what does not fit on the meta device."""
    monkeypatch.setattr(compressed_model, "load_pretrained", lambda *_, **more: (shapes, frozenset()))
    source = ModelSource("my/model", torch.device("cpu"), device_map="auto")
    message = "--device_map auto: the GPUs together do not hold my/model; without it, --blocks host .* --stream with"
    with pytest.raises(ValueError, match=message):
        load_model(source)


LLAMA_2 = {"7B": (4096, 11008, 32, 32, 32), "13B": (5120, 13824, 40, 40, 40), "70B": (8192, 28672, 80, 64, 8)}


@pytest.mark.slow
def test_the_table_of_what_fits_is_computed() -> None:
    """INSTALL.md: models of Llama 2's shapes, without weights."""
    text = (Path(__file__).parents[2] / "INSTALL.md").read_text()
    section = text.partition("\n### What fits\n")[2].partition("\n### ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    computed, keys = [], []
    for name, (hidden, intermediate, blocks, heads, key_heads) in LLAMA_2.items():
        config = LlamaConfig(
            vocab_size=32000, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=blocks,
            num_attention_heads=heads, num_key_value_heads=key_heads, max_position_embeddings=4096,
        )  # fmt: skip
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
        for methods in (["wanda"], ["sparsegpt", "gptq"]):
            costs = list(walk_costs(model, methods, (128, 2048), torch.float16, 4096).values())
            device, host, files = (
                memory_needed(model, torch.float16, layout, True, costs, whole_logits=True) for layout in LAYOUTS
            )
            assert not sum(device.host.values())
            figures = [
                on_device(device),
                *(sum(part.values()) for one in (host, files) for part in (one.device, one.host)),
            ]
            label = {"wanda": "Wanda", "sparsegpt": "SparseGPT, GPTQ"}[methods[0]]
            computed.append([name, label, *(f"{figure / 1e9:.1f}" for figure in figures)])
        wanda = list(walk_costs(model, ["wanda"], (128, 2048), torch.float16, 4096).values())
        scores, perplexity = (
            on_device(memory_needed(model, torch.float16, "device", True, wanda, whole_logits=whole))
            for whole in (False, True)
        )
        keys.append(f"{(scores - perplexity) / 1e9:.1f} GB")
    assert rows[1:] == computed
    more = "{} more on the device for 7B, {} for 13B, {} for 70B".format(*keys)
    assert more in " ".join(section.split())
