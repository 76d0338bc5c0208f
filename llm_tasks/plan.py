"""The cells of a command line: which there are, what tells their runs from others, what commands compute them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from harness import records
from harness.cells import Cell
from harness.commands import values
from harness.content import model_content
from harness.models import load_tokenizer
from llm_tasks.checkpoints.checkpoint_files import Checkpoint
from llm_tasks.compressed_model import Compression, ModelSource
from llm_tasks.compressions import (
    compressed_by,
    is_calibrated,
    is_quantized,
    method_of,
    strength_of,
    strength_values,
    strengths,
)
from llm_tasks.engine import ways
from llm_tasks.engine.chat import date_written
from llm_tasks.engine.stop_texts import penalties
from llm_tasks.layer_options import (
    ALL,
    LAYER_OPTIONS,
    OWL_OPTIONS,
    allocation_content,
    layer_coordinates,
    varied_layers,
)
from llm_tasks.levels import Setting
from llm_tasks.methods import CHECKPOINT, DENSE, STRENGTHS, Options
from llm_tasks.option_values import Given, template_values
from llm_tasks.options import Asked, is_obeyed
from llm_tasks.shares import is_owl
from pruning import calibration, layers, walk


def all_cells(given: Given, settings: Iterable[Setting]) -> list[Cell]:
    """The cells of all settings; those of one compressed model stand together, in the order of their first.

    Checkpoints come last, when the dense model is no longer needed.
    """
    cells = [cell for setting in settings for cell in setting_cells(given, setting)]
    models: dict[tuple, int] = {}
    for cell in cells:
        models.setdefault(compressed_by(cell), len(models))
    return sorted(cells, key=lambda cell: (cell["compression"] == CHECKPOINT, models[compressed_by(cell)]))


def setting_cells(given: Given, setting: Setting) -> list[Cell]:
    """Every compression at every strength it takes, for every seed that makes a difference."""
    found = []
    for compression in dict.fromkeys(given["compression"]):
        for strength in strengths(compression, given) or [None]:
            label = strength.label if strength else DENSE
            same = {"setting": setting.name, "compression": compression, "strength": label, **strength_values(strength)}
            for part in layer_coordinates(given, compression, strength):
                cell = {**same, **part}
                seeds = given["seed"] if setting.seeded or is_calibrated(cell) else given["seed"][:1]
                found += [{**cell, "seed": seed} for seed in dict.fromkeys(seeds)]
    return found


def computed_together(asked: Asked, some: list[Cell]) -> list[Cell]:
    """All combinations of the settings, compressions, strengths and seeds of some cells: what one command computes."""
    named = [setting for name, setting in asked.settings.items() if name in values(some, "setting")]
    return all_cells({**asked.given, **varied(some)}, named)


def cell_options(asked: Asked, some: list[Cell]) -> dict[str, Any]:
    """The options, where they are not the default, that run some cells by themselves; none that these do not obey."""
    options = {name: value for name, value in asked.given.items() if value != asked.defaults[name]}
    compressions, settings = values(some, "compression"), values(some, "setting")
    allocations = values(some, "allocation_from")
    for name in list(options):
        is_read = any(name not in asked.unobeyed[setting] for setting in settings)
        if not is_read or not is_obeyed(name, compressions, allocations):
            del options[name]
    if not values(some, "sparsity"):
        options.pop("magnitude_scope", None)
    for name in ("list_cells", "group_by", "dry_run"):
        options.pop(name, None)
    if not any(map(is_quantized, some)):
        options.pop("export", None)
    if not any(map(is_owl, some)):
        for name in OWL_OPTIONS:
            options.pop(name, None)
    setting = {"settings": settings} if "settings" in asked.given else {}
    return {**options, **varied(some), **setting}


def varied(some: list[Cell]) -> dict[str, list]:
    """The values of the options that tell some cells of a setting apart."""
    return {name: values(some, name) for name in ("compression", *STRENGTHS, "seed")} | varied_layers(some)


class Computation(NamedTuple):
    """What a run really computes in: its identity has this besides the options.

    Fields:
        dtype: of the weights.
        precision: of a float32 model's matmuls, "no" or "bf16".
        engine_arithmetic: raised when the engine gives other numbers.
        walk_arithmetic: raised when calibration gives other statistics.
        layers_arithmetic: raised when other weights of the model are compressed.
    """

    dtype: str
    precision: str
    engine_arithmetic: int
    walk_arithmetic: int = 1
    layers_arithmetic: int = 1


def computation(model: PreTrainedModel, dtype: torch.dtype, precision: str, readers: tuple[str, ...]) -> Computation:
    """What a model is computed in.

    Args:
        model: may be without weights.
        dtype: of the weights.
        precision: asked for, of a float32 model's matmuls.
        readers: how the run reads its answers off the model.
    Raises:
        ValueError: answers are generated, and the model's generation config asks for what is not obeyed.
    """
    precision = precision if dtype == torch.float32 else "no"
    engine_arithmetic = ways.arithmetic(model.config, dtype, precision, readers)
    # The first versions obeyed penalties in tasks of lm-evaluation-harness alone.
    if {"answer", "generate"} & set(readers) and penalties(model.generation_config) and "lm_eval" not in readers:
        engine_arithmetic += 1
    return Computation(
        str(dtype), precision, engine_arithmetic, walk.arithmetic(model.config), layers.arithmetic(model)
    )


def method_arithmetic(options: Options, cell: Cell, computed: Computation) -> int:
    """Number of the arithmetic of the cell's compression, of its weights and of what it is calibrated on."""
    method = method_of(cell["compression"])
    if method is None:
        return 1
    number = method.arithmetic(options)
    number = max(number, computed.walk_arithmetic) if is_calibrated(cell) else number
    return number + computed.layers_arithmetic - 1  # whatever the others are, older runs are told apart


