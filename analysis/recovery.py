"""What comes back of a pruned language model that is trained on, beside the dense model trained alike.

Pure tables of runs: the perplexity on held-out text while training (runs of llm_tasks/recover.py), and the score at
every level before and after (runs of settings 2 to 6 on the models that were written, which name the training that they
are from in recovered_from).
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analysis import estimators
from analysis.flips import Compared, replicates, with_interval
from analysis.outcomes import ItemReader, aligned, with_error
from analysis.table import (
    DENSE,
    FREEZING,
    TRANSFERS,
    Row,
    compression_order,
    compression_rank,
    grouped,
    is_above_chance,
    is_level_run,
    select,
)
from harness import run_folder

RECOVERY = "recovery"
CONFIDENCE = 0.95
METHOD = ("compression", "magnitude_scope", "strength_kind", "strength")
FIGURE = ("model", "seed")  # of a figure of levels, over which p-values are corrected
CURVE_COLUMNS = (
    "model", "text", *METHOD, "transfer", "seed", "measured_sparsity", "step", "tokens", "perplexity", "low", "high",
    "control_perplexity", "loss_above_control", "above_low", "above_high", "gap_closed", "windows",
)  # fmt: skip
RECOVERED_COLUMNS = (
    "setting", "model", "task", "level", *METHOD, "transfer", "seed", "steps", "chance", "dense", "pruned", "control",
    "recovered", "dense_above_chance", "control_above_chance", "lost", "lost_low", "lost_high", "left", "left_low",
    "left_high", "left_holm_p", "back", "back_low", "back_high", "back_holm_p", "items", "verdict",
)  # fmt: skip
# What becomes of a level, from the best to the worst that is known.
AT_CHANCE, NOT_LOST, BACK, IN_PART, NOT_BACK, OPEN = (
    "at chance", "no loss seen", "back", "back in part", "not back", "cannot be told",
)  # fmt: skip
LIKE_CONTROL, BELOW_CONTROL = "no worse seen than the control", "below the control"
RANGES = {"lost": (-1.0, 1.0), "left": (-1.0, 1.0), "back": (-2.0, 2.0)}  # of an item's value


def is_recovery_run(row: Row) -> bool:
    """Whether a row is a run of llm_tasks/recover.py."""
    return row["setting"] == RECOVERY


def curve_table(rows: Sequence[Row]) -> list[Row]:
    """One row of CURVE_COLUMNS for every training and step at which perplexity was measured, controls first.

    Args:
        rows: of run_folder.read_runs; others than recovery runs are passed over, as are those that uncontrolled names.
    Returns:
        low, high: 95 % interval of the perplexity over windows (Student's, of their mean loss). loss_above_control:
        mean over windows of the loss minus the control's on the same window at the same step, in nats, with its 95 %
        interval. gap_closed: 1 - loss_above_control / that before training, the share of what pruning cost that came
        back beyond what training gives the dense model; None before training, and of trainings that start dense.
    """
    return [
        point for row, control in _with_controls(rows) if not isinstance(control, str) for point in _curve(row, control)
    ]


def uncontrolled(rows: Sequence[Row]) -> list[str]:
    """Why trainings are left out of the curve_table: a sentence for each."""
    return [control for _, control in _with_controls(rows) if isinstance(control, str)]


def _with_controls(rows: Sequence[Row]) -> list[tuple[Row, Row | str]]:
    """Every training with its control, or with why it has none to be compared with."""
    runs = sorted(filter(is_recovery_run, rows), key=_order)
    controls = {_training(row): row for row in runs if row["transfer"] == DENSE}
    return [(row, _fitting(row, controls.get(_training(row)))) for row in runs]


def _fitting(row: Row, control: Row | None) -> Row | str:
    if control is None:
        return (
            f"{row['folder']} has no control: no run of {DENSE} on the same windows for as many steps with seed "
            f"{row['seed']}; the same command with --transfer {DENSE} --compression dense makes it."
        )
    both = f"{row['folder']} and its control {control['folder']}"
    if _steps(row) != _steps(control):
        return f"{both} are measured at different steps, so that it is left out."
    if len(_losses(row)) != len(_losses(control)):
        return f"{both} are measured on different windows, so that it is left out."
    return control


def _losses(row: Row) -> np.ndarray:
    """Loss on each window at each step, (windows, steps)."""
    return run_folder.read_items(Path(row["folder"]), ["curve_loss"])["curve_loss"]


def _training(row: Row) -> tuple:
    """What a run and its control share."""
    names = ("model", "task", "seed", "train_windows_sha256", "num_steps", "recipe")
    return tuple(row[name] for name in names)


def _steps(row: Row) -> list[int]:
    return [point["step"] for point in row["curve"]]


def _order(row: Row) -> tuple:
    return str(row["model"]), *method_order(row), row["seed"]


def method_order(row: Row) -> tuple:
    """Sort key of a compression, its strength and a transfer: dense first, then in the order of all figures."""
    return compression_rank(row["compression"]), compression_order(row), TRANSFERS.index(row["transfer"])


def _curve(row: Row, control: Row) -> list[Row]:
    losses, beside = _losses(row), _losses(control)
    above = losses - beside
    first = above[:, 0].mean()
    starts_pruned = row["transfer"] not in (DENSE, FREEZING)
    found = []
    for place, step in enumerate(_steps(row)):
        loss, low, high = estimators.mean_interval(losses[:, place], CONFIDENCE)
        gap, gap_low, gap_high = estimators.mean_interval(above[:, place], CONFIDENCE)
        is_control = row["transfer"] == DENSE
        found.append({
            "model": row["model"], "text": row["task"], **{name: row[name] for name in METHOD},
            "transfer": row["transfer"], "seed": row["seed"], "measured_sparsity": row["measured_sparsity"],
            "step": step, "tokens": round(row["num_train_tokens"] * step / row["num_steps"]),
            "perplexity": math.exp(loss), "low": _exp(low), "high": _exp(high),
            "control_perplexity": math.exp(beside[:, place].mean()),
            "loss_above_control": None if is_control else gap, "above_low": None if is_control else gap_low,
            "above_high": None if is_control else gap_high,
            "gap_closed": 1 - gap / first if starts_pruned and step and first > 0 else None, "windows": len(losses),
        })  # fmt: skip
    return found


def _exp(value: float | None) -> float | None:
    return None if value is None else math.exp(value)


def recovery_level_table(
    rows: Sequence[Row], resamples: int, read: ItemReader | None = None, seed: int = 0
) -> list[Row]:  # fmt: skip
    """One row of RECOVERED_COLUMNS for every recovered model and level of a setting, compared item by item.

    Args:
        rows: of run_folder.read_runs: the dense and the pruned model, and the models that recover.py wrote, among them
            the controls. Levels that incomparable names are left out.
        resamples, seed: of the intervals (resampling).
    Returns:
        lost: pruned minus dense, before training; left: recovered minus control, after it; back: left minus lost. Each
        with its 95 % interval over groups of items, and left and back with p-values corrected by Holm for all levels
        of one FIGURE that are judged. Where the dense model or the control is not above chance, the verdict is
        AT_CHANCE, and there is no corrected p-value. Freezing starts from the dense model: nothing was lost, and only
        `left` is told.
    """
    read = read or ItemReader()
    table = []
    for row, beside in _with_runs_beside(rows):
        if not isinstance(beside, str):
            table.append(_level(row, beside, read, resamples, seed))
    for judged in grouped([row for row in table if _has_learned(row)], FIGURE).values():
        for name in ("left", "back"):
            corrected = estimators.holm([row[f"{name}_p"] for row in judged])
            for row, p_value in zip(judged, corrected, strict=True):
                row[f"{name}_holm_p"] = p_value
    return [select({**row, "verdict": verdict(row)}, RECOVERED_COLUMNS) for row in table]


def incomparable(rows: Sequence[Row]) -> list[str]:
    """Why levels of recovered models are left out of the recovery_level_table: a sentence for each."""
    return [beside for _, beside in _with_runs_beside(rows) if isinstance(beside, str)]


class Beside(NamedTuple):
    """What a recovered model is compared with at one level; `pruned` of Freezing is the dense model."""

    dense: Row
    pruned: Row
    control: Row


def _with_runs_beside(rows: Sequence[Row]) -> list[tuple[Row, Beside | str]]:
    levels = [row for row in rows if is_level_run(row)]
    made = [row for row in levels if row.get("recovered_from") and row["recovered_from"]["transfer"] != DENSE]
    return [(row, _runs_beside(row, levels)) for row in sorted(made, key=_level_order)]


def _level_order(row: Row) -> tuple:
    origin = row["recovered_from"]
    return (
        row["setting"], str(row["model"]), *method_order(origin), origin["seed"], row["level_index"],
    )  # fmt: skip


def _runs_beside(row: Row, levels: Sequence[Row]) -> Beside | str:
    origin = row["recovered_from"]

    def is_control(other: Row) -> bool:
        found = other.get("recovered_from")
        if not found or found["transfer"] != DENSE:
            return False
        recipes = {own.get("recipe") for own in (found, origin)} - {None}  # runs of before recorded none
        shared = ("seed", "num_steps", "train_windows_sha256")
        return len(recipes) < 2 and all(found[name] == origin[name] for name in shared)

    def is_pruned(other: Row) -> bool:
        """By the same method at the same strength; on the same calibration text, as far as that is recorded."""
        recipes = {own.get("compression_recipe") for own in (other, origin)} - {None}
        alike = all(other[name] == origin[name] for name in METHOD) and len(recipes) < 2
        return alike and not other.get("recovered_from")

    dense = _one(row, levels, lambda other: other["compression"] == "dense", row["seed"])
    control = _one(row, levels, is_control, row["seed"])
    pruned = dense if origin["transfer"] == FREEZING else _one(row, levels, is_pruned, origin["seed"])
    named = {"the dense model": dense, "its control": control, "the pruned model before training": pruned}
    if missing := [what for what, found in named.items() if found is None]:
        told = " and ".join(missing)
        return f"{row['folder']}, level {row['level']}: {told} were not measured beside it, or more than once."
    return Beside(dense, pruned, control)


def _one(row: Row, levels: Sequence[Row], fits: Callable[[Row], bool], seed: int) -> Row | None:
    """The run that fits at a row's level: that of this seed, else the only one; None where several fit alike."""
    alike = ("setting", "model", "task", "level")
    found = [other for other in levels if all(other[name] == row[name] for name in alike) and fits(other)]
    of_seed = [other for other in found if other["seed"] == seed]
    (only,) = fitting if len(fitting := of_seed or found) == 1 else (None,)
    return only


def _level(row: Row, beside: Beside, read: ItemReader, resamples: int, seed: int) -> Row:
    """The columns of one level, but for the correction and the verdict; without items all is None."""
    origin, starts_dense = row["recovered_from"], row["recovered_from"]["transfer"] == FREEZING
    found: Row = dict.fromkeys(RECOVERED_COLUMNS) | {
        "setting": row["setting"], "model": row["model"], "task": row["task"], "level": row["level"],
        **{name: origin[name] for name in METHOD}, "transfer": origin["transfer"], "seed": origin["seed"],
        "steps": origin["num_steps"], "chance": row["chance"], "left_p": None, "back_p": None,
        "dense_above_chance": _above_chance(beside.dense, read),
        "control_above_chance": _above_chance(beside.control, read),
    }  # fmt: skip
    outcomes = [read(own) for own in (*beside, row)]
    if None in outcomes:
        return found
    scores, groups = aligned(outcomes)
    known = ~np.isnan(scores).any(axis=0)
    if not known.any():
        return found
    scores, groups = scores[:, known], groups[known]
    names = ("dense", "pruned", "control", "recovered")
    found |= {"items": len(groups), **dict(zip(names, scores.mean(axis=1).tolist(), strict=True))}
    lost, left = scores[1] - scores[0], scores[3] - scores[2]
    values = {"left": left} if starts_dense else {"lost": lost, "left": left, "back": left - lost}
    point = Compared(groups, {name: own[None] for name, own in values.items()}, (row["seed"],), "", "", False)
    (drawn,) = replicates([point], resamples, (seed, row["dataset"]), RANGES)
    for name in values:
        found |= with_interval(name, drawn[name], RANGES[name])
        found[f"{name}_p"] = drawn[name].p_other_than_zero()
    return found


def _above_chance(row: Row, read: ItemReader) -> bool | None:
    return is_above_chance([with_error(row, read)])


def verdict(row: Row) -> str:
    """What became of a level at this budget of training; see the constants of this module.

    A loss counts as seen where its interval is below 0; what is left and what came back, where also the corrected
    p-value is at most 0.05. BACK: some came back and no loss is seen to be left. NOT_BACK: a loss is left and none is
    seen to have come back. OPEN too with fewer than ten groups of items, which have no intervals.
    """
    if not _has_learned(row):
        return AT_CHANCE
    left = _sure(row, "left") and row["left"] < 0
    if row["left_high"] is None:
        return OPEN
    if row["transfer"] == FREEZING:
        return BELOW_CONTROL if left else LIKE_CONTROL
    if row["lost_high"] >= 0:
        return NOT_LOST
    back = _sure(row, "back") and row["back"] > 0
    if left:
        return IN_PART if back else NOT_BACK
    return BACK if back else OPEN


def _has_learned(row: Row) -> bool:
    """Whether neither side is known to be at chance; where it is not known, there are too few groups for a verdict."""
    return row["dense_above_chance"] is not False and row["control_above_chance"] is not False


def _sure(row: Row, name: str) -> bool:
    p_value = row[f"{name}_holm_p"]
    return p_value is not None and p_value <= 1 - CONFIDENCE
