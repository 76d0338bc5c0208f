"""The runs of recover.py: what tells one from another, and what is checked before data and a model are loaded."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from harness import records, training
from harness.cells import Cell, check_folders, pending_runs
from harness.content import model_content
from harness.options import check_data_dir
from llm_tasks import option_values, plan
from llm_tasks.compressed_model import (
    Calibration,
    Compression,
    ModelSource,
    check_shapes,
    max_length,
    skeleton,
)
from llm_tasks.compressions import is_calibrated
from llm_tasks.methods import METHOD_OPTIONS, METHODS, STRENGTHS
from llm_tasks.recovery.options import CONTROL, MEASUREMENTS, Asked
from llm_tasks.settings import perplexity
from pruning import calibration

logger = logging.getLogger(__name__)

ARITHMETIC = 1  # raised when the same options train to other numbers


@dataclass(frozen=True)
class RecoveryPlan:
    """All that is known before data and a model are loaded.

    Attributes:
        folders: the cell of every run's folder.
        identities: by folder, what tells its run from others.
        recipe: how every cell is trained; each has its own seed.
        held_out: the options of the text that perplexity is measured on.
        model: without weights.
        dtype: of the weights that are compressed, measured and saved.
    """

    asked: Asked
    source: ModelSource
    how: Compression
    recipe: training.Recipe
    calibrated: Calibration
    held_out: perplexity.Values
    folders: dict[Path, Cell]
    identities: dict[Path, dict[str, Any]]
    model: PreTrainedModel
    dtype: torch.dtype

    def pending(self) -> dict[Path, Cell]:
        """The runs that are to be computed."""
        return pending_runs(self.folders, self.asked.given["overwrite"])


def plan_job(asked: Asked, folders: dict[Path, Cell]) -> RecoveryPlan:
    """Check all that can be checked before data and a model are loaded.

    Raises:
        ValueError: says what cannot be done.
    """
    given = asked.given
    check_data_dir(given["data_dir"])
    names = ("weights", "revision", "trust_remote_code", "dtype")
    source = ModelSource(
        given["model_name_or_path"], torch.device("cpu"), **{name: given[name] for name in names}
    )  # fmt: skip
    model = skeleton(source)
    check_shapes(model, folders.values())
    length = max_length(model)
    if given["train_length"] > length:
        raise ValueError(f"--train_length {given['train_length']}: {source.name} takes {length} tokens")
    if not any(cell["transfer"] == CONTROL for cell in asked.cells):
        logger.warning(
            "no control: without --transfer %s, what is training and what is recovery cannot be told apart", CONTROL
        )
    held_out = option_values.values_of(perplexity.SETTING, given, max_length=length)
    calibrated = option_values.calibration_of(given, length)
    how = compression(given)
    dtype = source.dtype_of(model.config)
    content = input_content(asked, source, held_out)
    computed = plan.computation(model, dtype, how.precision, ("perplexity",))
    identities = {folder: identity(given, cell, content, computed, how) for folder, cell in folders.items()}
    check_folders(identities, given["overwrite"])
    return RecoveryPlan(
        asked, source, how, recipe(given), calibrated, held_out, folders, identities, model, dtype
    )  # fmt: skip


def compression(given: option_values.Given) -> Compression:
    """How compressions are carried out."""
    precision = training.precision_used(given["precision"])
    tokens = option_values.tokens_per_batch(given["tokens_per_batch"], torch.device("cpu"))
    return Compression(
        option_values.method_options(given), given["magnitude_scope"], given["true_sequential"], None, {}, tokens,
        precision,
    )  # fmt: skip


def recipe(given: option_values.Given) -> training.Recipe:
    return training.Recipe(
        learning_rate=given["learning_rate"],
        batch_size=given["per_device_train_batch_size"],
        num_epochs=1,
        seed=given["seed"][0],
        max_steps=given["max_train_steps"],
        weight_decay=given["weight_decay"],
        accumulation_steps=given["gradient_accumulation_steps"],
        scheduler=given["lr_scheduler_type"],
        warmup_steps=given["num_warmup_steps"],
        checkpointing_steps=given["checkpointing_steps"],
    )


def eval_steps(given: option_values.Given) -> int:
    """After how many steps perplexity is measured, again and again."""
    return given["eval_steps"] or math.ceil(given["max_train_steps"] / MEASUREMENTS)


def input_content(asked: Asked, source: ModelSource, held_out: perplexity.Values) -> dict[str, str]:
    """What the model and the texts are by their content: hashes of files, commits of the hub."""
    given = asked.given
    texts = {"train_text": given["train_text"], "calibration": given["calibration"]}
    found = model_content(source.name, source.revision, source.weights, source.trust_remote_code)
    for name, text in texts.items():
        found |= calibration.source_content(name, text, data_dir=given["data_dir"])
    return found | perplexity.SETTING.content(held_out)


def identity(
    given: option_values.Given, cell: Cell, content: Mapping[str, str], computed: plan.Computation, how: Compression
) -> dict[str, Any]:
    """What tells a run from another: every option that changes what is computed here, with the cell's values."""
    numbers = {
        "dtype_used": computed.dtype, "precision_used": how.precision, "engine_arithmetic": computed.engine_arithmetic,
        "method_arithmetic": plan.method_arithmetic(how.options, cell, computed), "training_arithmetic": ARITHMETIC,
    }  # fmt: skip
    return {**_recorded(given, cell, content), **numbers}


