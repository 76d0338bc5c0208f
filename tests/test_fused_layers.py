import contextlib

import numpy as np
import pytest
import torch
from test_scoring import VOCABULARY, continuations, make_model
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.models.llama import modeling_llama

from llm_tasks import fused_layers, scoring
from llm_tasks.scoring import log_likelihoods


def wide_model(**changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, **changes,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()


def names(model: PreTrainedModel) -> set[str]:
    return {getattr(owner, "__name__", "") for owner, _, _ in fused_layers.replacements(model)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"LlamaRMSNorm", "LlamaMLP", "transformers.models.llama.modeling_llama"}),
        ("qwen2", {"Qwen2RMSNorm", "Qwen2MLP", "transformers.models.qwen2.modeling_qwen2"}),
        # Its norm is another formula, (1 + weight); its MLP has this code and another activation.
        ("gemma3", {"Gemma3MLP", "transformers.models.gemma3.modeling_gemma3"}),
        ("gpt2", set()),
    ],
)
def test_layers_with_llamas_code_are_found(name: str, expected: set[str]):
    assert names(make_model(name)) == expected


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "gelu"}, {"attention_bias": True, "mlp_bias": True}])
def test_a_model_computes_the_same(changes: dict[str, object]):
    model, ids = wide_model(**changes), torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected = model(ids).logits
        with fused_layers.replaced(fused_layers.replacements(model)):
            found = model(ids).logits
    # Nearly all sums of squares are the same in any order; where one is not, a number moves by a rounding, 2^-8 of it,
    # which the layers behind it pass on: a dozen roundings for the few.
    assert (found == expected).float().mean() > 0.9
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


def test_every_function_is_put_back_even_after_an_error():
    model = wide_model()
    kept = modeling_llama.LlamaRMSNorm.forward, modeling_llama.LlamaMLP.forward, modeling_llama.apply_rotary_pos_emb
    with contextlib.suppress(KeyError), fused_layers.replaced(fused_layers.replacements(model)):
        assert modeling_llama.LlamaMLP.forward is not kept[1]
        raise KeyError
    now = modeling_llama.LlamaRMSNorm.forward, modeling_llama.LlamaMLP.forward, modeling_llama.apply_rotary_pos_emb
    assert now == kept


def test_another_model_of_the_kind_in_float32_is_left_as_it_was():
    model, other, ids = wide_model(), wide_model().float(), torch.arange(12)[None]
    with torch.no_grad():
        expected = other(ids).logits
        with fused_layers.replaced(fused_layers.replacements(model)):
            assert torch.equal(other(ids).logits, expected)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "gpt2"])
def test_scores_in_bf16_are_those_of_the_models_own_layers(name: str, monkeypatch: pytest.MonkeyPatch):
    model, asked = make_model(name).to(torch.bfloat16), continuations()
    found = log_likelihoods(model, asked, tokens_per_batch=64)
    monkeypatch.setattr(scoring, "_in_one_pass", lambda model: contextlib.nullcontext)
    own = log_likelihoods(model, asked, tokens_per_batch=64)
    # Roundings as above; logits that a formula of another kind had made would differ by whole nats.
    np.testing.assert_allclose(found.log_likelihood, own.log_likelihood, rtol=0.02, atol=0.02)
    assert (found.first_token == own.first_token).mean() > 0.9


def test_scoring_in_bf16_replaces_layers_while_it_computes_and_only_then(monkeypatch: pytest.MonkeyPatch):
    norms = []
    own = fused_layers._norm
    monkeypatch.setattr(fused_layers, "_norm", lambda *given: norms.append(1) or own(*given))
    log_likelihoods(wide_model(), continuations(1, 2), tokens_per_batch=10**6)
    assert norms
    norms.clear()
    log_likelihoods(wide_model().float(), continuations(1, 2), tokens_per_batch=10**6)
    assert not norms
