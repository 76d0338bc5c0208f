"""Appendix B: how difficult a fine-tuned task is by the gap between people and the dense model, and what pruning costs.

Difficulty is (human - dense) / human, from the dense runs of the tree itself: a model that learned a task badly makes
it difficult. Tasks are grouped as the paper and its first version group them. Their metrics have different floors:
accuracy falls to the share of the largest class, or to one of the options; Matthews and other correlations fall to 0.
The floor bounds a normalized drop, so that every drop stands beside the one that counts from the floor.
"""

import itertools
import statistics
from typing import NamedTuple

from analysis import estimators
from analysis.curves import curve_statistics, curves_by
from analysis.names import KIND_NAME, task_name
from analysis.table import DENSE, KINDS, POINT_COLUMNS, SPARSE, Row

CATEGORIES = ("single sentence", "sentence similarity", "natural language inference", "commonsense reasoning",
              "arithmetic reasoning")  # fmt: skip
# Tasks for which no score of people is published, easy to hard as the paper's first version has them.
UNMEASURED = ("mawps", "svamp")
EASY, HARD, ONLY = "easy", "hard", "only"
# The measures by which harder tasks may lose more, as a sentence names them.
MEASURES = {
    "theil_sen_slope": "by the raw slope",
    "corrected_slope": "by the slope from the floor",
    "mean_corrected_drop": "by the mean drop from the floor",
}
HUMAN_GAP_COLUMNS = (
    "model", "magnitude_scope", "category", "task", "metric", "data_fraction", "seeds", "dense_mean_score", "human",
    "difficulty", "difficulty_stderr", "chance", "dense_above_chance", "strength_kind", "strengths", "mean_scores",
    "normalized_drops", "corrected_drops", "spearman", "theil_sen_slope", "corrected_slope", "mean_drop",
    "mean_corrected_drop", "source",
)  # fmt: skip
FIGURE_COLUMNS = ("category", "place", "human", *POINT_COLUMNS)


class Human(NamedTuple):
    """What people reach on a task.

    Fields:
        category: one of CATEGORIES.
        scores: fraction by metric; empty where nobody measured them.
        source: who measured it.
    """

    category: str
    scores: dict[str, float]
    source: str


MUPPET = "Nangia and Bowman 2019 (Human vs. Muppet), GLUE test sets, non-experts"
# Source: the nine GLUE tasks as the two authors measured them for the benchmark's own table; the others as the authors
# of the data sets. The paper prints the same for the eight tasks that it has (CommonsenseQA's authors measured 88.9).
HUMAN: dict[str, Human] = {
    "cola": Human(CATEGORIES[0], {"matthews_correlation": 0.664}, MUPPET),
    "sst2": Human(CATEGORIES[0], {"accuracy": 0.978}, MUPPET),
    "mrpc": Human(CATEGORIES[1], {"accuracy": 0.808, "f1": 0.863}, MUPPET),
    "stsb": Human(CATEGORIES[1], {"pearson": 0.927, "spearmanr": 0.926}, MUPPET),
    "qqp": Human(CATEGORIES[1], {"accuracy": 0.804, "f1": 0.595}, MUPPET),
    "mnli": Human(CATEGORIES[2], {"accuracy": 0.920}, f"{MUPPET}, matched"),
    "qnli": Human(CATEGORIES[2], {"accuracy": 0.912}, MUPPET),
    "rte": Human(CATEGORIES[2], {"accuracy": 0.936}, MUPPET),
    "wnli": Human(CATEGORIES[2], {"accuracy": 0.959}, MUPPET),
    "winogrande": Human(CATEGORIES[3], {"accuracy": 0.940}, "Sakaguchi et al. 2020 (WinoGrande)"),
    "commonsense_qa": Human(CATEGORIES[3], {"accuracy": 0.890}, "Talmor et al. 2019 (CommonsenseQA), rounded there"),
    **{task: Human(CATEGORIES[4], {}, "") for task in UNMEASURED},
}


def human_score(task: str, metric: str) -> float | None:
    """What people reach on a task by a metric, as a fraction; None where nobody measured it."""
    return HUMAN[task].scores.get(metric) if task in HUMAN else None


