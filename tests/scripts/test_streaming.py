"""scripts/benchmarks/streaming.py: the models it writes, the peak it samples, its tables; speed is never asserted."""

import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import streaming
from measuring import run_watched
from process_memory import anonymous_bytes

TINY = ["--shapes", "tiny", "--blocks", "2", "--nsamples", "2", "--calibration_length", "16", "--vocabulary", "500"]


def test_a_written_model_is_one_that_transformers_loads(tmp_path: Path) -> None:
    written = streaming.Models(tmp_path, streaming.parse_args(TINY))
    with written.written("tiny", 3) as folder:
        assert len(list(folder.glob("*.safetensors"))) == 4
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        weights = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
        expected = written.structure("tiny", 3).named_parameters()
    assert weights == {name: tuple(weight.shape) for name, weight in expected}
    assert model.dtype == torch.bfloat16 and not list(tmp_path.glob("*/*.safetensors"))


def test_the_peak_of_a_process_is_seen(tmp_path: Path) -> None:
    code = "import time; held = b'1' * {}; time.sleep(0.3)"
    few, many = (run_watched([sys.executable, "-c", code.format(size)], None, tmp_path) for size in (1, 10**8))
    assert 0.99e8 < many.peak - few.peak < 1.1e8
    busy = run_watched([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], None, tmp_path)
    assert busy.cpu_seconds >= 0.5
    assert anonymous_bytes(os.getpid()) > 10**7
    with pytest.raises(SystemExit, match="exit code 3"):
        run_watched([sys.executable, "-c", "raise SystemExit(3)"], None, tmp_path)


def test_what_is_predicted_is_what_the_scripts_say(tmp_path: Path) -> None:
    written = streaming.Models(tmp_path, streaming.parse_args(TINY))
    dense, wanda = (written.predicted("tiny", 2, method, 2).host for method in ("dense", "wanda"))
    block = 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)
    assert dense["blocks that are computed"] == wanda["blocks that are computed"] == block
    assert dense["embeddings, output layer"] == 0


@pytest.mark.slow
def test_every_part_prints_its_table(capsys: pytest.CaptureFixture) -> None:
    streaming.main([*TINY, "--methods", "wanda", "--scored_blocks", "1", "2", "--questions", "2", "3"])
    lines = capsys.readouterr().out.splitlines()
    titles = [line.split("  ")[0] for line in lines]
    assert {"2 blocks of tiny, wanda", "2 blocks, then 4", "2 windows, then 4"} <= set(titles)
    assert sum("questions" in title for title in titles) == 2 * 4  # as soon as it is measured, and in the table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["memory"], "memory is not one of compression, growth, scoring"),
        (["--shapes", "7B"], "--blocks has 2 numbers for 1 --shapes"),
        (["--shapes", "8B"], "invalid choice: '8B'"),
    ],
)
def test_bad_options(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        streaming.parse_args(words)
    assert message in capsys.readouterr().err
