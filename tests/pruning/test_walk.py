"""The walk over decoder blocks: every block is replayed as the model itself runs it, in every architecture."""

import weakref

import pytest
import torch
from conftest import decoder_configs, slow_cases
from plain_twins import GEMMA4, SIZE, more_configs, plain_input_sq_norms, walked_input_sq_norms
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma4TextConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    PreTrainedModel,
)

from llm_tasks.engine.window_losses import measured_in_memory
from llm_tasks.methods import METHODS, Options, Strength
from pruning import walk
from pruning.blocks import LoadedBlocks
from pruning.layers import block_weights, decoder_blocks, decoder_weights
from pruning.replay import Call, NotReplayedError, Replay, check_replayed, run_block
from pruning.walk import InputStatistics, Statistic, collect_statistics, compress_blocks, walk_cost

ARCHITECTURES = decoder_configs()
MORE = more_configs()
PRUNERS = [name for name, method in METHODS.items() if "sparsity" in method.strengths]
WINDOWS = torch.randint(3, 40, (5, 12), generator=torch.Generator().manual_seed(0))


def decoder(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]).eval()


def own_hidden_states(model: PreTrainedModel, windows: Tensor) -> list[Tensor]:
    """What enters every block and what leaves the last, in the model's own forward pass."""
    blocks = decoder_blocks(model)[1]
    seen: list[Tensor] = []
    handles = [block.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in blocks]
    last = lambda *call: seen.append(call[2] if isinstance(call[2], Tensor) else call[2][0])  # noqa: E731
    handles.append(blocks[-1].register_forward_hook(last))
    with torch.no_grad():
        model(windows, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_replayed_blocks_equal_the_models_own_forward_bit_for_bit(architecture: str):
    model = decoder(architecture)
    batches = WINDOWS.split(2)  # the last one is ragged
    own = [torch.cat(states) for states in zip(*(own_hidden_states(model, batch) for batch in batches), strict=True)]
    blocks = decoder_blocks(model)[1]
    replay = Replay(model, LoadedBlocks(blocks), WINDOWS, tokens_per_batch=24, precision="no")
    for index, block in enumerate(blocks):
        assert torch.equal(replay.hidden, own[index])
        replay.advance(index, block)
    assert torch.equal(replay.hidden, own[-1])
    logits = torch.cat([logits for _, logits in replay.logits()])
    assert torch.equal(logits, torch.cat([model(batch, use_cache=False).logits for batch in batches]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("strength", [Strength("sparsity", 0.375), Strength("nm_ratio", "1:4")], ids=lambda s: s.label)
def test_every_weight_reaches_its_sparsity_exactly(architecture: str, name: str, strength: Strength):
    model = decoder(architecture)
    others = {key: value.clone() for key, value in model.state_dict().items()}
    method = METHODS[name]
    compress_blocks(model, WINDOWS, lambda W, X, _: method.compress(W, X, strength, Options()), method.statistic)
    for key, weight in decoder_weights(model).items():
        zeros = int((weight.matrix == 0).sum())
        assert zeros == round(strength.requested_sparsity * weight.matrix.numel()), key
        others.pop(key.partition("[")[0], None)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in others.items())
    assert torch.isfinite(model(WINDOWS).logits).all()


def test_windows_attend_causally_without_a_dense_mask(monkeypatch: pytest.MonkeyPatch):
    """In calibration as in perplexity all windows are of one length: kernels need no mask of tokens by tokens."""
    masks, attend = [], torch.nn.functional.scaled_dot_product_attention

    def seen(*states: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, **more: object) -> Tensor:
        masks.append((attn_mask, is_causal))
        return attend(*states, attn_mask=attn_mask, is_causal=is_causal, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    model = decoder("llama")
    compress_blocks(model, WINDOWS, lambda W, inputs, name: W, "sq_norms")
    measured_in_memory(model, WINDOWS, 24, "no")
    assert len(masks) > 3 and set(masks) == {(None, True)}


def test_layers_with_the_same_inputs_share_one_statistic():
    model = decoder("llama")
    blocks = decoder_blocks(model)[1]
    replay = Replay(model, LoadedBlocks(blocks), WINDOWS, 60, "no")
    with torch.no_grad():
        found = collect_statistics(replay, 0, blocks[0], block_weights(blocks[0], "b"), "hessian")
    groups: dict[int, list[str]] = {}
    for name, statistics in found.items():
        groups.setdefault(id(statistics), []).append(name.split(".")[-2])
    assert list(groups.values()) == [
        ["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]
    ]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("tokens_per_batch", [12, 24, 60])
def test_statistics_equal_those_of_the_inputs_seen_in_a_whole_forward(architecture: str, tokens_per_batch: int):
    model = decoder(architecture)
    name, blocks = decoder_blocks(model)
    replay = Replay(model, LoadedBlocks(blocks), WINDOWS, tokens_per_batch, "no")
    replay.advance(0, blocks[0])
    weights = [weight for weight in block_weights(blocks[1], f"{name}.1") if weight.expert is None]
    found = collect_statistics(replay, 1, blocks[1], weights, "hessian")
    for weight in weights:
        seen: list[Tensor] = []
        handle = weight.module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        model(WINDOWS, use_cache=False)
        handle.remove()
        inputs = torch.cat([part.flatten(0, -2) for part in seen]).double()
        torch.testing.assert_close(found[weight.name].hessian.double(), inputs.T @ inputs, rtol=1e-4, atol=1e-4)
        norms = collect_statistics(replay, 1, blocks[1], [weight], "sq_norms")[weight.name]
        torch.testing.assert_close(norms.sq_norms.double(), inputs.square().sum(0), rtol=1e-4, atol=1e-4)
        assert norms.num_tokens == found[weight.name].num_tokens == 60


@torch.no_grad()
def test_an_expert_is_calibrated_on_the_tokens_routed_to_it():
    model = decoder("mixtral")
    blocks = decoder_blocks(model)[1]
    weights = block_weights(blocks[0], "b")
    model.set_experts_implementation("eager")
    replay = Replay(model, LoadedBlocks(blocks), WINDOWS, 60, "no")
    found = collect_statistics(replay, 0, blocks[0], weights, "sq_norms")
    routed = [found[f"b.mlp.experts.gate_up_proj[{expert}]"].num_tokens for expert in range(3)]
    assert sum(routed) == 2 * WINDOWS.numel()  # each token goes to two of three experts
    assert routed == [found[f"b.mlp.experts.down_proj[{expert}]"].num_tokens for expert in range(3)]


def test_blocks_see_what_the_compressed_blocks_before_them_deliver():
    model, twin = decoder("llama"), decoder("llama")
    method = METHODS["wanda"]
    norms: dict[str, Tensor] = {}

    def compress(W: Tensor, inputs: InputStatistics, name: str) -> Tensor:
        norms[name] = inputs.sq_norms.clone()
        return method.compress(W, inputs, Strength("sparsity", 0.5), Options())

    compress_blocks(model, WINDOWS, compress, "sq_norms")
    compressed, dense = decoder_blocks(model)[1], decoder_blocks(twin)[1]
    hidden = own_hidden_states(model, WINDOWS)[2]
    normed = dense[2].input_layernorm(hidden).flatten(0, 1)  # the third block's layers saw two compressed blocks
    torch.testing.assert_close(norms["model.layers.2.self_attn.q_proj.weight"], normed.square().sum(0))
    assert not torch.equal(compressed[0].mlp.down_proj.weight, dense[0].mlp.down_proj.weight)


def test_true_sequential_takes_statistics_after_the_layers_before_in_the_block():
    seen: dict[bool, dict[str, Tensor]] = {}
    for true_sequential in (False, True):
        norms = seen.setdefault(true_sequential, {})

        def compress(W: Tensor, inputs: InputStatistics, name: str, norms: dict = norms) -> Tensor:
            norms[name] = inputs.sq_norms.clone()
            return torch.zeros_like(W) if "v_proj" in name else W

        compress_blocks(decoder("llama"), WINDOWS, compress, "sq_norms", true_sequential=true_sequential)
    first = "model.layers.0.self_attn."
    assert torch.equal(seen[False][first + "q_proj.weight"], seen[True][first + "q_proj.weight"])
    assert seen[False][first + "o_proj.weight"].any()
    assert not seen[True][first + "o_proj.weight"].any()  # all values are gone by then


@pytest.mark.parametrize("tokens_per_batch", [*slow_cases(4), 64])
def test_true_sequential_reaches_every_expert_in_whatever_batch_its_tokens_are(tokens_per_batch: int):
    """Each token goes to two of eight experts, so that four tokens leave some to later batches."""
    windows = torch.randint(3, 40, (16, 4), generator=torch.Generator().manual_seed(0))
    model = AutoModelForCausalLM.from_config(MixtralConfig(**SIZE, num_local_experts=8, num_experts_per_tok=2))
    inputs_of: dict[str, InputStatistics] = {}

    def compress(W: Tensor, inputs: InputStatistics, name: str) -> Tensor:
        inputs_of[name] = inputs
        return torch.zeros_like(W) if "gate_up_proj" in name else W

    compress_blocks(model, windows, compress, "sq_norms", true_sequential=True, tokens_per_batch=tokens_per_batch)
    assert inputs_of.keys() == decoder_weights(model).keys()
    experts = [f"model.layers.0.mlp.experts.{{}}_proj[{expert}]" for expert in range(8)]
    assert sum(inputs_of[name.format("gate_up")].num_tokens for name in experts) == 2 * windows.numel()
    assert not any(inputs_of[name.format("down")].sq_norms.any() for name in experts)  # gate and up are zero by then


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "gptq"])
def test_a_single_window_at_a_time_gives_the_same_weights_up_to_rounding(name: str):
    method = METHODS[name]
    strength = Strength("bits", 4) if name == "gptq" else Strength("nm_ratio", "2:4")
    found = []
    for tokens_per_batch in (1, 10**6):
        model = decoder("llama")
        compress_blocks(
            model, WINDOWS, lambda W, X, _: method.compress(W, X, strength, Options()), method.statistic,
            tokens_per_batch=tokens_per_batch,
        )  # fmt: skip
        found.append(decoder_weights(model)["model.layers.0.mlp.up_proj.weight"].matrix)
    assert (found[0] - found[1]).abs().max() < 1e-5


def test_nothing_of_the_model_is_left_changed_but_its_weights():
    model = decoder("mixtral").train()
    before = model.get_experts_implementation()
    compress_blocks(model, WINDOWS, lambda W, X, name: W, "hessian")
    assert model.training
    assert model.get_experts_implementation() == before
    assert not any("forward" in vars(block) for block in decoder_blocks(model)[1])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, decoder("mixtral").state_dict()[key]) for key, value in model.state_dict().items())


