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
import functools
import gc
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from analysis import results
from analysis.cells import Cell, check_folders, command_line, output_folders, run_cells, start_logging
from analysis.monotonicity import above_chance
from GLUE_tasks import arguments, finetune, glue_data
from GLUE_tasks.glue_data import Task
from pruning.checkpoints import check_checkpoint_files, meta_model, quiet_libraries, save_model, weight_files
from pruning.device import best_precision, peak_memory, reset_peak_memory
from pruning.layers import prunable_weights
from pruning.magnitude import magnitude_masks
from pruning.masks import zero_fraction
from pruning.nm import nm_mask, parse_nm

logger = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """A task's tokenised rows, one data set per split as in Task, and the function that pads a batch of them."""

    train: Dataset
    validation: dict[str, Dataset]
    collate: DataCollatorWithPadding


def main(argv: list[str] | None = None) -> int:
    """Compute every cell that is not complete yet; returns the exit code."""
    parser = arguments.make_parser(__doc__)
    args = arguments.parse(parser, sys.argv[1:] if argv is None else argv)
    start_logging()
    quiet_libraries()
    try:
        folders = output_folders(args.output_dir, arguments.cells(args))
        if args.list_cells:
            for folder, cell in folders.items():
                print(command_line(sys.argv[0], arguments.cell_options(args, parser, cell), folder))
            return 0
        check_checkpoint_files(args.model_name_or_path)
        tasks = {name: load_task(name, args) for name in {cell["task_name"]: None for cell in folders.values()}}
        check_model(args, max(len(task.label_names) for task in tasks.values()) or 1)
        hashes = {name: input_hashes(args.model_name_or_path, task) for name, task in tasks.items()}
        identities = {
            folder: arguments.identity(args, cell, hashes[cell["task_name"]]) for folder, cell in folders.items()
        }
        check_folders(identities, args.overwrite)
    except ValueError as error:
        parser.error(str(error))

    accelerator = start_accelerator(args)
    # accelerate collects garbage after every cell; what the imports made is none, and walking it takes half a second
    gc.freeze()

    # What cells share is made once, when the first cell that is not complete needs it.
    @functools.cache
    def inputs(name: str) -> Inputs:
        return tokenize_task(tasks[name], args)

    @functools.cache
    def pretrained(num_labels: int) -> finetune.Pretrained:
        options = args.trust_remote_code, args.ignore_mismatched_sizes
        return finetune.load_pretrained(args.model_name_or_path, num_labels, *options)

    @functools.cache
    def masks(num_labels: int, seed: int | None) -> dict[str, dict[str, Tensor]]:
        model = pretrained(num_labels)
        return select_masks(model.model if seed is None else model.copy(seed), model.new_parameters, args)

    def compute(folder: Path) -> None:
        cell = folders[folder]
        task = tasks[cell["task_name"]]
        num_labels = len(task.label_names) or 1
        keep_masks = {}
        if cell["transfer"] != "dense_transfer":
            # without the untrained head the ranking is the same for all heads and seeds
            key = (num_labels, cell["seed"]) if args.prune_new_head else (min(heads), None)
            keep_masks = masks(*key)[cell["strength"]]
        model = pretrained(num_labels)
        run(folder, cell, identities[folder], args, accelerator, task, inputs(task.name), model, keep_masks)

    heads = {len(task.label_names) or 1 for task in tasks.values()}
    failed = run_cells(
        identities, compute, args.overwrite, finetune.share_from_main(accelerator), accelerator.is_main_process
    )
    if accelerator.is_main_process:
        print(f"{len(folders) - failed} of {len(folders)} runs are complete: {args.output_dir}")
    accelerator.end_training()
    return 1 if failed else 0


def load_task(name: str, args: argparse.Namespace) -> Task:
    if args.train_file:
        return glue_data.load_files(args.train_file, args.validation_file)
    return glue_data.load_glue(name, args.data_dir)


def check_model(args: argparse.Namespace, num_labels: int) -> None:
    """Refuse, from the config alone, a length the model cannot take and groups that do not divide a layer's inputs."""
    model = meta_model(
        args.model_name_or_path, AutoModelForSequenceClassification, args.trust_remote_code, num_labels=num_labels
    )
    longest = getattr(model.config, "max_position_embeddings", args.max_length)
    if args.max_length > longest:
        raise ValueError(f"--max_length {args.max_length}: {args.model_name_or_path} takes at most {longest} tokens")
    weights = prunable_weights(model.base_model, include_embeddings=not args.noembed)
    for ratio in args.nm_ratio:
        _, m_group = parse_nm(ratio)
        for name, weight in weights.items():
            if weight.shape[1] % m_group:
                raise ValueError(f"--nm_ratio {ratio}: {name} has {weight.shape[1]} inputs, no multiple of {m_group}")


