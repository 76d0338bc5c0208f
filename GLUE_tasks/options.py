"""The command line of the fine-tuning scripts: options, their checks, and their values as a Sweep.

Only this file and the scripts read the parsed options; all other functions take a Sweep or plain values.
"""

import argparse
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.tracking import get_available_trackers

from GLUE_tasks.glue_data import name_of_files, subset_indices
from GLUE_tasks.pretrained import PretrainedSource
from GLUE_tasks.transfers import Pruning, Strength
from harness import options, records
from harness.cells import Cell, check_listed, output_folders
from harness.checkpoints import PROGRESS_FILE
from harness.commands import print_commands, values
from harness.models import add_model_options
from harness.options import add_cell_options, checked, filled, filled_path, number, positive
from harness.training import SCHEDULERS, Recipe, check_warmup
from pruning import magnitude
from pruning.nm import valid_nm
from pruning.transfers import TRANSFERS

SPARSE_INITS = ("dense", "sparse_unstructured", "sparse_unstuctured", "sparse_nm")


@dataclass(frozen=True)
class Sweep:
    """The values of a command line.

    Fields:
        cells: the cell of every run, by the run's folder.
        model: where the pretrained model is.
        pruning: which weights are pruned, at all strengths of the cells.
        recipe: how every run is trained; each cell has its own seed.
        max_length: most tokens of an example.
        mixed_precision: "auto", "no", "bf16" or "fp16".
        tracker: accelerate's name of an experiment tracker; None for none.
        checkpoint: the one to resume the only cell from; None without --resume_from_checkpoint.
        save_model, eval_each_epoch, overwrite, output_dir: the options of that name.
        recorded: the options that are part of every run's identity, by name.
    """

    cells: dict[Path, Cell]
    model: PretrainedSource
    pruning: Pruning
    recipe: Recipe
    max_length: int
    mixed_precision: str
    tracker: str | None
    checkpoint: Path | None
    save_model: bool
    eval_each_epoch: bool
    overwrite: bool
    output_dir: str
    recorded: Mapping[str, Any]


def checkpoint_interval(text: str) -> int | str:
    """An argparse type: a number of optimizer steps, or "epoch"."""
    if text == "epoch":
        return text
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise ValueError(f"{text!r} is neither a number of optimizer steps nor 'epoch'")
    return int(text)


