"""Streamed compression equals compression in memory bit for bit: for every architecture and dtype, after a kill too."""

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import decoder_configs, slow_cases
from plain_twins import GEMMA4, compare_tensors, more_configs, streamed_equals_memory
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from harness.models import load_pretrained, meta_model
from llm_tasks import perplexity
from llm_tasks.methods import METHODS, Options, Strength
from pruning.blocks import INDEX_FILE, StreamedBlocks, _device_map, _digest
from pruning.layers import decoder_weights
from pruning.replay import Replay
from pruning.walk import InputStatistics, compress_blocks

WINDOWS = torch.randint(3, 17, (5, 12), generator=torch.Generator().manual_seed(0))
CONFIGS = decoder_configs() | more_configs()


def compressor(name: str, strength: Strength):
    return lambda W, inputs, _: METHODS[name].compress(W, inputs, strength, Options()), METHODS[name].statistic


def stream(source: Path, out: Path, name: str, strength: Strength, job: str = "one") -> None:
    storage = StreamedBlocks(source, out, job=job)
    compress_blocks(storage.model, WINDOWS, *compressor(name, strength), tokens_per_batch=24, storage=storage)
    storage.complete()


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("magnitude", Strength("sparsity", 0.5)),
        ("wanda", Strength("nm_ratio", "2:4")),
        ("sparsegpt", Strength("sparsity", 0.5)),
        ("gptq", Strength("bits", 4)),
    ],
)
def test_streamed_equals_loaded_bit_for_bit(tiny_decoder: Path, tmp_path: Path, name: str, strength: Strength):
    stream(tiny_decoder, tmp_path / "out", name, strength)
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    compress_blocks(model, WINDOWS, *compressor(name, strength), tokens_per_batch=24)
    streamed = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for key, value in model.state_dict().items():
        assert torch.equal(streamed.state_dict()[key], value), key
    assert streamed.lm_head.weight is streamed.model.embed_tokens.weight
    assert not (tmp_path / "out" / ".stream").exists()


