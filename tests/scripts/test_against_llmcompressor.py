"""scripts/benchmarks/against_llmcompressor.py: turns and tables; both sides are stand-ins."""

import os
import re
import sys
from pathlib import Path

import against_llmcompressor

FAKE_PEER = """
import json, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert options["--sparsity"] == "0.5"
run = {"seconds": 6.0, "cpu_seconds": 8.0, "loaded_bytes": 100, "compressing_peak_bytes": 300, "peak_bytes": 400}
open(options["--result"], "w").write(json.dumps(run))
"""


def test_sides_take_turns_and_the_first_models_are_kept(tmp_path, monkeypatch):
    """Both sides are stand-ins: what is tested is the order, the command line and what is read back."""
    commands = []
    run_quietly = against_llmcompressor.run_quietly

    def run_stand_in(command: list[str], environment: dict[str, str], folder: Path) -> None:
        commands.append(command)
        options = command[command.index("--method") :]
        run_quietly([sys.executable, "-c", FAKE_PEER, *options], environment, folder)

    monkeypatch.setattr(against_llmcompressor, "run_quietly", run_stand_in)
    problem = against_llmcompressor.Problem(tmp_path / "windows", ["--sparsity", "0.5"], dict(os.environ))
    runs = against_llmcompressor.take_turns(problem, "wanda", Path("peer/python"), 2, tmp_path)
    assert [command[0] for command in commands] == [sys.executable, "peer/python"] * 2
    assert ["--save_model" in command for command in commands] == [True, True, False, False]
    assert {side: len(measured) for side, measured in runs.items()} == {"ours": 2, "peer": 2}


def test_tables_of_compression(capsys):
    ours = {"seconds": 2.0, "cpu_seconds": 2.0, "floor_seconds": 0.5, "warm_up_seconds": 0.1, "loaded_bytes": 100e6,
            "compressing_peak_bytes": 150e6, "peak_bytes": 200e6,
            "stages": {"forward": 1.0, "statistics": 0.5, "factorisation": 0.25, "method": 0.25}}  # fmt: skip
    peer = {"seconds": 6.0, "cpu_seconds": 8.0, "loaded_bytes": 100e6, "compressing_peak_bytes": 300e6,
            "peak_bytes": 400e6}  # fmt: skip
    scores = {"dense": 20.0, "wanda-ours": 50.5, "wanda-peer": 50.0}
    against_llmcompressor.print_compression({"wanda": {"ours": [ours], "peer": [peer]}}, scores)
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines() if line.startswith("wanda")]
    assert lines[0] == ["wanda", "6.0", "2.0", "3.00 (from 3.00 to 3.00)", "4.00 (from 4.00 to 4.00)", "0.5"]
    assert lines[1] == ["wanda", "400", "200", "50%", "200", "50", "25%"]
    assert lines[2] == ["wanda", "50.000", "50.500", "+1.00%"]
    assert lines[3] == ["wanda", "1.00", "0.50", "0.25", "0.25", "0.1"]
