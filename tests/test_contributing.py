"""CONTRIBUTING.md's worked examples to the letter: all their code goes into one copy of the tree, where commands run.

So do the suite's own tests that read what an example adds to: an addition breaks none of them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from printed_commands import code_blocks, printed_commands

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", TEXT, re.MULTILINE))
WHERE = r"(?:a new file|(after|in place of) the line `(.+)`)"
STEP = re.compile(rf"^\*\*`([\w./]+)`\*\*, {WHERE}:\n\n((?:(?: {{4}}.*)?\n)+)", re.MULTILINE)
NOT_COPIED = shutil.ignore_patterns(".*", "*.pyc", "*.egg-info")  # what numba has compiled is copied
# the tests that read what the examples add to
READERS = """
tests/test_structure.py tests/test_documents.py tests/test_broken_inputs.py tests/test_bad_input.py
tests/GLUE_tasks/test_glue_data.py tests/GLUE_tasks/test_labels.py tests/GLUE_tasks/test_options.py
tests/llm_tasks/test_methods.py tests/llm_tasks/test_mmlu.py tests/llm_tasks/test_perplexity.py
tests/llm_tasks/test_settings.py tests/pruning/test_walk.py tests/quantization/test_gptqmodel_export.py
tests/analysis/test_findings.py tests/analysis/test_level_plots.py tests/analysis/test_level_sections.py
tests/analysis/test_level_table.py tests/analysis/test_plots.py tests/analysis/test_report.py
tests/analysis/test_summary.py tests/scripts/test_max_strength.py tests/scripts/test_plot_results.py
"""


def apply_steps(section: str, tree: Path) -> list[str]:
    """Write and change the files of a tree as a section says; returns their paths."""
    changed = []
    for path, how, line, block in STEP.findall(section):
        (code,) = code_blocks(block)
        file = tree / path
        if how:
            file.write_text(with_code(file.read_text(), code, line, how == "after"))
        else:
            assert not file.exists(), f"{path} is there already"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code + "\n")
        changed.append(path)
    return changed


def with_code(text: str, code: str, line: str, keep_line: bool) -> str:
    """The text with code after its one line of this content, or in its place; indented as that line, or one step more
    where it opens a bracket or a block."""
    lines = text.splitlines()
    (index,) = (index for index, there in enumerate(lines) if there.strip() == line)
    indent = " " * (len(lines[index]) - len(lines[index].lstrip()))
    if keep_line and line.endswith(("{", "(", "[", ":")):
        indent += "    "
    lines[index + keep_line : index + 1] = [f"{indent}{added}".rstrip() for added in code.splitlines()]
    return "\n".join(lines) + "\n"


def test_every_step_finds_its_one_line(tmp_path: Path):
    """Here, since the examples themselves are followed by slow tests alone."""
    for number, text in enumerate(SECTIONS.values()):
        tree = tmp_path / str(number)
        for path, how, *_ in STEP.findall(text):
            if how:
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, tree / path)
        apply_steps(text, tree)


@pytest.fixture(scope="module")
def changed_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with what every section writes and changes; ruff finds no fault in it."""
    tree = tmp_path_factory.mktemp("contributing") / "tree"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=lambda folder, names: {
        *NOT_COPIED(folder, names), *(["runs"] if Path(folder) == ROOT else [])
    })  # fmt: skip
    changed = {path for text in SECTIONS.values() for path in apply_steps(text, tree) if path.endswith(".py")}
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", *sorted(changed)],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return tree


@pytest.fixture
def run(changed_tree: Path, tmp_path: Path) -> Callable[[str], None]:
    """Run a command in the changed tree, with a home folder in tmp_path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {"PATH": path, "PYTHONPATH": str(changed_tree), "HOME": str(tmp_path / "home"), "VIRTUAL_ENV": ""}
    environment = {**os.environ, **ours, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run_there(command: str) -> None:
        shell = ["bash", "-c", command]
        done = subprocess.run(shell, cwd=changed_tree, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"

    return run_there


@pytest.fixture
def follow(changed_tree: Path, run: Callable[[str], None]) -> Callable[[str], Path]:
    """Run the commands of a section in the changed tree; returns that tree."""

    def follow_section(name: str) -> Path:
        for command in printed_commands(STEP.sub("", SECTIONS[name])):  # run_tests.sh would install the copy
            run(command.replace("bash scripts/run_tests.sh", "python -m pytest -q -p no:cacheprovider"))
        return changed_tree

    return follow_section


@pytest.fixture
def default_assets(tmp_path: Path, tiny_encoder: Path, tiny_decoder: Path) -> None:
    """Where the commands look for the default assets: tiny models, and texts of their words."""
    models = tmp_path / "home/.cache/junk_dna/models"
    shutil.copytree(tiny_encoder, models / "all-MiniLM-L6-v2")
    decoder = Path(shutil.copytree(tiny_decoder, models / "SmolLM2-135M-Instruct"))
    config = json.loads((decoder / "config.json").read_text())
    (decoder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    for name, field in (("boolq", "passage"), ("squad", "context")):
        path = tmp_path / "home/.cache/junk_dna/data" / name / "validation.jsonl.gz"
        path.parent.mkdir(parents=True)
        rows = [{field: "the film is a good story and the plot is so bad " * 60} for _ in range(20)]
        subprocess.run(["gzip"], input="".join(json.dumps(row) + "\n" for row in rows).encode(),
                       stdout=path.open("wb"), check=True)  # fmt: skip


def test_every_step_is_understood():
    """A step is a file's name in bold code; each is a new file or follows a line."""
    assert len(re.findall(r"^\*\*`", TEXT, re.MULTILINE)) == len(STEP.findall(TEXT)) >= 8


