"""show_flips.py on real runs of a tiny model: the items that the tables count, with the texts that the data hold."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import torch
from safetensors.torch import load_file, save_file
from synthetic_runs import choice_run, level_run, write_tree

from analysis import flips
from analysis.names import SETTING_TITLE
from analysis.outcomes import ItemReader
from analysis.table import level_sets, level_table
from harness import run_folder
from llm_tasks import own_task, setting2_option_count, setting3_context_length

ROOT = Path(__file__).parents[2]
OLDER = ROOT / "tests" / "trees" / "before_identity"
COMPRESSED = ["--compression", "dense", "magnitude", "--sparsity", "0.9", "--output_dir"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a tiny model with large random weights, whose answers vary and change."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(OLDER / "decoder", folder)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(weight.shape, generator=generator).to(weight.dtype) if weight.ndim == 2 else weight
        for name, weight in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return ["--model_name_or_path", str(folder), "--precision", "no"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, model: list[str]) -> Path:
    """Data, and runs of setting 2 with two seeds and of two own tasks, one of choices and one of answers."""
    folder = tmp_path_factory.mktemp("flips")
    shutil.copytree(OLDER / "data", folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        words = [*model, "--data_dir", str(folder / "data"), "--num_shots", "1", "--answer_mode", "cloze",
                 "--seed", "0", "1", *COMPRESSED, str(folder / "runs/two/{compression}/{seed}")]  # fmt: skip
        patch.setattr(sys, "argv", ["setting2_option_count.py", *words])  # what a run records as its command
        assert setting2_option_count.main(words) == 0
        for name in ("choices", "answers"):
            words = [*model, "--task_file", str(folder / f"data/{name}.jsonl"), "--max_items", "6", *COMPRESSED,
                     str(folder / f"runs/{name}/{{compression}}")]  # fmt: skip
            patch.setattr(sys, "argv", ["own_task.py", *words])
            assert own_task.main(words) == 0
    return folder


@pytest.fixture
def shown(load_script, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    script = load_script("show_flips")

    def run(results: Path, *words: str) -> str:
        script.main(["--results_dir", str(results), *words])
        return capsys.readouterr().out

    return run


def questions(folder: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in (folder / "data/mmlu/test.jsonl").read_text().splitlines()]
    return {row["question"]: row for row in rows}


def parts(text: str) -> dict[str, list[str]]:
    """By the title of a run and level, its items' texts."""
    found = {}
    for part in re.split(r"^# ", text, flags=re.MULTILINE)[1:]:
        title, *items = re.split(r"^## ", part, flags=re.MULTILINE)
        found[title] = items
    return found


def test_the_items_are_those_that_the_tables_count(tree: Path, shown):
    (members,) = level_sets(run_folder.read_runs(tree / "runs/two")).values()
    table = flips.flip_table(members, level_table(members), 100)
    assert any(row["changed"] for row in table)
    for direction in ("right_to_wrong", "wrong_to_right", "changed"):
        found = parts(shown(tree / "runs/two", "--direction", direction, "--max_items", "100"))
        for row in table:
            seeds = [items for title, items in found.items() if f"tiny, {row['level']}: " in title]
            assert len(seeds) == 2
            assert sum(map(len, seeds)) == pytest.approx(2 * row["items"] * row[direction])


def test_every_item_has_its_own_question_options_and_right_answer(tree: Path, shown):
    """The options of a level are some of the question's; the right one is the data's."""
    text = shown(tree / "runs/two", "--direction", "changed", "--max_items", "100", "--level", "3 options")
    known, items = questions(tree), [item for own in parts(text).values() for item in own]
    assert "Without texts" not in text and items
    for item in items:
        question = known[re.search(r"^    Question: (.*)$", item, re.MULTILINE)[1]]
        options = re.findall(r"^\| (\w+) \| -", item, re.MULTILINE)
        assert len(options) == 3 and set(options) <= set(question["choices"])
        assert re.search(r"^right: (.*)$", item, re.MULTILINE)[1] == question["choices"][question["answer"]]
        said = re.findall(r"^(?:dense|Magnitude.*): (\w+) \(accuracy ([01])\)$", item, re.MULTILINE)
        assert len(said) == 2 and said[0] != said[1]
        assert all((choice == question["choices"][question["answer"]]) == (score == "1") for choice, score in said)


