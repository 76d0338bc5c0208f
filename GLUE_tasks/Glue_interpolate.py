"""Loss and score on the straight line between two fine-tuned models: linear mode connectivity, appendix C of the paper.

The ends are models of Glue_prune_oneshot.py --save_model. All pairs in a tree of such runs:

    python GLUE_tasks/Glue_interpolate.py --results_dir runs/lmc/models \\
        --pairs dense-sparse dense-pruned dense-dense --output_dir "runs/lmc/lines/{task_name}/{pair}/{strength}/{seed}"

Two given models, or one and its copy pruned in one shot:

    python GLUE_tasks/Glue_interpolate.py --start runs/qqp/dense_transfer/dense/41 \\
        --end runs/qqp/sparse_transfer/0.7/41 --output_dir runs/line
    python GLUE_tasks/Glue_interpolate.py --start runs/qqp/dense_transfer/dense/41 --sparsity 0.7 --output_dir runs/line

dense-sparse joins Dense and Sparse Transfer of one seed, as the paper does; between the two the weights are dense.
dense-pruned joins the model of Dense Transfer with a copy whose smallest weights are zero, without further training:
the effect of pruning alone. (Before fine-tuning the head is random, so that no loss can be compared.) dense-dense is
the control: two seeds of Dense Transfer, which differ in head and order of rows; text classifiers are known to have
barriers there (Juneja et al., ICLR 2023). All weights and computations are float32. Barriers and their intervals are in
all_results.json, loss and prediction of every item at every point in items.npz. Of MNLI the matched split is evaluated.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification

from GLUE_tasks import glue_data, interpolation, model_pairs, options
from GLUE_tasks.interpolation import Measurement
from GLUE_tasks.model_pairs import Pair
from GLUE_tasks.pretrained import PretrainedSource, check_model
from harness import run_folder, training
from harness.cells import Cell, check_folders, output_folders, run_cells, start_logging
from harness.commands import command_line, folder_template, print_lines
from harness.models import quiet_libraries
from harness.options import add_cell_options, checked, filled_path, number, positive
from pruning.nm import valid_nm


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("models").add_argument
    add("--results_dir", type=filled_path, metavar="DIR", help="join the saved models of all runs below DIR")
    add("--pairs", nargs="+", choices=model_pairs.KINDS, metavar="KIND",
        help=f"with --results_dir: which of {', '.join(model_pairs.KINDS)} (default all)")  # fmt: skip
    add("--task_name", nargs="+", type=checked(glue_data.canonical_name), default=[], metavar="TASK",
        help="with --results_dir: these GLUE tasks alone (default all that are there)")  # fmt: skip
    add("--start", type=filled_path, metavar="DIR",
        help="run folder of Glue_prune_oneshot.py --save_model, or its model/")  # fmt: skip
    add("--end", type=filled_path, metavar="DIR", help="the same, of the other end")
    add("--sparsity", nargs="+", type=number(float, 0, 1, open_high=True), default=[], metavar="S",
        help="dense-pruned: fraction(s) of the weights to prune, [0, 1), ranked as the start's run ranks them (default "
        "with --results_dir: those of the sparse transfers)")  # fmt: skip
    add("--nm_ratio", nargs="+", type=checked(valid_nm), default=[], metavar="N:M",
        help="dense-pruned: N weights are KEPT in every M consecutive inputs, 1 <= N < M")  # fmt: skip
    add("--trust_remote_code", action="store_true", help="run code that the saved model brings")

    add = parser.add_argument_group("evaluation").add_argument
    add("--num_points", type=number(int, 3, 10_001), default=21, help="points on the line, both ends counted, 3 or "
        "more (default %(default)s)")  # fmt: skip
    add("--data_dir", type=filled_path, help="where the task's data are (default: where the models' runs read them)")
    add("--max_train_samples", type=positive, default=1000,
        help="training rows for the training loss, of those that both ends saw (default %(default)s)")  # fmt: skip
    add("--max_eval_samples", type=positive, help="evaluate the first rows only (default: as the start's run did)")
    add("--per_device_eval_batch_size", type=positive, default=128, help="rows per process (default %(default)s)")
    add("--seed", type=number(int, 0, 2**32 - 1), default=42,
        help="which training rows, and the bootstrap's draws (default %(default)s)")  # fmt: skip

    placeholders = ("task_name", "pair", "strength", "seed", "fraction", "magnitude_scope", "setting")
    add_cell_options(parser.add_argument_group("run"), placeholders, runs="lines")
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line and check the options against each other; parser.error on a bad combination."""
    args = parser.parse_args(argv)
    if bool(args.results_dir) == bool(args.start):
        parser.error("give either --results_dir or --start")
    if args.start and bool(args.end) == bool(args.sparsity or args.nm_ratio):
        parser.error("--start takes either --end, or --sparsity or --nm_ratio for its pruned copy")
    if args.end and not args.start:
        parser.error("--end goes with --start")
    if args.pairs and not args.results_dir:
        parser.error("--pairs goes with --results_dir; --start says which line it is")
    args.pairs = list(dict.fromkeys(args.pairs or model_pairs.KINDS))
    if (args.sparsity or args.nm_ratio) and "dense-pruned" not in args.pairs:
        parser.error("--sparsity and --nm_ratio are of dense-pruned, which --pairs leaves out")
    options.check_data_dir(parser, args)
    return args


