"""Packed checkpoints: what cannot be packed is refused before a model loads; what is packed serves the same model."""

import json
from pathlib import Path

import pytest
import torch
from conftest import decoder_configs
from method_lists import exported
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from llm_tasks import perplexity
from pruning.layers import decoder_weights
from quantization import gptqmodel_export
from quantization.gptq import Quantized, gptq_grid, round_to_nearest_grid
from quantization.gptqmodel_export import check_exportable, save_packed

PACKABLE = LlamaConfig(
    vocab_size=40, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True,
)  # fmt: skip
PROMPTS = torch.arange(24).view(2, 12) + 3


def decoder(config: PretrainedConfig = PACKABLE) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def meta_decoder(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def tokenizer() -> PreTrainedTokenizerFast:
    words = models.WordLevel({"<unk>": 0, "film": 1}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="<unk>")


def quantized(model: PreTrainedModel, bits: int, group_size: int, symmetric: bool, act_order: bool = False) -> dict:
    """Grids of all weights, which are replaced by what the grids stand for; some groups have no negative weight."""
    grids: dict[str, Quantized] = {}
    for name, weight in decoder_weights(model).items():
        weight.matrix[0].abs_()
        if act_order:
            inputs = torch.randn(200, weight.matrix.shape[1]) * torch.rand(weight.matrix.shape[1])
            grids[name] = gptq_grid(weight.matrix, inputs.T @ inputs, bits, group_size, symmetric, act_order=True)
        else:
            grids[name] = round_to_nearest_grid(weight.matrix, bits, group_size, symmetric)
        weight.matrix.copy_(grids[name].dequantize())
    return grids


def unpacked(words: torch.Tensor, bits: int, size: int) -> torch.Tensor:
    """The integers in the rows' words, by hand: 32 // bits to a word, the lowest bits first."""
    digits = [(words.long() >> shift) & (2**bits - 1) for shift in range(0, 32, bits)]
    return torch.stack(digits, dim=1).reshape(-1, words.shape[1])[:size]


@pytest.mark.parametrize(("bits", "group_size", "message"), [
    ([4, 5], 32, "packs 2, 3, 4, 8 bits, not --bits 5"),
    ([16], 32, "not --bits 16"),
    ([4], 48, "supports --group_size -1, 16, 32, 64"),
    ([4], 64, r"down_proj.weight has 96 inputs, no multiple of --group_size 64, and .* no short last group"),
])  # fmt: skip
def test_grids_that_the_format_lacks_are_refused(bits: list[int], group_size: int, message: str):
    with pytest.raises(ValueError, match=message):
        check_exportable(meta_decoder(PACKABLE), bits, group_size)


def test_weights_that_the_format_cannot_hold_are_refused():
    with pytest.raises(ValueError, match=r"q_proj.weight is 16 x 16; the packed format needs multiples of 32"):
        check_exportable(meta_decoder(decoder_configs()["llama"]), [4], -1)
    with pytest.raises(ValueError, match="is an expert's; expert weights are not packed"):
        config = decoder_configs()["mixtral"]
        config.hidden_size, config.num_key_value_heads = 64, 2
        check_exportable(meta_decoder(config), [4], -1)


def test_without_the_library_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gptqmodel_export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"python -m pip install -r requirements-export\.txt"):
        check_exportable(meta_decoder(PACKABLE), [4], 32)


