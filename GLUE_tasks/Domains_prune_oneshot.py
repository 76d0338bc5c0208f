"""Prune an encoder once, fine-tune it on an uneven mixture of domains, evaluate it on each: majority against minority.

A domain column, or a file or folder per domain; every mixture trains one model, scored on all domains:

    python GLUE_tasks/Domains_prune_oneshot.py --model_name_or_path roberta-base --noembed \\
        --data_dir ~/.cache/junk_dna/data --task_name rated_sentences --max_train_samples 2000 --balanced_validation \\
        --mixture movie_reviews=0.7 tweets=0.7 --sparse_method dense_transfer sparse_transfer \\
        --sparsity 0.3 0.5 0.7 0.9 --seed 41 42 --output_dir "runs/domains/{mixture}/{transfer}/{strength}/{seed}"

Domains that a mixture does not name divide what is left equally, so that tweets are a tenth of the first of these
mixtures and seven tenths of the second. What a domain loses as the minority, beyond what the same domain loses as the
majority, is the effect of its share: a domain's own difficulty is in both.
"""

import argparse
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from GLUE_tasks import arguments, classification, domain_data, experiment, glue_data
from GLUE_tasks.domain_data import DOMAIN, NATURAL, Shares
from GLUE_tasks.glue_data import Task
from GLUE_tasks.problem import Inputs, Outcome, Problem
from harness.cells import Cell
from harness.options import checked, filled_path


@dataclass(frozen=True)
class MixedTask:
    """A task in several domains, and the share of each in what a run trains on, `total` rows."""

    task: Task
    mixture: str
    shares: Shares
    total: int

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def files(self) -> tuple[Path, ...]:
        return self.task.files

    @property
    def decisions(self) -> dict[str, Any]:
        return self.task.decisions


def mixture(text: str) -> str:
    if text != NATURAL:
        domain_data.parse_shares(text.split(","))
    return text


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("domains").add_argument
    add("--data_dir", type=filled_path, help="read DIR/<task>/<domain>/{train,validation}.jsonl[.gz]|.parquet")
    add("--task_name", nargs=1, metavar="TASK", help="folder in --data_dir that has a folder for every domain")
    add("--train_file", type=filled_path, nargs="+", metavar="FILE",
        help="csv, json or parquet with a 'label' column, instead of --task_name; a 'domain' column names the domains, "
        "else every file is one, by its name (its folder's, if it is called train)")  # fmt: skip
    add("--validation_file", type=filled_path, nargs="+", metavar="FILE", help="the same domains, for evaluation")
    arguments.add_text_columns(add)
    add("--mixture", nargs="+", type=checked(mixture), default=[NATURAL], metavar="DOMAIN=SHARE,...",
        help="share(s) of the training rows, in [0, 1]; domains not named divide the rest equally; several mixtures "
        f"make several runs, {{mixture}} in --output_dir (default {NATURAL}: as the data have them)")  # fmt: skip
    add("--balanced_validation", action="store_true",
        help="evaluate as many rows of each label in every domain, so that chance is the same in all")  # fmt: skip


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if bool(args.train_file) != bool(args.validation_file):
        parser.error("--train_file and --validation_file go together")
    if bool(args.task_name) == bool(args.train_file) or bool(args.task_name) != bool(args.data_dir):
        parser.error("give either --data_dir and --task_name, or --train_file and --validation_file")
    if args.data_dir and not args.data_dir.is_dir():
        parser.error(f"--data_dir {args.data_dir}: no such folder")
    arguments.check_text_columns(parser, args)
    if len(set(args.mixture)) > 1 and not args.max_train_samples:
        parser.error("several mixtures need --max_train_samples, the rows that each of them has")
    if args.subset == "prefix":
        parser.error("--subset prefix: a mixture is always a random sample")


def tasks(args: argparse.Namespace) -> list[Cell]:
    name = args.task_name[0] if args.task_name else glue_data.name_of_files(args.train_file[0])
    return [{"task_name": name, "mixture": mixture} for mixture in dict.fromkeys(args.mixture)]


