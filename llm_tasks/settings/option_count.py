"""Setting 2: MMLU with two, three and four options per question; fewer options are a subset of more."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from harness.content import files_content
from harness.data import Source
from harness.options import number
from llm_tasks.levels import LETTERS, Level, Setting, option
from llm_tasks.tasks import mmlu
from llm_tasks.tasks.mmlu import Question


@dataclass(frozen=True, kw_only=True)
class Values:
    """The options that this setting reads."""

    data_dir: Path | None
    max_items: int | None
    answer_mode: str
    option_counts: list[int] = option([2, 3, 4], nargs="+", type=number(int, 2, len(LETTERS)), metavar="K",
        help="numbers of options per question, at least 2 (default 2 3 4)")  # fmt: skip
    num_shots: int = mmlu.num_shots()
    shot_split: str = mmlu.shot_split()
    subjects: list[str] | None = mmlu.subjects()
    keep_referring: bool = option(
        False, action="store_true", help="keep questions with options that refer to other options"
    )
    keep_option_order: bool = option(False, action="store_true",
        help="keep the order of the options; the right one's position is then not balanced")  # fmt: skip
    no_untouched: bool = option(False, action="store_true",
        help="leave out the level of all questions with their options as published")  # fmt: skip


def load(values: Values) -> tuple[list[Question], list[Question]]:
    """Test questions and few-shot examples.

    Raises:
        ValueError: see mmlu.load_with_examples and check_counts.
    """
    counts = values.option_counts
    if len(set(counts)) < len(counts):
        raise ValueError(f"--option_counts {' '.join(map(str, counts))}: a number is given twice")
    questions, examples = mmlu.load_with_examples(
        values.data_dir, values.subjects, values.max_items, values.num_shots, "--num_shots", values.shot_split
    )
    check_counts(questions, max(counts), values.keep_referring)
    return questions, examples


def check_counts(questions: Sequence[Question], most: int, keep_referring: bool) -> None:
    """Check that some questions can be reduced to `most` options.

    Raises:
        ValueError: none can (the message says why).
    """
    largest = max(len(question.choices) for question in questions)
    if most > largest:
        raise ValueError(f"--option_counts {most}: the questions have {largest} options at most")
    kept, left_out = mmlu.reducible(questions, most, keep_referring)
    if not kept:
        reasons = ", ".join(f"{name} {count}" for name, count in left_out.items())
        raise ValueError(f"--option_counts {most}: of {len(questions)} question(s) none is left: {reasons}")


def files(values: Values) -> list[Path | Source]:
    return mmlu.files(values.data_dir, "test", *([values.shot_split] if values.num_shots else []))


def build(
    data: tuple[list[Question], list[Question]], values: Values, seed: int, tokenizer: PreTrainedTokenizerBase
) -> list[Level]:
    questions, examples = data
    levels = reduced_levels(
        questions, examples, sorted(values.option_counts), values.num_shots, seed, values.answer_mode,
        keep_referring=values.keep_referring, keep_order=values.keep_option_order,
    )  # fmt: skip
    if not values.no_untouched:
        levels.append(untouched_level(questions, examples, values.num_shots, values.answer_mode))
    return levels


def reduced_levels(
    questions: Sequence[Question],
    examples: Sequence[Question],
    counts: Sequence[int],
    num_shots: int,
    seed: int,
    reader: str,
    *,
    keep_referring: bool = False,
    keep_order: bool = False,
) -> list[Level]:
    """One level for each number of options, all with the same questions; examples are reduced like questions."""
    kept, left_out = mmlu.reducible(questions, max(counts), keep_referring)
    subjects = {question.subject for question in kept}
    examples = [example for example in examples if example.subject in subjects]
    kept_examples, _ = mmlu.reducible(examples, max(counts), keep_referring)
    names = ("options_refer_to_others", "duplicate_options", "too_few_options")
    facts = {name: left_out[name] for name in names}
    facts |= {"examples_left_out": len(examples) - len(kept_examples), **mmlu.repeated_questions(kept)}
    levels = []
    for count in counts:
        shown = mmlu.reduce_options(kept, count, seed, keep_order)
        shots = mmlu.reduce_options(kept_examples, count, seed, keep_order)
        prompts = mmlu.prompts(shown, shots, reader, num_shots)
        levels.append(Level(f"{count} options", float(count), "mmlu", reader, prompts, facts=facts))
    return levels


def untouched_level(questions: Sequence[Question], examples: Sequence[Question], num_shots: int, reader: str) -> Level:
    """All questions with all options as published: comparable with other evaluations, left out of curves."""
    largest = max(len(question.choices) for question in questions)
    prompts = mmlu.prompts(questions, examples, reader, num_shots)
    name = f"{largest} options, untouched"
    facts = {"reference_only": 1, **mmlu.repeated_questions(questions)}
    return Level(name, float(largest), "mmlu", reader, prompts, facts=facts)


SETTING = Setting(
    name=2,
    task="option_count",
    title="setting 2: option count",
    values=Values,
    content=lambda values: files_content(files(values)),
    readers=lambda values: (values.answer_mode,),
    load=load,
    build=build,
    answer_mode="letter",
    seeded=True,
)
