"""Tiny random causal models of every architecture that transformers builds without further packages, and variants.

Variants are what checkpoints of one architecture differ in: windows, rotary embeddings that are scaled for long
contexts, positions that start elsewhere, layers without positions. Windows and boundaries lie below the lengths that
tests/test_architectures.py tries.
"""

import dataclasses
import inspect
import math
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WINDOW = 24  # tokens that a sliding layer sees
BOUNDARY = 64  # tokens up to which a rotary embedding is that of pretraining
TOKENS = 3, 90  # of texts: from, to; none of special meaning

SIZE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0, "moe_intermediate_size": 24, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "sliding_window": WINDOW, "is_decoder": True, "tie_word_embeddings": False,
}  # fmt: skip


class Architecture(NamedTuple):
    """A model type of transformers, and what its tiny config has besides SIZE."""

    model_type: str
    changes: dict[str, Any]


def _of(*model_types: str, **changes: Any) -> dict[str, Architecture]:
    return {kind: Architecture(kind, changes) for kind in model_types}


def _variants(model_type: str, **variants: dict[str, Any]) -> dict[str, Architecture]:
    return {f"{model_type}-{name}": Architecture(model_type, changes) for name, changes in variants.items()}


LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
          "num_key_value_heads": 4}  # fmt: skip
ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
INDEXED = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 32}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_expand": 2,
          "mamba_chunk_size": 16}  # fmt: skip
DELTA = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
         "num_hidden_layers": 4}  # fmt: skip
COMPRESSED = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}
SHARED_EXPERT = {"shared_expert_intermediate_size": 24}
SEQ2SEQ = {"d_model": 32, "decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_layers": 1,
           "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "is_encoder_decoder": False}  # fmt: skip
SLIDING = {"layer_types": ["sliding_attention"] * 3}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def rope(rope_type: str = "default", **more: Any) -> dict[str, Any]:
    """The part of a config that describes its rotary embedding."""
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **more}}


def long_rope(pairs: int, **more: float) -> dict[str, Any]:
    """Rotary embeddings of `pairs` frequencies that are others beyond BOUNDARY tokens."""
    short, long = ([start + step * pair for pair in range(pairs)] for start, step in ((1, 0.02), (2, 3)))
    return {
        "original_max_position_embeddings": BOUNDARY,
        **rope("longrope", short_factor=short, long_factor=long, original_max_position_embeddings=BOUNDARY, **more),
    }


SCALED = {
    "linear": rope("linear", factor=4.0),
    "dynamic": {**rope("dynamic", factor=4.0), "max_position_embeddings": BOUNDARY},
    "yarn": rope("yarn", factor=4.0, original_max_position_embeddings=BOUNDARY),
    "llama3": rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=BOUNDARY
    ),
    "longrope": long_rope(4),
}