def epochs(text: str) -> float:
    """An argparse type: a number of epochs, an int if it is whole, so that 3 and 3.0 mean the same run."""
    value = number(float, 0, 10**9)(text)
    return int(value) if value.is_integer() else value


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the options that every fine-tuning script has, in groups; a script adds its own after these."""
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", type=filled, required=True,
        help="hub id or folder of a pretrained encoder (safetensors)")  # fmt: skip
    add_model_options(add)
    add("--ignore_mismatched_sizes", action="store_true", help="load a checkpoint whose head has another size")

    add = parser.add_argument_group("data").add_argument
    add("--max_length", type=positive, default=128,
        help="tokens per example, longer ones are cut (default %(default)s)")  # fmt: skip
    add("--validation_split_percentage", nargs="+", type=number(float, 0.001, 100), default=[100.0], metavar="PERCENT",
        help="share(s) of the TRAINING data to train on, (0, 100] (the original's name; default 100)")  # fmt: skip
    add("--subset", choices=("random", "prefix"), default="random",
        help="how the share is drawn: at random by --seed, or the first rows as in the original")  # fmt: skip
    add("--max_train_samples", type=positive, help="training rows that count as 100 %% (default all)")
    add("--max_eval_samples", type=positive, help="evaluate the first rows only (default all)")
    _add_compression_options(parser.add_argument_group("compression").add_argument)
    _add_training_options(parser.add_argument_group("training").add_argument)
    _add_run_options(parser.add_argument_group("run"))
    return parser


def _add_compression_options(add: Callable[..., argparse.Action]) -> None:
    add("--sparsity", nargs="+", type=number(float, 0, 1, open_high=True), default=[], metavar="S",
        help="fraction(s) of the prunable weights to prune, [0, 1)")  # fmt: skip
    add("--nm_ratio", nargs="+", type=checked(valid_nm), default=[], metavar="N:M",
        help="N weights are KEPT in every M consecutive inputs, 1 <= N < M: 6:8 (the original's 28)")  # fmt: skip
    add("--sparse_init", choices=SPARSE_INITS, help="kind of sparsity (default: what --sparsity or --nm_ratio says)")
    add("--magnitude_scope", choices=magnitude.SCOPES, default="global",
        help="rank all weights together, or within each layer (default global)")  # fmt: skip
    add("--noembed", action="store_true", help="do not prune the embeddings")
    add("--prune_new_head", action="store_true", help="prune the untrained head too, as the original does")
    add("--sparse_method", nargs="*", choices=TRANSFERS, metavar="TRANSFER",
        help=f"transfer(s): {', '.join(TRANSFERS)}; without a name sparse_to_dense")  # fmt: skip
    add("--freeze_weights", action="store_true", help="sparse_transfer: pruned weights stay zero")
    add("--freeze_weights_frompretrain", action="store_true",
        help="dense_transfer_freezing: small weights keep their pretrained values")  # fmt: skip


def _add_training_options(add: Callable[..., argparse.Action]) -> None:
    add("--per_device_train_batch_size", type=positive, default=32,
        help="rows per process and step (default %(default)s)")  # fmt: skip
    add("--per_device_eval_batch_size", type=positive, default=128, help="rows per process (default %(default)s)")
    add("--learning_rate", type=number(float, 0, 10), default=2e-5,
        help="peak learning rate of AdamW (default %(default)s)")  # fmt: skip
    add("--weight_decay", type=number(float, 0, 10), default=0.0,
        help="weight decay of AdamW, not on biases and norms (default %(default)s)")  # fmt: skip
    add("--num_train_epochs", type=epochs, default=3,
        help="passes over the training rows (default %(default)s), 0.5 for half of one; 0 is for a model with a "
        "trained head")  # fmt: skip
    add("--max_train_steps", type=positive, help="optimizer steps, instead of --num_train_epochs")
    add("--gradient_accumulation_steps", type=positive, default=1, help="batches per optimizer step (default 1)")
    add("--lr_scheduler_type", choices=SCHEDULERS, default="linear", help="learning rate schedule (default linear)")
    add("--num_warmup_steps", type=number(int, 0, 10**9), help="warm-up steps, fewer than all (default 6 %% of all)")
    add("--mixed_precision", choices=("auto", "no", "bf16", "fp16"), default="auto",
        help="auto: bf16 where the CPU or GPU computes in it, else float32; weights stay float32")  # fmt: skip
    add("--seed", nargs="+", type=number(int, 0, 2**32 - 1), default=[42], metavar="SEED",
        help="random seed(s) of head, data sample, order of rows and dropout (default 42)")  # fmt: skip


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add_cell_options(
        group, ("task_name", "transfer", "strength", "fraction", "seed", "compression", "method", "setting"),
        groups=("model", "task_name", "transfer", "compression", "strength", "fraction", "seed"),
    )  # fmt: skip
    add("--method", default="", help="any label, written to the results")
    add("--save_model", action="store_true", help="write the trained model to <output_dir>/model")
    add("--eval_each_epoch", action="store_true", help="evaluate after every epoch, not after the last alone")
    add("--checkpointing_steps", type=checked(checkpoint_interval), metavar="STEPS|epoch",
        help="save a checkpoint this often; after a kill the same command resumes from it")  # fmt: skip
    add("--resume_from_checkpoint", type=filled_path, help="resume from this checkpoint folder (one cell)")
    add("--with_tracking", action="store_true", help="log to experiment trackers")
    add("--report_to", default="all", help="accelerate's name of a tracker that is installed (default all)")


def add_data_options(
    parser: argparse.ArgumentParser,
    title: str,
    canonical_name: Callable[[str], str],
    names: Iterable[str],
    layout: str,
    fields: str,
) -> Callable[..., argparse.Action]:
    """Add the options for known tasks and for a user's files; returns the group's add_argument.

    Args:
        canonical_name: a task's name from any spelling, ValueError where it is none.
        names: the known tasks, for the help text.
        layout: paths of the files below --data_dir, for the help text.
        fields: what a user's file must hold, for the help text.
    """
    add = parser.add_argument_group(title).add_argument
    add("--task_name", nargs="+", type=checked(canonical_name), metavar="TASK",
        help=f"task(s), any case: {', '.join(names)}")  # fmt: skip
    add("--data_dir", type=filled_path, help=f"read DIR/{layout}; without it the hub")
    add("--train_file", type=filled_path, help=f"{fields}, instead of --task_name")
    add("--validation_file", type=filled_path, help="the same columns, for evaluation")
    return add


def check_data_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """parser.error unless there is either a task or a pair of files."""
    if bool(args.train_file) != bool(args.validation_file):
        parser.error("--train_file and --validation_file go together")
    if bool(args.task_name) == bool(args.train_file):
        parser.error("give either --task_name or --train_file and --validation_file")
    if args.data_dir and not args.task_name:
        parser.error("--data_dir goes with --task_name")
    check_data_dir(parser, args)


def check_data_dir(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """parser.error where --data_dir is given and cannot be read."""
    try:
        options.check_data_dir(args.data_dir)
    except ValueError as error:
        parser.error(str(error))


def named_tasks(args: argparse.Namespace) -> list[Cell]:
    """The tasks that the options name; a task in files has the name of their folder."""
    return [{"task_name": name} for name in dict.fromkeys(args.task_name or [name_of_files(args.train_file)])]


def share_of_rows(args: argparse.Namespace) -> Callable[[int, Cell], list[int]]:
    """A function of the number of training rows and a cell; returns the indices of the cell's share of the rows."""
    how, limit = args.subset, args.max_train_samples

    def choose(num_rows: int, cell: Cell) -> list[int]:
        return subset_indices(num_rows, cell["validation_split_percentage"], cell["seed"], how, limit)

    return choose


