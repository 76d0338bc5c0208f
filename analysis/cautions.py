"""Cautions: one sentence for everything that keeps a number from meaning what it seems to mean."""

import math
from collections import Counter
from collections.abc import Callable

from analysis.contrasts import condition
from analysis.curves import curves_by, level_curves
from analysis.names import LAYERS, PART, compression_name, percent, strength_text, task_name
from analysis.outcomes import ItemReader, gives_one_answer, with_error
from analysis.resampling import FEW_CLUSTERS
from analysis.table import DENSE, MULTI_DOMAIN, SPARSE, Row, grouped, is_above_chance

SPARSITY_TOLERANCE = 0.01  # between the requested and the measured sparsity
MANY_EMPTY = 0.1  # share of empty answers from which on a score says whether a model answers, not what it knows
UNLIKE_ERRORS, UNLIKE_SHARE = 4.0, 0.1  # two seeds that differ by more standard errors, and more of the score
FEW_WINDOWS = 100  # with fewer, the choice of windows changes a perplexity more than most compressions do


def tuning_cautions(members: list[Row], table: list[Row]) -> list[str]:
    """Cautions about fine-tuning; `members` are runs of one setting, model and scope, and `table` their seed_means."""
    return [
        *_tuning_references(members, table),
        *_chance_cautions(members),
        *_one_answer(members, lambda row: f"{task_name(row['task'])}, {percent(row['data_fraction'])} data"),
        *_tuning_seeds(table),
        *_tuning_points(table),
    ]


def _one_answer(members: list[Row], place: Callable[[Row], str], of_levels: bool = False) -> list[str]:
    """Compressed models that give all items one answer, as where a training failed; of dense ones others tell.

    Args:
        place: the task of a run, in words.
        of_levels: whether a run keeps the answers to each level apart.
    """
    failed: dict[str, dict[str, list[int]]] = {}
    for row in members:
        if row["transfer"] != DENSE and gives_one_answer(row, f"_{row['level']}" if of_levels else ""):
            of_place = failed.setdefault(f"{place(row)}, {row['transfer']}", {})
            of_place.setdefault(strength_text(row), []).append(row["seed"])
    found = []
    for where, of_strength in failed.items():
        told = ", ".join(
            f"{strength} (seed {', '.join(map(str, sorted(own)))})" for strength, own in of_strength.items()
        )
        found.append(
            f"{where}: ONE ANSWER TO ALL ITEMS at {told}: that training may have failed, and its drop counts this as "
            "loss; more steps or another --learning_rate may tell."
        )
    return found


def _chance_cautions(members: list[Row]) -> list[str]:
    """Where runs recorded different chances at one level: older ones had 1/options where all items have the same."""
    found = []
    for (task, level, _), runs in grouped(members, ["task", "level", "seed"]).items():
        chances = {round(row["chance"], 9): row["folder"] for row in runs if row["chance"] is not None}
        if len(chances) > 1:
            told = ", ".join(f"{chance:.3f} in {folder}" for chance, folder in sorted(chances.items()))
            found.append(
                f"{task}, {level}: THE RUNS DO NOT AGREE IN CHANCE ({told}); --overwrite makes the older again."
            )
    return found


def _tuning_references(members: list[Row], table: list[Row]) -> list[str]:
    found = []
    dense_runs = [row for row in members if row["transfer"] == DENSE]
    # A dict, not a set, for the order of the table.
    for task, fraction in dict.fromkeys((point["task"], point["data_fraction"]) for point in table):
        where = f"{task_name(task)}, {percent(fraction)} data"
        runs = [row for row in dense_runs if (row["task"], row["data_fraction"]) == (task, fraction)]
        said = _dense_caution(runs) if runs else "NO DENSE TRANSFER, so no drop is defined."
        if said:
            found.append(f"{where}: {said}")
        else:
            failed = [row for row in runs if not is_above_chance([row])]
            found += [
                f"{where}: dense transfer with seed {row['seed']} is not above chance ({_against_chance([row])}) "
                "and moves the mean that all drops are relative to."
                for row in failed
            ]
            if not failed:
                found += [f"{where}: {said}" for said in _unlike_seeds(runs)]
    return found


def _unlike_seeds(runs: list[Row]) -> list[str]:
    """A caution where two dense trainings of the same data differ by more than the choice of items explains."""
    known = sorted((row for row in runs if row["stderr"] is not None), key=lambda row: row["score"])
    if len(known) < 2:
        return []
    worst, best = known[0], known[-1]
    difference, error = best["score"] - worst["score"], math.hypot(best["stderr"], worst["stderr"])
    if difference <= max(UNLIKE_ERRORS * error, UNLIKE_SHARE * abs(best["score"])):
        return []
    return [
        f"THE DENSE SEEDS ARE UNLIKE: {best['score']:.3f} with seed {best['seed']}, {worst['score']:.3f} with seed "
        f"{worst['seed']}, far more apart than the choice of items explains: one training learnt less, and drops "
        "relative to their mean are of neither."
    ]


