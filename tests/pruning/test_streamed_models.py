"""A streamed model is, to the bit, the model that from_pretrained loads: every architecture, file and precision."""

import json
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import decoder_configs
from plain_twins import GEMMA4, compare_tensors, more_configs, streamed_equals_memory
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from harness.models import load_pretrained
from llm_tasks import perplexity
from pruning.blocks import INDEX_FILE, StreamedBlocks
from pruning.walk import compress_blocks

WINDOWS = torch.randint(3, 17, (4, 12), generator=torch.Generator().manual_seed(0))


CONFIGS = decoder_configs() | more_configs()


def random_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model whose every parameter and persistent buffer differs from what its class starts with."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=dtype).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape) * 0.1)
    return model


def edit_config(folder: Path, **entries: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name, value in entries.items():
        config.pop(name, None) if value is None else config.update({name: value})
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", more_configs())
@pytest.mark.slow
def test_an_architecture(name: str, tmp_path: Path):
    dtype = torch.float32 if len(name) % 2 else torch.bfloat16
    random_model(name, dtype).save_pretrained(tmp_path)
    assert streamed_equals_memory(tmp_path, WINDOWS) == "equal"


@pytest.mark.parametrize(
    ("stored", "said"),
    [(torch.float32, None), (torch.float32, "float16"), (torch.bfloat16, None), (torch.bfloat16, "float32")],
)
def test_precision_of_config_and_file(stored: torch.dtype, said: str | None, tmp_path: Path):
    random_model("ernie4_5_moe more", stored).save_pretrained(tmp_path)
    edit_config(tmp_path, dtype=said)
    assert streamed_equals_memory(tmp_path, WINDOWS) == "equal"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_that_is_asked_for(dtype: torch.dtype, tmp_path: Path):
    random_model("ernie4_5_moe more", torch.bfloat16).save_pretrained(tmp_path)
    streamed = StreamedBlocks(tmp_path, dtype=dtype)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype, torch.float32}  # its routers
    for index in range(3):
        with streamed.hold(index):
            compare_tensors(streamed.model, loaded, lambda key, of=f"model.layers.{index}.": key.startswith(of))


def test_a_tied_head_that_differs_in_the_file_stays_untied(tiny_decoder: Path, tmp_path: Path):
    shutil.copytree(tiny_decoder, tmp_path / "model")
    head = torch.randn(17, 16, generator=torch.Generator().manual_seed(1))
    edit_tensors(tmp_path / "model", **{"lm_head.weight": head})
    assert streamed_equals_memory(tmp_path / "model", WINDOWS) == "equal"
    storage = StreamedBlocks(tmp_path / "model", tmp_path / "out", job="one")
    compress_blocks(storage.model, None, lambda W, inputs, name: W, storage=storage)
    again = storage.complete()
    assert torch.equal(again.model.lm_head.weight, head)
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("change", ["base model's names", "sharded", "old norms' names", "the same head twice"])
def test_files_of_other_forms(change: str, tmp_path: Path):
    model = random_model("llama")
    if change == "the same head twice":
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(tmp_path, max_shard_size="4KB" if change == "sharded" else "1GB")
    if change != "sharded":
        stored = load_file(tmp_path / "model.safetensors")
        names = {
            "base model's names": lambda key: key.removeprefix("model."),
            "old norms' names": lambda key: key.replace("norm.weight", "norm.gamma"),
            "the same head twice": lambda key: key,
        }[change]
        stored = {names(key): value for key, value in stored.items()}
        if change == "the same head twice":
            stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
        save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    try:
        load_pretrained(str(tmp_path), AutoModelForCausalLM, "auto")
    except ValueError as error:  # what is not loaded is not streamed, and for the same reason
        assert streamed_equals_memory(tmp_path, WINDOWS) == f"refused: {error}"
        assert change == "old norms' names"
    else:
        assert streamed_equals_memory(tmp_path, WINDOWS) == "equal"


def test_quantized_files_are_refused_by_name(tiny_decoder: Path, tmp_path: Path):
    shutil.copytree(tiny_decoder, tmp_path / "said")
    edit_config(tmp_path / "said", quantization_config={"quant_method": "fp8"})
    with pytest.raises(ValueError, match="fp8"):
        StreamedBlocks(tmp_path / "said")
    shutil.copytree(tiny_decoder, tmp_path / "unsaid")
    name = "model.layers.1.mlp.up_proj.weight"
    stored = load_file(tmp_path / "unsaid/model.safetensors")[name]
    edit_tensors(
        tmp_path / "unsaid", **{name: stored.to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1)}
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"{name}_scale_inv"):
        StreamedBlocks(tmp_path / "unsaid")


