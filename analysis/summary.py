"""The numbers behind the figures as Markdown: which runs count, what to beware of, slopes and scores."""

import math
from collections import Counter
from pathlib import Path

from analysis import level_summary, results, tables
from analysis.drawing import percent
from analysis.figures import task_name
from analysis.level_figures import set_title
from analysis.level_tables import LevelSet, is_level_run, level_sets, level_table
from analysis.tables import Row
from analysis.wording import (
    against_chance,
    compression_name,
    markdown,
    misses_sparsity,
    number,
    strength_text,
    uneven_seeds,
)

LISTED_FOLDERS = 10
# Below this the windows drawn move a perplexity by more than most compressions do.
FEW_WINDOWS = 100


def summary_text(rows: list[Row], unfinished: list[Path], files: dict[tuple, list[str]]) -> str:
    """summary.md of a tree of runs.

    Args:
        rows: what results.read_runs returned.
        unfinished: what results.unfinished_runs returned.
        files: names of the figures and tables that were written, by key of figure_sets, level_sets or perplexity_sets.
    """
    names = _names(rows)
    lines = ["# Summary", "", *_runs_table(rows, names), "", "## What to beware of", ""]
    lines += [f"- {caution}" for caution in cautions(rows, unfinished)] or ["Nothing was found."]
    for key, members in tables.figure_sets(rows).items():
        table = tables.seed_means(members)
        lines += _heading(key, names, files)
        lines += ["### How fast the score falls", "", *_slope_table(table)]
        lines += ["", "### Scores", "", *_score_tables(table)]
    for key, members in level_sets(rows).items():
        lines += [*_heading(key, names, files), *level_summary.section(level_table(members))]
    for key, members in tables.perplexity_sets(rows).items():
        lines += [*_heading(key, names, files), *_perplexity_lines(tables.perplexity_table(members))]
    return "\n".join(lines) + "\n"


def _names(rows: list[Row]) -> dict[str, str]:
    """Short names of models, and of the texts of perplexity."""
    texts = tables.text_names({row["level"] for row in rows if row["setting"] == tables.PERPLEXITY})
    return {**texts, **tables.model_names({row["model"] for row in rows})}


def _heading(key: tuple, names: dict[str, str], files: dict[tuple, list[str]]) -> list[str]:
    lines = ["", f"## {_set_name(key, names)}", ""]
    for name in files.get(key, []):
        lines += [f"![{name}]({name})" if name.endswith(".png") else f"`{name}`", ""]
    return lines


def _set_name(key: tuple, names: dict[str, str]) -> str:
    setting, model, third = key
    if isinstance(key, LevelSet):
        return f"{set_title(setting, third)}, {names[model]}"
    if setting == tables.PERPLEXITY:
        return f"Perplexity, {names[model]} on {names[third]}"
    return f"Setting {setting}, {names[model]}" + (f", magnitude threshold {third}" if third else "")


def cautions(rows: list[Row], unfinished: list[Path]) -> list[str]:
    """One sentence for everything that keeps a number from meaning what it seems to."""
    found = []
    if unfinished:
        listed = ", ".join(f"`{folder}`" for folder in unfinished[:LISTED_FOLDERS])
        more = len(unfinished) - LISTED_FOLDERS
        listed += f" and {more} more" if more > 0 else ""
        found.append(f"{len(unfinished)} runs were started and are not complete; they do not count: {listed}.")
    undrawn = Counter(str(row["setting"]) for row in rows if not _is_known(row))
    found += [f"No figure is made of setting {setting} ({count} rows)." for setting, count in sorted(undrawn.items())]
    texts_of_set = {}
    for key, members in tables.figure_sets(rows).items():
        table = tables.seed_means(members)
        texts_of_set[key] = [*_reference_cautions(members, table), *_seed_cautions(table), *_point_cautions(table)]
    for key, members in level_sets(rows).items():
        texts_of_set[key] = level_summary.cautions(members, level_table(members))
    for key, members in tables.perplexity_sets(rows).items():
        texts_of_set[key] = _perplexity_cautions(tables.perplexity_table(members))
    names = _names(rows)
    for key, texts in texts_of_set.items():
        found += texts if len(texts_of_set) == 1 else [f"{_set_name(key, names)}: {text}" for text in texts]
    return found


def _is_known(row: Row) -> bool:
    return row.get("transfer") is not None or row["setting"] == tables.PERPLEXITY or is_level_run(row)


