"""Real outputs of other tools (tests/golden/checkpoints): loaded, and beside what their files say by hand.

Made by scripts/benchmarks/peer_checkpoints.py with llmcompressor 0.14.0.1 from a tiny random Llama, groups of 32.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llm_tasks import own_task
from llm_tasks import run as llm_run
from llm_tasks.checkpoints import checkpoint_models
from pruning.layers import decoder_weights
from pruning.walk import InputStatistics, compress_blocks
from quantization.gptq import gptq_grid

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"
WEIGHTS = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)  # of two blocks


def source() -> llm_run.ModelSource:
    return llm_run.ModelSource(str(GOLDEN / "parent"), torch.device("cpu"), dtype="float32")


def unpacked(packed: Tensor, scales: Tensor, group: int) -> Tensor:
    """Eight weights of 4 bits in an int32, the first in the lowest bits, 8 above their value."""
    codes = torch.stack([(packed >> 4 * place) & 15 for place in range(8)], dim=-1).flatten(1) - 8
    return codes * scales.repeat_interleave(group, dim=1)


def test_bytes_of_llmcompressors_w4a16() -> None:
    pytest.importorskip("compressed_tensors")
    skeleton = llm_run.skeleton(source())
    facts = checkpoint_models.open_one(str(GOLDEN / "w4a16"), skeleton, source()).facts
    # 4 bits a weight, a float32 scale for 32, and of each of the 14 layers its shape, two int64.
    assert facts["decoder_bytes_fraction"] == (WEIGHTS // 2 + WEIGHTS // 32 * 4 + 14 * 16) / (2 * WEIGHTS)
    sizes = [(GOLDEN / name / "model.safetensors").stat().st_size for name in ("w4a16", "parent")]
    assert facts["checkpoint_kind"] == "compressed-tensors"
    assert facts["strength"] == round(sizes[0] / sizes[1], 6)


def test_llmcompressors_w4a16_computes_with_what_its_integers_stand_for() -> None:
    pytest.importorskip("compressed_tensors")
    skeleton = llm_run.skeleton(source())
    opened = checkpoint_models.open_one(str(GOLDEN / "w4a16"), skeleton, source())
    model = checkpoint_models.load(opened, source(), skeleton.config)
    stored = load_file(GOLDEN / "w4a16" / "model.safetensors")
    twin = llm_run.load_model(source())
    zeros, loaded = 0, decoder_weights(model)
    for name, weight in decoder_weights(twin).items():
        own = name.removesuffix(".weight")
        dense = unpacked(stored[f"{own}.weight_packed"], stored[f"{own}.weight_scale"], 32)
        # GPTQ moves errors about, so that a weight may be further off than half a step; on the whole it is the layer.
        assert (dense - weight.matrix).abs().mean() <= stored[f"{own}.weight_scale"].mean() / 2
        assert torch.equal(loaded[name].matrix, dense)
        weight.matrix.copy_(dense)
        zeros += int((dense == 0).sum())
    ids = torch.arange(3, 20)[None]
    assert torch.allclose(model(ids).logits, twin(ids).logits, atol=1e-4)
    facts = checkpoint_models.facts_of(opened, model, decoder_weights(skeleton))
    assert facts["measured_sparsity"] == pytest.approx(zeros / WEIGHTS) and zeros > WEIGHTS / 20


def test_our_gptq_is_llmcompressors_with_grids_from_the_dense_weights() -> None:
    """Without activation order llmcompressor takes all scales before it rounds; both read the same windows."""
    windows = load_file(GOLDEN / "windows.safetensors")["tokens"]
    stored = load_file(GOLDEN / "w4a16" / "model.safetensors")
    same: dict[str, float] = {}

    def compress(W: Tensor, inputs: InputStatistics, name: str) -> Tensor:
        own = name.removesuffix(".weight")
        theirs = unpacked(stored[f"{own}.weight_packed"], stored[f"{own}.weight_scale"], 32)
        ours = gptq_grid(W, inputs.inverse_factor(0.01), 4, 32, symmetric=True, static_groups=True)
        assert torch.allclose(ours.scales, stored[f"{own}.weight_scale"], rtol=1e-5)
        same[name] = float(torch.isclose(ours.dequantize(W.dtype), theirs, rtol=1e-5).float().mean())
        return theirs  # so that all later layers see the same inputs

    compress_blocks(llm_run.load_model(source()), windows, compress, "hessian")
    # all are the same where it was tried; half-way between two steps float32 rounds as the processor does
    assert len(same) == 14 and min(same.values()) > 0.98, same


def test_packed_layers_bear_the_fast_paths_or_none(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    task = tmp_path / "task.jsonl"
    rows = [{"question": f"A {letters}", "choices": ["a b", "c d", "q"], "answer": n % 3}
            for n, letters in enumerate(("a b c", "B A B", "q r s t", "b"))]  # fmt: skip
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model_name_or_path", str(GOLDEN / "parent"), "--task_file", str(task), "--answer_mode", "cloze"]
    words += ["--dtype", "float32", "--precision", "no", "--compression", "checkpoint"]
    words += ["--checkpoint", str(GOLDEN / "w4a16"), "--max_items", "4"]
    found = []
    for plain in ([], ["--plain"]):
        out = tmp_path / f"runs{len(plain)}"
        assert own_task.main([*words, *plain, "--output_dir", str(out)]) == 0
        found.append(llm_run.run_folder.read_items(out)["level0_option_log_likelihood"])
    assert np.allclose(*found, atol=5e-4)