def input_hashes(model_name: str, task: Task) -> dict[str, str | None]:
    """Content of the model's and the task's local files; None for what comes from the hub."""
    return {"model_sha256": _hash(tuple(weight_files(model_name))), "data_sha256": _hash(task.files)}


@functools.cache
def _hash(files: tuple[Path, ...]) -> str | None:
    return results.sha256(files) if files else None


def start_accelerator(args: argparse.Namespace) -> Accelerator:
    """accelerate's state for all cells, in the precision asked for."""
    # accelerate joins the processes of a CPU job only when it is told that there is no accelerator
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    precision = args.mixed_precision if args.mixed_precision != "auto" else best_precision(state.device.type)
    return Accelerator(mixed_precision=precision, log_with=args.report_to if args.with_tracking else None)


def tokenize_task(task: Task, args: argparse.Namespace) -> Inputs:
    """All rows that any cell may see, tokenised."""
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    splits = {key: split.select(range(min(len(split), args.max_eval_samples or len(split))))
              for key, split in task.validation.items()}  # fmt: skip
    train, *rest = (
        glue_data.tokenize(split, task.columns, tokenizer, args.max_length) for split in (task.train, *splits.values())
    )
    logger.info("%s: %d training rows; evaluated: %s", task.name, len(train), ", ".join(str(len(s)) for s in rest))
    if task.name == "mnli" and "_mm" not in splits:
        logger.warning("mnli: no validation_mismatched in --data_dir; the matched split alone is evaluated")
    return Inputs(train, dict(zip(splits, rest, strict=True)), DataCollatorWithPadding(tokenizer))


def select_masks(
    model: torch.nn.Module, new_parameters: frozenset[str], args: argparse.Namespace
) -> dict[str, dict[str, Tensor]]:
    """Keep-masks for every strength of the sweep, by the cell's name of the strength."""
    weights = prunable_weights(model, new_parameters, not args.noembed, args.prune_new_head)
    chosen = {
        f"{sparsity:g}": masks
        for sparsity, masks in zip(
            args.sparsity, magnitude_masks(weights, args.sparsity, args.magnitude_scope), strict=True
        )
    }
    for ratio in args.nm_ratio:
        chosen[ratio.replace(":", "of")] = {
            name: nm_mask(weight.detach().abs(), *parse_nm(ratio)) for name, weight in weights.items()
        }
    total = sum(weight.numel() for weight in weights.values())
    logger.info("prunable: %d weights in %d matrices", total, len(weights))
    return chosen


