"""scripts/benchmarks/our_compression.py: stages, and what it writes, on tiny models."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import growth
import our_compression
from pruning.layers import decoder_weights
from pruning.masks import zero_fraction


def test_time_of_a_patched_function_is_added_and_the_function_comes_back():
    class Sleeper:
        def nap(self) -> str:
            return "slept"

    own, times = Sleeper.nap, {"nap": 0.0}
    with our_compression.timed(Sleeper, "nap", times, "nap"):
        assert Sleeper().nap() == "slept"
    assert Sleeper.nap is own
    assert times["nap"] > 0


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "gptq"])
def test_stages_of_each_method_are_timed_while_it_compresses(name):
    model = growth.small_llama(2, 64, 256, torch.float32)
    compress = our_compression.method_of_the_peer(name, sparsity=0.5, bits=4, group_size=64)
    our_compression.warm_up(compress)
    tokens = growth.random_tokens(4, 16)
    stages = our_compression.compress_in_stages(
        model, tokens, compress, our_compression.STATISTICS[name], windows_per_batch=2
    )
    assert list(stages) == ["forward", "statistics", "factorisation", "method"]
    assert all(seconds > 0 for stage, seconds in stages.items() if stage != "factorisation")
    assert (stages["factorisation"] > 0) == (name != "wanda")
    matrices = [weight.matrix for weight in decoder_weights(model).values()]
    if name == "gptq":
        row = decoder_weights(model)["model.layers.0.self_attn.q_proj.weight"].matrix[0]
        assert len(row.unique()) <= 16
    else:
        assert zero_fraction(matrices) == pytest.approx(0.5, abs=0.001)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_own_side_writes_what_the_table_reads(tmp_path, monkeypatch):
    growth.small_llama(2, 64, 256, torch.float32).save_pretrained(tmp_path / "llama")
    save_file({"tokens": growth.random_tokens(4, 16)}, tmp_path / "windows.safetensors")
    monkeypatch.setattr(our_compression.AutoTokenizer, "from_pretrained", lambda name: our_compression.AutoTokenizer)
    monkeypatch.setattr(our_compression.AutoTokenizer, "save_pretrained", lambda folder: None, raising=False)
    our_compression.main(
        ["--method", "wanda", "--windows", str(tmp_path / "windows.safetensors"), "--windows_per_batch",
         "2", "--model_name_or_path", str(tmp_path / "llama"), "--dtype", "float32", "--result",
         str(tmp_path / "result.json"), "--save_model", str(tmp_path / "saved")]
    )  # fmt: skip
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["seconds"] == pytest.approx(sum(result["stages"].values()))
    assert 0 < result["compressing_peak_bytes"] <= result["peak_bytes"]
    # the kernel counts pages in batches: what is resident may be a little above what has been the most
    assert 0 < result["loaded_bytes"] < 1.1 * result["compressing_peak_bytes"]
    assert result["floor_seconds"] > 0
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert zero_fraction([saved["model.layers.1.mlp.up_proj.weight"]]) == 0.5