def test_what_both_models_gave_is_what_the_runs_recorded(tree: Path, shown):
    text = shown(tree / "runs/two", "--direction", "changed", "--level", "2 options", "--seed", "1", "--max_items", "1")
    item = re.search(r"^## 1\. Item (\w+)", text, re.MULTILINE)[1]
    folders = [tree / f"runs/two/{name}/1" for name in ("dense", "magnitude")]
    rows = {row["folder"]: row for row in run_folder.read_runs(tree / "runs/two") if row["level"] == "2 options"}
    both = [flips.answers_of(rows[str(folder)], ItemReader()) for folder in folders]
    scores = [own.option_scores[own.items.tolist().index(item)] for own in both]
    told = re.findall(r"^\| \w+ \| (-[\d.]+) \([\d.]+ %\) \| (-[\d.]+) \([\d.]+ %\) \|$", text, re.MULTILINE)
    assert np.array(told, dtype=float) == pytest.approx(np.stack(scores, axis=1), abs=6e-4)
    shares = re.findall(r"^\| \w+ \| -[\d.]+ \(([\d.]+) %\) \| -[\d.]+ \(([\d.]+) %\) \|$", text, re.MULTILINE)
    assert np.array(shares, dtype=float) == pytest.approx(100 * scipy.special.softmax(scores, axis=1).T, abs=0.051)
    distance = float(flips.divergence(scores[0][None], scores[1][None])[0])
    assert f"KL: {distance:.4f} nats" in text


def test_whole_prompts_hold_the_examples(tree: Path, shown):
    words = "--direction", "changed", "--level", "3 options", "--max_items", "1"
    bare, full = shown(tree / "runs/two", *words), shown(tree / "runs/two", *words, "--full")
    assert full.count("    Question: ") == 2 * bare.count("    Question: ") > 0


def test_written_answers_stand_beside_those_that_are_accepted(tree: Path, shown):
    text = shown(tree / "runs/answers", "--direction", "changed")
    rows = [json.loads(line) for line in (tree / "data/answers.jsonl").read_text().splitlines()]
    accepted = {row["question"]: row["answers"] for row in rows}
    items = [item for own in parts(text).values() for item in own]
    assert items
    for item in items:
        question = re.search(r"Question: (.*)$", item, re.MULTILINE)[1]
        assert f"accepted: {', '.join(accepted[question])}" in item
        first, second = re.findall(r"^(?:dense|Magnitude.*): ('.*') \(exact_match 0\)$", item, re.MULTILINE)
        assert first != second


def test_data_that_moved_are_named_and_found_where_they_are(tree: Path, shown, tmp_path: Path):
    """A line says why there are no texts; identities, choices and scores are shown."""
    shutil.copytree(tree / "runs", tmp_path / "runs")
    for path in (tmp_path / "runs").rglob("args.json"):
        path.write_text(path.read_text().replace(str(tree), "/gone"))
    words = "--direction", "changed", "--level", "4 options", "--max_items", "2"
    text = shown(tmp_path / "runs/two", *words)
    assert len(re.findall(r"^Without texts: --data_dir /gone/data is no folder$", text, re.MULTILINE)) == 2
    assert "Question:" not in text and re.search(r"^dense: [A-D] \(accuracy [01]\)$", text, re.MULTILINE)
    assert re.search(r"^right: [A-D]$", text, re.MULTILINE) and "KL: " in text
    assert "Question:" in shown(tmp_path / "runs/two", *words, "--data_dir", str(tree / "data"))
    words = "--direction", "changed", "--setting", "own_task"
    text = shown(tmp_path / "runs/choices", *words)
    assert "Without texts: --task_file: there is no file /gone/data/choices.jsonl" in text
    assert "Question:" in shown(tmp_path / "runs/choices", *words, "--task_file", str(tree / "data/choices.jsonl"))


def test_data_that_changed_are_not_shown(tree: Path, shown, tmp_path: Path):
    shutil.copytree(tree / "data", tmp_path / "data")
    test = tmp_path / "data/mmlu/test.jsonl"
    test.write_text(test.read_text().replace("story", "tale"))
    text = shown(tree / "runs/two", "--direction", "changed", "--data_dir", str(tmp_path / "data"))
    assert "Without texts: the data are not the run's (data_content_sha256: " in text and "tale" not in text


def test_items_that_are_built_otherwise_are_not_shown(tree: Path, load_script):
    """Whatever the hashes say: an identity, a right answer or a fact that differs."""
    script = load_script("show_flips")
    (row,) = [
        row for row in run_folder.read_runs(tree / "runs/two")
        if row["level"] == "3 options" and row["compression"] == "magnitude" and row["seed"] == 0
    ]  # fmt: skip
    levels = script.rebuilt_levels(row["folder"], tuple((name, None) for name in script.PATHS))
    level = levels["3 options"]
    assert len(script.checked_prompts(row, levels)) == len(level.prompts)
    first, *rest = level.prompts
    for prompts, message in (
        (rest, "1 of 18 items are not among those built again"),
        ([first._replace(gold=(first.gold + 1) % 3), *rest], "of 1 items the options built again are others"),
        ([first._replace(options=first.options[:2]), *rest], "of 1 items the options built again are others"),
    ):
        with pytest.raises(ValueError, match=message):
            script.checked_prompts(row, {"3 options": level._replace(prompts=prompts)})
    with pytest.raises(ValueError, match="examples left out of the level built again is 3, not 0"):
        script.checked_prompts(row, {"3 options": level._replace(facts={"examples_left_out": 3})})
    with pytest.raises(ValueError, match="the levels built again are 5 options"):
        script.checked_prompts(row, {"5 options": level})


