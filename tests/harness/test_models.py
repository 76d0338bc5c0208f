"""harness/models.py: what is loaded is what was meant, in each way that a model may come."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from broken_checkpoints import Hostile, index_of
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    Gemma4TextConfig,
    GPT2Config,
    GPT2Model,
    MixtralConfig,
    MixtralForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from GLUE_tasks import Glue_prune_oneshot, pretrained
from harness import models, run_folder
from harness.content import sha256
from harness.device import default_device, device_named
from harness.loading_report import check_finite
from harness.model_files import check_checkpoint_files, weight_files
from llm_tasks import perplexity, setting5_human_gap

WEIGHTS = "model.safetensors"
BIN = "pytorch_model.bin"
A, B = "a" * 40, "b" * 40


@pytest.fixture
def as_torch_claims_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch is built for CUDA; there is no GPU."""
    monkeypatch.setattr("torch._C._accelerator_getAccelerator", lambda: torch.device("cuda"))
    assert torch.accelerator.current_accelerator().type == "cuda" and not torch.cuda.is_available()


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a model's folder whose weights are changed in place, or to what the function returns."""

    def copy(source: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor] | None], **entries: object) -> Path:
        folder = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(source, folder)
        weights = {key: value.clone() for key, value in load_file(folder / WEIGHTS).items()}
        save_file(change(weights) or weights, folder / WEIGHTS, metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | entries
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


def load_decoder(folder: Path, **options: object) -> torch.nn.Module:
    return models.load_pretrained(str(folder), AutoModelForCausalLM, torch.float32, **options)[0]


def load_encoder(folder: Path, **options: object) -> pretrained.Pretrained:
    return pretrained.load_pretrained(str(folder), 2, **options)


def measure(folder: Path, text: Path, out: Path, *more: str) -> float:
    options = ["--model_name_or_path", str(folder), "--text", str(text), "--seq_len", "8", "--max_windows", "4"]
    assert perplexity.main([*options, "--precision", "no", "--output_dir", str(out), *more]) == 0
    return run_folder.read_runs(out)[0]["score"]


def fine_tune(folder: Path, files: tuple[Path, Path], out: Path, *more: str) -> int:
    train, validation = map(str, files)
    return Glue_prune_oneshot.main([
        "--model_name_or_path", str(folder), "--train_file", train, "--validation_file", validation, "--max_length",
        "16", "--max_train_steps", "2", "--mixed_precision", "no", "--output_dir", str(out), *more,
    ])  # fmt: skip


def test_weights_that_end_too_early_fail_their_run_alone(
    tiny_encoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path, fresh_accelerator: None,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    folder = shutil.copytree(tiny_encoder, tmp_path / "cut")
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    assert fine_tune(folder, sentence_files, tmp_path / "run") == 1
    said = run_folder.read_failure(tmp_path / "run")["error"]
    assert f"{WEIGHTS} is cut short: {len(content) // 2:,} of {len(content):,} bytes" in said
    assert "Traceback" not in capsys.readouterr().err and not run_folder.is_complete(tmp_path / "run")


# devices


def test_the_default_is_an_accelerator_that_is_there(as_torch_claims_cuda: None):
    assert default_device() == device_named("auto") == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused_with_those_that_are(as_torch_claims_cuda: None):
    with pytest.raises(ValueError, match=r"^--device cuda is not there; there are cpu$"):
        device_named("cuda")


def test_scripts_end_well_where_torch_claims_cuda(
    as_torch_claims_cuda: None, fresh_accelerator: None, tiny_decoder: Path, tiny_encoder: Path, text_file: Path,
    sentence_files: tuple[Path, Path], tmp_path: Path,
):  # fmt: skip
    measure(tiny_decoder, text_file, tmp_path / "lm")
    more = ["--sparse_method", "sparse_transfer", "--sparsity", "0.5", "--checkpointing_steps", "1"]
    assert fine_tune(tiny_encoder, sentence_files, tmp_path / "encoder", *more) == 0
    for run in ("lm", "encoder"):
        recorded = json.loads((tmp_path / run / run_folder.ARGUMENTS_FILE).read_text())
        assert recorded["environment"]["device"] == "cpu"


# what a checkpoint may lack, and have besides


def test_a_new_head_and_its_pooler_are_new_and_said(changed, tiny_encoder: Path, caplog):
    caplog.set_level(logging.INFO)
    pooled = load_encoder(tiny_encoder)
    assert pooled.new_parameters == {"classifier.weight", "classifier.bias"}
    assert "newly initialised, since the checkpoint lacks them: classifier.bias, classifier.weight" in caplog.text
    without = changed(tiny_encoder, lambda found: {key: found[key] for key in found if not key.startswith("pooler")})
    assert load_encoder(without).new_parameters == pooled.new_parameters | {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias",
    }  # fmt: skip


def test_a_head_that_generates_is_never_new(changed, tiny_decoder: Path):
    untied = changed(tiny_decoder, lambda found: None, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"lm_head\.weight; it is a base model without its output head"):
        load_decoder(untied)


def test_a_base_model_whose_head_is_tied_is_whole(changed, tiny_decoder: Path):
    base = changed(tiny_decoder, lambda found: {key.removeprefix("model."): found[key] for key in found})
    whole, found = load_decoder(tiny_decoder).state_dict(), load_decoder(base).state_dict()
    assert all(torch.equal(whole[key], found[key]) for key in whole)


def test_another_tasks_head_is_passed_over_and_said(tiny_encoder: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    BertForMaskedLM.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "masked")
    assert "classifier.weight" in load_encoder(tmp_path / "masked").new_parameters
    assert "tensors of the checkpoint are not used: " in caplog.text and "cls.predictions.bias" in caplog.text


def test_a_head_of_which_a_part_is_the_language_models_is_new_where_it_ends(tmp_path: Path):
    """ModernBERT's dense layer and norm before the head are trained with the masked language model."""
    size = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "pad_token_id": 0,
            "num_attention_heads": 2, "max_position_embeddings": 32, "cls_token_id": 1, "sep_token_id": 2,
            "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    ModernBertForMaskedLM(ModernBertConfig(**size)).save_pretrained(tmp_path)
    assert load_encoder(tmp_path).new_parameters == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("key", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.attn.masked_bias"])
def test_tables_that_older_versions_stored_are_passed_over(changed, tiny_decoder: Path, key: str):
    load_decoder(changed(tiny_decoder, lambda found: found | {key: torch.ones(4)}))


@pytest.mark.parametrize(
    "key", ["model.norm.bias", "lm_head.bias", "model.layers.1.self_attn.q_norm.weight", "layers.0.mlp.up_proj.scale"]
)
def test_what_a_model_should_have_taken_is_refused(changed, tiny_decoder: Path, key: str):
    with pytest.raises(ValueError, match=rf"1 tensors of the checkpoint do not belong to .*{key}"):
        load_decoder(changed(tiny_decoder, lambda found: found | {key: torch.ones(16)}))


def test_a_value_head_is_passed_over(changed, tiny_decoder: Path, caplog):
    caplog.set_level(logging.INFO)
    load_decoder(changed(tiny_decoder, lambda found: found | {"v_head.summary.weight": torch.ones(1, 16)}))
    assert "v_head.summary.weight" in caplog.text


def test_buffers_that_count_are_as_needed_as_weights(changed, tmp_path: Path):
    """Gemma 4 scales every layer by a buffer."""
    config = Gemma4TextConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, global_head_dim=8, num_global_key_value_heads=1, max_position_embeddings=64,
        sliding_window=8, hidden_size_per_layer_input=0, num_kv_shared_layers=0, pad_token_id=0,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "whole")
    load_decoder(tmp_path / "whole")
    without = changed(tmp_path / "whole", lambda found: {key: found[key] for key in found if "scalar" not in key})
    with pytest.raises(ValueError, match=r"missing in the checkpoint: model\.layers\.0\.layer_scalar"):
        load_decoder(without)


def test_a_pooler_is_new_as_a_whole(changed, tiny_encoder: Path):
    half = changed(tiny_encoder, lambda found: {key: found[key] for key in found if key != "pooler.dense.bias"})
    with pytest.raises(ValueError, match=r"missing in the checkpoint: bert\.pooler\.dense\.bias"):
        load_encoder(half)


def test_mismatched_sizes_are_ignored_in_the_head_alone(changed, tiny_encoder: Path):
    def with_head(found: dict[str, Tensor]) -> dict[str, Tensor]:
        body = {f"bert.{key}": value for key, value in found.items()}
        return body | {"classifier.weight": torch.ones(5, 32), "classifier.bias": torch.ones(5)}

    folder = changed(tiny_encoder, with_head)
    with pytest.raises(ValueError, match=r"classifier\.bias: \[5\], needed \[2\]\); --ignore_mismatched_sizes"):
        load_encoder(folder)
    found = load_encoder(folder, ignore_mismatched_sizes=True)
    assert found.new_parameters == {"classifier.weight", "classifier.bias"}
    narrow = changed(folder, lambda found: None, intermediate_size=40)
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.0\.intermediate\.dense\.bias has the shape"):
        load_encoder(narrow, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("expert", [["w2"], ["w1"], ["w1", "w3"], ["w1", "w2", "w3"]])
def test_an_expert_that_is_missing_is_named(changed, tmp_path: Path, expert: list[str]):
    """transformers merges experts while it loads; what it cannot merge it reports where nobody looks."""
    config = MixtralConfig(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, bos_token_id=1,
                           num_attention_heads=2, num_key_value_heads=1, num_local_experts=3,
                           eos_token_id=2)  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "whole")
    gone = {f"model.layers.1.block_sparse_moe.experts.1.{name}.weight" for name in expert}
    folder = changed(tmp_path / "whole", lambda found: {key: found[key] for key in found if key not in gone})
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.experts") as refused:
        load_decoder(folder)
    assert "\n" not in str(refused.value) and "report" not in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_found(dtype: torch.dtype, value: float):
    layer = torch.nn.Linear(9, 7, bias=False, dtype=dtype)
    torch.nn.init.constant_(layer.weight, torch.finfo(dtype).max)
    check_finite(layer)
    layer.weight.data[5, 3] = value
    with pytest.raises(ValueError, match=f"weight holds 1 NaN or infinite weights as {dtype}"):
        check_finite(layer)


# .bin


def saved_as_bin(source: Path, folder: Path, shards: int = 1, **options: object) -> Path:
    shutil.copytree(source, folder)
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = [f"pytorch_model-{number + 1:05}-of-{shards:05}.bin" for number in range(shards)] if shards > 1 else [BIN]
    places = {key: names[number % shards] for number, key in enumerate(weights)}
    for name in names:
        torch.save({key: weights[key] for key in weights if places[key] == name}, folder / name, **options)
    if shards > 1:
        (folder / f"{BIN}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_bin_gives_what_safetensors_give(tiny_decoder: Path, text_file: Path, tmp_path: Path, shards: int):
    folder = saved_as_bin(tiny_decoder, tmp_path / "bin", shards)
    assert len(weight_files(str(folder), "bin")) == shards and weight_files(str(folder)) == []
    found = measure(folder, text_file, tmp_path / "run", "--weights", "bin")
    assert found == measure(tiny_decoder, text_file, tmp_path / "dense")
    recorded = json.loads((tmp_path / "run" / run_folder.ARGUMENTS_FILE).read_text())["arguments"]
    assert recorded["model_sha256"] == sha256(weight_files(str(folder), "bin"))


def test_an_encoder_is_fine_tuned_from_bin(
    tiny_encoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path, fresh_accelerator: None
):
    folder = saved_as_bin(tiny_encoder, tmp_path / "bin")
    assert fine_tune(folder, sentence_files, tmp_path / "run", "--weights", "bin") == 0


def test_both_kinds_are_told_apart(tiny_decoder: Path, tmp_path: Path):
    """One folder with other weights in each kind: what is asked for is loaded and hashed."""
    folder = saved_as_bin(tiny_decoder, tmp_path / "both")
    save_file({key: value * 2 for key, value in load_file(tiny_decoder / WEIGHTS).items()}, folder / WEIGHTS)
    name = "model.norm.weight"
    doubled, plain = (load_decoder(folder, weights=kind).state_dict()[name] for kind in ("safetensors", "bin"))
    assert torch.equal(doubled, plain * 2)
    assert [path.name for path in (*weight_files(str(folder)), *weight_files(str(folder), "bin"))] == [WEIGHTS, BIN]


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_bin_runs(tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool):
    """Neither where it is looked at nor where transformers loads it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hostile"
    shutil.copytree(tiny_decoder, folder)
    content = dict(load_file(folder / WEIGHTS)) | {"x": Hostile()}
    torch.save(content, folder / BIN, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin .*is not read"):
        check_checkpoint_files(str(folder), "bin")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_decoder(folder, weights="bin")
    assert not (tmp_path / "it_ran").exists()
    torch.load(folder / BIN, weights_only=False)
    assert (tmp_path / "it_ran").exists()  # it would have


def test_bin_of_an_old_torch_is_read(tiny_decoder: Path, tmp_path: Path):
    folder = saved_as_bin(tiny_decoder, tmp_path / "bin", _use_new_zipfile_serialization=False)
    check_checkpoint_files(str(folder), "bin")
    load_decoder(folder, weights="bin")


# files


def test_what_is_loaded_is_what_is_hashed(tiny_decoder: Path, tmp_path: Path):
    """Shards beside a whole file, a consolidated copy beside shards: from_pretrained reads the others."""
    shutil.copytree(tiny_decoder, tmp_path / "model")
    shutil.copy(tiny_decoder / WEIGHTS, tmp_path / "model" / "consolidated.safetensors")
    assert [path.name for path in weight_files(str(tmp_path / "model"))] == [WEIGHTS]
    index_of("model-1.safetensors")(tmp_path / "model")
    assert [path.name for path in weight_files(str(tmp_path / "model"))] == ["model-1.safetensors"]
    check_checkpoint_files(str(tmp_path / "model"))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_config_without_a_dtype_takes_that_of_the_file(changed, tiny_decoder: Path, tmp_path: Path, kind: str):
    folder = changed(tiny_decoder, lambda found: {key: value.bfloat16() for key, value in found.items()}, dtype=None)
    if kind == "bin":
        folder = saved_as_bin(folder, tmp_path / "bin")
    assert models.stored_dtype(str(folder), kind) == torch.bfloat16
    assert models.load_pretrained(str(folder), AutoModelForCausalLM, "auto", weights=kind)[0].dtype == torch.bfloat16


# the hub


@pytest.fixture
def hub(changed, tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds two revisions of a model, without a network: main, and v2 with other weights."""
    model = tmp_path / "hub" / "models--org--tiny"
    (model / "refs").mkdir(parents=True)
    for name, commit in (("main", A), ("v2", B)):
        (model / "refs" / name).write_text(commit)
    shutil.copytree(tiny_decoder, model / "snapshots" / A)
    other = changed(tiny_decoder, lambda found: {key: value * 1.5 for key, value in found.items()})
    shutil.copytree(other, model / "snapshots" / B)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return model


def test_a_revision_of_a_hub_model(hub: Path, text_file: Path, tmp_path: Path, capsys):
    for name, commit in (("main", A), ("v2", B)):
        more = [] if name == "main" else ["--revision", name]
        score = measure(Path("org/tiny"), text_file, tmp_path / name, *more)
        recorded = json.loads((tmp_path / name / run_folder.ARGUMENTS_FILE).read_text())
        assert recorded["arguments"]["model_commit"] == commit
        assert recorded["arguments"].get("revision") == (None if name == "main" else name)
        assert score == measure(hub / "snapshots" / commit, text_file, tmp_path / f"plain {name}")
    with pytest.raises(SystemExit):
        measure(Path("org/tiny"), text_file, tmp_path / "none", "--revision", "nosuch")
    assert "error: --model_name_or_path org/tiny: " in capsys.readouterr().err


def test_a_hub_model_of_bin_alone_is_refused_by_the_option(hub: Path, text_file: Path, tmp_path: Path):
    saved_as_bin(hub / "snapshots" / A, tmp_path / "bin")
    shutil.rmtree(hub / "snapshots" / A)
    shutil.copytree(tmp_path / "bin", hub / "snapshots" / A)
    options = ["--model_name_or_path", "org/tiny", "--text", str(text_file), "--seq_len", "8", "--max_windows", "4"]
    assert perplexity.main([*options, "--output_dir", str(tmp_path / "run")]) == 1
    assert "--weights bin reads pytorch_model.bin" in run_folder.read_failure(tmp_path / "run")["error"]
    assert perplexity.main([*options, "--output_dir", str(tmp_path / "run"), "--weights", "bin"]) == 0


# code of a model's own


@pytest.fixture(scope="module")
def custom_decoder(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder that transformers does not know: its code is in its folder."""
    folder = tmp_path_factory.mktemp("custom")
    for source in (Path(__file__).parents[1] / "custom_decoder").glob("*.py"):
        shutil.copy(source, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_decoder / name, folder)
    classes = {"AutoConfig": "modeling_cumulative.CumulativeConfig",
               "AutoModelForCausalLM": "modeling_cumulative.CumulativeForCausalLM"}  # fmt: skip
    config = {"model_type": "cumulative", "auto_map": classes, "dtype": "float32", "vocab_size": 17}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    shapes = {"embed.weight": (17, 16), "head.weight": (17, 16)}
    for number in range(2):
        shapes |= {f"layers.{number}.{name}.weight": (16, 16) for name in ("mix", "mlp")}
    save_file(
        {key: torch.randn(shape) / 4 for key, shape in shapes.items()}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    return folder


@pytest.fixture(autouse=True)
def modules_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers copies the code that models bring."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def test_a_custom_decoder_is_measured_and_compressed(custom_decoder: Path, text_file: Path, tmp_path: Path):
    """Perplexity as of a forward pass by hand, from the weights alone."""
    more = ["--trust_remote_code", "--compression", "dense", "magnitude", "--sparsity", "0.5"]
    out = tmp_path / "{compression}"
    options = ["--model_name_or_path", str(custom_decoder), "--text", str(text_file), "--seq_len", "8", "--max_windows",
               "4", "--precision", "no", "--output_dir", str(out), "--save_model"]  # fmt: skip
    assert perplexity.main([*options, *more]) == 0
    tokenizer = models.load_tokenizer(str(custom_decoder))
    texts = "\n\n".join(json.loads(line)["text"] for line in text_file.read_text().splitlines())
    ids = torch.tensor(tokenizer(texts, add_special_tokens=False)["input_ids"][:32]).view(4, 8)
    for compression in ("dense", "magnitude"):
        weights = load_file(tmp_path / compression / "model" / WEIGHTS)
        hidden = weights["embed.weight"][ids]
        for number in range(2):
            mixed = hidden @ weights[f"layers.{number}.mix.weight"].T
            hidden = hidden + mixed.cumsum(1) / torch.arange(1, 9).view(-1, 1)
            hidden = hidden + (hidden @ weights[f"layers.{number}.mlp.weight"].T).relu()
        logits = hidden @ weights["head.weight"].T
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        (row,) = run_folder.read_runs(tmp_path / compression)
        assert row["score"] == pytest.approx(loss.exp().item(), rel=1e-4)
    zeros = sum((weights[key] == 0).float().mean().item() for key in weights if key.startswith("layers.")) / 4
    assert zeros == pytest.approx(0.5)


def test_a_custom_decoder_answers_questions(custom_decoder: Path, tmp_path: Path):
    """Scored the plain way: sentences of other lengths in one batch are as alone."""
    rows = [{"goal": "the film is", "sol1": "good", "sol2": "a poor story and a bad plot", "label": label}
            for label in (0, 1)]  # fmt: skip
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--model_name_or_path", str(custom_decoder), "--tasks", "piqa", "--data_dir", str(tmp_path),
               "--precision", "no", "--trust_remote_code"]  # fmt: skip
    scores = []
    for name, more in (("together", []), ("alone", ["--tokens_per_batch", "1"])):
        assert setting5_human_gap.main([*options, "--output_dir", str(tmp_path / name), *more]) == 0
        scores.append(run_folder.read_items(tmp_path / name))
    key = next(key for key in scores[0] if key.endswith("option_log_likelihood"))
    assert len(set(scores[0][key].round(4).tolist())) == 2
    assert scores[0][key] == pytest.approx(scores[1][key], abs=1e-4)


def test_a_custom_decoders_code_does_not_run_unasked(custom_decoder: Path, text_file: Path, tmp_path: Path, capsys):
    options = ["--model_name_or_path", str(custom_decoder), "--text", str(text_file), "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit):
        perplexity.main(options)
    assert "(modeling_cumulative.py); read it, then give --trust_remote_code" in capsys.readouterr().err


# padding


def test_a_decoder_without_padding_is_fine_tuned(
    tiny_decoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path, fresh_accelerator: None
):
    """GPT-2 reads the last token before the padding: what a row is scored does not depend on its neighbours."""
    folder = tmp_path / "gpt2"
    shutil.copytree(tiny_decoder, folder)
    GPT2Model(GPT2Config(vocab_size=17, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1,
                         eos_token_id=2)).save_pretrained(folder)  # fmt: skip
    more = ["--save_model", "--per_device_eval_batch_size", "8"]
    assert fine_tune(folder, sentence_files, tmp_path / "run", *more) == 0
    saved = tmp_path / "run" / "model"
    tokenizer = models.load_tokenizer(str(saved))
    model = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    assert model.config.pad_token_id == tokenizer.pad_token_id == 2
    rows = [json.loads(line) for line in sentence_files[1].read_text().splitlines()]
    alone = [model(**tokenizer(row["sentence"], return_tensors="pt")).logits.argmax().item() for row in rows]
    assert run_folder.read_items(tmp_path / "run")["prediction"].tolist() == alone


def test_a_decoder_without_padding_and_without_an_end_is_refused(
    tiny_decoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path, fresh_accelerator: None, capsys
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_decoder, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": None}))
    with pytest.raises(SystemExit):
        fine_tune(folder, sentence_files, tmp_path / "run")
    assert "its tokenizer has neither a pad_token nor an eos_token" in capsys.readouterr().err


# a tokenizer with more tokens than the model


def test_tokens_beyond_the_embedding_are_harmless_until_a_text_needs_one(
    tiny_decoder: Path, text_file: Path, tmp_path: Path, caplog
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_decoder, folder)
    tokenizer = models.load_tokenizer(str(folder))
    tokenizer.add_tokens(["strange"])
    tokenizer.save_pretrained(folder)
    assert measure(folder, text_file, tmp_path / "run") == measure(tiny_decoder, text_file, tmp_path / "dense")
    assert "ids go up to 17, the embedding has 17 rows" in caplog.text
    (tmp_path / "strange.txt").write_text("the film is strange and good")
    options = ["--model_name_or_path", str(folder), "--text", str(tmp_path / "strange.txt"), "--seq_len", "6"]
    for more in ([], ["--stream"]):
        assert perplexity.main([*options, *more, "--output_dir", str(tmp_path / "refused")]) == 1
        assert "the texts hold token 17 ('strange')" in run_folder.read_failure(tmp_path / "refused")["error"]


# a sweep


def test_a_sweep_goes_on_after_a_cell_whose_compression_fails(
    tiny_decoder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    from llm_tasks.methods import METHODS

    def wrong(*_: object) -> None:
        raise IndexError("index 3 is out of bounds")

    monkeypatch.setitem(METHODS, "rtn", METHODS["rtn"]._replace(compress=wrong))
    options = ["--model_name_or_path", str(tiny_decoder), "--text", str(text_file), "--seq_len", "8", "--max_windows",
               "4", "--compression", "rtn", "magnitude", "--bits", "4", "--sparsity", "0.5", "--group_size",
               "8"]  # fmt: skip
    assert perplexity.main([*options, "--output_dir", str(tmp_path / "{compression}")]) == 1
    assert run_folder.is_complete(tmp_path / "magnitude") and not run_folder.is_complete(tmp_path / "rtn")
    assert run_folder.read_failure(tmp_path / "rtn")["error"] == "IndexError: index 3 is out of bounds"
    assert f"{tmp_path / 'rtn'}: failed: IndexError: index 3 is out of bounds" in caplog.text
    assert not any(record.exc_info for record in caplog.records)