def test_a_streamed_forward_equals_the_models_own(tiny_decoder: Path):
    storage = StreamedBlocks(tiny_decoder)
    with torch.no_grad():
        replay = Replay(storage.model, storage, WINDOWS, 24, "no")
        for index in range(len(storage.blocks)):
            with storage.hold(index) as block:
                replay.advance(index, block)
        logits = torch.cat([logits for _, logits in replay.logits()])
        model = AutoModelForCausalLM.from_pretrained(tiny_decoder)
        expected = torch.cat([model(batch, use_cache=False).logits for batch in WINDOWS.split(2)])
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("died_at", ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.k_proj.weight"])
def test_a_killed_job_goes_on_at_its_block_and_ends_the_same(tiny_decoder: Path, tmp_path: Path, died_at: str):
    out, strength = tmp_path / "out", Strength("sparsity", 0.5)
    compress, statistic = compressor("sparsegpt", strength)
    calls: list[str] = []

    class KilledError(BaseException):
        pass

    def dying(W: torch.Tensor, inputs: InputStatistics, name: str) -> torch.Tensor:
        if name == died_at:
            raise KilledError
        return compress(W, inputs, name)

    def counting(W: torch.Tensor, inputs: InputStatistics, name: str) -> torch.Tensor:
        calls.append(name)
        return compress(W, inputs, name)

    storage = StreamedBlocks(tiny_decoder, out, job="one")
    with pytest.raises(KilledError):
        compress_blocks(storage.model, WINDOWS, dying, statistic, tokens_per_batch=24, storage=storage)
    assert not StreamedBlocks.is_complete(out, "one")
    assert not (out / INDEX_FILE).exists()
    storage = StreamedBlocks(tiny_decoder, out, job="one")
    compress_blocks(storage.model, WINDOWS, counting, statistic, tokens_per_batch=24, storage=storage)
    storage.complete()
    assert calls[0].startswith(died_at.partition(".self_attn")[0].partition(".mlp")[0])  # finished blocks stay finished
    stream(tiny_decoder, tmp_path / "whole", "sparsegpt", strength)
    for path in sorted((tmp_path / "whole").glob("*.safetensors")):
        once, again = load_file(path), load_file(out / path.name)
        assert all(torch.equal(once[key], again[key]) for key in once | again)


def test_a_full_disk_is_an_error_before_the_hidden_states_are_mapped(tiny_decoder: Path, tmp_path: Path):
    """Writing to a mapping that the disk has no room for would end the process without a word."""
    storage = StreamedBlocks(tiny_decoder, tmp_path / "out", job="one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            storage.activations(torch.Size((64, 64)), torch.float32, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_room_is_reserved_where_a_file_system_cannot_by_itself(tiny_decoder: Path, tmp_path: Path, monkeypatch):
    """The C library then writes zeros, which it refuses to do at the end of a file that is opened to append."""
    flags = []
    monkeypatch.setattr(os, "posix_fallocate", lambda file, *_: flags.append(fcntl.fcntl(file, fcntl.F_GETFL)))
    StreamedBlocks(tiny_decoder, tmp_path / "out", job="one").activations(torch.Size((8, 8)), torch.float32, 0)
    assert flags and not flags[0] & os.O_APPEND


def test_hidden_states_that_leave_a_block_do_not_overwrite_those_that_enter_it(tiny_decoder: Path, tmp_path: Path):
    """A job that is killed in between goes on from the latter."""
    storage = StreamedBlocks(tiny_decoder, tmp_path / "out", job="one")
    entered, left = (storage.activations(torch.Size((2, 3)), torch.float32, index) for index in (4, 5))
    entered.fill_(1)
    left.fill_(2)
    assert (entered == 1).all() and (storage.activations(torch.Size((2, 3)), torch.float32, 5) == 2).all()


def test_an_unfinished_job_of_another_kind_is_started_anew(tiny_decoder: Path, tmp_path: Path):
    out = tmp_path / "out"
    storage = StreamedBlocks(tiny_decoder, out, job="one")
    with storage.hold(0) as block:
        storage.finished(0, block)
    assert StreamedBlocks(tiny_decoder, out, job="one").resume()[0] == 1
    shutil.copytree(out, tmp_path / "older")  # as if a version had written it that noted less
    edited = tmp_path / "older" / ".stream" / "progress.json"
    edited.write_text(json.dumps({"job": "one", "next": 1}))
    assert StreamedBlocks(tiny_decoder, tmp_path / "older", job="one").resume()[0] == 0
    assert StreamedBlocks(tiny_decoder, out, job="another").resume()[0] == 0
    stream(tiny_decoder, out, "magnitude", Strength("sparsity", 0.5), job="another")
    assert StreamedBlocks.is_complete(out, "another") and not StreamedBlocks.is_complete(out, "one")
    StreamedBlocks(tiny_decoder, out, job="third")
    assert not (out / INDEX_FILE).exists()  # a kill from now on leaves nothing that looks complete


def test_a_folder_that_another_program_wrote_is_no_complete_job(tmp_path: Path):
    for index in ('{"weight_map": {}}', '{"metadata": {"total_size": 1}, "weight_map": {}}'):
        (tmp_path / INDEX_FILE).write_text(index)
        assert not StreamedBlocks.is_complete(tmp_path, "one")


def test_one_block_at_a_time_holds_memory(tiny_decoder: Path):
    storage = StreamedBlocks(tiny_decoder)
    assert all(parameter.is_meta for parameter in storage.blocks.parameters())
    with storage.hold(1) as block:
        assert not any(parameter.is_meta for parameter in block.parameters())
        assert all(parameter.is_meta for parameter in storage.blocks[0].parameters())
    assert all(parameter.is_meta for parameter in storage.blocks.parameters())


def test_weights_of_a_folder_are_those_of_the_loaded_model(tiny_decoder: Path):
    streamed = {name: matrix.clone() for name, matrix in StreamedBlocks(tiny_decoder).weights()}
    loaded = decoder_weights(AutoModelForCausalLM.from_pretrained(tiny_decoder))
    assert streamed.keys() == loaded.keys()
    assert all(torch.equal(streamed[name], weight.matrix) for name, weight in loaded.items())


def test_a_checkpoint_that_does_not_fill_the_model_is_refused_by_name(tiny_decoder: Path, tmp_path: Path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny_decoder / name).read_bytes())
    stored = load_file(tiny_decoder / "model.safetensors")
    renamed = {key.replace("mlp.up_proj", "mlp.w3"): value for key, value in stored.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    missing = r"3 of .* weights are missing in the checkpoint: model\.layers\.0\.mlp\.up_proj\.weight"
    with pytest.raises(ValueError, match=missing):
        StreamedBlocks(tmp_path)


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
    [
        (torch.float32, "float16"),
        (torch.bfloat16, None),
        *slow_cases((torch.float32, None), (torch.bfloat16, "float32")),
    ],
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


def test_parts_that_transformers_keeps_in_float32_are_in_memory(tiny_decoder: Path):
    model = meta_model(str(tiny_decoder), AutoModelForCausalLM, False)
    model._keep_in_fp32_modules, model._keep_in_fp32_modules_strict = ["up_proj"], ["input_layernorm"]
    placed = _device_map(model, "model.layers", model.model.layers)
    assert [placed[f"model.layers.1.{part}"] for part in ("mlp.up_proj", "input_layernorm")] == ["cpu", "cpu"]
    assert [placed[f"model.layers.1.{part}"] for part in ("mlp.down_proj", "self_attn")] == ["disk", "disk"]


@pytest.mark.parametrize("other", ["model.embed_tokens", "lm_head", "model.layers.1.self_attn.q_proj"])
def test_a_weight_that_a_block_shares_is_not_streamed(tiny_decoder: Path, other: str):
    model = meta_model(str(tiny_decoder), AutoModelForCausalLM, False)
    _device_map(model, "model.layers", model.model.layers)  # its head, which is its embeddings, is no hindrance
    model.lm_head.weight = torch.nn.Parameter(torch.empty(17, 16, device="meta"))
    model.model.layers[0].mlp.up_proj.weight = model.get_submodule(other).weight
    with pytest.raises(ValueError, match=r"cannot be streamed: .* are one weight") as refused:
        _device_map(model, "model.layers", model.model.layers)
    assert {f"{other}.weight", "model.layers.0.mlp.up_proj.weight"} <= set(str(refused.value).split())


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


@pytest.mark.parametrize(
    "change", ["base model's names", "sharded", "old norms' names", *slow_cases("the same head twice")]
)
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
    with pytest.raises(ValueError, match="--stream cannot write emu3_text_model"):
        StreamedBlocks(tmp_path / "text", tmp_path / "out")


def test_tensors_are_compared_by_dtype_shape_bytes_and_presence(tiny_decoder: Path):
    zeros = torch.zeros(2, 3, dtype=torch.float16)
    assert len({_digest(zeros), _digest(zeros.T), _digest(zeros.bfloat16()), _digest(zeros + 1)}) == 4
    with pytest.raises(ValueError, match="differs after saving and loading"):
        StreamedBlocks(tiny_decoder).check({"model.lost.weight": _digest(zeros)})


def test_what_is_written_otherwise_than_it_was_meant_has_no_index(tiny_decoder: Path, tmp_path: Path):
    out = tmp_path / "out"
    storage = StreamedBlocks(tiny_decoder, out, job="one")
    compress_blocks(storage.model, None, lambda W, inputs, name: W, storage=storage)
    shard = out / "model-00002-of-00004.safetensors"
    stored = load_file(shard)
    stored["model.layers.1.mlp.up_proj.weight"][3, 2] += 1e-6
    save_file(stored, shard, {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight differs after saving and loading"):
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


@pytest.mark.torture
def test_a_model_larger_than_the_memory_it_may_use(tmp_path: Path):
    """A 126 MB model is compressed by a process that takes at most 85 MB beyond what it has after its imports.

    Pages of the model's files that are mapped and not written to are no memory that is taken: they can go at any time.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=512, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=4,
        max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model", max_shard_size="15MB")
    program = textwrap.dedent("""
        import sys, threading, time
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        from llm_tasks.methods import METHODS, Options, Strength
        from pruning.blocks import StreamedBlocks
        from pruning.walk import compress_blocks
        from transformers.models.llama import modeling_llama
        def taken():
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1e3
        peak = before = taken()
        def watch():
            global peak
            while True:
                peak = max(peak, taken())
                time.sleep(0.001)
        threading.Thread(target=watch, daemon=True).start()
        storage = StreamedBlocks(Path(sys.argv[1]), Path(sys.argv[2]), job="one")
        method, strength = METHODS["wanda"], Strength("sparsity", 0.5)
        compress_blocks(storage.model, torch.ones(2, 16, dtype=torch.int64),
                        lambda W, X, _: method.compress(W, X, strength, Options()), method.statistic, storage=storage)
        storage.complete()
        print(peak - before)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "model", tmp_path / "out"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 5 < float(done.stdout) < 85  # one block takes 10.5 MB
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
    assert len(set(index["weight_map"].values())) == 13
    weights = list(StreamedBlocks(tmp_path / "out").weights())
    assert all((matrix == 0).float().mean() == 0.5 for _, matrix in weights)
