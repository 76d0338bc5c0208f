"""Whether intervals cover the truth, and verdicts are false, as often as they say: simulated sweeps.

    python tests/analysis/test_coverage.py DRAWS      # the whole table; 2000 draws take half an hour

An item of the simulation is right where a uniform number, which the dense and all compressed models share, lies below
its chance to be right: of an item that the dense model gets right, a compressed one loses a share that is known. Some
outcomes change by luck alone, in both directions. Items of a cluster share part of their luck.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import scipy.special
import scipy.stats

from analysis import estimators, metrics, resampling, tolerance, verdicts
from analysis.metrics import Answers
from analysis.replicates import Columns, CurveKey, LevelCurve, ResampledRuns, curve_replicates
from analysis.table import FigureKey
from GLUE_tasks import interpolation

STRENGTHS = (0.2, 0.4, 0.6, 0.8)
CURVE = CurveKey("sparsity", "magnitude", None)
FIGURE = FigureKey(2, "model", "task")
RESAMPLES = 600


class Design(NamedTuple):
    """How large a sweep is.

    Fields:
        items: of a level.
        cluster: items that share part of their luck.
        seeds: of each compressed point, each with a loss of its own where there are several.
    """

    items: int
    cluster: int = 1
    seeds: int = 1

    def __str__(self) -> str:
        return f"{self.items} items in clusters of {self.cluster}, {self.seeds} seeds"


class Truth(NamedTuple):
    """What the models really are.

    Fields:
        dense: probability of the dense model to be right.
        losses: share of it that each strength loses.
        luck: share of the right answers that any compression changes, and as many back.
    """

    dense: float
    losses: tuple[float, ...]
    luck: float


def drawn_truth(rng: np.random.Generator) -> Truth:
    largest, dense = rng.uniform(0, 0.6), rng.uniform(0.3, 0.95)
    return Truth(dense, tuple(largest * strength for strength in STRENGTHS), rng.choice([0, 0.03, 0.1]))


def luck(design: Design, rng: np.random.Generator) -> np.ndarray:
    """Uniform numbers, (items,), whose normal quantiles are correlated by .3 within clusters."""
    if design.cluster == 1:
        return rng.random(design.items)
    clusters = rng.normal(size=design.items // design.cluster).repeat(design.cluster)
    return scipy.special.ndtr(0.3**0.5 * clusters + 0.7**0.5 * rng.normal(size=design.items))


def answers(truth: Truth, design: Design, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of the dense model (items,) and of each strength and seed, (strengths, seeds, items)."""
    dense = luck(design, rng) < truth.dense
    back = truth.luck * truth.dense / (1 - truth.dense) if truth.dense < 1 else 0.0
    lost, changed = luck(design, rng), luck(design, rng)
    found = []
    # What several seeds are about: each has a loss of its own, here about 10 % more or less.
    own = 1 + 0.1 * rng.normal(size=design.seeds) if design.seeds > 1 else np.ones(1)
    for loss in truth.losses:
        kept = np.stack([lost >= np.clip(loss * one, 0, 1) for one in own])
        # Luck takes from what is left, so that what comes back makes up for it.
        stays = changed >= truth.luck / max(1 - loss, 1e-9) if truth.luck else np.ones(design.items, bool)
        found.append(np.where(dense, kept & stays, changed < back))
    return dense, np.array(found)


