"""Setting 5: each level is a data set; it is the harder, the larger the gap between people and the dense model."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from harness.content import files_content
from harness.data import Source, local_or_hub
from harness.options import checked
from llm_tasks.levels import Level, Setting, option, repeated_items, sample
from llm_tasks.tasks.commonsense import TASKS, Question, cloze_prompt, letter_prompt, load_task, sources

PAPER_TASKS = ["piqa", "hellaswag", "openbookqa"]


def task_splits(text: str) -> str:
    """Check a value of --eval_split, TASK=SPLIT or TASK=SPLIT+SPLIT, and return it.

    Raises:
        ValueError: another form, an unknown task, or a split twice.
    """
    task, _, joined = text.partition("=")
    splits = joined.split("+")
    if task not in TASKS or not all(splits):
        raise ValueError(f"{text!r} is not TASK=SPLIT or TASK=SPLIT+SPLIT with a task of {', '.join(TASKS)}")
    if len(set(splits)) < len(splits):
        raise ValueError(f"{text!r} names a split twice")
    return text


@dataclass(frozen=True, kw_only=True)
class Values:
    """The options that this setting reads."""

    data_dir: Path | None
    max_items: int | None
    answer_mode: str
    tasks: list[str] = option(PAPER_TASKS, nargs="+", choices=tuple(TASKS), metavar="NAME",
        help=f"one or more of {', '.join(TASKS)} (default {' '.join(PAPER_TASKS)})")  # fmt: skip
    eval_split: list[str] = option([], nargs="+", type=checked(task_splits), metavar="TASK=SPLIT[+SPLIT]",
        help="take a task's items from other splits than the one that lm-evaluation-harness scores; openbookqa=test+"
        "validation doubles OpenBookQA's 500 items")  # fmt: skip


def chosen_splits(tasks: list[str], eval_split: list[str]) -> dict[str, list[str]]:
    """By task, the splits that --eval_split gives for it; an empty list for the task's default split.

    Raises:
        ValueError: --eval_split names a task that is not in `tasks`, or a task twice.
    """
    named = [text.partition("=")[::2] for text in eval_split]
    names = [task for task, _ in named]
    if wrong := [task for task in names if task not in tasks]:
        raise ValueError(f"--eval_split: {wrong[0]} is not in --tasks {' '.join(tasks)}")
    if len(set(names)) < len(names):
        raise ValueError(f"--eval_split {' '.join(eval_split)}: a task is given twice; join its splits with +")
    splits = {task: joined.split("+") for task, joined in named}
    return {task: splits.get(task, []) for task in dict.fromkeys(tasks)}


def load(values: Values) -> dict[str, list[Question]]:
    """The items of each task, or samples of them (--max_items)."""
    return {
        task: sample(load_task(task, values.data_dir, splits), values.max_items, key=lambda question: question.item)
        for task, splits in chosen_splits(values.tasks, values.eval_split).items()
    }


def files(values: Values) -> list[Path | Source]:
    return [
        local_or_hub(source, values.data_dir)
        for task, splits in chosen_splits(values.tasks, values.eval_split).items()
        for source in sources(task, splits)
    ]


def build(
    data: dict[str, list[Question]], values: Values, seed: int, tokenizer: PreTrainedTokenizerBase
) -> list[Level]:
    """A level per task, in the order of --tasks; difficulties are computed later, from the dense model's scores."""
    return [task_level(task, questions, values.answer_mode) for task, questions in data.items()]


def task_level(task: str, questions: list[Question], reader: str) -> Level:
    prompt = cloze_prompt if reader == "cloze" else letter_prompt
    doubled = sum(len(set(question.choices)) < len(question.choices) for question in questions)
    return Level(
        name=TASKS[task].title,
        difficulty=None,
        dataset=task,
        reader=reader,
        prompts=[prompt(question) for question in questions],
        human=TASKS[task].human,
        facts=repeated_items((question.passage, question.question, question.choices) for question in questions)
        | ({"duplicate_options": doubled} if doubled else {}),
    )


SETTING = Setting(
    name=5,
    task="human_gap",
    title="setting 5: human gap",
    values=Values,
    content=lambda values: files_content(files(values)),
    readers=lambda values: (values.answer_mode,),
    load=load,
    build=build,
    answer_mode="cloze",
)
