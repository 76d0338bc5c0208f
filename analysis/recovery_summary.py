"""What comes back of pruned language models, in words and tables: summary.md beside the figures of recovery."""

from collections import Counter

from analysis.names import (
    compression_name,
    markdown,
    model_name,
    number,
    percent,
    set_title,
    strength_text,
    text_name,
    with_bounds,
)
from analysis.recovery import METHOD
from analysis.style import TRANSFER_STYLE
from analysis.table import DENSE, Row, grouped

BUDGET = (
    "All of this is after these steps on this text. What is not back may come back with more of both; what is back is "
    "back on these levels alone."
)


def summary_text(curves: list[Row], levels: list[Row]) -> str:
    """The text of summary.md.

    Args:
        curves: recovery.curve_table.
        levels: recovery.recovery_level_table.
    """
    lines = ["# What comes back", ""]
    for (model,), own in grouped(curves, ["model"]).items():
        measured = [row for row in levels if row["model"] == model]
        lines += [f"## {model_name(model)}", "", *perplexity_lines(own), ""]
        lines += [*level_lines(measured), ""] if measured else ["No level was measured.", ""]
    return "\n".join([*lines, BUDGET, ""])


def _named(row: Row) -> list[str]:
    method = "dense" if row["compression"] == "dense" else f"{compression_name(row)}, {strength_text(row)}"
    return [method, TRANSFER_STYLE[row["transfer"]]["label"]]


def perplexity_lines(curves: list[Row]) -> list[str]:
    """Perplexity before and after every training of one model, and its distance from the control."""
    body = []
    for (*_, transfer, seed), own in grouped(curves, (*METHOD, "transfer", "seed")).items():
        first, last = own[0], own[-1]
        above = "" if transfer == DENSE else with_bounds(
            *(last[name] for name in ("loss_above_control", "above_low", "above_high"))
        )  # fmt: skip
        closed = "" if last["gap_closed"] is None else percent(round(last["gap_closed"], 3))
        scores = [f"{row['perplexity']:.2f}" for row in (first, last)]
        body.append([*_named(first), seed, percent(round(last["measured_sparsity"], 4)), *scores, above, closed])
    last = curves[-1]
    told = (
        f"Perplexity on {last['windows']} windows of {text_name(last['text'])} before training and after "
        f"{last['step']} steps, {last['tokens']:,} tokens. The control is the dense model, trained alike. The loss "
        "above it, in nats with its 95 % interval over windows, is that after training. Gap closed is the share of the "
        "loss above the control that is gone since before training."
    )
    head = ["pruned by", "transfer", "seed", "zeros after", "before", "after", "loss above control", "gap closed"]
    return [told, "", *markdown(head, body)]


def level_lines(levels: list[Row]) -> list[str]:
    """Every level of one model before and after, and how many of each verdict."""
    body = [
        [
            set_title(row["setting"], row["task"]), row["level"], *_named(row), row["seed"],
            *(number(row[name]) for name in ("dense", "pruned", "control", "recovered")),
            *(with_bounds(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in ("lost", "left", "back")),
            row["verdict"],
        ]
        for row in levels
    ]  # fmt: skip
    counts = Counter(row["verdict"] for row in levels)
    told = "; ".join(f"{verdict}: {count}" for verdict, count in counts.most_common())
    head = ["setting", "level", "pruned by", "transfer", "seed", "dense", "pruned", "control", "recovered", "lost",
            "left", "back", "verdict"]  # fmt: skip
    return [f"Verdicts: {told}.", "", *markdown(head, body)]
