"""Setting 6: facts as free answers against facts as multiple choice (paper, section 3.2.2): FreebaseQA and MMLU.

    python llm_tasks/setting6_factoid_vs_mcq.py --model_name_or_path lmsys/vicuna-7b-v1.3 --dtype float16 \\
        --compression dense magnitude wanda sparsegpt --sparsity 0.1 0.2 0.3 0.4 0.5 0.6 0.7 \\
        --output_dir "runs/setting6/{compression}/{strength}/{seed}"

FreebaseQA in the file that its authors publish, or another set of questions:

    python llm_tasks/setting6_factoid_vs_mcq.py --model_name_or_path SmolLM2-135M-Instruct --data_dir data \\
        --factoid_file FreebaseQA-eval.json --max_items 500 --compression dense magnitude --sparsity 0.2 0.4 \\
        --output_dir "runs/setting6/{compression}/{strength}/{seed}"
    python llm_tasks/setting6_factoid_vs_mcq.py --model_name_or_path SmolLM2-135M-Instruct --data_dir data \\
        --factoid_dataset nq_open --answer_mode cloze --compression dense wanda --sparsity 0.5 \\
        --output_dir "runs/nq_open/{compression}/{strength}/{seed}"

MMLU has its own options and five worked examples; a question for a fact has none. A generated answer is right where it
equals an accepted answer or alias after TriviaQA's normalisation; the paper's code also accepts an answer inside a
longer word, or in the question.

The two floors differ: a model that knows nothing has 1/4 of MMLU right by log-likelihood and none of the free answers.
So the plain drop is larger for facts even where compression destroys the same share of knowledge in both: read the
drops that are corrected for chance beside it. With --answer_mode generate, the paper's way, the floor of MMLU is 0 too:
a model that no longer writes letters is right nowhere, whatever it knows.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from harness.data import Source, placed
from harness.options import filled_path
from llm_tasks.evaluation import ANSWER_OPTIONS, CHOICE_OPTIONS, LevelSetting
from llm_tasks.levels import Level, sample
from llm_tasks.tasks import factoid, mmlu
from llm_tasks.tasks.factoid import FACTOID_SETS

OPTIONS = (
    "factoid_dataset", "factoid_file", "num_shots", "shot_split", "subjects", "max_items", *CHOICE_OPTIONS,
    *ANSWER_OPTIONS,
)  # fmt: skip


class Questions(NamedTuple):
    """MMLU's test questions and worked examples, and the questions for facts."""

    choice: list[mmlu.Question]
    examples: list[mmlu.Question]
    facts: list[factoid.Question]


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("setting 6: factoid v. multiple choice").add_argument
    add("--factoid_dataset", choices=tuple(FACTOID_SETS), default="freebaseqa", metavar="NAME",
        help=f"of {', '.join(FACTOID_SETS)} (default freebaseqa)")  # fmt: skip
    add("--factoid_file", type=filled_path, metavar="FILE",
        help="FreebaseQA as its authors publish it (FreebaseQA-eval.json), not from --data_dir or the hub")  # fmt: skip


def load(args: argparse.Namespace) -> Questions:
    if args.factoid_file and args.factoid_dataset != "freebaseqa":
        raise ValueError(f"--factoid_file holds freebaseqa; --factoid_dataset is {args.factoid_dataset}")
    facts = factoid.load(args.factoid_dataset, args.data_dir, args.factoid_file)
    asked = mmlu.load(args.data_dir, "test")
    choice = mmlu.of_subjects(asked, args.subjects)
    choice = sample(choice, args.max_items, key=lambda question: question.item)
    examples = mmlu.load_examples(args.data_dir, args.shot_split, asked) if args.num_shots else []
    mmlu.check_examples(choice, examples, args.num_shots, "--num_shots", args.shot_split)
    return Questions(choice, examples, sample(facts, args.max_items, key=lambda question: question.item))


def files(args: argparse.Namespace) -> list[Path | Source]:
    found = [args.factoid_file.expanduser()] if args.factoid_file else []
    if found and not found[0].is_file():
        raise ValueError(f"--factoid_file: there is no file {found[0]}")
    splits = ("test", args.shot_split) if args.num_shots else ("test",)
    sources = [mmlu.source(split) for split in splits]
    if not args.factoid_file:
        sources.append(FACTOID_SETS[args.factoid_dataset].source)
    return found + [placed(source, args.data_dir) for source in sources]


def readers(args: argparse.Namespace) -> tuple[str, ...]:
    return (args.answer_mode or "letter", "answer")


def build(items: Questions, args: argparse.Namespace, seed: int, tokenizer: PreTrainedTokenizerBase) -> list[Level]:
    choice = choice_level(items.choice, items.examples, args.num_shots, args.answer_mode or "letter")
    return [choice, factoid_level(args.factoid_dataset, items.facts)]


def choice_level(
    questions: Sequence[mmlu.Question], examples: Sequence[mmlu.Question], num_shots: int, reader: str
) -> Level:
    prompts = mmlu.prompts(questions, examples, reader, num_shots)
    return Level("MMLU (choice)", 1.0, "mmlu", reader, prompts)


def factoid_level(name: str, questions: Sequence[factoid.Question]) -> Level:
    """Harder, as the paper has it: an answer must be found, not chosen."""
    prompts = [factoid.prompt(question) for question in questions]
    return Level(f"{FACTOID_SETS[name].title} (factoid)", 2.0, name, "answer", prompts)


SETTING = LevelSetting(6, "factoid_vs_mcq", add_options, load, files, readers, build, OPTIONS, seeded=False)


def main(argv: Sequence[str] | None = None) -> int:
    from llm_tasks.settings import run  # here: it imports this file

    return run(argv, SETTING.name, __doc__)


if __name__ == "__main__":
    sys.exit(main())
