"""Setting 6: questions with options (MMLU) against questions whose answer the model must write (FreebaseQA)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from harness.content import files_content
from harness.data import Source, local_or_hub
from harness.options import filled_path
from llm_tasks.levels import Level, Setting, option, sample
from llm_tasks.tasks import factoid, mmlu
from llm_tasks.tasks.factoid import FACTOID_SETS


@dataclass(frozen=True, kw_only=True)
class Values:
    """The options that this setting reads."""

    data_dir: Path | None
    max_items: int | None
    answer_mode: str
    factoid_dataset: str = option("freebaseqa", choices=tuple(FACTOID_SETS), metavar="NAME",
        help=f"one of {', '.join(FACTOID_SETS)} (default freebaseqa)")  # fmt: skip
    factoid_file: Path | None = option(type=filled_path, metavar="FILE",
        help="FreebaseQA's published file (FreebaseQA-eval.json), instead of --data_dir or the hub")  # fmt: skip
    num_shots: int = mmlu.num_shots()
    shot_split: str = mmlu.shot_split()
    subjects: list[str] | None = mmlu.subjects()


class Questions(NamedTuple):
    """MMLU's test questions and few-shot examples, and the factoid questions."""

    choice: list[mmlu.Question]
    examples: list[mmlu.Question]
    facts: list[factoid.Question]


def load(values: Values) -> Questions:
    if values.factoid_file and values.factoid_dataset != "freebaseqa":
        raise ValueError(f"--factoid_file holds freebaseqa; --factoid_dataset is {values.factoid_dataset}")
    facts = factoid.load(values.factoid_dataset, values.data_dir, values.factoid_file)
    choice, examples = mmlu.load_with_examples(
        values.data_dir, values.subjects, values.max_items, values.num_shots, "--num_shots", values.shot_split
    )
    return Questions(choice, examples, sample(facts, values.max_items, key=lambda question: question.item))


def files(values: Values) -> list[Path | Source]:
    splits = ("test", values.shot_split) if values.num_shots else ("test",)
    if not values.factoid_file:
        source = FACTOID_SETS[values.factoid_dataset].source
        return [*mmlu.files(values.data_dir, *splits), local_or_hub(source, values.data_dir)]
    file = values.factoid_file.expanduser()
    if not file.is_file():
        raise ValueError(f"--factoid_file: there is no file {file}")
    return [file, *mmlu.files(values.data_dir, *splits)]


def build(data: Questions, values: Values, seed: int, tokenizer: PreTrainedTokenizerBase) -> list[Level]:
    choice = choice_level(data.choice, data.examples, values.num_shots, values.answer_mode)
    return [choice, factoid_level(values.factoid_dataset, data.facts)]


def choice_level(
    questions: Sequence[mmlu.Question], examples: Sequence[mmlu.Question], num_shots: int, reader: str
) -> Level:
    prompts = mmlu.prompts(questions, examples, reader, num_shots)
    return Level("MMLU (choice)", 1.0, "mmlu", reader, prompts, facts=mmlu.repeated_questions(questions))


def factoid_level(name: str, questions: Sequence[factoid.Question]) -> Level:
    """The harder level, as in the paper: answers must be written, not chosen."""
    prompts = [factoid.prompt(question) for question in questions]
    return Level(f"{FACTOID_SETS[name].title} (factoid)", 2.0, name, "answer", prompts)


SETTING = Setting(
    name=6,
    task="factoid_vs_mcq",
    title="setting 6: factoid v. multiple choice",
    values=Values,
    content=lambda values: files_content(files(values)),
    readers=lambda values: (values.answer_mode, "answer"),
    load=load,
    build=build,
    answer_mode="letter",
    writes=True,
)
