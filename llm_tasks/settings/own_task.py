"""A user's task: its items, and their levels, are in a file, or are tasks of lm-evaluation-harness."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harness.content import files_content
from harness.data import SUFFIXES
from harness.options import checked, filled, filled_path, number
from llm_tasks.levels import ANSWER_OPTIONS, BY_DENSE, CHOICE_OPTIONS, Level, Setting, option
from llm_tasks.tasks import lm_eval_tasks
from llm_tasks.tasks.lm_eval_levels import Item, items_of, make_level
from llm_tasks.tasks.lm_eval_tasks import TaskLevel
from llm_tasks.tasks.own import Row, log_unread, read_task, sample_level, split_levels
from llm_tasks.tasks.own import make_level as level_of_rows

DIFFICULTIES = ("given", "dense", "human")
OF_LM_EVAL = ("include_path", "num_fewshot", "lm_eval_metric")
# Options that say how a file's items are asked, which a task of lm-eval says itself.
OF_FILE = (*CHOICE_OPTIONS, *ANSWER_OPTIONS, "overflow")


def human_score(text: str) -> str:
    """Check a value of --human_scores, LEVEL=SCORE, and return it.

    Raises:
        ValueError: another form, or a score outside (0, 1].
    """
    name, _, score = text.rpartition("=")
    try:
        value = float(score)
    except ValueError:
        value = 0.0
    if not name or not 0 < value <= 1:
        raise ValueError(f"{text!r} is not LEVEL=SCORE with the score of people as a fraction above 0, up to 1")
    return text


@dataclass(frozen=True, kw_only=True)
class Values:
    """The options that this setting reads, and by name all options given on the command line (`typed`)."""

    task_file: Path | None = option(type=filled_path, help="the items: .jsonl or .parquet, also .gz")
    lm_eval_tasks: list[str] = option([], nargs="+", type=filled, metavar="NAME",
        help="in place of a file: tasks or groups of lm-evaluation-harness, each a level; needs "
        "requirements-lm-eval.txt")  # fmt: skip
    include_path: Path | None = option(type=filled_path, metavar="DIR",
        help="lm_eval_tasks: a folder of more task files (YAML)")  # fmt: skip
    num_fewshot: int | None = option(type=number(int, 0, 1000), metavar="K",
        help="lm_eval_tasks: examples before each question (default: as each task says)")  # fmt: skip
    lm_eval_metric: list[str] = option([], nargs="+", type=filled, metavar="NAME",
        help="lm_eval_tasks: a level's score is the first of these that its task has, such as acc_norm or "
        "exact_match,flexible-extract (default: the task's first)")  # fmt: skip
    difficulty: str = option("given", choices=DIFFICULTIES,
        help="what makes a level harder: its number or place, as given (default); a lower score of the dense model; "
        "or a larger gap between people (--human_scores) and the dense model")  # fmt: skip
    human_scores: list[str] = option([], nargs="+", type=checked(human_score), metavar="LEVEL=SCORE",
        help="with --difficulty human: the score of people at each level, a fraction, such as piqa=0.95")  # fmt: skip
    task_name: str | None = option(type=filled, help="name in results and figures (default: the file's or the tasks')")
    max_items: int | None
    answer_mode: str
    chat_template: bool = False
    chat_template_kwargs: str | None = None
    typed: Mapping[str, Any] = field(default_factory=dict)


def check(given: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
    """Refuse what does not go together: the items are in a file, or are tasks of lm-eval, and each has its options.

    Raises:
        ValueError: names the option and what it goes with.
    """
    tasks = given["lm_eval_tasks"]
    if given["task_file"] is None and not tasks:
        raise ValueError("the following arguments are required: --task_file (or --lm_eval_tasks)")
    if given["task_file"] is not None and tasks:
        raise ValueError(f"--task_file {given['task_file']}: --lm_eval_tasks {' '.join(tasks)} takes its place")
    named = [name for name in (OF_FILE if tasks else OF_LM_EVAL) if name in typed]
    if named:
        told = "--task_file; tasks of lm-eval say this themselves" if tasks else "--lm_eval_tasks"
        raise ValueError(f"--{named[0]} {_as_typed(typed[named[0]])} goes with {told}")
    if (given["difficulty"] == "human") != bool(given["human_scores"]):
        raise ValueError("--difficulty human and --human_scores go together: one is given without the other")


def _as_typed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def load(values: Values) -> list[Row] | list[tuple[TaskLevel, list[Item], str]]:
    """The file's items; of tasks of lm-eval each level, its items and its metric.

    Raises:
        ValueError: an invalid file, an option that does not apply to its items, or tasks that cannot be measured.
    """
    if values.lm_eval_tasks:
        levels = _levels(values)
        found = [(level, items_of(level, values.max_items), _metric(level, values)) for level in levels]
        check_humans([level.name for level in levels], values)
        return found
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
    check_humans([name for name, *_ in split_levels(rows)], values)
    log_unread(values.task_file, rows)
    return rows


def _levels(values: Values) -> list[TaskLevel]:
    return lm_eval_tasks.load_levels(tuple(values.lm_eval_tasks), values.include_path, values.num_fewshot)


def _metric(level: TaskLevel, values: Values) -> str:
    return lm_eval_tasks.choose_metric(level, values.lm_eval_metric)


def check_humans(levels: list[str], values: Values) -> None:
    """Raises ValueError unless --human_scores, where it is given, names every level once."""
    named = [text.rpartition("=")[0] for text in values.human_scores]
    if named and sorted(named) != sorted(levels):
        raise ValueError(f"--human_scores names {', '.join(named)}; the levels are {', '.join(levels)}")


def files(values: Values) -> list[Path]:
    if not values.task_file.is_file():
        raise ValueError(f"--task_file: there is no file {values.task_file}")
    return [values.task_file]


def content(values: Values) -> dict[str, Any]:
    return lm_eval_tasks.content(_levels(values)) if values.lm_eval_tasks else files_content(files(values))


def readers(values: Values) -> tuple[str, ...]:
    """ "lm_eval", with "answer" where answers are generated; or the reader of the file's items."""
    if not values.lm_eval_tasks:
        return (reader_of(read_task(values.task_file), values),)
    requests = {request.request_type for level in _levels(values) for task in level.tasks for request in task.instances}
    return ("lm_eval", "answer") if "generate_until" in requests else ("lm_eval",)