def gap_table(table: list[Row]) -> list[Row]:
    """One row of HUMAN_GAP_COLUMNS for each task with a dense run and kind of strength, from easy to hard.

    Args:
        table: the table.seed_means of one setting, model and magnitude scope.
    Returns:
        Each task at the largest data fraction that it has a dense run of. strengths, mean_scores, normalized_drops and
        corrected_drops run along the curve of the sparse transfer, from weak to strong; they are empty where that was
        not run or a drop is not defined. mean_drop and mean_corrected_drop are means along the curve; unlike a slope
        they also count what is lost before the first strength. human, difficulty and its standard error over items are
        None where nobody measured people, and such tasks come last.
    """
    of_transfer = curves_by(table, "task", "strength_kind", "transfer", "data_fraction")
    found = []
    references: dict[str, Row] = {}
    for point in table:
        if point["transfer"] == DENSE:
            references.setdefault(point["task"], point)  # the table starts with the largest fraction
    for dense in references.values():
        of_kind = {kind: of_transfer.get((dense["task"], kind, SPARSE, dense["data_fraction"]), []) for kind in KINDS}
        found += [_gap_row(dense, kind, points) for kind, points in of_kind.items() if points]
        if not any(of_kind.values()):
            found.append(_gap_row(dense, None, []))
    return sorted(found, key=_from_easy_to_hard)


def _gap_row(dense: Row, kind: str | None, points: list[Row]) -> Row:
    task, metric = dense["task"], dense["metric"]
    human = human_score(task, metric)
    score, stderr = dense["mean_score"], dense["mean_stderr"]
    same = ("model", "task", "metric", "data_fraction", "seeds", "chance", "dense_above_chance")
    curve = curve_statistics(points) if points else {}
    drops, corrected = _along(points, "normalized_drop"), _along(points, "corrected_drop")
    return {
        **{name: dense[name] for name in same},
        "magnitude_scope": (points or [dense])[0]["magnitude_scope"],
        "category": HUMAN[task].category if task in HUMAN else None,
        "dense_mean_score": score,
        "human": human,
        "difficulty": None if human is None else estimators.human_gap(human, score),
        "difficulty_stderr": None if None in (human, stderr) else stderr / human,
        "strength_kind": kind,
        "strengths": curve.get("strengths", ()),
        "mean_scores": tuple(point["mean_score"] for point in points),
        "normalized_drops": drops,
        "corrected_drops": corrected,
        "mean_drop": statistics.fmean(drops) if drops else None,
        "mean_corrected_drop": statistics.fmean(corrected) if corrected else None,
        **{name: curve.get(name) for name in ("spearman", "theil_sen_slope", "corrected_slope")},
        "source": HUMAN[task].source if human is not None else None,
    }


def _along(points: list[Row], name: str) -> tuple[float, ...]:
    """A value at each point of a curve; empty where it is not defined at one of them."""
    values = tuple(point[name] for point in points)
    return () if None in values else values


def _from_easy_to_hard(row: Row) -> tuple:
    kind, difficulty = row["strength_kind"], row["difficulty"]
    return difficulty is None, difficulty or 0.0, row["task"], -1 if kind is None else KINDS.index(kind)


