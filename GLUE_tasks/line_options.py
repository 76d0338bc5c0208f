"""Glue_interpolate.py's command line: options and their checks."""

import argparse

from GLUE_tasks import arguments, glue_data, model_pairs
from harness.options import checked, filled_path, folder_template, number, positive


def make_parser(description: str) -> argparse.ArgumentParser:
    """All options, in groups."""
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
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
    add("--nm_ratio", nargs="+", type=checked(arguments.nm_ratio), default=[], metavar="N:M",
        help="dense-pruned: N weights are KEPT in every M consecutive inputs, 1 <= N < M")  # fmt: skip
    add("--trust_remote_code", action="store_true", help="run code that the saved model brings")

    add = parser.add_argument_group("evaluation").add_argument
    add("--num_points", type=number(int, 3, 10_001), default=21, help="alphas from 0 to 1, both ends counted, 3 or "
        "more (default %(default)s)")  # fmt: skip
    add("--data_dir", type=filled_path, help="where the task's data are (default: where the models' runs found them)")
    add("--max_train_samples", type=positive, default=1000,
        help="training rows for the training loss, of those that both ends saw (default %(default)s)")  # fmt: skip
    add("--max_eval_samples", type=positive, help="evaluate the first rows only (default: as the start's run did)")
    add("--per_device_eval_batch_size", type=positive, default=128, help="rows per process (default %(default)s)")
    add("--seed", type=number(int, 0, 2**32 - 1), default=42,
        help="which training rows, and the bootstrap's draws (default %(default)s)")  # fmt: skip

    add = parser.add_argument_group("run").add_argument
    add("--output_dir", type=folder_template, required=True,
        help="the run's folder; for several lines a template with {task_name} {pair} {strength} {seed} {fraction} "
        "{magnitude_scope} {setting}")  # fmt: skip
    add("--overwrite", action="store_true", help="replace complete runs")
    add("--list_cells", action="store_true", help="print one single-cell command per line and stop")
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """The options, checked against each other."""
    args = parser.parse_args(argv)
    if bool(args.results_dir) == bool(args.start):
        parser.error("give either --results_dir or --start")
    if args.start and bool(args.end) == bool(args.sparsity or args.nm_ratio):
        parser.error("--start takes either --end, or --sparsity or --nm_ratio for its own pruned copy")
    if args.end and not args.start:
        parser.error("--end goes with --start")
    if args.pairs and not args.results_dir:
        parser.error("--pairs goes with --results_dir; --start says which line it is")
    args.pairs = list(dict.fromkeys(args.pairs or model_pairs.KINDS))
    if (args.sparsity or args.nm_ratio) and "dense-pruned" not in args.pairs:
        parser.error("--sparsity and --nm_ratio are of dense-pruned, which --pairs leaves out")
    if args.data_dir and not args.data_dir.is_dir():
        parser.error(f"--data_dir {args.data_dir}: no such folder")
    return args
