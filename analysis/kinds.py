"""What a tree of runs holds, part by part: figures with their tables, what is said of them, what to beware of.

There are six kinds of runs, with a function each: fine-tuning, settings without training, several domains, lines
between models, perplexity, recovery; flips are of all settings without training together. A part is one set of runs
that belong together. Its tables are computed once and feed everything said of them; a figure is drawn when it is asked
for.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from matplotlib.figure import Figure

from analysis import (
    cautions,
    compression_plots,
    findings,
    human_gap,
    level_sections,
    plots,
    recovery_plots,
    recovery_sections,
    sensitivity,
    tuned_plots,
    tuned_sections,
)
from analysis.contrasts import (
    DIFFERENCE_COLUMNS,
    DOMAIN_COLUMNS,
    MINORITY_COLUMNS,
    difference_table,
    domain_table,
    minority_table,
)
from analysis.curves import BYTES, SIZE_COLUMNS, curves_by, size_table
from analysis.flips import FLIP_COLUMNS, compared_points, flip_table
from analysis.intervals import with_intervals, with_tuned_intervals
from analysis.lines import BARRIER_COLUMNS, LINE_COLUMNS, barrier_table, line_table
from analysis.methods_compared import (
    ABOUT,
    COMPARED_COLUMNS,
    compared_section,
    compared_table,
    methods_compared,
    of_compared,
)
from analysis.missing import missing_runs
from analysis.names import file_names, set_title, text_names, with_full_names, with_short_names
from analysis.outcomes import ItemReader
from analysis.paper import Measured, compare, our_numbers
from analysis.recovery import (
    CURVE_COLUMNS,
    FIGURE,
    RECOVERED_COLUMNS,
    curve_table,
    incomparable,
    is_recovery_run,
    recovery_level_table,
    uncontrolled,
)
from analysis.replicates import resampled_curves, resampled_levels, tuned_curves
from analysis.resampling import RESAMPLES
from analysis.table import (
    DENSE,
    INTERPOLATION,
    LEVEL_COLUMNS,
    MULTI_DOMAIN,
    OWN_TASK,
    PERPLEXITY,
    PERPLEXITY_COLUMNS,
    POINT_COLUMNS,
    TRANSLATION,
    FigureKey,
    Row,
    domain_sets,
    figure_sets,
    grouped,
    is_domain_run,
    is_fine_tuning_run,
    is_level_run,
    level_sets,
    level_table,
    line_sets,
    perplexity_sets,
    perplexity_table,
    seed_means,
    select,
    whole_rows,
)
from analysis.verdicts import Trends, joined, of_figure
from harness import run_folder

FLIPS_STEM = "flips"
FLIPS, COMPARED = "Flips and distances", "Methods compared"  # what the titles of parts on other parts' runs begin with
# Names in the first README of the original repository (Images_png), by columns of our table and words of our file name.
# The first rule that some figure obeys counts.
ORIGINAL_NAMES: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "Task_1": ((POINT_COLUMNS, "_setting1_data_adequacy_"),),
    "Task_2": ((DOMAIN_COLUMNS, f"_{TRANSLATION}_"), (DOMAIN_COLUMNS, f"_{MULTI_DOMAIN}_")),
    "Task_3": ((LEVEL_COLUMNS, "_setting3_"),),
    "Task_4": ((human_gap.FIGURE_COLUMNS, "_human_gap_"),),
    "TRUE_GEM": ((POINT_COLUMNS, "_four_transfers_"),),
}


class Plot(NamedTuple):
    """One figure and its table.

    Fields:
        stem: file name without ending.
        draw: makes the figure; None where there is a table alone.
        table, columns: the CSV beside it.
        finding: what the figure shows and how sure that is, in a sentence; "" where nothing can be said.
    """

    stem: str
    draw: Callable[[], Figure] | None
    table: list[Row]
    columns: tuple[str, ...]
    finding: str = ""


class Part(NamedTuple):
    """Runs that belong together.

    Fields:
        title: in words.
        plots: may be none, such as of a dense run alone.
        lines: tables and explanations as Markdown.
        cautions: one sentence for everything that keeps a number from meaning what it seems to.
        trends: intervals and verdicts of its curves, where it has levels of difficulty.
        tables: what the paper prints too, by field of paper.Measured; and the flips of a setting without training.
    """

    title: str
    plots: list[Plot]
    lines: list[str]
    cautions: list[str]
    trends: Trends = Trends([], [], [])
    tables: Mapping[str, list[Row]] = MappingProxyType({})


class Tree(NamedTuple):
    """All that is known of a tree of runs.

    Fields:
        rows: of run_folder.read_runs, with full names of methods and short ones of models and texts.
        unfinished: what run_folder.unfinished_runs returned.
        parts: in the order of the paper.
        trends: of all parts.
        lacking: what missing.missing_runs returned.
        compared: what paper.compare returned.
    """

    rows: list[Row]
    unfinished: list[Path]
    parts: list[Part]
    trends: Trends
    lacking: list[Row]
    compared: list[Row]


def describe(rows: list[Row], unfinished: Sequence[Path] = (), resamples: int = RESAMPLES, size: str = BYTES) -> Tree:
    """All that is known of a tree of runs.

    Args:
        rows: what run_folder.read_runs returned.
        unfinished: what run_folder.unfinished_runs returned.
        resamples: of items and seeds, behind all intervals and verdicts.
        size: one of curves.SIZES, the axis of the figures by size.
    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    run_folder.check_runs(rows)
    rows = with_short_names(with_full_names(rows))
    whole = whole_rows(rows)
    levels = level_parts(whole, resamples, size)
    parts = [*tuning_parts(rows, resamples), *levels, *flip_parts(levels), *compared_parts(levels)]
    parts += sensitivity_parts(rows, resamples)
    parts += [*domain_parts(rows, resamples), *line_parts(rows), *perplexity_parts(rows)]
    parts = _with_distinct_stems([*parts, *recovery_parts(rows, resamples)])
    trends = joined(part.trends for part in parts)
    found = {name: [part.tables[name] for part in parts if name in part.tables] for name in Measured._fields[1:]}
    flat = {name: [row for own in found[name] for row in own] for name in ("levels", "differences")}
    compared = compare(our_numbers(rows, Measured(trends, **(found | flat))))
    return Tree(rows, list(unfinished), parts, trends, missing_runs(whole), compared)


