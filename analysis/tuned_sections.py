"""What summary.md says of models that were fine-tuned: on one task, over several domains, and on lines between them."""

from collections import Counter
from collections.abc import Callable

from analysis.contrasts import SHORT, UNSURE, pair_sentences
from analysis.curves import curve_statistics, domain_curves, levels_by, order_cells
from analysis.estimators import MEAN_OF_ENDS, STRAIGHT_LINE
from analysis.human_gap import MEASURES, has_place, left_out, order_sentences
from analysis.lines import CONNECTED_ERROR, LINE_KEY
from analysis.names import (
    KIND_NAME,
    YES_NO,
    markdown,
    number,
    percent,
    spearman_text,
    strength_text,
    task_name,
    with_bounds,
)
from analysis.resampling import FEW_CLUSTERS
from analysis.table import (
    DENSE,
    FREEZING,
    SPARSE,
    TRANSFERS,
    Row,
    compression_order,
)
from analysis.tuned_plots import line_looks
from analysis.verdicts import CURVE_KEYS, Trends

# Appendix C: the task that it calls easy, the one whose barrier it finds higher. Of QNLI and RTE its appendix B says
# the opposite: there people are further ahead on RTE.
PAPER_PAIRS = (("qqp", "stsb"), ("rte", "qnli"))
CONNECTED = {True: "yes", False: "**no**", None: "cannot be told"}


def tuning_section(table: list[Row], gaps: list[Row], differences: list[Row], trends: Trends) -> list[str]:
    """The lines of summary.md on the fine-tuning runs of one setting, model and scope.

    Args:
        table: their table.seed_means.
        gaps: their human_gap.gap_table.
        differences: their contrasts.difference_table.
        trends: the verdicts of their curves.
    """
    titles = {
        "### How sure that is": trend_lines(trends),
        "### Tasks by the gap to people (appendix B)": gap_lines(table, gaps),
        "### The transfers against each other (section 5)": transfer_lines(differences),
    }
    more = [line for title, lines in titles.items() if lines for line in (title, "", *lines, "")]
    return [
        "### How fast the score falls", "", *_slope_table(table), "", *more,
        "### Scores", "", *_score_tables(table),
    ]  # fmt: skip


def _slope_table(table: list[Row]) -> list[str]:
    """Spearman and Theil-Sen of each curve, and for each task whether the slopes are in the order of difficulty."""
    body, orders = [], []
    for (task, kind, transfer), of_level in levels_by(
        table, "data_fraction", "task", "strength_kind", "transfer"
    ).items():
        group = list(map(curve_statistics, of_level.values()))
        place = [task_name(task), kind, transfer]
        body += [
            [
                *place, percent(level["data_fraction"]), number(level["dense_mean_score"]),
                YES_NO[level["dense_above_chance"]],
                len(level["strengths"]), spearman_text(level), number(level["theil_sen_slope"]),
            ]
            for level in group
        ]  # fmt: skip
        orders.append([*place, *order_cells(group)])
    head = ["task", "strength", "transfer", "data", "dense score", "above chance", "points", "Spearman", "slope"]
    order_head = ["task", "strength", "transfer", "each smaller amount of data falls faster", "basis"]
    return [
        "Spearman: rank correlation of sparsity with the loss of score, 1 where every step loses. Slope: Theil-Sen, "
        "normalized drop per unit of sparsity (1 - N/M for N:M), negative where the score falls. Both are over the "
        "means of the seeds. No score falls far below chance, so a drop is bounded by chance / dense - 1.",
        "",
        *markdown(head, body),
        "",
        "The hypothesis says that the slope steepens with difficulty, which here is a smaller amount of data:",
        "",
        *markdown(order_head, orders),
    ]