def load(cell: Cell, args: argparse.Namespace) -> MixedTask:
    files = tuple(args.train_file or ()), tuple(args.validation_file or ())
    columns = tuple(args.text_columns or ())
    task = load_domains(
        args.data_dir, cell["task_name"], *files, columns, args.balanced_validation, args.max_eval_samples
    )
    available = domain_data.count_rows(task.train[DOMAIN][:])
    if cell["mixture"] == NATURAL:
        shares = domain_data.natural_shares(available)
    else:
        named = domain_data.parse_shares(cell["mixture"].split(","))
        shares = domain_data.complete_shares(named, available)
    total = args.max_train_samples or domain_data.largest_total(available, shares)
    domain_data.check_rows(available, shares, total)
    return MixedTask(task, cell["mixture"], shares, total)


@functools.cache
def load_domains(
    data_dir: Path | None, name: str, train_files: tuple[Path, ...], validation_files: tuple[Path, ...],
    text_columns: tuple[str, ...], balanced: bool, max_eval_samples: int | None,
) -> Task:  # fmt: skip
    """The rows of all domains, which all mixtures share."""
    read = (
        domain_data.load_files(train_files, validation_files, text_columns)
        if train_files
        else domain_data.load_folder(data_dir, name, text_columns)
    )
    return domain_data.evaluated_rows(read, balanced, max_eval_samples)


def tokenize(task: MixedTask, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> Inputs:
    return classification.tokenize_task(task.task, tokenizer, args.max_length)


def choose_rows(inputs: Inputs, task: MixedTask, cell: Cell, args: argparse.Namespace) -> list[int]:
    return domain_data.mixture_rows(task.task.train[DOMAIN][:], rows_of(task, cell), cell["seed"])


def rows_of(task: MixedTask, cell: Cell) -> dict[str, int]:
    """Training rows of each domain in a cell: of its share of the data."""
    total = max(1, round(task.total * cell["validation_split_percentage"] / 100))
    return domain_data.rows_per_domain(task.shares, total)


def score(
    accelerator: Accelerator, model: nn.Module, mixed: MixedTask, inputs: Inputs, cell: Cell, args: argparse.Namespace
) -> Outcome:
    task = mixed.task
    scores, items = classification.score_task(accelerator, model, task, inputs, args.per_device_eval_batch_size)
    rows, metric, levels = rows_of(mixed, cell), task.metrics[0], []
    for domain, share in mixed.shares.items():
        predictions, labels = items[f"prediction_{domain}"], items[f"label_{domain}"]
        levels.append(
            {
                "level": domain,
                "difficulty": 1 - share,
                "metric": metric,
                "score": glue_data.SCORES[metric](predictions, labels),
                "chance": glue_data.chance_level(metric, labels),
                "stderr": glue_data.standard_error(metric, predictions, labels),
                "num_examples": len(labels),
                "constant_prediction": bool(np.ptp(predictions) == 0),
                "share": share,
                "train_rows": rows[domain],
            }
        )
    return Outcome(scores, items, levels)


PROBLEM = Problem(
    setting="multi_domain",
    auto_class=AutoModelForSequenceClassification,
    add_options=add_options,
    check_options=check_options,
    tasks=tasks,
    load=load,
    num_labels=lambda mixed: len(mixed.task.label_names) or 1,
    tokenize=tokenize,
    score=score,
    choose_rows=choose_rows,
    facts=lambda mixed: {"mixture": mixed.mixture, **classification.facts(mixed.task)},
    label_names=lambda mixed: mixed.task.label_names,
    fit=lambda mixed, inputs, model, order: classification.fit(mixed.task, inputs, model, order),
)


def main(argv: list[str] | None = None) -> int:
    """Compute every cell that is not complete yet; returns the exit code."""
    return experiment.main(__doc__, PROBLEM, argv)


if __name__ == "__main__":
    sys.exit(main())