@pytest.mark.parametrize("name", ["setting2", "letter", "cloze", "answers"])
def test_older_runs_are_built_again_too(name: str, load_script, monkeypatch: pytest.MonkeyPatch):
    """Their relative paths are those of the command that made them."""
    monkeypatch.chdir(OLDER)
    script = load_script("show_flips")
    rows = run_folder.read_runs(Path("runs") / name)
    assert rows
    for row in rows:
        levels = script.rebuilt_levels(row["folder"], tuple((path, None) for path in script.PATHS))
        assert len(script.checked_prompts(row, levels)) == row["num_examples"]


def test_windows_of_a_document_need_the_tokenizer(
    tmp_path: Path, shown, model: list[str], monkeypatch: pytest.MonkeyPatch
):
    rows = [
        {"question": f"what is {word}", "context": f"the film is {word}. a {word} plot is bad.",
         "answers": {"text": [word]}}
        for word in ("good", "great", "fine", "poor", "awful", "bad")
    ]  # fmt: skip
    data = tmp_path / "data/squad/validation.jsonl"
    data.parent.mkdir(parents=True)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [*model, "--data_dir", str(tmp_path / "data"), "--context_dataset", "squad", "--context_tokens", "12",
             "--context_shares", "100", "--no_closed_book", "--max_new_tokens", "2", *COMPRESSED,
             str(tmp_path / "runs/{compression}")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["setting3_context_length.py", *words])
    assert setting3_context_length.main(words) == 0
    text = shown(tmp_path / "runs", "--direction", "changed")
    assert "Without texts" not in text and re.search(r"^    Q: what is \w+$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--setting", "4"], "--setting 4: there is 2"),
        (["--compression", "wanda"], "--compression wanda: there is magnitude"),
        (["--strength", "0.5"], "--strength 0.5: there is 0.9"),
        (["--level", "5 options"], "--level 5 options: there is 2 options, 3 options, 4 options, 4 options, untouched"),
        (["--metric", "f1"], "--metric f1: the runs recorded accuracy, accuracy_norm"),
    ],
)
def test_what_there_is_not_is_named(tree: Path, shown, words: list[str], message: str):
    with pytest.raises(SystemExit, match=re.escape(message)):
        shown(tree / "runs/two", *words)


def test_models_of_one_name_go_by_the_names_of_figures(tmp_path: Path, shown):
    level = {"4 options": (1.0,) * 12}
    runs = [level_run(*method, level, model=model) for model in ("a/lm", "b/lm")
            for method in (("dense", None), ("wanda", 0.5))]  # fmt: skip
    text = shown(write_tree(tmp_path, *runs))
    names = re.findall(r"^# .*, (lm-\w{6}), 4 options", text, re.M)
    assert len(set(names)) == 2
    for asked in (names[1], "b/lm"):
        assert re.findall(r"^# .*, (lm-\w{6}), 4", shown(tmp_path, "--model", asked), re.M) == names[1:]


def test_runs_that_cannot_be_compared_say_why(tmp_path: Path, shown):
    level = {"4 options": (1.0,) * 12}
    assert "Not compared: there is no dense run of this level." in shown(
        write_tree(tmp_path / "alone", level_run("wanda", 0.5, level))
    )
    text = shown(write_tree(tmp_path / "bare", level_run(levels=level), level_run("wanda", 0.5, level)),
                 "--strength", "0.50", "--model", "model-a")  # fmt: skip
    assert f"# {SETTING_TITLE[2]}, model-a, 4 options: Wanda, 50 %, seed 0" in text
    assert "Right to wrong: 0 of 12 items." in text
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SystemExit, match="holds no complete run of settings 2 to 6"):
        shown(tmp_path / "nothing")


def test_scores_per_character_are_not_compared_with_others(tmp_path: Path, shown):
    """An older run recorded no lengths: the tables have no KL of the two either."""
    same = [(-6.0, -9.0)] * 20
    runs = [choice_run(run={"metric": "accuracy_norm"}, level=same),
            choice_run("magnitude", 0.5, run={"metric": "accuracy_norm"}, level=[(-9.0, -6.0), *same[1:]])]  # fmt: skip
    for made, first in zip(runs, (0, 1), strict=True):
        made["items"]["level0_predicted_norm"] = np.array([first] + [0] * 19)
    runs[0]["items"]["level0_option_length"] = np.array([3, 3] * 20)
    text = shown(write_tree(tmp_path, *runs))
    assert "Right to wrong: 1 of 20 items." in text and "right: A" in text
    assert "KL" not in text and "per character" not in text


def test_a_run_that_recorded_no_command_says_what_is_missing(tmp_path: Path, shown):
    runs = [choice_run(level=[(0.0, -1.0)] * 12), choice_run("wanda", 0.5, level=[(-1.0, 0.0)] * 12)]
    text = shown(write_tree(tmp_path, *runs), "--max_items", "1")
    assert "Without texts: " in text and "zip()" not in text