def test_a_method_without_statistics_needs_no_windows():
    model = decoder("opt")
    compress_blocks(model, None, lambda W, inputs, name: torch.zeros_like(W))
    assert not any(weight.matrix.any() for weight in decoder_weights(model).values())


@torch.no_grad()
def test_bf16_products_of_a_float32_model_have_float32_statistics_of_the_inputs_that_they_read():
    model, norms, inputs = decoder("llama"), {}, {}

    def compress(W: Tensor, found: InputStatistics, name: str) -> Tensor:
        assert W.dtype == found.hessian.dtype == torch.float32
        norms[name] = found.sq_norms.clone()
        return W

    compress_blocks(model, WINDOWS, compress, "hessian", precision="bf16")
    for name, weight in decoder_weights(model).items():
        weight.module.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0].bfloat16()))
    with torch.autocast("cpu", torch.bfloat16):
        model(WINDOWS, use_cache=False)
    for name, rounded in inputs.items():
        torch.testing.assert_close(norms[name], rounded.float().square().sum((0, 1)), rtol=1e-5, atol=1e-6)


def test_squares_of_bf16_inputs_are_summed_in_float32():
    walk.add_sq_norms(sums := torch.zeros(1), torch.full((300, 1), 1.0078125, dtype=torch.bfloat16))
    assert sums.item() == 300 * 1.0078125**2