def _score_tables(table: list[Row]) -> list[str]:
    lines = ["Mean over seeds ± half of its 95 % Student interval, and the normalized drop.", ""]
    for task, fraction in dict.fromkeys((point["task"], point["data_fraction"]) for point in table):
        points = [point for point in table if (point["task"], point["data_fraction"]) == (task, fraction)]
        dense = [_score(point) for point in points if point["transfer"] == DENSE]
        chance = number(points[0]["chance"]) or "unknown"
        lines += [
            f"**{task_name(task)}, {percent(fraction)} data** ({points[0]['metric']}; chance {chance}): "
            f"dense transfer {dense[0] if dense else 'missing'}",
            "",
        ]
        compressed = [point for point in points if point["transfer"] != DENSE]
        transfers = [name for name in TRANSFERS if any(point["transfer"] == name for point in compressed)]
        cells: dict[tuple, dict[str, str]] = {}
        for point in sorted(compressed, key=compression_order):
            cells.setdefault((point["strength_kind"], point["strength"]), {})[point["transfer"]] = _score(point)
        body = [[strength, *(row.get(name, "") for name in transfers)] for (_, strength), row in cells.items()]
        lines += [*markdown(["strength", *transfers], body), ""]
    return lines[:-1]


def _score(point: Row) -> str:
    """0.912 ± 0.004 (-3.1 %); unknown numbers are left out."""
    text = f"{point['mean_score']:.3f}"
    if point["interval_low"] is not None:
        text += f" ± {point['mean_score'] - point['interval_low']:.3f}"
    if point["transfer"] != DENSE and point["normalized_drop"] is not None:
        text += f" ({100 * point['normalized_drop']:+.1f} %)"
    return text


def trend_lines(trends: Trends) -> list[str]:
    """The slopes with their intervals, and the verdicts; none where nothing was measured."""
    if not trends.levels:
        return []
    levels = Counter(map(_curve, trends.levels))
    head = ["task or category", "strength", "level", "slope", "slope from the floor", "5 % lost at", "seeds", "items"]
    body = [
        [
            task_name(row["task"]), row["strength_kind"], row["level"],
            *(_bounded(row, name) for name in ("slope", "corrected_slope", "amount_at_5")),
            row["seeds"] or "", row["reason"] or row["items"],
        ]
        for row in trends.levels
    ]  # fmt: skip
    return [
        "Sparse transfer, 95 % intervals over items and seeds; two seeds say little of their own spread, so that such "
        "intervals are wide. 5 % lost at: the sparsity at which 5 % of the dense score are gone.",
        "",
        *markdown(head, body),
        "",
        *[
            f"- {task_name(row['task'])} by {KIND_NAME[row['strength_kind']]}, {row['measure']} slopes: {row['text']}"
            for row in trends.orders
            if levels[_curve(row)] > 1
        ],
    ]