def _reference_cautions(members: list[Row], table: list[Row]) -> list[str]:
    found = []
    dense_runs = [row for row in members if row["transfer"] == tables.DENSE]
    # A dict, not a set, for the order of the table.
    for task, fraction in dict.fromkeys((point["task"], point["data_fraction"]) for point in table):
        where = f"{task_name(task)}, {percent(fraction)} data"
        runs = [row for row in dense_runs if (row["task"], row["data_fraction"]) == (task, fraction)]
        learned = tables.is_above_chance(runs)
        if not runs:
            found.append(f"{where}: NO DENSE TRANSFER, so no drop is defined.")
        elif learned is False:
            found.append(f"{where}: DENSE NOT ABOVE CHANCE ({against_chance(runs)}), so its drops mean nothing.")
        elif learned is None:
            found.append(f"{where}: dense not compared with chance; a run lacks chance level or standard error.")
        else:
            failed = [row for row in runs if not tables.is_above_chance([row])]
            found += [
                f"{where}: dense transfer with seed {row['seed']} is not above chance ({against_chance([row])}) "
                "and moves the mean that all drops are relative to."
                for row in failed
            ]
    return found


def _seed_cautions(table: list[Row]) -> list[str]:
    found = []
    single = sum(len(point["seeds"]) == 1 for point in table)
    if single:
        found.append(f"{single} of {len(table)} points rest on one seed: no interval, no band.")
    places: dict[tuple[str, float], Counter] = {}
    for point in table:
        places.setdefault((point["task"], point["data_fraction"]), Counter())[point["seeds"]] += 1
    for (task, fraction), counts in places.items():
        if len(counts) > 1:
            found.append(f"{task_name(task)}, {percent(fraction)} data: the points {uneven_seeds(counts)}")
    return found


def _point_cautions(table: list[Row]) -> list[str]:
    found = []
    curves = tables.curves(table)
    for (task, kind, transfer, fraction), points in curves.items():
        where = f"{task_name(task)}, {percent(fraction)} data, {transfer}"
        others = [other for key, other in curves.items() if key[:3] == (task, kind, transfer)]
        measured = {point["strength"] for point in points}
        lacking = {point["strength"] for other in others for point in other} - measured
        if lacking:
            found.append(f"{where}: lacks {', '.join(map(str, sorted(lacking)))}, which other amounts of data have.")
        found += [
            f"{where}: at {point['strength']} the measured sparsity is {point['measured_sparsity']:.3f}, "
            f"not {point['requested_sparsity']:.3f}."
            for point in points
            if transfer == tables.SPARSE and misses_sparsity(point)
        ]
    return found


def _perplexity_cautions(table: list[Row]) -> list[str]:
    dense, windows = table[0], table[0]["windows"]
    found = []
    if dense["compression"] != "dense":
        found.append("NO DENSE RUN, so no difference is defined.")
    else:
        unpaired = sum(point["loss_difference"] is None for point in table)
        if unpaired:
            found.append(f"{unpaired} of {len(table)} points lack losses on the windows of the dense run.")
    if windows < FEW_WINDOWS:
        error = (
            ""
            if dense["mean_stderr"] is None
            else f" ({compression_name(dense).lower()}: {dense['mean_perplexity']:.4g} ± {dense['mean_stderr']:.2g})"
        )
        found.append(
            f"The text has {windows} windows{error}: others give other perplexities; compare within this table alone."
        )
    seeds = Counter(point["seeds"] for point in table if point["calibrated"])
    single = sum(count for own, count in seeds.items() if len(own) == 1)
    if single:
        found.append(f"{single} of {seeds.total()} calibrated points rest on one calibration sample: no band.")
    if len(seeds) > 1:
        found.append(f"The calibrated points {uneven_seeds(seeds)}")
    for point in table:
        where = f"{compression_name(point)} at {strength_text(point)}"
        if point["strength_kind"] in ("sparsity", "nm") and misses_sparsity(point):
            found.append(
                f"{where}: the measured sparsity is {point['measured_sparsity']:.3f}, "
                f"not {point['requested_sparsity']:.3f}."
            )
        if point["mean_perplexity"] > point["vocabulary"]:
            found.append(
                f"{where}: a perplexity of {point['mean_perplexity']:.4g} is above the vocabulary of "
                f"{point['vocabulary']}: worse than knowing nothing, so by how much means nothing."
            )
    return found


