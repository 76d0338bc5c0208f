import contextlib

import pytest
import torch
from architectures import tiny_config
from plain_twins import GEMMA4
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    ElectraConfig,
    Gemma4TextConfig,
    GPT2Config,
    PretrainedConfig,
    RobertaConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pruning.layers import (
    arithmetic,
    block_weights,
    decoder_blocks,
    decoder_weights,
    gates,
    prunable_weights,
    share_left_out,
)

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


TEXT = {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8}
TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16,
         "patch_size": 4}  # fmt: skip


def multimodal(kind: str, auto_class: type = AutoModelForCausalLM, text: dict | None = None, **towers) -> nn.Module:
    config = CONFIG_MAPPING[kind](text_config={**TEXT, **(text or {})}, **towers)
    with torch.device("meta"):
        return auto_class.from_config(config)


def other_lists(model: nn.Module, name: str) -> list[int]:
    """Lengths of the lists that are not the blocks'."""
    return [
        len(module)
        for key, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and key != name and not key.startswith(f"{name}.")
    ]


@pytest.mark.parametrize(
    ("kind", "auto_class", "text", "towers"),
    [
        ("gemma3", AutoModelForCausalLM, {}, {"vision_config": TOWER}),
        ("got_ocr2", AutoModelForCausalLM, {"model_type": "qwen2"},
         {"vision_config": {**TOWER, "output_channels": 16}}),
        ("moss_transcribe_diarize", AutoModelForCausalLM, {"model_type": "qwen3"},
         {"audio_config": {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24}}),
        ("llava", AutoModelForImageTextToText, {"model_type": "llama"}, {"vision_config": TOWER}),
        ("paligemma", AutoModelForImageTextToText, {"model_type": "gemma"}, {"vision_config": TOWER}),
        ("idefics3", AutoModelForImageTextToText, {"model_type": "llama"}, {"vision_config": TOWER}),
        ("qwen2_vl", AutoModelForImageTextToText, {}, {"vision_config": {"depth": 2, "embed_dim": 16, "num_heads": 2,
                                                                         "hidden_size": 16}}),
    ],
)  # fmt: skip
def test_blocks_of_a_multimodal_model_are_the_language_models(kind: str, auto_class: type, text: dict, towers: dict):
    twin = multimodal(kind, auto_class, text, **towers)
    name, blocks = decoder_blocks(twin)
    assert blocks is twin.get_decoder().layers
    assert len(blocks) in other_lists(twin, name)  # the tower's are as many
    assert all(key.startswith(f"{name}.") for key in decoder_weights(twin))


def test_blocks_are_not_counted_where_the_config_counts_something_else():
    nemotron = CONFIG_MAPPING["llama"](**TEXT)
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(nemotron)
    twin.model.heads = nn.ModuleList([nn.Linear(16, 10**6, device="meta")])  # more weights, but of another number
    assert decoder_blocks(twin)[0] == "model.layers"
    twin.model.heads = nn.ModuleList([nn.Linear(16, 16)])
    twin.config.num_hidden_layers = 7
    assert decoder_blocks(twin)[0] == "model.layers"
    twin.model.layers = nn.ModuleList([])
    twin.model.heads = nn.ModuleList([])
    with pytest.raises(ValueError, match="has no list of decoder blocks"):
        decoder_blocks(twin)


def test_blocks_that_share_a_weight_or_are_taken_apart_are_refused():
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**TEXT))
        xlm = AutoModelForCausalLM.from_config(CONFIG_MAPPING["xlm"](n_words=20, emb_dim=16, n_layers=2, n_heads=2))
    twin.model.layers[1].mlp.up_proj = twin.model.layers[0].mlp.up_proj
    with pytest.raises(ValueError, match=r"model\.layers\.0 and model\.layers\.1 share mlp\.up_proj\.weight"):
        decoder_blocks(twin)
    with pytest.raises(ValueError, match=r"in two lists, transformer\.attentions and transformer\.ffns"):
        decoder_blocks(xlm)


