"""What all fine-tuning scripts do: read and check tasks, then compute and write every run that is not complete.

A script describes its tasks by a TaskKind. Everything that can be refused is checked before a model is loaded.
"""

import argparse
import dataclasses
import functools
import gc
import logging
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis.estimators import above_chance
from GLUE_tasks import options, pretrained, transfers
from GLUE_tasks.options import Sweep
from GLUE_tasks.pretrained import Pretrained
from GLUE_tasks.transfers import Strength
from harness import models, records, run_folder, training
from harness.cells import Cell, check_folders, pending_runs, run_cells, start_logging
from harness.checkpoints import Checkpoints, origin
from harness.content import files_content
from harness.data import Source
from harness.device import device_name, peak_memory, reset_peak_memory
from pruning.masks import zero_fraction
from pruning.transfers import start_transfer
from pruning.validation import check_removed

logger = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """A task's tokenized rows.

    Fields:
        train: rows with `labels`, `length` (tokens) and the model's inputs, nothing else.
        validation: a data set for each split that is scored, by a name that the script chooses.
        collate: makes a padded batch of rows.
        order: index of the model's output for each class; None where the outputs are in the order of the classes.
    """

    train: Dataset
    validation: dict[str, Dataset]
    collate: Callable[[list[dict]], Mapping[str, Tensor]]
    order: tuple[int, ...] | None = None

    def in_order(self, outputs: np.ndarray) -> np.ndarray:
        """A model's outputs, (rows, outputs), in the order of the task's classes."""
        return outputs if self.order is None else outputs[:, self.order]


class Outcome(NamedTuple):
    """The scores of a trained model.

    Fields:
        scores: by their keys in all_results.json, eval_*.
        items: arrays for items.npz, one value per evaluated item.
        levels: the run's points on its difficulty axis, dicts of run_folder.LEVEL_KEYS.
    """

    scores: dict[str, float]
    items: dict[str, np.ndarray]
    levels: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class LoadedTask:
    """One task, its data read and checked.

    Fields:
        name: name of the task, for messages.
        data: the files or hub data sets that its rows come from.
        tokenize: takes the model's tokenizer; returns all rows that any cell may use, tokenized.
        choose_rows: takes the number of training rows and a cell; returns the indices of the rows to train on.
        score: takes accelerator, trained model, inputs and cell; returns the Outcome. Every process calls it.
        classes: names of the classes, empty for a regression; None where the head's size does not depend on the task.
        order: see Inputs; load_tasks fills it in.
        loss: mean loss of the model over the rows of a batch.
        decisions: entries of the run's identity where earlier versions read the data otherwise.
        facts: further entries of all_results.json.
    """

    name: str
    data: Sequence[Path | Source]
    tokenize: Callable[[PreTrainedTokenizerBase], Inputs]
    choose_rows: Callable[[int, Cell], list[int]]
    score: Callable[[Accelerator, nn.Module, Inputs, Cell], Outcome]
    classes: tuple[str, ...] | None = None
    order: tuple[int, ...] | None = None
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor] = training.model_loss
    decisions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_labels(self) -> int | None:
        """Size of the task's head; None where it does not depend on the task."""
        return None if self.classes is None else len(self.classes) or 1


class TaskKind(NamedTuple):
    """The tasks of a script, and how they are loaded.

    Fields:
        setting: name of the setting in results.
        auto_class: transformers' class with the head, such as AutoModelForSequenceClassification.
        tasks: a dict for each task, in order: `task_name`, and any other option with several values, by its name.
        load: reads and checks one of `tasks`; raises ValueError where it cannot be used.
    """

    setting: int | str
    auto_class: type
    tasks: list[Cell]
    load: Callable[[Cell], LoadedTask]


class Material(NamedTuple):
    """What one cell is computed from.

    Fields:
        keep_masks: by name of the weight, True where it is kept; empty for dense_transfer.
    """

    task: LoadedTask
    inputs: Inputs
    model: Pretrained
    keep_masks: dict[str, Tensor]


