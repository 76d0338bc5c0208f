"""Setting 4: MMLU with five, three, one and no few-shot examples; fewer ones are the first of more."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from harness.content import files_content
from harness.data import Source
from harness.options import number
from llm_tasks.levels import Level, Setting, digest, option
from llm_tasks.tasks import mmlu
from llm_tasks.tasks.mmlu import Question

MOST_SHOTS = 5  # examples per subject in MMLU's dev split, and the most in the paper
SHOT_ORDERS = ("seeded", "file")


@dataclass(frozen=True, kw_only=True)
class Values:
    """The options that this setting reads."""

    data_dir: Path | None
    max_items: int | None
    answer_mode: str
    shots: list[int] = option([0, 1, 3, 5], nargs="+", type=number(int, 0, 10**3), metavar="K",
        help="numbers of few-shot examples, 0 to what each subject has in --shot_split (default 0 1 3 5)")  # fmt: skip
    shot_order: str = option("seeded", choices=SHOT_ORDERS,
        help="order of examples: random by --seed, or as in the file (default seeded)")  # fmt: skip
    shot_split: str = mmlu.shot_split()
    subjects: list[str] | None = mmlu.subjects()


def load(values: Values) -> tuple[list[Question], list[Question]]:
    """Test questions, and few-shot examples that are not among them."""
    shots = values.shots
    if len(set(shots)) < len(shots):
        raise ValueError(f"--shots {' '.join(map(str, shots))}: a number is given twice")
    return mmlu.load_with_examples(
        values.data_dir, values.subjects, values.max_items, max(shots), "--shots", values.shot_split
    )


def files(values: Values) -> list[Path | Source]:
    return mmlu.files(values.data_dir, "test", values.shot_split)


def build(
    data: tuple[list[Question], list[Question]], values: Values, seed: int, tokenizer: PreTrainedTokenizerBase
) -> list[Level]:
    questions, examples = data
    if values.shot_order == "seeded":
        examples = seeded_order(examples, seed)
    return levels(questions, examples, values.shots, values.answer_mode)


def seeded_order(examples: Sequence[Question], seed: int) -> list[Question]:
    """The examples in a random order that depends on the seed and their content, not on the file's order."""
    return sorted(examples, key=lambda example: digest(f"{seed} {example.item}"))


def levels(
    questions: Sequence[Question], examples: Sequence[Question], shots: Sequence[int], reader: str
) -> list[Level]:
    """One level for each number of examples, the largest first; its difficulty is the largest minus this number.

    The largest is MOST_SHOTS, or more if `shots` has more.
    """
    most = max(MOST_SHOTS, *shots)
    facts, result = mmlu.repeated_questions(questions), []
    for count in sorted(shots, reverse=True):
        prompts = mmlu.prompts(questions, examples, reader, count, grouped=max(shots) > 0)
        name = f"{count} shot{'s' * (count != 1)}"
        result.append(Level(name, float(most - count), "mmlu", reader, prompts, facts=facts))
    return result


SETTING = Setting(
    name=4,
    task="k_shot",
    title="setting 4: k-shot",
    values=Values,
    content=lambda values: files_content(files(values)),
    readers=lambda values: (values.answer_mode,),
    load=load,
    build=build,
    answer_mode="letter",
    seeded=True,
)
