"""How far may a model be compressed before it breaks on your own task? A file of your own in place of a data set.

    python llm_tasks/own_task.py --model_name_or_path Qwen/Qwen3-1.7B --task_file support.jsonl \\
        --compression dense wanda sparsegpt --sparsity 0.2 0.3 0.4 0.5 0.6 --bits 8 4 \\
        --output_dir "runs/support/{compression}/{strength}/{seed}"
    python scripts/plot_results.py --results_dir runs/support --output_dir runs/support/figures

The file holds one item in every line (.jsonl, also .gz), or is a .parquet file. Multiple choice, here in two levels:

    {"question": "Which port does HTTPS use?", "choices": ["80", "443"], "answer": "B", "level": 1}
    {"question": "Which key opens help?", "choices": ["Esc", "F1"], "answer": 1, "context": "F1: help", "level": 1}
    {"question": "What is 17 * 3?", "choices": ["41", "51", "57"], "answer": "51", "level": 2}

`answer` is a choice's text, its letter, or, as a number, its index from 0. Where the model is to write the answer
itself, `answers` holds all texts that are right: {"question": "Who wrote Emma?", "answers": ["Jane Austen", "Austen"]}.
A file holds one of the two kinds.

Optional are `context`, a text that stands before the question, and `level`, which every item has or none. Levels that
are numbers are difficulties, larger is harder; others go from easy to hard as they first appear. Items that differ in
context alone are the same item, so that a question may stand at several levels, with more or less help. --max_items
takes so many of each level.

How to read the result: summary.md says for every level what the dense model scores, and for every strength how much of
that is lost, with its 95 % interval; the largest strength whose interval still holds 0 is as far as your items can tell
that nothing is lost, and more items narrow the interval. A level whose dense score is not above chance says nothing, at
any strength: the model cannot do it to begin with, or needs another --answer_mode. Small models often fail to say
letters: --answer_mode cloze compares the choices' texts instead.
"""

import argparse
import functools
import logging
import math
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from harness.choices import LETTERS, gold_index, read_choices, read_texts
from harness.data import SUFFIXES, check_fields, checked_text, read_rows, valid_text
from harness.options import filled, filled_path, typed
from llm_tasks import arguments, evaluation, experiment
from llm_tasks.engine.answers import contains
from llm_tasks.evaluation import ANSWER_OPTIONS, CHOICE_OPTIONS, LevelSetting
from llm_tasks.levels import Level, Prompt, continued, distinct, item_id, lettered, sample

logger = logging.getLogger(__name__)

OPTIONS = ("task_file", "task_name", "max_items", *CHOICE_OPTIONS, *ANSWER_OPTIONS)
ONLY_LEVEL = "all"


class Row(NamedTuple):
    """One item of the file.

    Fields:
        where: "<path>, line 3".
        item: identity from question, choices and answers; the same question with another context is the same item.
        level: None where the file has no levels.
        choices, gold: of multiple choice; empty and None otherwise.
        answers: texts of which each is right, empty for multiple choice.
    """

    where: str
    item: str
    question: str
    context: str
    level: str | float | None
    choices: tuple[str, ...]
    gold: int | None
    answers: tuple[str, ...]

    @property
    def kind(self) -> str:
        return "choices" if self.choices else "answers"


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("own task").add_argument
    add("--task_file", type=filled_path, required=True, help="the items: .jsonl or .parquet, also .gz")
    add("--task_name", type=filled, help="as results and figures call it (default: the file's name)")


def load(args: argparse.Namespace, given: Collection[str] = ()) -> list[Row]:
    """The file's items.

    Args:
        given: names of the options that the command line holds.
    Raises:
        ValueError: a file that is not usable, or an option for items of the other kind.
    """
    rows = read_task(args.task_file)
    if rows[0].kind == "choices":
        other, foreign = "answers", [option for option in ANSWER_OPTIONS if option in given]
    else:
        other, foreign = "choices", [option for option in CHOICE_OPTIONS if getattr(args, option, None)]
    if foreign:
        value = getattr(args, foreign[0])
        asked = f"--{foreign[0]}" if value is True else f"--{foreign[0]} {value}"
        raise ValueError(f"{asked} is for items with {other!r}; those of {args.task_file} have {rows[0].kind!r}")
    if "length_normalized" in given and reader_of(rows, args) != "cloze":
        raise ValueError("--length_normalized is obeyed by --answer_mode cloze; the default is letter")
    return rows


def files(args: argparse.Namespace) -> list[Path]:
    if not args.task_file.is_file():
        raise ValueError(f"--task_file: there is no file {args.task_file}")
    return [args.task_file]


def readers(args: argparse.Namespace) -> tuple[str, ...]:
    return (reader_of(load(args), args),)


def reader_of(items: list[Row], args: argparse.Namespace) -> str:
    return "answer" if items[0].kind == "answers" else args.answer_mode or "letter"


