"""Run folders made up for tests of what reads them."""

from pathlib import Path
from typing import Any

import numpy as np

from analysis import results


def run(
    transfer: str = "sparse_transfer",
    strength: float | str | None = 0.5,
    score: float = 0.8,
    fraction: float = 1.0,
    seed: int = 41,
    **changes: Any,
) -> dict[str, Any]:
    """A GLUE run's result; a strength of None is dense, a text is N:M. `changes` reaches level and run keys alike."""
    kind, sparsity = "sparsity", strength
    if strength is None:
        kind, sparsity = None, 0.0
    elif isinstance(strength, str):
        kept, group = map(int, strength.split(":"))
        kind, sparsity = "nm", 1 - kept / group
    level = {
        "level": 100 * fraction,
        "difficulty": 1 - fraction,
        "metric": "accuracy",
        "score": score,
        "chance": 0.5,
        "stderr": 0.01,
        "num_examples": 1000,
    }
    result = {
        "setting": 1,
        "model": "lab/model-a",
        "task": "qnli",
        "transfer": transfer,
        "compression": "dense" if kind is None else "magnitude",
        "magnitude_scope": "global" if kind == "sparsity" else None,
        "strength_kind": kind,
        "strength": strength,
        "requested_sparsity": sparsity,
        "measured_sparsity": sparsity,
        "seed": seed,
        "data_fraction": fraction,
        "recipe": "one",
        "seconds": 1.0,
        "peak_memory_bytes": 1,
    }
    levels = [{name: changes.get(name, value) for name, value in level.items()}]
    return {**result, **{name: value for name, value in changes.items() if name not in level}, "levels": levels}


def dense(score: float = 0.9, **changes: Any) -> dict[str, Any]:
    """A run of the dense transfer."""
    return run("dense_transfer", None, score, **changes)


def write_tree(root: Path, *runs: dict[str, Any], **arguments: Any) -> Path:
    """Write each run into a folder of its own below `root`, numbered on from those that are there; returns `root`."""
    for result in runs:
        folder = root / f"{len(list(root.glob('*'))):03d}"
        recorded = {"seed": result["seed"], "sparsity": result["strength"], "learning_rate": 2e-5, **arguments}
        results.start_run(folder, recorded, {"device": "cpu"})
        results.write_run(folder, result, {"idx": np.arange(3), "prediction": np.array([0, 1, 1])})
    return root