def main(parser: argparse.ArgumentParser, args: argparse.Namespace, kind: TaskKind) -> int:
    """Compute every cell that is not complete yet; returns the exit code."""
    start_logging()
    models.quiet_libraries()
    try:
        sweep = options.sweep(args, parser, kind.setting, kind.tasks)
        if args.list_cells or args.group_by:
            options.print_list(args, parser, sweep.cells, kind.tasks)
            return 0
        training.check_environment()
        sweep.model.check_files()
        tasks = load_tasks(sweep, kind)
        check_fit(sweep, kind, list(tasks.values()))
        identities = identities_of(sweep, kind, tasks)
        check_folders(identities, sweep.overwrite)
    except ValueError as error:
        parser.error(str(error))

    accelerator = training.start_accelerator(sweep.mixed_precision, sweep.tracker)
    checkpoints = {
        folder: Checkpoints(folder, origin(identity, accelerator.mixed_precision), sweep.checkpoint)
        for folder, identity in identities.items()
    }
    try:
        for folder in pending_runs(sweep.cells, sweep.overwrite):
            checkpoints[folder].check_named()
    except ValueError as error:
        parser.error(str(error))
    # accelerate collects garbage after every cell; without this it walks the imports' objects, half a second each time
    gc.freeze()
    material = shared_material(sweep, kind, tasks)

    def compute(folder: Path) -> None:
        cell = sweep.cells[folder]
        shared = material(cell)
        with training.signals_remembered(accelerator) as came, training.loss_scale_restored(accelerator):
            interrupted = functools.partial(training.came_to_any, accelerator, came)
            run(sweep, accelerator, cell, identities[folder], checkpoints[folder], shared, interrupted)
            if interrupted():
                raise SystemExit(training.EXIT_CODE)

    share = training.share_from_main(accelerator)
    failed = run_cells(identities, compute, sweep.overwrite, share, accelerator.is_main_process)
    if accelerator.is_main_process:
        print(f"{len(sweep.cells) - failed} of {len(sweep.cells)} runs are complete: {sweep.output_dir}")
    accelerator.end_training()
    return 1 if failed else 0


def task_key(kind: TaskKind, cell: Cell) -> tuple:
    """The key of a cell's task: its values of the options that differ between tasks."""
    return tuple(cell[name] for name in kind.tasks[0])


def load_tasks(sweep: Sweep, kind: TaskKind) -> dict[tuple, LoadedTask]:
    """All tasks of a kind by task_key, each with the order of the model's outputs filled in."""
    loaded = {task_key(kind, task): kind.load(task) for task in kind.tasks}
    return {key: dataclasses.replace(task, order=head_order(sweep, task)) for key, task in loaded.items()}


def check_fit(sweep: Sweep, kind: TaskKind, tasks: Sequence[LoadedTask]) -> None:
    """Refuse, before weights are loaded, a model whose config does not fit --max_length, --nm_ratio or a head.

    Without training the head has to be there.

    Raises:
        ValueError: names the option.
    """
    largest = max((task.num_labels for task in tasks), key=_size)
    pretrained.check_model(sweep.model, kind.auto_class, largest, sweep.max_length, sweep.pruning)
    pretrained.check_room_for_text(sweep.model, sweep.max_length)
    if sweep.recipe.num_epochs == 0 and sweep.recipe.max_steps is None:
        pretrained.check_trained_head(sweep.model, kind.auto_class)


def _size(num_labels: int | None) -> int:
    return num_labels or 0


def head_order(sweep: Sweep, task: LoadedTask) -> tuple[int, ...] | None:
    """Index of the model's output for each class of a task; logs where the model has other names for its outputs."""
    if not task.classes:
        return None
    config = sweep.model.config()
    order = pretrained.head_order(config, task.classes)
    output_names = pretrained.config_names(config)
    if output_names and order is None:
        logger.warning(
            "%s: the model's config names its outputs %s, which are not the data's classes (%s): the data's order "
            "is used", task.name, ", ".join(output_names), ", ".join(task.classes),
        )  # fmt: skip
    return None if order is None else tuple(order)


def identities_of(sweep: Sweep, kind: TaskKind, tasks: Mapping[tuple, LoadedTask]) -> dict[Path, dict[str, Any]]:
    """The identity of every cell's run, by its folder."""
    contents = {key: content_of(sweep, kind, task) for key, task in tasks.items()}
    precision = training.precision_used(sweep.mixed_precision)
    has_nm = any(cell["nm_ratio"] for cell in sweep.cells.values())
    nm_arithmetic = transfers.nm_arithmetic(sweep.model.without_weights(None, kind.auto_class)) if has_nm else 1

    def identity(cell: Cell) -> dict[str, Any]:
        content = contents[task_key(kind, cell)] | {"method_arithmetic": nm_arithmetic if cell["nm_ratio"] else 1}
        return options.identity(sweep.recorded, cell, content, precision)

    return {folder: identity(cell) for folder, cell in sweep.cells.items()}


