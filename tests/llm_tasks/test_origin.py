"""Whether a dense model was quantized before, by its weights or by its card."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llm_tasks.checkpoints.origin import on_a_grid, once_quantized
from quantization.gptq import round_to_nearest


@pytest.fixture
def weights() -> torch.Tensor:
    return torch.randn(32, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bits_are_seen_and_dense_or_pruned_weights_are_none(weights: torch.Tensor, dtype: torch.dtype) -> None:
    assert on_a_grid(round_to_nearest(weights, 4, 32).to(dtype))
    assert on_a_grid(round_to_nearest(weights, 2, 128).to(dtype)) and not on_a_grid(weights.to(dtype))
    assert not on_a_grid(round_to_nearest(weights, 8, 32).to(dtype))
    for share in (2, 4, 8):  # 16, 24, 28 of 32 remain
        assert not on_a_grid(weights.to(dtype) * (torch.arange(128) % share != 0))


def test_the_weights_of_a_folder_are_looked_at(weights: torch.Tensor, tmp_path: Path) -> None:
    for name, matrix in (("dense", weights), ("grid", round_to_nearest(weights, 4, 32))):
        (tmp_path / name).mkdir()
        tensors = {"model.layers.0.up_proj.weight": matrix, "model.embed_tokens.weight": weights.clone()}
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert once_quantized(str(tmp_path / "dense"), "safetensors", None) is None
    assert once_quantized(str(tmp_path / "grid"), "safetensors", None).startswith("to 4 bits or fewer")
    assert once_quantized(str(tmp_path / "nothing"), "safetensors", None) is None


def test_a_card_of_ours_says_the_bits(weights: torch.Tensor, tmp_path: Path) -> None:
    save_file({"a.weight": weights}, tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_text("| option | value |\n|---|---|\n| bits | 8 |\n| compression | gptq |\n")
    assert once_quantized(str(tmp_path), "safetensors", None) == "to 8 bits (by gptq, README.md)"
