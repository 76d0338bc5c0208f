import contextlib

import numpy as np
import pytest
import torch
from conftest import slow_cases
from tiny_models import VOCABULARY, continuations, make_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.models.llama import modeling_llama

from llm_tasks.engine import feed, fused_layers, packing
from llm_tasks.engine.log_likelihood import log_likelihoods
from llm_tasks.engine.proof import scoring_ways
from llm_tasks.engine.ways import PLAIN


def wide_model(**changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, **changes,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()


@pytest.fixture(params=["matrices", "vectors"], autouse=True)
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the processor multiplies bf16 in, whatever this one does."""
    monkeypatch.setattr(fused_layers, "_has_vector_bf16_only", lambda: request.param == "vectors")
    return request.param


TOKENS = range(1, 30)


def all_replacements(model: PreTrainedModel) -> list[fused_layers.Replacement]:
    return fused_layers.replacements(model, fused_layers.proven(model, TOKENS))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"LlamaRMSNorm", "LlamaMLP", "apply_rotary_pos_emb"}),
        ("qwen2", {"Qwen2RMSNorm", "Qwen2MLP", "apply_rotary_pos_emb"}),
        # Its norm is another formula, (1 + weight); its MLP has another activation.
        ("gemma3", {"apply_rotary_pos_emb"}),
        ("gpt2", set()),
    ],
)
def test_layers_that_compute_the_same_are_proven(name: str, expected: set[str], units: str):
    attention = {"attention"} if units == "vectors" else set()
    assert set(fused_layers.proven(make_model(name).to(torch.bfloat16), TOKENS)) == expected | attention


@pytest.mark.parametrize("kind", ["norm", "gate", "sign"])
def test_layers_that_look_the_same_and_compute_something_else_are_not(kind: str, monkeypatch: pytest.MonkeyPatch):
    """As NanoChat's, whose rotary embedding has Llama's form and turns the other way."""
    model, own = wide_model(), modeling_llama.apply_rotary_pos_emb
    if kind == "norm":
        norm = modeling_llama.LlamaRMSNorm.forward
        monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda self, hidden: norm(self, hidden) * 1.02)
    elif kind == "gate":

        def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * (self.up_proj(x) + 0.1))

        monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", forward)
    else:
        monkeypatch.setattr(
            modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin, unsqueeze_dim=1: own(q, k, cos, -sin)
        )
    left_out = {"norm": "LlamaRMSNorm", "gate": "LlamaMLP", "sign": "apply_rotary_pos_emb"}[kind]
    everything = {"LlamaRMSNorm", "LlamaMLP", "apply_rotary_pos_emb"}
    assert set(fused_layers.proven(model, TOKENS)) - {"attention"} == everything - {left_out}


def test_units_are_read_from_what_torch_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    for found, expected in [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": True, "amx_bf16": True}, False),
        ({"avx512_bf16": False, "amx_bf16": False}, False),
        ({}, False),  # of another architecture
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        assert fused_layers._has_vector_bf16_only() is expected


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "gelu"}, {"attention_bias": True, "mlp_bias": True}])
def test_a_model_computes_the_same(changes: dict[str, object]):
    model, ids = wide_model(**changes), torch.arange(24).view(2, 12)
    faster = all_replacements(model)
    with torch.no_grad():
        expected = model(ids).logits
        with fused_layers.replaced(faster):
            found = model(ids).logits
    # Nearly all sums of squares are the same in any order; where one is not, a number moves by a rounding, 2^-8 of it,
    # which the layers behind it pass on: a dozen roundings for the few.
    assert (found == expected).float().mean() > 0.9
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


def test_every_function_is_put_back_even_after_an_error():
    model = wide_model()
    kept, mlp = modeling_llama.apply_rotary_pos_emb, model.model.layers[0].mlp
    with contextlib.suppress(KeyError), fused_layers.replaced(all_replacements(model)):
        assert "forward" in vars(mlp) and modeling_llama.apply_rotary_pos_emb is not kept
        raise KeyError
    assert "forward" not in vars(mlp) and modeling_llama.apply_rotary_pos_emb is kept


def test_another_model_of_the_kind_in_float32_is_left_as_it_was():
    model, other, ids = wide_model(), wide_model().float(), torch.arange(12)[None]
    faster = all_replacements(model)
    with torch.no_grad():
        expected = other(ids).logits
        with fused_layers.replaced(faster):
            assert torch.equal(other(ids).logits, expected)


@pytest.mark.parametrize("name", ["gemma3", "gpt2", *slow_cases("llama", "qwen2")])
def test_scores_in_bf16_are_those_of_the_models_own_layers(name: str):
    model, asked = make_model(name).to(torch.bfloat16), continuations()
    found = log_likelihoods(model, asked, tokens_per_batch=64)
    ways = scoring_ways(model, packing.distinct_reads(asked))._replace(compiles=())
    own = log_likelihoods(model, asked, tokens_per_batch=64, ways=ways)
    # Roundings as above; logits that a formula of another kind had made would differ by whole nats.
    np.testing.assert_allclose(found.log_likelihood, own.log_likelihood, rtol=0.02, atol=0.02)
    assert (found.first_token == own.first_token).mean() > 0.9


@pytest.mark.parametrize("name", ["llama", *slow_cases("gemma3")])
def test_rows_of_many_blocks_change_no_score(name: str, monkeypatch: pytest.MonkeyPatch):
    model, asked = make_model(name).to(torch.bfloat16), continuations(subjects=2, questions=12, prefix=9)
    monkeypatch.setattr(packing, "BLOCK_COST", 0)
    found = log_likelihoods(model, asked, tokens_per_batch=10**6)
    apart = log_likelihoods(model, asked, tokens_per_batch=1, ways=PLAIN)
    np.testing.assert_allclose(found.log_likelihood, apart.log_likelihood, rtol=0.02, atol=0.02)
    assert (found.first_token == apart.first_token).mean() > 0.9


def test_many_logits_that_are_stored_keep_rows_short(monkeypatch: pytest.MonkeyPatch, units: str):
    model, lengths = make_model("llama").to(torch.bfloat16), []
    pack, asked = feed.pack_in_blocks, continuations(1, 2)
    ways = scoring_ways(model, packing.distinct_reads(asked))
    monkeypatch.setattr(feed, "pack_in_blocks", lambda reads, length: lengths.append(length) or pack(reads, length))
    log_likelihoods(model, asked, tokens_per_batch=2048, ways=ways)
    log_likelihoods(model, asked, tokens_per_batch=2048, ways=ways._replace(projects=False))
    assert lengths == ([1024, 512] if units == "vectors" else [])


@pytest.fixture
def own_attention(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for every time that torch's own attention is called."""
    called = []
    own = fused_layers._torch_attention
    monkeypatch.setattr(
        fused_layers, "_torch_attention", lambda *given, **more: called.append("own") or own(*given, **more)
    )
    return called


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def seen(rows: int, queries: int, keys: int) -> torch.Tensor:
    """A mask with other keys hidden in every row; all queries see the first."""
    hidden = torch.rand(rows, 1, queries, keys, generator=torch.Generator().manual_seed(0)) < 0.5
    hidden[..., 0] = False
    return torch.zeros(rows, 1, queries, keys).masked_fill_(hidden, torch.finfo(torch.bfloat16).min).bfloat16()


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("keys", [9, 21])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_attention_is_torchs_to_rounding(groups: int, keys: int, scale: float | None, own_attention: list[str]):
    # As layers have them: tokens before heads.
    query = drawn(3, 9, 6, 16).transpose(1, 2)
    key, value = (drawn(3, keys, groups, 16, seed=seed).transpose(1, 2) for seed in (1, 2))
    given = query, key, value, seen(3, 9, keys)
    found = fused_layers._attention(*given, scale=scale, enable_gqa=True)
    exact = nn.functional.scaled_dot_product_attention(*(some.double() for some in given), scale=scale, enable_gqa=True)
    assert not own_attention
    # Scores up to about 10 are rounded by 2^-9 of them, which moves a weight by 2 %; weights sum to 1.
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.05)
    # What is attended to has a spread of 1; so many such roundings of both signs cancel to a hundredth of it.
    assert (found.double() - exact).abs().mean() < 0.01


