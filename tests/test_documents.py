"""README.md, INSTALL.md, CONTRIBUTING.md, docs/*.md and the scripts' docstrings: every command is one that its script
takes, every option and file that the documents name is there, and the README is short."""

import ast
import importlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from printed_commands import load, parts, printed_commands, quoted, run
from result_keys import assert_keys_are_told

from harness import run_folder
from llm_tasks.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "INSTALL.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in DOCUMENTS}
# Those of scripts/benchmark.py are a table of its programs.
DOCSTRINGS = [ast.get_docstring(ast.parse(path.read_text())) + "\n" for room in ("GLUE_tasks", "llm_tasks", "scripts")
              for path in sorted((ROOT / room).rglob("*.py"))
              if path.name not in ("benchmark.py", "__init__.py")]  # fmt: skip
# test_contributing.py runs those of CONTRIBUTING.md, test_differences.py those of docs/differences.md
COMMANDS = sorted({command for name, text in TEXTS.items() if name not in ("CONTRIBUTING.md", "docs/differences.md")
                   for command in printed_commands(text)}
                  | {command for text in DOCSTRINGS for command in printed_commands(text)})  # fmt: skip
OPEN = ("…", "<the ", "NAME")  # what the reader is to fill in
ELSEWHERE = {  # options of pip, git, Slurm and others
    "--array", "--account", "--exclude", "--cpus-per-task", "--mem", "--time", "--dest", "--index-url",
    "--no-build-isolation", "--no-deps", "--nproc_per_node", "--num_processes", "--collect-only", "--version",
}  # fmt: skip
LISTING = [command for command in COMMANDS if re.search(r"python (GLUE|llm)_tasks/\w+\.py -", command)]
SWEEPS = [command for command in COMMANDS if re.search(r"bash scripts/\w+\.sh", command)
          and not re.search(r"scripts/(run_tests|quickstart|submit|slurm_array)\.sh", command)]  # fmt: skip
OTHERS = [command for command in COMMANDS if re.match(r"([A-Z_]+=\S* )*python scripts/", command)]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the commands name, as a reader would have them."""
    for name in ("questions.jsonl", "calibration.txt", "evaluation.txt", "c4.jsonl", "wikitext.txt", "cells.txt",
                 "peers/bin/python", "lm_eval_peer/bin/python", "model/config.json"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = [re.findall(r"--results_dir((?: (?!-)\S+)+)", command) for command in COMMANDS]
    for tree in (tree for several in given for trees in several for tree in trees.split()):
        (tmp_path / tree / "run").mkdir(parents=True, exist_ok=True)
        (tmp_path / tree / "run" / run_folder.RESULT_FILE).touch()
    for domain in ("movie_reviews", "tweets"):
        folder = tmp_path / "home/.cache/junk_dna/data/rated_sentences" / domain
        folder.mkdir(parents=True)
        for split in ("train", "validation"):
            rows = [{"sentence": f"a film of {domain}, {number}", "label": number % 2} for number in range(40)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_commands():
    assert len(LISTING) > 10 and len(SWEEPS) > 12 and len(OTHERS) > 18
    assert all(TEXTS)


def test_the_readme_is_read_in_five_minutes():
    assert len(TEXTS["README.md"].splitlines()) <= 170


def test_the_table_of_methods_has_each_of_them():
    """The one list in the documents: what it says of strengths and calibration is what METHODS says."""
    section = TEXTS["docs/language_models.md"].partition("\n## Methods\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if re.match(r"\| `\w", line)
    ]
    listed = {
        quoted(name)[0]: (set(re.findall(r"--(\w+)", strengths)), bool(read)) for name, _, strengths, read in rows
    }
    assert listed == {name: (set(method.strengths), method.statistic is not None) for name, method in METHODS.items()}


def test_every_key_of_a_result_is_explained():
    """Of the runs that earlier versions made; those of today: tests of the scripts that make them."""
    assert_keys_are_told(ROOT / "tests" / "trees")


@pytest.mark.parametrize("command", LISTING)
def test_scripts_take_their_commands(command: str, elsewhere, load_script, capsys: pytest.CaptureFixture):
    words = [os.path.expanduser(word) for word in parts(command)[1] if word != "--dry_run"]  # which excludes a list
    if "…" in words:
        assert (ROOT / words[1]).is_file()
        return
    if "Glue_interpolate" in words[1]:  # its list is of the runs that are there
        script = load(words[1], load_script)
        script.parse(script.make_parser(), words[2:])
        return
    help_asked = "--help" in words
    try:
        code = run([*words[1:], *(["--list_cells"] if "--list_cells" not in words else [])], load_script)
    except SystemExit as ended:
        code = ended.code
    printed = capsys.readouterr()
    assert code in (0, None), printed.err
    assert help_asked or all(line.startswith("python ") for line in printed.out.splitlines())


@pytest.mark.parametrize("command", SWEEPS)
def test_sweeps_take_their_commands(
    command: str, start: Callable[..., list[list[str]]], elsewhere: Path, load_script, capsys: pytest.CaptureFixture
):
    variables, words = parts(command.partition(" | ")[0].partition(" >")[0])
    listed = [] if "--list_cells" in words else ["--list_cells"]
    for call in start(Path(words[1]).name, *words[2:], *listed, **{**variables, "DATA_DIR": str(elsewhere)}):
        assert run(call, load_script) == 0
        assert capsys.readouterr().out


@pytest.mark.parametrize("command", [command for command in COMMANDS if "scripts/submit.sh" in command])
def test_submissions_take_their_commands(command: str, start: Callable[..., list[list[str]]], elsewhere: Path):
    variables, words = parts(command)
    if len(words) > 2:
        assert start("submit.sh", "--dry_run", *words[2:], **variables, OUT=str(elsewhere / "runs" / "sweep"))


@pytest.mark.parametrize("command", OTHERS)
def test_other_scripts_take_their_commands(command: str, elsewhere, load_script):
    _, words = parts(command.partition(" >")[0])
    if any(part in command for part in OPEN) or len(words) == 2:
        assert (ROOT / words[1]).is_file()
        return
    script, options = load(words[1], load_script), words[2:]
    if Path(words[1]).stem == "benchmark":
        script, options = importlib.import_module(Path(script.FILES[options[0]]).stem), options[1:]
        options += ["--model", "model"] if "evaluation" in words else []
    parser = getattr(script, "parse_args", None) or script.make_parser().parse_args
    try:
        parser(options)
    except SystemExit as ended:
        assert "--help" in options and ended.code == 0


@pytest.mark.parametrize("name", TEXTS)
def test_links_and_the_files_named_are_there(name: str):
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = folder / path if path else ROOT / name
        assert linked.exists(), target
        if anchor:
            assert anchor in {heading_anchor(line) for line in linked.read_text().splitlines() if line.startswith("#")}
    rooms = "GLUE_tasks|llm_tasks|pruning|quantization|harness|analysis|scripts|tests|docs"
    for path in re.findall(rf"\b((?:{rooms})/[\w./]+\.(?:py|sh|md|json|npz))\b", TEXTS[name]):
        assert (ROOT / path).is_file() or path in made_by_the_reader(), path


def heading_anchor(line: str) -> str:
    """As GitHub makes the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower()).replace(" ", "-")