@pytest.fixture
def abs_products(monkeypatch: pytest.MonkeyPatch) -> str:
    """A third statistic, one entry of STATISTICS: |X|^T |X| of neighbouring inputs, (2, in_features - 1)."""

    def add(total: Tensor, X: Tensor) -> None:
        left, right = X.float()[:, :-1].abs(), X.float()[:, 1:].abs()
        total += torch.stack([(left * right).sum(0), left.sum(0)])

    entry = Statistic(lambda in_features: (2, in_features - 1), add)
    monkeypatch.setitem(walk.STATISTICS, "abs_products", entry)
    return "abs_products"


def test_another_statistic_is_summed_as_its_entry_says(abs_products: str):
    inputs = InputStatistics(abs_products, 3, torch.device("cpu"))
    inputs.add(torch.tensor([[[1.0, -2.0, 3.0]], [[0.0, 5.0, -1.0]]], dtype=torch.bfloat16))
    inputs.add(torch.tensor([[-1.0, 1.0, 1.0]]))
    assert inputs.num_tokens == 3
    assert inputs.sum_of(abs_products).tolist() == [[2 + 0 + 1, 6 + 5 + 1], [1 + 0 + 1, 2 + 5 + 1]]
    for read in (lambda: inputs.sq_norms, lambda: inputs.hessian, lambda: inputs.inverse_factor(0.01)):
        with pytest.raises(ValueError, match=r"the method reads the statistic '.*', but 'abs_products' was collected"):
            read()
    with pytest.raises(ValueError, match="reads the statistic 'abs_products', but 'hessian' was collected"):
        InputStatistics("hessian", 3, torch.device("cpu")).sum_of(abs_products)