def test_attention_in_blocks_is_that_of_whole_rows(own_attention: list[str]):
    query, key, value = drawn(2, 6, 24, 16), drawn(2, 2, 24, 16, seed=1), drawn(2, 2, 24, 16, seed=2)
    bounds = [[(0, 9), (9, 20)], [(0, 24)]]  # the first row has four places of padding
    mask = torch.full((2, 1, 24, 24), torch.finfo(torch.bfloat16).min).bfloat16()
    for row, own in enumerate(bounds):
        for first, last in own:
            mask[row, 0, first:last, first:last] = seen(1, last - first, last - first)[0, 0]
            mask[row, 0, range(first, last), range(first, last)] = 0
    # The first block goes on into the second, and the last one beyond the row.
    blocks = [(0, slice(0, 16)), (0, slice(9, 20)), (1, slice(0, 32))]
    with fused_layers.in_blocks(blocks):
        found = fused_layers._attention(query, key, value, mask, enable_gqa=True)
    whole = fused_layers._attention(query, key, value, mask, enable_gqa=True)
    assert not own_attention
    # The same weights, summed in another order: one rounding of what they sum to.
    torch.testing.assert_close(found[0, :, :20], whole[0, :, :20], rtol=2**-7, atol=2**-8)
    torch.testing.assert_close(found[1], whole[1], rtol=2**-7, atol=2**-8)
    assert (found[0, :, 20:] == 0).all()


def test_other_attention_is_left_to_torch(own_attention: list[str], monkeypatch: pytest.MonkeyPatch):
    query, key = drawn(2, 4, 5, 8), drawn(2, 2, 5, 8)
    mask = seen(2, 5, 5)
    for given, more in [
        ((query, query, query), {"is_causal": True}),
        ((query, query, query), {}),
        ((query, query, query, mask.expand(2, 4, 5, 5)), {}),
        ((query, query, query, mask == 0), {}),
        ((query.float(), query.float(), query.float(), mask.float()), {}),
        ((query, key, drawn(2, 2, 5, 6), mask), {"enable_gqa": True}),
        ((query[0], query[0], query[0], mask[0]), {}),
    ]:
        own_attention.clear()
        found = fused_layers._attention(*given, **more)
        assert own_attention
        assert torch.equal(found, nn.functional.scaled_dot_product_attention(*given, **more))
    own_attention.clear()
    monkeypatch.setattr(fused_layers, "MOST_SCORES", 4 * 5 * 5 - 1)
    fused_layers._attention(query, key, key, mask, enable_gqa=True)
    assert own_attention


def test_scoring_in_bf16_replaces_layers_while_it_computes_and_only_then(monkeypatch: pytest.MonkeyPatch):
    norms = []
    own = fused_layers._norm
    monkeypatch.setattr(fused_layers, "_norm", lambda *given: norms.append(1) or own(*given))
    log_likelihoods(wide_model(), continuations(1, 2), tokens_per_batch=10**6)
    assert norms
    norms.clear()
    log_likelihoods(wide_model().float(), continuations(1, 2), tokens_per_batch=10**6)
    assert not norms