@pytest.mark.parametrize(("options", "message"), [
    (["--compression", "wanda", "--sparsity", "0.5"], f"--export packs what --compression {exported()} make"),
    (["--compression", "rtn", "--bits", "4", "--stream"], "--export packs a model that is in memory"),
    (["--compression", "rtn", "--bits", "4", "6", "--group_size", "-1"], "not --bits 6"),
])  # fmt: skip
def test_options_that_do_not_go_with_an_export(
    options: list[str], message: str, tiny_decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        perplexity.main(["--model_name_or_path", str(tiny_decoder), "--export", "gptqmodel",
                         "--output_dir", str(tmp_path / "{strength}"), *options])  # fmt: skip
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_cell_that_is_not_quantized_is_listed_without_the_export(
    tiny_decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sweep = ["--compression", "dense", "rtn", "--bits", "4", "--output_dir", str(tmp_path / "{strength}")]
    perplexity.main(["--model_name_or_path", str(tiny_decoder), *sweep, "--export", "gptqmodel", "--list_cells"])
    dense, rtn = capsys.readouterr().out.splitlines()
    assert "--export" not in dense and "--export gptqmodel" in rtn


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "group_size", "act_order"), [(4, 32, False), (8, 32, True), (2, -1, False)])
@torch.no_grad()
def test_packed_integers_by_hand(tmp_path: Path, bits: int, group_size: int, act_order: bool, symmetric: bool):
    """Codes and groups as they are, scales in float16; zeros as they are, or less one in the older format."""
    pytest.importorskip("gptqmodel")
    model = decoder()
    grids = quantized(model, bits, group_size, symmetric, act_order)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_packed(tmp_path / "out", model, grids, bits, group_size, symmetric, tokenizer(), {"README.md": "a card"})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, grid in grids.items():
        layer = {key: stored.pop(name.replace("weight", key)) for key in ("qweight", "qzeros", "scales", "g_idx")}
        assert torch.equal(unpacked(layer["qweight"], bits, grid.codes.shape[1]), grid.codes.T.long())
        zeros = unpacked(layer["qzeros"].T, bits, len(grid.codes)).T
        assert torch.equal(zeros.T + int(symmetric), grid.zeros.long())
        assert torch.equal(layer["scales"], grid.scales.T.half())
        assert torch.equal(layer["g_idx"].long(), grid.group_index)
    outside = {name: value.half() for name, value in before.items() if name not in grids and name != "lm_head.weight"}
    assert stored.keys() == outside.keys()
    assert all(torch.equal(value, outside[name]) for name, value in stored.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    shown = {"bits": bits, "group_size": group_size, "sym": symmetric, "desc_act": act_order, "quant_method": "gptq"}
    assert shown.items() <= config.items()
    assert config["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")
    assert (tmp_path / "out" / "README.md").read_text() == "a card"


def test_tensors_are_named_as_the_modules_are(tmp_path: Path):
    """transformers saves GPT-NeoX's head under an older name, which gptqmodel does not find: it served noise."""
    pytest.importorskip("gptqmodel")
    model = decoder(GPTNeoXConfig(vocab_size=40, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                                  num_attention_heads=2, max_position_embeddings=64))  # fmt: skip
    save_packed(tmp_path / "out", model, quantized(model, 4, 32, symmetric=True), 4, 32, True, tokenizer())
    stored = load_file(tmp_path / "out" / "model.safetensors")
    modules = dict(model.named_modules())
    assert {name.rpartition(".")[0] for name in stored} <= modules.keys()
    assert "lm_head.weight" in stored


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("act_order", [False, True])
@torch.no_grad()
def test_the_packed_model_serves_the_same_logits(tmp_path: Path, bits: int, symmetric: bool, act_order: bool):
    """Logits reach 0.7, where float16 has steps of 2^-11: two of them for either model's own rounding."""
    gptqmodel = pytest.importorskip("gptqmodel")
    model = decoder()
    check_exportable(model, [bits], 32)
    grids = quantized(model, bits, 32, symmetric, act_order)
    save_packed(tmp_path / "out", model, grids, bits, 32, symmetric, tokenizer())
    expected = model(PROMPTS).logits
    load = {"device": "cpu", "dtype": torch.float16, "backend": gptqmodel.BACKEND.GPTQ_TORCH}
    with torch.compiler.set_stance("force_eager"):  # compiling the kernel would take a minute
        served = gptqmodel.GPTQModel.load(str(tmp_path / "out"), **load).model
        logits = served(PROMPTS).logits.float()
    assert type(served.model.layers[0].mlp.down_proj).__name__ == "TorchLinear"
    torch.testing.assert_close(logits, expected, rtol=0, atol=4 * 2**-11)


@pytest.mark.parametrize("pruned", [[], ["--sparsity", "0.5"]], ids=["alone", "pruned_before"])
def test_what_is_exported_is_what_was_evaluated(tiny_decoder: Path, text_file: Path, tmp_path: Path, pruned: list[str]):
    """The saved model's weights are scale * (code - zero) of the packed ones; a sweep's dense cell packs nothing.

    Weights that were pruned before are 0 in both.
    """
    pytest.importorskip("gptqmodel")
    decoder().save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_decoder).save_pretrained(tmp_path / "model")
    name, folder = ("sparsegpt+gptq", "0.5+4bit") if pruned else ("gptq", "4bit")
    options = [
        "--compression",
        "dense",
        name,
        "--bits",
        "4",
        "--group_size",
        "32",
        "--act_order",
        "--save_model",
        *pruned,
    ]
    text = ["--calibration", str(text_file), "--nsamples", "8", "--calibration_length", "16", "--text", str(text_file)]
    sweep = ["--model_name_or_path", str(tmp_path / "model"), "--output_dir", str(tmp_path / "{strength}")]
    assert perplexity.main([*sweep, *options, *text, "--seq_len", "16", "--export", "gptqmodel"]) == 0
    assert not (tmp_path / "dense" / "gptqmodel").exists()
    packed = load_file(tmp_path / folder / "gptqmodel" / "model.safetensors")
    weights = load_file(tmp_path / folder / "model" / "model.safetensors")
    layers = [name.removesuffix("qweight") for name in packed if name.endswith("qweight")]
    assert len(layers) == 2 * 7
    for layer in layers:
        weight, groups = weights[f"{layer}weight"], packed[f"{layer}g_idx"].long()
        codes = unpacked(packed[f"{layer}qweight"], 4, weight.shape[1])
        zeros = unpacked(packed[f"{layer}qzeros"].T, 4, weight.shape[0]).T[groups]
        stored = packed[f"{layer}scales"].float()[groups] * (codes - zeros)
        torch.testing.assert_close(stored.T, weight, rtol=2**-11, atol=0)
        assert not pruned or (weight == 0).float().mean() >= 0.5
    card = (tmp_path / folder / "gptqmodel" / "README.md").read_text()
    assert "packed" in card and "| group_size | 32 |" in card


def test_an_architecture_that_the_library_does_not_pack_like_us_is_refused(monkeypatch: pytest.MonkeyPatch):
    auto = pytest.importorskip("gptqmodel.models.auto")
    monkeypatch.delitem(auto.MODEL_MAP, "llama")
    with pytest.raises(ValueError, match="the library does not support models of type llama"):
        check_exportable(meta_decoder(PACKABLE), [4], 32)
    monkeypatch.setitem(auto.MODEL_MAP, "llama", auto.MODEL_MAP["gpt2"])
    with pytest.raises(ValueError, match=r"does not pack model.layers.0.self_attn.q_proj.weight of a model of type"):
        check_exportable(meta_decoder(PACKABLE), [4], 32)