@torch.no_grad()
def test_a_walk_collects_another_statistic(abs_products: str):
    model, name = decoder("llama"), "model.layers.0.mlp.down_proj.weight"
    seen: dict[str, Tensor] = {}

    def compress(W: Tensor, inputs: InputStatistics, name: str) -> Tensor:
        seen[name] = inputs.sum_of(abs_products)
        return W

    compress_blocks(decoder("llama"), WINDOWS, compress, abs_products, true_sequential=True, tokens_per_batch=24)
    assert seen.keys() == decoder_weights(model).keys()
    tokens: list[Tensor] = []
    layer = decoder_blocks(model)[1][0].mlp.down_proj
    layer.register_forward_pre_hook(lambda _, args: tokens.append(args[0].flatten(0, -2).abs()))
    model(WINDOWS, use_cache=False)
    torch.testing.assert_close(seen[name][0], (tokens[0][:, :-1] * tokens[0][:, 1:]).sum(0))


@pytest.mark.parametrize("statistic", ["sq_norms", "hessian", "abs_products"])
@pytest.mark.parametrize("broken", ["weight", "inputs"])
def test_nan_names_the_layer(broken: str, statistic: str, abs_products: str):
    model = decoder("llama")
    block = decoder_blocks(model)[1][1]
    (block.mlp.up_proj if broken == "weight" else block.post_attention_layernorm).weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.(gate|up)_proj\.weight: .*(NaN|not finite)"):
        compress_blocks(model, WINDOWS, lambda W, X, _: W, statistic)


def test_a_sum_that_overflows_is_refused_though_every_input_is_finite():
    model = decoder("llama")
    decoder_blocks(model)[1][0].post_attention_layernorm.weight.data.fill_(1e30)
    with pytest.raises(ValueError, match=r"mlp\.(gate|up)_proj\.weight: its inputs are NaN or infinite"):
        compress_blocks(model, WINDOWS, lambda W, X, _: W, "hessian")


def test_an_expert_that_no_token_reaches_is_named():
    model = decoder("mixtral")
    block = decoder_blocks(model)[1][0]
    block.mlp.gate.weight.data[2] = 0
    block.mlp.gate.weight.data[:2] = block.mlp.gate.weight.data[:2].abs() * 100
    block.post_attention_layernorm.weight.data.abs_()
    block.mlp.gate.forward = lambda hidden: (
        torch.zeros(len(hidden), 3), torch.full((len(hidden), 2), 0.5), torch.tensor([[0, 1]] * len(hidden))
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"experts\.(gate_up|down)_proj\[2\]: no calibration token reached it; cal"):
        compress_blocks(model, WINDOWS, lambda W, X, name: W, "sq_norms")


