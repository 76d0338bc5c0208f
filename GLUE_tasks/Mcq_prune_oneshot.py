"""Prune a pretrained encoder once, fine-tune it on multiple-choice questions, evaluate: section 5 of the paper.

    python GLUE_tasks/Mcq_prune_oneshot.py --model_name_or_path roberta-large --task_name commonsense_qa winogrande \\
        --noembed --sparse_method dense_transfer dense_transfer_freezing sparse_transfer sparse_to_dense \\
        --sparsity 0.1 0.3 0.5 0.7 0.9 --seed 41 42 43 --output_dir "runs/mcq/{task_name}/{transfer}/{strength}/{seed}"

Questions of your own, csv, json(l) or parquet, any number of options each:

    {"question": "Which port does HTTPS use?", "choices": ["80", "443"], "answer": "443"}
    {"question": "Which key opens help?", "choices": ["Esc", "F1", "F5"], "answer": 1, "context": "F1 opens help."}

    python GLUE_tasks/Mcq_prune_oneshot.py --model_name_or_path roberta-base --train_file mine/train.jsonl \\
        --validation_file mine/validation.jsonl --noembed --sparsity 0.5 --freeze_weights --output_dir runs/mine

`answer` is a choice's text, its letter, or as a number its index from 0; in csv `choices` is a JSON list, or the
options are in columns A, B, C and so on. With --numeric_answers, word problems with a number as their answer (SVAMP,
MAWPS, or `question` and `answer`) become multiple-choice questions: the wrong options are results of other operations
on the problem's numbers, then those numbers, then near misses (GLUE_tasks/mcq_data.py: numeric_options). --task_name
mawps svamp are the published problems in this form, MAWPS in the splits of MU-NLPC/Calc-mawps, SVAMP evaluated on its
test split; the paper does not say how its encoder answers them.

Learning rate, batch size and weight decay are those of fairseq's recipe for CommonsenseQA, and 5 epochs are its 3,000
updates. Where we differ: one recipe for all tasks; warm-up over 6 % of the steps instead of 150; AdamW with its usual
betas (0.9, 0.999) and epsilon 1e-8 instead of (0.9, 0.98) and 1e-6; the last epoch counts, not the best; and WinoGrande
has a multiple-choice head too, where fairseq ranks masked-word probabilities by a margin over 23,750 updates of 32.
Chance is the mean of 1/options, or, where all questions have the same options, the share of the most frequent answer.
"""

import argparse
import functools
import sys
from collections.abc import Sequence

from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForMultipleChoice

from GLUE_tasks import classification, mcq_data, multiple_choice, options, runner
from GLUE_tasks.runner import Inputs, LoadedTask, Outcome, TaskKind
from harness.cells import Cell
from harness.choices import guessing_score
from harness.data import Source
from harness.options import number

# fairseq, examples/roberta/commonsense_qa/README.md: 3,000 updates of 16 are 4.9 epochs of 9,741 questions.
RECIPE = {"learning_rate": 1e-5, "per_device_train_batch_size": 16, "weight_decay": 0.01, "num_train_epochs": 5,
          "per_device_eval_batch_size": 32}  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = options.make_parser(__doc__)
    add = options.add_data_options(
        parser, "multiple choice", mcq_data.canonical_name, mcq_data.BENCHMARKS, "<task>/<split>.jsonl[.gz]|.parquet",
        "csv, json(l) or parquet of questions (see above)",
    )  # fmt: skip
    add("--train_split", nargs="+", metavar="[TASK=]SPLIT", default=[],
        help="split(s) to train on, such as winogrande=train_pairs (WinoGrande's twin sentences, which are no official "
        "split); results say which (default train)")  # fmt: skip
    add("--winogrande_config", choices=mcq_data.WINOGRANDE_CONFIGS,
        help="size of the hub's training split (default winogrande_xl, as the paper)")  # fmt: skip
    add("--numeric_answers", action="store_true", help="files hold word problems whose answers are numbers")
    add("--num_options", type=number(int, 2, 26),
        help="--numeric_answers, mawps, svamp: options of every question (default 5)")  # fmt: skip
    add("--option_seed", type=number(int, 0, 2**32 - 1),
        help="--numeric_answers, mawps, svamp: random seed of the wrong options (default 0)")  # fmt: skip
    parser.set_defaults(**RECIPE)
    return parser


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """parser.error where the data options do not go together."""
    options.check_data_options(parser, args)
    if args.numeric_answers and args.task_name:
        parser.error("--numeric_answers goes with --train_file and --validation_file")
    numeric = args.numeric_answers or set(args.task_name or ()) & set(mcq_data.ARITHMETIC)
    for name in ("num_options", "option_seed"):
        if getattr(args, name) is not None and not numeric:
            parser.error(f"--{name} goes with --numeric_answers or --task_name {' '.join(mcq_data.ARITHMETIC)}")
    if args.winogrande_config and (args.data_dir or "winogrande" not in (args.task_name or ())):
        parser.error("--winogrande_config is the hub's: it goes with --task_name winogrande and without --data_dir")
    if args.train_split and not args.task_name:
        parser.error("--train_split goes with --task_name")
    try:
        chosen = train_splits(args.train_split)
    except ValueError as error:
        parser.error(str(error))
    if unknown := set(chosen) - {*(args.task_name or ()), None}:
        parser.error(f"--train_split: {min(unknown)} is not in --task_name {' '.join(args.task_name or ())}")