def _bounded(row: Row, name: str) -> str:
    return "" if row[name] is None else with_bounds(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _curve(row: Row) -> tuple:
    return tuple(row[name] for name in CURVE_KEYS)


def gap_lines(table: list[Row], gaps: list[Row]) -> list[str]:
    """The tasks from easy to hard, their drops, and whether harder tasks lose more; no lines without a known gap."""
    if not any(map(has_place, gaps)):
        return []
    head = ["task", "category", "metric", "dense", "floor", "people", "difficulty", "above floor"]
    body = [_gap_cells(gap) for gap in gaps]
    return [
        "Difficulty is the gap to people, (human - dense) / human, from these dense runs; ± is 1.96 standard errors "
        "over items. Slope: Theil-Sen, drop per unit of sparsity of the sparse transfer; from the floor: of the score "
        "above the floor, by which tasks with different metrics can be compared.",
        "",
        *markdown([*head, "drop by strength", "slope", "from the floor", "mean drop from the floor"], body),
        "",
        *[f"- {sentence}" for sentence in [*order_sentences(gaps), *left_out(table, gaps)]],
    ]


def _gap_cells(gap: Row) -> list[str]:
    difficulty, stderr = gap["difficulty"], gap["difficulty_stderr"]
    shown = "" if difficulty is None else f"{100 * difficulty:+.1f} %"
    shown += "" if stderr is None else f" ± {196 * stderr:.1f}"
    kind = gap["strength_kind"]
    drops = [
        f"{strength_text({'strength_kind': kind, 'strength': strength})}: {100 * drop:+.1f} %"
        for strength, drop in zip(gap["strengths"], gap["normalized_drops"], strict=False)
    ]
    return [
        task_name(gap["task"]), gap["category"] or "", gap["metric"].replace("_", " "),
        number(gap["dense_mean_score"]), number(gap["chance"]), number(gap["human"]), shown,
        YES_NO[gap["dense_above_chance"]], "; ".join(drops),
        *(number(gap[measure]) for measure in MEASURES),
    ]  # fmt: skip


def transfer_lines(table: list[Row]) -> list[str]:
    """The differences with their intervals, and how often each pair differs; no lines without a pair of section 5."""
    if not any(row["transfer"] == FREEZING or row["against"] == SPARSE for row in table):
        return []
    pairs = list(dict.fromkeys((row["transfer"], row["against"]) for row in table))
    cells: dict[tuple, dict[tuple, str]] = {}
    for row in table:
        place = (task_name(row["task"]), percent(row["data_fraction"]), strength_text(row))
        cells.setdefault(place, {})[row["transfer"], row["against"]] = _difference(row)
    head = [f"{SHORT[first]} - {SHORT[other]}" for first, other in pairs]
    return [
        "Differences of scores at the same strength over the seeds that both have, with 95 % intervals over items (the "
        "same resamples for both) and seeds, each by itself; **bold** where the difference is told from 0 at 5 % after "
        "Holm's correction over all differences of this figure.",
        "",
        *markdown(
            ["task", "data", "strength", *head],
            [[*place, *(own.get(pair, "") for pair in pairs)] for place, own in cells.items()],
        ),
        "",
        *[f"- {sentence}" for sentence in pair_sentences(table)],
    ]


def _difference(row: Row) -> str:
    """+0.021 [+0.010, +0.032], bold where it is sure."""
    if row["difference"] is None:
        return row["reason"]
    text = f"{row['difference']:+.3f}"
    if row["difference_low"] is not None:
        text += f" [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
    return text if row["verdict"] == UNSURE else f"**{text}**"


def domain_section(table: list[Row], minorities: list[Row]) -> list[str]:
    """The lines of one setting over several domains, model and task.

    Args:
        table, minorities: the contrasts.domain_table and minority_table of its runs.
    """
    lines = ["### Scores", "", *_domain_scores(table)]
    if domain_curves(table):
        lines += ["", "### How fast the score falls", "", *_domain_slopes(table)]
    if minorities:
        lines += ["", "### The same domain as minority and as majority", "", *_minority_shares(minorities)]
    return lines


def _domain_scores(table: list[Row]) -> list[str]:
    head = ["fine-tuned on", "level", "share", "transfer", "strength", "score ± standard error", "chance", "drop",
            "95 %", "drop above chance", "95 %", "seeds"]  # fmt: skip
    body = []
    for point in table:
        is_dense = point["transfer"] == DENSE
        error = "" if point["mean_stderr"] is None else f" ± {point['mean_stderr']:.3f}"
        body.append(
            [
                point["condition"], point["level"], _rounded_percent(point["share"]), point["transfer"],
                strength_text(point),
                f"{point['mean_score']:.3f}{error}", number(point["chance"]),
                "" if is_dense else _rounded_percent(point["normalized_drop"]),
                "" if is_dense else _percent_interval(point, "drop"),
                "" if is_dense else _rounded_percent(point["corrected_drop"]),
                "" if is_dense else _percent_interval(point, "corrected"), len(point["seeds"]),
            ]
        )  # fmt: skip
    return markdown(head, body)


def _domain_slopes(table: list[Row]) -> list[str]:
    head = ["fine-tuned on", "transfer", "strength", "level", "difficulty", "Spearman", "slope", "corrected slope"]
    body, orders = [], []
    for (kind, condition, transfer, _), of_level in domain_curves(table).items():
        levels = list(map(curve_statistics, of_level.values()))
        body += [
            [condition, transfer, kind, level["level"], number(level["difficulty"]), number(level["spearman"]),
             number(level["theil_sen_slope"]), number(level["corrected_slope"])]
            for level in levels
        ]  # fmt: skip
        orders.append([condition, transfer, kind, *order_cells(levels)])
    return [
        "Slope: Theil-Sen, normalized drop per unit of sparsity; corrected: of the score above chance.", "",
        *markdown(head, body), "", "The hypothesis says that the slope steepens with difficulty (1 - share):", "",
        *markdown(["fine-tuned on", "transfer", "strength", "each harder level falls faster", "basis"], orders),
    ]  # fmt: skip


def _minority_shares(minorities: list[Row]) -> list[str]:
    head = ["level", "transfer", "strength", "shares", "dense", "loss as minority", "loss as majority", "difference",
            "95 %", "single seeds"]  # fmt: skip
    body = [
        [
            row["level"], row["transfer"], strength_text(row),
            _both(row, "{}_share", _rounded_percent), _both(row, "dense_{}", number),
            *(_rounded_percent(row[name]) for name in ("minority_corrected", "majority_corrected", "corrected_effect")),
            _percent_interval(row, "corrected_effect"),
            _percent_interval({"low": row["lowest_seed_effect"], "high": row["highest_seed_effect"]}, ""),
        ]
        for row in minorities
    ]  # fmt: skip
    return [
        "Of the dense score above chance; below 0 the minority loses more. Intervals are over items and seeds.", "",
        *markdown(head, body),
    ]  # fmt: skip


def _both(row: Row, name: str, show: Callable[[float], str]) -> str:
    """A column of the minority and that of the majority; empty for the mean over domains."""
    values = [row[name.format(side)] for side in ("minority", "majority")]
    return "" if None in values else " and ".join(map(show, values))


def _rounded_percent(fraction: float | None) -> str:
    return "" if fraction is None else percent(round(fraction, 3) + 0.0)  # no "-0 %"


def _percent_interval(row: Row, stem: str) -> str:
    low, high = (row[f"{stem}_{side}" if stem else side] for side in ("low", "high"))
    return "" if low is None else f"{_rounded_percent(low)} to {_rounded_percent(high)}"


def line_section(table: list[Row], barriers: list[Row]) -> list[str]:
    """The lines of one model and data fraction.

    Args:
        table, barriers: the lines.line_table and barrier_table of its runs.
    """
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
            _line_cells(barriers, line_looks(table)),
        ),
        "",
        "The paper's pairs of tasks (appendix C), by the barrier in error above the line as a share "
        "of what dense is above chance, since accuracies and correlations are no common unit (the noise of what dense "
        "learned is left out of the intervals):",
        "",
        *(_pair_verdicts(barriers) or ["Neither of the pairs is there with Sparse Transfer at the same strength."]),
    ]  # fmt: skip


