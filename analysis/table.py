"""A tree of runs as tables: one row for each point, the mean over its seeds, beside the dense model.

The rows of runs are what harness.run_folder.read_runs returns: one for each run and level. Runs that differ in their
seed alone make a point. Points that differ in the strength of compression alone make a curve. A value that is not known
is None, never NaN and never 0.
"""

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from analysis import estimators
from analysis.names import COMPRESSIONS, base_name, with_full_names
from analysis.outcomes import (
    ItemReader,
    on_shared_items,
    paired_difference,
    paired_loss,
    window_divergence,
    with_error,
)
from analysis.sizes import NM_PAIR, PAIRS, amount, bytes_fraction_of_run, parts_of
from harness import run_folder

DENSE = "dense_transfer"
FREEZING = "dense_transfer_freezing"
SPARSE = "sparse_transfer"
SPARSE_TO_DENSE = "sparse_to_dense"
TRANSFERS = (DENSE, FREEZING, SPARSE, SPARSE_TO_DENSE)
KINDS = ("sparsity", "nm", "bits", "rank", *PAIRS, "bytes")  # of strength, in the order of panels

FINE_TUNING_SETTINGS = (1, 5)
OWN_TASK = "own_task"
LEVEL_SETTINGS = (2, 3, 4, 5, 6, OWN_TASK)
MULTI_DOMAIN, TRANSLATION = "multi_domain", "translation"
INTERPOLATION, PERPLEXITY = "interpolation", "perplexity"

POINT_COLUMNS = (
    "setting", "model", "magnitude_scope", "task", "data_fraction", "difficulty", "transfer",
    "strength_kind", "strength", "requested_sparsity", "measured_sparsity",
    "metric", "mean_score", "interval_low", "interval_high", "lowest_score", "highest_score", "seeds",
    "dense_mean_score", "relative_percent", "normalized_drop", "drop_low", "drop_high", "corrected_drop",
    "corrected_low", "corrected_high", "chance", "mean_stderr", "dense_above_chance",
)  # fmt: skip
LEVEL_COLUMNS = (
    "setting", "task", "model", "level", "difficulty", "reference_only", "dataset", "reader", "metric",
    "compression", "magnitude_scope", "strength_kind", "strength", "requested_sparsity", "measured_sparsity",
    "parameter_ratio", "bytes_fraction", "calibrated", "seeds", "num_examples", "mean_score", "lowest_score",
    "highest_score", "mean_stderr", "metrics", "facts", "chance", "human", "dense_mean_score", "dense_above_chance",
    "relative_percent", "normalized_drop", "drop_low", "drop_high", "corrected_drop", "points_drop", "points_stderr",
    "paired_items", "unpaired_items", "parent_quantized",
)  # fmt: skip
PERPLEXITY_COLUMNS = (
    "model", "text", "compression", "magnitude_scope", "strength_kind", "strength", "requested_sparsity",
    "measured_sparsity", "parameter_ratio", "mean_perplexity", "lowest_perplexity", "highest_perplexity", "mean_stderr",
    "loss_difference", "loss_difference_stderr", "kl", "kl_stderr", "vocabulary", "windows", "calibrated", "seeds",
    "parent_quantized",
)  # fmt: skip

# What makes a point of fine-tuning, and of a setting without training besides the level.
TUNING_KEY = ("task", "data_fraction", "transfer", "strength_kind", "strength")
LEVEL_KEY = ("compression", "magnitude_scope", "strength_kind", "strength")
DENSE_POINT = ("dense", None, None, None)  # by LEVEL_KEY

Row = dict[str, Any]


class FigureKey(NamedTuple):
    """What the runs of one figure share."""

    setting: int | str
    model: str
    task: str


def is_fine_tuning_run(row: Row) -> bool:
    """Whether a row is a run of one fine-tuned task: GLUE, multiple choice, or a user's files."""
    return row["setting"] in FINE_TUNING_SETTINGS and row.get("transfer") is not None


def is_level_run(row: Row) -> bool:
    """Whether a row is of a setting without training; fine-tuning has a setting 5 too, with a transfer."""
    return row["setting"] in LEVEL_SETTINGS and row.get("transfer") is None


