"""The frame of all fine-tuning scripts: their cells, from a pretrained model to written runs, each computed once.

A script gives a Problem; loading the model, masks, transfers, training, resuming and what every run records stand here.
"""

import argparse
import functools
import gc
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin, parse_flag_from_env
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from analysis.estimators import above_chance
from GLUE_tasks import arguments, finetune, interruption, labels, resuming
from GLUE_tasks.problem import Inputs, Outcome, Problem
from harness import models, records, run_folder
from harness.cells import Cell, check_folders, output_folders, run_cells, start_logging
from harness.commands import print_commands
from harness.content import files_content, model_content
from harness.data import Source
from harness.device import best_precision, device_name, peak_memory, reset_peak_memory
from harness.model_files import check_checkpoint_files
from harness.models import load_config, longest_input, meta_model, quiet_libraries, refuse_unknown_ids, save_model
from pruning.layers import prunable_weights
from pruning.magnitude import magnitude_masks
from pruning.masks import zero_fraction
from pruning.nm import nm_mask, parse_nm

logger = logging.getLogger(__name__)

# Variables that say how accelerate and torch compute, and those of accelerate's other ways to train.
NUMBER_VARIABLES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "TORCH_ALLOW_TF32", "NVIDIA_TF32", "XLA_USE_BF16",
                    "XLA_DOWNCAST_BF16")  # fmt: skip
OTHER_TRAININGS = tuple(
    f"ACCELERATE_USE_{name}" for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER")
)


class Frame(NamedTuple):
    """What all cells of one call share."""

    problem: Problem
    args: argparse.Namespace
    accelerator: Accelerator


class Material(NamedTuple):
    """What one cell works with.

    Fields:
        task, inputs: as Problem makes them.
        pretrained: the model as its checkpoint has it.
        keep_masks: by name of the weight, True where it is kept.
        order: which of the model's outputs stands for each class; None for their own order.
    """

    task: Any
    inputs: Inputs
    pretrained: finetune.Pretrained
    keep_masks: dict[str, Tensor]
    order: list[int] | None


def main(description: str, problem: Problem, argv: list[str] | None = None) -> int:
    """Compute every cell of a script that is not complete yet; returns the exit code."""
    parser = arguments.make_parser(description, problem)
    args = arguments.parse(parser, problem, sys.argv[1:] if argv is None else argv)
    start_logging()
    quiet_libraries()
    try:
        folders = output_folders(args.output_dir, arguments.cells(args, problem))
        if args.list_cells or args.group_by:
            print_commands(
                args.list_cells, folders, args.output_dir, functools.partial(arguments.cell_options, args, parser),
                args.group_by, functools.partial(arguments.combinations, args, problem),
            )  # fmt: skip
            return 0
        check_environment()
        check_checkpoint_files(args.model_name_or_path, args.weights, args.trust_remote_code, args.revision)
        tasks = Tasks(problem, args)
        check_model(args, problem.auto_class, tasks.most_labels)
        check_room_for_text(args)
        orders = label_orders(args, problem, tasks)
        hashes = {key: input_hashes(args, data) for key, data in tasks.data.items()}
        for key, task in tasks.by_key.items():
            hashes[key] |= decisions(task, orders[key])
        precision, defaults = precision_of(args), {name: parser.get_default(name) for name in vars(args)}
        identities = {
            folder: arguments.identity(args, cell, hashes[tasks.key(cell)], precision, defaults)
            for folder, cell in folders.items()
        }
        check_folders(identities, args.overwrite)
        load_tokenizer(args)
    except ValueError as error:
        parser.error(str(error))

    accelerator = start_accelerator(args)
    if args.resume_from_checkpoint:
        ((folder, identity),) = identities.items()
        try:
            if args.overwrite or not run_folder.is_complete(folder):
                resuming.check_named(
                    args.resume_from_checkpoint, resuming.origin(identity, accelerator.mixed_precision)
                )
        except ValueError as error:
            parser.error(str(error))
    # accelerate collects garbage after every cell; what the imports made is none, and walking it takes half a second
    gc.freeze()
    frame = Frame(problem, args, accelerator)
    material = shared_material(problem, args, tasks, orders)

    def compute(folder: Path) -> None:
        cell = folders[folder]
        shared = material(cell)
        with interruption.announced(accelerator) as came:
            ask = functools.partial(interruption.agreed_at, accelerator, came)
            run(frame, folder, cell, identities[folder], shared, ask)
            if interruption.agreed(accelerator, came):
                raise SystemExit(interruption.EXIT_CODE)

    failed = run_cells(
        identities, compute, args.overwrite, finetune.share_from_main(accelerator), accelerator.is_main_process
    )
    if accelerator.is_main_process:
        print(f"{len(folders) - failed} of {len(folders)} runs are complete: {args.output_dir}")
    accelerator.end_training()
    return 1 if failed else 0