def _tuning_seeds(table: list[Row]) -> list[str]:
    found = []
    single = sum(len(point["seeds"]) == 1 for point in table)
    if single:
        found.append(f"{single} of {len(table)} points rest on one seed: no interval tells how trainings differ.")
    places: dict[tuple[str, float], Counter] = {}
    for point in table:
        places.setdefault((point["task"], point["data_fraction"]), Counter())[point["seeds"]] += 1
    for (task, fraction), counts in places.items():
        if len(counts) > 1:
            found.append(f"{task_name(task)}, {percent(fraction)} data: the points {_uneven_seeds(counts)}")
    return found


def _tuning_points(table: list[Row]) -> list[str]:
    found = []
    curves = curves_by(table, "task", "strength_kind", "transfer", "data_fraction")
    for (task, kind, transfer, fraction), points in curves.items():
        where = f"{task_name(task)}, {percent(fraction)} data, {transfer}"
        others = [other for key, other in curves.items() if key[:3] == (task, kind, transfer)]
        measured = {point["strength"] for point in points}
        lacking = {point["strength"] for other in others for point in other} - measured
        if lacking:
            found.append(f"{where}: lacks {', '.join(map(str, sorted(lacking)))}, which other amounts of data have.")
        found += [
            f"{where}: at {point['strength']} {_missed_sparsity(point)}"
            for point in points
            if transfer == SPARSE and _misses_sparsity(point)
        ]
    return found


def level_cautions(members: list[Row], table: list[Row], read: ItemReader) -> list[str]:
    """Cautions about a setting without training.

    Args:
        members: the runs of one setting, model and task.
        table: their level_table, with intervals.
        read: reads the items of runs.
    """
    return [
        *_reference_cautions(members, table, read),
        *_chance_cautions(members),
        *_difficulty_cautions(table),
        *_empty_cautions(members),
        *_seed_cautions(table),
        *_pairing_cautions(table),
        *_strength_cautions(table),
        *_origin_cautions(members),
        *_fact_cautions(members),
    ]


def _reference_cautions(members: list[Row], table: list[Row], read: ItemReader) -> list[str]:
    dense = [with_error(row, read) for row in members if row["compression"] == "dense"]
    if not dense:
        return ["NO DENSE RUN, so no drop is defined."]
    found = []
    for level in dict.fromkeys(point["level"] for point in table):
        runs = [row for row in dense if row["level"] == level]
        said = _dense_caution(runs) if runs else "NOT IN THE DENSE RUN, so no drop is defined."
        if said:
            found.append(f"{level}: {said}")
    return found


def _difficulty_cautions(table: list[Row]) -> list[str]:
    """Levels that stand in no order; without a dense score another caution says so."""
    unknown = [point for point in table if point["difficulty"] is None and not point["reference_only"]]
    without = dict.fromkeys(point["level"] for point in unknown if point["human"] is None)
    return [
        f"{level}: NO HUMAN SCORE, so its difficulty is not known: it stands in no order of levels, no verdict and no "
        "Junk DNA score."
        for level in without
    ]


def _empty_cautions(members: list[Row]) -> list[str]:
    """Levels with many empty answers: a compressed model may stop answering although it still knows."""
    levels: dict[str, dict[str, float]] = {}
    for row in members:
        share = row.get("metrics", {}).get("empty")
        if share is not None:
            name = f"{compression_name(row)} at {strength_text(row)}" if row["strength_kind"] else "dense"
            shares = levels.setdefault(row["level"], {})
            shares[name] = max(share, shares.get(name, 0.0))
    found = []
    for level, shares in levels.items():
        if max(shares.values()) >= MANY_EMPTY:
            told = ", ".join(f"{name}: {100 * share:.0f} %" for name, share in shares.items())
            found.append(
                f"{level}: MANY ANSWERS ARE EMPTY ({told}), so that its drops say whether the model answers as much as "
                "what it knows; --chat_template, where the model has one, or --min_new_tokens 8 asks for an answer."
            )
    return found


