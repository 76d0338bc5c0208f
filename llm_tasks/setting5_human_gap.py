"""Setting 5: does compression harm tasks more on which the model is further behind people?

    python llm_tasks/setting5_human_gap.py --model_name_or_path lmsys/vicuna-13b-v1.3 \\
        --compression dense magnitude wanda sparsegpt --sparsity 0.1 0.3 0.5 0.7 --nm_ratio 6:8 4:8 2:8 \\
        --output_dir "runs/setting5/{compression}/{strength}/{seed}"

Three hundred items of other tasks:

    python llm_tasks/setting5_human_gap.py --model_name_or_path lmsys/vicuna-13b-v1.3 --tasks winogrande boolq \\
        --max_items 300 --compression dense wanda --sparsity 0.5 --output_dir "runs/few/{compression}/{strength}/{seed}"

A level is a data set, asked without examples. Its difficulty is (human - dense) / human with the dense model's own
accuracy, so it is known where the dense model's run is; the human scores are those the paper prints (section 3.2.1,
table 3; appendix B). The paper's scores are accuracies of lm-evaluation-harness, by the summed log-likelihood of an
option's text: that is --answer_mode cloze, the default here; commonsense.py says where prompts differ from its. Chance
is one in the number of options; of BoolQ's answers 62 % are "yes", which a model that always says so scores.
"""

import argparse
import sys
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from harness.data import Source, placed
from harness.options import checked
from llm_tasks.evaluation import CHOICE_OPTIONS, LevelSetting
from llm_tasks.levels import Level, sample
from llm_tasks.tasks.commonsense import TASKS, Question, cloze_prompt, letter_prompt, load_task, sources

PAPER_TASKS = ["piqa", "hellaswag", "openbookqa"]
OPTIONS = ("tasks", "eval_split", "max_items", *CHOICE_OPTIONS)


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("setting 5: human gap").add_argument
    add("--tasks", nargs="+", choices=tuple(TASKS), default=PAPER_TASKS, metavar="NAME",
        help=f"of {', '.join(TASKS)} (default {' '.join(PAPER_TASKS)})")  # fmt: skip
    add("--eval_split", nargs="+", type=checked(task_splits), default=[], metavar="TASK=SPLIT[+SPLIT]",
        help="take a task's items from other splits than the one that lm-evaluation-harness scores; openbookqa=test+"
        "validation doubles OpenBookQA's 500 items")  # fmt: skip


def task_splits(text: str) -> str:
    """The value of --eval_split, if it names a task and splits.

    Raises:
        ValueError: says what is wrong.
    """
    task, _, named = text.partition("=")
    splits = named.split("+")
    if task not in TASKS or not all(splits):
        raise ValueError(f"{text!r} is not TASK=SPLIT or TASK=SPLIT+SPLIT with a task of {', '.join(TASKS)}")
    if len(set(splits)) < len(splits):
        raise ValueError(f"{text!r} names a split twice")
    return text


def chosen_splits(args: argparse.Namespace) -> dict[str, list[str]]:
    """The splits of each task asked for, none where it is the task's own.

    Raises:
        ValueError: --eval_split names a task that is not asked for, or one twice.
    """
    named = [text.partition("=")[::2] for text in args.eval_split]
    tasks = [task for task, _ in named]
    if wrong := [task for task in tasks if task not in args.tasks]:
        raise ValueError(f"--eval_split: {wrong[0]} is not in --tasks {' '.join(args.tasks)}")
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"--eval_split {' '.join(args.eval_split)}: a task stands there twice; join its splits with +")
    splits = {task: found.split("+") for task, found in named}
    return {task: splits.get(task, []) for task in dict.fromkeys(args.tasks)}


def load(args: argparse.Namespace) -> dict[str, list[Question]]:
    """The chosen items of each task."""
    return {
        task: sample(load_task(task, args.data_dir, splits), args.max_items, key=lambda question: question.item)
        for task, splits in chosen_splits(args).items()
    }


def files(args: argparse.Namespace) -> list[Path | Source]:
    return [
        placed(source, args.data_dir)
        for task, splits in chosen_splits(args).items()
        for source in sources(task, splits)
    ]


def readers(args: argparse.Namespace) -> tuple[str, ...]:
    return (args.answer_mode or "cloze",)


def build(
    items: dict[str, list[Question]], args: argparse.Namespace, seed: int, tokenizer: PreTrainedTokenizerBase
) -> list[Level]:
    """A level per task, in the order asked for: how hard each is follows from the dense model's score."""
    return [task_level(task, questions, args.answer_mode or "cloze") for task, questions in items.items()]


def task_level(task: str, questions: list[Question], reader: str) -> Level:
    prompt = cloze_prompt if reader == "cloze" else letter_prompt
    repeated = sum(len(set(question.choices)) < len(question.choices) for question in questions)
    return Level(
        name=TASKS[task].title,
        difficulty=None,
        dataset=task,
        reader=reader,
        prompts=[prompt(question) for question in questions],
        human=TASKS[task].human,
        facts={"duplicate_options": repeated} if repeated else {},
    )


SETTING = LevelSetting(5, "human_gap", add_options, load, files, readers, build, OPTIONS, seeded=False)


def main(argv: list[str] | None = None) -> int:
    from llm_tasks.settings import run  # it imports this file

    return run(argv, SETTING.name, __doc__)


if __name__ == "__main__":
    sys.exit(main())