def test_vectors_and_convolutions_of_single_channels_are_no_matrices():
    block = nn.ModuleDict({"linear": nn.Linear(6, 4), "own": nn.Conv1d(4, 4, 3, groups=4), "norm": nn.Module()})
    for part in (block["linear"], block["norm"]):
        part.register_parameter("mix", nn.Parameter(torch.zeros(1, 1, 6)))
    assert [weight.name for weight in block_weights(block, "b")] == ["b.linear.weight"]
    block["all"] = nn.Conv1d(4, 4, 3)
    with pytest.raises(ValueError, match=r"b\.all\.weight \(Conv1d\) has the shape \[4, 4, 3\]"):
        block_weights(block, "b")


def test_matrices_that_are_no_layers_are_refused_beyond_a_quarter():
    """DBRX keeps all experts of a block in three parameters of two dimensions; mixers of residuals are few beside."""
    block = nn.ModuleDict({"linear": nn.Linear(6, 4), "table": nn.Embedding(40, 6), "part": nn.Module()})
    block["part"].register_parameter("mix", nn.Parameter(torch.zeros(2, 4)))
    assert share_left_out(block, [block["linear"].weight]) == (8 / 32, "part.mix")
    assert share_left_out(block, [block["linear"].weight], ["part.mix"]) == (0, "")
    assert [weight.name for weight in block_weights(block, "b")] == ["b.linear.weight"]
    block["part"].register_parameter("more", nn.Parameter(torch.zeros(3, 3)))
    with pytest.raises(ValueError, match=r"^b\.part\.more \(Module\) has the shape \[3, 3\]: neither a linear layer"):
        block_weights(block, "b")


@pytest.mark.parametrize(
    ("name", "message"),
    [("dbrx", r"transformer\.blocks\.0\.ffn\.experts\.mlp\.w1 \(DbrxExpertGLU\) has the shape \[96, 32\]"),
     ("gpt_oss", r"experts\.gate_up_proj \(GptOssExperts\) has the shape \[4, 32, 96\]"),
     ("deepseek_v4", None), ("mamba", None)],
)  # fmt: skip
def test_decoders_whose_weights_are_kept_in_another_layout_are_refused_by_name(name: str, message: str | None):
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(tiny_config(name))
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        decoder_weights(twin)


ROUTED = Gemma4TextConfig(**GEMMA4, enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=8)


@pytest.mark.parametrize(
    ("config", "gate"),
    [("phimoe", "mlp.router"), ("hunyuan_v1_moe", "mlp.gate.wg"), ("afmoe", "mlp.router.gate"), (ROUTED, "router.proj"),
     ("qwen2_moe", "mlp.shared_expert_gate"), ("qwen3_next", "mlp.shared_expert_gate"),
     ("qwen3_5_moe_text", "mlp.shared_expert_gate"),
     # routers that are no linear layers, and small layers that are no gates of experts
     ("mixtral", None), ("qwen3_moe", None), ("laguna", None), ("gemma3n_text", None), ("llama", None)],
    ids=lambda value: getattr(value, "model_type", value),
)  # fmt: skip
def test_gates_of_experts_stay_dense_and_change_the_number(config: str | PretrainedConfig, gate: str | None):
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(tiny_config(config) if isinstance(config, str) else config)
    name, blocks = decoder_blocks(twin)
    found = {key for block in blocks for key, module in block.named_modules() if module in gates(block)}
    assert found == ({gate} if gate else set())
    layers = {key for key, module in twin.named_modules() if isinstance(module, nn.Linear) and key.startswith(name)}
    left_out = layers - {key.rpartition(".")[0] for key in decoder_weights(twin)}
    assert {key.partition(".layers.")[2].partition(".")[2] for key in left_out} == found
    assert arithmetic(twin) == (2 if gate else 1)


def test_gates_of_experts_that_are_modules_are_found_by_name_and_size():
    """As in models that bring their own code; without experts, a layer of this name is like any other."""
    block = nn.ModuleDict({"gate": nn.Linear(6, 3), "gate_proj": nn.Linear(6, 3), "router": nn.Linear(6, 6)})
    assert gates(block) == []
    block["experts"] = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
    assert gates(block) == [block["gate"]]
    kept = [f"b.{name}.weight" for name in ("gate_proj", "router", "experts.0", "experts.1", "experts.2")]
    assert [weight.name for weight in block_weights(block, "b")] == kept