def reader_of(rows: list[Row], values: Values) -> str:
    return "answer" if rows[0].kind == "answers" else values.answer_mode


def build(data: list, values: Values, seed: int, tokenizer: PreTrainedTokenizerBase) -> list[Level]:
    """The levels, easy to hard where their difficulty is given."""
    if values.lm_eval_tasks:
        chat = json.loads(values.chat_template_kwargs or "{}") if values.chat_template else None
        dataset = values.task_name or "+".join(values.lm_eval_tasks)
        levels = [
            make_level(level, items, metric, dataset, chat)._replace(difficulty=float(index))
            for index, (level, items, metric) in enumerate(data)
        ]
    else:
        dataset = values.task_name or file_stem(values.task_file)
        levels = [
            level_of_rows(name, difficulty, dataset, reader_of(data, values), sample_level(rows, values.max_items))
            for name, difficulty, rows in split_levels(data)
        ]
    return [with_difficulty(level, values) for level in levels]


def with_difficulty(level: Level, values: Values) -> Level:
    """The level with what its difficulty follows from, where it is not given (--difficulty)."""
    if values.difficulty == "given":
        return level
    if values.difficulty == "human":
        humans = {name: float(score) for name, _, score in (text.rpartition("=") for text in values.human_scores)}
        return level._replace(difficulty=None, human=humans[level.name])
    return level._replace(difficulty=None, facts={**level.facts, BY_DENSE: 1})


def file_stem(path: Path) -> str:
    return next((path.name.removesuffix(suffix) for suffix in SUFFIXES if path.name.endswith(suffix)), path.name)


SETTING = Setting(
    name="own_task",
    task="own_task",
    title="own task",
    values=Values,
    content=content,
    readers=readers,
    load=load,
    build=build,
    answer_mode="letter",
    writes=True,
    unrecorded=("task_file", "include_path"),
    check=check,
)
