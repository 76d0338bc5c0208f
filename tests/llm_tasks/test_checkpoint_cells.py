"""Models compressed elsewhere as cells: what is read, counted, refused; results beside in-memory twins."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from result_keys import assert_keys_are_told
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GraniteMoeConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
)

from harness import run_folder
from llm_tasks import own_task, perplexity
from llm_tasks import run as llm_run
from llm_tasks.checkpoints import checkpoint_files, checkpoint_models, tokenizer_check
from llm_tasks.checkpoints.checkpoint_files import Checkpoint, open_checkpoint, safe_label, stored_bytes
from llm_tasks.engine.ways import Ways
from pruning.layers import decoder_weights

Results = Callable[..., dict[str, dict]]
ROOT = Path(__file__).parents[2]
MIXTURE = {"vocab_size": 17, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
           "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3}  # fmt: skip


@pytest.fixture
def measured(tiny_decoder: Path, text_file: Path, tmp_path: Path) -> Results:
    """Runs perplexity.py with these options; returns its results by compression and strength."""

    def run(*words: str, into: str = "runs") -> dict[str, dict]:
        base = [
            "--model_name_or_path",
            str(tiny_decoder),
            "--text",
            str(text_file),
            "--seq_len",
            "16",
            "--dtype",
            "float32",
        ]
        out = tmp_path / into
        base += ["--precision", "no"]
        assert perplexity.main([*base, *words, "--output_dir", str(out / "{compression}/{strength}")]) == 0
        found = {}
        for path in out.rglob(run_folder.RESULT_FILE):
            loss = run_folder.read_items(path.parent)["window_loss"]
            found[path.parent.relative_to(out).as_posix()] = {**json.loads(path.read_text()), "loss": loss}
        return found

    return run


@pytest.fixture
def refused(tiny_decoder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs perplexity.py on a checkpoint, which must be refused; returns the line that says why."""

    def run(checkpoint: str | Path, *words: str) -> str:
        base = ["--model_name_or_path", str(tiny_decoder), "--text", str(text_file), "--seq_len", "16"]
        base += ["--compression", "checkpoint", "--checkpoint", str(checkpoint)]
        with pytest.raises(SystemExit):
            perplexity.main([*base, *words, "--output_dir", str(tmp_path / "refused/{compression}/{strength}")])
        assert not (tmp_path / "refused").exists()
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(lines) == 1
        return lines[0].partition("error: ")[2]

    return run


@pytest.fixture
def pruned(tiny_decoder: Path, tmp_path: Path) -> Path:
    """The tiny decoder without every second weight of its down_proj matrices."""
    folder = tmp_path / "pruned"
    shutil.copytree(tiny_decoder, folder)
    tensors = load_file(folder / "model.safetensors")
    for key, tensor in tensors.items():
        if "down_proj" in key:
            tensor[:, ::2] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def changed_config(folder: Path, **entries: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def test_a_model_saved_by_us_is_what_it_was_in_memory(measured: Results, tiny_decoder: Path, tmp_path: Path) -> None:
    made = measured("--compression", "dense", "magnitude", "--sparsity", "0.5", "--save_model", into="saved")
    saved = tmp_path / "saved/magnitude/0.5/model"
    found = measured("--compression", "dense", "checkpoint", "--checkpoint", str(saved), "--kl")
    own, memory = found["checkpoint/0.5"], made["magnitude/0.5"]
    assert np.array_equal(own["loss"], memory["loss"])
    assert not np.array_equal(own["loss"], made["dense/dense"]["loss"])
    assert own["measured_sparsity"] == memory["measured_sparsity"]
    assert own["levels"][0]["kl"] > 0
    assert (own["compression"], own["strength_kind"], own["requested_sparsity"]) == ("checkpoint:0.5", "bytes", None)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (saved, tiny_decoder)]
    assert [own["checkpoint_bytes"], own["parent_bytes"]] == sizes and own["strength"] == round(sizes[0] / sizes[1], 6)
    # Stored dense in float32: twice the bytes of 16-bit weights, zeros or not.
    assert own["decoder_bytes_fraction"] == 2.0
    assert_keys_are_told(tmp_path / "runs")


