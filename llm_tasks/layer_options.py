"""Options that say which layers are compressed and how sparsity is spread over them, and the cells that they make."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.cells import Cell
from harness.options import filled
from llm_tasks.methods import CHECKPOINT, DENSE, METHODS, Strength
from llm_tasks.shares import Owl
from pruning.allocation import OWL, OWL_OUTLIERS, OWL_RANGE, UNIFORM, check_range, read_allocation
from pruning.layer_choice import layers_label

ALL = "all"  # the {layers} of a cell that compresses all of them
LAYER_OPTIONS = ("only_layers", "skip_layers")
OWL_OPTIONS = ("owl_outliers", "owl_range")
# Stems of files, in lower case, that figures could not tell from another value of --allocation, or from layers.
TAKEN = re.compile(rf"{UNIFORM}|{OWL}([ _].*)?|layers[ _].*|.*,.*", re.DOTALL)

Given = Mapping[str, Any]


def allocation(text: str) -> str:
    """A value of --allocation: uniform, owl, or the path of a JSON file, which is read and checked here."""
    if text not in (UNIFORM, OWL):
        path = Path(filled(text))
        read_allocation(path)
        if TAKEN.fullmatch(path.stem.lower()):
            raise ValueError(
                f"--allocation {path}: results call a file by its stem, and {path.stem!r} could be taken for another "
                f"value or for layers; allowed: a stem without commas other than {UNIFORM}, {OWL}, {OWL}_* and layers_*"
            )
    return text


def owl_of(given: Given) -> Owl:
    """OWL's options."""
    return Owl(given["owl_outliers"], given["owl_range"])


def allocation_files(given: Given) -> dict[str, dict[str, float]]:
    """By value of --allocation, the sparsities of each JSON file."""
    return {path: read_allocation(Path(path)) for path in given["allocation"] if path not in (UNIFORM, OWL)}


def allocating() -> list[str]:
    """The methods whose sparsity can be allocated."""
    return [name for name, method in METHODS.items() if "sparsity" in method.strengths]


def check_layers(given: Given, typed: Sequence[str]) -> None:
    """Refuse what cannot be allocated, or has no layers to choose.

    Args:
        typed: names of the options that the command line holds.
    Raises:
        ValueError: names the options.
    """
    others = [value for value in given["allocation"] if value != UNIFORM]
    for option in OWL_OPTIONS:
        if option in typed and OWL not in others:
            raise ValueError(f"--{option} goes with --allocation owl; asked for is {' '.join(given['allocation'])}")
    if others:
        for kind in ("nm_ratio", "bits", "rank"):
            if given[kind]:
                raise ValueError(
                    f"--allocation {others[0]} spreads --sparsity over the weights; --{kind} is the same for each"
                )
        if given["magnitude_scope"] == "global" and "magnitude" in given["compression"]:
            raise ValueError(
                f"--allocation {others[0]}: --magnitude_scope global spreads the sparsity itself; allowed: layer"
            )
    if OWL in others:
        for sparsity in given["sparsity"]:
            check_range(sparsity, given["owl_range"])
    if given["export"] and (given["only_layers"] or given["skip_layers"]):
        raise ValueError(f"--export {given['export']} packs all weights: no --only_layers, --skip_layers")


def layer_coordinates(given: Given, compression: str, strength: Strength | None) -> Iterator[dict[str, Any]]:
    """What of the model the cells of one compression and strength compress, and how it is allocated.

    Yields:
        only_layers, skip_layers: values of these options or None; layers: their label; allocation: its label;
        allocation_from: the value of --allocation, None where that is uniform or does not concern the cell.
    """
    choices: list[tuple[str | None, str | None]] = [(None, None)]
    if compression not in (DENSE, CHECKPOINT):
        options = (list(dict.fromkeys(given.get(name) or [None])) for name in LAYER_OPTIONS)
        choices = list(itertools.product(*options))
    allocations = given.get("allocation") or [UNIFORM]
    if strength is None or strength.kind != "sparsity" or compression not in allocating():
        allocations = [UNIFORM]
    for (only, skip), value in itertools.product(choices, dict.fromkeys(allocations)):
        yield {
            "only_layers": only,
            "skip_layers": skip,
            "layers": layers_label(only, skip) or ALL,
            "allocation": allocation_label(value, given),
            "allocation_from": None if value == UNIFORM else value,
        }


def allocation_label(value: str, given: Given) -> str:
    """An allocation as folders and figures name it: uniform, owl, owl_M3_range0.1, or the file's name."""
    if value != OWL:
        return value if value == UNIFORM else Path(value).stem
    changed = (("M", "owl_outliers", OWL_OUTLIERS), ("range", "owl_range", OWL_RANGE))
    more = [f"{word}{given[name]:g}" for word, name, default in changed if given.get(name, default) != default]
    return "_".join([OWL, *more])


def allocation_content(value: str | None) -> str | None:
    """An allocation as a run's identity has it: a file by its content, whatever its path and the order of its keys."""
    if value in (None, OWL):
        return value
    content = json.dumps(read_allocation(Path(value)), sort_keys=True)
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def varied_layers(cells: Sequence[Cell]) -> dict[str, list]:
    """The values of these options that tell some cells apart."""
    names = {"only_layers": "only_layers", "skip_layers": "skip_layers", "allocation": "allocation_from"}
    found = {option: list(dict.fromkeys(cell[name] for cell in cells)) for option, name in names.items()}
    found["allocation"] = [value or UNIFORM for value in found["allocation"]]
    # The dense model, or a method that is not allocated, stands beside any value and needs none.
    told = {option: [value for value in values if value is not None] for option, values in found.items()}
    if told["allocation"] == [UNIFORM]:
        told["allocation"] = []
    elif not any(cell["allocation_from"] is None and cell["compression"] in allocating() for cell in cells):
        told["allocation"] = [value for value in told["allocation"] if value != UNIFORM]
    return told