def run(
    folder: Path,
    cell: Cell,
    identity: dict[str, Any],
    args: argparse.Namespace,
    accelerator: Accelerator,
    task: Task,
    inputs: Inputs,
    pretrained: finetune.Pretrained,
    keep_masks: dict[str, Tensor],
) -> None:
    """One cell, from the pretrained model to all_results.json."""
    started = time.monotonic()
    accelerator.free_memory()
    reset_peak_memory(accelerator.device.type)
    model = pretrained.copy(cell["seed"]).to(accelerator.device)
    parameters = dict(model.named_parameters())
    optimizer = finetune.make_optimizer(model, args.learning_rate, args.weight_decay)
    finetune.start_transfer(cell["transfer"], optimizer, parameters, keep_masks)
    trained, optimizer = accelerator.prepare(model, optimizer)
    chosen = glue_data.subset_indices(
        len(inputs.train), cell["validation_split_percentage"], cell["seed"], args.subset, args.max_train_samples
    )
    rows = inputs.train.select(chosen)

    resume_from = begin(folder, identity, accelerator, args.resume_from_checkpoint)
    if args.with_tracking:
        accelerator.init_trackers(str(folder).replace("/", "_"), identity)

    def evaluate(epoch: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        scores, items = score_task(accelerator, trained, task, inputs, args.per_device_eval_batch_size)
        logger.info("%s: epoch %d: %s", folder, epoch, ", ".join(f"{key} {value:.4f}" for key, value in scores.items()))
        accelerator.log(scores, step=epoch)
        return scores, items

    recipe = arguments.recipe(args, cell["seed"])
    trace = finetune.train(
        accelerator, trained, optimizer, rows, inputs.collate, recipe, folder, resume_from,
        after_epoch=evaluate if args.eval_each_epoch else None,
    )  # fmt: skip
    scores, items = evaluate(round(trace["num_epochs"]))
    for tracker in accelerator.trackers:
        tracker.finish()
    if not accelerator.is_main_process:
        return
    if args.save_model:
        tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
        save_model(folder / "model", accelerator.unwrap_model(trained, keep_fp32_wrapper=False), tokenizer)
    weights = prunable_weights(model, pretrained.new_parameters, not args.noembed, args.prune_new_head)
    result = {
        **describe(cell, identity, args),
        "measured_sparsity": zero_fraction(weights.values()),
        "masked_fraction": zero_fraction(keep_masks.values()) if keep_masks else 0.0,
        "seconds": time.monotonic() - started,
        "peak_memory_bytes": peak_memory(accelerator.device.type),
        "precision": accelerator.mixed_precision,
        "num_train_examples": len(rows),
        **trace,
        "levels": [level(cell, task, items)],
        **scores,
    }
    if cell["transfer"] == "dense_transfer":
        warn_at_chance(folder, result["levels"][0])
    results.write_run(folder, result, items)
    for checkpoint in finetune.checkpoints(folder):
        shutil.rmtree(checkpoint)


def begin(folder: Path, identity: dict[str, Any], accelerator: Accelerator, resume_from: Path | None) -> Path | None:
    """Record the run's arguments; returns the checkpoint to go on from, one of the same run alone."""
    if accelerator.is_main_process:
        if results.recorded_arguments(folder) != identity:
            for checkpoint in finetune.checkpoints(folder):
                shutil.rmtree(checkpoint)
        environment = results.describe_environment(str(accelerator.device), precision=accelerator.mixed_precision)
        results.start_run(folder, identity, environment)
    accelerator.wait_for_everyone()
    return resume_from or next(reversed(finetune.checkpoints(folder)), None)


def score_task(
    accelerator: Accelerator, model: torch.nn.Module, task: Task, inputs: Inputs, batch_size: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The original's eval_* keys, and prediction and label per item, for every split."""
    from GLUE_tasks.glue_metric import GlueMetric  # here: a mistake or a complete run should not wait for evaluate

    metric = GlueMetric(config_name=",".join(task.metrics))
    scores, items = {}, {}
    for suffix, rows in inputs.validation.items():
        outputs = finetune.predict(accelerator, model, rows, inputs.collate, batch_size)
        predictions = outputs[:, 0] if task.is_regression else outputs.argmax(axis=1)
        if not np.isfinite(outputs).all():
            raise FloatingPointError("the trained model's outputs are NaN or infinite; try a lower --learning_rate")
        labels = np.asarray(rows["labels"][:])
        found = metric.compute(predictions=predictions, references=labels)
        scores |= {f"eval_{name}{suffix}": value for name, value in found.items()}
        items |= {f"prediction{suffix}": predictions, f"label{suffix}": labels}
    return scores, items


def level(cell: Cell, task: Task, items: dict[str, np.ndarray]) -> dict[str, Any]:
    """The run's one point on setting 1's axis: the less data, the harder."""
    metric, predictions, labels = task.metrics[0], items["prediction"], items["label"]
    share = cell["validation_split_percentage"]
    return {
        "level": share,
        "difficulty": 1 - share / 100,
        "metric": metric,
        "score": glue_data.SCORES[metric](predictions, labels),
        "chance": glue_data.chance_level(metric, labels),
        "stderr": glue_data.standard_error(metric, predictions, labels),
        "num_examples": len(labels),
        "constant_prediction": bool(np.ptp(predictions) == 0),
    }


def describe(cell: Cell, identity: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The run's coordinates as results and figures name them."""
    if cell["nm_ratio"]:
        n_kept, m_group = parse_nm(cell["nm_ratio"])
        kind, strength, requested = "nm", cell["nm_ratio"], 1 - n_kept / m_group
    elif cell["sparsity"] is not None:
        kind, strength, requested = "sparsity", cell["sparsity"], cell["sparsity"]
    else:
        kind, strength, requested = None, None, 0.0
    return {
        "setting": 1,
        "model": args.model_name_or_path,
        "task": cell["task_name"],
        "transfer": cell["transfer"],
        "data_fraction": cell["validation_split_percentage"] / 100,
        "compression": cell["compression"],
        "magnitude_scope": args.magnitude_scope if kind == "sparsity" else None,
        "strength_kind": kind,
        "strength": strength,
        "requested_sparsity": requested,
        "seed": cell["seed"],
        "method": args.method,
        "recipe": results.recipe(identity, arguments.CELL_OPTIONS),
        "compression_recipe": results.recipe({name: identity[name] for name in ("noembed", "prune_new_head")}, ())
        if kind
        else None,
    }


def warn_at_chance(folder: Path, dense: dict[str, Any]) -> None:
    if not above_chance(dense["score"], dense["chance"], dense["stderr"]):
        logger.warning(
            "%s: DENSE AT CHANCE: %s %.3f +- %.3f against %.3f for a constant answer; drops from it mean nothing",
            folder, dense["metric"], dense["score"], dense["stderr"], dense["chance"],
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