def train_splits(words: list[str]) -> dict[str | None, str]:
    """["winogrande=train_pairs", "train"] -> training split by task; the key None is for all other tasks.

    Raises:
        ValueError: an unknown task, or two splits of one.
    """
    chosen: dict[str | None, str] = {}
    for text in words:
        task, named, split = text.rpartition("=")
        key = mcq_data.canonical_name(task) if named else None
        if key in chosen:
            raise ValueError(f"--train_split: two splits, {chosen[key]} and {split}, of {key or 'all tasks'}")
        chosen[key] = split
    return chosen


def named_tasks(args: argparse.Namespace) -> list[Cell]:
    """The tasks that the options name, each with its training split; tasks in files have none."""
    named = options.named_tasks(args)
    if args.train_file:
        return named
    chosen = train_splits(args.train_split)
    splits = [chosen.get(task["task_name"], chosen.get(None, "train")) for task in named]
    return [{**task, "train_split": f"{task['task_name']}={split}"} for task, split in zip(named, splits, strict=True)]


def load_questions(args: argparse.Namespace, named: Cell) -> tuple[mcq_data.Task, list[Source]]:
    """The questions of one of named_tasks, and their hub data sets; none for files."""
    numeric = mcq_data.arithmetic_reader(args.num_options or 5, args.option_seed or 0)
    if args.train_file:
        read = numeric if args.numeric_answers else mcq_data.read_question
        return mcq_data.load_files(args.train_file, args.validation_file, read), []
    name, split = named["task_name"], named["train_split"].rpartition("=")[2]
    config = (args.winogrande_config or "winogrande_xl") if name == "winogrande" else None
    task = mcq_data.load_benchmark(name, args.data_dir, split, config, numeric)
    return task, [hub_source(name, config)]


def hub_source(name: str, config: str | None = None) -> Source:
    """The hub data set and configuration of a task."""
    return Source(name, "train", mcq_data.BENCHMARKS[name].hub_id, config, "train", ())


def task_kind(args: argparse.Namespace) -> TaskKind:
    """Questions with any number of options."""

    def score(
        questions: Sequence[mcq_data.Question], accelerator: Accelerator, model: nn.Module, inputs: Inputs, cell: Cell
    ) -> Outcome:
        batch_size = args.per_device_eval_batch_size
        chosen, gold, counts = multiple_choice.predict_options(accelerator, model, inputs, batch_size)
        chance = guessing_score([own.options for own in questions[: len(gold)]], gold[:, None].tolist())
        level = classification.data_share_level(cell, "accuracy", chosen, gold, chance=chance)
        items = {"prediction": chosen, "label": gold, "num_options": counts}
        return Outcome({"eval_accuracy": level["score"]}, items, [level])

    def load(named: Cell) -> LoadedTask:
        task, on_hub = load_questions(args, named)
        return LoadedTask(
            name=task.name,
            data=task.files or on_hub,
            tokenize=lambda tokenizer: multiple_choice.tokenize_task(
                task, tokenizer, args.max_length, args.max_eval_samples
            ),
            choose_rows=options.share_of_rows(args),
            score=functools.partial(score, task.validation),
            loss=multiple_choice.option_loss,
            facts=task.facts,
        )

    return TaskKind(1, AutoModelForMultipleChoice, named_tasks(args), load)


def main(argv: list[str] | None = None) -> int:
    """Compute every cell that is not complete yet; returns the exit code."""
    parser = make_parser()
    args = options.parse(parser, argv)
    check_options(parser, args)
    return runner.main(parser, args, task_kind(args))


if __name__ == "__main__":
    sys.exit(main())
