"""What makes a level of an own task harder: as given, the dense model's score, or the gap to people.

And without lm_eval its tasks are refused in one line.
"""

import importlib.util
import json
from pathlib import Path

import pytest
from setting_values import values_of
from synthetic_runs import level_run, write_tree

from analysis.table import level_table
from harness import run_folder
from llm_tasks import own_task as script
from llm_tasks.levels import BY_DENSE
from llm_tasks.settings import own_task
from llm_tasks.tasks import lm_eval_tasks

ROWS = [
    {"question": "One?", "choices": ["a", "b"], "answer": 0, "level": "plain"},
    {"question": "Two?", "choices": ["a", "b"], "answer": 1, "level": "odd"},
]
SCORES = {"plain": (1, 1, 0, 0) * 10, "odd": (1, 1, 1, 0) * 10}


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return path


def test_levels_say_what_their_difficulty_follows_from(task_file: Path):
    def levels(*words: str) -> list[tuple]:
        values = values_of(own_task.SETTING, "--task_file", str(task_file), *words)
        built = own_task.build(own_task.load(values), values, 0, None)
        return [(level.name, level.difficulty, level.human, level.facts.get(BY_DENSE)) for level in built]

    assert levels() == levels("--difficulty", "given") == [("plain", 0.0, None, None), ("odd", 1.0, None, None)]
    assert levels("--difficulty", "dense") == [("plain", None, None, 1), ("odd", None, None, 1)]
    human = levels("--difficulty", "human", "--human_scores", "odd=0.8", "plain=1")
    assert human == [("plain", None, 1.0, None), ("odd", None, 0.8, None)]


@pytest.mark.parametrize(
    ("of_level", "wanted"),
    [
        ({name: {"difficulty": None, "facts": {BY_DENSE: 1}} for name in SCORES}, {"odd": 0.25, "plain": 0.5}),
        # people at 0.8 are ahead of 0.75 by a sixteenth, at 1 of 0.5 by a half
        ({"plain": {"difficulty": None, "human": 1.0}, "odd": {"difficulty": None, "human": 0.8}},
         {"odd": 0.0625, "plain": 0.5}),
        ({}, {"plain": 0.0, "odd": 1.0}),
    ],
    ids=["dense", "human", "given"],
)  # fmt: skip
def test_the_table_orders_levels_by_it(of_level: dict, wanted: dict[str, float], tmp_path: Path):
    kind = {"setting": "own_task", "task": "mine", "levels": SCORES, "of_level": of_level}
    write_tree(tmp_path, level_run(**kind), level_run("wanda", 0.5, **kind))
    table = level_table(run_folder.read_runs(tmp_path))
    found = {row["level"]: row["difficulty"] for row in table}
    assert list(found) == list(wanted) and found == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["plain=0", "plain=1.01", "plain=nan", "plain", "=0.5"])
def test_what_is_no_score_of_people_is_refused(text: str):
    with pytest.raises(ValueError, match="is not LEVEL=SCORE"):
        own_task.human_score(text)


def test_a_level_has_one_score_of_people(task_file: Path):
    words = ["--task_file", str(task_file), "--difficulty", "human", "--human_scores", "odd=0.8", "plain=1", "odd=0.7"]
    with pytest.raises(ValueError, match="--human_scores names odd, plain, odd; the levels are"):
        own_task.load(values_of(own_task.SETTING, *words))


def test_without_lm_eval_the_command_that_installs_it_is_named(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else find(name, *more)
    )
    lm_eval_tasks.task_manager.cache_clear()
    words = [
        "--model_name_or_path",
        str(tiny_decoder),
        "--lm_eval_tasks",
        "piqa",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    with pytest.raises(SystemExit) as ended:
        script.main(words)
    assert ended.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.endswith(
        "--lm_eval_tasks needs lm-evaluation-harness: python -m pip install -r requirements-lm-eval.txt"
    )
    assert script.main([*words, "--list_cells"]) == 0  # needs nothing
    assert "--lm_eval_tasks piqa" in capsys.readouterr().out
