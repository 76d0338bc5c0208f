"""Run folders made up for tests of what reads them."""

import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis import estimators
from harness import run_folder

LEVEL_DEFAULTS = {"dataset": "mmlu", "reader": "letter", "human": None, "metrics": {}, "facts": {}}


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


def perplexity_run(
    compression: str = "dense",
    strength: float | str | tuple[str, int] | None = None,
    losses: tuple[float, ...] = (3.0, 3.5),
    seed: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """A perplexity run's result; a strength is a sparsity, an N:M text, or ("bits" or "rank", value)."""
    kind, value = strength if isinstance(strength, tuple) else (None, strength)
    as_sparsity = run(strength=None if kind else strength)
    calibrated = compression in ("wanda", "ria", "sparsegpt", "gptq")
    level = {
        "level": "texts/wiki.test.txt.gz",
        "difficulty": 0.0,
        "metric": "perplexity",
        "score": math.exp(sum(losses) / len(losses)),
        "chance": 1000,
        "stderr": 0.5,
        "num_examples": len(losses),
    }
    level = {name: changes.pop(name, default) for name, default in level.items()}
    result = {
        **{name: as_sparsity[name] for name in ("model", "strength_kind", "requested_sparsity", "measured_sparsity")},
        "setting": "perplexity",
        "task": level["level"],
        "compression": compression,
        "strength": value,
        "magnitude_scope": "layer"
        if compression == "magnitude" and as_sparsity["strength_kind"] == "sparsity"
        else None,
        "seed": seed,
        "recipe": "one",
        "compression_recipe": "two" if calibrated else None,
        "seconds": 1.0,
        "peak_memory_bytes": 1,
        "levels": [level],
        "window_loss": list(losses),
        **({"strength_kind": kind} if kind else {}),
    }
    return {**result, **changes}


def level_run(
    compression: str = "dense",
    strength: float | str | tuple[str, int] | None = None,
    levels: dict[str, Sequence[float]] | None = None,
    seed: int = 0,
    of_level: dict[str, dict[str, Any]] | None = None,
    items: Sequence[str] = (),
    groups: Sequence[str] = (),
    **changes: Any,
) -> dict[str, Any]:
    """A run of a setting without training; strengths as in perplexity_run.

    Args:
        levels: scores of the items of each level, from easy to hard.
        of_level: what a level has that others have not.
        items, groups: identities and groups of the items, the same at all levels; every item its own group by default.
        changes: reach level and run keys alike; `facts` and others that are no keys of a run reach the levels.
    """
    levels = levels or {"2 options": (1, 1, 1, 0) * 10, "4 options": (1, 1, 0, 0) * 10}
    of_all = {name: changes.pop(name) for name in (*LEVEL_DEFAULTS, *run_folder.LEVEL_KEYS) if name in changes}
    found, columns = [], {"level": [], "item": [], "group": [], "score": []}
    for place, (name, scores) in enumerate(levels.items()):
        mean = sum(scores) / len(scores)
        own = {
            "level": name, "difficulty": float(place), "metric": "accuracy", "score": mean, "chance": 0.25,
            "stderr": 0.01, "num_examples": len(scores), **LEVEL_DEFAULTS, "metrics": {"accuracy": mean}, **of_all,
        }  # fmt: skip
        found.append({**own, **(of_level or {}).get(name, {})})
        identities = list(items or [f"item {number}" for number in range(len(scores))])
        columns["level"] += [place] * len(scores)
        columns["item"] += identities
        columns["group"] += list(groups or identities)
        columns["score"] += map(float, scores)
    like = perplexity_run(compression, strength, seed=seed)
    run_of_setting = {"setting": 2, "task": "option_count", "levels": found}
    arrays = {name: np.array(values) for name, values in columns.items()}
    del like["window_loss"]
    return {**like, **run_of_setting, "items": arrays, **changes}


def chosen(scores: Sequence[Sequence[float]], gold: Sequence[int] = (), **more: Any) -> dict[str, np.ndarray]:
    """The columns of items.npz of a level of choices, without their prefix; all options are right at 0 by default."""
    best = np.array([int(np.argmax(own)) for own in scores])
    gold = np.array(gold or [0] * len(scores))
    return {
        "predicted": best, "gold": gold, "option_count": np.array([len(own) for own in scores]),
        "option_log_likelihood": np.concatenate([np.array(own, float) for own in scores]), **more,
    }  # fmt: skip


def choice_run(
    compression: str = "dense", strength: float | None = None, seed: int = 0, items: Sequence[str] = (),
    groups: Sequence[str] = (), gold: Sequence[int] = (), run: dict | None = None, **levels: Sequence[Sequence[float]],
) -> dict[str, Any]:  # fmt: skip
    """A run whose levels have these log-likelihoods of options."""
    columns = {name: chosen(scores, gold) for name, scores in levels.items()}
    scores = {name: (own["predicted"] == own["gold"]).astype(float) for name, own in columns.items()}
    made = level_run(compression, strength, scores, seed, items=items, groups=groups, **(run or {}))
    for place, own in enumerate(columns.values()):
        made["items"] |= {f"level{place}_{name}": values for name, values in own.items()}
    return made


def line_run(
    pair: str = "dense-sparse",
    strength: float | None = 0.5,
    scores: Sequence[float] = (0.9, 0.8, 0.7),
    losses: Sequence[float] = (0.25, 0.75, 0.5),
    seed: int = 41,
    noise: float = 0.0,
    **changes: Any,
) -> dict[str, Any]:
    """A run of Glue_interpolate.py: a line with a score and a loss at each of its points, the same on both splits.

    Args:
        strength: None is dense-dense's.
        noise: half of the barriers' intervals.
    """
    like = run(strength=strength, seed=seed)
    copied = ("model", "compression", "magnitude_scope", "strength_kind", "strength", "requested_sparsity",
              "measured_sparsity", "seed", "data_fraction", "recipe", "seconds", "peak_memory_bytes")  # fmt: skip
    alphas = np.linspace(0, 1, len(scores))
    level = {"metric": "accuracy", "chance": 0.5, "stderr": 0.01, "num_examples": 100}
    level = {name: changes.pop(name, value) for name, value in level.items()}
    levels = [
        {"level": f"{alpha:g}", "difficulty": alpha, "alpha": alpha, "score": score, "train_score": score,
         "train_loss": loss, "validation_loss": loss, **level}
        for alpha, score, loss in zip(alphas.tolist(), scores, losses, strict=True)
    ]  # fmt: skip
    found = []
    for split, (quantity, curve), definition in itertools.product(
        ("train", "validation"), (("loss", losses), ("error", 1 - np.array(scores))), estimators.DEFINITIONS
    ):
        height, alpha = estimators.barrier(curve, alphas, definition)
        interval = {"low": max(0.0, height - noise), "high": height + noise}
        found.append({"split": split, "quantity": quantity, "definition": definition, "barrier": height,
                      "alpha": alpha, **interval})  # fmt: skip
    return {
        **{name: like[name] for name in copied}, "setting": "interpolation", "task": "qqp", "pair": pair,
        "end_seed": seed + (pair == "dense-dense"), "num_train_examples": 50, "barriers": found, "levels": levels,
        **changes,
    }  # fmt: skip


def write_tree(root: Path, *runs: dict[str, Any], **arguments: Any) -> Path:
    """Write each run into a folder of its own below `root`, numbered on from those that are there; returns `root`."""
    for result in runs:
        folder = root / f"{len(list(root.glob('*'))):03d}"
        recorded = {"seed": result["seed"], "sparsity": result["strength"], "learning_rate": 2e-5, **arguments}
        run_folder.start_run(folder, recorded, {"device": "cpu"})
        items = {"idx": np.arange(3), "prediction": np.array([0, 1, 1])}
        if "window_loss" in result:
            items = {"window_loss": np.array(result["window_loss"])}
        items = result.get("items", items)
        run_folder.write_run(folder, {name: value for name, value in result.items() if name != "items"}, items)
    return root


def large_tree(root: Path) -> Path:
    """A tree of every method at many strengths, with long names and many levels: full figures to look at."""
    strengths = {
        **dict.fromkeys(("magnitude", "wanda", "ria", "sparsegpt"), (0.1, 0.2, 0.3, 0.5, 0.7, "4:8", "2:4")),
        **dict.fromkeys(("rtn", "gptq"), tuple(("bits", bits) for bits in (8, 4, 3, 2))),
        "low_rank": tuple(("rank", rank) for rank in (512, 256, 64)),
    }
    points = [("dense", None, 0)]
    points += [
        (method, strength, seed)
        for method, own in strengths.items()
        for strength in own
        for seed in ((0, 1) if method not in ("magnitude", "rtn", "low_rank") else (0,))
    ]
    runs = []
    for number, (method, strength, seed) in enumerate(points):
        loss = 0.0 if strength is None else 0.05 + 0.6 * (number % 7) / 7
        levels = {
            f"a set of questions with a long name, number {place}": [
                float(item / 60 < 0.9 * (1 - loss * (1 + place / 10)) - 0.03 * place) for item in range(60)
            ]
            for place in range(10)
        }
        same = {"parameter_ratio": 0.2 + strength[1] / 800} if method == "low_rank" else {}
        same["compress_seconds"] = 10.0 + number if strength else 0.0
        runs.append(level_run(method, strength, levels, seed, **same))
        losses = tuple(3 + loss + 0.01 * window for window in range(8))
        runs.append(perplexity_run(method, strength, losses, seed, **same))
    for task, fraction, seed in itertools.product(
        ("cola", "sst2", "mrpc", "a task of mine"), (0.1, 0.25, 1.0), (41, 42)
    ):
        place = {"task": task, "fraction": fraction, "seed": seed}
        runs.append(dense(0.9 - 0.01 * seed / 42, **place))
        runs += [
            run(transfer, strength, 0.9 - 0.4 * strength / fraction**0.2, **place)
            for transfer in ("sparse_transfer", "sparse_to_dense")
            for strength in (0.2, 0.5, 0.8)
        ]
    return write_tree(root, *runs, group_size=128, symmetric=False)


if __name__ == "__main__":
    large_tree(Path(sys.argv[1]))
