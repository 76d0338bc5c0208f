"""The training that a checkpoint is from, where recover.py wrote it."""

import json
from pathlib import Path
from typing import Any

from harness.run_folder import RESULT_FILE

RECOVERY = "recovery"  # the setting's name in results of recover.py
# What results of settings record of the run that wrote the model.
FACTS = (
    "compression", "magnitude_scope", "strength_kind", "strength", "requested_sparsity", "transfer", "seed",
    "num_steps", "num_train_tokens", "train_windows_sha256", "compression_recipe", "recipe",
)  # fmt: skip


def recovered_from(checkpoint: str) -> dict[str, Any] | None:
    """FACTS of the run whose <output_dir>/model a checkpoint is; None where recover.py did not write it.

    Raises:
        ValueError: the run's result is damaged (names the file).
    """
    path = Path(checkpoint).absolute().parent / RESULT_FILE
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_bytes())
        return {name: result[name] for name in FACTS} if result["setting"] == RECOVERY else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}, beside the checkpoint, is damaged: {error!r}") from error
