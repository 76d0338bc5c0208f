"""Loss and score on the straight line between two fine-tuned models: linear mode connectivity, appendix C of the paper.

The ends are models that Glue_prune_oneshot.py left with --save_model. All pairs of a tree of such runs:

    python GLUE_tasks/Glue_interpolate.py --results_dir runs/lmc/models --data_dir data \\
        --pairs dense-sparse dense-pruned dense-dense --output_dir "runs/lmc/lines/{task_name}/{pair}/{strength}/{seed}"

Two given models, or one and its own copy pruned in one shot:

    python GLUE_tasks/Glue_interpolate.py --start runs/qqp/dense_transfer/dense/41 \\
        --end runs/qqp/sparse_transfer/0.7/41 --output_dir runs/line
    python GLUE_tasks/Glue_interpolate.py --start runs/qqp/dense_transfer/dense/41 --sparsity 0.7 --output_dir runs/line

dense-sparse joins Dense and Sparse Transfer of one seed, as the paper does; between the two the weights are dense.
dense-pruned joins the model of Dense Transfer with its copy whose smallest weights are zero, not trained on: what
pruning alone does. (Before fine-tuning the head is random and there is no loss to speak of.) dense-dense is the
control: two seeds of Dense Transfer, which differ in head and order of rows; text classifiers are known to have
barriers there (Juneja et al., ICLR 2023). All weights and computations are float32. Barriers and their intervals stand
in all_results.json, loss and answer of every item at every point in items.npz. Of MNLI the matched split is evaluated.
"""

import argparse
import copy
import functools
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from GLUE_tasks import (
    Glue_prune_oneshot,
    arguments,
    classification,
    experiment,
    finetune,
    glue_data,
    interpolation,
    line_options,
    line_results,
    model_pairs,
)
from GLUE_tasks.glue_data import Task
from GLUE_tasks.model_pairs import Pair, Strength
from GLUE_tasks.problem import Inputs
from harness import records, run_folder
from harness.cells import Cell, check_folders, output_folders, run_cells, start_logging
from harness.commands import command_line, folder_template, print_lines
from harness.content import files_content, sha256
from harness.device import peak_memory, reset_peak_memory
from harness.model_files import weight_files
from harness.models import load_tokenizer, quiet_libraries
from pruning.masks import apply_masks, zero_fraction

logger = logging.getLogger(__name__)

# What all lines of one figure share; everything else that a run records says which line it is.
LINE_OPTIONS = ("num_points", "max_train_samples", "per_device_eval_batch_size", "seed")


class Source(NamedTuple):
    """Where a task's rows come from, as Glue_prune_oneshot.py names it.

    Fields:
        text_columns: what the run says of them; None where they are the first ones.
    """

    task_name: str
    data_dir: Path | None
    train_file: Path | None
    validation_file: Path | None
    text_columns: tuple[str, ...] | None


def find_pairs(args: argparse.Namespace) -> list[Pair]:
    """The lines that the options ask for, checked.

    Raises:
        ValueError: models that are not there or that no line should join.
    """
    strengths = [Strength(sparsity, None) for sparsity in dict.fromkeys(args.sparsity)]
    strengths += [Strength(None, ratio) for ratio in dict.fromkeys(args.nm_ratio)]
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
            experiment.check_model(pruning_options(pair), AutoModelForSequenceClassification, None)
    return pairs


def pruning_options(pair: Pair) -> argparse.Namespace:
    """The start's own options, as the fine-tuning frame takes them, with the strength of its pruned copy."""
    sparsity, ratio = pair.pruned
    parser = arguments.make_parser("", Glue_prune_oneshot.PROBLEM)
    defaults = {action.dest: action.default for action in parser._actions}  # of options that are newer than the run
    strength = {"sparsity": [] if sparsity is None else [sparsity], "nm_ratio": [] if ratio is None else [ratio]}
    recorded = {**pair.start.arguments, "model_name_or_path": str(pair.start.files)}
    # a folder, whatever it was made from
    return argparse.Namespace(**{**defaults, **recorded, "revision": None, **strength})


def cell_of(pair: Pair) -> Cell:
    """The values of a line's placeholders."""
    place = model_pairs.describe(pair)
    return {
        "setting": place["setting"],
        "task_name": place["task"],
        "pair": pair.kind,
        "strength": "dense" if place["strength"] is None else str(place["strength"]).replace(":", "of"),
        "seed": "-".join(map(str, dict.fromkeys((place["seed"], place["end_seed"])))),
        "fraction": f"{100 * place['data_fraction']:g}",
        "magnitude_scope": place["magnitude_scope"] or "none",
    }


def cell_options(args: argparse.Namespace, parser: argparse.ArgumentParser, pair: Pair) -> dict[str, Any]:
    """The options, where they are not the default, that draw one line by itself."""
    options = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    for name in ("list_cells", "results_dir", "pairs", "task_name"):
        options.pop(name, None)
    sparsity, ratio = pair.pruned or (None, None)
    end = pair.end and pair.end.folder
    return {**options, "start": pair.start.folder, "end": end, "sparsity": sparsity, "nm_ratio": ratio}


