"""scripts/benchmark.py and the programs it starts: their options. Speed itself is never asserted."""

import subprocess
import sys
from types import ModuleType

import pytest

import against_llmcompressor
import against_lm_eval
import against_original
import growth
import our_evaluation


@pytest.fixture(scope="module")
def benchmark(load_script) -> ModuleType:
    return load_script("benchmark")


def test_each_name_starts_its_program_with_its_own_options(benchmark, monkeypatch):
    started = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess:
        started.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    for name, file in benchmark.FILES.items():
        assert benchmark.main([name, "--turns", "1", "--help"]) == 3
        assert started.pop() == [sys.executable, str(benchmark.PROGRAMS / file), "--turns", "1", "--help"]
        assert (benchmark.PROGRAMS / file).is_file()


@pytest.mark.parametrize(("argv", "message"), [([], "required: name"), (["speed"], "invalid choice: 'speed'")])
def test_an_unknown_name_is_refused(benchmark, capsys, argv, message):
    with pytest.raises(SystemExit):
        benchmark.main(argv)
    assert message in capsys.readouterr().err


def test_finetuning_measures_all_parts_unless_some_are_named():
    args = against_original.parse_args(["masks", "--turns", "3", "--seeds", "41", "42"])
    assert (args.parts, args.turns, args.seeds) == (["masks"], 3, [41, 42])
    assert against_original.parse_args([]).parts == against_original.PARTS


PEER = ["--peer_python", sys.executable, "--calibration", "some.jsonl"]
NO_PEER = ["--peer_python", "no/such/python"]


@pytest.mark.parametrize(
    "program, argv, message",
    [
        (against_original, ["mask"], "mask is not one of masks, hold, epoch"),
        (against_llmcompressor, [*PEER, *NO_PEER], "no/such/python: no such file; peer_llmcompressor.py says how"),
        (against_llmcompressor, [*PEER, "--nsamples", "0"], "0 is outside [1, "),
        (against_llmcompressor, [*PEER, "--methods", "magnitude"], "invalid choice"),
        (growth, ["--blocks", "2", "4"], "expected 3 arguments"),
        (against_lm_eval, [], "one of --peer_python, --growth and --k_shot is needed"),
        (against_lm_eval, NO_PEER, "no/such/python: no such file; peer_lm_eval.py says how"),
        (against_lm_eval, ["--peer_python", sys.executable, "--growth"], "--growth measures our side alone"),
        (against_lm_eval, ["--growth", "--k_shot"], "not allowed with argument"),
        (against_lm_eval, ["--growth", "--tasks", "boolq"], "invalid choice: 'boolq'"),
        (against_lm_eval, ["--growth", "--items", "0"], "0 is outside [1, "),
        (against_lm_eval, ["--growth", "--num_shots", "6"], "invalid choice: 6"),
        (against_lm_eval, ["--growth", "--tasks", "piqa", "--subjects", "anatomy"], "--subjects is for mmlu"),
        (against_lm_eval, ["--growth", "--model", "no/such/model"], "no/such/model: no folder with a config.json"),
        (our_evaluation, ["--task", "piqa", "--items", "items.json"], "are required: --shots, --output"),
    ],
)
def test_bad_options_are_refused_by_name(capsys, program, argv, message):
    with pytest.raises(SystemExit):
        program.parse_args(argv)
    assert message in capsys.readouterr().err