def identity(
    asked: Asked, setting: Setting, cell: Cell, content: Mapping[str, Any], computed: Computation, options: Options
) -> dict[str, Any]:
    """What tells a run from another: every option that changes what is computed here, with the cell's values.

    Args:
        content: hashes and commits of the model and of all data; a name among the options takes that option's place.
        options: of the methods.
    """
    numbers = {
        "dtype_used": computed.dtype, "precision_used": computed.precision,
        "engine_arithmetic": computed.engine_arithmetic,
        "method_arithmetic": method_arithmetic(options, cell, computed),
    }  # fmt: skip
    return {**_recorded(asked, setting, cell, content), **numbers}


def options_of(asked: Asked, cell: Cell) -> dict[str, Any]:
    """The entries of a run's identity that its options alone determine; None for an option that is not recorded."""
    options = {**dict.fromkeys(asked.given), **_recorded(asked, asked.settings[cell["setting"]], cell, {})}
    options.pop("length_normalized", None)  # concerns a run by how the data are read
    return {**options, **explicit_precision(asked.given)}


def explicit_precision(given: Given) -> dict[str, str]:
    """The entries of a run's identity on what it computes in, as far as no `auto` leaves them to model and device."""
    dtype, precision = given["dtype"], given["precision"]
    known = {} if dtype == "auto" else {"dtype_used": f"torch.{dtype}"}
    return known | ({"precision_used": precision} if dtype == "float32" and precision != "auto" else {})


def _recorded(asked: Asked, setting: Setting, cell: Cell, content: Mapping[str, Any]) -> dict[str, Any]:
    """The options and the content that are recorded of a cell, with its values."""
    given = asked.given
    unused = {*records.RUN_OPTIONS, "data_dir", *asked.others[setting.name], *setting.unrecorded}
    allocations = [cell.get("allocation_from")]
    unused |= {name for name in given if not is_obeyed(name, [cell["compression"]], allocations)}
    if not is_calibrated(cell):
        unused |= set(records.CALIBRATION_CONTENT)
    if cell["compression"] != "magnitude" or cell["sparsity"] is None:
        unused.add("magnitude_scope")
    if cell["compression"] == DENSE:
        unused.add("kl")
    if not given["export"] or not is_quantized(cell):
        unused.add("export")
    if not is_owl(cell):
        unused |= set(OWL_OPTIONS)
    recorded = records.recorded_options(given, asked.defaults)
    of_cell = {name: cell[name] for name in ("compression", *STRENGTHS, "seed")}
    of_cell |= {name: cell.get(name) for name in LAYER_OPTIONS}
    of_cell["allocation"] = allocation_content(cell.get("allocation_from"))
    kept = {name: value for name, value in {**recorded, **content}.items() if name not in unused}
    return {**kept, **of_cell}