def source(args: argparse.Namespace, pair: Pair) -> Source:
    """Where the rows of a line's task are: in --data_dir, else where the start's run found them."""
    recorded = pair.start.arguments
    paths = {name: recorded[name] and Path(recorded[name]) for name in ("data_dir", "train_file", "validation_file")}
    if args.data_dir and not paths["train_file"]:
        paths["data_dir"] = args.data_dir
    columns = recorded.get("text_columns")
    return Source(pair.start.result["task"], **paths, text_columns=tuple(columns) if columns else None)


@functools.cache
def load_task(wanted: Source) -> Task:
    if wanted.train_file is None:
        return glue_data.load_glue(wanted.task_name, wanted.data_dir)
    return glue_data.load_files(wanted.train_file, wanted.validation_file, wanted.text_columns, by_order=True)


def check_data(pair: Pair, task: Task) -> None:
    """Refuse files other than those that the models were fine-tuned on."""
    recorded = data_content(pair)
    was_of_files = any(form.endswith("sha256") for form in recorded)
    if was_of_files and task.files and records.differences(recorded, files_content(task.files)):
        names = ", ".join(map(str, task.files))
        raise ValueError(f"{pair.start.folder} was fine-tuned on other data than {names}; give its --data_dir")


def data_content(pair: Pair) -> dict[str, str]:
    """Hashes or the commit of the data that the start was fine-tuned on."""
    return {name: value for name, value in pair.start.identity.items() if name in records.DATA_FORMS}


def evaluated_rows(args: argparse.Namespace, pair: Pair) -> int | None:
    return args.max_eval_samples or pair.start.arguments["max_eval_samples"]


@functools.cache
def weights_hash(folder: Path) -> str:
    return sha256(weight_files(str(folder)))


def identity(args: argparse.Namespace, pair: Pair) -> dict[str, Any]:
    """What tells a line from another: its ends by their content, and every option that changes what is measured."""
    place = model_pairs.describe(pair)
    return {
        **{name: getattr(args, name) for name in LINE_OPTIONS},
        "max_eval_samples": evaluated_rows(args, pair),
        "task_name": place["task"],
        **data_content(pair),
        **{name: place[name] for name in ("pair", "data_fraction", "strength", "magnitude_scope")},
        "start_seed": place["seed"],
        "end_seed": place["end_seed"],
        "start_sha256": weights_hash(pair.start.files),
        "end_sha256": pair.end and weights_hash(pair.end.files),
        "training": sorted(
            {records.recipe(end.identity, records.COORDINATES["fine-tuning"]) for end in (pair.start, pair.end) if end}
        ),
        "precision_used": "no",
    }


def main(argv: list[str] | None = None) -> int:
    """Measure every line that is not complete yet; returns the exit code."""
    parser = line_options.make_parser(__doc__)
    args = line_options.parse(parser, sys.argv[1:] if argv is None else argv)
    start_logging()
    quiet_libraries()
    try:
        experiment.check_environment()
        pairs = find_pairs(args)
        # in the order of the cells
        pair_of = dict(zip(output_folders(args.output_dir, map(cell_of, pairs)), pairs, strict=True))
        if args.list_cells:
            print_lines(
                command_line(sys.argv[0], cell_options(args, parser, pair), folder_template(folder))
                for folder, pair in pair_of.items()
            )
            return 0
        for pair in pairs:
            check_data(pair, load_task(source(args, pair)))
        identities = {folder: identity(args, pair) for folder, pair in pair_of.items()}
        check_folders(identities, args.overwrite)
    except ValueError as error:
        parser.error(str(error))

    accelerator = start_in_float32()
    inputs = shared_inputs(args)

    def compute(folder: Path) -> None:
        pair = pair_of[folder]
        run(folder, pair, identities[folder], args, accelerator, load_task(source(args, pair)), inputs(pair))

    share = finetune.share_from_main(accelerator)
    failed = run_cells(identities, compute, args.overwrite, share, accelerator.is_main_process)
    if accelerator.is_main_process:
        print(f"{len(pairs) - failed} of {len(pairs)} lines are complete: {args.output_dir}")
    accelerator.end_training()
    return 1 if failed else 0


def start_in_float32() -> Accelerator:
    return experiment.start_accelerator(argparse.Namespace(mixed_precision="no", with_tracking=False))


def shared_inputs(args: argparse.Namespace) -> Callable[[Pair], Inputs]:
    """A function that gives a line its tokenised rows, made when the first line that needs them asks."""
    made: dict[tuple, Inputs] = {}

    def inputs(pair: Pair) -> Inputs:
        sizes = pair.start.arguments["max_length"], evaluated_rows(args, pair)
        key = (source(args, pair), pair.start.result["model"], *sizes)
        if key not in made:
            tokenizer = load_tokenizer(str(pair.start.files), args.trust_remote_code)
            made[key] = classification.tokenize_task(load_task(key[0]), tokenizer, *sizes)
        return made[key]

    return inputs


