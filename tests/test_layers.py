import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    ElectraConfig,
    GPT2Config,
    RobertaConfig,
)

from pruning.layers import prunable_weights

SMALL = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def model(config) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize(
    ("config", "linears"),
    [
        (RobertaConfig(**SMALL), 2 * 6),
        (BertConfig(**SMALL), 2 * 6 + 1),  # the pooler
        (ElectraConfig(**SMALL, embedding_size=8), 2 * 6 + 1),  # embeddings_project
        (DebertaV2Config(**SMALL), 2 * 6 + 1),  # the pooler
    ],
    ids=["roberta", "bert", "electra", "deberta"],
)
def test_encoder_linears_without_head_biases_and_norms(config, linears: int):
    encoder = model(config)
    new = {name for name, _ in encoder.named_parameters() if not name.startswith(f"{encoder.base_model_prefix}.")}
    new -= {"pooler.dense.weight", "pooler.dense.bias"}  # DeBERTa's stands outside the base model
    chosen = prunable_weights(encoder, new, include_embeddings=False)
    assert len(chosen) == linears
    assert all(weight.ndim == 2 for weight in chosen.values())
    with_head = prunable_weights(encoder, new, include_embeddings=False, include_new=True)
    assert set(with_head) > set(chosen)
    assert any("classifier" in name for name in set(with_head) - set(chosen))


def test_embeddings_join_when_asked():
    encoder = model(RobertaConfig(**SMALL))
    more = set(prunable_weights(encoder)) - set(prunable_weights(encoder, include_embeddings=False))
    assert more == {f"roberta.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")}


def test_conv1d_weights_are_found():
    gpt2 = model(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20))
    chosen = prunable_weights(gpt2, include_embeddings=False)
    assert sum("c_attn" in name or "c_fc" in name or "c_proj" in name for name in chosen) == 2 * 4


def test_a_shared_weight_is_listed_once():
    shared = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    shared[1].weight = shared[0].weight
    assert list(prunable_weights(shared)) == ["0.weight"]


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match="LayerNorm has no linear layer to prune"):
        prunable_weights(nn.LayerNorm(4))


@pytest.mark.network
def test_roberta_base_has_the_matrices_the_original_ranks_less_the_head():
    encoder = AutoModelForSequenceClassification.from_pretrained("roberta-base", use_safetensors=True)
    new = {name for name, _ in encoder.named_parameters() if name.startswith("classifier")}
    chosen = prunable_weights(encoder, new, include_embeddings=False)
    assert len(chosen) == 72
    assert sum(weight.numel() for weight in chosen.values()) == 84_934_656  # the original's 85,526,016 less the head
