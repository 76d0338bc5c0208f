"""The walk over decoder blocks: in which order it compresses a block's weights, and what it makes of each."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pruning.layers import decoder_blocks
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
