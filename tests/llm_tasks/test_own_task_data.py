"""Own tasks: rows of a user's file, their levels and prompts, what is refused."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from setting_values import values_of

from llm_tasks import own_task as script
from llm_tasks.levels import Level
from llm_tasks.settings import own_task
from llm_tasks.tasks.own import read_task

CHOICE = {"question": "Which is red?", "choices": ["sky", "blood", "grass"], "answer": "B"}
ANSWER = {"question": "Who wrote Emma?", "answers": ["Jane Austen", "Austen"]}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_rows(*rows: dict[str, Any]) -> Path:
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    return write_rows


def options_of(path: Path, *words: str, **shared: Any) -> own_task.Values:
    return values_of(own_task.SETTING, "--task_file", str(path), *words, **shared)


def build(values: own_task.Values) -> list[Level]:
    return own_task.build(own_task.load(values), values, 0, None)


def test_multiple_choice_prompts_by_hand(write: Write):
    path = write({**CHOICE, "context": "  Blood has iron.\n"})
    (letter,) = build(options_of(path))
    (prompt,) = letter.prompts
    assert letter[:4] == ("all", 0.0, "mine", "letter") and letter.facts == {}
    assert prompt.header == "  Blood has iron.\n\n"
    assert prompt.question == "Question: Which is red?\nA. sky\nB. blood\nC. grass\nAnswer:"
    assert prompt.options == (" A", " B", " C") and prompt.gold == 1 and prompt.answers == ()

    (cloze,) = build(options_of(path, answer_mode="cloze"))
    assert cloze.reader == "cloze" and cloze.prompts[0].question == "Question: Which is red?\nAnswer:"
    assert cloze.prompts[0].options == (" sky", " blood", " grass")
    assert build(options_of(path, answer_mode="generate"))[0].prompts == letter.prompts


def test_question_answer_prompts_by_hand(write: Write):
    path = write(ANSWER, {**ANSWER, "question": "Who wrote Persuasion?", "context": "A novel."})
    (level,) = build(options_of(path, "--task_name", "novels"))
    assert level[:4] == ("all", 0.0, "novels", "answer")
    first, second = level.prompts
    assert first.question == "Question: Who wrote Emma?\nAnswer:" and first.header == ""
    assert first.answers == ("Jane Austen", "Austen") and first.options == () and first.gold is None
    assert second.header == "A novel.\n\n"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("blood", 1), (" blood ", 1), ("A", 0), ("C", 2), (0, 0), (2, 2)],
)
def test_answers_by_text_letter_and_index(answer: object, gold: int, write: Write):
    assert read_task(write({**CHOICE, "answer": answer}))[0].gold == gold


def test_texts_that_look_like_other_names_are_taken_where_they_are_clear(write: Write):
    numbers = {**CHOICE, "choices": ["1", "2", "3"]}
    assert read_task(write({**numbers, "answer": "2"}))[0].gold == 1
    assert read_task(write({**numbers, "answer": "C"}))[0].gold == 2
    assert read_task(write({**CHOICE, "choices": ["A", "B"], "answer": "B"}))[0].gold == 1


def test_number_levels_are_difficulties_in_their_order(write: Write):
    levels = [3, 1, 2.5, 3.0]
    path = write(*({**CHOICE, "question": f"{place}?", "level": level} for place, level in enumerate(levels)))
    built = build(options_of(path))
    assert [(level.name, level.difficulty, len(level.prompts)) for level in built] == [
        ("1", 1.0, 1), ("2.5", 2.5, 1), ("3", 3.0, 2)
    ]  # fmt: skip


def test_levels_stand_by_their_numbers_not_by_their_names(write: Write):
    path = write(*({**CHOICE, "question": f"{level}?", "level": level} for level in (10, 9, 2)))
    assert [level.name for level in build(options_of(path))] == ["2", "9", "10"]


def test_text_levels_stand_as_they_first_appear(write: Write):
    levels = ["novice", "expert", "novice", 7]
    path = write(*({**CHOICE, "question": f"{place}?", "level": level} for place, level in enumerate(levels)))
    built = build(options_of(path))
    assert [(level.name, level.difficulty, len(level.prompts)) for level in built] == [
        ("novice", 0.0, 2), ("expert", 1.0, 1), ("7", 2.0, 1)
    ]  # fmt: skip


def test_the_same_question_with_another_context_is_the_same_item(write: Write):
    helped = {**ANSWER, "context": "Emma is by Jane Austen.", "level": 1}
    easy, hard = build(options_of(write(helped, {**ANSWER, "level": 2})))
    assert easy.prompts[0].item == hard.prompts[0].item and easy.prompts[0].group != hard.prompts[0].group


def test_items_are_distinct_within_a_level_and_grouped_by_context(write: Write):
    first, second = {**CHOICE, "context": "One."}, {**CHOICE, "context": "Two."}
    other = {**CHOICE, "question": "Which is blue?", "context": "One."}
    (level,) = build(options_of(write(first, second, other)))
    items, groups = zip(*((prompt.item, prompt.group) for prompt in level.prompts), strict=True)
    assert len(set(items)) == 3 and groups[0] == groups[2] != groups[1]
    (level,) = build(options_of(write(CHOICE, {**CHOICE, "choices": [*CHOICE["choices"], "grey"]})))
    assert "-" not in level.prompts[1].item  # other choices are no repetition


def test_a_repeated_row_is_no_independent_item(write: Write):
    """They are told apart, are one group, and are counted; the same question on another context is no repetition."""
    other = {**CHOICE, "question": "Which is blue?"}
    path = write(CHOICE, other, CHOICE, CHOICE, {**CHOICE, "context": "Blood has iron."})
    (level,) = build(options_of(path))
    items, groups = zip(*((prompt.item, prompt.group) for prompt in level.prompts), strict=True)
    assert len(set(items)) == 5 and level.facts == {"repeated_items": 2}
    assert groups[0] == groups[2] == groups[3] and len(set(groups)) == 3
    assert build(options_of(write(CHOICE, other)))[0].facts == {}


def test_max_items_takes_the_same_questions_of_every_level(write: Write):
    rows = [{**CHOICE, "question": f"{place}?", "level": level} for level in (1, 2) for place in range(9)]
    easy, hard = build(options_of(write(*rows), max_items=4))
    assert [prompt.item for prompt in easy.prompts] == [prompt.item for prompt in hard.prompts]
    assert len(easy.prompts) == 4
    again, _ = build(options_of(write(*reversed(rows)), max_items=3))
    assert {prompt.item for prompt in again.prompts} < {prompt.item for prompt in easy.prompts}


def test_contexts_without_an_answer_are_counted_and_kept(write: Write, caplog: pytest.LogCaptureFixture):
    contexts = ["Emma, by jane  AUSTEN.", "Austenites like it.", None]
    path = write(*({**ANSWER, "question": f"{place}?", "context": text} for place, text in enumerate(contexts)))
    with caplog.at_level(logging.WARNING):
        (level,) = build(options_of(path))
    assert level.facts == {"context_without_answer": 1} and len(level.prompts) == 3
    assert "mine, level all: 1 contexts of 3 items hold no answer" in caplog.text


def test_null_fields_are_absent_as_parquet_has_them(tmp_path: Path):
    path = tmp_path / "mine.parquet"
    rows = [{**CHOICE, "context": "A text.", "level": None}, {**CHOICE, "context": None, "level": None}]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    assert [row.context for row in read_task(path)] == ["A text.", ""]
    assert build(options_of(path))[0].dataset == "mine"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {**CHOICE, "answer": "red"},
            r"line 2: 'answer' is 'red'; allowed: the text of a choice, its letter \(A to C\)",
        ),
        ({**CHOICE, "answer": "D"}, r"'answer' is 'D'; allowed: .* its index \(0 to 2, a number\)"),
        ({**CHOICE, "answer": 3}, "'answer' is 3; allowed"),
        ({**CHOICE, "answer": -1}, "'answer' is -1; allowed"),
        ({**CHOICE, "answer": "1"}, "'answer' is '1'; allowed"),
        ({**CHOICE, "answer": True}, "'answer' is True; allowed"),
        ({**CHOICE, "choices": ["1", "2", "3"], "answer": 2}, "'answer' 2 may mean '2' or '3'"),
        ({**CHOICE, "choices": ["B", "A"], "answer": "A"}, "'answer' 'A' may mean 'B' or 'A'"),
        ({**CHOICE, "choices": ["sky"], "answer": 0}, "'choices' holds 1; allowed: 2 to 26"),
        ({**CHOICE, "choices": [str(place) for place in range(27)]}, "'choices' holds 27; allowed: 2 to 26"),
        ({**CHOICE, "choices": ["sky", "sky ", "grass"]}, "'choices' holds 'sky' more than once"),
        ({**CHOICE, "choices": ["sky", ""]}, "line 2: 'choices' is empty"),
        ({**CHOICE, "choices": "sky, blood"}, "'choices' must be a list of texts"),
        ({**CHOICE, "choices": [1, 2]}, "'choices' is no text"),
        ({**CHOICE, "question": "  "}, "line 2: 'question' is empty"),
        ({**CHOICE, "context": 5}, "'context' is no text"),
        ({"choices": ["a", "b"], "answer": 0}, "line 2 lacks the field 'question'; it has choices, answer"),
        ({"question": "?", "choices": ["a", "b"]}, "line 2 lacks the field 'answer'"),
        ({"question": "?"}, "line 2 has neither 'choices' nor 'answers'; it has question"),
        ({**CHOICE, **ANSWER}, "line 2 has both 'choices' and 'answers'"),
        ({"question": "?", "answers": "Austen"}, "'answers' must be a list of texts"),
        ({"question": "?", "answers": []}, "'answers' must be a list of texts"),
        ({**CHOICE, "level": ""}, "'level' is empty"),
        ({**CHOICE, "level": True}, "'level' is no text"),
        ({**CHOICE, "level": float("nan")}, "'level' is nan"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], message: str, write: Write):
    with pytest.raises(ValueError, match=message) as caught:
        read_task(write(CHOICE, row))
    assert "mine.jsonl, line 2" in str(caught.value)


def test_mixed_kinds_name_both_lines(write: Write):
    with pytest.raises(ValueError, match=r"line 3 has 'answers', .*line 1 has 'choices': a file holds only one"):
        read_task(write(CHOICE, CHOICE, ANSWER))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (({"level": 1}, {}), r"line 2 has no 'level', .*line 1 has one"),
        (({}, {"level": "hard"}), r"line 1 has no 'level', .*line 2 has one"),
    ],
)
def test_a_level_in_some_rows_only_is_refused(levels: tuple[dict[str, Any], ...], message: str, write: Write):
    with pytest.raises(ValueError, match=message):
        read_task(write(*({**CHOICE, **level} for level in levels)))


def test_fields_that_nothing_reads_are_logged_with_the_name_that_was_meant(
    write: Write, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    own_task.load(options_of(write({**CHOICE, "Context": "x", "id": 7, "question_id": 1}, {**CHOICE, "lvl": 2})))
    own_task.load(options_of(write({**ANSWER, "answer": "A", "label": "x", "level": 0})))
    own_task.load(options_of(write(CHOICE)))
    assert [message.partition("mine.jsonl: ")[2] for message in caplog.messages] == [
        "fields not read: Context (did you mean context?), id, lvl (did you mean level?), question_id",
        "fields not read: answer, label",
    ]


def test_bad_files_and_modes(write: Write, tmp_path: Path):
    with pytest.raises(ValueError, match=r"there is no file .*nothing.jsonl"):
        own_task.load(options_of(tmp_path / "nothing.jsonl"))
    with pytest.raises(ValueError, match=r"--task_file .*mine.jsonl holds no items"):
        own_task.load(options_of(write()))
    with pytest.raises(ValueError, match="--answer_mode letter is for items with 'choices'"):
        own_task.load(options_of(write(ANSWER), answer_mode="letter", typed={"answer_mode": "letter"}))
    with pytest.raises(ValueError, match=r"mine.csv is not one of"):
        (tmp_path / "mine.csv").touch()
        own_task.load(options_of(tmp_path / "mine.csv"))
    assert own_task.files(options_of(write(ANSWER))) == [tmp_path / "mine.jsonl"]


def test_the_example_in_the_docstring_is_readable(write: Write):
    lines = [line.strip() for line in script.__doc__.splitlines() if line.strip().startswith("{")]
    assert len(lines) == 3
    easy, hard = build(options_of(write(*map(json.loads, lines))))
    assert [prompt.gold for prompt in (*easy.prompts, *hard.prompts)] == [1, 1, 1]


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.gz", "mine.parquet"])
def test_the_task_is_named_after_the_file(name: str):
    assert own_task.file_stem(Path("a/folder.d") / name) == "mine"