def is_domain_run(row: Row) -> bool:
    """Whether a row is of multi-domain learning or translation."""
    return row["setting"] in (MULTI_DOMAIN, TRANSLATION)


def grouped(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple, list[Row]]:
    """The rows by their values of `names`, in the order in which the values first occur."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def sets(rows: list[Row], belongs: Callable[[Row], bool], names: Sequence[str]) -> dict[tuple, list[Row]]:
    """The runs of one kind by what those of one figure share, sorted.

    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    run_folder.check_runs(rows)
    found = grouped(filter(belongs, with_full_names(rows)), names)
    return dict(sorted(found.items(), key=lambda entry: [(isinstance(value, str), value) for value in entry[0]]))


def figure_sets(rows: list[Row]) -> dict[tuple[int, str, str | None], list[Row]]:
    """The fine-tuning runs that belong in one figure, by setting, model and magnitude scope.

    Dense runs stand in the set of every scope of their setting and model; other runs without a scope (N:M) stand in the
    first alone, so that no test counts them twice. The scope is None where no run has one.

    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    found = {}
    for (setting, model), members in sets(rows, is_fine_tuning_run, ("setting", "model")).items():
        first, *others = sorted({scope_of(row) for row in members} - {None}) or [None]
        found[setting, model, first] = [row for row in members if scope_of(row) in (first, None)]
        for scope in others:
            own = [row for row in members if scope_of(row) == scope or row["strength_kind"] is None]
            found[setting, model, scope] = own
    return found


def level_sets(rows: list[Row]) -> dict[FigureKey, list[Row]]:
    """The runs of settings without training that belong in one figure; raises as figure_sets does."""
    return {FigureKey(*key): own for key, own in sets(rows, is_level_run, FigureKey._fields).items()}


def domain_sets(rows: list[Row]) -> dict[FigureKey, list[Row]]:
    """The runs of multi-domain learning and translation that belong in one figure; raises as figure_sets does."""
    return {FigureKey(*key): own for key, own in sets(rows, is_domain_run, FigureKey._fields).items()}


def perplexity_sets(rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """The perplexity runs that belong in one figure, by PERPLEXITY, model and text; raises as figure_sets does."""
    return sets(rows, lambda row: row["setting"] == PERPLEXITY, ("setting", "model", "level"))


def line_sets(rows: list[Row]) -> dict[tuple[str, str, float], list[Row]]:
    """The lines between models that belong in one figure, by setting, model and data fraction; raises likewise."""
    return sets(rows, lambda row: row["setting"] == INTERPOLATION, ("setting", "model", "data_fraction"))


def only_set(found: dict[tuple, list[Row]], names: Sequence[str] = FigureKey._fields) -> list[Row]:
    """The runs of the one figure that there is; none where there is none.

    Args:
        found: runs by what those of one figure share.
        names: of the parts of the keys.
    Raises:
        ValueError: runs of several figures.
    """
    if len(found) > 1:
        listed = "; ".join(", ".join(f"{name} {part}" for name, part in zip(names, key, strict=True)) for key in found)
        raise ValueError(f"the runs belong in {len(found)} figures ({listed}); take those of one")
    return next(iter(found.values()), [])


def scope_of(row: Row) -> str | None:
    """The magnitude scope where it counts: dense runs have none, and N:M compares within a group."""
    return row.get("magnitude_scope") if row["strength_kind"] == "sparsity" else None


def mean_of(rows: list[Row], name: str) -> float | None:
    """Mean of a column over rows; None if any row lacks it: the mean of the others would be of another set of runs."""
    values = [row.get(name) for row in rows]
    return None if not values or None in values else statistics.fmean(values)


def is_above_chance(runs: list[Row]) -> bool | None:
    """Whether the mean score of runs on the same items is above chance; None without runs, chance or standard error."""
    values = [mean_of(runs, name) for name in ("score", "chance", "stderr")]
    return None if None in values else estimators.above_chance(*values, items=runs[0]["num_examples"])


def drop(score: float, dense: float | None, chance: float | None = 0.0, learned: bool | None = None) -> float | None:
    """What is lost of the dense score above `chance`, as a share of it: negative where the score falls.

    Args:
        score, dense: of the compressed and of the dense model, each a mean over seeds.
        chance: 0 for the normalized drop of the paper (section 2), the chance level for the chance-corrected one.
        learned: whether the dense model is above chance.
    Returns:
        None where there is no dense score or chance, and where the dense score is not above chance.
    """
    if dense is None or chance is None or learned is False:
        return None
    return estimators.normalized_drop(score - chance, dense - chance)


def against_dense(score: float, dense: list[Row], chance: float | None) -> Row:
    """The columns that compare a mean score with the mean of dense runs; None where there is nothing to compare."""
    reference, learned = mean_of(dense, "score"), is_above_chance(dense)
    normalized = drop(score, reference)
    return {
        "dense_mean_score": reference,
        "dense_above_chance": learned,
        "relative_percent": None if normalized is None else 100 * score / reference,
        "normalized_drop": normalized,
        "corrected_drop": drop(score, reference, chance, learned),
        "points_drop": None if reference is None else score - reference,
    }


def seed_mean(runs: list[Row], dense: list[Row]) -> Row:
    """One point: the mean over runs that differ in their seed alone, beside the dense runs of the same level.

    Returns:
        What the runs share, and: mean_score with Student's 95 % interval over seeds (None with one seed), lowest_score
        and highest_score, mean_stderr (the standard error over items, mean over seeds), the means of measured_sparsity,
        parameter_ratio and chance, and the columns of against_dense.
    """
    first, scores = runs[0], [run["score"] for run in runs]
    mean, low, high = estimators.mean_interval(scores)
    chance = mean_of(runs, "chance")
    return {
        **first,
        "magnitude_scope": scope_of(first),
        "reference_only": bool(first.get("facts", {}).get("reference_only")),
        "calibrated": first.get("compression_recipe") is not None,
        "seeds": tuple(sorted(run["seed"] for run in runs)),
        "num_examples": max(run["num_examples"] for run in runs),
        "measured_sparsity": mean_of(runs, "measured_sparsity"),
        "parameter_ratio": mean_of(runs, "parameter_ratio"),
        "mean_score": mean,
        "interval_low": low,
        "interval_high": high,
        "lowest_score": min(scores),
        "highest_score": max(scores),
        "mean_stderr": mean_of(runs, "stderr"),
        "chance": chance,
        **against_dense(mean, dense, chance),
    }


def select(row: Row, columns: Iterable[str]) -> Row:
    """The columns of a row; None where it lacks one."""
    return {name: row.get(name) for name in columns}


def seed_means(rows: list[Row]) -> list[Row]:
    """Points of fine-tuning, rows of POINT_COLUMNS: by task, from much training data to little, from weak to strong.

    Args:
        rows: runs of one setting, model and magnitude scope (figure_sets); runs of other kinds are passed over.
    Returns:
        Each point stands beside the dense transfer with the same task and data fraction, of its own seeds
        (dense_beside). magnitude_scope of the dense transfer is that of the set. drop_low to corrected_high:
        intervals.with_tuned_intervals.
    Raises:
        ValueError: runs that must not be averaged, or that belong in several figures.
    """
    found = figure_sets(rows)
    members = only_set(found, ("setting", "model", "scope"))
    points = grouped(members, TUNING_KEY)
    table = []
    for (task, fraction, *_), runs in points.items():
        dense = points.get((task, fraction, DENSE, None, None), [])
        point = seed_mean(runs, dense_beside(dense, runs))
        if point["strength_kind"] is None:
            ((*_, point["magnitude_scope"]),) = found
        table.append(select(point, POINT_COLUMNS))

    def place(point: Row) -> tuple:
        transfer = TRANSFERS.index(point["transfer"])
        return point["task"], -point["data_fraction"], transfer, compression_order(point)

    return sorted(table, key=place)


def level_table(rows: list[Row], read: ItemReader | None = None) -> list[Row]:
    """Points of settings without training, rows of LEVEL_COLUMNS: levels from easy to hard, dense first, weak to
    strong.

    Args:
        rows: runs of any setting; those of other kinds are passed over.
        read: reads the items of runs, each run once.
    Returns:
        Levels whose difficulty is not known come after the others, then mere references. In setting 5 the difficulty is
        the gap to people, which needs a dense and a human score. mean_stderr is the standard error over groups of
        items. A point is compared with the dense runs of its own seeds, on the items that all runs of its curve and
        these have: scores and drops are of them, as the intervals are (replicates.resampled_curves). points_stderr is
        that of points_drop, each item compared with the dense model's outcome on it; items that either side lacks are
        left out and counted as unpaired. drop_low and drop_high: intervals.with_intervals. metrics, facts and chance
        are of each run's own items.
    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    read = read or ItemReader()
    return [point for members in level_sets(rows).values() for point in _level_points(members, read)]