def identify(
    asked: Asked, folders: Mapping[Path, Cell], values: Mapping[int | str, Any], model: PreTrainedModel,
    source: ModelSource, how: Compression, checkpoints: Mapping[str, Checkpoint],
) -> dict[Path, dict[str, Any]]:  # fmt: skip
    """By folder, what tells its run from others.

    Args:
        values: of every setting.
        model: may be without weights.
        checkpoints: by the name that the command line gives them.
    """
    hashes = input_hashes(source, asked.given["calibration"], asked.given["data_dir"], folders.values())
    hashes |= chat_content(source, template_values(asked.given))
    content, computed = {}, {}
    for name, setting in asked.settings.items():
        content[name] = setting.content(values[name])
        readers = setting.readers(values[name])
        if "length_normalized" in asked.given:
            content[name]["length_normalized"] = asked.given["length_normalized"] and "cloze" in readers
        content[name] |= hashes
        dtype = source.dtype_of(model.config)
        computed[name] = computation(model, dtype, how.precision, readers)

    def of_cell(cell: Cell) -> dict[str, Any]:
        name = cell["setting"]
        own = checkpoints[cell[CHECKPOINT]].content if cell[CHECKPOINT] else {}
        return identity(asked, asked.settings[name], cell, content[name] | own, computed[name], how.options)

    return {folder: of_cell(cell) for folder, cell in folders.items()}


def input_hashes(source: ModelSource, text: str, data_dir: Path | None, cells: Iterable[Cell]) -> dict[str, str]:
    """What the model and the calibration text are by their content: hashes of files, commits of the hub.

    Args:
        text: calibrated on, where a cell is calibrated.
    """
    model = model_content(source.name, source.revision, source.weights, source.trust_remote_code)
    if not any(map(is_calibrated, cells)):
        return model
    return model | calibration.source_content("calibration", text, data_dir=data_dir)


def chat_content(source: ModelSource, values: Mapping[str, Any] | None) -> dict[str, str]:
    """The date that prompts in a chat template have, where it writes one; in earlier versions it was that of the run.

    Args:
        values: that the template is handed; None for bare prompts.
    """
    if values is None:
        return {}
    day = date_written(load_tokenizer(source.name, source.trust_remote_code, source.revision), values)
    return {"chat_date": day} if day else {}


def describe(cell: Cell, run_identity: dict[str, Any], model: str, magnitude_scope: str) -> dict[str, Any]:
    """The run's coordinates as results and figures name them.

    Args:
        model: as the command line names it.
        magnitude_scope: one of pruning.magnitude.SCOPES; null in results of what it does not concern.
    """
    strength = strength_of(cell)
    ranked = cell["compression"] == "magnitude" and cell["sparsity"] is not None
    shared = records.part_of(run_identity, "compression_recipe") if is_calibrated(cell) else None
    # Of a checkpoint the strength is a fact of its files (checkpoint_models.facts_of), and each is a method of its own.
    checkpoint = cell["compression"] == CHECKPOINT
    return {
        "setting": cell["setting"],
        "model": model,
        "compression": f"{CHECKPOINT}:{cell['strength']}" if checkpoint else cell["compression"],
        "strength_kind": strength.kind.replace("nm_ratio", "nm") if strength else None,
        "strength": strength.value if strength else None,
        "requested_sparsity": None if checkpoint else strength.requested_sparsity if strength else 0.0,
        "magnitude_scope": magnitude_scope if ranked else None,
        "layers": None if cell.get("layers", ALL) == ALL else cell["layers"],
        "allocation": cell["allocation"] if cell.get("allocation_from") else None,
        "seed": cell["seed"],
        "recipe": records.recipe(run_identity, records.COORDINATES["compressed"]),
        "compression_recipe": records.recipe(shared) if shared else None,
        "method_recipe": records.method_recipe(run_identity),
        "precision": run_identity["precision_used"],
        "dtype": run_identity["dtype_used"],
    }