def test_a_model_whose_blocks_carry_more_than_hidden_states_is_refused_before_anything_is_written(tmp_path: Path):
    layers = ["sliding_attention", "full_attention"] * 2
    shared = {**GEMMA4, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": layers}
    config = CONFIG_MAPPING["gemma4_text"](**shared)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    assert streamed_equals_memory(tmp_path / "model", WINDOWS).startswith(
        "refused: Gemma4ForCausalLM cannot be run block by block, only as a whole and in memory"
    )


CODE = {
    "configuration_own.py": """
        from transformers import LlamaConfig
        class OwnConfig(LlamaConfig):
            model_type = "own_decoder"
    """,
    "modeling_own.py": """
        import torch
        from transformers import LlamaForCausalLM
        from .configuration_own import OwnConfig
        class OwnForCausalLM(LlamaForCausalLM):
            config_class = OwnConfig
            def __init__(self, config):
                super().__init__(config)
                self.scale = torch.nn.Parameter(torch.ones(1))
                self.post_init()
            def forward(self, *args, **kwargs):
                output = super().forward(*args, **kwargs)
                output.logits = output.logits * self.scale
                return output
    """,
}


def test_a_model_that_brings_its_own_code_is_written_with_it(tiny_decoder: Path, tmp_path: Path, own_modules: None):
    source = tmp_path / "source"
    shutil.copytree(tiny_decoder, source)
    for file, text in CODE.items():
        (source / file).write_text(textwrap.dedent(text))
    classes = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit_config(source, auto_map=classes, model_type="own_decoder", architectures=["OwnForCausalLM"])
    edit_tensors(source, scale=torch.tensor([3.0]))
    assert streamed_equals_memory(source, WINDOWS, trust_remote_code=True) == "equal"
    storage = StreamedBlocks(source, tmp_path / "out", job="one", trust_remote_code=True)
    compress_blocks(storage.model, None, lambda W, inputs, name: W, storage=storage)
    again = storage.complete()
    assert float(again.model.scale) == 3
    assert {path.name for path in (tmp_path / "out").glob("*.py")} == CODE.keys()


def test_a_text_model_that_could_not_be_loaded_again_is_not_written(tmp_path: Path):
    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "intermediate_size": 24, "vocab_size": 40, "pad_token_id": 0}  # fmt: skip
    config = CONFIG_MAPPING["emu3"](text_config=text)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "text")
    (tmp_path / "text/config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(ValueError, match="emu3_text_model saved by itself"):
        StreamedBlocks(tmp_path / "text", tmp_path / "out")


def test_what_is_written_otherwise_than_it_was_meant_has_no_index(tiny_decoder: Path, tmp_path: Path):
    out = tmp_path / "out"
    storage = StreamedBlocks(tiny_decoder, out, job="one")
    compress_blocks(storage.model, None, lambda W, inputs, name: W, storage=storage)
    shard = out / "model-00002-of-00004.safetensors"
    stored = load_file(shard)
    stored["model.layers.1.mlp.up_proj.weight"][3, 2] += 1e-6
    save_file(stored, shard, {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is not read as it was written"):
        storage.complete()
    assert not (out / INDEX_FILE).exists()


@pytest.mark.parametrize("settings", [None, '{"eos_token_id": [2, 5], "temperature": 0.25, "do_sample": true}'])
def test_a_streamed_run_gives_the_run_in_memory_and_a_folder_with_all_that_was_there(
    settings: str | None, tiny_decoder: Path, text_file: Path, tmp_path: Path
):
    source = tmp_path / "source"
    shutil.copytree(tiny_decoder, source)
    (source / "generation_config.json").unlink(missing_ok=True)
    if settings:
        (source / "generation_config.json").write_text(settings)
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    scores = {}
    for how in ("--stream", "--save_model"):
        out = tmp_path / how
        argv = f"--model_name_or_path {source} --text {text_file} --seq_len 16 --compression wanda --sparsity 0.5 {how}"
        calibration = f"--calibration {text_file} --nsamples 3 --calibration_length 12 --output_dir {out}"
        assert perplexity.main([*argv.split(), *calibration.split()]) == 0
        scores[how] = json.loads((out / "all_results.json").read_text())["levels"][0]["score"]
    assert scores["--stream"] == scores["--save_model"]
    written = tmp_path / "--stream/model"
    compare_tensors(*(AutoModelForCausalLM.from_pretrained(tmp_path / how / "model") for how in scores), lambda _: True)
    copied = written / "generation_config.json"
    assert copied.read_text() == settings if settings else not copied.exists()
    asked = [{"role": "user", "content": "so"}]
    assert AutoTokenizer.from_pretrained(written).apply_chat_template(asked, tokenize=False) == "so!"
    assert json.loads((written / "config.json").read_text())["dtype"] == "float32"
    assert not [*(tmp_path / "--stream").glob("converted-*"), *written.glob("converted-*")]
