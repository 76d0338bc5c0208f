"""perplexity.py and what it shares with the other scripts: cells, restoring, saving, refusing."""

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import slow_cases
from method_lists import taking
from safetensors.torch import load_file, save_file
from setting_values import values_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.table import perplexity_table
from harness import run_folder
from llm_tasks import perplexity, resources, run
from llm_tasks.engine import window_losses
from llm_tasks.engine.processes import Processes
from llm_tasks.settings.perplexity import SETTING, window_length
from pruning import calibration
from pruning.layers import decoder_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def options(tiny_decoder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return [
        "--model_name_or_path", str(tiny_decoder), "--calibration", str(text_file), "--text", str(text_file),
        "--nsamples", "4", "--calibration_length", "8", "--seq_len", "16", "--precision", "no",
    ]  # fmt: skip


def read(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def test_perplexity_is_as_published(tiny_decoder: Path, text_file: Path, options: list[str], tmp_path: Path):
    """exp of the mean over windows of mean losses, non-overlapping windows, tail dropped: a plain twin."""
    assert perplexity.main([*options, "--output_dir", str(tmp_path / "run")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder).eval()
    text = "\n\n".join(json.loads(line)["text"] for line in text_file.read_text().splitlines())
    ids = AutoTokenizer.from_pretrained(tiny_decoder)(text, return_tensors="pt").input_ids[0]
    losses = []
    with torch.no_grad():
        for start in range(0, len(ids) - 15, 16):
            window = ids[None, start : start + 16]
            losses.append(float(model(window, labels=window).loss))
    level = read(tmp_path / "run")["levels"][0]
    assert level["score"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert level["num_examples"] == len(losses)
    assert level["stderr"] == pytest.approx(level["score"] * np.std(losses, ddof=1) / math.sqrt(len(losses)), rel=1e-4)
    assert level["chance"] == 17
    np.testing.assert_allclose(run_folder.read_items(tmp_path / "run")["window_loss"], losses, rtol=1e-4)


def test_the_split_and_length_that_are_evaluated():
    """The published ones: WikiText-2's test split, C4's validation split, windows of 2,048 tokens or all that fit."""
    for text, split in (("wikitext2", "test"), ("c4", "validation")):
        values = values_of(SETTING, "--text", text, max_length=4096)
        assert values.split == split and window_length(values) == 2048
    assert window_length(values_of(SETTING, max_length=1024)) == 1024


def test_documents_are_joined_by_blank_lines(tmp_path: Path):
    """As published; a tokenizer by words does not tell."""
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "one", "said": "1"}\n{"text": "two", "said": "2"}\n')
    assert SETTING.load(values_of(SETTING, "--text", str(path), max_length=32)) == "one\n\ntwo"
    assert SETTING.load(values_of(SETTING, "--text", str(path), "--text_field", "said", max_length=32)) == "1\n\n2"


def test_the_first_windows_are_evaluated(options: list[str], tmp_path: Path):
    for name, more in (("all", []), ("two", ["--max_windows", "2"])):
        assert perplexity.main([*options, *more, "--output_dir", str(tmp_path / name)]) == 0
    losses = {name: run_folder.read_items(tmp_path / name)["window_loss"] for name in ("all", "two")}
    assert len(losses["two"]) == 2 and losses["two"].tolist() == pytest.approx(losses["all"][:2].tolist(), rel=1e-5)


SWEEP = [
    "--compression", "dense", "magnitude", "wanda", "ria", "sparsegpt", "rtn", "gptq", "low_rank",
    "--sparsity", "0.5", "--nm_ratio", "2:4", "--bits", "4", "--rank", "3", "--group_size", "8", "--seed", "0", "1",
]  # fmt: skip


@pytest.mark.slow
def test_a_sweep_equals_single_runs_from_the_checkpoint(options: list[str], tmp_path: Path):
    template = str(tmp_path / "sweep/{compression}/{strength}/{seed}")
    assert perplexity.main([*options, *SWEEP, "--output_dir", template]) == 0
    rows = {(row["compression"], row["strength"], row["seed"]): row for row in run_folder.read_runs(tmp_path / "sweep")}
    # dense, magnitude, rtn and low_rank have one seed, calibrated methods two
    assert len(rows) == 1 + 2 + 1 + 1 + 2 * (2 + 2 + 2 + 1)
    alone = {"wanda": "--sparsity 0.5", "gptq": "--bits 4 --group_size 8", "low_rank": "--rank 3"}
    for compression, strength in alone.items():
        single = tmp_path / "single" / compression
        words = [*options, "--compression", compression, *strength.split()]
        assert perplexity.main([*words, "--output_dir", str(single)]) == 0
        value = read(single)["strength"]
        assert read(single)["levels"] == [
            {key: rows[compression, value, 0][key] for key in run_folder.LEVEL_KEYS}
        ]  # dense weights came back unchanged between the cells
    several = [*options, "--compression", "low_rank", "--rank", "3", "5", "--output_dir", str(tmp_path / "{strength}")]
    assert perplexity.main(several) == 0
    assert read(tmp_path / "rank3")["levels"] == read(tmp_path / "single" / "low_rank")["levels"]
    run_folder.check_runs(list(run_folder.read_runs(tmp_path / "sweep")))
    assert rows["wanda", 0.5, 0]["measured_sparsity"] == 0.5
    assert rows["sparsegpt", "2:4", 1]["measured_sparsity"] == 0.5
    assert rows["low_rank", 3, 0]["parameter_ratio"] == pytest.approx(
        (2 * 3 * 32 + 2 * 3 * 24 + 3 * 3 * 40) / (2 * 256 + 2 * 128 + 3 * 384)  # q, o: 16x16; k, v: 8x16; mlp: 24x16
    )


@pytest.mark.parametrize("count", [2, 3, 50])
def test_processes_divide_the_windows_of_one_among_them(options: list[str], tmp_path: Path, monkeypatch, count: int):
    """The losses of all processes, each with 0 in the others' places, are those of one, to the last bit."""
    words = [*options, "--tokens_per_batch", "48", "--output_dir", str(tmp_path / "run")]
    assert perplexity.main(words) == 0
    alone = run_folder.read_items(tmp_path / "run")["window_loss"]
    monkeypatch.setattr(Processes, "merge", lambda self, losses: losses)
    folder = options[options.index("--model_name_or_path") + 1]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    values = values_of(SETTING, "--text", options[options.index("--text") + 1], "--seq_len", "16", max_length=32)
    windows = SETTING.build(SETTING.load(values), values, 0, tokenizer)
    parts = [
        window_losses.measured_in_memory(model, windows, 48, "no", Processes(index, count))["window_loss"]
        for index in range(count)
    ]
    assert len(windows) % 3 and np.array_equal(sum(parts), alone)
    assert sum(np.count_nonzero(part) for part in parts) == len(windows)


@pytest.mark.parametrize("stream", [False, *slow_cases(True)])
def test_a_saved_model_is_the_evaluated_one(options: list[str], tmp_path: Path, tiny_decoder: Path, stream: bool):
    words = [*options, "--compression", "wanda", "--nm_ratio", "2:4", "--save_model", *(["--stream"] if stream else [])]
    assert perplexity.main([*words, "--output_dir", str(tmp_path / "run")]) == 0
    folder = tmp_path / "run" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all((weight.matrix == 0).float().mean() == 0.5 for weight in decoder_weights(model).values())
    assert "wanda, nm_ratio 2:4" in (folder / "README.md").read_text()
    again = [*options, "--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "again")]
    assert perplexity.main(again) == 0
    assert read(tmp_path / "again")["levels"][0]["score"] == read(tmp_path / "run")["levels"][0]["score"]
    assert read(tmp_path / "run")["measured_sparsity"] == 0.5


@pytest.mark.parametrize("keeping", ["--stream", "--save_model"])
def test_a_run_that_saves_none_leaves_no_model_of_the_run_before(options: list[str], tmp_path: Path, keeping: str):
    words = [*options, "--compression", "magnitude", "--magnitude_scope", "layer", "--output_dir", str(tmp_path)]
    assert perplexity.main([*words, "--sparsity", "0.5", keeping]) == 0
    assert (tmp_path / "model").is_dir()
    assert perplexity.main([*words, "--sparsity", "0.25", "--overwrite"]) == 0
    assert read(tmp_path)["measured_sparsity"] == 0.25 and not (tmp_path / "model").exists()


def test_streamed_and_loaded_runs_agree(options: list[str], tmp_path: Path):
    for name in ("loaded", "streamed"):
        words = [
            *options,
            "--compression",
            "sparsegpt",
            "--sparsity",
            "0.5",
            *(["--stream"] if name == "streamed" else []),
        ]
        assert perplexity.main([*words, "--output_dir", str(tmp_path / name)]) == 0
    assert read(tmp_path / "loaded")["levels"] == read(tmp_path / "streamed")["levels"]
    dense = [*options, "--stream", "--output_dir", str(tmp_path / "dense")]
    assert perplexity.main(dense) == 0
    assert read(tmp_path / "dense")["measured_sparsity"] == 0


def test_weights_keep_their_dtype(options: list[str], tmp_path: Path):
    words = [*options, "--dtype", "bfloat16", "--compression", "sparsegpt", "--sparsity", "0.5", "--save_model"]
    assert perplexity.main([*words, "--output_dir", str(tmp_path / "run")]) == 0
    stored = load_file(tmp_path / "run/model/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert read(tmp_path / "run")["measured_sparsity"] >= 0.5


def test_magnitude_ranks_by_layer_or_over_all_layers(options: list[str], tmp_path: Path):
    words = [*options, "--compression", "magnitude", "--sparsity", "0.5", "--save_model", "--magnitude_scope"]
    fractions = {}
    for scope in ("layer", "global"):
        assert perplexity.main([*words, scope, "--output_dir", str(tmp_path / scope)]) == 0
        weights = decoder_weights(AutoModelForCausalLM.from_pretrained(tmp_path / scope / "model")).values()
        fractions[scope] = [float((weight.matrix == 0).float().mean()) for weight in weights]
        assert read(tmp_path / scope)["measured_sparsity"] == 0.5
    assert set(fractions["layer"]) == {0.5}
    assert len(set(fractions["global"])) > 1


def test_complete_runs_are_skipped_and_others_refused(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    words = [*options, "--compression", "magnitude", "--sparsity", "0.5", "--output_dir", str(tmp_path / "run")]
    assert perplexity.main(words) == 0
    monkeypatch.setattr(run, "load_model", lambda args: pytest.fail("loaded a model for a complete run"))
    assert perplexity.main(words) == 0
    with pytest.raises(SystemExit):
        perplexity.main([*words, "--seq_len", "8"])
    assert "holds a run with other arguments (seq_len: 8 here, 16 there)" in capsys.readouterr().err


def test_options_that_do_not_matter_to_a_run_do_not_tell_it_apart(options: list[str], tmp_path: Path):
    words = [*options, "--output_dir", str(tmp_path / "{compression}/{strength}")]
    assert perplexity.main([*words, "--compression", "dense", "magnitude", "--sparsity", "0.5"]) == 0
    first = (tmp_path / "dense/dense/all_results.json").stat().st_mtime_ns
    more = ["--compression", "dense", "wanda", "gptq", "--sparsity", "0.5", "--bits", "4", "--group_size", "4"]
    assert perplexity.main([*words, *more, "--nsamples", "5"]) == 0
    assert (tmp_path / "dense/dense/all_results.json").stat().st_mtime_ns == first


def test_listed_cells_are_commands_that_make_the_same_runs(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["llm_tasks/perplexity.py"])
    words = [*options, "--compression", "dense", "wanda", "--sparsity", "0.5", "--nm_ratio", "2:4"]
    template = str(tmp_path / "{compression}/{strength}")
    assert perplexity.main([*words, "--output_dir", template, "--list_cells"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 3
    for command in commands:
        assert perplexity.main(shlex.split(command)[2:]) == 0
    monkeypatch.setattr(run, "load_model", lambda args: pytest.fail("the sweep's runs are complete"))
    assert perplexity.main([*words, "--output_dir", template]) == 0


def test_runs_of_one_method_told_differently_do_not_stand_in_one_figure(options: list[str], tmp_path: Path):
    words = [*options, "--compression", "gptq", "rtn", "--output_dir", str(tmp_path / "{compression}/{strength}")]
    assert perplexity.main([*words, "--bits", "4", "--group_size", "8"]) == 0
    run_folder.check_runs(run_folder.read_runs(tmp_path))
    assert perplexity.main([*words, "--bits", "8", "--group_size", "4"]) == 0
    with pytest.raises(ValueError, match=r"runs of .*compression (gptq|rtn) .*group_size: [48] here, [48] there"):
        run_folder.check_runs(run_folder.read_runs(tmp_path))


BAD = [
    (["--compression", "wanda"], "--compression wanda needs --sparsity or --nm_ratio"),
    (
        ["--compression", "wanda", "--bits", "4", "--sparsity", "0.5"],
        f"--bits is taken by --compression {taking('bits')}",
    ),
    (
        ["--compression", "gptq", "--sparsity", "0.5", "--bits", "4"],
        f"--sparsity is taken by --compression {taking('sparsity')}",
    ),
    (["--sparsity", "0.5"], "asked for is dense"),
    (
        ["--compression", "wanda", "--sparsity", "0.5", "--nm_ratio", "2:4"],
        "add {nm_ratio} or {sparsity}",
    ),
    (["--compression", "wanda", "--sparsity", "1.0"], "1.0 is outside [0, 1)"),
    (["--compression", "magnitude", "--nm_ratio", "28"], "write what is kept: 6:8"),
    (["--compression", "wanda", "--nm_ratio", "3:5"], "inputs, no multiple of 5"),
    (["--compression", "gptq", "--bits", "1"], "1 is outside [2, 16]"),
    (["--compression", "gptq", "--bits", "17"], "17 is outside [2, 16]"),
    (["--compression", "gptq", "--bits", "4", "--group_size", "0"], "neither a positive number of inputs nor -1"),
    (["--compression", "gptq", "--bits", "4", "--group_size", "-2"], "neither a positive number of inputs nor -1"),
    (["--compression", "low_rank", "--rank", "0"], "0 is outside [1,"),
    (["--compression", "low_rank", "--rank", "16"], "the highest rank of a weight"),
    (["--compression", "wanda", "--sparsity", "0.5", "--nsamples", "0"], "0 is outside [1,"),
    (["--compression", "wanda", "--sparsity", "0.5", "--nsamples", "4000"], "token"),
    (["--compression", "wanda", "--sparsity", "0.5", "--calibration", "nowhere.txt"], "nowhere.txt"),
    (
        ["--compression", "wanda", "--sparsity", "0.5", "--calibration_field", "body"],
        "no field 'body'; it has text",
    ),
    (["--compression", "wanda", "--sparsity", "0.5", "--calibration_length", "99"], "takes 32 tokens"),
    (["--compression", "sparsegpt", "--nm_ratio", "2:4", "--block_size", "6"], "--block_size 6 is no multiple"),
    (["--compression", "awq", "--bits", "4"], "invalid choice: 'awq'"),
    (["--seq_len", "64"], "--seq_len 64: the model takes 2 to 32 tokens"),
    (["--text", "nowhere.txt"], "nowhere.txt"),
    (["--device", "toaster"], "--device toaster"),
    (["--model_name_or_path", "/nowhere/at/all"], "no such folder"),
    (["--output_dir", "/dev/null/run"], "is a file, not a folder"),
    (
        ["--stream", "--compression", "magnitude", "--sparsity", "0.5", "--magnitude_scope", "global"],
        "whole model",
    ),
    (["--stream", "--device", "cuda"], "--device cuda is not there; there are cpu"),
    (["--blocks", "host"], "--blocks host brings blocks from host memory to an accelerator; the device is the CPU"),
    (["--blocks", "host", "--stream"], "--blocks host: --stream and --device_map say themselves"),
    (["--activations", "disk"], "--activations: invalid choice: 'disk'"),
    (["--device_map", "auto", "--device", "cuda:1"], "--device cuda:1 must be auto"),
    (["--device_map", "auto", "--stream"], "--device_map takes all GPUs for one process: no --stream"),
    (
        ["--kl", "--stream"],
        "--kl holds the whole dense model on the device too: no --stream, --device_map, --blocks host",
    ),
    (["--kl", "--device_map", "auto"], "--kl holds the whole dense model on the device too"),
    (["--sparsity_ratio", "0.5"], "unrecognized arguments"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_clear_error_before_a_model_loads(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    words: list[str], message: str,
):  # fmt: skip
    monkeypatch.setattr(run, "load_model", lambda args: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as stopped:
        perplexity.main([*options, "--output_dir", str(tmp_path / "run"), *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stream"], "--stream computes in one process: start it without accelerate launch or torchrun"),
        (
            ["--device", "cuda:1"],
            "--device cuda:1: a job gives each process a GPU of its own; allowed: auto, cuda, cpu",
        ),
    ],
    ids=["stream", "device"],
)
def test_what_several_processes_cannot_do_is_refused(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    words: list[str], message: str,
):  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stopped:
        perplexity.main([*options, "--output_dir", str(tmp_path / "run"), *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_an_encoder_is_refused(options: list[str], tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        perplexity.main([*options, "--output_dir", str(tmp_path / "run"), "--model_name_or_path", str(tiny_encoder)])
    assert "a bert is no decoder-only language model" in capsys.readouterr().err


def test_an_empty_text_is_refused(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(SystemExit):
        perplexity.main([*options, "--output_dir", str(tmp_path / "run"), "--text", str(tmp_path / "empty.txt")])
    assert "empty.txt" in capsys.readouterr().err


def test_too_little_memory_is_said_before_loading(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(resources, "available_memory", lambda device: 1000)
    with pytest.raises(SystemExit):
        perplexity.main([*options, "--output_dir", str(tmp_path / "run")])
    assert "--stream" in capsys.readouterr().err


def test_memory_is_asked_for_what_is_missing_alone(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """What is complete needs none, and of two strengths the one that is left no copy of the dense weights."""
    words = [*options, "--output_dir", str(tmp_path / "{strength}"), "--compression", "magnitude", "--sparsity"]
    assert perplexity.main([*words, "0.5", "0.3", "--dry_run"]) == 0
    assert "copy of the dense weights" in capsys.readouterr().out
    assert perplexity.main([*words, "0.5"]) == 0
    assert perplexity.main([*words, "0.5", "0.3", "--dry_run"]) == 0
    assert "copy of the dense weights" not in capsys.readouterr().out
    monkeypatch.setattr(resources, "available_memory", lambda device: 1000)
    assert perplexity.main([*words, "0.5"]) == 0
    with pytest.raises(SystemExit):
        perplexity.main([*words, "0.5", "0.3"])


def test_a_run_that_fails_leaves_no_result(options: list[str], tiny_decoder: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_decoder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    stored = load_file(tiny_decoder / "model.safetensors")
    stored["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(stored, broken / "model.safetensors", metadata={"format": "pt"})
    words = [
        *options,
        "--model_name_or_path",
        str(broken),
        "--compression",
        "magnitude",
        "low_rank",
        "--sparsity",
        "0.5",
    ]
    assert perplexity.main([*words, "--rank", "3", "--output_dir", str(tmp_path / "{compression}")]) == 1
    assert not list(tmp_path.glob("*/all_results.json"))


@pytest.mark.slow
def test_the_script_runs_from_its_folder(options: list[str], tmp_path: Path):
    command = [sys.executable, "perplexity.py", *options, "--max_windows", "2", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT / "llm_tasks", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"1 of 1 runs are complete: {tmp_path / 'run'}"
    assert "compressible: 5760 weights in 21 matrices" in done.stderr


def test_calibration_windows_are_cached(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = [*options, "--compression", "wanda", "--sparsity", "0.5", "--output_dir"]
    assert perplexity.main([*words, str(tmp_path / "one")]) == 0
    monkeypatch.setattr(calibration, "sample_windows", lambda *_: pytest.fail("drawn again"))
    assert perplexity.main([*words, str(tmp_path / "two")]) == 0
    assert read(tmp_path / "one")["levels"] == read(tmp_path / "two")["levels"]


def test_kl_is_that_of_two_models_run_apart(options: list[str], tmp_path: Path, tiny_decoder: Path):
    """A plain twin: both models from their folders, one window at a time, in float64."""
    words = [*options, "--tokens_per_batch", "48", "--compression", "dense", "wanda", "--sparsity", "0.5"]
    words += ["--save_model", "--output_dir"]
    assert perplexity.main([*words, str(tmp_path / "kl/{compression}"), "--kl"]) == 0
    assert perplexity.main([*words, str(tmp_path / "bare/{compression}")]) == 0
    found, bare = read(tmp_path / "kl/wanda")["levels"][0], read(tmp_path / "bare/wanda")["levels"][0]
    assert {name: value for name, value in found.items() if name not in ("kl", "kl_stderr")} == bare
    assert "kl" not in read(tmp_path / "kl/dense")["levels"][0]
    divergences = run_folder.read_items(tmp_path / "kl/wanda")["window_kl"]
    dense = AutoModelForCausalLM.from_pretrained(tiny_decoder).eval()
    wanda = AutoModelForCausalLM.from_pretrained(tmp_path / "kl/wanda/model").eval()
    values = values_of(SETTING, "--text", options[options.index("--text") + 1], "--seq_len", "16", max_length=32)
    windows = SETTING.build(SETTING.load(values), values, 0, AutoTokenizer.from_pretrained(tiny_decoder))
    expected = []
    with torch.no_grad():
        for window in windows:
            p, q = (model(window[None]).logits[0, :-1].double().softmax(-1) for model in (dense, wanda))
            expected.append(float((p * (p / q).log()).sum(-1).mean()))
    np.testing.assert_allclose(divergences, expected, rtol=1e-3, atol=1e-7)
    assert found["kl"] == pytest.approx(np.mean(divergences))
    assert found["kl_stderr"] == pytest.approx(np.std(divergences, ddof=1) / math.sqrt(len(windows)))


def test_kl_of_a_model_that_is_dense_is_zero_and_a_dense_run_is_the_same_with_it(options: list[str], tmp_path: Path):
    words = [*options, "--output_dir", str(tmp_path / "{compression}")]
    assert perplexity.main([*words, "--compression", "dense"]) == 0
    made = (tmp_path / "dense/all_results.json").stat().st_mtime_ns
    more = ["--compression", "dense", "magnitude", "--sparsity", "0", "--kl"]
    assert perplexity.main([*words, *more]) == 0
    assert (tmp_path / "dense/all_results.json").stat().st_mtime_ns == made
    assert (read(tmp_path / "magnitude")["levels"][0]["kl"], set(read_kl(tmp_path / "magnitude"))) == (0, {0})
    rows = run_folder.read_runs(tmp_path)
    run_folder.check_runs(rows)  # --kl makes no other recipe
    (_, point) = perplexity_table(rows)
    assert (point["kl"], point["kl_stderr"]) == (0, 0)


def read_kl(folder: Path) -> list[float]:
    return run_folder.read_items(folder)["window_kl"].tolist()


def test_processes_divide_the_windows_of_both_models(tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Processes, "merge", lambda self, values: values)
    model, dense = (AutoModelForCausalLM.from_pretrained(tiny_decoder).eval() for _ in range(2))
    decoder_weights(model)["model.layers.0.mlp.up_proj.weight"].matrix.data.mul_(2)
    windows = torch.randint(0, 17, (7, 16), generator=torch.Generator().manual_seed(0))
    alone = window_losses.measured_in_memory(model, windows, 32, "no", dense=dense)["window_kl"]
    parts = [
        window_losses.measured_in_memory(model, windows, 32, "no", Processes(index, 2), dense)["window_kl"]
        for index in range(2)
    ]
    assert np.array_equal(sum(parts), alone) and (alone > 0).all()


def test_kl_asks_for_the_memory_of_a_second_model(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    words = [*options, "--compression", "magnitude", "--sparsity", "0.5", "--output_dir", str(tmp_path), "--dry_run"]
    assert perplexity.main(words) == 0
    assert "--kl" not in capsys.readouterr().out
    assert perplexity.main([*words, "--kl"]) == 0
    assert "dense model beside the compressed one (--kl)" in capsys.readouterr().out