DECODERS = {
    **_of(
        "apertus", "arcee", "aria_text", "bitnet", "cwm", "diffllama", "doge",
        "ernie4_5", "ernie4_5_moe", "flex_olmo", "gemma", "gemma2",
        "glm", "glm4", "glm4_moe", "gpt_oss", "granite", "granite_swa", "granitemoe", "granitemoe_swa",
        "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "internlm3",
        "jais2", "jetmoe", "llama", "mimo_v2_flash", "minimax_m2",
        "ministral3", "mistral", "mixtral", "modernbert-decoder", "nanochat", "nemotron", "olmo", "olmo2",
        "olmoe", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
        "solar_open", "stablelm", "starcoder2", "vaultgemma", "minimax_m3_vl_text", "iquestcoder",
    ),
    **_of("afmoe", "exaone4", "exaone_moe", "flint", "gemma3_text", "kolibri1", "laguna", "mellum", "ministral",
          "olmo3", **ALTERNATING),
    **_of("cohere", logit_scale=1.0),
    **_of("cohere2", "cohere2_moe", logit_scale=1.0, **ALTERNATING),
    **_of("qwen2_moe", **SHARED_EXPERT),
    **_of("bloom", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "gpt2", "gpt-sw3", "mpt", "openai-gpt", "opt",
          "biogpt", "falcon", "xlm"),
    **_of("ctrl", dff=48),
    **_of("xglm", ffn_dim=48),
    **_of("codegen", "gptj", rotary_dim=4),
    **_of("gpt_neo", attention_types=[[["global", "local"], 2]], num_layers=4, window_size=WINDOW),
    **_of("xlnet", d_inner=48, d_head=8, attn_type="uni"),
    **_of("dots1", **ROUTED),
    **_of("axk1", "axk2", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "youtu", **LATENT, **ROUTED,
          topk_method="greedy"),
    **_of("deepseek_v32", "glm_moe_dsa", "hy_v4", **LATENT, **ROUTED, **INDEXED),
    **_of("minicpm3", **LATENT, head_dim=16),
    **_of("dots3_note_text", **LATENT, **ROUTED, **INDEXED, shared_experts_intermediate_size=24, head_dim=16,
          swa_num_attention_heads=4, swa_num_key_value_heads=4, swa_q_lora_rank=16, swa_kv_lora_rank=16,
          swa_head_dim=16, swa_qk_nope_head_dim=8, swa_qk_rope_head_dim=8, swa_v_head_dim=8),
    **_of("deepseek_v4", **INDEXED, layer_types=["sliding_attention", *COMPRESSED], compress_rates=COMPRESSED,
          n_routed_experts=4, q_lora_rank=16, o_lora_rank=16, o_groups=2),
    **_of("longcat_flash", **LATENT, n_routed_experts=4, zero_expert_num=2, expert_ffn_hidden_size=24,
          ffn_hidden_size=48, num_layers=2, moe_topk=2),
    **_of("dbrx", d_model=32, n_heads=4, n_layers=3, max_seq_len=512,
          attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
          ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}),
    **_of("llama4_text", intermediate_size_mlp=48, attention_chunk_size=WINDOW, floor_scale=32, num_hidden_layers=4),
    **_of("gemma3n_text", num_hidden_layers=6, num_kv_shared_layers=2, vocab_size_per_layer_input=96,
          hidden_size_per_layer_input=8, laurel_rank=8, activation_sparsity_pattern=[0.0] * 6,
          intermediate_size=[48] * 6, layer_types=["sliding_attention", "full_attention"] * 3),
    **_of("gemma4_text", global_head_dim=8, num_global_key_value_heads=2, hidden_size_per_layer_input=8,
          vocab_size_per_layer_input=96, **ALTERNATING),
    **_of("gemma4_unified_text", global_head_dim=8, num_global_key_value_heads=2, **ALTERNATING),
    **_of("hrm_text", H_cycles=1, L_cycles=2, num_hidden_layers=2),
    **_of("cohere_compass_text", **ALTERNATING, rope_parameters={
        kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        for kind in ("sliding_attention", "full_attention")}),
    **_of("inkling_text", "inkling2_text", n_routed_experts=4, n_shared_experts=1, swa_num_attention_heads=4,
          swa_num_key_value_heads=2, swa_head_dim=8, sliding_window_size=WINDOW, d_rel=8,
          layer_types=["hybrid_sliding", "hybrid", "hybrid_sliding"], rel_extent=64,
          unpadded_vocab_size=96, mlp_layer_types=["dense", "sparse", "sparse"]),
    **_of("zaya", num_experts_per_tok=1, router_hidden_size=16),
    # Recurrent and hybrid ones.
    **_of("mamba", "falcon_mamba", state_size=8, time_step_rank=4),
    **_of("mamba2", num_heads=8, head_dim=8, state_size=16, n_groups=2, chunk_size=16),
    **_of("rwkv", attention_hidden_size=32),
    **_of("xlstm", num_heads=4, chunk_size=16),
    **_of("recurrent_gemma", lru_width=32, attention_window_size=WINDOW),
    **_of("jamba", attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False),
    **_of("bamba", **MAMBA2, attn_layer_indices=[1]),
    **_of("falcon_h1", **{**MAMBA2, "mamba_d_ssm": 64}),
    **_of("granitemoehybrid", **MAMBA2, shared_intermediate_size=48, layer_types=["mamba", "attention", "mamba"]),
    **_of("nemotron_h", mamba_num_heads=8, mamba_head_dim=8, ssm_state_size=16, n_groups=2, chunk_size=16,
          layers_block_type=["mamba", "attention", "moe"], n_routed_experts=4, moe_shared_expert_intermediate_size=24,
          use_mamba_kernels=False),
    **_of("zamba", layers_block_type=["linear_attention", "hybrid"] * 2, n_mamba_heads=2, mamba_d_state=8,
          mamba_dt_rank=4, num_key_value_heads=4, num_hidden_layers=4, use_mamba_kernels=False),
    **_of("zamba2", layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], num_hidden_layers=4, mamba_d_state=16,
          mamba_headdim=8, n_mamba_heads=8, chunk_size=16, num_mem_blocks=1, use_mamba_kernels=False, adapter_rank=8),
    **_of("qwen3_next", **DELTA, **SHARED_EXPERT),
    **_of("qwen3_5_text", **DELTA),
    **_of("qwen3_5_moe_text", **DELTA, **SHARED_EXPERT),
    **_of("olmo_hybrid", linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=4,
          linear_num_value_heads=4, num_hidden_layers=4),
    **_of("minimax", num_hidden_layers=4, block_size=16),
    **_of("lfm2", "lfm3", layer_types=["conv", "full_attention", "conv"]),
    **_of("lfm2_moe", num_dense_layers=1, layer_types=["conv", "full_attention", "conv"]),
    **_of("kimi_linear", **{**LATENT, **ROUTED, "q_lora_rank": None}, num_experts_per_token=2, linear_head_dim=8,
          linear_num_heads=4, num_hidden_layers=4, layer_types=["linear_attention", "full_attention"] * 2),
    **_of("bailing_hybrid", **{**LATENT, **ROUTED}, num_hidden_layers=4, layer_group_size=2),
    # Decoders of what are encoders, or encoder-decoders, otherwise.
    **_of("bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
          "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl"),
    **_of("big_bird", attention_type="original_full"),
    **_of("xmod", default_language="en_XX"),
    **_of("roc_bert", pronunciation_embed_dim=8, pronunciation_vocab_size=96, shape_embed_dim=8, shape_vocab_size=96),
    **_of("bart", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart", "trocr",
          "bigbird_pegasus", **SEQ2SEQ),
    **_of("whisper", **SEQ2SEQ, max_target_positions=512, max_source_positions=16),
    **_of("prophetnet", num_decoder_layers=3, num_decoder_attention_heads=4, decoder_ffn_dim=48, num_encoder_layers=1,
          num_encoder_attention_heads=4, encoder_ffn_dim=48, is_encoder_decoder=False, add_cross_attention=False),
    **_of("reformer", axial_pos_embds=False, attention_head_size=8, feed_forward_size=48, attn_layers=["local", "lsh"],
          num_hidden_layers=2, num_buckets=4, hash_seed=0),
    **_of("moshi", ffn_dim=48, num_codebooks=2, audio_vocab_size=96),
    **_of("git", vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 32,
                                "num_attention_heads": 2, "patch_size": 16}),
    **_of("cpmant", dim_head=8, dim_ff=48, prompt_length=4, position_bias_num_buckets=32, segment_types=4,
          prompt_types=4),
}  # fmt: skip

