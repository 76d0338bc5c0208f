"""What comes back of a pruned language model that is trained on, beside the dense model trained alike.

Pure tables of runs: the perplexity on held-out text while training (runs of llm_tasks/recover.py), and the score at
every level before and after (runs of settings 2 to 6 on the models that were written, which name the training that they
are from in recovered_from).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special

from analysis import estimators
from analysis.outcomes import ItemReader, aligned
from analysis.table import DENSE, FREEZING, TRANSFERS, Row, compression_order, compression_rank, is_level_run, select
from harness import run_folder

RECOVERY = "recovery"
CONFIDENCE = 0.95
METHOD = ("compression", "magnitude_scope", "strength_kind", "strength")
CURVE_COLUMNS = (
    "model", "text", *METHOD, "transfer", "seed", "measured_sparsity", "step", "tokens", "perplexity", "low", "high",
    "control_perplexity", "loss_above_control", "above_low", "above_high", "gap_closed", "windows",
)  # fmt: skip
LEVEL_COLUMNS = (
    "setting", "model", "task", "level", *METHOD, "transfer", "seed", "steps", "chance", "dense", "pruned", "control",
    "recovered", "dense_above_chance", "control_above_chance", "lost", "lost_low", "lost_high", "left", "left_low",
    "left_high", "left_holm_p", "back", "back_low", "back_high", "back_holm_p", "items", "verdict",
)  # fmt: skip
# What becomes of a level, from the best to the worst that is known.
AT_CHANCE, NOT_LOST, BACK, IN_PART, NOT_BACK, OPEN = (
    "at chance", "no loss seen", "back", "back in part", "not back", "cannot be told",
)  # fmt: skip
LIKE_CONTROL, BELOW_CONTROL = "no worse seen than the control", "below the control"


def is_recovery_run(row: Row) -> bool:
    """Whether a row is a run of llm_tasks/recover.py."""
    return row["setting"] == RECOVERY


def curve_table(rows: Sequence[Row]) -> list[Row]:
    """One row of CURVE_COLUMNS for every training and step at which perplexity was measured, controls first.

    Args:
        rows: of run_folder.read_runs; others than recovery runs are passed over.
    Returns:
        low, high: 95 % interval of the perplexity over windows (Student's, of their mean loss). loss_above_control:
        mean over windows of the loss minus the control's on the same window at the same step, in nats, with its 95 %
        interval. gap_closed: 1 - loss_above_control / that before training, the share of what pruning cost that came
        back beyond what training gives the dense model; None before training, and of trainings that start dense.
    Raises:
        ValueError: a training has no control, one that was trained on other windows, or one measured at other steps.
    """
    runs = [row for row in rows if is_recovery_run(row)]
    controls = {_training(row): row for row in runs if row["transfer"] == DENSE}
    table = []
    for row in sorted(runs, key=_order):
        control = controls.get(_training(row))
        if control is None:
            raise ValueError(
                f"{row['folder']} has no control: no run of {DENSE} on the same windows for as many steps with seed "
                f"{row['seed']}; the same command with --transfer {DENSE} --compression dense makes it"
            )
        if _steps(row) != _steps(control):
            raise ValueError(f"{row['folder']} and its control {control['folder']} are measured at different steps")
        table += _curve(row, control)
    return table


def _training(row: Row) -> tuple:
    """What a run and its control share."""
    names = ("model", "seed", "train_windows_sha256", "num_steps", "recipe")
    return tuple(row[name] for name in names)


def _steps(row: Row) -> list[int]:
    return [point["step"] for point in row["curve"]]


def _order(row: Row) -> tuple:
    return str(row["model"]), *method_order(row), row["seed"]


def method_order(row: Row) -> tuple:
    """Sort key of a compression, its strength and a transfer: dense first, then in the order of all figures."""
    return compression_rank(row["compression"]), compression_order(row), TRANSFERS.index(row["transfer"])


def _curve(row: Row, control: Row) -> list[Row]:
    losses, beside = (
        run_folder.read_items(Path(own["folder"]), ["curve_loss"])["curve_loss"] for own in (row, control)
    )
    if losses.shape != beside.shape:
        raise ValueError(f"{row['folder']} and its control {control['folder']} are measured on different windows")
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


def recovery_level_table(rows: Sequence[Row], read: ItemReader | None = None) -> list[Row]:
    """One row of LEVEL_COLUMNS for every recovered model and level of a setting, compared item by item.

    Args:
        rows: of run_folder.read_runs: the dense and the pruned model, and the models that recover.py wrote, among them
            the controls.
    Returns:
        lost: pruned minus dense, before training; left: recovered minus control, after it; back: left minus lost. Each
        with its 95 % interval over groups of items (Student's), and left and back with p-values corrected by Holm for
        all levels of the table that are judged. Where the dense model or the control is not above chance, the verdict
        is AT_CHANCE, and there is no corrected p-value. Freezing starts from the dense model: nothing was lost, and
        only `left` is told.
    Raises:
        ValueError: a recovered model was measured without its control, or without the dense or the pruned model.
    """
    read = read or ItemReader()
    levels = [row for row in rows if is_level_run(row)]
    made = [row for row in levels if row.get("recovered_from") and row["recovered_from"]["transfer"] != DENSE]
    table = [_level(row, levels, read) for row in sorted(made, key=_level_order)]
    judged = [row for row in table if _has_learned(row)]
    for name in ("left", "back"):
        corrected = estimators.holm([row[f"{name}_p"] for row in judged])
        for row, p_value in zip(judged, corrected, strict=True):
            row[f"{name}_holm_p"] = p_value
    return [select({**row, "verdict": verdict(row)}, LEVEL_COLUMNS) for row in table]


def _level_order(row: Row) -> tuple:
    origin = row["recovered_from"]
    return (
        row["setting"], str(row["model"]), *method_order(origin), origin["seed"], row["level_index"],
    )  # fmt: skip


def _level(row: Row, levels: Sequence[Row], read: ItemReader) -> Row:
    origin = row["recovered_from"]

    def one(what: str, fits: Any) -> Row:
        alike = ("setting", "model", "task", "level")
        for other in levels:
            if all(other[name] == row[name] for name in alike) and fits(other):
                return other
        raise ValueError(f"{row['folder']}, level {row['level']}: {what} was not measured beside it")

    def is_control(other: Row) -> bool:
        found = other.get("recovered_from")
        shared = ("seed", "num_steps", "train_windows_sha256")
        return bool(found) and found["transfer"] == DENSE and all(found[name] == origin[name] for name in shared)

    def is_pruned(other: Row) -> bool:
        return not other.get("recovered_from") and all(other[name] == origin[name] for name in METHOD)

    dense = one("the dense model", lambda other: other["compression"] == "dense")
    control = one("its control", is_control)
    starts_dense = origin["transfer"] == FREEZING
    pruned = dense if starts_dense else one("the pruned model before training", is_pruned)
    outcomes = [read(own) for own in (dense, pruned, control, row)]
    if None in outcomes:
        raise ValueError(f"{row['folder']}, level {row['level']}: a run beside it kept no items")
    scores, groups = aligned(outcomes)
    known = ~np.isnan(scores).any(axis=0)
    scores, groups = scores[:, known], groups[known]
    found: Row = {
        "setting": row["setting"], "model": row["model"], "task": row["task"], "level": row["level"],
        **{name: origin[name] for name in METHOD}, "transfer": origin["transfer"], "seed": origin["seed"],
        "steps": origin["num_steps"], "chance": row["chance"], "items": len(groups),
        **dict(zip(("dense", "pruned", "control", "recovered"), scores.mean(axis=1).tolist(), strict=True)),
        "dense_above_chance": _above_chance(dense), "control_above_chance": _above_chance(control),
    }  # fmt: skip
    lost, left = scores[1] - scores[0], scores[3] - scores[2]
    for name, values in (("lost", lost), ("left", left), ("back", left - lost)):
        found |= difference(name, None if starts_dense and name != "left" else values, groups)
    return found


def _above_chance(row: Row) -> bool:
    return estimators.above_chance(row["score"], row["chance"], row["stderr"], row["num_examples"])


def difference(name: str, values: np.ndarray | None, groups: np.ndarray) -> Row:
    """A mean of paired differences: `name`, its 95 % interval and two-sided p-value; None where they are not defined.

    Args:
        values: (items,); None where there is no such difference.
        groups: of the items, (items,).
    """
    keys = (name, f"{name}_low", f"{name}_high", f"{name}_p")
    if values is None:
        return dict.fromkeys(keys)
    mean, error = float(values.mean()), estimators.clustered_error(values, groups)
    degrees = len(np.unique(groups)) - 1
    if not error:  # a single group, or no item that differs
        return dict(zip(keys, (mean, None, None, None), strict=True))
    width = float(scipy.special.stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error
    p_value = float(2 * scipy.special.stdtr(degrees, -abs(mean) / error))
    return dict(zip(keys, (mean, mean - width, mean + width, p_value), strict=True))


def verdict(row: Row) -> str:
    """What became of a level at this budget of training; see the constants of this module.

    A loss counts as seen where its interval is below 0; what is left and what came back, where also the corrected
    p-value is at most 0.05. BACK: some came back and no loss is seen to be left. NOT_BACK: a loss is left and none is
    seen to have come back.
    """
    if not _has_learned(row):
        return AT_CHANCE
    left = _sure(row, "left") and row["left"] < 0
    if row["transfer"] == FREEZING:
        return BELOW_CONTROL if left else LIKE_CONTROL
    if row["lost_high"] is None or row["lost_high"] >= 0:
        return NOT_LOST
    back = _sure(row, "back") and row["back"] > 0
    if left:
        return IN_PART if back else NOT_BACK
    return BACK if back else OPEN


def _has_learned(row: Row) -> bool:
    return row["dense_above_chance"] and row["control_above_chance"]


def _sure(row: Row, name: str) -> bool:
    p_value = row[f"{name}_holm_p"]
    return p_value is not None and p_value <= 1 - CONFIDENCE