def find_pairs(args: argparse.Namespace) -> list[Pair]:
    """The pairs of models that the options select, checked.

    Raises:
        ValueError: a model is missing, or two models must not be joined by a line.
    """
    strengths = options.strengths(args.sparsity, args.nm_ratio)
    if args.results_dir:
        models = model_pairs.saved_models(args.results_dir, args.task_name)
        pairs = model_pairs.pairs_of(models, args.pairs, strengths)
    else:
        start = model_pairs.saved_model(args.start)
        pairs = [model_pairs.pruned_pair(start, strength) for strength in strengths]
        if args.end:
            pairs = [model_pairs.named_pair(start, model_pairs.saved_model(args.end))]
        if args.task_name and start.result["task"] not in args.task_name:
            raise ValueError(f"--task_name {' '.join(args.task_name)}: {start.folder} learned {start.result['task']}")
    for pair in pairs:
        model_pairs.check_pair(pair)
        if pair.pruned is not None:
            recorded = pair.start.arguments
            source = PretrainedSource(str(pair.start.files), trust_remote_code=recorded["trust_remote_code"])
            pruning = model_pairs.pruning_of(pair)
            check_model(source, AutoModelForSequenceClassification, None, recorded["max_length"], pruning)
    return pairs


def cell_of(pair: Pair) -> Cell:
    """The values of a line's placeholders in --output_dir."""
    line = model_pairs.describe(pair)
    return {
        "setting": line["setting"],
        "task_name": line["task"],
        "pair": pair.kind,
        "strength": "dense" if line["strength"] is None else str(line["strength"]).replace(":", "of"),
        "seed": "-".join(map(str, dict.fromkeys((line["seed"], line["end_seed"])))),
        "fraction": f"{100 * line['data_fraction']:g}",
        "magnitude_scope": line["magnitude_scope"] or "none",
    }


def cell_options(args: argparse.Namespace, parser: argparse.ArgumentParser, pair: Pair) -> dict[str, Any]:
    """The options, where they are not the default, of a command that measures this line alone."""
    options = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    for name in ("list_cells", "results_dir", "pairs", "task_name"):
        options.pop(name, None)
    sparsity, ratio = pair.pruned or (None, None)
    end = pair.end and pair.end.folder
    return {**options, "start": pair.start.folder, "end": end, "sparsity": sparsity, "nm_ratio": ratio}


def main(argv: list[str] | None = None) -> int:
    """Measure every line that is not complete yet; returns the exit code."""
    parser = make_parser()
    args = parse(parser, argv)
    measurement = Measurement(
        args.num_points, args.max_train_samples, args.per_device_eval_batch_size, args.seed, args.max_eval_samples,
        args.data_dir, args.trust_remote_code,
    )  # fmt: skip
    start_logging()
    quiet_libraries()
    try:
        training.check_environment()
        pairs = find_pairs(args)
        # in the order of the cells
        pair_of = dict(zip(output_folders(args.output_dir, map(cell_of, pairs)), pairs, strict=True))
        if args.list_cells:
            for folder in () if args.overwrite else filter(run_folder.is_complete, pair_of):
                run_folder.check_same_run(folder, interpolation.identity(measurement, pair_of[folder]))
            print_lines(
                command_line(sys.argv[0], cell_options(args, parser, pair), folder_template(folder))
                for folder, pair in pair_of.items()
            )
            return 0
        for pair in pairs:
            interpolation.check_data(pair, interpolation.load_task(pair, args.data_dir))
        identities = {folder: interpolation.identity(measurement, pair) for folder, pair in pair_of.items()}
        check_folders(identities, args.overwrite)
    except ValueError as error:
        parser.error(str(error))

    accelerator = training.start_accelerator("no")
    inputs = interpolation.shared_inputs(measurement)

    def compute(folder: Path) -> None:
        pair = pair_of[folder]
        interpolation.run(folder, pair, identities[folder], measurement, accelerator, inputs(pair))

    share = training.share_from_main(accelerator)
    failed = run_cells(identities, compute, args.overwrite, share, accelerator.is_main_process)
    if accelerator.is_main_process:
        print(f"{len(pairs) - failed} of {len(pairs)} lines are complete: {args.output_dir}")
    accelerator.end_training()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