def is_known(row: Row) -> bool:
    """Whether some part is made of a run's setting."""
    known = is_fine_tuning_run(row) or is_level_run(row) or is_domain_run(row) or is_recovery_run(row)
    return known or row["setting"] in (INTERPOLATION, PERPLEXITY)


def tuning_parts(rows: list[Row], resamples: int) -> list[Part]:
    """Setting 1, section 5 and appendix B: one part for every setting, model and magnitude threshold."""
    found = figure_sets(rows)
    files, parts = file_names({model for _, model, _ in found}), []
    for (setting, model, scope), members in found.items():
        bare = seed_means(members)
        gaps = human_gap.gap_table(bare)
        curves = tuned_curves(members, bare, gaps, resamples, 0)
        trends = joined(of_figure(*figure) for figure in curves.items())
        table = with_tuned_intervals(bare, trends)
        differences = difference_table(members, resamples)
        # The global threshold is the default and the paper's; only the other one is named.
        ending = files[model] + ("_per_layer" if scope == "layer" else "")
        known = gaps if any(map(human_gap.has_place, gaps)) else []
        easy_and_hard = human_gap.figure_table(table, gaps)
        adequacy, transfers = plots.data_adequacy_points(table), plots.four_transfers_points(table)
        drawn = [
            ("data_adequacy", functools.partial(plots.data_adequacy, adequacy), adequacy, POINT_COLUMNS,
             findings.of_tuning(trends, adequacy)),
            ("four_transfers", functools.partial(plots.four_transfers, transfers), transfers, POINT_COLUMNS,
             findings.of_transfers(differences)),
            # A single task is neither easier nor harder than another.
            ("human_gap", functools.partial(plots.easy_and_hard_tasks, table, gaps),
             easy_and_hard if len({point["task"] for point in easy_and_hard}) > 1 else [], human_gap.FIGURE_COLUMNS,
             findings.of_categories(trends, easy_and_hard)),
            ("transfers_compared", None, differences, DIFFERENCE_COLUMNS, ""),
            ("tasks", None, known, human_gap.HUMAN_GAP_COLUMNS, ""),
        ]  # fmt: skip
        parts.append(
            Part(
                title=f"Setting {setting}, {model}" + (f", magnitude threshold {scope}" if scope else ""),
                plots=[Plot(f"setting{setting}_{name}_{ending}", *plot) for name, *plot in drawn if plot[1]],
                lines=tuned_sections.tuning_section(table, gaps, differences, trends),
                cautions=cautions.tuning_cautions(members, table),
                trends=trends,
                tables={"gaps": gaps, "differences": differences},
            )
        )
    return parts


