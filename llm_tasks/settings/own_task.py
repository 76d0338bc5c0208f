"""A user's task: its items, and their levels, are in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harness.content import files_content
from harness.data import SUFFIXES
from harness.options import filled, filled_path
from llm_tasks.levels import ANSWER_OPTIONS, CHOICE_OPTIONS, Level, Setting, option
from llm_tasks.tasks.own import Row, make_level, read_task, sample_level, split_levels


@dataclass(frozen=True, kw_only=True)
class Values:
    """The options that this setting reads, and by name all options given on the command line (`typed`)."""

    task_file: Path = option(type=filled_path, required=True, help="the items: .jsonl or .parquet, also .gz")
    task_name: str | None = option(type=filled, help="name in results and figures (default: the file's name)")
    max_items: int | None
    answer_mode: str
    typed: Mapping[str, Any] = field(default_factory=dict)


def load(values: Values) -> list[Row]:
    """The file's items.

    Raises:
        ValueError: an invalid file, or an option that does not apply to its items.
    """
    rows = read_task(values.task_file)
    if rows[0].kind == "choices":
        other, foreign = "answers", [name for name in ANSWER_OPTIONS if name in values.typed]
    else:
        other, foreign = "choices", [name for name in CHOICE_OPTIONS if values.typed.get(name)]
    if foreign:
        value = values.typed[foreign[0]]
        given = f"--{foreign[0]}" if value is True else f"--{foreign[0]} {value}"
        raise ValueError(f"{given} is for items with {other!r}; those of {values.task_file} have {rows[0].kind!r}")
    if "length_normalized" in values.typed and reader_of(rows, values) != "cloze":
        raise ValueError("--length_normalized is obeyed by --answer_mode cloze; the default is letter")
    return rows


def files(values: Values) -> list[Path]:
    if not values.task_file.is_file():
        raise ValueError(f"--task_file: there is no file {values.task_file}")
    return [values.task_file]


def reader_of(rows: list[Row], values: Values) -> str:
    return "answer" if rows[0].kind == "answers" else values.answer_mode


def build(data: list[Row], values: Values, seed: int, tokenizer: PreTrainedTokenizerBase) -> list[Level]:
    """The file's levels, easy to hard."""
    dataset = values.task_name or file_stem(values.task_file)
    return [
        make_level(name, difficulty, dataset, reader_of(data, values), sample_level(rows, values.max_items))
        for name, difficulty, rows in split_levels(data)
    ]


def file_stem(path: Path) -> str:
    return next((path.name.removesuffix(suffix) for suffix in SUFFIXES if path.name.endswith(suffix)), path.name)


SETTING = Setting(
    name="own_task",
    task="own_task",
    title="own task",
    values=Values,
    content=lambda values: files_content(files(values)),
    readers=lambda values: (reader_of(read_task(values.task_file), values),),
    load=load,
    build=build,
    answer_mode="letter",
    writes=True,
    unrecorded=("task_file",),
)
