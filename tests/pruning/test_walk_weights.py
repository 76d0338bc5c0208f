"""The walk over decoder blocks: in which order it compresses a block's weights, and what it makes of each."""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedModel

from pruning.block_calls import NotReplayedError, split_call
from pruning.blocks import LoadedBlocks
from pruning.layers import decoder_blocks, decoder_weights
from pruning.replay import Replay
from pruning.walk import compress_blocks, visit_blocks

WINDOWS = torch.arange(24).view(2, 12)


@pytest.fixture
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def test_true_sequential_follows_the_order_of_use_and_not_that_of_the_modules(model: PreTrainedModel):
    for block in decoder_blocks(model)[1]:
        block._modules = dict(reversed(block._modules.items()))  # the MLP before attention
    seen: list[str] = []
    compress_blocks(model, WINDOWS, lambda W, X, name: seen.append(name) or W, "sq_norms", true_sequential=True)
    used = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert [name.split(".")[-2] for name in seen] == used * 2


def test_a_weight_that_a_mask_drops_is_zero_without_a_sign(model: PreTrainedModel):
    weight = decoder_blocks(model)[1][0].mlp.up_proj.weight
    before, keep = weight.detach().clone(), torch.arange(128).view(16, 8) % 2 == 0
    assert (before[~keep] < 0).any()
    compress_blocks(model, None, lambda W, X, name: keep if name.endswith("0.mlp.up_proj.weight") else W)
    assert torch.equal(weight[keep], before[keep])
    assert not weight[~keep].any() and not weight[~keep].signbit().any()


def test_a_weight_of_the_dense_model_that_is_no_number_is_named(model: PreTrainedModel):
    decoder_blocks(model)[1][1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: the weight holds NaN"):
        visit_blocks(model, WINDOWS, lambda index, weights, found: None, "sq_norms")


def test_inputs_of_every_expert_are_seen_however_the_model_computes_experts():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=8, num_local_experts=2, num_experts_per_tok=2,
    )  # fmt: skip
    model, seen = AutoModelForCausalLM.from_config(config).eval(), []
    model.set_experts_implementation("batched_mm")
    before = model.get_experts_implementation()
    compress_blocks(model, WINDOWS, lambda W, X, name: seen.append((name, X.num_tokens)) or W, "sq_norms")
    assert dict(seen) == dict.fromkeys(decoder_weights(model), WINDOWS.numel())
    assert model.get_experts_implementation() == before


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3, 4)])
def test_hidden_states_of_another_form_are_not_replayed(shape: tuple[int, ...]):
    with pytest.raises(NotReplayedError, match=r"does not take hidden states \(batch, tokens, features\) first"):
        split_call("Block", (torch.zeros(shape),), {})


@torch.no_grad()
def test_windows_that_a_block_has_computed_are_not_computed_again_where_memory_runs_out(model: PreTrainedModel):
    blocks, tokens = decoder_blocks(model)[1], torch.arange(48).view(4, 12) % 40
    plain, halved = (Replay(model, LoadedBlocks(blocks), tokens, 24, "no") for _ in range(2))
    plain.advance(0, blocks[0])
    forward, calls = blocks[0].forward, itertools.count()

    def short_of_memory(*args: object, **kwargs: object) -> object:
        if next(calls) == 1:  # the second batch of two windows
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **kwargs)

    blocks[0].forward = short_of_memory
    halved.advance(0, blocks[0])
    assert next(calls) == 4  # two windows, none, and then one by one the other two
    torch.testing.assert_close(halved.hidden, plain.hidden)
