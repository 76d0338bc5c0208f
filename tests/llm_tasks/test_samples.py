"""Where items come from, what is refused, and a sample that does not depend on order."""

import hashlib
import json
import random
from pathlib import Path

import datasets
import pytest

from harness.data import Source, check_fields, checked_text, local_file, read_source
from llm_tasks.levels import item_id, sample

SOURCE = Source("quiz/easy", "test", "somebody/quiz", "main", "validation", ("question", "answer"), "v1")
ROWS = [{"question": "1 + 1?", "answer": "2"}, {"question": "1 + 2?", "answer": "3"}]


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_a_local_file(tmp_path: Path):
    path = write(tmp_path / "quiz" / "easy" / "test.jsonl", ROWS)
    assert local_file(SOURCE, tmp_path) == path
    assert list(read_source(SOURCE, tmp_path)) == [(f"{path}, line 1", ROWS[0]), (f"{path}, line 2", ROWS[1])]
    assert list(read_source(SOURCE, tmp_path, first=1)) == [(f"{path}, line 1", ROWS[0])]


def test_a_missing_file_says_what_is_there(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^--data_dir .* has no quiz/easy/test\.jsonl \(or .*\); it has no data set;"):
        local_file(SOURCE, tmp_path)
    write(tmp_path / "quiz" / "easy" / "dev.jsonl", ROWS)
    write(tmp_path / "quiz" / "easy" / "all.json", ROWS)
    write(tmp_path / "mmlu" / "test.jsonl", ROWS)
    write(tmp_path / "mmlu" / "SOURCE.json", ROWS)
    (tmp_path / "mmlu" / "notes.txt").write_text("")
    there = r"it has mmlu \(test\), quiz/easy \(all, dev\)"
    with pytest.raises(ValueError, match=rf"{there}; leave --data_dir out to load from the hub$"):
        local_file(SOURCE, tmp_path)
    with pytest.raises(ValueError, match=rf"{there}$"):
        local_file(SOURCE._replace(hub_id=None), tmp_path)
    with pytest.raises(ValueError, match=r"--data_dir .*nowhere is no folder"):
        list(read_source(SOURCE, tmp_path / "nowhere"))


def test_a_missing_field_names_file_line_and_field(tmp_path: Path):
    path = write(tmp_path / "quiz" / "easy" / "test.jsonl", [*ROWS, {"question": "?", "id": 3}])
    with pytest.raises(ValueError, match=r"test\.jsonl, line 3 lacks the field 'answer'; it has question, id$"):
        list(read_source(SOURCE, tmp_path))
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"test\.jsonl holds no rows"):
        list(read_source(SOURCE, tmp_path))


def test_the_hub_is_asked_for_the_split(monkeypatch: pytest.MonkeyPatch):
    asked = []

    class Stream:
        def take(self, count: int) -> list[dict]:
            return ROWS[:count]

    def load_dataset(*names: str, **options: object) -> list[dict] | Stream:
        asked.append((names, options))
        return Stream() if options["streaming"] else ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    name = "somebody/quiz main validation"
    assert list(read_source(SOURCE, None)) == [(f"{name}, row 1", ROWS[0]), (f"{name}, row 2", ROWS[1])]
    assert list(read_source(SOURCE, None, first=1)) == [(f"{name}, row 1", ROWS[0])]
    options = {"split": "validation", "revision": "v1"}
    names = ("somebody/quiz", "main")
    assert asked == [(names, {**options, "streaming": False}), (names, {**options, "streaming": True})]
    with pytest.raises(ValueError, match="main validation, row 1 lacks the field 'hint'; it has question, answer"):
        list(read_source(SOURCE._replace(fields=("hint",)), None))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach it.\nmore"),
        FileNotFoundError("Couldn't reach it"),
        ValueError("Couldn't reach it."),
        RuntimeError("Couldn't reach it"),
        datasets.exceptions.DatasetGenerationError("Couldn't reach it"),
    ],
)
def test_without_a_hub_the_remedy_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch):
    def load_dataset(*_: str, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = (
        "^somebody/quiz main validation: Couldn't reach it; without a hub, "
        r"give --data_dir DIR with quiz/easy/test\.jsonl$"
    )
    with pytest.raises(ValueError, match=message):
        list(read_source(SOURCE, None))


def test_a_data_set_that_is_on_no_hub():
    with pytest.raises(ValueError, match=r"^quiz/easy is not on the hub: give --data_dir DIR with quiz/easy/test\."):
        list(read_source(SOURCE._replace(hub_id=None), None))


def test_fields_and_texts_are_checked():
    check_fields({"a": None, "b": 1}, "here", ("b", "a"))
    with pytest.raises(ValueError, match=r"^here lacks the field 'c'; it has a, b$"):
        check_fields({"a": None, "b": 1}, "here", ("a", "c"))
    assert checked_text(" a ", "here", "question") == " a "
    for value, message in (("", "is empty"), (" \n", "is empty"), (None, "is no text but NoneType")):
        with pytest.raises(ValueError, match=f"^here: 'question' {message}$"):
            checked_text(value, "here", "question")
    with pytest.raises(ValueError, match="no valid Unicode"):
        checked_text("\ud800", "here", "question")


def test_an_identity_tells_where_a_part_ends():
    assert len({item_id("ab", "c"), item_id("a", "bc"), item_id("abc"), item_id("abc", "")}) == 4


def test_samples_are_nested_and_follow_from_content_alone():
    items = [f"item {number}" for number in range(40)]
    ranks = sorted(items, key=lambda item: hashlib.sha256(item.upper().encode()).hexdigest())
    shuffled = random.Random(0).sample(items, 40)
    for count in (0, 1, 7, 39, 40, 41):
        found = sample(items, count, key=str.upper)
        assert set(found) == set(ranks[:count]) and found == sorted(found, key=items.index)
        assert set(sample(shuffled, count, key=str.upper)) == set(found)
    assert sample(shuffled, None, key=str.upper) == shuffled


def test_equal_items_are_sampled_from_the_front():
    assert sample([("a", 1), ("a", 2), ("a", 3)], 2, key=lambda item: item[0]) == [("a", 1), ("a", 2)]