def _seed_cautions(table: list[Row]) -> list[str]:
    found = []
    calibrated = Counter(point["seeds"] for point in table if point["calibrated"])
    single = sum(count for own, count in calibrated.items() if len(own) == 1)
    if single:
        found.append(
            f"{single} of {calibrated.total()} calibrated points rest on one calibration sample: the bands leave its "
            "spread out."
        )
    dense = {seed for point in table if point["strength_kind"] is None for seed in point["seeds"]}
    shared = [dense & set(point["seeds"]) for point in table]
    if fewer := [own for own in shared if own and own < dense]:
        found.append(
            f"{len(fewer)} of {len(table)} points lack seeds of the dense model ({' '.join(map(str, sorted(dense)))}); "
            "each point is compared with the dense runs of its own seeds."
        )
    others = Counter(point["seeds"] for point in table if point["strength_kind"] and not point["calibrated"])
    for name, counts in {"calibrated points": calibrated, "points without calibration": others}.items():
        if len(counts) > 1:
            found.append(f"The {name} {_uneven_seeds(counts)}")
    return found


def _pairing_cautions(table: list[Row]) -> list[str]:
    points = [point for point in table if point["strength_kind"] is not None and point["dense_mean_score"] is not None]
    none = sum(not point["paired_items"] for point in points)
    partly = [point for point in points if point["paired_items"] and point["unpaired_items"]]
    few = sum(
        bool(point["paired_items"]) and point["drop_low"] is None and point["dense_above_chance"] is not False
        for point in points
        if not point["reference_only"]  # which no test reads, so that it has no interval
    )
    found = []
    if none:
        found.append(f"{none} of {len(points)} points have no items in common with the dense run: no interval.")
    if partly:
        worst = max(partly, key=lambda point: point["unpaired_items"])
        found.append(
            f"{len(partly)} of {len(points)} points have items that the dense run lacks, or lack some of its items: "
            f"left out of scores, drops and intervals (at most {worst['unpaired_items']}: {worst['level']}, "
            f"{compression_name(worst)} at {strength_text(worst)})."
        )
    if few:
        found.append(
            f"{few} of {len(points)} points have no interval: the runs of their curve have {FEW_CLUSTERS} in common."
        )
    return found


def _strength_cautions(table: list[Row]) -> list[str]:
    found = []
    for curves in level_curves(table).values():
        everything = {point["strength"]: point for points in curves.values() for point in points}
        for level, points in curves.items():
            own = {point["strength"] for point in points}
            lacking = [strength_text(point) for strength, point in everything.items() if strength not in own]
            if lacking:
                name = compression_name(points[0])
                found.append(f"{level}, {name}: lacks {', '.join(lacking)}, which other levels have.")
    missed = {(compression_name(point), strength_text(point)): point for point in table if _misses_sparsity(point)}
    return found + [f"{name} at {strength}: {_missed_sparsity(point)}" for (name, strength), point in missed.items()]


def _origin_cautions(rows: list[Row]) -> list[str]:
    """A dense model that was quantized before, and checkpoints whose config is not their parent's."""
    before = dict.fromkeys(row["parent_quantized"] for row in rows if row.get("parent_quantized"))
    found = [
        f"THE DENSE MODEL WAS ONCE QUANTIZED {told}: what it lost then is not counted, and another quantization to the "
        "same grid loses little more."
        for told in before
    ]
    for row in {row["compression"]: row for row in rows if row.get("checkpoint_differences")}.values():
        told = "; ".join(f"{name} is {text}" for name, text in row["checkpoint_differences"].items())
        found.append(f"{compression_name(row)}: its config is not its parent's: {told}.")
    return found


def _fact_cautions(members: list[Row]) -> list[str]:
    """What was left out or cut where the levels were built; levels with the same facts share a sentence."""
    facts: dict[str, dict[str, set[float]]] = {}
    for row in members:
        own = facts.setdefault(row["level"], {})
        for name, value in row.get("facts", {}).items():
            if value and name != "reference_only" and not name.startswith("mean_"):
                own.setdefault(name, set()).add(value)
    told: dict[str, list[str]] = {}
    for level, own in facts.items():
        text = ", ".join(f"{name.replace('_', ' ')} {_range(values)}" for name, values in own.items())
        told.setdefault(text, []).append(level)
    return [f"{', '.join(levels)}: {text}." for text, levels in told.items() if text]


def _range(values: set[float]) -> str:
    return f"{min(values):g}" if len(values) == 1 else f"{min(values):g} to {max(values):g}"


def domain_cautions(members: list[Row], table: list[Row], minorities: list[Row]) -> list[str]:
    """Cautions about several domains or languages.

    Args:
        members: the runs of one setting, model and task.
        table, minorities: their contrasts.domain_table and minority_table.
    """
    found = _one_answer(members, lambda row: f"{row['level']} ({condition(row)})", of_levels=True)
    for point in table:
        where = f"{point['level']} ({point['condition']})"
        if point["transfer"] == DENSE and point["dense_above_chance"] is False:
            found.append(f"{where}: the dense transfer is not above chance, so its drops mean nothing.")
    lacking = {point["condition"]: None for point in table if point["dense_mean_score"] is None}
    found += [f"{condition}: there is no dense transfer to compare with." for condition in lacking]
    counts = Counter(point["seeds"] for point in table)
    if len(counts) > 1:
        found.append(f"The points {_uneven_seeds(counts)}")
    if len({point["level"] for point in table}) == 1:
        found.append(f"{table[0]['level']} is the only level, so that nothing is compared.")
    if table and table[0]["setting"] == MULTI_DOMAIN and not minorities:
        found.append("No domain stands in two mixtures: its share cannot be told from its own difficulty.")
    return found


