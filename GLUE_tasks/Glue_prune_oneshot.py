"""Prune a pretrained encoder once, fine-tune it, evaluate: settings 1 and 5 on GLUE and section 5 of the paper.

One run, as the original's README prints it:

    python GLUE_tasks/Glue_prune_oneshot.py --model_name_or_path roberta-large --task_name QNLI --noembed \\
        --freeze_weights --sparsity 0.5 --seed 41 --max_length 512 --per_device_train_batch_size 16 \\
        --output_dir runs/qnli/0.5/41

A sweep, with one load of the model, one tokenisation and one selection of masks:

    python GLUE_tasks/Glue_prune_oneshot.py --model_name_or_path roberta-base --task_name qnli sst2 --noembed \\
        --sparse_method dense_transfer sparse_transfer --sparsity 0.1 0.3 0.5 0.7 0.9 --seed 41 42 43 \\
        --validation_split_percentage 10 100 --output_dir "runs/{task_name}/{transfer}/{strength}/{fraction}/{seed}"
"""

import argparse
import sys

import numpy as np
from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from GLUE_tasks import arguments, classification, experiment, glue_data
from GLUE_tasks.glue_data import Task
from GLUE_tasks.problem import Inputs, Outcome, Problem, data_share_level
from harness.cells import Cell
from harness.data import Source


def add_options(parser: argparse.ArgumentParser) -> None:
    add = arguments.add_data_options(
        parser, "GLUE", glue_data.canonical_name, glue_data.COLUMNS, "glue/<task>/<split>.jsonl[.gz]|.parquet",
        "csv, json or parquet with a 'label' column",
    )  # fmt: skip
    arguments.add_text_columns(add)


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    arguments.check_data_options(parser, args)
    arguments.check_text_columns(parser, args)
    if args.text_columns and args.task_name:
        parser.error("--text_columns goes with --train_file; GLUE's columns are known")


def load(task: Cell, args: argparse.Namespace) -> Task:
    if args.train_file:
        return glue_data.load_files(args.train_file, args.validation_file, args.text_columns)
    return glue_data.load_glue(task["task_name"], args.data_dir)


def hub_data(task: Cell, args: argparse.Namespace) -> list[Source]:
    name = task["task_name"]
    return [Source(f"glue/{name}", "train", glue_data.HUB_NAME, name, "train", ())]


def tokenize(task: Task, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> Inputs:
    return classification.tokenize_task(task, tokenizer, args.max_length, args.max_eval_samples)


def score(
    accelerator: Accelerator, model: nn.Module, task: Task, inputs: Inputs, cell: Cell, args: argparse.Namespace
) -> Outcome:
    scores, items = classification.score_task(accelerator, model, task, inputs, args.per_device_eval_batch_size)
    metric, predictions, labels = task.metrics[0], items["prediction"], items["label"]
    level = data_share_level(
        cell,
        metric,
        glue_data.SCORES[metric](predictions, labels),
        glue_data.chance_level(metric, labels),
        glue_data.standard_error(metric, predictions, labels),
        len(labels),
        constant_prediction=bool(np.ptp(predictions) == 0),
    )
    return Outcome(scores, items, [level])


PROBLEM = Problem(
    setting=1,
    auto_class=AutoModelForSequenceClassification,
    add_options=add_options,
    check_options=check_options,
    tasks=arguments.named_tasks,
    load=load,
    num_labels=lambda task: len(task.label_names) or 1,
    tokenize=tokenize,
    score=score,
    hub_data=hub_data,
    facts=classification.facts,
    label_names=lambda task: task.label_names,
    fit=classification.fit,
)


def main(argv: list[str] | None = None) -> int:
    """Compute every cell that is not complete yet; returns the exit code."""
    return experiment.main(__doc__, PROBLEM, argv)


if __name__ == "__main__":
    sys.exit(main())