def test_cost_of_a_walk_by_hand(monkeypatch: pytest.MonkeyPatch):
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # q, o: 8x8; k, v: 4x8; gate, up: 16x8; down: 8x16 -> 576 weights; q, k, v share an input, and gate and up
    norms = walk_cost(model, (10, 5), "sq_norms", torch.bfloat16)
    assert norms.flops == 2 * 50 * 2 * (2 * 576)
    assert walk_cost(model, (10, 5), "hessian", torch.bfloat16).flops == 2 * 50 * 2 * (2 * 576 + 3 * 64 + 256)
    # a method without statistics: a float32 copy of the largest weight and the new one, scores and masks, tables
    assert walk_cost(model, (10, 5), None, torch.bfloat16).bytes == 16 * 8 * (4 + 2 + 10) + 2**21
    monkeypatch.setitem(walk.STATISTICS, "pairs", Statistic(lambda size: (3, size), lambda total, X: None))
    pairs = walk_cost(model, (10, 5), "pairs", torch.bfloat16)
    assert pairs.flops == 2 * 50 * 2 * (2 * 576 + 3 * 24 + 48)
    assert pairs.bytes - norms.bytes == 4 * (3 - 1) * (3 * 8 + 16)  # three sums of every input in the place of one
    assert norms.measured_flops_per_second(torch.device("cpu")) > 0


def test_statistics_are_freed_one_by_one():
    """Once its last weight is compressed, nothing keeps the statistic of an input."""
    alive = []

    def compress(W: torch.Tensor, inputs: InputStatistics, name: str) -> torch.Tensor:
        alive.append(sum(reference() is not None for reference in references))
        if all(reference() is not inputs for reference in references):
            references.append(weakref.ref(inputs))
        return W

    references: list[weakref.ref] = []
    compress_blocks(decoder("llama"), WINDOWS, compress, "sq_norms")
    assert alive[:8] == [0, 1, 1, 0, 0, 1, 0, 0]  # q k v, o, gate up, down; q of the next block


def test_run_block_unwraps_tuples():
    hidden = torch.ones(1, 2, 3)
    assert run_block(lambda h: (h + 1, None), hidden, Call((), {})).equal(hidden + 1)
    assert run_block(lambda h: h + 1, hidden, Call((), {})).equal(hidden + 1)


