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

from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForSequenceClassification

from GLUE_tasks import classification, domain_data, glue_data, options, runner
from GLUE_tasks.domain_data import DOMAIN, NATURAL
from GLUE_tasks.glue_data import Task
from GLUE_tasks.runner import Inputs, LoadedTask, Outcome, TaskKind
from harness.cells import Cell
from harness.options import checked, filled_path


def mixture(text: str) -> str:
    """An argparse type: a mixture, DOMAIN=SHARE,... or NATURAL."""
    if text != NATURAL:
        domain_data.parse_shares(text.split(","))
    return text


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = options.make_parser(__doc__)
    add = parser.add_argument_group("domains").add_argument
    add("--data_dir", type=filled_path, help="read DIR/<task>/<domain>/{train,validation}.jsonl[.gz]|.parquet")
    add("--task_name", nargs=1, metavar="TASK", help="folder in --data_dir that has a folder for every domain")
    add("--train_file", type=filled_path, nargs="+", metavar="FILE",
        help="csv, json or parquet with a 'label' column, instead of --task_name; a 'domain' column names the domains, "
        "else every file is one, by its name (its folder's, if it is called train)")  # fmt: skip
    add("--validation_file", type=filled_path, nargs="+", metavar="FILE", help="the same domains, for evaluation")
    options.add_text_columns(add)
    add("--mixture", nargs="+", type=checked(mixture), default=[NATURAL], metavar="DOMAIN=SHARE,...",
        help="share(s) of the training rows, in [0, 1]; domains not named divide the rest equally; several mixtures "
        f"make several runs, {{mixture}} in --output_dir (default {NATURAL}: as the data have them)")  # fmt: skip
    add("--balanced_validation", action="store_true",
        help="evaluate as many rows of each label in every domain, so that chance is the same in all")  # fmt: skip
    return parser


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """parser.error where the data options do not go together."""
    if bool(args.train_file) != bool(args.validation_file):
        parser.error("--train_file and --validation_file go together")
    if bool(args.task_name) == bool(args.train_file) or bool(args.task_name) != bool(args.data_dir):
        parser.error("give either --data_dir and --task_name, or --train_file and --validation_file")
    options.check_data_dir(parser, args)
    options.check_text_columns(parser, args)
    if len(set(args.mixture)) > 1 and not args.max_train_samples:
        parser.error("several mixtures need --max_train_samples, the rows that each of them has")
    if args.subset == "prefix":
        parser.error("--subset prefix: a mixture is always a random sample")


def named_tasks(args: argparse.Namespace) -> list[Cell]:
    """The task with each of the mixtures that the options name."""
    name = args.task_name[0] if args.task_name else glue_data.name_of_files(args.train_file[0])
    return [{"task_name": name, "mixture": mixture} for mixture in dict.fromkeys(args.mixture)]


def load_domains(args: argparse.Namespace) -> Task:
    """The rows of all domains, which all mixtures share."""
    if args.train_file:
        task = domain_data.load_files(args.train_file, args.validation_file, args.text_columns)
    else:
        task = domain_data.load_folder(args.data_dir, args.task_name[0], args.text_columns)
    return domain_data.evaluated_rows(task, args.balanced_validation, args.max_eval_samples)


def task_kind(args: argparse.Namespace) -> TaskKind:
    """Sentences of several domains: trained on mixtures of given shares, scored on each domain."""
    shared = functools.cache(functools.partial(load_domains, args))

    def load(named: Cell) -> LoadedTask:
        task, mixture = shared(), named["mixture"]
        domains = task.train[DOMAIN][:]
        shares, total = domain_data.mixture_shares(mixture, domains, args.max_train_samples)

        def rows_of(cell: Cell) -> dict[str, int]:
            """Number of training rows of each domain in a cell."""
            of_cell = max(1, round(total * cell["validation_split_percentage"] / 100))
            return domain_data.rows_per_domain(shares, of_cell)

        def score(accelerator: Accelerator, model: nn.Module, inputs: Inputs, cell: Cell) -> Outcome:
            scores, items = classification.score_task(accelerator, model, task, inputs, args.per_device_eval_batch_size)
            rows = rows_of(cell)
            levels = [
                {
                    "level": domain,
                    "difficulty": 1 - share,
                    **classification.level_of(task.metrics[0], items[f"prediction_{domain}"], items[f"label_{domain}"]),
                    "share": share,
                    "train_rows": rows[domain],
                }
                for domain, share in shares.items()
            ]
            return Outcome(scores, items, levels)

        return LoadedTask(
            name=task.name,
            data=task.files,
            tokenize=lambda tokenizer: classification.tokenize_task(task, tokenizer, args.max_length),
            choose_rows=lambda num_rows, cell: domain_data.mixture_rows(domains, rows_of(cell), cell["seed"]),
            score=score,
            classes=task.label_names,
            decisions=task.decisions,
            facts={"mixture": mixture, **classification.facts(task)},
        )

    return TaskKind("multi_domain", AutoModelForSequenceClassification, named_tasks(args), load)


def main(argv: list[str] | None = None) -> int:
    """Compute every cell that is not complete yet; returns the exit code."""
    parser = make_parser()
    args = options.parse(parser, argv)
    check_options(parser, args)
    return runner.main(parser, args, task_kind(args))


if __name__ == "__main__":
    sys.exit(main())