def run(
    folder: Path,
    pair: Pair,
    identity: dict[str, Any],
    args: argparse.Namespace,
    accelerator: Accelerator,
    task: Task,
    inputs: Inputs,
) -> None:
    """One line, from the two models to all_results.json."""
    started = time.monotonic()
    accelerator.free_memory()
    reset_peak_memory(accelerator.device)
    if accelerator.is_main_process:
        run_folder.start_run(folder, identity, run_folder.describe_environment(str(accelerator.device), precision="no"))
    accelerator.wait_for_everyone()
    ends = pair.end.folder if pair.end else f"its copy pruned to {pair.pruned.name}"
    logger.info("%s: from %s to %s, %d points", folder, pair.start.folder, ends, args.num_points)
    model, end, sparsity = load_ends(pair, len(task.label_names) or 1, args.trust_remote_code, accelerator)
    train_rows = common_rows(pair, len(inputs.train), args.max_train_samples, args.seed)
    inputs = classification.fit(task, inputs, model, pair.start.arguments.get("label_order"))
    rows = {"train": inputs.train.select(train_rows), "validation": inputs.validation[""]}

    def measure() -> dict[str, np.ndarray]:
        return {
            split: inputs.in_order(
                finetune.predict(accelerator, model, some, inputs.collate, args.per_device_eval_batch_size)
            )
            for split, some in rows.items()
        }

    alphas = interpolation.points(args.num_points)
    outputs = interpolation.walk(model, end, alphas, measure)
    if not accelerator.is_main_process:
        return
    lines = {
        split: interpolation.along_line(
            [point[split] for point in outputs], np.asarray(some["labels"][:]), task.is_regression
        )
        for split, some in rows.items()
    }
    result = {
        **model_pairs.describe(pair),
        "measured_sparsity": sparsity,
        "recipe": records.recipe(identity, records.COORDINATES["line"]),
        "precision": "no",
        "seconds": time.monotonic() - started,
        "peak_memory_bytes": peak_memory(accelerator.device),
        "num_train_examples": len(train_rows),
        "start": str(pair.start.folder),
        "end": str(pair.end.folder) if pair.end else None,
        "barriers": line_results.find_barriers(task.metrics[0], alphas, lines, args.seed),
        "levels": line_results.levels(task.metrics[0], alphas, lines, args.seed),
    }
    if pair.start.result["transfer"] == model_pairs.DENSE:
        experiment.warn_at_chance(folder, result["levels"][:1])
    run_folder.write_run(folder, result, line_results.items(lines, train_rows))


def load_ends(
    pair: Pair, num_labels: int, trust_remote_code: bool, accelerator: Accelerator
) -> tuple[nn.Module, dict[str, Tensor], float]:
    """The start as a model, the end as tensors, and the measured sparsity of the compressed one."""

    def loaded(folder: Path) -> nn.Module:
        found = finetune.load_pretrained(str(folder), num_labels, trust_remote_code)
        if found.new_parameters:
            raise ValueError(f"{folder} lacks {', '.join(sorted(found.new_parameters))}")
        return found.model.to(accelerator.device)

    # Memory of its own, as in training. What is mapped from a file begins at any multiple of 4 bytes, and by that MKL
    # orders sums on some processors, where a head has one output or a batch one row.
    start = copy.deepcopy(loaded(pair.start.files))
    if pair.end is not None:
        other = loaded(pair.end.files)
        interpolation.check_buffers(start, other)
        return start, interpolation.line_tensors(other), (pair.sparser or pair.start).result["measured_sparsity"]
    body = {id(parameter) for parameter in start.base_model.parameters()}
    head = {name for name, parameter in start.named_parameters() if id(parameter) not in body}
    masks = experiment.select_masks(start, head, pruning_options(pair))[pair.pruned.name]
    end = {name: tensor.clone() for name, tensor in interpolation.line_tensors(start).items()}
    apply_masks(end, masks)
    return start, end, zero_fraction(end[name] for name in masks)


def common_rows(pair: Pair, num_rows: int, limit: int, seed: int) -> list[int]:
    """Training rows that both ends saw, at most `limit` of them, drawn by `seed`.

    Raises:
        ValueError: there is none.
    """
    seen = [
        set(glue_data.subset_indices(num_rows, *(end.arguments[name] for name in model_pairs.SAMPLE)))
        for end in (pair.start, pair.end) if end is not None
    ]  # fmt: skip
    common = sorted(set.intersection(*seen))
    if not common:
        raise ValueError(f"{pair.start.folder} and {pair.end.folder} were trained on no row in common")
    return sorted(np.random.default_rng(seed).permutation(common)[:limit].tolist())


if __name__ == "__main__":
    sys.exit(main())
