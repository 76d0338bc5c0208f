"""Setting 2: MMLU with two, three and four options; more options are harder (paper, section 3.1.2).

    python llm_tasks/setting2_option_count.py --model_name_or_path lmsys/vicuna-7b-v1.3 --dtype float16 \\
        --compression dense magnitude wanda sparsegpt --sparsity 0.1 0.2 0.3 0.4 0.5 0.6 0.7 --nm_ratio 6:8 4:8 2:8 \\
        --seed 0 1 2 --output_dir "runs/setting2/{compression}/{strength}/{seed}"

On a laptop, 500 questions, from the default assets:

    python llm_tasks/setting2_option_count.py --data_dir ~/.cache/junk_dna/data --max_items 500 --answer_mode cloze \\
        --model_name_or_path ~/.cache/junk_dna/models/SmolLM2-135M-Instruct \\
        --compression dense magnitude --sparsity 0.2 0.4 \\
        --output_dir "runs/setting2/{compression}/{strength}/{seed}"

The paper does not say which options it removes. Here the options of a smaller number are among those of a larger one,
the right one's place is balanced within a subject, and the worked examples are reduced in the same way. Questions whose
options mean other options ("all of the above"), or are the same twice, are left out at every number of options and
counted. Which distractors stay follows from --seed: give several.

Chance is 1/2, 1/3 and 1/4: a model that loses the same share of what it knows loses more of its score at four options
than at two. Read the drops that are corrected for chance beside the plain ones.

One more level, "4 options, untouched", has all questions and options as published, for comparison with other
evaluations; it stands in tables and in no curve.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from harness.data import Source, placed
from harness.options import number
from llm_tasks.evaluation import CHOICE_OPTIONS, LevelSetting
from llm_tasks.levels import LETTERS, Level, sample
from llm_tasks.tasks import mmlu
from llm_tasks.tasks.mmlu import Question

OPTIONS = (
    "option_counts", "num_shots", "shot_split", "subjects", "keep_referring", "keep_option_order", "no_untouched",
    "max_items", *CHOICE_OPTIONS,
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("setting 2: option count").add_argument
    add("--option_counts", nargs="+", type=number(int, 2, len(LETTERS)), default=[2, 3, 4], metavar="K",
        help="numbers of options per question, at least 2 (default 2 3 4)")  # fmt: skip
    add("--num_shots", type=number(int, 0, 5), default=5,
        help="settings 2 and 6: worked examples of MMLU, 0 to 5 (default 5)")  # fmt: skip
    add("--shot_split", choices=mmlu.SHOT_SPLITS, default="dev",
        help="settings 2, 4 and 6: MMLU's split that worked examples come from; the paper names validation, of which "
        "those that stand in the test split too are left out (default dev, which is made for it)")  # fmt: skip
    add("--subjects", nargs="+", metavar="NAME",
        help="settings 2, 4 and 6: subjects of MMLU, such as high_school_biology (default: all)")  # fmt: skip
    add("--keep_referring", action="store_true", help="keep questions with options that mean other options")
    add("--keep_option_order", action="store_true",
        help="leave the options in their order; the right one's place is then not balanced")  # fmt: skip
    add("--no_untouched", action="store_true", help="without the level of all questions and options as published")


def load(args: argparse.Namespace) -> tuple[list[Question], list[Question]]:
    """Test questions and worked examples."""
    if len(set(args.option_counts)) < len(args.option_counts):
        raise ValueError(f"--option_counts {' '.join(map(str, args.option_counts))}: a number stands there twice")
    asked = mmlu.load(args.data_dir, "test")
    questions = mmlu.of_subjects(asked, args.subjects)
    questions = sample(questions, args.max_items, key=lambda question: question.item)
    examples = mmlu.load_examples(args.data_dir, args.shot_split, asked) if args.num_shots else []
    mmlu.check_examples(questions, examples, args.num_shots, "--num_shots", args.shot_split)
    check_counts(questions, max(args.option_counts), args.keep_referring)
    return questions, examples


def check_counts(questions: Sequence[Question], most: int, keep_referring: bool) -> None:
    """Some question can have `most` options.

    Raises:
        ValueError: none can; says why.
    """
    largest = max(len(question.choices) for question in questions)
    if most > largest:
        raise ValueError(f"--option_counts {most}: the questions have {largest} options at most")
    kept, left_out = mmlu.reducible(questions, most, keep_referring)
    if not kept:
        reasons = ", ".join(f"{name} {count}" for name, count in left_out.items())
        raise ValueError(f"--option_counts {most}: of {len(questions)} question(s) none is left: {reasons}")


def files(args: argparse.Namespace) -> list[Path | Source]:
    splits = ("test", args.shot_split) if args.num_shots else ("test",)
    return [placed(mmlu.source(split), args.data_dir) for split in splits]


def readers(args: argparse.Namespace) -> tuple[str, ...]:
    return (args.answer_mode or "letter",)


def build(
    items: tuple[list[Question], list[Question]],
    args: argparse.Namespace,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Level]:
    questions, examples = items
    reader = args.answer_mode or "letter"
    made = reduced_levels(
        questions, examples, sorted(args.option_counts), args.num_shots, seed, reader,
        keep_referring=args.keep_referring, keep_order=args.keep_option_order,
    )  # fmt: skip
    if not args.no_untouched:
        made.append(untouched_level(questions, examples, args.num_shots, reader))
    return made


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
    """One level for each number of options, with the same questions, and examples that are reduced alike."""
    kept, left_out = mmlu.reducible(questions, max(counts), keep_referring)
    wanted = {question.subject for question in kept}
    examples = [example for example in examples if example.subject in wanted]
    kept_examples, _ = mmlu.reducible(examples, max(counts), keep_referring)
    names = ("options_refer_to_others", "duplicate_options", "too_few_options")
    facts = {name: left_out[name] for name in names}
    facts["examples_left_out"] = len(examples) - len(kept_examples)
    made = []
    for count in counts:
        shown = mmlu.reduce_options(kept, count, seed, keep_order)
        shots = mmlu.reduce_options(kept_examples, count, seed, keep_order)
        prompts = mmlu.prompts(shown, shots, reader, num_shots)
        made.append(Level(f"{count} options", float(count), "mmlu", reader, prompts, facts=facts))
    return made


def untouched_level(questions: Sequence[Question], examples: Sequence[Question], num_shots: int, reader: str) -> Level:
    """All questions with all their options in their order: what other evaluations report, and no point of a curve."""
    largest = max(len(question.choices) for question in questions)
    prompts = mmlu.prompts(questions, examples, reader, num_shots)
    name = f"{largest} options, untouched"
    return Level(name, float(largest), "mmlu", reader, prompts, facts={"reference_only": 1})


SETTING = LevelSetting(2, "option_count", add_options, load, files, readers, build, OPTIONS, seeded=True)


def main(argv: Sequence[str] | None = None) -> int:
    from llm_tasks.settings import run  # here: it imports this file

    return run(argv, SETTING.name, __doc__)


if __name__ == "__main__":
    sys.exit(main())