def level_parts(rows: list[Row], resamples: int, size: str) -> list[Part]:
    """Settings 2 to 6, section 4 and own tasks: one part for every setting, model and task."""
    found = level_sets(rows)
    files, parts = _files_of(found), []
    for key, members in found.items():
        read = ItemReader()
        bare = level_table(members, read)
        curves = resampled_curves(members, resamples, 0, bare, read)
        trends = of_figure(key, curves)
        table = with_intervals(bare, trends)
        setting = key.setting if key.setting == OWN_TASK else f"setting{key.setting}"
        stem = f"{setting}_{files[key.task]}_{files[key.model]}"
        drawn = []
        if curves_by(table, "level"):
            told = findings.of_levels(trends, table)
            drawn.append(Plot(stem, functools.partial(plots.levels, table), table, LEVEL_COLUMNS, told))
        points = size_table(table, size)
        if points:
            draw = functools.partial(compression_plots.by_size, points, size)
            shown = [select(point, SIZE_COLUMNS) for point in points]
            drawn.append(Plot(f"{stem}_by_size", draw, shown, SIZE_COLUMNS, findings.of_sizes(points, size)))
        sizes = level_sections.size_section(points) if points else []
        if spread := sensitivity.allocation_table(bare, curves):
            draw, told = functools.partial(sensitivity.allocation_plot, spread), sensitivity.allocation_finding(spread)
            drawn.append(Plot(f"{stem}_allocation", draw, spread, sensitivity.ALLOCATION_COLUMNS, told))
            sizes += ["", *sensitivity.allocation_section(spread)]
        compared = compared_points(members, table, read)
        flipped = flip_table(members, table, resamples, 0, read, compared)
        parts.append(
            Part(
                title=f"{set_title(key.setting, key.task)}, {key.model}",
                plots=drawn,
                lines=level_sections.level_section(table, trends) + sizes,
                cautions=cautions.level_cautions(members, table, read),
                trends=trends,
                tables={
                    "levels": table,
                    "flips": flipped,
                    "compared": compared_table(curves, compared, trends.orders, resamples),
                },
            )
        )
    return parts


def sensitivity_parts(rows: list[Row], resamples: int) -> list[Part]:
    """Some layers compressed at a time: one part for every setting, model and task."""
    found = sensitivity.sensitivity_sets(rows)
    files, parts = _files_of(found), []
    for key, members in found.items():
        read = ItemReader()
        bare = level_table(members, read)
        curves = resampled_curves(members, resamples, 0, bare, read)
        table = sensitivity.sensitivity_table(bare, curves, flip_table(members, bare, resamples, 0, read))
        setting = key.setting if key.setting == OWN_TASK else f"setting{key.setting}"
        stem = f"{setting}_{files[key.task]}_{files[key.model]}_layers"
        told = sensitivity.sensitivity_finding(table)
        is_drawn = any(sensitivity.is_shown(row) or sensitivity.has_kl(row) for row in table)
        draw = functools.partial(sensitivity.heat_map, table) if is_drawn else None
        title = f"{set_title(key.setting, key.task)}, layer by layer, {key.model}"
        plot = Plot(stem, draw, table, sensitivity.SENSITIVITY_COLUMNS, told)
        parts.append(Part(title, [plot], sensitivity.sensitivity_section(table), sensitivity.few_groups(table)))
    return parts


