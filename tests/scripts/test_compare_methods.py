"""compare_methods.py: strengths of equal bytes, its commands, and a comparison of a tiny model from end to end."""

import json
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from analysis.sizes import bytes_fraction
from harness import run_folder
from llm_tasks import setting2_option_count
from llm_tasks.methods import METHODS, Method

GROUPS = {"group_size": 8, "symmetric": False}


@pytest.fixture
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("compare_methods")


@pytest.fixture
def options(tiny_decoder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return [
        "--model_name_or_path", str(tiny_decoder), "--calibration", str(text_file), "--nsamples", "4",
        "--calibration_length", "8", "--group_size", "8", "--output_dir", str(tmp_path / "runs"),
    ]  # fmt: skip


@pytest.fixture
def own_questions(tmp_path: Path) -> Path:
    """MMLU's format: 24 questions of four options on two subjects."""
    words = ["good", "bad", "film", "plot", "story", "so"]
    rows = [
        {"question": f"the {words[number % 6]} is", "choices": [words[(number + place) % 6] for place in range(4)],
         "answer": number % 4, "subject": ("law", "art")[number % 2]}
        for number in range(24)
    ]  # fmt: skip
    folder = tmp_path / "data" / "mmlu"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def listed(script: ModuleType, capsys: pytest.CaptureFixture, *words: str) -> list[list[str]]:
    assert script.main([*words, "--list_cells"]) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def value(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def test_sizes_by_hand(script: ModuleType):
    """A weight of 16 x 16 and one of 8 x 24; a rank of 4 keeps 128 of 256, and 128 of 192 parameters."""
    shapes = {"a": (16, 16), "b": (8, 24)}
    assert script.size_of(script.Strength("rank", 4), shapes, GROUPS) == pytest.approx((128 + 128) / (256 + 192))
    assert script.size_of(script.Strength("rank", 7), shapes, GROUPS) == pytest.approx((224 + 192) / (256 + 192))
    assert script.size_of(script.Strength("sparsity", 0.5), shapes, GROUPS) == 0.5625
    assert script.size_of(script.Strength("nm_ratio", "2:4"), shapes, GROUPS) == 0.5625
    assert script.size_of(script.Strength("bits", 4), shapes, GROUPS) == pytest.approx((4 + 20 / 8) / 16)
    pair = script.PairStrength(script.Strength("sparsity", 0.5), script.Strength("bits", 4))
    assert script.size_of(pair, shapes, GROUPS) == pytest.approx((1 + 2 + 20 / 8) / 16)


def test_the_nearest_strength_is_chosen_and_pairs_save_alike(script: ModuleType):
    shapes, counted = {"a": (512, 512)}, {"group_size": 128, "symmetric": False}

    def at(compression: str, target: float, bits: range | list[int] = range(2, 17)):
        found = script.candidates(compression, shapes, bits)
        return script.nearest({one: script.size_of(one, shapes, counted) for one in found}, target)

    assert at("wanda", 0.5).label == "0.56" and at("sparsegpt", 0.25).label == "0.81"
    assert at("gptq", 0.5).label == "8bit" and at("rtn", 0.25).label == "4bit"
    assert at("low_rank", 0.25).label == "rank64"  # 2 * 64 * 512 of 512 * 512
    both = at("sparsegpt+gptq", 0.25)
    kept, bits = 1 - both.requested_sparsity, both.quantization.value
    assert abs(script.size_of(both, shapes, counted) - 0.25) < 0.005
    assert 1 + kept * bits + (16 + bits) / 128 == pytest.approx(4, abs=0.08) and abs(math.log(kept * 16 / bits)) < 0.15
    assert at("wanda+rtn", 0.2, [4]).label == "0.49+4bit"  # 1 + .51 * 4 + .16 = 3.2 bits
    assert at("wanda+rtn", 0.75, [4]) is None  # 4 bits cannot take so many bytes


def test_every_method_of_the_table_takes_part_at_about_the_bytes_asked_for(
    script: ModuleType, options: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(METHODS, "mine", Method(lambda W, *_: W, ("nm_ratio",)))
    commands = listed(script, capsys, *options, "--settings", "2", "4", "--targets", "0.8", "0.5")
    found: dict[str, list[float]] = {}
    for words in commands:
        kinds = [kind for kind in ("sparsity", "nm_ratio", "bits", "rank") if value(words, f"--{kind}")]
        name = value(words, "--compression")
        assert value(words, "--settings") in ("2", "4") and value(words, "--output_dir").endswith("/0")
        if kinds == ["rank"] or name == "dense":
            found.setdefault(name, [])
            continue
        strength = "+".join(value(words, f"--{kind}") for kind in kinds)
        row = {"strength_kind": "+".join(kinds).replace("nm_ratio", "nm"), "strength": strength}
        row["requested_sparsity"] = float(value(words, "--sparsity") or 0)
        if kinds in (["sparsity"], ["bits"]):
            row["strength"] = float(strength) if kinds == ["sparsity"] else int(strength)
        if value(words, "--settings") == "2":
            found.setdefault(name, []).append(bytes_fraction(row, GROUPS))
    counted = {
        name for name, method in METHODS.items() if {"sparsity", "nm_ratio", "bits", "rank"} & {*method.strengths}
    }
    assert set(found) == {"dense", *counted, *script.PAIRS} and "mine" in found
    for name, sizes in found.items():
        assert all(min(abs(size - target) for target in (0.8, 0.5)) < 0.03 for size in sizes), name
    assert len(found["wanda"]) == len(found["gptq"]) == len(found["sparsegpt+gptq"]) == 2
    assert len(found["mine"]) == 1  # 6:8; 24 inputs have no groups of 16, and 2:4 takes 0.5625


@pytest.mark.slow
def test_a_tiny_comparison_from_end_to_end(
    script: ModuleType, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_questions: Path,
    load_script: Callable[[str], ModuleType],
):  # fmt: skip
    """The commands that it starts, run in this process; then what is drawn."""
    started = []

    def run_here(line: str) -> bool:
        words = shlex.split(line)
        started.append(words)
        name = Path(words[1]).stem
        if name == "setting2_option_count":
            monkeypatch.setattr(sys, "argv", [words[1]])
            code = setting2_option_count.main(words[2:])
        else:
            code = load_script(name).main(words[2:]) or 0
        return code == 0

    monkeypatch.setattr(script, "run", run_here)
    words = [
        *options, "--data_dir", str(own_questions), "--num_shots", "0", "--answer_mode", "cloze", "--precision", "no",
        "--option_counts", "2", "--targets", "0.7", "--compression", "magnitude", "rtn", "wanda+rtn",
    ]  # fmt: skip
    assert script.main(words) == 0
    assert [Path(one[1]).stem for one in started] == ["setting2_option_count"] * 4 + ["plot_results"]
    rows = list(run_folder.read_runs(tmp_path / "runs"))
    run_folder.check_runs(rows)
    assert {row["compression"] for row in rows} == {"dense", "magnitude", "rtn", "wanda+rtn"}
    figures = {path.name for path in (tmp_path / "runs/figures").iterdir()}
    assert {"methods_compared_tiny_decoder0.png", "methods_compared_tiny_decoder0.csv", "summary.md"} <= figures
    csv = (tmp_path / "runs/figures/methods_compared_tiny_decoder0.csv").read_text().splitlines()
    assert len(csv) == 4 and ",sparsity+bits," in csv[-1] + csv[-2] + csv[-3]
    started.clear()
    monkeypatch.setattr(script, "run", lambda line: started.append(line) or "plot_results" in line)
    assert script.main(words) == 1
    assert len(started) == 4 and not any("plot_results" in line for line in started)


def test_a_dry_run_computes_nothing(script: ModuleType, options: list[str], monkeypatch: pytest.MonkeyPatch):
    started = []
    monkeypatch.setattr(script, "run", lambda line: started.append(shlex.split(line)) or True)
    assert script.main([*options, "--targets", "0.7", "--compression", "magnitude", "rtn", "--dry_run"]) == 0
    assert len(started) == 3 and all("--dry_run" in words for words in started)


BAD = [
    (["--sparsity", "0.5"], "--sparsity: the strengths are those whose bytes are nearest to --targets"),
    (["--bits=4"], "--bits: the strengths are those"),
    (["--targets", "1.5"], "--targets: 1.5 is outside"),
    (["--compression", "wanda+ria"], "wanda+ria: both prune"),
    (["--compression", "awq"], "invalid choice: 'awq'"),
    (["--pair_bits", "1"], "--pair_bits: 1 is outside"),
    (["--group_size", "-1"], "--group_size -1: bytes are counted for groups"),
    (["--only_layers", "0"], "--only_layers: bytes are counted, and methods compared, of the whole model"),
    (["--skip_layers", "0"], "--skip_layers: bytes are counted"),
    (["--group_by", "model"], "--group_by: the commands are grouped by compression"),
    (["--kernel", "fast"], "unrecognized arguments: --kernel fast"),
    (["--compression", "rtn", "--targets", "0.05"], "--targets 0.05: no strength comes within 0.03 of one"),
    (["--compression", "magnitude", "--damping", "0.1"], "--damping is obeyed by"),
    (["--compression", "rtn", "checkpoint"], "--compression checkpoint: its bytes cannot be chosen"),
    (["--data_dir", "/nowhere"], "--data_dir /nowhere is no folder"),
    (["--output_dir", "/proc/x"], "--output_dir /proc/x: /proc takes no new folder"),
    (["--list_cells", "--dry_run"], "--dry_run: not allowed with argument --list_cells"),
    (["--settings", "9"], "--settings: invalid choice: 9"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_clear_line(
    script: ModuleType, options: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
    words: list[str], message: str,
):  # fmt: skip
    monkeypatch.setattr(script, "run", lambda line: pytest.fail("a run was started"))
    with pytest.raises(SystemExit) as stopped:
        script.main([*options, *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_come_near_is_left_out_with_a_warning(
    script: ModuleType, options: list[str], capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
):
    commands = listed(script, capsys, *options, "--compression", "rtn", "wanda", "--targets", "0.27", "0.15")
    labels = {Path(value(words, "--output_dir")).parent.name for words in commands}
    assert labels == {"dense", "2bit", "0.79", "0.91"}
    assert "rtn: no strength has 0.15 of the bytes, within 0.03" in caplog.text
