"""Which answers change when a model is compressed, and how far its distribution over the options moves.

A score stands still where as many right answers become wrong as wrong ones become right. So every point of a setting
without training is compared with the dense model item by item:

    right_to_wrong, wrong_to_right   share of the items whose answer flips in that direction; flips is their sum
    changed                          share of the items with another answer, be it right or wrong
    kl                               mean over items of KL(dense || compressed), of the softmax of the options' scores

Sources: flips, all changed answers and KL are the distances of Dutta et al. ("Accuracy is not all you need", 2024,
arXiv 2407.09141). Near the dense model KL counts disagreement and says nothing of its direction (Nikolic et al.,
"Displacement is not direction", 2026, arXiv 2606.19558): so flips are reported by direction, and a paired test says
whether one of the two outweighs.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats

from analysis import estimators, resampling
from analysis.outcomes import ItemReader, joined_groups
from analysis.replicates import named_generator
from analysis.resampling import FEW_CLUSTERS, MIN_CLUSTERS, Replicates, Scores
from analysis.table import DENSE_POINT, LEVEL_KEY, Row, dense_beside, grouped, runs_of_points, select
from harness import run_folder

CHANGE, LOST, GAINED, FLIPS, CHANGED, KL = (
    "score_change", "right_to_wrong", "wrong_to_right", "flips", "changed", "kl",
)  # fmt: skip
# Range of each quantity; the KL divergence has no upper end.
RANGES = {CHANGE: (-1.0, 1.0), LOST: (0.0, 1.0), GAINED: (0.0, 1.0), FLIPS: (0.0, 1.0), CHANGED: (0.0, 1.0),
          KL: (0.0, None)}  # fmt: skip
Ranges = Mapping[str, tuple[float, float | None]]
FLIP_COLUMNS = (
    "setting", "task", "model", "level", "dataset", "reader", "metric", "reference_only",
    "compression", "magnitude_scope", "strength_kind", "strength", "seeds", "items", "clusters",
    "dense_mean_score", "dense_above_chance",
    *(f"{name}{ending}" for name in RANGES for ending in ("", "_low", "_high")),
    "kl_of", "test", "p_value", "holm_p", "verdict", "reason", "parent_quantized",
)  # fmt: skip
RAW, PER_CHARACTER = "log-likelihoods", "log-likelihoods per character"
MCNEMAR, RESAMPLED = "exact McNemar", "resampled"
CANNOT_TELL = "cannot tell"
VERDICTS = {True: "right to wrong", False: "wrong to right", None: CANNOT_TELL}  # the direction that outweighs
ALPHA = 0.05
NO_SCORES = "no option scores are recorded, so no KL"
OF_OPTIONS = ("gold", "option_count", "option_log_likelihood", "option_length")
OF_LM_EVAL = {"acc": "predicted", "acc_norm": "predicted_norm"}  # by metric, the column of the options that it chooses


class Answers(NamedTuple):
    """What one model said of the items of one level, (items,) each.

    Fields:
        items, groups, scores: as in outcomes.Outcomes.
        said: index of the option that was chosen (-1: none), or the text that was written; None where it is not kept.
        gold: index of the right option; None where answers are written.
        counts: number of options; None where answers are written.
        option_scores: the options' log-likelihoods, (items, most options), -inf where an item has fewer; None where
            they are not kept.
        scores_are: RAW, or PER_CHARACTER where the answer is chosen so and the lengths are recorded.
    """

    items: np.ndarray
    groups: np.ndarray
    scores: np.ndarray
    said: np.ndarray | None
    gold: np.ndarray | None
    counts: np.ndarray | None
    option_scores: np.ndarray | None
    scores_are: str

    def at(self, items: np.ndarray) -> "Answers":
        """The answers to these items, all of which it has, in their order."""
        order = np.argsort(self.items, kind="stable")
        rows = order[np.searchsorted(self.items, items, sorter=order)]
        return self._replace(**{
            name: values[rows]
            for name, values in self._asdict().items()
            if isinstance(values, np.ndarray)
        })  # fmt: skip


class Compared(NamedTuple):
    """One compressed point beside the dense model at one level.

    Fields:
        groups: of the items that all its runs have, (items,).
        values: by name of RANGES, (seeds, items); "changed" and "kl" may be missing.
        seeds: of the compressed runs.
        kl_of: what the KL divergence is of, "" without one.
        missing: why some of them are missing, "" where none is.
        is_binary: whether one run is compared with one run, on scores of 0 and 1.
    """

    groups: np.ndarray
    values: dict[str, np.ndarray]
    seeds: tuple[int, ...]
    kl_of: str
    missing: str
    is_binary: bool


def answers_of(row: Row, read: ItemReader) -> Answers | None:
    """What a run said at a row's level; None where it kept no items."""
    outcomes = read(row)
    if outcomes is None:
        return None
    prefix = f"level{row['level_index']}_"
    names = ("predicted", "predicted_norm", *OF_OPTIONS)
    kept = run_folder.read_items(Path(row["folder"]), [f"{prefix}{name}" for name in names])
    columns = {name.removeprefix(prefix): values for name, values in kept.items()}
    gold, counts, likelihood, lengths = (columns.get(name) for name in OF_OPTIONS)
    chosen = _chosen_column(row, columns)
    scores, scores_are = None, RAW
    if chosen is not None and likelihood is not None and counts is not None:
        if row["metric"] in ("accuracy_norm", "acc_norm") and lengths is not None:
            likelihood, scores_are = likelihood / lengths, PER_CHARACTER
        scores = padded(likelihood, counts)
    return Answers(*outcomes, columns.get(chosen), gold, counts, scores, scores_are)