def _runs_table(rows: list[Row], names: dict[str, str]) -> list[str]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["setting"], row["model"], row.get("task")), []).append(row)
    body = []
    for (setting, model, task), members in sorted(groups.items(), key=str):
        seeds = " ".join(map(str, sorted({row["seed"] for row in members})))
        runs = len({row["folder"] for row in members})
        example = Path(members[0]["folder"]) / results.ARGUMENTS_FILE
        body.append(
            [setting, names[model], names.get(task, task) or "", runs, seeds, members[0]["recipe"], f"`{example}`"]
        )
    return markdown(["setting", "model", "task", "complete runs", "seeds", "recipe", "an example of it"], body)


def _slope_table(table: list[Row]) -> list[str]:
    """Spearman and Theil-Sen per curve, and after each task's levels whether the slopes stand in order."""
    levels: dict[tuple[str, str, str], list[Row]] = {}
    for (task, kind, transfer, _), points in tables.curves(table).items():
        levels.setdefault((task, kind, transfer), []).append(tables.curve_statistics(points))
    body, orders = [], []
    for (task, kind, transfer), group in levels.items():
        place = [task_name(task), kind, transfer]
        body += [
            [
                *place, percent(level["data_fraction"]), number(level["dense_mean_score"]),
                {True: "yes", False: "**no**", None: ""}[level["dense_above_chance"]],
                len(level["strengths"]), number(level["spearman"]), number(level["theil_sen_slope"]),
            ]
            for level in group
        ]  # fmt: skip
        in_order, basis = tables.slope_order(group)
        if in_order:
            basis += f"; by luck alone once in {math.factorial(sum(map(tables.is_comparable, group)))}"
        orders.append([*place, {True: "yes", False: "no", None: "cannot be told"}[in_order], basis])
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
        dense = [_score(point) for point in points if point["transfer"] == tables.DENSE]
        chance = number(points[0]["chance"]) or "unknown"
        lines += [
            f"**{task_name(task)}, {percent(fraction)} data** ({points[0]['metric']}; chance {chance}): "
            f"dense transfer {dense[0] if dense else 'missing'}",
            "",
        ]
        compressed = [point for point in points if point["transfer"] != tables.DENSE]
        transfers = [name for name in tables.TRANSFERS if any(point["transfer"] == name for point in compressed)]
        cells: dict[tuple, dict[str, str]] = {}
        for point in sorted(compressed, key=tables.compression_order):
            cells.setdefault((point["strength_kind"], point["strength"]), {})[point["transfer"]] = _score(point)
        body = [[strength, *(row.get(name, "") for name in transfers)] for (_, strength), row in cells.items()]
        lines += [*markdown(["strength", *transfers], body), ""]
    return lines[:-1]


def _score(point: Row) -> str:
    """0.912 ± 0.004 (-3.1 %); without what is not known."""
    text = f"{point['mean_score']:.3f}"
    if point["interval_low"] is not None:
        text += f" ± {point['mean_score'] - point['interval_low']:.3f}"
    if point["transfer"] != tables.DENSE and point["normalized_drop"] is not None:
        text += f" ({100 * point['normalized_drop']:+.1f} %)"
    return text


def _perplexity_lines(table: list[Row]) -> list[str]:
    first = table[0]
    head = ["compression", "strength", "zeros", "parameters", "perplexity", "seeds' range", "loss - dense", "seeds"]
    body = [
        [
            compression_name(point), strength_text(point), _share(point["measured_sparsity"]),
            _share(point["parameter_ratio"]), f"{point['mean_perplexity']:.4g}", _seed_range(point),
            _difference(point), " ".join(map(str, point["seeds"])) if point["calibrated"] else "",
        ]
        for point in table
    ]  # fmt: skip
    return [
        f"Perplexity over {first['windows']} windows, mean over seeds; lower is better, {first['vocabulary']} (the "
        "vocabulary) is knowing nothing. Zeros: among the weights of the decoder blocks; quantization rounds some to "
        "zero too. Parameters: of both factors of a low rank, as a share of the weights. Loss - dense: nats per token "
        "± its standard error over the windows, each compared with the dense model's loss on it; the spread over seeds "
        "is not in it. Seeds: where a calibration text is drawn.",
        "",
        *markdown(head, body),
    ]


def _share(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f} %"


def _seed_range(point: Row) -> str:
    if len(point["seeds"]) == 1:
        return ""
    return f"{point['lowest_perplexity']:.4g} to {point['highest_perplexity']:.4g}"


def _difference(point: Row) -> str:
    if point["compression"] == "dense" or point["loss_difference"] is None:
        return ""
    error = point["loss_difference_stderr"]
    return f"{point['loss_difference']:+.3f}" + ("" if error is None else f" ± {error:.3f}")