def _level_points(members: list[Row], read: ItemReader) -> list[Row]:
    members = [with_error(row, read) for row in members]
    runs = runs_of_points(members)
    dense = runs.get(DENSE_POINT, {})
    difficulty = {row["level"]: _difficulty(row, dense.get(row["level"], [])) for row in members}
    # The runs have one recipe, so that one run's arguments tell whether all used the chat template.
    arguments = run_folder.recorded_arguments(Path(members[0]["folder"])) or {}
    prompted = " in the chat template" if arguments.get("chat_template") else ""
    shared, table = _on_shared_items(runs, read), []
    for key, levels in runs.items():
        for level, own in levels.items():
            beside = dense_beside(dense.get(level, []), own)
            like = shared.get((*key[:-1], level), {})
            point = seed_mean(
                [like.get(row["folder"], row) for row in own], [like.get(row["folder"], row) for row in beside]
            )
            point["difficulty"] = difficulty[level]
            point["reader"] = point.get("reader") and point["reader"] + prompted
            point |= {name: _means_as_texts([run.get(name, {}) for run in own]) for name in ("metrics", "facts")}
            point["bytes_fraction"] = bytes_fraction_of_run(point)
            if key != DENSE_POINT:
                point |= paired_difference(own, beside, read)
            table.append(select(point, LEVEL_COLUMNS))
    order = _level_order(members, difficulty)
    return sorted(table, key=lambda row: (order[row["level"]], *point_order(row)))