def made_by_the_reader() -> set[str]:
    """The files that CONTRIBUTING.md tells its reader to write."""
    return set(re.findall(r"^\*\*`([\w./]+)`\*\*", TEXTS["CONTRIBUTING.md"], re.MULTILINE))


def test_every_option_that_is_named_is_there(load_script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture):
    scripts = [*(ROOT / "GLUE_tasks").glob("*_prune_oneshot.py"), ROOT / "GLUE_tasks" / "Glue_interpolate.py",
               *(ROOT / "llm_tasks" / f"{name}.py"
                 for name in ("setting2_option_count", "own_task", "perplexity", "recover")),
               *(ROOT / "scripts" / f"{name}.py"
                 for name in ("plot_results", "max_strength", "show_flips", "status",
                              "compare_methods"))]  # fmt: skip
    for script in scripts:
        with pytest.raises(SystemExit):
            run([str(script.relative_to(ROOT)), "--help"], load_script)
    with pytest.raises(SystemExit):
        load_script("fetch_default_assets").parse_args(["--help"])
    for file in load_script("benchmark").FILES.values():
        with pytest.raises(SystemExit):
            importlib.import_module(Path(file).stem).parse_args(["--help"])
    known = capsys.readouterr().out + "".join(path.read_text() for path in (ROOT / "scripts").glob("*.sh"))
    named = {option for text in TEXTS.values() for option in re.findall(r"(?<![\w-])--[a-zA-Z][\w-]+", text)}
    original = {"--TASK_NAME"}
    missing = {option for option in named - ELSEWHERE - original if not re.search(rf"{option}\b", known)}
    assert len(named) > 60 and not missing


def test_the_default_assets_are_named_where_they_are():
    """Of a model or data that the reader has somewhere else nothing is known."""
    for command in COMMANDS:
        for named in re.findall(r"--(?:model_name_or_path|data_dir) (\S+)", command):
            asset = re.search(r"SmolLM2|Qwen2\.5-Coder-[01]|all-MiniLM|all-mpnet|^data$", named)
            assert not asset or re.match(r"~/\.cache/junk_dna/(models|data)\b", named), command