def flip_parts(levels: Iterable[Part]) -> list[Part]:
    """Flips and distances of all settings without training; none where nothing is compared with a dense run.

    Args:
        levels: what level_parts returned.
    """
    found = {part.title: part.tables["flips"] for part in levels}
    found = {title: rows for title, rows in found.items() if any(row["flips"] is not None for row in rows)}
    if not found:
        return []
    told = " ".join(filter(None, (findings.of_flips(title, rows) for title, rows in found.items())))
    rows = [row for own in found.values() for row in own]
    plot = Plot(FLIPS_STEM, functools.partial(compression_plots.flips, found), rows, FLIP_COLUMNS, told)
    lines = [line for title, own in found.items() for line in ("", *level_sections.flip_section(title, own))]
    return [Part(FLIPS, [plot], [level_sections.ABOUT_FLIPS, *lines], [])]


def compared_parts(levels: Iterable[Part]) -> list[Part]:
    """The methods of all settings without training beside each other by bytes, a part for each model; none of fewer
    than two methods.

    Args:
        levels: what level_parts returned.
    """
    found: dict[str, dict[str, list[Row]]] = {}
    for part in levels:
        if rows := part.tables["compared"]:
            found.setdefault(rows[0]["model"], {})[part.title.removesuffix(f", {rows[0]['model']}")] = rows
    files, parts = file_names(found), []
    for model, sets in found.items():
        told = " ".join(filter(None, (of_compared(title, rows) for title, rows in sets.items())))
        rows = [row for own in sets.values() for row in own]
        stem = f"methods_compared_{files[model]}"
        plot = Plot(stem, functools.partial(methods_compared, sets), rows, COMPARED_COLUMNS, told)
        lines = [line for title, own in sets.items() for line in compared_section(title, own)]
        parts.append(Part(f"{COMPARED}, {model}", [plot], [ABOUT, "", *lines], []))
    return parts


def domain_parts(rows: list[Row], resamples: int) -> list[Part]:
    """Multi-domain learning and translation: one part for every setting, model and task."""
    found = domain_sets(rows)
    files, parts = _files_of(found), []
    for key, members in found.items():
        drawn = resampled_levels(members, resamples)
        table, effects = domain_table(members, drawn=drawn), minority_table(members, drawn=drawn)
        ending = f"{files[key.task]}_{files[key.model]}"
        drawn = []
        if curves_by(table, "level"):
            draw = functools.partial(plots.domains, table)
            drawn.append(Plot(f"{key.setting}_{ending}", draw, table, DOMAIN_COLUMNS, findings.of_domains(table)))
        if any(row["corrected_effect"] is not None for row in effects):
            draw = functools.partial(tuned_plots.minorities, effects, table)
            told = findings.of_minorities(effects)
            drawn.append(Plot(f"{key.setting}_minority_{ending}", draw, effects, MINORITY_COLUMNS, told))
        parts.append(
            Part(
                title=f"{set_title(key.setting, key.task)}, {key.task}, {key.model}",
                plots=drawn,
                lines=tuned_sections.domain_section(table, effects),
                cautions=cautions.domain_cautions(members, table, effects),
            )
        )
    return parts


def line_parts(rows: list[Row]) -> list[Part]:
    """Appendix C: one part for every model and amount of training data."""
    found = line_sets(rows)
    files, parts = file_names({model for _, model, _ in found}), []
    for (setting, model, fraction), members in found.items():
        share = "" if fraction == 1 else f"_{100 * fraction:g}"
        stem = f"{setting}_{files[model]}{share}"
        table, barriers = line_table(members), barrier_table(members)
        draw = functools.partial(tuned_plots.lines_between_models, table, barriers)
        parts.append(
            Part(
                title=f"Lines between models, {model}" + (f", {100 * fraction:g} % of the data" if share else ""),
                plots=[
                    Plot(stem, draw, table, LINE_COLUMNS, findings.of_lines(barriers)),
                    Plot(f"{stem}_barriers", None, barriers, BARRIER_COLUMNS),
                ],
                lines=tuned_sections.line_section(table, barriers),
                cautions=cautions.line_cautions(table),
                tables={"barriers": barriers},
            )
        )
    return parts