def easy_and_hard(gaps: list[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """The tasks that the figure human_gap shows, by kind of strength and category: EASY and HARD, or the ONLY one.

    Args:
        gaps: a gap_table.
    Returns:
        Rows of the table. Of more than two tasks those with the smallest and the largest difficulty, among those whose
        dense model learned the task where there are two such. Those of UNMEASURED have no difficulty and stand in its
        order. A category without a curve is not there.
    """
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for kind, category in itertools.product(KINDS, CATEGORIES):
        drawn = [row for row in gaps if (row["strength_kind"], row["category"]) == (kind, category)]
        drawn = sorted(filter(has_place, drawn), key=_unmeasured_order)
        learned = [row for row in drawn if row["dense_above_chance"] is not False]
        shown = learned if len(learned) > 1 else drawn
        if len(shown) == 1:
            found[kind, category] = {ONLY: shown[0]}
        elif shown:
            found[kind, category] = {EASY: shown[0], HARD: shown[-1]}
    return found


def comparable_pairs(gaps: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """The easy and the hard task of each kind of strength and category, where people were measured on both."""
    return {
        key: [*places.values()]
        for key, places in easy_and_hard(gaps).items()
        if len(places) > 1 and all(gap["difficulty"] is not None for gap in places.values())
    }


def has_place(gap: Row) -> bool:
    """Whether the task has a rank of difficulty in its category."""
    return gap["difficulty"] is not None or gap["task"] in UNMEASURED


def _unmeasured_order(gap: Row) -> int:
    return UNMEASURED.index(gap["task"]) if gap["task"] in UNMEASURED else 0


def figure_table(table: list[Row], gaps: list[Row]) -> list[Row]:
    """The points of the figure human_gap, rows of FIGURE_COLUMNS; empty where no category has a curve.

    Args:
        table, gaps: the table.seed_means of one setting, model and scope, and their gap_table.
    Returns:
        Of each task shown, the dense and the sparse transfer, with the gap to people as the difficulty.
    """
    found = []
    for (kind, category), shown in easy_and_hard(gaps).items():
        for place, gap in shown.items():
            own = {"category": category, "place": place, "human": gap["human"], "difficulty": gap["difficulty"]}
            key = (gap["task"], gap["data_fraction"])
            points = [point for point in table if (point["task"], point["data_fraction"]) == key]
            wanted = ((DENSE, None), (SPARSE, kind))
            found += [{**point, **own} for point in points if (point["transfer"], point["strength_kind"]) in wanted]
    return [point for number, point in enumerate(found) if point not in found[:number]]


def from_the_floor(point: Row) -> Row:
    """The point with its scores less chance, to be drawn in percent of the dense score above chance.

    Returns:
        relative_percent is None where chance is not known or the dense model not above it.
    """
    chance, drop = point["chance"], point["corrected_drop"]
    if drop is None:
        return {**point, "relative_percent": None}
    scores = ("mean_score", "lowest_score", "highest_score", "dense_mean_score")
    lowered = {name: point[name] - chance for name in scores}
    bounds = {f"drop_{end}": point.get(f"corrected_{end}") for end in ("low", "high")}
    return {**point, **lowered, **bounds, "chance": 0.0, "relative_percent": 100 * (1 + drop)}


def pairs_in_order(gaps: list[Row], measure: str) -> tuple[int, int]:
    """The number of pairs of tasks of which the harder one loses more, and the number of pairs that can be compared.

    Args:
        gaps: rows of a gap_table of one kind of strength.
        measure: one of MEASURES; more negative is a larger loss.
    Returns:
        A pair can be compared where both tasks have the same strengths, the measure and a difficulty, and their dense
        models are above chance. By luck alone about half of the pairs are in the order of the hypothesis.
    """
    known = [gap for gap in gaps if None not in (gap[measure], gap["difficulty"])]
    known = [gap for gap in known if gap["dense_above_chance"] is not False]
    pairs = [(one, other) for one, other in itertools.combinations(known, 2) if one["strengths"] == other["strengths"]]
    signs = [(one["difficulty"] - other["difficulty"]) * (one[measure] - other[measure]) for one, other in pairs]
    return sum(sign < 0 for sign in signs), len(signs)


def left_out(table: list[Row], gaps: list[Row]) -> list[str]:
    """One sentence for everything in the paper's figure, or in the tree, that the figure human_gap does not show."""
    shown = easy_and_hard(gaps)
    drawn = {gap["task"] for places in shown.values() for gap in places.values()}
    found = []
    for category in CATEGORIES:
        if not any(name == category for _, name in shown):
            found.append(f"No curve of {category}.")
        found += [
            f"{category.capitalize()} has {task_name(places[ONLY]['task'])} alone in {KIND_NAME[kind]}."
            for (kind, name), places in shown.items()
            if name == category and ONLY in places
        ]
    unseen = {gap["task"]: gap["human"] for gap in gaps if gap["task"] not in drawn}
    unknown = [task_name(task) for task, human in unseen.items() if human is None]
    between = [task_name(task) for task, human in unseen.items() if human is not None]
    without = {point["task"] for point in table} - {gap["task"] for gap in gaps}
    if unknown:
        found.append(f"No human score is known of {', '.join(unknown)}.")
    if ordered := [task_name(task) for task in UNMEASURED if task in drawn]:
        found.append(f"No human score is known of {', '.join(ordered)}: in the order of the paper's first version.")
    if between:
        found.append(f"Not drawn: {', '.join(between)} (no curve, not learned, or between easy and hard).")
    if without:
        found.append(f"No dense run, so no difficulty: {', '.join(map(task_name, sorted(without)))}.")
    return found


def order_sentences(gaps: list[Row]) -> list[str]:
    """For each kind of strength, whether harder tasks lose more: over all pairs of tasks, and within categories.

    Args:
        gaps: a gap_table.
    """
    return [
        _order_sentence(kind, [gap for gap in gaps if gap["strength_kind"] == kind])
        for kind in KINDS
        if any(gap["strength_kind"] == kind for gap in gaps)
    ]


def _order_sentence(kind: str, own: list[Row]) -> str:
    told = []
    for measure, words in MEASURES.items():
        held, total = pairs_in_order(own, measure)
        within = [pairs_in_order(list(places.values()), measure) for places in easy_and_hard(own).values()]
        if total:
            right, categories = map(sum, zip(*within, strict=True)) if within else (0, 0)
            told.append(f"{words} in {held} of {total} pairs of tasks and {right} of {categories} categories")
    if not told:
        return (
            f"{KIND_NAME[kind]}: no two tasks of known difficulty have the same strengths, so it cannot be told which "
            "loses more."
        )
    return f"{KIND_NAME[kind]}: the harder task loses more {', '.join(told)} (by luck alone in half)."
