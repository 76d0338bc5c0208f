"""Prune a pretrained encoder once, fine-tune it, evaluate: settings 1 and 5 on GLUE and section 5 of the paper.

One run, as the original's README prints it:

    python GLUE_tasks/Glue_prune_oneshot.py --model_name_or_path roberta-large --task_name QNLI --noembed \\
        --freeze_weights --sparsity 0.5 --seed 41 --max_length 512 --per_device_train_batch_size 16 \\
        --output_dir runs/qnli/0.5/41

A sweep, with one load of the model, one tokenization and one selection of masks:

    python GLUE_tasks/Glue_prune_oneshot.py --model_name_or_path roberta-base --task_name qnli sst2 --noembed \\
        --sparse_method dense_transfer sparse_transfer --sparsity 0.1 0.3 0.5 0.7 0.9 --seed 41 42 43 \\
        --validation_split_percentage 10 100 --output_dir "runs/{task_name}/{transfer}/{strength}/{fraction}/{seed}"
"""

import argparse
import sys

from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForSequenceClassification

from GLUE_tasks import classification, glue_data, options, runner
from GLUE_tasks.runner import Inputs, LoadedTask, Outcome, TaskKind
from harness.cells import Cell
from harness.data import Source


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = options.make_parser(__doc__)
    add = options.add_data_options(
        parser, "GLUE", glue_data.canonical_name, glue_data.COLUMNS, "glue/<task>/<split>.jsonl[.gz]|.parquet",
        "csv, json or parquet with a 'label' column",
    )  # fmt: skip
    options.add_text_columns(add)
    return parser


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """parser.error where the data options do not go together."""
    options.check_data_options(parser, args)
    options.check_text_columns(parser, args)
    if args.text_columns and args.task_name:
        parser.error("--text_columns goes with --train_file; GLUE's columns are known")


def hub_source(name: str) -> Source:
    """The hub data set of a task."""
    return Source(f"glue/{name}", "train", glue_data.HUB_NAME, name, "train", ())


def task_kind(args: argparse.Namespace) -> TaskKind:
    """Classification or regression of sentences and pairs of sentences."""

    def load(named: Cell) -> LoadedTask:
        name = named["task_name"]
        if args.train_file:
            task = glue_data.load_files(args.train_file, args.validation_file, args.text_columns)
        else:
            task = glue_data.load_glue(name, args.data_dir)

        def score(accelerator: Accelerator, model: nn.Module, inputs: Inputs, cell: Cell) -> Outcome:
            batch_size, metric = args.per_device_eval_batch_size, task.metrics[0]
            scores, items = classification.score_task(accelerator, model, task, inputs, batch_size)
            level = classification.data_share_level(cell, metric, items["prediction"], items["label"])
            return Outcome(scores, items, [level])

        return LoadedTask(
            name=task.name,
            data=task.files or [hub_source(name)],
            tokenize=lambda tokenizer: classification.tokenize_task(
                task, tokenizer, args.max_length, args.max_eval_samples
            ),
            choose_rows=options.share_of_rows(args),
            score=score,
            classes=task.label_names,
            decisions=task.decisions,
            facts=classification.facts(task),
        )

    return TaskKind(1, AutoModelForSequenceClassification, options.named_tasks(args), load)


def main(argv: list[str] | None = None) -> int:
    """Compute every cell that is not complete yet; returns the exit code."""
    parser = make_parser()
    args = options.parse(parser, argv)
    check_options(parser, args)
    return runner.main(parser, args, task_kind(args))


if __name__ == "__main__":
    sys.exit(main())