def _line_cells(barriers: list[Row], looks: dict[tuple, dict]) -> list[list]:
    by_line: dict[tuple, dict[tuple, Row]] = {}
    for row in barriers:
        key = tuple(row[name] for name in LINE_KEY)
        by_line.setdefault(key, {})[row["split"], row["quantity"], row["definition"]] = row
    body = []
    for (task, *key), found in by_line.items():
        error = found["validation", "error", STRAIGHT_LINE]
        body.append([
            task_name(task), looks[tuple(key)]["label"], " ".join(error["seeds"]),
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


def _pair_verdicts(barriers: list[Row]) -> list[str]:
    """A sentence for each pair of tasks and each strength of Sparse Transfer that both have."""
    lines = {
        (row["task"], *_line_key(row)): row
        for row in barriers
        if (row["split"], row["quantity"], row["definition"]) == ("validation", "error", STRAIGHT_LINE)
        and row["pair"] == "dense-sparse"
    }
    looks = line_looks(list(lines.values()))
    found = []
    for tasks_of_pair in PAPER_PAIRS:
        easy, hard = tasks_of_pair
        for key in [key for task, *key in lines if task == easy and (hard, *key) in lines]:
            names = [task_name(task) for task in tasks_of_pair]
            text = _pair_verdict(names, lines[easy, *key], lines[hard, *key])
            found.append(f"- {names[0]} and {names[1]}, {looks[tuple(key)]['label']}: {text}")
    return found


def _line_key(row: Row) -> tuple:
    return tuple(row[name] for name in LINE_KEY if name != "task")


def _pair_verdict(names: list[str], easy: Row, hard: Row) -> str:
    """Whether two barriers agree with the paper's claim that the second is higher."""
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