def line_cautions(table: list[Row]) -> list[str]:
    """Cautions about lines between models; `table` is a lines.line_table."""
    starts = [point for point in table if point["alpha"] == 0]
    at_chance = dict.fromkeys(point["task"] for point in starts if point["dense_above_chance"] is False)
    found = [
        f"{task_name(task)}: DENSE AT CHANCE at alpha 0, so barriers from there mean nothing." for task in at_chance
    ]
    tasks = dict.fromkeys(point["task"] for point in starts)
    controlled = {point["task"] for point in starts if point["pair"] == "dense-dense"}
    lacking = [task_name(task) for task in tasks if task not in controlled]
    if lacking:
        found.append(
            f"{', '.join(lacking)}: no dense-dense line, so how high the barrier between two seeds is remains unknown."
        )
    return found


def perplexity_cautions(table: list[Row]) -> list[str]:
    """Cautions about perplexity; `table` is the table.perplexity_table of one model and text."""
    dense, windows = table[0], table[0]["windows"]
    found = _origin_cautions(table)
    if dense["compression"] != "dense":
        found.append("NO DENSE RUN, so no difference is defined.")
    else:
        unpaired = sum(point["loss_difference"] is None for point in table)
        if unpaired:
            found.append(f"{unpaired} of {len(table)} points lack losses on the windows of the dense run.")
    if windows < FEW_WINDOWS:
        measured = (
            f"{compression_name(dense).lower()}: {dense['mean_perplexity']:.4g} ± {dense['mean_stderr'] or 0:.2g}"
        )
        error = "" if dense["mean_stderr"] is None else f" ({measured})"
        found.append(
            f"The text has {windows} windows{error}: others give other perplexities; compare within this table alone."
        )
    seeds = Counter(point["seeds"] for point in table if point["calibrated"])
    single = sum(count for own, count in seeds.items() if len(own) == 1)
    if single:
        found.append(f"{single} of {seeds.total()} calibrated points rest on one calibration sample: no band.")
    if len(seeds) > 1:
        found.append(f"The calibrated points {_uneven_seeds(seeds)}")
    for point in table:
        where = compression_name(point)
        if point["strength_kind"]:
            where += f" at {strength_text(point)}"
        if _misses_sparsity(point):
            found.append(f"{where}: {_missed_sparsity(point)}")
        if point["mean_perplexity"] > point["vocabulary"]:
            found.append(
                f"{where}: a perplexity of {point['mean_perplexity']:.4g} is above the vocabulary of "
                f"{point['vocabulary']}: worse than guessing, so its size means nothing."
            )
    return found


def _dense_caution(runs: list[Row]) -> str | None:
    """The caution about drops relative to these dense runs; None where they are above chance."""
    learned = is_above_chance(runs)
    if learned is None:
        return "dense not compared with chance; a run lacks chance level or standard error."
    return None if learned else f"DENSE NOT ABOVE CHANCE ({_against_chance(runs)}), so its drops mean nothing."


def _against_chance(runs: list[Row]) -> str:
    """0.512, chance 0.500, standard error 0.010."""
    score = sum(row["score"] for row in runs) / len(runs)
    return f"{score:.3f}, chance {runs[0]['chance']:.3f}, standard error {runs[0]['stderr']:.3f}"


def _uneven_seeds(counts: Counter) -> str:
    """The end of the sentence that points do not have the same seeds; `counts` are numbers of points by seeds."""
    listed = "; ".join(f"{' '.join(map(str, seeds))}: {count}" for seeds, count in counts.most_common())
    return f"do not have the same seeds (seeds: number of points; {listed}), so differences hold the seeds' noise."


def _misses_sparsity(point: Row) -> bool:
    measured, is_pruned = point["measured_sparsity"], point["strength_kind"] in ("sparsity", "nm")
    is_pruned &= f"{PART}{LAYERS}" not in point.get("compression", "")  # else measured over the other layers too
    return is_pruned and measured is not None and abs(measured - point["requested_sparsity"]) > SPARSITY_TOLERANCE


def _missed_sparsity(point: Row) -> str:
    return f"the measured sparsity is {point['measured_sparsity']:.3f}, not {point['requested_sparsity']:.3f}."
