"""What comes back of pruned language models, in words and tables."""

from collections import Counter

from analysis.names import compression_name, markdown, number, percent, set_title, strength_text, with_bounds
from analysis.recovery import AT_CHANCE, METHOD
from analysis.style import TRANSFER_STYLE
from analysis.table import DENSE, Row, grouped

BUDGET = (
    "All of this is after these steps on this text. What is not back may come back with more of both; what is back is "
    "back on these levels alone."
)


def _named(row: Row) -> list[str]:
    method = "dense" if row["compression"] == "dense" else f"{compression_name(row)}, {strength_text(row)}"
    return [method, TRANSFER_STYLE[row["transfer"]]["label"]]


def _trainings(curves: list[Row]) -> list[list[Row]]:
    """The rows of each training, in the order of its steps."""
    return list(grouped(curves, (*METHOD, "transfer", "seed")).values())


def curve_finding(curves: list[Row]) -> str:
    """One sentence on a curve_table: how much of what pruning cost came back beyond what the control gained."""
    last = [own[-1] for own in _trainings(curves)]
    told = [
        f"{', '.join(_named(row))}, seed {row['seed']}: {percent(round(row['gap_closed'], 3))}"
        for row in last
        if row["gap_closed"]
    ]
    if not told:
        return ""
    return (
        f"After {last[0]['step']} steps, {last[0]['tokens']:,} tokens, this much of the loss that pruning cost is gone "
        f"beyond what the dense model gained by the same training: {'; '.join(told)}."
    )


def curve_section(curves: list[Row]) -> list[str]:
    """Perplexity before and after every training of one model on one text, and its distance from the control."""
    body = []
    for own in _trainings(curves):
        first, last = own[0], own[-1]
        above = "" if last["transfer"] == DENSE else with_bounds(
            *(last[name] for name in ("loss_above_control", "above_low", "above_high"))
        )  # fmt: skip
        closed = "" if last["gap_closed"] is None else percent(round(last["gap_closed"], 3))
        scores = [f"{row['perplexity']:.2f}" for row in (first, last)]
        body.append(
            [*_named(first), first["seed"], percent(round(last["measured_sparsity"], 4)), *scores, above, closed]
        )
    last = curves[-1]
    told = (
        f"Perplexity on {last['windows']} windows of {last['text']} before training and after {last['step']} steps, "
        f"{last['tokens']:,} tokens. The control is the dense model, trained alike. The loss above it, in nats with "
        "its 95 % interval over windows, is that after training. Gap closed is the share of the loss above the control "
        "that is gone since before training."
    )
    head = ["pruned by", "transfer", "seed", "zeros after", "before", "after", "loss above control", "gap closed"]
    return [told, "", *markdown(head, body), "", BUDGET]


def level_finding(levels: list[Row]) -> str:
    """One sentence on a recovery_level_table: how many levels have each verdict, and which those are that have one."""
    if not levels:
        return ""
    counts = Counter(row["verdict"] for row in levels)
    known = [row for row in levels if row["verdict"] != AT_CHANCE]
    told = "; ".join(f"{row['level']}, {', '.join(_named(row))}: {row['verdict']}" for row in known)
    return f"Of {len(levels)} levels and trainings {counts[AT_CHANCE]} are at chance{f'; {told}' if told else ''}."


def level_section(levels: list[Row]) -> list[str]:
    """Every level of one model before and after, and how many of each verdict."""
    if not levels:
        return ["No level was measured."]
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
