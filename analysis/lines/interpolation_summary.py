"""Lines between models in Markdown: ends, barriers and what they say of the paper's pairs of tasks."""

from analysis import tables
from analysis.drawing import percent
from analysis.estimators import MEAN_OF_ENDS, STRAIGHT_LINE
from analysis.lines import interpolation_tables
from analysis.lines.interpolation_figures import line_looks
from analysis.lines.interpolation_tables import CONNECTED_ERROR, LINE_KEY
from analysis.resampling import FEW_CLUSTERS
from analysis.tables import Row
from analysis.wording import markdown, with_bounds

# Appendix C: the task that it calls easy, the one whose barrier it finds higher. Of QNLI and RTE its appendix B says
# the opposite: there people are further ahead on RTE.
PAPER_PAIRS = (("qqp", "stsb"), ("rte", "qnli"))
CONNECTED = {True: "yes", False: "**no**", None: "cannot be told"}


def section(rows: list[Row]) -> list[str]:
    """The part of summary.md about one set of interpolation_tables.interpolation_sets."""
    barriers = interpolation_tables.barrier_table(rows)
    return [
        "Height of loss and error (1 - score) on the straight line from Dense Transfer's model to another. *Line*: the "
        "highest point above the straight line between the two ends' values; *ends*: above the mean of the two ends "
        "(Frankle et al. 2020), which is at least half of what the ends differ by, barrier or not. In brackets: 95 % "
        "interval over items and seeds. Connected: barrier in error above the line below "
        f"{percent(CONNECTED_ERROR)} (their threshold), with its whole interval.",
        "",
        *markdown(
            ["task", "line to", "seeds", "score at the ends", "error: line", "error: ends", "loss: line", "loss: ends",
             "training loss: line", "connected"],
            _lines(barriers, line_looks(interpolation_tables.interpolation_table(rows))),
        ),
        "",
        "The paper's pairs of tasks (appendix C), by the barrier in error above the line as a share "
        "of what dense is above chance, since accuracies and correlations are no common unit (the noise of what dense "
        "learned is left out of the intervals):",
        "",
        *(_verdicts(barriers) or ["Neither of the pairs is there with Sparse Transfer at the same strength."]),
    ]  # fmt: skip


def _lines(barriers: list[Row], looks: dict[tuple, dict]) -> list[list]:
    by_line: dict[tuple, dict[tuple, Row]] = {}
    for row in barriers:
        key = tuple(row[name] for name in LINE_KEY)
        by_line.setdefault(key, {})[row["split"], row["quantity"], row["definition"]] = row
    body = []
    for (task, *key), found in by_line.items():
        error = found["validation", "error", STRAIGHT_LINE]
        body.append([
            tables.task_name(task), looks[tuple(key)]["label"], " ".join(error["seeds"]),
            f"{1 - error['start']:.3f}, {1 - error['end']:.3f}",
            *(
                _barrier(found[split, quantity, definition])
                for split, quantity, definition in (
                    ("validation", "error", STRAIGHT_LINE), ("validation", "error", MEAN_OF_ENDS),
                    ("validation", "loss", STRAIGHT_LINE), ("validation", "loss", MEAN_OF_ENDS),
                    ("train", "loss", STRAIGHT_LINE),
                )
            ),
            CONNECTED[error["connected"]],
        ])  # fmt: skip
    return body


def _barrier(row: Row) -> str:
    return with_bounds(row["mean_barrier"], row["interval_low"], row["interval_high"])


def _verdicts(barriers: list[Row]) -> list[str]:
    """A sentence for each pair of tasks and each strength of Sparse Transfer that both have."""
    lines = {
        (row["task"], *_line(row)): row
        for row in barriers
        if (row["split"], row["quantity"], row["definition"]) == ("validation", "error", STRAIGHT_LINE)
        and row["pair"] == "dense-sparse"
    }
    looks = line_looks(list(lines.values()))
    found = []
    for tasks_of_pair in PAPER_PAIRS:
        easy, hard = tasks_of_pair
        for key in [key for task, *key in lines if task == easy and (hard, *key) in lines]:
            names = [tables.task_name(task) for task in tasks_of_pair]
            text = _verdict(names, lines[easy, *key], lines[hard, *key])
            found.append(f"- {names[0]} and {names[1]}, {looks[tuple(key)]['label']}: {text}")
    return found


def _line(row: Row) -> tuple:
    return tuple(row[name] for name in LINE_KEY if name != "task")


def _verdict(names: list[str], easy: Row, hard: Row) -> str:
    """What two barriers say of the paper's claim that the second is higher."""
    if easy["share_of_learned"] is None or hard["share_of_learned"] is None:
        return "dense is not above chance on both, so nothing can be said."
    if easy["share_low"] is None or hard["share_low"] is None:
        return f"{FEW_CLUSTERS}, so nothing can be said."
    shares = f"{_share(easy)} and {_share(hard)}"
    if hard["share_low"] > easy["share_high"]:
        return f"{shares}: higher on {names[1]}, as the paper says."
    if easy["share_low"] > hard["share_high"]:
        return f"{shares}: higher on {names[0]}, against the paper."
    return f"{shares}: the intervals overlap, so which is higher cannot be told."


def _share(row: Row) -> str:
    low, high = 100 * row["share_low"], 100 * row["share_high"]
    return f"{100 * row['share_of_learned']:.1f} % [{low:.1f}, {high:.1f}]"


def cautions(rows: list[Row]) -> list[str]:
    """One sentence for everything that keeps a line from meaning what it seems to."""
    table = interpolation_tables.interpolation_table(rows)
    starts = [point for point in table if point["alpha"] == 0]
    at_chance = dict.fromkeys(point["task"] for point in starts if point["dense_above_chance"] is False)
    found = [
        f"{tables.task_name(task)}: DENSE AT CHANCE at alpha 0, so barriers from there mean nothing."
        for task in at_chance
    ]
    tasks = dict.fromkeys(point["task"] for point in starts)
    controlled = {point["task"] for point in starts if point["pair"] == "dense-dense"}
    lacking = [tables.task_name(task) for task in tasks if task not in controlled]
    if lacking:
        found.append(
            f"{', '.join(lacking)}: no dense-dense line, so how high the barrier between two seeds is remains unknown."
        )
    return found