def content_of(sweep: Sweep, kind: TaskKind, task: LoadedTask) -> dict[str, Any]:
    """Identity entries of a task: model and data by content, its decisions, how its head is drawn and ordered."""
    content = sweep.model.content() | files_content(task.data) | dict(task.decisions)
    content["head_arithmetic"] = pretrained.head_arithmetic(sweep.model.config(), kind.auto_class)
    if task.order is not None and list(task.order) != sorted(task.order):
        content["label_order"] = list(task.order)
    return content


def shared_material(sweep: Sweep, kind: TaskKind, tasks: Mapping[tuple, LoadedTask]) -> Callable[[Cell], Material]:
    """A function that returns a cell's material; what cells share is computed once, when first needed."""
    selected: dict[Hashable, dict[Strength, dict[str, Tensor]]] = {}

    @functools.cache
    def inputs(key: tuple) -> Inputs:
        return tasks[key].tokenize(sweep.model.tokenizer())

    @functools.cache
    def model(num_labels: int | None) -> Pretrained:
        return sweep.model.load(num_labels, kind.auto_class)

    def masks(loaded: Pretrained, seed: int) -> dict[Strength, dict[str, Tensor]]:
        # without --prune_new_head, models that lack the same parameters have the same masks, whatever their head's
        # size and the seed that it is drawn by
        with_head = sweep.pruning.include_new
        key = (loaded, seed) if with_head else loaded.new_parameters
        if key not in selected:
            ranked = loaded.copy(seed) if with_head else loaded.model
            selected[key] = transfers.select_masks(ranked, loaded.new_parameters, sweep.pruning)
        return selected[key]

    def material(cell: Cell) -> Material:
        key = task_key(kind, cell)
        task = tasks[key]
        loaded, pruned = model(task.num_labels), cell["transfer"] != "dense_transfer"
        keep_masks = masks(loaded, cell["seed"])[strength_of(cell)] if pruned else {}
        if keep_masks:
            check_removed(cell["sparsity"], zero_fraction(keep_masks.values()))
        return Material(task, inputs(key), loaded, keep_masks)

    return material


def strength_of(cell: Cell) -> Strength:
    """The strength of a cell."""
    return Strength(cell["sparsity"], cell["nm_ratio"])


def fit_inputs(
    inputs: Inputs, model: PreTrainedModel, classes: Sequence[str] | None = None, order: Sequence[int] | None = None
) -> Inputs:
    """Return inputs that fit a loaded model, and write the classes and the kind of loss into its config.

    Segment ids are dropped if the model has no embedding of them. With `order`, labels become indices of outputs.

    Args:
        classes, order: see LoadedTask.
    """
    if classes is not None:
        pretrained.name_head(model.config, classes, order)
    if order is None and models.has_segments(model):
        return inputs
    pad, dropped = inputs.collate, () if models.has_segments(model) else (models.SEGMENTS,)

    def collate(rows: list[dict[str, Any]]) -> Mapping[str, Tensor]:
        rows = [{name: value for name, value in row.items() if name not in dropped} for row in rows]
        if order is not None:
            rows = [{**row, "labels": int(order[row["labels"]])} for row in rows]
        return pad(rows)

    return inputs._replace(collate=collate, order=None if order is None else tuple(order))