VARIANTS = {
    **_variants("llama", **SCALED, bias={"attention_bias": True, "mlp_bias": True}, one_kv={"num_key_value_heads": 1},
                tied={"tie_word_embeddings": True}, eager={"attn_implementation": "eager"}),
    **_variants("mistral", full={"sliding_window": None}, yarn=SCALED["yarn"], window_3={"sliding_window": 3}),
    **_variants("mixtral", full={"sliding_window": None}),
    **_variants("qwen2", sliding={"use_sliding_window": True, "max_window_layers": 1}, dynamic=SCALED["dynamic"],
                all_sliding={"use_sliding_window": True, "max_window_layers": 0}, yarn=SCALED["yarn"]),
    **_variants("qwen3", sliding={"use_sliding_window": True, "max_window_layers": 1}, yarn=SCALED["yarn"]),
    **_variants("qwen2_moe", sliding={"use_sliding_window": True, "max_window_layers": 1, **SHARED_EXPERT}),
    **_variants("phi3", longrope=long_rope(4), partial={"rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, full={"sliding_window": None}),
    **_variants("phimoe", longrope=long_rope(4, short_mscale=1.1, long_mscale=1.3)),
    **_variants("gemma2", alternating=ALTERNATING, eager={"attn_implementation": "eager"}),
    **_variants("gemma3_text", sliding=SLIDING, linear={**ALTERNATING, "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0}}}),
    **_variants("gemma4_text", shared={"global_head_dim": 8, "num_global_key_value_heads": 2, "num_kv_shared_layers": 2,
                "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96, "num_hidden_layers": 4,
                "layer_types": ["sliding_attention", "full_attention"] * 2},
                wide={"global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
                      "hidden_size_per_layer_input": 0, **ALTERNATING}),
    **_variants("gemma3n_text", unshared={**DECODERS["gemma3n_text"].changes, "num_kv_shared_layers": 0}),
    **_variants("cohere2", sliding={**SLIDING, "logit_scale": 1.0}),
    **_variants("gpt_oss", alternating=ALTERNATING, eager={"attn_implementation": "eager"}),
    **_variants("exaone4", full={"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    **_variants("olmo3", sliding=SLIDING, yarn={**ALTERNATING, **SCALED["yarn"]}),
    **_variants("ministral", sliding=SLIDING),
    **_variants("smollm3", nope={"no_rope_layers": [1, 0, 1], "no_rope_layer_interval": 2},
                sliding={"use_sliding_window": True, **ALTERNATING}),
    **_variants("llama4_text", full={**DECODERS["llama4_text"].changes, "layer_types": ["full_attention"] * 4,
                                     "no_rope_layers": [1, 0, 1, 0]}),
    **_variants("starcoder2", full={"sliding_window": None}),
    **_variants("gpt_neo", local={"attention_types": [[["local"], 3]], "num_layers": 3, "window_size": WINDOW},
                wide={"attention_types": [[["global", "local"], 2]], "num_layers": 4, "window_size": 256},
                long={"attention_types": [[["global", "local"], 2]], "num_layers": 4, "window_size": 256,
                      "max_position_embeddings": 2048}),
    **_variants("gpt_neox", sequential={"use_parallel_residual": False}, whole={"rotary_pct": 1.0},
                dynamic={**SCALED["dynamic"], "rotary_pct": 1.0}, linear=SCALED["linear"]),
    **_variants("falcon", alibi={"alibi": True, "multi_query": False, "new_decoder_architecture": False},
                new={"new_decoder_architecture": True, "num_kv_heads": 2},
                sequential={"parallel_attn": False, "multi_query": False}),
    **_variants("stablelm", parallel={"use_parallel_residual": True, "qk_layernorm": True}, linear=SCALED["linear"]),
    **_variants("opt", post_norm={"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    **_variants("gpt2", inverse={"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    **_variants("gpt_bigcode", heads={"multi_query": False}),
    **_variants("mpt", no_alibi={"attn_config": {"alibi": False}}),
    **_variants("deepseek_v2", whole_query={**DECODERS["deepseek_v2"].changes, "q_lora_rank": None},
                yarn={**DECODERS["deepseek_v2"].changes, **rope(
                    "yarn", factor=4.0, original_max_position_embeddings=BOUNDARY, mscale=0.7, mscale_all_dim=0.5)}),
    **_variants("deepseek_v3", yarn={**DECODERS["deepseek_v3"].changes, **rope(
        "yarn", factor=4.0, original_max_position_embeddings=BOUNDARY, mscale=1.0, mscale_all_dim=0.7)}),
    **_variants("minimax", full={"layer_types": ["full_attention"] * 4, "num_hidden_layers": 4}),
    **_variants("granitemoehybrid", attention={**DECODERS["granitemoehybrid"].changes,
                "layer_types": ["attention"] * 3, "position_embedding_type": "rope"}),
    **_variants("lfm2", attention={"layer_types": ["full_attention"] * 3}),
    **_variants("bert", relative={"position_embedding_type": "relative_key"}, encoder={"is_decoder": False}),
    **_variants("roberta", padding_1={"pad_token_id": 1}, encoder={"is_decoder": False, "pad_token_id": 1}),
    **_variants("xglm", padding_1={"pad_token_id": 1, "ffn_dim": 48}),
    **_variants("xlm", uni={"causal": True}),
    **_variants("mbart", scaled={**SEQ2SEQ, "scale_embedding": True}),
    **_variants("recurrent_gemma", attention={"block_types": ["attention"], "attention_window_size": WINDOW,
                                              "lru_width": 32}),
    **_variants("doge", full={"sliding_window": None}, keep={"keep_window_size": 16}),
    **{f"{kind}-tied": Architecture(kind, DECODERS[kind].changes | {"tie_word_embeddings": True})
       for kind in ("bloom", "cohere", "falcon", "gemma3_text", "gpt2", "gpt_neo", "lfm2", "opt", "qwen2")},
    **_variants("gemma", bidirectional={"use_bidirectional_attention": True}),
    **_variants("gemma2", bidirectional={"use_bidirectional_attention": True}),
    **_variants("gemma3_text", bidirectional={"use_bidirectional_attention": True, **ALTERNATING}),
    **_variants("ministral3", scaled=rope("yarn", factor=4.0, original_max_position_embeddings=BOUNDARY,
                                          llama_4_scaling_beta=0.5, mscale=1.0, mscale_all_dim=1.0)),
    **_variants("inkling_text", scaled={**DECODERS["inkling_text"].changes, "log_scaling_n_floor": 32,
                                        "log_scaling_alpha": 1.0}),
    **_variants("xlnet", both={"d_inner": 48, "d_head": 8, "attn_type": "bi"}),
    **_variants("mimo_v2_flash", alternating=ALTERNATING),
    **_variants("modernbert-decoder", alternating=ALTERNATING),
}  # fmt: skip

TEXT = {
    key: SIZE[key]
    for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "pad_token_id", "tie_word_embeddings",
    )
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
          "image_size": 32, "patch_size": 16}  # fmt: skip

# Language models beside a vision tower that has as many layers.
MULTIMODAL = {
    **_of("gemma3", text_config={**TEXT, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8,
          **ALTERNATING}, vision_config=VISION, mm_tokens_per_image=4, image_token_index=95),
    **_of("gemma4", text_config={**TEXT, **DECODERS["gemma4_text"].changes, "head_dim": 8, "sliding_window": WINDOW},
          vision_config={**VISION, "num_key_value_heads": 4, "head_dim": 8}, image_token_id=95),
    **_of("fuyu", text_config={**TEXT, "model_type": "persimmon"}, image_size=30, patch_size=15, image_token_id=95),
    **_of("got_ocr2", text_config={**TEXT, "model_type": "qwen2"}, image_token_index=95, image_seq_length=4,
          vision_config={"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
                         "image_size": 64, "patch_size": 16, "mlp_dim": 48, "window_size": 2,
                         "global_attn_indexes": [2]}),
    **_of("qwen3_5", text_config={**TEXT, **DELTA, "head_dim": 8}, image_token_id=95, video_token_id=94,
          vision_config={"hidden_size": 32, "intermediate_size": 48, "depth": 4, "num_heads": 4, "out_hidden_size": 32,
                         "patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": []}),
}  # fmt: skip

ARCHITECTURES = {**DECODERS, **VARIANTS, **MULTIMODAL}

# One of each way to tell where a token stands, and of each kind of memory. The first three run with every test, the
# others with the slow ones.
REPRESENTATIVE = (
    "gemma3_text", "bloom", "qwen3_moe", "llama", "llama-dynamic", "phi3-longrope", "gpt_neo", "roberta", "moshi",
    "lfm2", "bert-encoder",
)  # fmt: skip
REPRESENTATIVE_IN_BF16 = ("nanochat",)

# What these know of a token is not all told by its position and mask: recurrent states, ALiBi, positions counted from
# padding, windows by place in the row, keys that are chosen, attention to what follows. All others are packed.
# BigBird has no room for rows that are longer than its longest sequence.
NOT_PACKED = (
    "big_bird", "gpt_neo-wide", "gpt_neo-long",
    "bloom", "mpt", "openai-gpt", "xlm", "gpt_neo", "xlnet", "deepseek_v32", "glm_moe_dsa", "hy_v4",
    "dots3_note_text", "deepseek_v4", "llama4_text", "inkling_text", "inkling2_text", "zaya", "mamba",
    "falcon_mamba", "mamba2", "rwkv", "xlstm", "recurrent_gemma", "jamba", "bamba", "falcon_h1", "granitemoehybrid",
    "nemotron_h", "zamba", "zamba2", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "minimax",
    "lfm2", "lfm3", "lfm2_moe", "kimi_linear", "bailing_hybrid", "camembert", "data2vec-text", "roberta",
    "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod", "bart", "blenderbot",
    "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart", "trocr", "bigbird_pegasus", "whisper",
    "prophetnet", "reformer", "moshi", "cpmant", "llama4_text-full", "gpt_neo-local", "falcon-alibi",
    "mpt-no_alibi", "minimax-full", "bert-encoder", "roberta-padding_1", "roberta-encoder", "xlm-uni",
    "mbart-scaled", "doge-keep", "bloom-tied", "gpt_neo-tied", "lfm2-tied", "gemma-bidirectional",
    "gemma3_text-bidirectional", "inkling_text-scaled", "xlnet-both", "qwen3_5",
)  # fmt: skip


def tiny_config(name: str) -> PretrainedConfig:
    """The config of ARCHITECTURES[name]."""
    model_type, changes = ARCHITECTURES[name]
    kind = CONFIG_MAPPING[model_type]
    known = set(inspect.signature(kind.__init__).parameters) | set(kind.attribute_map)
    if dataclasses.is_dataclass(kind):
        known |= {field.name for field in dataclasses.fields(kind)}
    taken = {kind.attribute_map.get(key, key) for key in changes}
    size = {
        key: value
        for key, value in SIZE.items()
        if key in known and kind.attribute_map.get(key, key) not in taken and key not in changes
    }
    changes = {key: value for key, value in changes.items() if key != "attn_implementation"}
    return kind(**size, **changes)


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """The model of ARCHITECTURES[name], float32, with weights that let every part of it count.

    Matrices keep the size of what they multiply, norms and biases are off their neutral values, and logits are spread
    over a few nats.
    """
    more = {key: value for key, value in ARCHITECTURES[name].changes.items() if key == "attn_implementation"}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float32, **more).eval()
    _let_all_count(model)
    return model


@torch.no_grad()
def _let_all_count(model: PreTrainedModel) -> None:
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    output = model.get_output_embeddings()
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn_like(parameter)
        last = name.rpartition(".")[2]
        if id(parameter) in embeddings:
            parameter.copy_(noise * 0.3)
        elif last == "bias" or (last.endswith("_bias") and "dt" not in last):
            parameter.add_(noise * 0.2)
        elif parameter.dim() == 3 and parameter.shape[1] == 1 and last == "weight":  # of a convolution
            parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
        elif parameter.dim() in (2, 3) and last in _MATRICES:
            inputs = parameter.shape[-2] if _is_transposed(model, name) else parameter.shape[-1]
            parameter.copy_(noise * 2 / math.sqrt(inputs))
        elif last in _HEADS:
            parameter.copy_(noise * 2 / math.sqrt(len(parameter)))
        else:
            parameter.add_(noise * (parameter.abs().mean().clamp(max=1) * 0.2 + 0.02))
    for name, buffer in model.named_buffers():
        if name.endswith(("layer_scalar", "e_score_correction_bias", "expert_bias", "balancing_biases")):
            buffer.add_(torch.randn_like(buffer) * 0.2)
        elif name.endswith("tid2eid"):
            buffer.random_(SIZE["num_experts"])
    ids = torch.randint(*TOKENS, (2, 40))
    spread = float(model(ids, use_cache=False).logits.std(dim=-1).median())
    lowest = 1 if output is not None and id(output.weight) in embeddings else 1.5
    if output is not None and not lowest <= spread <= 4:
        output.weight.mul_(2.5 / max(spread, 1e-3))


_MATRICES = (
    "weight", "gate_up_proj", "down_proj", "gate_proj", "up_proj", "w1", "w2", "v1", "proj", "fn", "hc_fn",
    "input_gate_weight", "recurrent_gate_weight", "x_proj_weight", "dt_proj_weight",
)  # fmt: skip
_HEADS = ("q", "k", "v", "o", "r")  # XLNet's, (in, heads, width)


def _is_transposed(model: PreTrainedModel, name: str) -> bool:
    """Whether a matrix is kept as (in, out)."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return type(owner).__name__ == "Conv1D" or bool(getattr(owner, "is_transposed", False))