def add_text_columns(add: Callable[..., argparse.Action]) -> None:
    """Add the option that names the text columns of files."""
    add("--text_columns", nargs="+", metavar="NAME",
        help="the one or two columns of --train_file and --validation_file to read (default: sentence1 and sentence2, "
        "else the first one or two that hold texts, without those that determine the label, as label_text "
        "does)")  # fmt: skip


def check_text_columns(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """parser.error unless --text_columns names one column or two different ones."""
    names = args.text_columns or []
    if len(names) > 2 or len(set(names)) < len(names):
        parser.error(f"--text_columns {' '.join(names)}: one column, or two different ones")


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line and check the options that all scripts have; parser.error on a bad combination.

    A lone "--" before an option's name is joined to it: the original's README prints "-- freeze_weights".
    """
    words: list[str] = []
    for word in sys.argv[1:] if argv is None else argv:
        if words and words[-1] == "--":
            words[-1] += word
        else:
            words.append(word)
    args = parser.parse_args(words)
    _check_compression(parser, args)
    if args.report_to != "all" and not args.with_tracking:
        parser.error(f"--report_to {args.report_to} goes with --with_tracking")
    try:
        check_warmup(args.num_warmup_steps, args.lr_scheduler_type, args.max_train_steps)
    except ValueError as error:
        parser.error(str(error))
    if args.report_to != "all":
        installed = [str(tracker) for tracker in get_available_trackers()]
        if args.report_to not in installed:
            allowed = ", ".join(installed) or "none; pip install tensorboard"
            parser.error(f"--report_to {args.report_to}: not installed; installed are: {allowed}")
    if args.resume_from_checkpoint and not (args.resume_from_checkpoint / PROGRESS_FILE).is_file():
        parser.error(f"--resume_from_checkpoint {args.resume_from_checkpoint}: no checkpoint ({PROGRESS_FILE}) there")
    return args


def _check_compression(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.freeze_weights and args.freeze_weights_frompretrain:
        parser.error("--freeze_weights and --freeze_weights_frompretrain exclude each other: pruned weights are zero, "
                     "frozen ones keep their values")  # fmt: skip
    if args.sparse_method and (args.freeze_weights or args.freeze_weights_frompretrain):
        parser.error("--sparse_method with a name and a --freeze_weights option say the same thing twice; give one")
    if args.sparse_init == "dense" and (args.sparsity or args.nm_ratio):
        parser.error("--sparse_init dense takes neither --sparsity nor --nm_ratio")
    if args.sparse_init == "sparse_nm" and (args.sparsity or not args.nm_ratio):
        parser.error("--sparse_init sparse_nm takes --nm_ratio N:M (N kept of every M) and no --sparsity")
    if args.sparse_init in SPARSE_INITS[1:3] and (args.nm_ratio or not args.sparsity):
        parser.error(f"--sparse_init {args.sparse_init} takes --sparsity and no --nm_ratio")
    wanted = [name for name in transfers(args) if name != "dense_transfer"]
    if wanted and not (args.sparsity or args.nm_ratio):
        parser.error(f"{wanted[0]} needs --sparsity or --nm_ratio")


def transfers(args: argparse.Namespace) -> list[str]:
    """The transfers that the options name; by default sparse_to_dense as in the original, or dense_transfer."""
    if args.freeze_weights:
        return ["sparse_transfer"]
    if args.freeze_weights_frompretrain:
        return ["dense_transfer_freezing"]
    if args.sparse_method:
        return list(dict.fromkeys(args.sparse_method))
    named = args.sparse_method is not None or args.sparsity or args.nm_ratio
    return ["sparse_to_dense" if named and args.sparse_init != "dense" else "dense_transfer"]


def cells(args: argparse.Namespace, setting: int | str, tasks: Sequence[Cell]) -> list[Cell]:
    """Every combination of task, share of data, transfer, strength and seed; dense_transfer has no strength.

    Cells that need the same data and the same model follow each other.

    Args:
        setting: its name in results.
        tasks: one dict per task, with `task_name` and any other option that takes several values, by its name.
    """
    variants = []
    for transfer in transfers(args):
        compression = "dense" if transfer == "dense_transfer" else "magnitude"
        for strength in [Strength()] if compression == "dense" else strengths(args.sparsity, args.nm_ratio):
            named = {**strength._asdict(), "strength": strength.name}
            variants.append({"transfer": transfer, "compression": compression, **named})
    return [
        {"setting": setting, **task, "fraction": f"{share:g}", "validation_split_percentage": share,
         "seed": seed, "method": args.method, **variant}
        for task, seed, share, variant in itertools.product(
            tasks, *map(dict.fromkeys, (args.seed, args.validation_split_percentage)), variants
        )
    ]  # fmt: skip


def strengths(sparsities: Iterable[float], nm_ratios: Iterable[str]) -> list[Strength]:
    """The different strengths that two options name, sparsities first."""
    return [Strength(sparsity=value) for value in dict.fromkeys(sparsities)] + [
        Strength(nm_ratio=ratio) for ratio in dict.fromkeys(nm_ratios)
    ]


def sweep(
    args: argparse.Namespace, parser: argparse.ArgumentParser, setting: int | str, tasks: Sequence[Cell]
) -> Sweep:
    """The options as values.

    Args:
        setting, tasks: see cells.
    Raises:
        ValueError: --output_dir gives two runs one folder, or --resume_from_checkpoint is given for several runs.
    """
    folders = output_folders(args.output_dir, cells(args, setting, tasks))
    if args.resume_from_checkpoint and len(folders) > 1:
        raise ValueError("--resume_from_checkpoint takes one cell; an interrupted sweep resumes by the same command")
    return Sweep(
        cells=folders,
        model=PretrainedSource(
            args.model_name_or_path, args.weights, args.revision, args.trust_remote_code, args.ignore_mismatched_sizes
        ),
        pruning=Pruning(
            tuple(strengths(args.sparsity, args.nm_ratio)), args.magnitude_scope, not args.noembed, args.prune_new_head
        ),
        recipe=_recipe(args),
        max_length=args.max_length,
        mixed_precision=args.mixed_precision,
        tracker=args.report_to if args.with_tracking else None,
        checkpoint=args.resume_from_checkpoint,
        save_model=args.save_model,
        eval_each_epoch=args.eval_each_epoch,
        overwrite=args.overwrite,
        output_dir=args.output_dir,
        recorded=recorded(args, parser),
    )


def _recipe(args: argparse.Namespace) -> Recipe:
    return Recipe(
        learning_rate=args.learning_rate,
        batch_size=args.per_device_train_batch_size,
        num_epochs=args.num_train_epochs,
        seed=args.seed[0],
        max_steps=args.max_train_steps,
        weight_decay=args.weight_decay,
        accumulation_steps=args.gradient_accumulation_steps,
        scheduler=args.lr_scheduler_type,
        warmup_steps=args.num_warmup_steps,
        checkpointing_steps=args.checkpointing_steps,
    )


def recorded(args: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options to record (records.recorded_options), without those that the cell or the task's decisions record."""
    options = records.recorded_options(vars(args), {name: parser.get_default(name) for name in vars(args)})
    for name in ("sparse_method", "sparse_init", "freeze_weights", "freeze_weights_frompretrain"):
        options.pop(name, None)  # the cell has transfer and strength
    options.pop("text_columns", None)  # in the task's decisions, where they are not the first ones
    return options


def identity(options: Mapping[str, Any], cell: Cell, content: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """The identity of a run: every option that changes what is computed, the cell's values, and content.

    Args:
        options: what `recorded` returned.
        content: hashes and commits of the model and the task's data, decisions on how the data are read, and numbers
            of arithmetics.
        precision: the one really used: "no" (float32), "bf16" or "fp16".
    """
    # every process has its batch, so that the number of processes changes the training
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return {
        **options, **_of_cell(cell), **content, "num_processes": processes, "precision_used": precision,
        "dtype_used": "torch.float32",
    }  # fmt: skip


def _of_cell(cell: Cell) -> dict[str, Any]:
    """The entries of a run's identity that are its cell's values."""
    return {name: value for name, value in cell.items() if name not in ("setting", "fraction", "strength")}


def options_of(args: argparse.Namespace, parser: argparse.ArgumentParser, cell: Cell) -> dict[str, Any]:
    """The entries of a run's identity that its options alone determine; None for an option that is not recorded."""
    options = {**dict.fromkeys(vars(args)), **recorded(args, parser), **_of_cell(cell)}
    options.pop("text_columns", None)  # a decision on the data
    return options if args.mixed_precision == "auto" else {**options, "precision_used": args.mixed_precision}


def print_list(
    args: argparse.Namespace, parser: argparse.ArgumentParser, folders: Mapping[Path, Cell], tasks: Sequence[Cell]
) -> None:
    """Print the list of --list_cells: commands that compute the cells.

    Raises:
        ValueError: --group_by without --list_cells, or with a name that cells do not have; or a complete run was made
            with other options.
    """
    check_listed(folders, functools.partial(options_of, args, parser), args.overwrite)
    given = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    for name in ("list_cells", "group_by"):
        given.pop(name, None)

    def expand(chosen: list[Cell]) -> list[Cell]:
        """All cells that a command for the chosen ones computes: every combination of their values."""
        named = [task for task in tasks if any(task.items() <= cell.items() for cell in chosen)]
        return cells(argparse.Namespace(**{**vars(args), **_varied(args, chosen)}), chosen[0]["setting"], named)

    print_commands(
        args.list_cells, folders, args.output_dir, lambda chosen: {**given, **_varied(args, chosen)}, args.group_by,
        expand,
    )  # fmt: skip


def _varied(args: argparse.Namespace, chosen: list[Cell]) -> dict[str, Any]:
    """The options that select the chosen cells: all values that these have, and --sparse_method by name."""
    several = [name for name, value in vars(args).items() if isinstance(value, list) and name in chosen[0]]
    return {
        **{name: values(chosen, name) for name in several},
        "sparse_method": values(chosen, "transfer"),
        "sparse_init": None,
        "freeze_weights": False,
        "freeze_weights_frompretrain": False,
    }