def runs_of_points(members: list[Row]) -> dict[tuple, dict[str, list[Row]]]:
    """The runs of one setting, model and task by LEVEL_KEY and level, one for each seed."""
    runs: dict[tuple, dict[str, list[Row]]] = {}
    for row in members:
        key = row["compression"], scope_of(row), row["strength_kind"], row["strength"]
        runs.setdefault(key, {}).setdefault(row["level"], []).append(row)
    return runs


def _on_shared_items(runs: dict[tuple, dict[str, list[Row]]], read: ItemReader) -> dict[tuple, dict[str, Row]]:
    """By curve and level the runs, with the dense ones beside them, on the items that all of these have, by folder."""
    dense, curves = runs.get(DENSE_POINT, {}), {}
    for key, levels in runs.items():
        for level, own in levels.items():
            if key != DENSE_POINT:
                together = (*own, *dense_beside(dense.get(level, []), own))
                curves.setdefault((*key[:-1], level), {}).update((row["folder"], row) for row in together)
    return {
        place: {row["folder"]: row for row in on_shared_items(list(own.values()), read)}
        for place, own in curves.items()
    }


def dense_beside(dense: list[Row], runs: list[Row]) -> list[Row]:
    """The dense runs that the runs of a point are compared with: those of their seeds, which were asked the same.

    All, where there is none of these seeds: then they are those of calibration texts.
    """
    seeds = {row["seed"] for row in runs}
    return [row for row in dense if row["seed"] in seeds] or dense


def whole_rows(rows: Iterable[Row]) -> list[Row]:
    """The runs that compress all layers, and dense ones."""
    return [row for row in rows if not row.get("layers")]


def _difficulty(row: Row, dense: list[Row]) -> float | None:
    if row["difficulty"] is not None or row["setting"] not in (5, OWN_TASK):
        return row["difficulty"]
    by_dense = row.get("facts", {}).get("harder_by_dense")  # llm_tasks.levels.BY_DENSE: 1 - score
    human, score = 1.0 if by_dense else row.get("human"), mean_of(dense, "score")
    return None if human is None or score is None else estimators.human_gap(human, score)