def _chosen_column(row: Row, columns: Collection[str]) -> str | None:
    """The column of what a run said by the row's metric; None where the metric chooses no answer that is recorded."""
    metric, is_own = row["metric"], row.get("item_column") is None
    if row.get("reader") != "lm_eval":
        return "predicted_norm" if metric == "accuracy_norm" else "predicted"
    if "gold" not in columns:  # written answers, as the filter of the run's own metric reads them
        return "predicted" if is_own or "," not in metric else None
    if "predicted_norm" in columns or metric not in OF_LM_EVAL:
        return OF_LM_EVAL.get(metric)
    return "predicted" if is_own else None  # an older run has one column, by its own metric


def padded(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Values of the options of all items in a row as (items, most options), filled with -inf."""
    table = np.full((len(counts), max(counts, default=0)), -np.inf)
    table[np.arange(table.shape[1]) < counts[:, None]] = values
    return table


def divergence(dense: np.ndarray, compressed: np.ndarray) -> np.ndarray:
    """KL(dense || compressed) of the softmax over the options, in nats.

    Args:
        dense, compressed: scores of the options, (items, options), -inf for an option that there is not.
    Returns:
        (items,), at least 0; infinite where the compressed model gives an option no probability that dense gives some.
    """
    one, other = (scipy.special.log_softmax(scores, axis=1) for scores in (dense, compressed))
    there = np.isfinite(one)
    difference = np.subtract(one, other, out=np.zeros_like(one), where=there)
    return np.maximum((np.exp(one) * difference).sum(axis=1), 0.0)  # rounding may go below 0


def compare(compressed: dict[int, Answers | None], dense: dict[int, Answers | None]) -> Compared | str:
    """A point beside the dense model item by item, or why it cannot be compared.

    Args:
        compressed, dense: answers by seed. A seed is compared with the dense run of that seed, which was asked the
            same. A seed without one (the seed draws the calibration text alone) is compared with each dense run, and
            the mean taken.
    Returns:
        right_to_wrong of an item is max(dense - compressed score, 0), wrong_to_right the reverse: 1 or 0 for scores of
        1 and 0; of a score between them, such as f1, the part that is lost or gained. So score_change is always
        wrong_to_right - right_to_wrong.
    """
    if not dense:
        return "there is no dense run of this level"
    if None in [*compressed.values(), *dense.values()]:
        return "some runs kept no outcomes per item"
    beside = {seed: [dense[seed]] if seed in dense else list(dense.values()) for seed in compressed}
    everyone = [*compressed.values(), *(one for own in beside.values() for one in own)]
    items = everyone[0].items
    for answers in everyone[1:]:
        if answers.items is not items and not np.array_equal(answers.items, items):
            items = np.intersect1d(items, answers.items)
    if len(items) == 0:
        return "the runs have no items in common"
    shared = {id(answers): answers.at(items) for answers in everyone}
    pairs = [[(shared[id(one)], shared[id(own)]) for one in beside[seed]] for seed, own in compressed.items()]
    flat = [pair for of_seed in pairs for pair in of_seed]
    values = {
        name: np.array([np.mean([of_pair(one, own) for one, own in of_seed], axis=0) for of_seed in pairs])
        for name, of_pair in SCORED.items()
    }
    missing, kl_of = _add_answers(values, pairs)
    is_binary = len(flat) == 1 and all(np.isin(answers.scores, (0, 1)).all() for answers in flat[0])
    groups = joined_groups([one.groups for pair in flat for one in pair])
    return Compared(groups, values, tuple(compressed), kl_of, missing, is_binary)


def _score_change(dense: Answers, compressed: Answers) -> np.ndarray:
    return compressed.scores.astype(np.float64) - dense.scores


SCORED = {
    CHANGE: _score_change,
    LOST: lambda dense, compressed: np.maximum(-_score_change(dense, compressed), 0),
    GAINED: lambda dense, compressed: np.maximum(_score_change(dense, compressed), 0),
    FLIPS: lambda dense, compressed: np.abs(_score_change(dense, compressed)),
}


def _add_answers(values: dict[str, np.ndarray], pairs: list[list[tuple[Answers, Answers]]]) -> tuple[str, str]:
    """Put `changed` and `kl` where they are defined; returns why they are not, and what the KL is of."""
    alike = [[pair for pair in of_seed if asked_the_same(*pair)] for of_seed in pairs]
    if not all(alike):
        return "no dense run was asked the same questions, so no changed answers and no KL", ""
    if any(answers.said is None for of_seed in alike for pair in of_seed for answers in pair):
        return "the answers are not recorded", ""
    values[CHANGED] = np.array([
        np.mean([one.said != own.said for one, own in of_seed], axis=0, dtype=np.float64) for of_seed in alike
    ])  # fmt: skip
    scored = [answers for of_seed in alike for pair in of_seed for answers in pair]
    if any(answers.option_scores is None for answers in scored):
        return ("" if scored[0].gold is None else NO_SCORES), ""
    if len({answers.scores_are for answers in scored}) > 1:
        return "only some runs recorded the options' lengths, so no KL", ""
    distances = np.array([
        np.mean([divergence(one.option_scores, own.option_scores) for one, own in of_seed], axis=0)
        for of_seed in alike
    ])  # fmt: skip
    if not np.isfinite(distances).all():
        return "an option has no probability left, so no finite KL", ""
    values[KL] = distances
    return "", scored[0].scores_are


def asked_the_same(one: Answers, other: Answers) -> bool:
    """Whether two models were asked the same, as far as the items tell: the same options, the same ones right."""
    if one.gold is None or other.gold is None:
        return one.gold is other.gold
    return np.array_equal(one.gold, other.gold) and np.array_equal(one.counts, other.counts)


Points = list[tuple[Row, Compared | str]]  # rows of a table, each with what compare says of it


def compared_points(members: list[Row], table: list[Row], read: ItemReader | None = None) -> Points:
    """Every compressed point beside the dense model, level by level; arguments as in flip_table."""
    read, runs, found = read or ItemReader(), runs_of_points(members), []
    for (level,), points in grouped([row for row in table if row["strength_kind"] is not None], ["level"]).items():
        dense = runs.get(DENSE_POINT, {}).get(level, [])
        for point in points:
            own = runs[tuple(point[name] for name in LEVEL_KEY)][level]
            found.append((point, compare(_by_seed(own, read), _by_seed(dense_beside(dense, own), read))))
    return found


def flip_table(
    members: list[Row], table: list[Row], resamples: int, seed: int = 0, read: ItemReader | None = None,
    compared: Points | None = None,
) -> list[Row]:  # fmt: skip
    """Flips and distances of every compressed point, rows of FLIP_COLUMNS, in the order of the table.

    Args:
        members: runs of one setting, model and task (table.level_sets).
        table: their level_table.
        resamples, seed: of the intervals (resampling).
        read: reads the items of runs, each run once.
        compared: the compared_points, where they are there already.
    Returns:
        Every quantity with its paired 95 % interval over groups of items and over seeds. test, p_value: of the null
        hypothesis that both directions are equally likely, two-sided: exact McNemar (a binomial test of the flips)
        where the items are independent and one run is compared with one, else the resampler's of score_change. holm_p:
        corrected for all points of the table; verdict: the direction that outweighs by it, one of VERDICTS. reason:
        why something is None.
    """
    compared = compared_points(members, table, read) if compared is None else compared
    rows = []
    for pairs in _by_level(compared):
        name = seed, pairs[0][0]["dataset"]
        drawn = iter(replicates([own for _, own in pairs if isinstance(own, Compared)], resamples, name))
        for point, own in pairs:
            found = {"reason": own} if isinstance(own, str) else _found(own, next(drawn))
            rows.append(select({**point, **found}, FLIP_COLUMNS))
    return judged(rows)


def _by_level(compared: Points) -> list[Points]:
    found: dict[str, Points] = {}
    for point, own in compared:
        found.setdefault(point["level"], []).append((point, own))
    return list(found.values())


def _by_seed(runs: list[Row], read: ItemReader) -> dict[int, Answers | None]:
    return {row["seed"]: answers_of(row, read) for row in sorted(runs, key=lambda row: row["seed"])}


def replicates(
    points: list[Compared], resamples: int, name: tuple[int, str | None], ranges: Ranges = RANGES
) -> list[dict[str, Replicates]]:
    """By quantity, the replicates of each point; points on the same items share the draws.

    Args:
        name: of the draws: a number, and the name of the data set.
        ranges: of an item's value of each quantity that the points have.
    """
    alike: dict[tuple, list[int]] = {}
    for index, point in enumerate(points):
        alike.setdefault((point.groups.dtype.str, point.groups.tobytes()), []).append(index)
    found: dict[int, dict[str, Replicates]] = {}
    for indices in alike.values():
        own = [points[index] for index in indices]
        found |= dict(zip(indices, _on_the_same_items(own, resamples, name, ranges), strict=True))
    return [found[index] for index in range(len(points))]


def _on_the_same_items(
    points: list[Compared], resamples: int, name: tuple[int, str | None], ranges: Ranges
) -> list[dict[str, Replicates]]:
    groups = points[0].groups
    _, cluster = np.unique(groups, return_inverse=True)
    rows = [row for point in points for values in point.values.values() for row in values]
    sums = np.stack([*(np.bincount(cluster, row) for row in rows), np.bincount(cluster).astype(float)], axis=1)
    drawn = np.concatenate(list(resampling.resampled_sums(sums, resamples, named_generator(*name))))
    sizes, means = drawn[:, -1], drawn[:, :-1] / drawn[:, -1:]
    found, first = [], 0
    for point in points:
        own = {}
        for quantity, values in point.values.items():
            part = means[:, first : first + len(values)]
            first += len(values)
            both, of_items = resampling.over_seeds(part, named_generator(name[0], point.seeds))
            size = resampling.unit_size(values.mean(axis=0), groups)
            unseen = resampling.unseen_shares(sizes, size, named_generator(*name, "unseen"))
            low, high = ranges[quantity]
            # Of KL, which has no upper end, the unseen unit is as far off as the farthest item of the sample.
            scores = Scores(both, of_items, unseen, len(groups), len(sums), len(values), low,
                            float(values.max()) if high is None else high)  # fmt: skip
            own[quantity] = Replicates(
                both, of_items, scores.with_unseen(False), scores.with_unseen(True), *scores[3:6]
            )
        found.append(own)
    return found


def _found(point: Compared, drawn: dict[str, Replicates]) -> Row:
    """The columns of one point, but for the correction and the verdict."""
    row: Row = {"items": len(point.groups), "clusters": drawn[CHANGE].clusters, "kl_of": point.kl_of}
    for name, own in drawn.items():
        row |= with_interval(name, own, RANGES[name])
    row["test"], row["p_value"] = direction_test(point, drawn[CHANGE])
    few = FEW_CLUSTERS if drawn[CHANGE].clusters < MIN_CLUSTERS else ""
    return row | {"reason": "; ".join(filter(None, (few, point.missing)))}


def with_interval(name: str, drawn: Replicates, limits: tuple[float | None, float | None]) -> Row:
    """Columns of a quantity: its value in the sample and 95 % interval, as `name`, <name>_low and <name>_high.

    Args:
        limits: lowest and highest value that it can have; None where there is none.
    """
    estimate, *bounds = drawn.interval()
    # No bound is beyond the range, from which the estimate is drawn away for few groups (resampling.stretch).
    low, high = (None if bound is None else float(np.clip(bound, *limits)) for bound in bounds)
    return {name: estimate, f"{name}_low": low, f"{name}_high": high}


def direction_test(point: Compared, change: Replicates) -> tuple[str, float | None]:
    """The name and the two-sided p-value of the test of direction (flip_table); None with too few groups of items."""
    if point.is_binary and change.clusters == change.items:
        lost, gained = (int(point.values[name].sum()) for name in (LOST, GAINED))
        return MCNEMAR, float(scipy.stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return RESAMPLED, change.p_other_than_zero()


def judged(rows: list[Row]) -> list[Row]:
    """The rows with holm_p, corrected for all of them together, and verdict."""
    corrected = estimators.holm([row["p_value"] for row in rows])
    return [
        {**row, "holm_p": p_value, "verdict": _verdict(row, p_value)}
        for row, p_value in zip(rows, corrected, strict=True)
    ]


def _verdict(row: Row, p_value: float | None) -> str | None:
    if row[CHANGE] is None:
        return None
    is_sure = p_value is not None and p_value <= ALPHA
    return VERDICTS[row[CHANGE] < 0] if is_sure else CANNOT_TELL