def lively(config: object, seed: int = 0) -> PreTrainedModel:
    """A model whose weights are large enough for its blocks to change what they are given."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape) * 0.2)
    return model


def assert_walked_as_plain(model: PreTrainedModel, windows: Tensor = WINDOWS) -> None:
    plain, walked = plain_input_sq_norms(model, windows), walked_input_sq_norms(model, windows)
    assert plain.keys() == walked.keys() == decoder_weights(model).keys()
    for name, norms in plain.items():
        torch.testing.assert_close(walked[name], norms, rtol=1e-4, atol=1e-4 * float(norms.max()), msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES | MORE)
def test_statistics_of_every_weight_equal_those_of_plain_forwards(architecture: str):
    assert_walked_as_plain(lively((ARCHITECTURES | MORE)[architecture]))


@torch.no_grad()
def test_calls_that_depend_on_the_tokens_are_captured_for_each_batch():
    model = lively(MORE["gemma4_text more"])
    replay = Replay(model, LoadedBlocks(model.model.layers), WINDOWS, 24, "no")
    assert replay.calls_per_batch
    alike = torch.cat([WINDOWS, WINDOWS[:1].roll(6, 1)])  # the two windows that are tried get the same arguments
    assert Replay(model, LoadedBlocks(model.model.layers), alike, 24, "no").calls_per_batch
    with pytest.raises(AssertionError):  # which is what makes the difference
        own = own_hidden_states(model, WINDOWS[2:4])
        shared = Replay(model, LoadedBlocks(model.model.layers), WINDOWS[:4], 24, "no", calls="shared")
        shared.calls_per_batch = False
        shared.advance(0, model.model.layers[0])
        torch.testing.assert_close(shared.hidden[2:4], own[1])


def kv_sharing() -> PreTrainedModel:
    layers = ["sliding_attention", "full_attention"] * 2
    return lively(Gemma4TextConfig(**{**GEMMA4, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
                                      "layer_types": layers}))  # fmt: skip


def remembering() -> PreTrainedModel:
    """Each block adds what the block before it kept for it, where no argument shows it."""
    model = lively(ARCHITECTURES["llama"])
    kept: list[Tensor] = []

    def add(block: torch.nn.Module, args: tuple, output: Tensor) -> Tensor:
        if block.self_attn.layer_idx == 0:
            kept.clear()
        kept.append(output.mean((1, 2), keepdim=True))
        return output + kept[0]

    for block in model.model.layers:
        block.register_forward_hook(add)
    return model


def in_a_circle() -> PreTrainedModel:
    """All blocks are run twice."""
    model = lively(ARCHITECTURES["llama"])
    once = model.base_model.forward

    def twice(input_ids: Tensor | None = None, **options: object) -> object:
        first = once(input_ids, **options).last_hidden_state
        return once(**{**options, "inputs_embeds": first})

    model.base_model.forward = twice
    return model


@pytest.mark.parametrize("make", [kv_sharing, remembering, in_a_circle])
def test_blocks_that_cannot_be_run_alone_get_their_statistics_from_whole_forwards(make, caplog):
    model = make()
    with pytest.raises(NotReplayedError, match="cannot be run block by block, only as a whole and in memory"):
        Replay(model, LoadedBlocks(decoder_blocks(model)[1]), WINDOWS, 24, "no")
    with caplog.at_level("INFO", logger="pruning.walk"):
        assert_walked_as_plain(model)
    assert "statistics come from whole forward passes" in caplog.text
    with pytest.raises(NotReplayedError, match="cannot be run block by block"):
        check_replayed(model.bfloat16(), LoadedBlocks(decoder_blocks(model)[1]), "no")


def test_whole_forwards_see_the_blocks_that_are_compressed_already():
    model, norms = kv_sharing(), {}

    def note_and_zero(W: Tensor, inputs: InputStatistics, name: str) -> Tensor:
        norms[name] = inputs.sq_norms.double()
        return torch.zeros_like(W) if "layers.0." in name else W

    compress_blocks(model, WINDOWS, note_and_zero, "sq_norms")
    again = plain_input_sq_norms(model, WINDOWS)  # the first block is zero now
    for name in (name for name in norms if "layers.0." not in name):
        torch.testing.assert_close(norms[name], again[name], rtol=1e-4, atol=1e-4)


def test_a_layer_that_a_block_uses_twice_counts_both_times():
    model = lively(ARCHITECTURES["llama"])
    for block in model.model.layers:
        own = block.mlp.forward
        block.mlp.forward = lambda hidden, own=own: own(own(hidden))
    assert_walked_as_plain(model)


def test_blocks_that_return_float32_in_a_bf16_model_are_replayed_in_it():
    config = MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=3, state_size=4, residual_in_fp32=True)
    model = lively(config).bfloat16()
    blocks = decoder_blocks(model)[1]
    assert own_hidden_states(model, WINDOWS)[1].dtype == torch.float32
    check_replayed(model, LoadedBlocks(blocks), "no")


@torch.no_grad()
def test_the_proof_keeps_nothing():
    model = lively(ARCHITECTURES["mixtral"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_replayed(model, LoadedBlocks(decoder_blocks(model)[1]), "no")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(
        "forward" in vars(module) or module._forward_pre_hooks or module._forward_hooks for module in model.modules()
    )


def test_statistics_that_changed_have_another_number():
    """Gemma 4's blocks were once given the per-layer inputs of another window."""
    assert walk.arithmetic(LlamaConfig()) == 1
    assert walk.arithmetic(Gemma4TextConfig()) == 2
