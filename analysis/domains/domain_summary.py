"""What summary.md says of multi-domain learning and of translation: scores, slopes, shares, what to beware of."""

from collections.abc import Callable

from analysis import drawing, tables
from analysis.domains import domain_tables
from analysis.domains.domain_tables import MULTI_DOMAIN
from analysis.tables import Row
from analysis.wording import markdown, number, strength_text

ORDER = {True: "yes", False: "no", None: "cannot be told"}


def section(table: list[Row], minorities: list[Row]) -> list[str]:
    """The lines of one of domain_tables.domain_sets: of its domain_table and minority_table."""
    lines = ["### Scores", "", *_scores(table)]
    if domain_tables.domain_curves(table):
        lines += ["", "### How fast the score falls", "", *_slopes(table)]
    if minorities:
        lines += ["", "### The same domain as minority and as majority", "", *_shares(minorities)]
    return lines


def cautions(table: list[Row], minorities: list[Row]) -> list[str]:
    """One sentence for everything that keeps a number from meaning what it seems to."""
    found = []
    for point in table:
        where = f"{point['level']} ({point['condition']})"
        if point["transfer"] == tables.DENSE and point["dense_above_chance"] is False:
            found.append(f"{where}: the dense transfer is not above chance, so its drops mean nothing.")
    lacking = {point["condition"]: None for point in table if point["dense_mean_score"] is None}
    found += [f"{condition}: there is no dense transfer to compare with." for condition in lacking]
    if len({point["level"] for point in table}) == 1:
        found.append(f"{table[0]['level']} is the only level, so that nothing is compared.")
    if table and table[0]["setting"] == MULTI_DOMAIN and not minorities:
        found.append("No domain stands in two mixtures: its share cannot be told from its own difficulty.")
    return found


def _scores(table: list[Row]) -> list[str]:
    head = ["fine-tuned on", "level", "share", "transfer", "strength", "score ± standard error", "chance", "drop",
            "95 %", "drop above chance", "95 %", "seeds"]  # fmt: skip
    body = []
    for point in table:
        is_dense = point["transfer"] == tables.DENSE
        error = "" if point["mean_stderr"] is None else f" ± {point['mean_stderr']:.3f}"
        body.append(
            [
                point["condition"], point["level"], _percent(point["share"]), point["transfer"], strength_text(point),
                f"{point['mean_score']:.3f}{error}", number(point["chance"]),
                "" if is_dense else _percent(point["normalized_drop"]),
                "" if is_dense else _interval(point, "drop"),
                "" if is_dense else _percent(point["corrected_drop"]),
                "" if is_dense else _interval(point, "corrected"), len(point["seeds"]),
            ]
        )  # fmt: skip
    return markdown(head, body)


def _slopes(table: list[Row]) -> list[str]:
    head = ["fine-tuned on", "transfer", "strength", "level", "difficulty", "Spearman", "slope", "corrected slope"]
    body, orders = [], []
    for (kind, condition, transfer, _), curves in domain_tables.domain_curves(table).items():
        levels = [domain_tables.level_statistics(points) for points in curves.values()]
        body += [
            [condition, transfer, kind, level["level"], number(level["difficulty"]), number(level["spearman"]),
             number(level["theil_sen_slope"]), number(level["corrected_slope"])]
            for level in levels
        ]  # fmt: skip
        in_order, basis = tables.slope_order(levels)
        orders.append([condition, transfer, kind, ORDER[in_order], basis])
    return [
        "Slope: Theil-Sen, normalized drop per unit of sparsity; corrected: of the score above chance.", "",
        *markdown(head, body), "", "The hypothesis says that the slope steepens with difficulty (1 - share):", "",
        *markdown(["fine-tuned on", "transfer", "strength", "each harder level falls faster", "basis"], orders),
    ]  # fmt: skip


def _shares(minorities: list[Row]) -> list[str]:
    head = ["level", "transfer", "strength", "shares", "dense", "loss as minority", "loss as majority", "difference",
            "95 %", "single seeds"]  # fmt: skip
    body = [
        [
            row["level"], row["transfer"], strength_text(row),
            _both(row, "{}_share", _percent), _both(row, "dense_{}", number), _percent(row["minority_corrected"]),
            _percent(row["majority_corrected"]), _percent(row["corrected_effect"]), _interval(row, "corrected_effect"),
            _interval({"low": row["lowest_seed_effect"], "high": row["highest_seed_effect"]}, ""),
        ]
        for row in minorities
    ]  # fmt: skip
    return [
        "Of the dense score above chance; below 0 the minority loses more. Intervals are over items and seeds.", "",
        *markdown(head, body),
    ]  # fmt: skip


def _both(row: Row, name: str, show: Callable[[float], str]) -> str:
    """A column of the minority and of the majority; empty in the mean over domains, which have their own."""
    values = [row[name.format(side)] for side in ("minority", "majority")]
    return "" if None in values else " and ".join(map(show, values))


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else drawing.percent(round(fraction, 3) + 0.0)  # no "-0 %"


def _interval(row: Row, stem: str) -> str:
    low, high = (row[f"{stem}_{side}" if stem else side] for side in ("low", "high"))
    return "" if low is None else f"{_percent(low)} to {_percent(high)}"