class Tasks:
    """The tasks of a call, loaded and checked, and which of them a cell is of."""

    def __init__(self, problem: Problem, args: argparse.Namespace) -> None:
        coordinates = problem.tasks(args)
        self.names = list(coordinates[0])
        self.by_key = {self.key(task): problem.load(task, args) for task in coordinates}
        self.data = {
            self.key(task): self.by_key[self.key(task)].files or problem.hub_data(task, args) for task in coordinates
        }
        self.num_labels = {key: problem.num_labels(task) for key, task in self.by_key.items()}

    def key(self, cell: Cell) -> tuple:
        return tuple(cell[name] for name in self.names)

    @property
    def most_labels(self) -> int | None:
        return max(self.num_labels.values(), key=lambda count: count or 0)

    @property
    def fewest_labels(self) -> int | None:
        return min(self.num_labels.values(), key=lambda count: count or 0)


def label_orders(args: argparse.Namespace, problem: Problem, tasks: Tasks) -> dict[tuple, list[int] | None]:
    """For each task, which of the model's outputs stands for each of its classes (labels.head_order)."""
    config = load_config(args.model_name_or_path, args.trust_remote_code, args.revision)
    orders = {}
    for key, task in tasks.by_key.items():
        names = problem.label_names(task)
        orders[key] = labels.head_order(config, names) if names else None
        own = labels.config_names(config) if names else None
        if own and orders[key] is None:
            logger.warning(
                "%s: the model's config names its outputs %s, which are not the data's classes (%s): the data's order "
                "counts", task.name, ", ".join(own), ", ".join(names),
            )  # fmt: skip
    return orders


def decisions(task: Any, order: list[int] | None) -> dict[str, Any]:
    """What a run's identity says of decisions that earlier versions of this project took otherwise."""
    found = dict(getattr(task, "decisions", {}))
    if order is not None and order != sorted(order):
        found["label_order"] = order
    return found


def shared_material(
    problem: Problem, args: argparse.Namespace, tasks: Tasks, orders: dict[tuple, list[int] | None]
) -> Callable[[Cell], Material]:
    """A function that gives a cell its material; what cells share is made when the first one that needs it asks."""

    @functools.cache
    def inputs(key: tuple) -> Inputs:
        return problem.tokenize(tasks.by_key[key], load_tokenizer(args), args)

    @functools.cache
    def pretrained(num_labels: int | None) -> finetune.Pretrained:
        options = args.trust_remote_code, args.ignore_mismatched_sizes, problem.auto_class, args.weights, args.revision
        found = finetune.load_pretrained(args.model_name_or_path, num_labels, *options)
        refuse_unknown_ids(found.model, load_tokenizer(args))
        pad_as_tokenizer(found.model, load_tokenizer(args))
        return found

    @functools.cache
    def masks(num_labels: int | None, seed: int | None) -> dict[str, dict[str, Tensor]]:
        model = pretrained(num_labels)
        return select_masks(model.model if seed is None else model.copy(seed), model.new_parameters, args)

    def material(cell: Cell) -> Material:
        key = tasks.key(cell)
        num_labels, keep_masks = tasks.num_labels[key], {}
        if cell["transfer"] != "dense_transfer":
            # without the untrained head the ranking is the same for all heads and seeds
            which = (num_labels, cell["seed"]) if args.prune_new_head else (tasks.fewest_labels, None)
            keep_masks = masks(*which)[cell["strength"]]
        return Material(tasks.by_key[key], inputs(key), pretrained(num_labels), keep_masks, orders[key])

    return material


def check_room_for_text(args: argparse.Namespace) -> None:
    """Raises ValueError where --max_length holds nothing but the tokens that the tokenizer puts around texts."""
    special = load_tokenizer(args).num_special_tokens_to_add(pair=True)
    if args.max_length < special + 2:
        raise ValueError(
            f"--max_length {args.max_length}: {args.model_name_or_path} puts {special} tokens around a pair of texts; "
            f"allowed: {special + 2} or more"
        )


