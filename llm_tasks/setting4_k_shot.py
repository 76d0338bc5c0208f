"""Setting 4: MMLU after five, three, one and no worked example; fewer are harder (paper, section 3.1.4).

    python llm_tasks/setting4_k_shot.py --model_name_or_path lmsys/vicuna-7b-v1.3 --dtype float16 \\
        --compression dense magnitude wanda sparsegpt --sparsity 0.1 0.2 0.3 0.4 0.5 0.6 0.7 --nm_ratio 6:8 4:8 2:8 \\
        --seed 0 1 2 --output_dir "runs/setting4/{compression}/{strength}/{seed}"

On a laptop, 500 questions, from the default assets:

    python llm_tasks/setting4_k_shot.py --data_dir ~/.cache/junk_dna/data --max_items 500 --answer_mode cloze \\
        --model_name_or_path ~/.cache/junk_dna/models/SmolLM2-135M-Instruct \\
        --compression dense magnitude --sparsity 0.2 0.4 \\
        --output_dir "runs/setting4/{compression}/{strength}/{seed}"

The examples are the first k of one order of a subject's dev examples, so that a prompt with few is the start of the one
with more. The paper says that they come from the validation set (`--shot_split validation`); its code takes the first
of the dev split, which is made for this. Here the order follows from --seed, because which examples are shown matters
at small k; `--shot_order file` takes the file's, as lm-evaluation-harness and the paper's code do.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from harness.data import Source, placed
from harness.options import number
from llm_tasks.evaluation import CHOICE_OPTIONS, LevelSetting
from llm_tasks.levels import Level, digest, sample
from llm_tasks.tasks import mmlu
from llm_tasks.tasks.mmlu import Question

MOST_SHOTS = 5  # examples of a subject in MMLU's dev split, and the most of the paper
SHOT_ORDERS = ("seeded", "file")
OPTIONS = ("shots", "shot_order", "shot_split", "subjects", "max_items", *CHOICE_OPTIONS)


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("setting 4: k-shot").add_argument
    add("--shots", nargs="+", type=number(int, 0, 10**3), default=[0, 1, 3, 5], metavar="K",
        help="numbers of worked examples, 0 to what --shot_split has of a subject (default 0 1 3 5)")  # fmt: skip
    add("--shot_order", choices=SHOT_ORDERS, default="seeded",
        help="which examples come first: by --seed, or as in the file (default seeded)")  # fmt: skip


def load(args: argparse.Namespace) -> tuple[list[Question], list[Question]]:
    """Test questions and worked examples, none of which is asked."""
    if len(set(args.shots)) < len(args.shots):
        raise ValueError(f"--shots {' '.join(map(str, args.shots))}: a number stands there twice")
    asked = mmlu.load(args.data_dir, "test")
    questions = mmlu.of_subjects(asked, args.subjects)
    questions = sample(questions, args.max_items, key=lambda question: question.item)
    examples = mmlu.load_examples(args.data_dir, args.shot_split, asked)
    mmlu.check_examples(questions, examples, max(args.shots), "--shots", args.shot_split)
    return questions, examples


def files(args: argparse.Namespace) -> list[Path | Source]:
    return [placed(mmlu.source(split), args.data_dir) for split in ("test", args.shot_split)]


def readers(args: argparse.Namespace) -> tuple[str, ...]:
    return (args.answer_mode or "letter",)


def build(
    items: tuple[list[Question], list[Question]],
    args: argparse.Namespace,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Level]:
    questions, examples = items
    if args.shot_order == "seeded":
        examples = seeded_order(examples, seed)
    return levels(questions, examples, args.shots, args.answer_mode or "letter")


def seeded_order(examples: Sequence[Question], seed: int) -> list[Question]:
    """The examples in a random order that follows from the seed and their content, not from the file's order."""
    return sorted(examples, key=lambda example: digest(f"{seed} {example.item}"))


def levels(
    questions: Sequence[Question], examples: Sequence[Question], shots: Sequence[int], reader: str
) -> list[Level]:
    """One level for each number of examples, most first; difficulty is how many fewer than MOST_SHOTS, or the most."""
    most = max(MOST_SHOTS, *shots)
    made = []
    for count in sorted(shots, reverse=True):
        prompts = mmlu.prompts(questions, examples, reader, count)
        made.append(Level(f"{count} shot{'s' * (count != 1)}", float(most - count), "mmlu", reader, prompts))
    return made


SETTING = LevelSetting(4, "k_shot", add_options, load, files, readers, build, OPTIONS, seeded=True)


def main(argv: Sequence[str] | None = None) -> int:
    from llm_tasks.settings import run  # here: it imports this file

    return run(argv, SETTING.name, __doc__)


if __name__ == "__main__":
    sys.exit(main())
