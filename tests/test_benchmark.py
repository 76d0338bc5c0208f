"""scripts/benchmark.py: its commands and arithmetic on tiny models; speed itself is never asserted."""

import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.layers import decoder_weights
from pruning.masks import zero_fraction


@pytest.fixture(scope="module")
def benchmark(load_script) -> ModuleType:
    return load_script("benchmark")


@pytest.fixture(scope="module")
def llama_folder(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random blocks of 64 and 170 inputs."""
    folder = tmp_path_factory.mktemp("llama")
    benchmark.random_llama(2, 64, torch.float32).save_pretrained(folder)
    return folder


def compression_options(python: str) -> list[str]:
    return ["compression", "--peer_python", python, "--calibration", "some.jsonl"]


def test_finetuning_keeps_its_options(benchmark):
    args = benchmark.parse_args(["finetuning", "masks", "--turns", "3", "--seeds", "41", "42"])
    assert (args.run, args.parts, args.turns, args.seeds) == (benchmark.finetuning, ["masks"], 3, [41, 42])
    assert benchmark.parse_args(["finetuning"]).parts == benchmark.PARTS


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "COMMAND"),
        (["speed"], "invalid choice"),
        (["finetuning", "mask"], "mask is not one of masks, hold, epoch"),
        (compression_options("no/such/python"), "no/such/python: no such file; peer_llmcompressor.py says how"),
        ([*compression_options(sys.executable), "--nsamples", "0"], "0 is below 1"),
        ([*compression_options(sys.executable), "--methods", "magnitude"], "invalid choice"),
        (["growth", "--blocks", "2", "4"], "expected 3 arguments"),
    ],
)
def test_bad_options_are_refused_by_name(benchmark, capsys, argv, message):
    with pytest.raises(SystemExit):
        benchmark.parse_args(argv)
    assert message in capsys.readouterr().err


def test_exponent_of_linear_quadratic_and_constant_time(benchmark):
    assert benchmark.growth_exponent([2, 4, 8], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert benchmark.growth_exponent([2, 4, 8], [1.0, 4.0, 16.0]) == pytest.approx(2)
    assert benchmark.growth_exponent([2, 4, 8], [5.0, 5.0, 5.0]) == pytest.approx(0, abs=1e-9)


def test_ratio_pairs_the_turns(benchmark):
    assert benchmark.ratio([6.0, 9.0, 20.0], [2.0, 3.0, 5.0]) == "3.00 (from 3.00 to 4.00)"


def test_memory_beside_the_loaded_model(benchmark):
    runs = [
        {"peak_bytes": 900, "compressing_peak_bytes": 700, "loaded_bytes": 500},
        {"peak_bytes": 950, "compressing_peak_bytes": 690, "loaded_bytes": 530},
        {"peak_bytes": 910, "compressing_peak_bytes": 720, "loaded_bytes": 540},
    ]
    assert benchmark.memory(runs, beside_the_loaded=False) == 910
    assert benchmark.memory(runs, beside_the_loaded=True) == 180


def test_time_of_a_patched_function_is_added_and_the_function_comes_back(benchmark):
    class Sleeper:
        def nap(self) -> str:
            return "slept"

    own, times = Sleeper.nap, {"nap": 0.0}
    with benchmark.timed(Sleeper, "nap", times, "nap"):
        assert Sleeper().nap() == "slept"
    assert Sleeper.nap is own
    assert times["nap"] > 0


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "gptq"])
def test_stages_of_each_method_are_timed_while_it_compresses(benchmark, name):
    model = benchmark.random_llama(2, 64, torch.float32)
    compress = benchmark.method_of_the_peer(name, sparsity=0.5, bits=4, group_size=64)
    benchmark.warm_up(compress)
    tokens = benchmark.random_tokens(4, 16)
    stages = benchmark.compress_in_stages(model, tokens, compress, benchmark.STATISTICS[name], windows_per_batch=2)
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
def test_own_side_writes_what_the_table_reads(benchmark, llama_folder, tmp_path, monkeypatch):
    save_file({"tokens": benchmark.random_tokens(4, 16)}, tmp_path / "windows.safetensors")
    monkeypatch.setattr(benchmark.AutoTokenizer, "from_pretrained", lambda name: benchmark.AutoTokenizer)
    monkeypatch.setattr(benchmark.AutoTokenizer, "save_pretrained", lambda folder: None, raising=False)
    benchmark.main(
        ["own_side", "--method", "wanda", "--windows", str(tmp_path / "windows.safetensors"), "--windows_per_batch",
         "2", "--model_name_or_path", str(llama_folder), "--dtype", "float32", "--result",
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


FAKE_PEER = """
import json, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert options["--sparsity"] == "0.5"
run = {"seconds": 6.0, "cpu_seconds": 8.0, "loaded_bytes": 100, "compressing_peak_bytes": 300, "peak_bytes": 400}
open(options["--result"], "w").write(json.dumps(run))
"""


def test_sides_take_turns_and_the_first_models_are_kept(benchmark, tmp_path, monkeypatch):
    """Both sides are stand-ins: what is tested is the order, the command line and what is read back."""
    commands = []
    run_quietly = benchmark.run_quietly

    def run_stand_in(command: list[str], environment: dict[str, str], folder: Path) -> None:
        commands.append(command)
        options = command[command.index("--method") :]
        run_quietly([sys.executable, "-c", FAKE_PEER, *options], environment, folder)

    monkeypatch.setattr(benchmark, "run_quietly", run_stand_in)
    problem = benchmark.Problem(tmp_path / "windows", ["--sparsity", "0.5"], dict(os.environ))
    runs = benchmark.take_turns(problem, "wanda", Path("peer/python"), 2, tmp_path)
    assert [command[0] for command in commands] == [sys.executable, "peer/python"] * 2
    assert ["--save_model" in command for command in commands] == [True, True, False, False]
    assert {side: len(measured) for side, measured in runs.items()} == {"ours": 2, "peer": 2}


def test_tables_of_compression(benchmark, capsys):
    ours = {"seconds": 2.0, "cpu_seconds": 2.0, "floor_seconds": 0.5, "warm_up_seconds": 0.1, "loaded_bytes": 100e6,
            "compressing_peak_bytes": 150e6, "peak_bytes": 200e6,
            "stages": {"forward": 1.0, "statistics": 0.5, "factorisation": 0.25, "method": 0.25}}  # fmt: skip
    peer = {"seconds": 6.0, "cpu_seconds": 8.0, "loaded_bytes": 100e6, "compressing_peak_bytes": 300e6,
            "peak_bytes": 400e6}  # fmt: skip
    scores = {"dense": 20.0, "wanda-ours": 50.5, "wanda-peer": 50.0}
    benchmark.print_compression({"wanda": {"ours": [ours], "peer": [peer]}}, scores)
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines() if line.startswith("wanda")]
    assert lines[0] == ["wanda", "6.0", "2.0", "3.00 (from 3.00 to 3.00)", "4.00 (from 4.00 to 4.00)", "0.5"]
    assert lines[1] == ["wanda", "400", "200", "50%", "200", "50", "25%"]
    assert lines[2] == ["wanda", "50.000", "50.500", "+1.00%"]
    assert lines[3] == ["wanda", "1.00", "0.50", "0.25", "0.25", "0.1"]


def test_a_failing_side_shows_its_log(benchmark, tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)no modifier.*exit code 3"):
        benchmark.run_quietly([sys.executable, "-c", "print('no modifier'); exit(3)"], None, tmp_path)


def test_growth_prints_a_row_per_method(benchmark, capsys):
    benchmark.main(
        ["growth", "--methods", "wanda", "--nsamples", "1", "2", "4", "--blocks", "1", "2", "3", "--hidden_size", "64",
         "--calibration_length", "8", "--turns", "1", "--dtype", "float32"]
    )  # fmt: skip
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("wanda")]
    assert [len(row) for row in rows] == [5, 5]
