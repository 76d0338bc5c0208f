"""scripts/benchmarks/gpu.py whole, on a tiny shape: on the CPU and on the stand-in; speed itself is never asserted."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

import device_work
import gpu
import random_models
from llm_tasks.methods import METHODS
from pruning.layers import decoder_blocks
from roofline import Roofline, Work

TINY = ["--shape", "tiny", "--nsamples", "4", "--seq_len", "16", "--tokens_per_batch", "32", "--dtype", "float32",
        "--subjects", "3", "--questions", "4", "--example_tokens", "6", "--plain_prompts", "3", "--rows", "8",
        "--max_length", "8", "--batch_size", "4"]  # fmt: skip
SMALLER = ["--layers", "2", "--hidden", "16", "--intermediate", "16"]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_accelerator")
def test_all_parts_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture):
    output = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--output", str(output), "--methods", "magnitude", "wanda", "low_rank", "--rank", "4"]
    assert gpu.main([*TINY, *words]) == 0
    printed = capsys.readouterr().out
    assert "random Llama: hidden 32, layers 3" in printed
    found = json.loads(output.read_text())
    assert found["failures"] == [] and found["flops_per_second"] > 0 and found["link_bytes_per_second"] is None
    for name in ("magnitude", "wanda", "low_rank"):
        work = found["compression"][f"{name}, blocks on the device"]
        assert work["seconds"] > 0 and work["floor"] > 0 and work["peak"] > 0 and work["predicted"] is None
        assert f"{name}, blocks on the device" in printed
    scoring = found["scoring"]["device"]
    assert scoring["prompts"] == 12 and scoring["plain_prompts"] == 3
    # The examples of a subject once, and the questions, of which all letters read the last token.
    assert scoring["tokens_distinct"] == 3 * (5 * 6 + 4 * 6) <= scoring["tokens_computed"]
    assert found["finetuning"]["unheld"] == 0 and found["finetuning"]["steps"] == 2


@pytest.mark.slow
def test_every_method_in_both_layouts_on_a_device(accelerator: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    output = tmp_path / "gpu.json"
    words = ["--device", accelerator, "--parts", "compression", "scoring", "--layout", "device", "host", "--stages"]
    assert gpu.main([*TINY, *words, *SMALLER, "--blocks_measured", "1", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 blocks are measured: seconds are extrapolated linearly" in printed
    assert "seconds by stage" in printed and "prompts per second" in printed
    found = json.loads(output.read_text())
    assert found["link_bytes_per_second"] > 0
    for layout in gpu.LAYOUTS:
        for method in ("magnitude", *gpu.CALIBRATED):
            work = found["compression"][f"{method}, blocks on the {layout}"]
            assert work["seconds"] == pytest.approx(work["measured"] * 2)
            assert 0 < work["predicted"] < work["predicted_whole"] or layout == "host"
            assert set(work["stages"]) == {"bring", "passes", "sums", "compress", "factor", "advance", "rest"}
            assert (work["stages"]["factor"] > 0) == (method in ("sparsegpt", "gptq"))
            assert (work["stages"]["bring"] > 0) == (layout == "host")
        assert found["scoring"][layout]["peak"] > 0


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.gpu
def test_fine_tuning_on_a_gpu():
    found = device_work.finetune("tiny", 8, 8, 4, 0.5, torch.device("cuda"))
    assert found["unheld"] == 0 and found["ours"] > 0 and found["peak"] > 0


def test_a_random_model_never_is_in_host_memory_and_its_blocks_only_where_they_shall(accelerator: str):
    shape, device = random_models.SHAPES["tiny"], torch.device(accelerator)
    on_device = random_models.random_llama(shape, 16, torch.bfloat16, device)
    assert {tensor.device.type for tensor in (*on_device.parameters(), *on_device.buffers())} == {accelerator}
    assert {parameter.dtype for parameter in on_device.parameters()} == {torch.bfloat16}
    weight = random_models.matrices(on_device)[0].float()
    assert 0.01 < float(weight.std()) < 0.03
    on_host = random_models.random_llama(shape, 16, torch.bfloat16, device, "host")
    blocks = decoder_blocks(on_host)[1]
    assert {tensor.device.type for tensor in (*blocks.parameters(), *blocks.buffers())} == {"cpu"}
    inside = {id(parameter) for parameter in blocks.parameters()}
    outside = [parameter for parameter in on_host.parameters() if id(parameter) not in inside]
    assert {parameter.device.type for parameter in outside} == {accelerator}


def test_sizes_of_llamas():
    for name, weights in (("7B", 6.74e9), ("13B", 13.02e9), ("70B", 68.98e9)):
        model = random_models.without_weights(random_models.SHAPES[name], 2048, torch.bfloat16)
        assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(weights, rel=0.001)


def test_floors_by_hand():
    roofline = Roofline(100.0, 10.0, 50.0, 5.0)
    assert roofline.floor(Work(flops=300, float32_flops=20, bytes=50)) == 5
    assert roofline.floor(Work(flops=100, bytes=500)) == 10
    assert roofline.floor(Work(bytes=500, link_bytes=60)) == 12
    assert roofline._replace(link_bytes_per_second=None).floor(Work(flops=100, link_bytes=60)) == 1


def test_work_of_compression_by_hand():
    """A block of the tiny Llama: q and o 32 x 32, k and v 16 x 32, gate and up 64 x 32, down 32 x 64."""
    job = device_work.Job(random_models.SHAPES["tiny"], 2, torch.device("cpu"), torch.float32, 4, 16, 32, 0.5, 4, 8, 4)
    weights = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32
    dense = device_work.compression_work(job, "magnitude", "host")
    assert dense == Work(0, 0, 2 * 2 * weights * 4, 2 * weights * 4)
    wanda = device_work.compression_work(job, "wanda", "device")
    passes = 2 * 2 * 2 * 64 * weights + 2 * 4 * 32 * 2 * 64 * 8
    assert wanda == Work(passes, 0, 3 * 2 * weights * 4 + 4 * 64 * 32 * 4 * 2, 0)
    sparsegpt = device_work.compression_work(job, "sparsegpt", "device")
    grams = 2 * 2 * 64 * (3 * 32**2 + 64**2)
    updates = 2 * (32 * (2 * 32 * 32 + 2 * 16 * 32 + 2 * 64 * 32) + 64 * 64 * 32)
    factors = 2 * 2 / 3 * (3 * 32**3 + 64**3)
    assert sparsegpt.flops == passes + grams and math.isclose(sparsegpt.float32_flops, updates + factors)


@pytest.mark.slow
def test_a_method_that_fails_is_a_line_and_the_others_are_measured(
    accelerator: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    if accelerator != "fake":
        pytest.skip("a stand-in's limit")

    def runs_out(*arguments: object) -> None:
        raise torch.OutOfMemoryError("out of memory: tried to allocate 2.00 GiB\nmore lines")

    monkeypatch.setitem(METHODS, "wanda", METHODS["wanda"]._replace(compress=runs_out))
    words = ["--device", "fake", "--parts", "compression", "--methods", "wanda", "magnitude"]
    assert gpu.main([*TINY, *SMALLER, *words]) == 1
    printed = capsys.readouterr()
    reason = "out of memory: out of memory: tried to allocate 2.00 GiB"
    assert f"gpu: wanda, blocks on the device: {reason}\n" in printed.err
    assert "magnitude, blocks on the device: " in printed.out


def test_a_peer_is_asked_which_library_it_has(tmp_path: Path, capsys: pytest.CaptureFixture):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$3" = lm_eval ]\n')
    python.chmod(0o755)
    assert gpu.peer_with([python], "scoring") == python
    assert gpu.peer_with([python], "compression") is None
    assert "no interpreter of --peer_python has llmcompressor: compression has no peer" in capsys.readouterr().err
    assert gpu.peer_with([], "compression") is None and not capsys.readouterr().err


@pytest.mark.slow
def test_llmcompressor_gets_the_same_model_and_windows(tmp_path: Path, capsys: pytest.CaptureFixture):
    """A stand-in for its interpreter loads the folder as the peer's side does, and writes what that writes."""
    python, program = tmp_path / "python", tmp_path / "peer.py"
    program.write_text(
        "import json, sys\n"
        "from safetensors.torch import load_file\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "given = dict(zip(sys.argv[2::2], sys.argv[3::2]))\n"
        "AutoTokenizer.from_pretrained(given['--model_name_or_path'])\n"
        "model = AutoModelForCausalLM.from_pretrained(given['--model_name_or_path'])\n"
        "assert load_file(given['--windows'])['tokens'].shape == (4, 16)\n"
        "layers = model.config.num_hidden_layers\n"
        "open(given['--result'], 'w').write(json.dumps({'seconds': layers, 'device_peak_bytes': 5 * 10**9}))\n"
    )
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\nexec {sys.executable} {program} "$@"\n')
    python.chmod(0o755)
    words = ["--device", "cpu", "--parts", "compression", "--methods", "wanda", "--blocks_measured", "2"]
    assert gpu.main([*TINY, *words, "--peer_python", str(python)]) == 0
    printed = capsys.readouterr().out
    assert "llmcompressor, wanda: 3.00 s" in printed  # two blocks of three took 2 s


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cuda:9"], "--device cuda:9 is not there; there are cpu"),
        (["--blocks_measured", "4"], "--blocks_measured 4: the model has 3 blocks"),
        (["--heads", "5"], "--heads 5 does not divide --hidden 32"),
        (["--vocabulary", "7"], "--vocabulary 7: the letters and a token of text need 8"),
        (["--peer_python", "no/such/python"], "--peer_python no/such/python: no such file"),
        (["--methods", "all"], "invalid choice: 'all'"),
        (["--output", "no/such/folder/gpu.json"], "its folder does not exist"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(words: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        gpu.parse_args([*TINY, *words])
    assert message in capsys.readouterr().err


def test_the_cpu_has_no_other_host_memory():
    with pytest.raises(SystemExit, match="gpu: --layout host brings blocks to an accelerator; the device is the CPU"):
        gpu.main([*TINY, "--layout", "host", "--device", "cpu"])
