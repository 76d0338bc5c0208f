"""A user's task: the rows of a file, checked, as levels of prompts."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.choices import gold_index, read_choices, read_texts, unread_fields
from harness.data import check_fields, checked_text, read_rows, valid_text
from llm_tasks.engine.answers import contains
from llm_tasks.levels import (
    Level,
    Prompt,
    continued,
    distinct,
    item_id,
    letter_options,
    lettered,
    repeated_items,
    sample,
)

logger = logging.getLogger(__name__)

ONLY_LEVEL = "all"  # name of the level of a file without levels
READ = {
    "choices": {"question", "choices", "answer", "context", "level"},
    "answers": {"question", "answers", "context", "level"},
}  # fields that are read, by kind of row


class Row(NamedTuple):
    """One item of the file.

    Fields:
        where: "<path>, line 3", for messages.
        item: identity, from question, choices and answers; the same question with another context is the same item.
        group: identity of the context, without one of the item: a row and its repetitions are one group.
        level: None if the file has no levels.
        choices, gold: options and index of the right one; empty and None if `answers` are given.
        answers: all texts that are right; empty if `choices` are given.
        fields: names of all fields that the row has.
    """

    where: str
    item: str
    group: str
    question: str
    context: str
    level: str | float | None
    choices: tuple[str, ...]
    gold: int | None
    answers: tuple[str, ...]
    fields: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Which of the two fields the row has."""
        return "choices" if self.choices else "answers"


def read_task(path: Path) -> list[Row]:
    """All items of a file: all with choices or all with answers, all with a level or all without.

    Raises:
        ValueError: no such file, a damaged file, or an invalid row (the message names file, line and field).
    """
    rows = [read_row(row, where) for where, row in read_rows(path)]
    if not rows:
        raise ValueError(f"--task_file {path} holds no items")
    first = rows[0]
    for row in rows:
        if row.kind != first.kind:
            raise ValueError(
                f"{row.where} has {row.kind!r}, {first.where} has {first.kind!r}: a file holds only one of them"
            )
        if (row.level is None) != (first.level is None):
            with_level, without = (first, row) if row.level is None else (row, first)
            raise ValueError(
                f"{without.where} has no 'level', {with_level.where} has one: give it for all items or none"
            )
    return rows


def read_row(row: dict[str, Any], where: str) -> Row:
    """Check the fields of a row; a field that is null counts as missing.

    Raises:
        ValueError: a field is missing or invalid (the message names it, and file and line).
    """
    row = {field: value for field, value in row.items() if value is not None}
    check_fields(row, where, ["question"])
    question = checked_text(row["question"], where, "question").strip()
    context = valid_text(row.get("context", ""), where, "context").rstrip()
    if ("choices" in row) == ("answers" in row):
        both = "both 'choices' and" if "choices" in row else "neither 'choices' nor"
        raise ValueError(f"{where} has {both} 'answers'; it has {', '.join(row)}")
    if "choices" in row:
        check_fields(row, where, ["answer"])
        choices, answers = read_choices(row["choices"], where), ()
        gold = gold_index(row["answer"], choices, where)
    else:
        choices, answers, gold = (), read_texts(row["answers"], where, "answers"), None
    level = read_level(row["level"], where) if "level" in row else None
    item = item_id(question, *choices, *answers)
    group = item_id(context) if context else item
    return Row(where, item, group, question, context, level, choices, gold, answers, tuple(row))


def log_unread(path: Path, rows: Sequence[Row]) -> None:
    """Log which fields of a file nothing reads, each with the missing field that its name may stand for."""
    if unread := unread_fields({name for row in rows for name in row.fields}, READ[rows[0].kind]):
        logger.info("%s: fields not read: %s", path, unread)


def read_level(level: object, where: str) -> str | float:
    if isinstance(level, int | float) and not isinstance(level, bool):
        if not math.isfinite(level):
            raise ValueError(f"{where}: 'level' is {level}")
        return float(level)
    return checked_text(level, where, "level").strip()


def split_levels(rows: Sequence[Row]) -> list[tuple[str, float, list[Row]]]:
    """Name, difficulty and items of each level, easy to hard.

    If all levels are numbers, these are the difficulties. Otherwise difficulties are 0, 1, … in the order in which the
    levels first appear.
    """
    if rows[0].level is None:
        return [(ONLY_LEVEL, 0.0, list(rows))]
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(level_name(row.level), []).append(row)
    if any(isinstance(row.level, str) for row in rows):
        return [(name, float(index), members[name]) for index, name in enumerate(members)]
    return sorted(((name, some[0].level, some) for name, some in members.items()), key=lambda level: level[1])


def level_name(level: str | float) -> str:
    return str(int(level)) if isinstance(level, float) and level.is_integer() else str(level)


def sample_level(rows: Sequence[Row], count: int | None) -> list[Row]:
    """A sample of a level's rows; repetitions of an item get a number in their identity."""
    items = distinct(row.item for row in rows)
    rows = [row._replace(item=item) for row, item in zip(rows, items, strict=True)]
    return sample(rows, count, key=lambda row: row.item)


def make_level(name: str, difficulty: float, dataset: str, reader: str, rows: Sequence[Row]) -> Level:
    """A level of these rows; repeated ones and contexts that hold no answer are counted in its facts, not left out."""
    facts = repeated_items((row.question, row.choices, row.answers, row.context) for row in rows)
    if rows[0].answers and any(row.context for row in rows):
        without = sum(bool(row.context) and not contains(row.context, row.answers) for row in rows)
        facts["context_without_answer"] = without
        if without:
            logger.warning("%s, level %s: %d contexts of %d items hold no answer", dataset, name, without, len(rows))
    return Level(name, difficulty, dataset, reader, [make_prompt(row, reader) for row in rows], facts=facts)


def make_prompt(row: Row, reader: str) -> Prompt:
    """The item's prompt."""
    if reader in ("letter", "generate"):
        question = lettered(row.question, row.choices)
        options = letter_options(len(row.choices))
    else:
        question, options = continued(f"Question: {row.question}\nAnswer:", row.choices)
    header = f"{row.context}\n\n" if row.context else ""
    return Prompt(
        row.item, row.group, question, header, options=options, gold=row.gold, answers=row.answers, choices=row.choices
    )