def perplexity_parts(rows: list[Row]) -> list[Part]:
    """One part for every model and text."""
    found = perplexity_sets(rows)
    files, parts = file_names({name for _, *names in found for name in names}), []
    for (setting, model, text), members in found.items():
        table = perplexity_table(members)
        drawn = []
        if curves_by(table, "compression"):
            stem = f"{setting}_{files[text]}_{files[model]}"
            draw = functools.partial(compression_plots.perplexity, table)
            drawn.append(Plot(stem, draw, table, PERPLEXITY_COLUMNS, findings.of_perplexity(table)))
        lines = level_sections.perplexity_section(table)
        title = f"Perplexity, {model} on {text}"
        parts.append(Part(title, drawn, lines, cautions.perplexity_cautions(table)))
    return parts


def recovery_parts(rows: list[Row], resamples: int) -> list[Part]:
    """Recovery: a part for the perplexity of every model on every text, and for the levels of every model and seed."""
    curves = grouped(curve_table(rows), ("model", "text"))
    levels = grouped(recovery_level_table(rows, resamples), FIGURE)
    files = file_names({*(name for key in curves for name in key), *(model for model, _ in levels)})
    beware, parts = [*uncontrolled(rows), *incomparable(rows)], []
    for (model, text), table in curves.items():
        stem = f"recovery_{files[text]}_{files[model]}"
        draw = functools.partial(recovery_plots.perplexity_curves, table)
        drawn = any(row["transfer"] != DENSE for row in table)
        plot = Plot(stem, draw if drawn else None, table, CURVE_COLUMNS, recovery_sections.curve_finding(table))
        lines = recovery_sections.curve_section(table)
        parts.append(Part(f"What training brings back, {model} on {text}", [plot], lines, beware))
        beware = []
    for (model, seed), table in levels.items():
        stem = f"recovery_levels_{files[model]}" + (f"_seed{seed}" if len(levels) > 1 else "")
        drawn = [row for row in table if row["left"] is not None]
        draw = functools.partial(recovery_plots.levels_before_and_after, drawn) if drawn else None
        plot = Plot(stem, draw, table, RECOVERED_COLUMNS, recovery_sections.level_finding(table))
        title = f"Levels that training brings back, {model}, seed {seed}"
        parts.append(Part(title, [plot], recovery_sections.level_section(table), beware))
        beware = []
    return parts or ([Part("What training brings back", [], [], beware)] if beware else [])


def _with_distinct_stems(parts: list[Part]) -> list[Part]:
    """The parts with file names of which no two are alike, on systems too that do not tell capitals from small letters.

    Names joined by "_" may be: of task a_b and model c, and of task a and model b_c.
    """
    taken: set[str] = set()

    def free(stem: str) -> str:
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        name = next(name for name in names if name.lower() not in taken)
        taken.add(name.lower())
        return name

    return [part._replace(plots=[plot._replace(stem=free(plot.stem)) for plot in part.plots]) for part in parts]


def _files_of(found: Iterable[FigureKey]) -> dict[str, str]:
    """The models and tasks of figures as they stand in file names."""
    names = text_names({name for key in found for name in (key.model, key.task)})
    files = file_names(names.values())
    return {name: files[short] for name, short in names.items()}


def original_figures(plots: Iterable[Plot]) -> dict[str, Plot]:
    """Our figure for each name of the original; of several models' figures, the first with the most points."""
    drawn = [plot for plot in plots if plot.draw]
    found = {}
    for name, rules in ORIGINAL_NAMES.items():
        for columns, words in rules:
            # File names of different kinds may be alike, and so may columns.
            if fitting := [plot for plot in drawn if plot.columns == columns and words in f"_{plot.stem}"]:
                found[name] = max(fitting, key=lambda plot: len(plot.table))
                break
    return found