@pytest.mark.slow
def test_a_compression_method(follow, default_assets):
    tree = follow("Add a compression method")
    scores = {}
    for path in (tree / "runs" / "wanda_layer").glob("*/*/all_results.json"):
        run = json.loads(path.read_text())
        scores[run["compression"], path.parent.name] = run
    assert set(scores) == {("dense", "dense"), *((name, strength) for name in ("wanda", "wanda_layer")
                                                 for strength in ("0.3", "0.5", "4of8"))}  # fmt: skip
    assert scores["wanda_layer", "0.5"]["measured_sparsity"] == pytest.approx(0.5, abs=0.001)
    assert "wanda_layer" in (tree / "runs/wanda_layer/figures/summary.md").read_text().lower()


@pytest.mark.slow
def test_a_statistic(follow):
    follow("Add a statistic")


@pytest.mark.slow
def test_a_data_set(follow, default_assets):
    tree = follow("Add a data set")
    runs = [json.loads(path.read_text()) for path in (tree / "runs" / "tickets").glob("*/*/all_results.json")]
    assert sorted(run["transfer"] for run in runs) == ["dense_transfer", "sparse_transfer"]
    assert {run["levels"][0]["metric"] for run in runs} == {"f1"} and all("eval_accuracy" in run for run in runs)


@pytest.mark.slow
def test_a_question_set(follow, default_assets):
    tree = follow("Add a question set for language models")
    runs = [json.loads(path.read_text()) for path in (tree / "runs/arc").glob("*/*/all_results.json")]
    assert len(runs) == 3 and {run["setting"] for run in runs} == {5}
    assert {(level["level"], level["human"], level["num_examples"]) for run in runs for level in run["levels"]} == {
        ("ARC-Easy", None, 2)
    }
    assert "ARC-Easy: NO HUMAN SCORE" in (tree / "runs/arc/figures/summary.md").read_text()


@pytest.fixture
def mmlu(tmp_path: Path) -> None:
    """MMLU as the default assets have it, of 24 questions in the tiny model's words."""
    words = "the film {} is a good story and the plot is bad"
    choices = ["good", "bad", "great", "awful"]
    rows = [{"question": words.format(index), "subject": "plots", "choices": choices, "answer": index % 4}
            for index in range(24)]  # fmt: skip
    examples = [{**row, "question": f"dev {index} ?"} for index, row in enumerate(rows[:5])]
    folder = tmp_path / "home/.cache/junk_dna/data/mmlu"
    folder.mkdir(parents=True)
    for name, split in (("test", rows), ("dev", examples)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in split))


@pytest.mark.slow
def test_a_setting(follow, default_assets, mmlu):
    tree = follow("Add a setting")
    runs = [json.loads(path.read_text()) for path in (tree / "runs/setting7").glob("*/*/all_results.json")]
    assert len(runs) == 3 and {run["setting"] for run in runs} == {7}
    assert [level["level"] for level in runs[0]["levels"]] == [f"{share} % misspelled" for share in (0, 10, 20, 40)]
    assert "share of misspelled words" in (tree / "runs/setting7/figures/summary.md").read_text()


@pytest.mark.slow
def test_a_figure(follow, default_assets, mmlu):
    tree = follow("Add a figure")
    for suffix in ("png", "csv"):
        assert list((tree / "runs/figure/figures").glob(f"*dense_scores*.{suffix}"))
        for figures in ("figure/figures", "large_figures"):
            assert (tree / "runs" / figures / f"durations.{suffix}").is_file()


@pytest.mark.slow
def test_no_addition_breaks_a_test(run):
    run(f"python -m pytest -q -x -p no:cacheprovider {' '.join(READERS.split())}")