def load_tokenizer(args: argparse.Namespace) -> PreTrainedTokenizerBase:
    """The model's tokenizer, which pads: by its end-of-text token where it has none for that, as most decoders'."""
    tokenizer = models.load_tokenizer(args.model_name_or_path, args.trust_remote_code, args.revision)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            name = args.model_name_or_path
            raise ValueError(f"--model_name_or_path {name}: its tokenizer has neither a pad_token nor an eos_token")
        tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"
    return tokenizer


def pad_as_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a decoder know what rows are padded with: its head for classification reads the last token before that."""
    config, kind = model.config.get_text_config(), type(model.config)
    decoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    if config.pad_token_id is None or (decoder and not model.config.is_encoder_decoder):
        if config.pad_token_id != tokenizer.pad_token_id:
            logger.info("rows are padded with %r, for the model too", tokenizer.pad_token)
        config.pad_token_id = tokenizer.pad_token_id


def check_model(args: argparse.Namespace, auto_class: type, num_labels: int | None) -> None:
    """Refuse, from the config alone, a length the model cannot take and groups that do not divide a layer's inputs."""
    sizes = {} if num_labels is None else {"problem_type": None, "num_labels": num_labels}
    model = meta_model(args.model_name_or_path, auto_class, args.trust_remote_code, revision=args.revision, **sizes)
    longest = longest_input(model)
    if longest is not None and args.max_length > longest:
        raise ValueError(f"--max_length {args.max_length}: {args.model_name_or_path} takes at most {longest} tokens")
    weights = prunable_weights(model.base_model, include_embeddings=not args.noembed)
    for ratio in args.nm_ratio:
        _, m_group = parse_nm(ratio)
        for name, weight in weights.items():
            if weight.shape[1] % m_group:
                raise ValueError(f"--nm_ratio {ratio}: {name} has {weight.shape[1]} inputs, no multiple of {m_group}")


def input_hashes(args: argparse.Namespace, data: Sequence[Path | Source]) -> dict[str, str]:
    """What the model and a task's data are by their content: hashes of files, commits of the hub."""
    revision, weights = args.revision, args.weights
    model = model_content(args.model_name_or_path, revision, weights, args.trust_remote_code)
    return model | files_content(data)


