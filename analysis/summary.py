"""The numbers behind the figures as Markdown: which runs count, what to beware of, slopes and scores."""

import math
from collections import Counter
from pathlib import Path

from analysis import results, tables
from analysis.figures import percent, task_name
from analysis.tables import Row

# A larger difference means that the horizontal axis is not what it says.
SPARSITY_TOLERANCE = 0.01
LISTED_FOLDERS = 10


def summary_text(rows: list[Row], unfinished: list[Path], files: dict[tuple, list[str]]) -> str:
    """summary.md of a tree of runs.

    Args:
        rows: what results.read_runs returned.
        unfinished: what results.unfinished_runs returned.
        files: names of the figures and tables that were written, by key of tables.figure_sets.
    """
    names = tables.model_names({row["model"] for row in rows})
    lines = ["# Summary", "", *_runs_table(rows, names), "", "## What to beware of", ""]
    lines += [f"- {caution}" for caution in cautions(rows, unfinished)] or ["Nothing was found."]
    for key, members in tables.figure_sets(rows).items():
        table = tables.seed_means(members)
        lines += ["", f"## {_set_name(key, names)}", ""]
        for name in files.get(key, []):
            lines += [f"![{name}]({name})" if name.endswith(".png") else f"`{name}`", ""]
        lines += ["### How fast the score falls", "", *_slope_table(table)]
        lines += ["", "### Scores", "", *_score_tables(table)]
    return "\n".join(lines) + "\n"


def _set_name(key: tuple[int, str, str | None], names: dict[str, str]) -> str:
    setting, model, scope = key
    return f"Setting {setting}, {names[model]}" + (f", magnitude threshold {scope}" if scope else "")


def cautions(rows: list[Row], unfinished: list[Path]) -> list[str]:
    """One sentence for everything that keeps a number from meaning what it seems to."""
    found = []
    if unfinished:
        listed = ", ".join(f"`{folder}`" for folder in unfinished[:LISTED_FOLDERS])
        more = len(unfinished) - LISTED_FOLDERS
        listed += f" and {more} more" if more > 0 else ""
        found.append(f"{len(unfinished)} runs were started and are not complete; they do not count: {listed}.")
    undrawn = Counter(row["setting"] for row in rows if row.get("transfer") is None)
    found += [f"No figure is made of setting {setting} ({count} rows)." for setting, count in sorted(undrawn.items())]
    sets, names = tables.figure_sets(rows), tables.model_names({row["model"] for row in rows})
    for key, members in sets.items():
        table = tables.seed_means(members)
        texts = [*_reference_cautions(members, table), *_seed_cautions(table), *_point_cautions(table)]
        found += texts if len(sets) == 1 else [f"{_set_name(key, names)}: {text}" for text in texts]
    return found


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
            found.append(f"{where}: DENSE NOT ABOVE CHANCE ({_against_chance(runs)}), so its drops mean nothing.")
        elif learned is None:
            found.append(f"{where}: dense not compared with chance; a run lacks chance level or standard error.")
        else:
            failed = [row for row in runs if not tables.is_above_chance([row])]
            found += [
                f"{where}: dense transfer with seed {row['seed']} is not above chance ({_against_chance([row])}) "
                "and moves the mean that all drops are relative to."
                for row in failed
            ]
    return found


def _against_chance(runs: list[Row]) -> str:
    score = sum(row["score"] for row in runs) / len(runs)
    return f"{score:.3f}, chance {runs[0]['chance']:.3f}, standard error {runs[0]['stderr']:.3f}"


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
            listed = "; ".join(f"{' '.join(map(str, seeds))}: {count}" for seeds, count in counts.most_common())
            found.append(
                f"{task_name(task)}, {percent(fraction)} data: the points do not have the same seeds "
                f"(seeds: number of points; {listed}), so differences hold the seeds' noise."
            )
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
            if transfer == tables.SPARSE
            and point["measured_sparsity"] is not None
            and abs(point["measured_sparsity"] - point["requested_sparsity"]) > SPARSITY_TOLERANCE
        ]
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
        body.append([setting, names[model], task or "", runs, seeds, members[0]["recipe"], f"`{example}`"])
    return _markdown(["setting", "model", "task", "complete runs", "seeds", "recipe", "an example of it"], body)


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
                *place, percent(level["data_fraction"]), _number(level["dense_mean_score"]),
                {True: "yes", False: "**no**", None: ""}[level["dense_above_chance"]],
                len(level["strengths"]), _number(level["spearman"]), _number(level["theil_sen_slope"]),
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
        *_markdown(head, body),
        "",
        "The hypothesis says that the slope steepens with difficulty, which here is a smaller amount of data:",
        "",
        *_markdown(order_head, orders),
    ]


def _score_tables(table: list[Row]) -> list[str]:
    lines = ["Mean over seeds ± half of its 95 % Student interval, and the normalized drop.", ""]
    for task, fraction in dict.fromkeys((point["task"], point["data_fraction"]) for point in table):
        points = [point for point in table if (point["task"], point["data_fraction"]) == (task, fraction)]
        dense = [_score(point) for point in points if point["transfer"] == tables.DENSE]
        chance = _number(points[0]["chance"]) or "unknown"
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
        lines += [*_markdown(["strength", *transfers], body), ""]
    return lines[:-1]


def _score(point: Row) -> str:
    """0.912 ± 0.004 (-3.1 %); without what is not known."""
    text = f"{point['mean_score']:.3f}"
    if point["interval_low"] is not None:
        text += f" ± {point['mean_score'] - point['interval_low']:.3f}"
    if point["transfer"] != tables.DENSE and point["normalized_drop"] is not None:
        text += f" ({100 * point['normalized_drop']:+.1f} %)"
    return text


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _markdown(head: list[str], body: list[list]) -> list[str]:
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]