def build(items: list[Row], args: argparse.Namespace, seed: int, tokenizer: PreTrainedTokenizerBase) -> list[Level]:
    """The file's levels, easy to hard."""
    reader = reader_of(items, args)
    dataset = args.task_name or file_stem(args.task_file)
    return [
        make_level(name, difficulty, dataset, reader, sample_level(rows, args.max_items))
        for name, difficulty, rows in split_levels(items)
    ]


def file_stem(path: Path) -> str:
    return next((path.name.removesuffix(suffix) for suffix in SUFFIXES if path.name.endswith(suffix)), path.name)


def read_task(path: Path) -> list[Row]:
    """All items, of one kind, with a level each or without any.

    Raises:
        ValueError: no such file, damage, or rows that are unusable or do not go together (names file, line and field).
    """
    rows = [read_row(row, where) for where, row in read_rows(path)]
    if not rows:
        raise ValueError(f"--task_file {path} holds no items")
    first = rows[0]
    for row in rows:
        if row.kind != first.kind:
            raise ValueError(f"{row.where} has {row.kind!r}, {first.where} has {first.kind!r}: a file holds one kind")
        if (row.level is None) != (first.level is None):
            with_level, without = (first, row) if row.level is None else (row, first)
            raise ValueError(f"{without.where} lacks 'level', which {with_level.where} has: all items or none")
    return rows


def read_row(row: dict[str, Any], where: str) -> Row:
    """A row with its fields checked; one that is null is not there.

    Raises:
        ValueError: names where the row stands, and the field.
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
    return Row(where, item_id(question, *choices, *answers), question, context, level, choices, gold, answers)


def read_level(level: object, where: str) -> str | float:
    if isinstance(level, int | float) and not isinstance(level, bool):
        if not math.isfinite(level):
            raise ValueError(f"{where}: 'level' is {level}")
        return float(level)
    return checked_text(level, where, "level").strip()


def split_levels(rows: Sequence[Row]) -> list[tuple[str, float, list[Row]]]:
    """Name, difficulty and items of each level, easy to hard.

    Numbers are difficulties themselves; where a level is none, all count as they first appear, from 0.
    """
    if rows[0].level is None:
        return [(ONLY_LEVEL, 0.0, list(rows))]
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(level_name(row.level), []).append(row)
    if any(isinstance(row.level, str) for row in rows):
        return [(name, float(place), members[name]) for place, name in enumerate(members)]
    return sorted(((name, some[0].level, some) for name, some in members.items()), key=lambda level: level[1])


def level_name(level: str | float) -> str:
    return str(int(level)) if isinstance(level, float) and level.is_integer() else str(level)


def sample_level(rows: Sequence[Row], count: int | None) -> list[Row]:
    """The level's chosen rows; an item that is there more than once has a number in each further identity."""
    items = distinct(row.item for row in rows)
    rows = [row._replace(item=item) for row, item in zip(rows, items, strict=True)]
    return sample(rows, count, key=lambda row: row.item)


def make_level(name: str, difficulty: float, dataset: str, reader: str, rows: Sequence[Row]) -> Level:
    """A level of the chosen rows; contexts in which no answer is are counted, and kept."""
    facts = {}
    if rows[0].answers and any(row.context for row in rows):
        without = sum(bool(row.context) and not contains(row.context, row.answers) for row in rows)
        facts["context_without_answer"] = without
        if without:
            logger.warning("%s, level %s: %d contexts of %d items hold no answer", dataset, name, without, len(rows))
    return Level(name, difficulty, dataset, reader, [make_prompt(row, reader) for row in rows], facts=facts)


def make_prompt(row: Row, reader: str) -> Prompt:
    """The item as it is asked; items of one context are right or wrong together."""
    if reader in ("letter", "generate"):
        question = lettered(row.question, row.choices)
        options = tuple(f" {letter}" for letter in LETTERS[: len(row.choices)])
    else:
        question, options = continued(f"Question: {row.question}\nAnswer:", row.choices)
    header = f"{row.context}\n\n" if row.context else ""
    group = item_id(row.context) if row.context else row.item
    return Prompt(row.item, group, question, header, options=options, gold=row.gold, answers=row.answers)


SETTING = LevelSetting("own_task", "own_task", add_options, load, files, readers, build, OPTIONS, seeded=False)


def main(argv: list[str] | None = None) -> int:
    parser = arguments.make_parser(__doc__)
    evaluation.add_shared_options(parser)
    SETTING.add_options(parser)
    args = parser.parse_args(argv)
    given = typed(parser, argv)
    try:
        arguments.check_obeyed(args, given)
    except ValueError as error:
        parser.error(str(error))
    setting = SETTING._replace(load=functools.partial(load, given=given))
    return experiment.run(parser, args, [evaluation.as_setting(setting, ("task_file",))])  # its hash tells it


if __name__ == "__main__":
    sys.exit(main())