def _level_order(members: list[Row], difficulty: dict[str, float | None]) -> dict[str, tuple]:
    """Sort keys of levels: by difficulty; then those of unknown difficulty, as the runs list them; then references."""
    own = {row["level"]: bool(row.get("facts", {}).get("reference_only")) for row in members}
    index = {row["level"]: row["level_index"] for row in members}
    known = {level: 0.0 if own[level] else value for level, value in difficulty.items()}
    return {
        level: (is_reference, known[level] is None, known[level] or 0.0, index[level], level)
        for level, is_reference in own.items()
    }


def _means_as_texts(runs: list[Row]) -> tuple[str, ...]:
    """Means over runs of the numbers that each has by name, as texts; a number that one run lacks is left out."""
    means = {name: mean_of(runs, name) for name in runs[0]}
    return tuple(f"{name}={value:.6g}" for name, value in means.items() if value is not None)


def perplexity_table(rows: list[Row]) -> list[Row]:
    """Points of perplexity, rows of PERPLEXITY_COLUMNS, by model and text: dense first, from weak to strong.

    Args:
        rows: runs of any setting; those of other kinds are passed over.
    Returns:
        mean_stderr is the standard error over windows. loss_difference is the mean over windows of the loss (nats per
        token, mean over seeds) above dense, with its standard error over windows, each compared with the dense loss on
        it. Both are None without a dense run on the same windows, the error also with one window. kl, kl_stderr:
        outcomes.window_divergence. vocabulary is the perplexity of guessing. calibrated: whether the seed draws a text.
    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    table = []
    for members in perplexity_sets(rows).values():
        points = grouped([{**row, "magnitude_scope": scope_of(row)} for row in members], LEVEL_KEY)
        dense = points.get(DENSE_POINT, [])
        found = []
        for runs in points.values():
            point = seed_mean(runs, [])
            difference, error = paired_loss(runs, dense)
            point |= {
                "text": point["level"], "vocabulary": runs[0]["chance"], "windows": runs[0]["num_examples"],
                **{f"{name}_perplexity": point[f"{name}_score"] for name in ("mean", "lowest", "highest")},
                "loss_difference": difference, "loss_difference_stderr": error, **window_divergence(runs),
            }  # fmt: skip
            found.append(select(point, PERPLEXITY_COLUMNS))
        table += sorted(found, key=lambda point: (compression_order(point), compression_rank(point["compression"])))
    return table


def compression_rank(compression: str) -> tuple[int, str]:
    """Sort key: the order of names.COMPRESSIONS, then methods that are not among them, by name."""
    return [*COMPRESSIONS, base_name(compression)].index(base_name(compression)), compression


def compression_order(point: Row) -> tuple[int, float, int]:
    """Sort key: dense, then KINDS, each from weak to strong; 2:4 after 4:8, which constrains the same sparsity less.

    Two compressions in a row stand in the order of the amount that both together remove.
    """
    kind, strength = point["strength_kind"], point["strength"]
    strength_rank = -strength if kind in ("bits", "rank", "bytes") else point["requested_sparsity"]
    if kind in PAIRS:
        strength_rank, strength = amount(point), parts_of(point)[0]["strength"]
    m_group = int(strength.partition(":")[2]) if kind in ("nm", NM_PAIR) else 0
    return -1 if kind is None else KINDS.index(kind), strength_rank, -m_group


def point_order(point: Row) -> tuple:
    """Sort key of a level's points: dense, then by kind of strength, from weak to strong, by compression."""
    is_global = point["magnitude_scope"] == "global"
    return compression_order(point), compression_rank(point["compression"]), is_global


def csv_text(table: Iterable[Row], columns: Iterable[str] = POINT_COLUMNS) -> str:
    """The table as CSV with a header line; a missing value is an empty field, several seeds are parted by spaces."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
    writer.writeheader()
    for row in table:
        cells = {name: " ".join(map(str, cell)) if isinstance(cell, tuple) else cell for name, cell in row.items()}
        writer.writerow(cells)
    return stream.getvalue()