def options_of(given: option_values.Given, cell: Cell) -> dict[str, Any]:
    """The entries of a run's identity that its options alone determine; None for an option that is not recorded."""
    return {**dict.fromkeys(given), **_recorded(given, cell, {}), **plan.explicit_precision(given)}


def _recorded(given: option_values.Given, cell: Cell, content: Mapping[str, str]) -> dict[str, Any]:
    """The options and the content that are recorded of a cell, with its values."""
    unused = {*records.RUN_OPTIONS, "data_dir"}
    method = METHODS.get(cell["compression"])
    unused |= set(METHOD_OPTIONS) - set(method.options if method else ())
    if not is_calibrated(cell):
        unused.add("true_sequential")
    if cell["compression"] != "magnitude" or cell["sparsity"] is None:
        unused.add("magnitude_scope")
    of_cell = {name: cell[name] for name in ("compression", *STRENGTHS, "transfer", "seed")}
    kept = {name: value for name, value in {**given, **content}.items() if name not in unused}
    return {**kept, **of_cell, "eval_steps": eval_steps(given)}


def print_plan(planned: RecoveryPlan) -> None:
    """What --dry_run says: the runs, what they train on, and what they take of memory and disk."""
    given, pending = planned.asked.given, planned.pending()
    weights = sum(weight.numel() for weight in planned.model.parameters())
    size = planned.dtype.itemsize
    steps, rows = planned.recipe.max_steps, planned.recipe.batch_size * planned.recipe.accumulation_steps
    print(f"{planned.source.name}: {weights / 1e6:.1f} million weights, trained in float32, saved in {planned.dtype}")
    print(f"{len(planned.folders)} runs, of which {len(pending)} are missing: {given['output_dir']}")
    print(f"each: {steps} steps of {rows} windows of {given['train_length']} tokens, "
          f"{steps * rows * given['train_length']:,} tokens")  # fmt: skip
    print(f"memory: at most {weights * (24 + 2 * size) / 1e9:.1f} GB on the device for weights, gradients, AdamW, what "
          f"holds weights and two copies of the model, without activations; {weights * 2 * size / 1e9:.1f} GB of the "
          "host")  # fmt: skip
    print(f"disk: {len(pending)} models, {len(pending) * weights * size / 1e9:.1f} GB; "
          f"a checkpoint takes {weights * 12 / 1e9:.1f} GB")  # fmt: skip