def test_the_dense_model_is_loaded_once_and_checkpoints_come_last(
    measured: Results, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    dense, checkpoint = llm_run.load_dense, checkpoint_models.load
    monkeypatch.setattr(llm_run, "load_dense", lambda job: loaded.append("dense") or dense(job))
    monkeypatch.setattr(checkpoint_models, "load", lambda own, *rest: loaded.append(own.name) or checkpoint(own, *rest))
    other = shutil.copytree(pruned, tmp_path / "other")
    words = ["--compression", "checkpoint", "dense", "magnitude", "--sparsity", "0.5"]
    found = measured(*words, "--checkpoint", str(pruned), str(other))
    assert loaded == ["dense", str(pruned), str(other)]
    assert found["checkpoint/pruned"]["measured_sparsity"] == pytest.approx(
        (24 // 2 * 16) / (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24)
    )


def test_a_checkpoint_is_the_same_by_content_alone(measured: Results, pruned: Path, capsys: pytest.CaptureFixture):
    words = ["--compression", "checkpoint", "--checkpoint"]
    before = measured(*words, str(pruned))["checkpoint/pruned"]
    (pruned.parent / "moved").mkdir()
    elsewhere = Path(shutil.move(pruned, pruned.parent / "moved"))
    assert measured(*words, str(elsewhere))["checkpoint/pruned"]["seconds"] == before["seconds"]  # skipped
    tensors = load_file(elsewhere / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, elsewhere / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit):
        measured(*words, str(elsewhere))
    assert "checkpoint_sha256" in capsys.readouterr().err


def test_levels_are_measured_on_the_same_items(tiny_decoder: Path, pruned: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    rows = [{"question": f"the film is {w}", "choices": ["good", "bad story"], "answer": n % 2}
            for n, w in enumerate(("a", "so", "the", "plot"))]  # fmt: skip
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model_name_or_path", str(tiny_decoder), "--task_file", str(task), "--answer_mode", "cloze"]
    words += ["--compression", "dense", "checkpoint", "--checkpoint", str(pruned), str(tiny_decoder)]
    assert own_task.main([*words, "--output_dir", str(tmp_path / "runs/{compression}/{strength}")]) == 0
    names = "dense/dense", "checkpoint/pruned", f"checkpoint/{safe_label(str(tiny_decoder))}"
    items = [run_folder.read_items(tmp_path / "runs" / name) for name in names]
    dense, own, same = (own["level0_option_log_likelihood"] for own in items)
    assert np.array_equal(dense, same) and not np.allclose(dense, own)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose matrices fit blocks of 32, with a byte-level tokenizer."""
    from tiny_models import byte_level

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = byte_level()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        rope_theta=500.0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def written(load_script: Callable, llama: Path, tmp_path: Path) -> Callable[[str], Path]:
    def write(kind: str) -> Path:
        load_script("benchmarks/peer_checkpoints").write_gguf(llama, kind, tmp_path / f"gguf-{kind}")
        return tmp_path / f"gguf-{kind}" / f"model-{kind}.gguf"

    return write


@pytest.mark.parametrize(("kind", "block_bytes"), [("q8_0", 2 + 32), ("q4_0", 2 + 16)])
def test_a_gguf_is_the_model_whose_matrices_its_blocks_stand_for(
    written: Callable, llama: Path, kind: str, block_bytes: int, text_file: Path, tmp_path: Path
) -> None:
    import gguf

    file = written(kind)
    checkpoint = open_checkpoint(str(file))
    assert checkpoint.kind == "gguf" and open_checkpoint(str(file.parent)).files == checkpoint.files
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    assert stored_bytes(checkpoint, {}) == weights // 32 * block_bytes

    # The twin: each matrix of the safetensors rounded as the format says, without any file.
    twin = AutoModelForCausalLM.from_pretrained(llama)
    for weight in twin.parameters():
        if weight.dim() == 2:
            values = weight.detach().numpy()
            dtype = gguf.GGMLQuantizationType[kind.upper()]
            weight.data = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(values, dtype), dtype))
    source = llm_run.ModelSource(str(llama), torch.device("cpu"), dtype="float32")
    skeleton = llm_run.skeleton(source)
    opened = checkpoint_models.open_one(str(file), skeleton, source)
    assert opened.facts["checkpoint_differences"] == {}
    model = checkpoint_models.load(opened, source, skeleton.config)
    ids = torch.arange(3, 20)[None]
    assert torch.allclose(model(ids).logits, twin(ids).logits, atol=1e-5)
    facts = checkpoint_models.facts_of(opened, model, decoder_weights(skeleton))
    expected = checkpoint_models.zero_fraction([w.matrix for w in decoder_weights(twin).values()])
    assert facts["measured_sparsity"] == expected
    assert facts["decoder_bytes_fraction"] == block_bytes / 32 / 2
    assert facts["strength"] == round(file.stat().st_size / (llama / "model.safetensors").stat().st_size, 6)


def test_the_tables_of_a_gguf_tokenizer_are_compared(written: Callable, llama: Path) -> None:
    parent = AutoTokenizer.from_pretrained(llama)
    file = written("q8_0")
    assert tokenizer_check.gguf_difference(file, parent) == ""
    parent.add_tokens(["<more>"])
    assert "is no token, the parent's '<more>'" in tokenizer_check.gguf_difference(file, parent)


def test_an_adapter_is_added_to_the_parent(tiny_decoder: Path, measured: Results, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["up_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    found = measured("--compression", "dense", "checkpoint", "--checkpoint", str(tmp_path / "lora"))
    own = found["checkpoint/lora"]
    adapter = (tmp_path / "lora/adapter_model.safetensors").stat().st_size
    assert own["checkpoint_bytes"] == own["parent_bytes"] + adapter and own["strength"] > 1

    # The twin: W + 2 B A, by hand.
    stored = load_file(tmp_path / "lora/adapter_model.safetensors")
    twin = shutil.copytree(tiny_decoder, tmp_path / "twin")
    tensors = load_file(twin / "model.safetensors")
    for layer in range(3):
        name = f"model.layers.{layer}.mlp.up_proj"
        a, b = (stored[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        tensors[f"{name}.weight"] += 2.0 * b @ a
    save_file(tensors, twin / "model.safetensors", {"format": "pt"})
    same = measured("--compression", "checkpoint", "--checkpoint", str(twin))["checkpoint/twin"]
    assert np.allclose(own["loss"], same["loss"], atol=1e-5)
    assert not np.allclose(own["loss"], found["dense/dense"]["loss"], atol=1e-4)


def test_bytes_of_packed_tensors_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A compressed-tensors layer of 64 by 128 in 4 bits, groups of 64; and bitsandbytes' names below "weight"."""
    packed = {
        "model.layers.0.mlp.up_proj.weight_packed": torch.zeros(64, 16, dtype=torch.int32),
        "model.layers.0.mlp.up_proj.weight_scale": torch.zeros(64, 2, dtype=torch.bfloat16),
        "model.layers.0.mlp.up_proj.weight_shape": torch.zeros(2, dtype=torch.int64),
        "model.layers.0.mlp.down_proj.weight": torch.zeros(4096, 1, dtype=torch.uint8),
        "model.layers.0.mlp.down_proj.weight.absmax": torch.zeros(128, dtype=torch.float32),
        "model.layers.0.mlp.down_proj.bias": torch.zeros(128),
        "model.embed_tokens.weight": torch.zeros(10, 128),
        "model.layers.0.input_layernorm.weight": torch.zeros(128),
    }
    save_file(packed, tmp_path / "model.safetensors")
    checkpoint = Checkpoint("x", tmp_path, "compressed-tensors", (tmp_path / "model.safetensors",))
    blocks = {"model.layers.0.mlp.up_proj": 0, "model.layers.0.mlp.down_proj": 0, "model.layers.1.mlp.up_proj": 1}
    assert stored_bytes(checkpoint, blocks) == (64 * 16 * 4 + 64 * 2 * 2 + 2 * 8) + (4096 + 128 * 4)
    assert stored_bytes(dataclasses.replace(checkpoint, kind="adapter"), blocks) is None
    for other in ({"layers.0": 0}, blocks | {"model.layers.0.mlp.experts": 0}):
        caplog.clear()
        assert stored_bytes(checkpoint, other) is None
        assert f"--checkpoint x: no file names a tensor of {list(other)[-1]}; how many bytes" in caplog.text


@pytest.mark.parametrize(
    ("config", "stored"),
    [(MixtralConfig(**MIXTURE), "model.layers.0.block_sparse_moe.experts.0.w1.weight"),
     (GraniteMoeConfig(**MIXTURE), "model.layers.0.block_sparse_moe.input_linear.weight"),
     (Qwen3MoeConfig(**MIXTURE, moe_intermediate_size=8), "model.layers.0.mlp.experts.0.up_proj.weight")],
    ids=lambda value: getattr(value, "model_type", ""),
)  # fmt: skip
def test_experts_count_by_the_names_that_they_were_published_with(
    config: PretrainedConfig, stored: str, tmp_path: Path
) -> None:
    """In 16 bits every weight takes as many bytes as the fraction counts for it."""
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    source = llm_run.ModelSource(str(tmp_path), torch.device("cpu"))
    opened = checkpoint_models.open_one(str(tmp_path), llm_run.skeleton(source), source)
    assert stored in checkpoint_files.tensor_bytes(tmp_path / "model.safetensors")
    assert opened.facts["decoder_bytes_fraction"] == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [None, 0.1, 100.0])
def test_a_quantized_layer_gives_its_weight_by_its_outputs(dtype: torch.dtype, size: float | None) -> None:
    """To the bit, whatever its bias: beside 100, weights below 0.25 vanish in bfloat16."""
    layer = torch.nn.Linear(5, 3, bias=size is not None, dtype=dtype)
    if size is not None:
        torch.nn.init.constant_(layer.bias, size)
    assert torch.equal(checkpoint_models.by_unit_vectors(layer, dtype), layer.weight.float())
    assert size is None or torch.equal(layer.bias, torch.full((3,), size, dtype=dtype))


def test_a_layer_that_adds_more_than_a_bias_is_not_read_by_its_outputs() -> None:
    class Shifted(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) + 1

    with pytest.raises(ValueError, match="Shifted adds more than a bias to its outputs"):
        checkpoint_models.by_unit_vectors(Shifted(5, 3), torch.float32)


def test_the_sparsity_of_experts_in_one_parameter_is_measured() -> None:
    model = AutoModelForCausalLM.from_config(MixtralConfig(**MIXTURE))
    names = decoder_weights(model)
    model.model.layers[1].mlp.experts.down_proj.data[2, :, ::2] = 0
    found = dict(zip(names, checkpoint_models.matrices(model, names), strict=True))
    assert all(torch.equal(found[name], weight.matrix) for name, weight in names.items())
    zeros = sum(int((matrix == 0).sum()) for matrix in found.values())
    assert zeros == 24 * 16 / 2
    model.model.layers[0].mlp.experts.down_proj = torch.nn.Parameter(torch.zeros(3, 8, dtype=torch.uint8), False)
    with pytest.raises(ValueError, match=r"experts\.down_proj\[0\] is stored in MixtralExperts without values to look"):
        list(checkpoint_models.matrices(model, names))


def test_the_fast_paths_of_two_models_are_those_that_both_bear() -> None:
    one = Ways(shares=True, packs=True, keeps=True, compiles=("a", "b"), answers="together")
    other = Ways(shares=True, pads=True, keeps=True, compiles=("b",), answers="cached")
    assert checkpoint_models.both(one, other) == Ways(shares=True, keeps=True, compiles=("b",), answers="cached")


@pytest.mark.parametrize(
    ("name", "label"),
    [("made/W4A16", "W4A16"), ("made/W4A16/", "W4A16"), ("lab/Model.x-GPTQ", "Model.x-GPTQ"), ("a b/c d!", "c-d"),
     ("runs/wanda/2of4/model", "2of4"), ("x/model-q4_0.gguf", "model-q4_0"), ("../..", safe_label("../.."))],
)  # fmt: skip
def test_the_label_is_the_last_name(name: str, label: str) -> None:
    assert safe_label(name) == label and "/" not in label


def test_what_is_not_of_this_parent_is_refused(refused: Callable, pruned: Path, tmp_path: Path) -> None:
    words = AutoTokenizer.from_pretrained(pruned)
    vocabulary = json.loads((pruned / "tokenizer.json").read_text())
    table = vocabulary["model"]["vocab"]
    table["good"], table["bad"] = table["bad"], table["good"]
    swapped = shutil.copytree(pruned, tmp_path / "swapped")
    (swapped / "tokenizer.json").write_text(json.dumps(vocabulary))
    first = min(words.convert_tokens_to_ids(["good", "bad"]))
    assert refused(swapped) == (
        f"--checkpoint {swapped}: its tokenizer is not the parent's: index {first} is 'bad', the parent's 'good'"
    )
    for entries, reason in (
        ({"model_type": "qwen2"}, "another architecture: it is a qwen2, the parent a llama"),
        ({"num_hidden_layers": 4}, "another architecture: its num_hidden_layers is 4, the parent's 3"),
        ({"vocab_size": 99}, "another architecture: its vocab_size is 99, the parent's 17"),
        ({"max_position_embeddings": 8}, "it takes 8 tokens, the longest text to measure on has 16"),
        ({"quantization_config": {"quant_method": "new"}}, "transformers has no loader for its quantization, 'new'"),
    ):
        other = shutil.copytree(pruned, tmp_path / "other", dirs_exist_ok=True)
        changed_config(other, **entries)
        assert refused(other).startswith(f"--checkpoint {other}: {reason}")


def test_bin_files_are_read_only_when_asked_for(
    refused: Callable, measured: Results, pruned: Path, tiny_decoder: Path, text_file: Path, tmp_path: Path
) -> None:
    stored = []
    for source in (tiny_decoder, pruned):
        stored.append(shutil.copytree(source, tmp_path / "bin" / source.name))
        torch.save(load_file(stored[-1] / "model.safetensors"), stored[-1] / "pytorch_model.bin")
        (stored[-1] / "model.safetensors").unlink()
    parent, checkpoint = map(str, stored)
    assert "its weights are in pytorch_model.bin; save it as safetensors" in refused(checkpoint)
    out = tmp_path / "read"
    words = [
        "--model_name_or_path",
        parent,
        "--weights",
        "bin",
        "--compression",
        "checkpoint",
        "--checkpoint",
        checkpoint,
    ]
    words += ["--text", str(text_file), "--seq_len", "16", "--dtype", "float32", "--precision", "no"]
    assert perplexity.main([*words, "--output_dir", str(out)]) == 0
    (beside,) = measured("--compression", "checkpoint", "--checkpoint", str(pruned)).values()
    assert run_folder.read_items(out)["window_loss"].tolist() == beside["loss"].tolist()


def test_what_cannot_be_read_is_refused(refused: Callable, pruned: Path, tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nothing")
    assert "no such file" in refused("./nothing.gguf")
    (tmp_path / "empty").mkdir()
    assert "no config.json, no adapter_config.json and no GGUF file" in refused(tmp_path / "empty")
    (tmp_path / "bad.gguf").write_bytes(b"GGML")
    assert "does not begin as a GGUF file" in refused(tmp_path / "bad.gguf")
    whole = (pruned / "model.safetensors").read_bytes()
    (pruned / "model.safetensors").write_bytes(whole[:-8])
    assert f"--checkpoint {pruned}: " in refused(pruned) and "cut short" in refused(pruned)
    (pruned / "model.safetensors").unlink()
    assert f"--checkpoint {pruned}: the folder has no weights" in refused(pruned)


def test_a_missing_package_is_named_with_the_command(
    refused: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_files, "_is_installed", lambda module: False)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    wanted = checkpoint_files.PACKAGES["adapter"]["peft"]
    assert refused(tmp_path).endswith(f"it is adapter, which needs packages: pip install {wanted}")


def test_the_packages_are_those_of_the_requirements() -> None:
    lines = (ROOT / "requirements-checkpoints.txt").read_text().splitlines()
    kept = {line for line in lines if line and not line.startswith("#")}
    pinned = {own for packages in checkpoint_files.PACKAGES.values() for own in packages.values() if "==" in own}
    assert pinned - kept <= set((ROOT / "requirements.txt").read_text().splitlines())
    assert kept <= pinned


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["--stream"], "--stream compresses and measures block by block"), (["--save_model"], "--save_model writes"),
     (["--blocks", "host"], "--blocks host keeps dense blocks"), (["--export", "gptqmodel"], "--export packs what")],
)  # fmt: skip
def test_what_goes_with_no_checkpoint_is_refused(refused: Callable, pruned: Path, words: list[str], reason: str):
    assert refused(pruned, *words).startswith(reason)


def test_two_checkpoints_of_one_name_are_refused(refused: Callable, pruned: Path, tmp_path: Path) -> None:
    other = shutil.copytree(pruned, tmp_path / "more" / "pruned")
    assert "both would be called 'pruned'" in refused(pruned, str(other))


def test_the_cells_are_listed_with_their_checkpoint(measured: Results, pruned: Path, capsys: pytest.CaptureFixture):
    measured("--compression", "dense", "checkpoint", "--checkpoint", str(pruned), "--list_cells")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "--checkpoint" not in lines[0]
    assert f"--checkpoint {pruned}" in lines[1] and lines[1].rstrip("'\"").endswith("checkpoint/pruned")


def test_smaller_is_measured_and_told(measured: Results, pruned: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(pruned)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    model.save_pretrained(pruned)
    own = measured("--compression", "checkpoint", "--checkpoint", str(pruned))["checkpoint/pruned"]
    assert own["checkpoint_differences"]["num_hidden_layers"] == "2, the parent's 3"
    assert own["measured_sparsity"] == pytest.approx((24 // 2 * 16) / (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24))
