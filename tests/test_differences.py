"""docs/differences.md: every command of it is one that the scripts take, and every option that it names is there."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from printed_commands import is_command, parts, quoted, run

from harness import run_folder

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "differences.md").read_text()
DIFFERENCES, NAMED = TEXT.split("## What the paper and the original's READMEs name")
LABELS = ["A", "B", "C", "D"]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of the tables, without their heads."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| what |"):
            yield [cell.strip() for cell in line.strip()[1:-1].split("|")]


COMMANDS = [text for row in rows(NAMED) for text in quoted(row[2]) if is_command(text)]


def test_the_tables_are_whole():
    assert len(COMMANDS) > 25 and all(len(row) == 3 for row in rows(NAMED))
    assert len(list(rows(DIFFERENCES))) > 30 and all(len(row) == 5 for row in rows(DIFFERENCES))
    started = {parts(command)[1][1] for command in COMMANDS}
    sweeps = {"setting1", "setting2", "setting3", "setting4", "setting5", "setting6", "quantization", "low_rank", "lmc",
              "true_gem", "human_gap", "multi_domain", "translation"}  # fmt: skip
    assert {f"scripts/{name}.sh" for name in sweeps} <= started


@pytest.mark.parametrize("command", [command for command in COMMANDS if "plot_results" not in command])
def test_every_command_makes_cells(
    command: str, start: Callable[..., list[list[str]]], load_script, tmp_path: Path, capsys: pytest.CaptureFixture
):
    variables, words = parts(command)
    calls = [words[1:]]
    if words[0] == "bash":
        calls = start(Path(words[1]).name, *words[2:], "--list_cells", **variables, DATA_DIR=str(tmp_path))
    for call in calls:
        assert run([*call, *(["--list_cells"] if "--list_cells" not in call else [])], load_script) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines and all(line.startswith("python ") and " --output_dir " in line for line in lines)


def answers(number: int) -> dict:
    return {"RawQuestion": f"what is {number}", "Parses": [{"Answers": [{"AnswersName": ["good film"]}]}]}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """MMLU's three splits and FreebaseQA, a few rows each."""

    def choice(number: int) -> dict:
        return {"question": f"the film {number}", "subject": "plots", "choices": LABELS, "answer": number % 4}

    for name, made in {
        "mmlu/test": map(choice, range(4)), "mmlu/validation": map(choice, range(2, 10)),
        "mmlu/dev": map(choice, range(10, 15)), "freebase_qa/test": map(answers, range(3)),
    }.items():  # fmt: skip
        path = tmp_path / "data" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return tmp_path / "data"


@pytest.fixture
def model(tiny_decoder: Path, tmp_path: Path) -> Path:
    """The tiny decoder, taking 1,024 tokens, so that all examples fit."""
    folder = Path(shutil.copytree(tiny_decoder, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    return folder


def test_settings_4_and_6_run_as_the_table_says_and_are_drawn(
    start, load_script, model: Path, data_dir: Path, tmp_path: Path
):
    """The examples from the validation split, and FreebaseQA's own score; other tests run the other kinds."""
    small = {"MODEL": str(model), "DATA_DIR": str(data_dir), "COMPRESSIONS": "dense magnitude",
             "SPARSITIES": "0.5", "NM_RATIOS": "", "OUT": str(tmp_path / "runs")}  # fmt: skip
    for setting in (4, 6):
        command = next(text for text in COMMANDS if f"scripts/setting{setting}.sh" in text)
        variables, words = parts(command)
        own = {**variables, **small, "OUT": str(tmp_path / "runs" / f"setting{setting}")}
        call = start(Path(words[1]).name, *words[2:], **own)[-2]
        assert run(call, load_script) == 0
    found = run_folder.read_runs(tmp_path / "runs")
    assert len({row["folder"] for row in found}) == 4
    assert [row["level"] for row in found if row["setting"] == 4][:6] == [
        "5 shots", "4 shots", "3 shots", "2 shots", "1 shot", "0 shots"
    ]  # fmt: skip
    assert {row["reader"] for row in found if row["setting"] == 4} == {"generate"}
    command = next(text for text in COMMANDS if "freebaseqa_original" in text)
    words = parts(command)[1]
    words[words.index("--results_dir") + 1] = str(tmp_path / "runs" / "setting6")
    run([*words[1:], "--output_dir", str(tmp_path / "figures"), "--resamples", "100"], load_script)
    assert "freebaseqa original" in (tmp_path / "figures" / "summary.md").read_text()


@pytest.mark.parametrize("command", [command for command in COMMANDS if "plot_results" in command])
def test_commands_that_draw_are_taken(command: str, load_script, tmp_path: Path):
    words = parts(command)[1][2:]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / run_folder.RESULT_FILE).touch()
    words[words.index("--results_dir") + 1] = str(tmp_path)
    assert load_script("plot_results").parse_args(words).results_dir == [tmp_path]


def test_every_option_that_gives_theirs_is_there(load_script, capsys: pytest.CaptureFixture):
    known = ""
    for words in (["llm_tasks/setting2_option_count.py"], ["GLUE_tasks/Glue_prune_oneshot.py"],
                  ["GLUE_tasks/Mcq_prune_oneshot.py"], ["scripts/plot_results.py"]):  # fmt: skip
        with pytest.raises(SystemExit):
            run([*words, "--help"], load_script)
        known += capsys.readouterr().out
    options = {option for row in rows(DIFFERENCES) for option in re.findall(r"--[a-z_]+", row[4])}
    assert len(options) > 15 and not {option for option in options if not re.search(rf"{option}\b", known)}
    variables = {name for row in rows(DIFFERENCES) for name in re.findall(r"`([A-Z_]+)=", row[4])}
    sweeps = "".join(path.read_text() for path in (ROOT / "scripts").glob("*.sh"))
    assert variables and all(re.search(rf"\${{{name}:?[-+]", sweeps) for name in variables)
