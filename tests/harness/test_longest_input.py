"""harness/models.py: how many tokens a model takes, and whether it has segments."""

from typing import Any

import pytest
import torch
import transformers

from harness.models import has_segments, longest_input
from llm_tasks.compressed_model import max_length


def encoder(name: str, **options: Any) -> torch.nn.Module:
    config = getattr(transformers, f"{name}Config")
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 40, "pad_token_id": 1, **options}
    return getattr(transformers, f"{name}Model")(config(**sizes)).eval()


@pytest.mark.parametrize(
    ("name", "options", "longest"),
    [
        ("Roberta", {}, 38),
        ("Camembert", {}, 38),
        ("MPNet", {}, 38),
        ("Esm", {}, 38),
        ("Bert", {}, 40),
        ("Electra", {}, 40),
    ],
)
def test_positions_are_counted_as_the_model_counts_them(name: str, options: dict, longest: int):
    model = encoder(name, **options)
    assert longest_input(model) == longest
    model(input_ids=torch.full((1, longest), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 7))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("Mpt", {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 40}),
        ("Whisper", {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16,
                     "max_target_positions": 40, "is_decoder": True, "is_encoder_decoder": False, "pad_token_id": 1,
                     "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}),
    ],
)  # fmt: skip
def test_a_limit_of_another_name_is_read(name: str, sizes: dict):
    config = getattr(transformers, f"{name}Config")(vocab_size=50, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert longest_input(model) == 40
    model(torch.full((1, 40), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 41), 7))


def test_a_model_without_a_limit_has_none():
    model = transformers.XLNetModel(
        transformers.XLNetConfig(vocab_size=50, d_model=16, n_head=2, n_layer=1, d_inner=16)
    )
    assert longest_input(model) is None and has_segments(model)


@pytest.mark.parametrize(
    ("name", "options", "segments"),
    [
        ("Bert", {}, True),
        ("Roberta", {"type_vocab_size": 1}, False),
        ("DistilBert", {"dim": 16, "hidden_dim": 16}, False),
    ],
)
def test_segments(name: str, options: dict, segments: bool):
    assert has_segments(encoder(name, **options)) is segments


def test_a_length_that_is_assumed_is_logged(caplog: pytest.LogCaptureFixture):
    """Of language models, which XLNet stands for; 2,048 tokens."""
    sizes = {"vocab_size": 50, "d_model": 16, "n_head": 2, "n_layer": 1, "d_inner": 16}
    with caplog.at_level("INFO"):
        assert max_length(transformers.XLNetModel(transformers.XLNetConfig(**sizes))) == 2048
        assert "names no longest input" in caplog.text
        caplog.clear()
        assert max_length(encoder("Bert")) == 40 and not caplog.text
