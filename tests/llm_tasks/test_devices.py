"""The scripts on a device, as users run them: the stand-in of fake_accelerator.py, or with `-m gpu` a GPU.

Wherever the blocks are, on the device, in host memory or in files, results are the same.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import slow_cases
from fake_accelerator import Meter, fake_accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from harness.models import meta_model
from llm_tasks import own_task, perplexity
from llm_tasks.compressed_model import Compression, compress_weights
from llm_tasks.methods import STRENGTHS, Options
from llm_tasks.resources import memory_needed, walk_costs
from pruning.layers import decoder_weights

COMPRESSIONS = ["dense", "magnitude", "wanda", "sparsegpt", "gptq", "rtn", "low_rank"]


@pytest.fixture
def meter() -> Iterator[Meter]:
    with fake_accelerator() as meter:
        yield meter


@pytest.fixture
def options(tiny_decoder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return [
        "--model_name_or_path", str(tiny_decoder), "--calibration", str(text_file), "--nsamples", "4",
        "--calibration_length", "8", "--precision", "no", "--tokens_per_batch", "16",
    ]  # fmt: skip


EVERY = ["--compression", *COMPRESSIONS, "--sparsity", "0.5", "--bits", "4", "--rank", "4", "8",
         "--magnitude_scope", "layer"]  # fmt: skip
FEW = ["--compression", "dense", "wanda", "--sparsity", "0.5"]


def six_windows(text: Path) -> list[str]:
    return ["--text", str(text), "--seq_len", "16", "--max_windows", "6"]


def results(folder: Path) -> dict[str, dict]:
    return {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())
        for path in sorted(folder.rglob("all_results.json"))
    }


def same(one: dict[str, dict], other: dict[str, dict]) -> bool:
    """Whether two trees hold the same runs with the same scores."""
    assert one.keys() == other.keys() and one
    for name, run in one.items():
        for mine, own in zip(run["levels"], other[name]["levels"], strict=True):
            assert mine["score"] == pytest.approx(own["score"], abs=1e-5), name
        assert run["measured_sparsity"] == other[name]["measured_sparsity"], name
    return True


def questions(folder: Path) -> Path:
    lines = [
        {"question": f"the film is {word} a", "choices": ["good", "bad", "story"], "answer": index % 3, "level": level}
        for level in ("easy", "hard")
        for index, word in enumerate(["a", "so", "plot", "awful"])
    ]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


LAYOUTS = {"device": ["--blocks", "device"], "host": ["--blocks", "host"], "files": ["--stream"],
           "host activations": ["--blocks", "host", "--activations", "host"]}  # fmt: skip


@pytest.mark.slow
def test_perplexity_is_the_same_wherever_the_blocks_are(
    meter: Meter, options: list[str], text_file: Path, tmp_path: Path
) -> None:
    words = [*options, *EVERY, *six_windows(text_file), "--device", "fake"]
    for name, layout in LAYOUTS.items():
        folder = ["--output_dir", str(tmp_path / name / "{compression}" / "{strength}")]
        assert perplexity.main([*words, *layout, *folder]) == 0
    expected = results(tmp_path / "device")
    assert len(expected) == len(COMPRESSIONS) + 1
    assert all(same(expected, results(tmp_path / name)) for name in LAYOUTS)


@pytest.mark.slow
def test_the_distance_from_dense_is_the_same_on_a_device(
    meter: Meter, options: list[str], text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [*options, *FEW, *six_windows(text_file), "--kl"]
    for device in ("cpu", "fake"):
        folder = ["--output_dir", str(tmp_path / device / "{compression}" / "{strength}")]
        assert perplexity.main([*words, "--device", device, *folder]) == 0
    found = [results(tmp_path / device)["wanda/0.5"]["levels"][0] for device in ("cpu", "fake")]
    assert found[0]["kl"] > 0 and found[1]["kl"] == pytest.approx(found[0]["kl"], abs=1e-6)
    with pytest.raises(SystemExit):
        perplexity.main([*words, "--device", "fake", "--blocks", "host", *folder])
    assert "--kl holds the whole dense model on the device too" in capsys.readouterr().err


@pytest.mark.parametrize("mode", [["--answer_mode", "letter"], *slow_cases(["--answer_mode", "cloze"], ["--written"])])
def test_a_users_task_is_the_same_wherever_the_blocks_are(
    meter: Meter, options: list[str], tmp_path: Path, mode: list[str]
) -> None:
    if mode == ["--written"]:
        task, mode = tmp_path / "written.jsonl", ["--max_new_tokens", "3"]
        lines = [{"question": f"the film is {word}", "answers": ["good"]} for word in ("a", "so", "the", "plot")]
        task.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        task = questions(tmp_path)
    for name in ("device", "host", "files"):
        words = [*options, *FEW, "--task_file", str(task), *mode, "--device", "fake", *LAYOUTS[name]]
        assert own_task.main([*words, "--output_dir", str(tmp_path / name / "{compression}" / "{strength}")]) == 0
    expected = results(tmp_path / "device")
    assert len(expected) == 2 and all(same(expected, results(tmp_path / name)) for name in ("host", "files"))


def test_the_device_is_the_accelerator_that_is_there_and_is_recorded(
    meter: Meter, options: list[str], text_file: Path, tmp_path: Path
) -> None:
    words = [*options, *six_windows(text_file), "--output_dir", str(tmp_path / "run")]
    assert perplexity.main(words) == 0
    recorded = (tmp_path / "run" / "args.json").read_text()
    assert '"fake"' in recorded and '"stand-in 0"' in recorded
    peak = json.loads((tmp_path / "run" / "all_results.json").read_text())["peak_memory_bytes"]
    assert 0 < peak < 10**7  # of the device; this process has more


@pytest.mark.slow
def test_blocks_go_to_host_memory_where_the_device_does_not_hold_them(
    meter: Meter, options: list[str], text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tokenizer, folder = AutoTokenizer.from_pretrained(options[1]), tmp_path / "deep"
    size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4}
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = [*options, *FEW, "--model_name_or_path", str(folder), *six_windows(text_file)]
    words += ["--output_dir", str(tmp_path / "runs" / "{compression}" / "{strength}")]

    def planned(*more: str) -> str:
        assert perplexity.main([*words, *more, "--dry_run"]) == 0
        return capsys.readouterr().out

    on_device = planned()
    assert "2 runs, of which 2 are missing" in on_device
    assert "stand-in 0; decoder blocks: on the device" in on_device
    assert not (tmp_path / "runs").exists()  # nothing was begun
    model = meta_model(str(folder), AutoModelForCausalLM)
    costs = walk_costs(model, ["wanda"], (4, 8), torch.float32, 16).values()
    needed = (
        memory_needed(model, torch.float32, layout, True, costs, 16, whole_logits=True, several=True)
        for layout in ("device", "host")
    )
    meter.limit(meter.held_bytes + sum(sum(memory.device.values()) for memory in needed) // 2)
    on_host = planned()
    assert "decoder blocks: in host memory, one at a time on the device" in on_host
    assert "1.02 MB  more for every 1,000 tokens that are evaluated" in on_host  # 256 float32 numbers each
    with pytest.raises(SystemExit):
        planned("--blocks", "device")
    assert "are needed on the device" in capsys.readouterr().err
    assert planned("--device_map", "auto") == on_host  # where all accelerators together do not hold it
    assert perplexity.main([*words, "--device_map", "auto"]) == 0
    assert len(results(tmp_path / "runs")) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--blocks", "host", "--device", "cpu"], "--blocks host brings blocks from host memory to an accelerator"),
        (["--blocks", "host", "--stream"], "--blocks host: --stream and --device_map say themselves where"),
        (["--device", "fake:1"], "--device fake:1 is not there; there are cpu, fake, fake:0"),
    ],
)
def test_bad_input(
    meter: Meter, options: list[str], text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    words: list[str], message: str,
) -> None:  # fmt: skip
    with pytest.raises(SystemExit):
        perplexity.main([*options, "--text", str(text_file), *words, "--output_dir", str(tmp_path / "run")])
    assert message in capsys.readouterr().err


def test_integers_that_are_exported_are_kept_on_the_host(meter: Meter, tiny_decoder: Path) -> None:
    """They are those of the whole model, which the device may not hold."""
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder).to("fake")
    how = Compression(
        options=Options(), magnitude_scope="layer", true_sequential=False, export="gptqmodel", shared={},
        tokens_per_batch=16, precision="no",
    )  # fmt: skip
    cell = {"compression": "rtn", **dict.fromkeys(STRENGTHS), "bits": 4, "seed": 0}
    grids = compress_weights(model, cell, None, how)
    assert len(grids) == len(decoder_weights(model))
    assert {part.device.type for grid in grids.values() for part in grid} == {"cpu"}