def run(
    sweep: Sweep, accelerator: Accelerator, cell: Cell, identity: dict[str, Any], checkpoints: Checkpoints,
    material: Material, interrupted: Callable[[int], bool],
) -> None:  # fmt: skip
    """Train and score one cell, and write its run.

    Args:
        interrupted: see training.train.
    """
    started, folder, task = time.monotonic(), checkpoints.folder, material.task
    accelerator.free_memory()
    reset_peak_memory([accelerator.device])
    model = material.model.copy(cell["seed"]).to(accelerator.device)
    inputs = fit_inputs(material.inputs, model, task.classes, task.order)
    recipe = dataclasses.replace(sweep.recipe, seed=cell["seed"])
    optimizer = training.make_optimizer(model, recipe.learning_rate, recipe.weight_decay)
    start_transfer(cell["transfer"], optimizer, dict(model.named_parameters()), material.keep_masks)
    trained, optimizer = accelerator.prepare(model, optimizer)
    rows = inputs.train.select(task.choose_rows(len(inputs.train), cell))
    begin(accelerator, identity, checkpoints)
    if sweep.tracker:
        accelerator.init_trackers(str(folder).replace("/", "_"), identity)

    def evaluate(epoch: int) -> Outcome:
        outcome = task.score(accelerator, trained, inputs, cell)
        texts = (f"{key} {value:.4f}" for key, value in outcome.scores.items())
        logger.info("%s: epoch %d: %s", folder, epoch, ", ".join(texts))
        accelerator.log(outcome.scores, step=epoch)
        return outcome

    trace = training.train(
        accelerator, trained, optimizer, rows, inputs.collate, recipe, checkpoints, task.loss,
        evaluate if sweep.eval_each_epoch else None, interrupted,
    )  # fmt: skip
    if trace["num_steps"] == 0 and (new := material.model.new_parameters):
        raise ValueError(f"--num_train_epochs 0: {', '.join(sorted(new))} must be trained first")
    outcome = evaluate(math.ceil(trace["num_epochs"]))
    for tracker in accelerator.trackers:
        tracker.finish()
    if not accelerator.is_main_process:
        return
    if sweep.save_model:
        unwrapped = accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
        models.save_model(folder / "model", unwrapped, sweep.model.tokenizer())
    measured = {
        **measured_sparsity(sweep, model, material),
        "seconds": time.monotonic() - started,
        "peak_memory_bytes": peak_memory([accelerator.device]),
        "precision": accelerator.mixed_precision,
        "num_train_examples": len(rows),
        **task.facts,
        **trace,
    }
    if cell["transfer"] == "dense_transfer":
        warn_at_chance(folder, outcome.levels)
    result = {**describe(sweep, cell, identity), **measured, "levels": outcome.levels, **outcome.scores}
    run_folder.write_run(folder, result, outcome.items)
    checkpoints.delete()


def begin(accelerator: Accelerator, identity: dict[str, Any], checkpoints: Checkpoints) -> None:
    """Write args.json, and delete checkpoints of another run in the folder."""
    if accelerator.is_main_process:
        checkpoints.delete_others()
        device = accelerator.device
        environment = run_folder.describe_environment(
            str(device), device_name=device_name(device), dtype="torch.float32",
            precision=accelerator.mixed_precision, variables=training.number_variables(),
        )  # fmt: skip
        run_folder.start_run(checkpoints.folder, identity, environment)
    accelerator.wait_for_everyone()


def measured_sparsity(sweep: Sweep, model: PreTrainedModel, material: Material) -> dict[str, float]:
    """Fractions of the prunable weights that are zero after training, and that the masks prune."""
    weights = sweep.pruning.weights(model, material.model.new_parameters)
    masks = material.keep_masks.values()
    return {
        "measured_sparsity": zero_fraction(weights.values()),
        "masked_fraction": zero_fraction(masks) if masks else 0.0,
    }


def describe(sweep: Sweep, cell: Cell, identity: dict[str, Any]) -> dict[str, Any]:
    """The run's coordinates in all_results.json."""
    strength = strength_of(cell)
    pruned = strength != Strength()
    return {
        "setting": cell["setting"],
        "model": sweep.model.name,
        "task": cell["task_name"],
        "transfer": cell["transfer"],
        "data_fraction": cell["validation_split_percentage"] / 100,
        "compression": cell["compression"],
        **strength.facts(sweep.pruning.scope),
        "seed": cell["seed"],
        "method": cell["method"],
        "recipe": records.recipe(identity, records.COORDINATES["fine-tuning"]),
        "compression_recipe": records.recipe(records.part_of(identity, "compression_recipe")) if pruned else None,
        "method_recipe": records.method_recipe(identity),
    }


def warn_at_chance(folder: Path, levels: Sequence[Mapping[str, Any]]) -> None:
    """Log every level of a dense run whose score is not above chance."""
    for dense in levels:
        if not above_chance(*(dense[name] for name in ("score", "chance", "stderr", "num_examples"))):
            logger.warning(
                "%s: DENSE AT CHANCE: %s %.3f +- %.3f at level %s, where chance gives %.3f; drops from "
                "it mean nothing",
                folder, dense["metric"], dense["score"], dense["stderr"], dense["level"], dense["chance"],
            )  # fmt: skip
