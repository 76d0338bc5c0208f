"""Runs made before identity was content (tests/trees/before_identity): read, drawn, skipped, never mixed with others.

When a change of arithmetic alters what an older run would be, CHANGED says so, and the run is refused by that name.
"""

import importlib
import json
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from harness import run_folder
from llm_tasks import plan

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

TREE = Path(__file__).parents[1] / "trees" / "before_identity"
COMMANDS = json.loads((TREE / "commands.json").read_text())
# Commands whose runs are others today, and what the refusal names.
CHANGED = {
    "gptq_groups": "method_arithmetic: 2 here, 1 there",
    "setting2_bf16": "engine_arithmetic: 2 here, 1 there",
    "letter_bf16": "engine_arithmetic: 2 here, 1 there",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tree, in which the process works."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copied = shutil.copytree(TREE, tmp_path / "tree")
    monkeypatch.chdir(copied)
    return copied


def start(command: list[str], *more: str) -> int:
    """The exit code of a command of commands.json, with further options, in this process."""
    script, *argv = command
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return importlib.import_module(script.removesuffix(".py").replace("/", ".")).main([*argv, *more])
    except SystemExit as ended:
        return ended.code


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def elsewhere(command: list[str], folder: Path) -> list[str]:
    """The command with all that it reads in another folder."""
    read = ("encoder", "decoder", "data")
    return [str(folder / word) if word.partition("/")[0] in read else word for word in command]


def plot(load_script, *words: object) -> None:
    output = Path("figures")
    load_script("plot_results").main(
        ["--results_dir", *map(str, words), "--output_dir", str(output), "--resamples", "100"]
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_what_no_change_of_arithmetic_touched_is_skipped(tree: Path, name: str, capsys: pytest.CaptureFixture):
    """By relative paths, absolute ones, a link and a copy."""
    before = files(tree / "runs")
    (tree.parent / "link").symlink_to(tree)
    copied = shutil.copytree(tree / "data", tree.parent / "copy" / "data").parent
    for model in ("encoder", "decoder"):
        shutil.copytree(tree / model, copied / model)
    for folder in (Path(), tree, tree.parent / "link", copied):
        code = start(elsewhere(COMMANDS[name], folder))
        if name in CHANGED:
            assert code == 2 and CHANGED[name] in capsys.readouterr().err
        else:
            assert code == 0, capsys.readouterr().err
    assert files(tree / "runs") == before


OTHERS = {
    "another seed's recipe": ("glue", ["--learning_rate", "1e-4"], "learning_rate: 0.0001 here, 0.001 there"),
    "autocast in fine-tuning": ("glue", ["--mixed_precision", "bf16"], "precision_used: 'bf16' here, 'no'"),
    "float32 in fine-tuning": ("glue_bf16", ["--mixed_precision", "no"], "precision_used: 'no' here, 'bf16'"),
    "autocast after float32": ("perplexity", ["--precision", "bf16"], "precision_used: 'bf16' here, 'no' there"),
    "float32 after autocast": ("perplexity_autocast", ["--precision", "no"], "precision_used: 'no' here, 'bf16' there"),
    "a bf16 model after a float32 one": ("setting2", ["--dtype", "bfloat16"], "dtype_used: 'torch.bfloat16' here"),
    "a float32 model after a bf16 one": ("letter_bf16", ["--dtype", "float32"], "dtype_used: 'torch.float32' here"),
    "other data": ("letter", ["--task_file", "data/answers.jsonl"], "data_sha256: "),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_another_run_is_refused_by_what_differs(tree: Path, case: str, capsys: pytest.CaptureFixture):
    name, options, message = OTHERS[case]
    before = files(tree / "runs")
    assert start(COMMANDS[name], *options) == 2
    assert message in capsys.readouterr().err and files(tree / "runs") == before


@pytest.mark.parametrize("name", COMMANDS)
def test_lists_of_older_sweeps_are_printed(tree: Path, name: str, caplog: pytest.LogCaptureFixture):
    """From options alone: model and data may be elsewhere."""
    for read in ("encoder", "decoder"):
        (tree / read).rename(tree / f"moved_{read}")
    assert start(COMMANDS[name], "--list_cells") == 0
    assert "taken for the run" not in caplog.text
    if name != "lines":
        assert start([*COMMANDS[name], "--model_name_or_path", "elsewhere"], "--list_cells") == 0
        assert "although it says model_name_or_path: 'elsewhere' here, " in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        OTHERS["another seed's recipe"], OTHERS["autocast in fine-tuning"], OTHERS["a bf16 model after a float32 one"],
        ("mcq", ["--max_train_samples", "9"], "max_train_samples: 9 here, None there"),
        ("lines", ["--num_points", "5"], "num_points: 5 here, 3 there"),
        ("perplexity", ["--seq_len", "8"], "seq_len: 8 here, 16 there"),
        ("perplexity", ["--nsamples", "2"], "runs/perplexity/wanda/0.5 holds a run with other arguments (nsamples: 2 "),
        ("letter", ["--answer_mode", "cloze"], "answer_mode: 'cloze' here, None there"),
    ],
)  # fmt: skip
def test_a_list_refuses_runs_that_were_made_with_other_options(
    tree: Path, name: str, options: list[str], message: str, capsys: pytest.CaptureFixture
):
    command = [*COMMANDS[name], *options, "--list_cells"]
    assert start(command) == 2
    told = capsys.readouterr()
    assert message in told.err and told.out == ""
    assert start([*command, "--overwrite"]) == 0


@pytest.mark.slow
def test_older_trees_are_read_and_drawn(tree: Path, load_script):
    """Lines beside their ends, settings beside perplexity, as before."""
    folders = ["glue", "lines", "mcq", "perplexity", "setting2", "letter", "cloze", "answers"]
    assert len({row["folder"] for row in run_folder.read_runs(tree / "runs")}) == 30
    plot(load_script, *(f"runs/{name}" for name in folders))
    drawn = {path.name for path in (tree / "figures").glob("*.png")}
    for kind in ("setting1", "interpolation", "perplexity", "setting2", "own_task"):
        assert any(kind in name for name in drawn), (kind, drawn)
    for name in ("perplexity_rows", "setting2_bf16"):
        plot(load_script, f"runs/{name}")


MIXTURES = {
    "setting 2": (["setting2/dense", "setting2_bf16/magnitude"], "dtype_used: 'torch.float32' here, 'torch.bfloat16'"),
    "own task": (["letter/dense", "letter_bf16/magnitude"], "dtype_used: "),
    "perplexity": (["perplexity/dense", "perplexity_autocast/magnitude"], "precision_used: 'no' here, 'bf16' there"),
    "fine-tuning": (["glue/dense_transfer/dense/42", "glue_bf16/sparse_transfer"], "precision_used: 'no' here, 'bf16'"),
    "groups": (["perplexity", "perplexity_rows/gptq"], "group_size: 8 here, -1 there"),
}  # fmt: skip


@pytest.mark.parametrize("case", MIXTURES)
def test_a_mixture_of_older_runs_is_refused(tree: Path, case: str, load_script):
    """Where only the environment of args.json tells their precision."""
    folders, message = MIXTURES[case]
    with pytest.raises(SystemExit, match=message):
        plot(load_script, *(f"runs/{name}" for name in folders))
    if "perplexity" not in folders[0]:  # of which it answers nothing
        with pytest.raises(SystemExit, match=message):
            load_script("max_strength").main(["--results_dir", *(f"runs/{name}" for name in folders)])


def test_older_and_newer_runs_of_one_sweep_stand_together(tree: Path, load_script):
    assert start(COMMANDS["perplexity"], "--sparsity", "0.5", "0.25") == 0
    rows = run_folder.read_runs(tree / "runs/perplexity")
    assert len(rows) == 6 and len({row["recipe"] for row in rows}) == 2
    plot(load_script, "runs/perplexity")
    table = (tree / "figures").glob("perplexity*.csv")
    assert "0.25" in next(table).read_text()


def test_arithmetic_that_changed_is_never_mixed(tree: Path, load_script, monkeypatch, capsys: pytest.CaptureFixture):
    """The dense run of one with the compressed run of the other, by each command that could."""
    command = COMMANDS["perplexity"]
    monkeypatch.setattr(plan.ways, "arithmetic", lambda *_: 7)
    assert start(command) == 2 and "engine_arithmetic: 7 here, 1 there" in capsys.readouterr().err
    assert start(command, "--compression", "magnitude", "--sparsity", "0.25") == 0
    message = r"runs of setting perplexity, .* different recipes: .*engine_arithmetic: (1 here, 7|7 here, 1) there"
    with pytest.raises(SystemExit, match=message):
        plot(load_script, "runs/perplexity")
    monkeypatch.undo()
    monkeypatch.chdir(tree)
    plot(load_script, "runs/perplexity/magnitude/0.25")  # newer ones by themselves
    shutil.rmtree("runs/perplexity/magnitude/0.25")
    plot(load_script, "runs/perplexity")  # older ones by themselves


def test_a_method_whose_arithmetic_changed_is_never_averaged(tree: Path, load_script, monkeypatch):
    """One method of several: the others of the sweep are skipped, and drawn together with those before."""
    monkeypatch.setattr(plan, "method_arithmetic", lambda options, cell, computed: 1 + (cell["compression"] == "wanda"))
    command = COMMANDS["perplexity"]
    assert start(command) == 2
    assert start(command, "--compression", "dense", "magnitude") == 0
    assert start(command, "--compression", "wanda", "--sparsity", "0.25") == 0
    with pytest.raises(SystemExit, match=r"compression wanda were made .*method_arithmetic: "):
        plot(load_script, "runs/perplexity")
    shutil.rmtree("runs/perplexity/wanda/0.5")
    plot(load_script, "runs/perplexity")


TODAY = {
    "letter": ["--compression", "magnitude", "--max_items", "2"],
    "glue": ["--sparse_method", "dense_transfer", "--seed", "41", "--max_train_steps", "1"],
}


@pytest.mark.parametrize(
    ("name", "path", "content", "said"),
    [
        ("letter", "decoder/config.json", {"rope_theta": 5}, "config_sha256"),
        ("letter", "decoder/chat_template.jinja", None, "template_sha256"),
        ("glue", "encoder/tokenizer_config.json", {"do_lower_case": True}, "tokenizer_sha256"),
        ("glue", "encoder/config.json", {"hidden_act": "relu"}, "config_sha256"),
    ],
)  # fmt: skip
def test_a_model_that_was_edited_since_is_another(tree: Path, name: str, path: str, content, said: str, capsys):
    """Older records do not tell; those of today do."""
    options = *TODAY[name], "--output_dir", "runs/today"
    assert start(COMMANDS[name], *options) == 0 == start(COMMANDS[name], *options)
    file = tree / path
    file.write_text("{{ messages }}" if content is None else json.dumps({**json.loads(file.read_text()), **content}))
    assert start(COMMANDS[name], *options) == 2
    told = capsys.readouterr().err
    assert said in told and told.count(" here, ") == 1
