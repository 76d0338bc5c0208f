"""Whether a dense model was quantized before: what it lost then is in every comparison with it."""

import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor

from harness.model_files import WEIGHT_FILES, weight_files

# GGUF's types with 4 bits and less store a scale for at most so many weights in a row.
GROUP, LEVELS = 32, 16
MATRICES, ROWS = 8, 64  # that are looked at, and of each
FEWEST_WEIGHTS, PER_VALUE = 8, 1.5  # that are not zero, of a group and for each value: pruning leaves all different
OF_MATRICES, OF_GROUPS = 0.5, 0.95
OWN_CARD = re.compile(r"^\|\s*(compression|bits)\s*\|\s*([^|]+?)\s*\|\s*$", re.MULTILINE)


@functools.cache
def once_quantized(name: str, weights: str, revision: str | None) -> str | None:
    """How a dense model was quantized before its weights were written out dense again, as its files tell.

    Args:
        name: folder, or hub id whose files are in the hub's cache.
        weights: "safetensors" or "bin"; pickles are not looked into.
        revision: of a hub id.
    Returns:
        "to 4 bits (…)" with the evidence; None where nothing tells so, which is no proof that it was not.
    """
    folder = Path(name)
    if folder.is_dir():
        if told := _own_card(folder / "README.md"):
            return told
        files = weight_files(name, weights)
    else:
        try:
            found = try_to_load_from_cache(name, WEIGHT_FILES[weights], revision=revision or "main")
        except ValueError:  # no hub id either
            found = None
        files = [Path(found)] if isinstance(found, str) else []
    if weights != "safetensors" or not files:
        return None
    looked_at = [on_a_grid(matrix) for matrix in itertools.islice(_matrices(files[0]), MATRICES)]
    if looked_at and sum(looked_at) >= OF_MATRICES * len(looked_at):
        return f"to 4 bits or fewer (at most {LEVELS} values in every {GROUP} weights of a row)"
    return None


def _own_card(card: Path) -> str | None:
    """What the README.md of a model that this project saved says of it."""
    found = dict(OWN_CARD.findall(card.read_text(errors="replace"))) if card.is_file() else {}
    return f"to {found['bits']} bits (by {found['compression']}, README.md)" if len(found) == 2 else None


def _matrices(file: Path) -> Iterator[Tensor]:
    """The first rows of matrices of a file, spread over it, without embeddings."""
    with safe_open(file, "pt") as stored:
        names = [
            key for key in stored.keys()  # noqa: SIM118 - no mapping
            if len(shape := stored.get_slice(key).get_shape()) == 2 and shape[1] % GROUP == 0
            and not re.search("embed|lm_head|wte|wpe", key)
        ]  # fmt: skip
        for key in names[:: max(1, len(names) // MATRICES)]:
            yield stored.get_slice(key)[:ROWS]


def on_a_grid(rows: Tensor) -> bool:
    """Whether nearly all groups of GROUP consecutive weights have at most LEVELS values, zeros not counted.

    Args:
        rows: (rows, inputs), inputs a multiple of GROUP.
    """
    if not rows.is_floating_point():
        return False
    groups = rows.to(torch.float32).reshape(-1, GROUP).numpy()
    groups = groups[(groups != 0).sum(axis=1) >= FEWEST_WEIGHTS]
    if not len(groups):
        return False
    most = np.minimum(LEVELS, (groups != 0).sum(axis=1) / PER_VALUE)
    ordered = np.sort(groups, axis=1)
    values = 1 + (np.diff(ordered, axis=1) != 0).sum(axis=1) - (groups == 0).any(axis=1)
    return bool((values <= most).mean() >= OF_GROUPS)