def number_variables() -> dict[str, str]:
    """The environment's variables that accelerate and torch read their arithmetic from, as the run found them."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(NUMBER_VARIABLES)}


def check_environment() -> None:
    """Refuse variables with which accelerate would train in another way than this project's loop.

    Raises:
        ValueError: names the variable and its value.
    """
    for name in OTHER_TRAININGS:
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t"):
            raise ValueError(
                f"{name}={os.environ[name]} is set, as by accelerate launch or its config: models are trained whole, "
                "by one process per device; unset it"
            )


def start_accelerator(args: argparse.Namespace) -> Accelerator:
    """accelerate's state for all cells, in the precision asked for, whatever the environment's variables say."""
    # accelerate joins the processes of a CPU job only when it is told that there is no accelerator
    state = PartialState(cpu=computes_on_cpu())
    precision = precision_of(args, state.device.type)
    used = {"MIXED_PRECISION": precision, "GRADIENT_ACCUMULATION_STEPS": "1", "DYNAMO_BACKEND": "no"}
    for name, value in used.items():
        if (said := os.environ.get(f"ACCELERATE_{name}", value)).lower() != value:
            logger.warning("ACCELERATE_%s=%s is passed over: %s counts", name, said, value)
    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # ours are counted in finetune.train
        dynamo_plugin=TorchDynamoPlugin(backend="NO"),
        log_with=args.report_to if args.with_tracking else None,
    )


def computes_on_cpu() -> bool:
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def precision_of(args: argparse.Namespace, device_type: str | None = None) -> str:
    """The precision that runs are trained in: "no" (float32), "bf16" or "fp16"."""
    if args.mixed_precision != "auto":
        return args.mixed_precision
    return best_precision(device_type or ("cpu" if computes_on_cpu() else torch.accelerator.current_accelerator().type))


def select_masks(
    model: torch.nn.Module, new_parameters: Collection[str], args: argparse.Namespace
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
    frame: Frame, folder: Path, cell: Cell, identity: dict[str, Any], material: Material,
    interrupted: Callable[[int], bool],
) -> None:  # fmt: skip
    """One cell, from the pretrained model to all_results.json; `interrupted` is what finetune.train asks."""
    started = time.monotonic()
    problem, args, accelerator = frame
    task, inputs, pretrained, keep_masks, order = material
    accelerator.free_memory()
    reset_peak_memory(accelerator.device)
    model = pretrained.copy(cell["seed"]).to(accelerator.device)
    inputs = problem.fit(task, inputs, model, order)
    parameters = dict(model.named_parameters())
    optimizer = finetune.make_optimizer(model, args.learning_rate, args.weight_decay)
    finetune.start_transfer(cell["transfer"], optimizer, parameters, keep_masks)
    trained, optimizer = accelerator.prepare(model, optimizer)
    rows = inputs.train.select(problem.choose_rows(inputs, task, cell, args))

    origin = resuming.origin(identity, accelerator.mixed_precision)
    resume_from = begin(folder, identity, accelerator, args.resume_from_checkpoint, origin)
    if args.with_tracking:
        accelerator.init_trackers(str(folder).replace("/", "_"), identity)

    def evaluate(epoch: int) -> Outcome:
        found = problem.score(accelerator, trained, task, inputs, cell, args)
        texts = (f"{key} {value:.4f}" for key, value in found.scores.items())
        logger.info("%s: epoch %d: %s", folder, epoch, ", ".join(texts))
        accelerator.log(found.scores, step=epoch)
        return found

    trace = finetune.train(
        accelerator, trained, optimizer, rows, inputs.collate, arguments.recipe(args, cell["seed"]), folder,
        resume_from, after_epoch=evaluate if args.eval_each_epoch else None, loss=problem.loss,
        interrupted=interrupted, origin=origin, keep=args.resume_from_checkpoint,
    )  # fmt: skip
    if trace["num_steps"] == 0 and pretrained.new_parameters:
        raise ValueError(f"--num_train_epochs 0: {', '.join(sorted(pretrained.new_parameters))} must be trained first")
    outcome = evaluate(math.ceil(trace["num_epochs"]))
    for tracker in accelerator.trackers:
        tracker.finish()
    if not accelerator.is_main_process:
        return
    if args.save_model:
        unwrapped = accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
        save_model(folder / "model", unwrapped, load_tokenizer(args))
    weights = prunable_weights(model, pretrained.new_parameters, not args.noembed, args.prune_new_head)
    result = {
        **describe(cell, identity, args),
        "measured_sparsity": zero_fraction(weights.values()),
        "masked_fraction": zero_fraction(keep_masks.values()) if keep_masks else 0.0,
        "seconds": time.monotonic() - started,
        "peak_memory_bytes": peak_memory(accelerator.device),
        "precision": accelerator.mixed_precision,
        "num_train_examples": len(rows),
        **problem.facts(task),
        **trace,
        "levels": outcome.levels,
        **outcome.scores,
    }
    if cell["transfer"] == "dense_transfer":
        warn_at_chance(folder, outcome.levels)
    run_folder.write_run(folder, result, outcome.items)
    for checkpoint in finetune.checkpoints(folder):
        if not resuming.is_same(checkpoint, args.resume_from_checkpoint):
            shutil.rmtree(checkpoint)


def begin(
    folder: Path, identity: dict[str, Any], accelerator: Accelerator, named: Path | None, origin: dict[str, Any]
) -> Path | None:
    """Record the run's arguments; returns the checkpoint to go on from, one of the same run alone.

    Args:
        named: by --resume_from_checkpoint, and checked.
        origin: what checkpoints of this run say of it.
    """
    if accelerator.is_main_process:
        resuming.drop_others(folder, origin, named)
        device = accelerator.device
        environment = run_folder.describe_environment(
            str(device), device_name=device_name(device), dtype="torch.float32",
            precision=accelerator.mixed_precision, variables=number_variables(),
        )  # fmt: skip
        run_folder.start_run(folder, identity, environment)
    accelerator.wait_for_everyone()
    return named or resuming.newest(folder)


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
        "setting": cell["setting"],
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
        "recipe": records.recipe(identity, records.COORDINATES["fine-tuning"]),
        "compression_recipe": records.recipe(records.part_of(identity, "compression_recipe")) if kind else None,
    }


def warn_at_chance(folder: Path, levels: list[dict[str, Any]]) -> None:
    for dense in levels:
        if not above_chance(*(dense[name] for name in ("score", "chance", "stderr", "num_examples"))):
            logger.warning(
                "%s: DENSE AT CHANCE: %s %.3f +- %.3f at level %s, where chance gives %.3f; drops from "
                "it mean nothing",
                folder, dense["metric"], dense["score"], dense["stderr"], dense["level"], dense["chance"],
            )  # fmt: skip