def curve(truth: Truth, design: Design, rng: np.random.Generator, name: str = "level", rank: int = 0) -> LevelCurve:
    dense, compressed = answers(truth, design, rng)
    strengths = STRENGTHS[: len(truth.losses)]
    groups = np.arange(design.items) // design.cluster
    runs = np.arange(1, 1 + compressed.size // design.items).reshape(len(strengths), design.seeds).tolist()
    scores = np.concatenate([dense[None], compressed.reshape(-1, design.items)]).astype(float)
    columns = {
        (CURVE, name): Columns(groups, scores, [{0: 0}] * len(strengths) + [dict(enumerate(own)) for own in runs])
    }
    data = int(rng.integers(2**31))
    replicates = curve_replicates(columns, np.unique(groups), RESAMPLES, (data, name))[CURVE, name]
    reference = dense.mean()
    points = []
    for strength, own in zip(strengths, compressed, strict=True):
        mean = own.mean()
        points.append(
            {
                "level": name, "difficulty": float(rank), "strength": strength, "requested_sparsity": strength,
                "strength_kind": "sparsity", "mean_score": mean, "chance": None, "dense_mean_score": reference,
                "dense_above_chance": None, "normalized_drop": mean / reference - 1 if reference else None,
                "corrected_drop": None, "dataset": name, "parameter_ratio": None, "calibrated": False,
                "bytes_fraction": None,
            }
        )  # fmt: skip
    return LevelCurve(points, replicates, "")


def crossing(truth: Truth) -> float:
    """Where losses that are proportional to the strength reach 5 %."""
    rate = truth.losses[-1] / STRENGTHS[-1]
    return 0.05 / rate if rate * STRENGTHS[-1] >= 0.05 else np.inf


# Of each kind of interval its bounds, None where they are open, and the truth.
KINDS: dict[str, tuple[Callable, Callable[[Truth], float]]] = {
    "drop": (lambda found: bounds(found.points[1], "drop"), lambda truth: -truth.losses[1]),
    "slope": (lambda found: bounds(found.levels[0], "slope"), lambda truth: -truth.losses[-1] / STRENGTHS[-1]),
    "5 % lost at": (lambda found: bounds(found.levels[0], "amount_at_5"), crossing),
}


def bounds(row: dict, stem: str) -> tuple[float | None, float | None]:
    return row[f"{stem}_low"], row[f"{stem}_high"]


def covers(low: float | None, high: float | None, truth: float, reached_at_most: float = np.inf) -> bool:
    """An open bound is no bound; what lies beyond the measured is known as no more than that."""
    truth = np.inf if truth > reached_at_most else truth
    return (low is None or low <= truth) and (high is None or truth <= high)


def coverage(design: Design, draws: int, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Of each kind of interval the share that covers the truth, the mean width, and the share that is open."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[bool, float]]] = {name: [] for name in KINDS}
    for _ in range(draws):
        truth = drawn_truth(rng)
        measured = verdicts.of_figure(FIGURE, {CURVE: [curve(truth, design, rng)]})
        for name, (of, true) in KINDS.items():
            low, high = of(measured)
            width = np.nan if low is None or high is None else high - low
            found[name].append((covers(low, high, true(truth), STRENGTHS[-1]), width))
    return {
        name: (float(np.mean([one for one, _ in own])), float(np.nanmean([w for _, w in own] or [np.nan])),
               float(np.mean([np.isnan(w) for _, w in own])))
        for name, own in found.items()
    }  # fmt: skip


METRICS = ("accuracy", "f1", "matthews_correlation", "pearson")


def transfer_coverage(metric: str, design: Design, draws: int, seed: int = 0) -> tuple[float, float]:
    """Of the difference between two fine-tuned models' scores: the share that covers the truth, and the mean width."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        skill, other = rng.uniform(0.6, 0.95), rng.uniform(0.6, 0.95)
        large = simulated_answers(metric, 20_000, 1, (skill, other), rng)
        truth = np.subtract(*[metrics.resampled_scores(one, metric, 0, rng)[0].mean() for one in large])
        sides = simulated_answers(metric, design.items, design.seeds, (skill, other), rng)
        drawn = [metrics.resampled_scores(one, metric, RESAMPLES, np.random.default_rng(7)) for one in sides]
        names = [[f"{side}{run}" for run in range(design.seeds)] for side in range(2)]
        scores = {name: drawn[side][:, run] for side in range(2) for run, name in enumerate(names[side])}
        labels = sides[0].labels
        runs = ResampledRuns(
            design.items, scores, metrics.unseen_item(labels, metric, RESAMPLES, rng),
            metrics.LOWEST.get(metric, 0.0),
        )  # fmt: skip
        both = runs.of_points(names, rng)
        _, low, high = resampling.compare(np.subtract, both.point(0), both.point(1)).interval()
        found.append((low <= truth <= high, high - low))
    return tuple(np.mean(found, axis=0))


def simulated_answers(
    metric: str, items: int, seeds: int, skills: tuple[float, float], rng: np.random.Generator
) -> list[Answers]:
    """Two models' answers on the same items, one row per seed; how hard an item is, is the same for both."""
    if metric == "pearson":
        labels = rng.normal(size=items)
        shared = rng.normal(size=items)
        return [
            Answers(
                labels, skill * labels + (1 - skill**2) ** 0.5 * (0.7 * shared + 0.7 * rng.normal(size=(seeds, items)))
            )
            for skill in skills
        ]
    labels = (rng.random(items) < 0.6).astype(int)
    hard = rng.random(items)
    answered = []
    for skill in skills:
        own = np.where(rng.random((seeds, items)) < 0.7, hard, rng.random((seeds, items)))
        answered.append(Answers(labels, np.where(own < skill, labels, 1 - labels)))
    return answered


def barrier_coverage(items: int, draws: int, seed: int = 0) -> tuple[float, float]:
    """Of a barrier in error halfway between two models: the share that covers the truth, and the mean width."""
    rng, found = np.random.default_rng(seed), []
    alphas = np.array([0, 0.5, 1])
    for run in range(draws):
        start, end, height = rng.uniform(0, 0.3), rng.uniform(0, 0.3), rng.uniform(0, 0.4)
        errors = np.array([start, (start + end) / 2 + height, end])
        wrong = 0.5 * rng.random((items, 1)) + 0.5 * rng.random((items, 3))
        wrong = scipy.stats.triang.cdf(wrong, 0.5) < errors  # uniform again, and alike along the line
        line = {"label": np.zeros(items, int), "prediction": wrong.astype(int)}
        resampled = interpolation.resampled_errors("accuracy", line, run)
        described = resampling.barrier_intervals(wrong.mean(axis=0), resampled, alphas)
        (row,) = [row for row in described if row["definition"] == estimators.STRAIGHT_LINE]
        found.append((row["low"] <= height <= row["high"], row["high"] - row["low"]))
    return tuple(np.mean(found, axis=0))


def grants(truth: Truth, design: Design, draws: int, seed: int = 0) -> float:
    """How often 5 % are granted at the only strength."""
    rng, granted = np.random.default_rng(seed), 0
    for _ in range(draws):
        (row,) = tolerance.max_strengths(FIGURE, {CURVE: [curve(truth, design, rng)]})
        granted += row["largest_strength"] is not None
    return granted / draws


def verdict_shares(design: Design, draws: int, seed: int = 0) -> tuple[float, float]:
    """How often three levels that all fall alike are said to be monotonic, or not to be."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        truth = drawn_truth(rng)
        levels = [curve(truth, design, rng, name, rank) for rank, name in enumerate(("easy", "middle", "hard"))]
        (order,) = verdicts.of_figure(FIGURE, {CURVE: levels}).orders
        found.append(order["verdict"])
    return found.count(verdicts.MONOTONIC) / draws, found.count(verdicts.NOT_MONOTONIC) / draws


DESIGNS = [Design(items, 1, seeds) for items in (20, 90, 600) for seeds in (1, 2, 3, 5)]
DESIGNS += [Design(600, 10, seeds) for seeds in (1, 2, 3, 5)]
GRANTED = [Design(20), Design(90), Design(300), Design(300, 10)]


@pytest.mark.parametrize("design", [Design(20), Design(90, seeds=3), Design(600, cluster=10, seeds=2)], ids=str)
def test_intervals_cover_the_truth(design: Design):
    for name, (share, width, _) in coverage(design, draws=50).items():
        assert share >= 0.95 - 2 * (0.95 * 0.05 / 50) ** 0.5, name
        assert width < (0.35 if design.items == 600 else 2), name


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_of_transfers_differences_cover_the_truth(metric: str):
    share, width = transfer_coverage(metric, Design(90), draws=40)
    assert share >= 0.95 - 2 * (0.95 * 0.05 / 40) ** 0.5
    assert width < 0.6


def test_intervals_of_barriers_cover_the_truth():
    share, width = barrier_coverage(90, draws=40)
    assert share >= 0.95 - 2 * (0.95 * 0.05 / 40) ** 0.5
    assert width < 0.4


@pytest.mark.parametrize("design", GRANTED, ids=str)
@pytest.mark.parametrize("luck", [0.0, 0.05])
def test_a_loss_beyond_the_tolerance_is_rarely_granted(design: Design, luck: float):
    granted = grants(Truth(0.8, (0.053,), luck), design, draws=60)
    assert granted <= 0.05 + 2 * (0.05 * 0.95 / 60) ** 0.5


def test_no_loss_is_granted_where_there_are_items_enough():
    assert grants(Truth(0.8, (0.0,), 0.05), Design(300), draws=40) >= 0.5
    assert grants(Truth(0.8, (0.0,), 0.0), Design(300), draws=5) == 1


@pytest.mark.slow
def test_levels_that_fall_alike_rarely_have_a_verdict():
    assert sum(verdict_shares(Design(90), draws=30)) <= 0.05 + 2 * (0.05 * 0.95 / 30) ** 0.5


def test_few_clusters_are_refused():
    level = curve(Truth(0.8, (0.0,) * 4, 0.0), Design(90, cluster=10), np.random.default_rng(0))
    found = verdicts.of_figure(FIGURE, {CURVE: [level]})
    assert found.levels[0]["reason"] == "fewer than 10 groups of items"
    assert bounds(found.points[0], "drop") == bounds(found.levels[0], "slope") == (None, None)
    (row,) = tolerance.max_strengths(FIGURE, {CURVE: [level]})
    assert (row["largest_strength"], row["reason"]) == (None, "fewer than 10 groups of items")


def main() -> None:
    count = int(sys.argv[1])
    for design in DESIGNS:
        for name, (share, width, is_open) in coverage(design, count).items():
            print(f"{design}, {name}: {share:.3f} covered, mean width {width:.3f}, {is_open:.2f} open", flush=True)
    for metric in METRICS:
        for design in DESIGNS[:12]:
            share, width = transfer_coverage(metric, design, count)
            print(f"{design}, difference in {metric}: {share:.3f} covered, mean width {width:.3f}", flush=True)
    for items in (20, 90, 600):
        share, width = barrier_coverage(items, count)
        print(f"{items} items, barrier in error: {share:.3f} covered, mean width {width:.3f}", flush=True)
    for design in GRANTED:
        for dense in (1.0, 0.8, 0.5):
            for change in (0.0, 0.05) if dense < 1 else (0.0,):
                false = grants(Truth(dense, (0.053,), change), design, count)
                power = grants(Truth(dense, (0.0,), change), design, count)
                print(f"{design}, dense {dense}, luck {change}: granted {false:.3f} at a loss of 5.3 %, "
                      f"{power:.3f} at none", flush=True)  # fmt: skip
    for design in (Design(20), Design(90), Design(600), Design(600, 10), Design(90, 1, 3)):
        monotonic, contrary = verdict_shares(design, count)
        print(
            f"{design}: {monotonic:.3f} monotonic, {contrary:.3f} not monotonic of levels that fall alike", flush=True
        )


if __name__ == "__main__":
    main()
