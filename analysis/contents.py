"""What a tree of runs holds, part by part: the figures and their tables, what is said of them, what to beware of.

A part is one set of runs that belong together: a setting of fine-tuning, a setting without training, a text. Drawing
waits until a figure is asked for; tables and sentences are made at once.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from analysis import figures, findings, missing, paper, perplexity_summary, tables
from analysis.curves import resampled_curves
from analysis.domains import domain_figures, domain_summary, domain_tables, minority_tables
from analysis.fine_tuning import human_gap, transfers, tuning_summary, tuning_trends
from analysis.levels import level_figures, level_summary, level_tables, size_figures
from analysis.lines import interpolation_figures, interpolation_summary, interpolation_tables
from analysis.resampling import RESAMPLES
from analysis.tables import Row
from analysis.uncertainty import trends
from analysis.uncertainty.trends import Trends
from harness import run_folder


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
        found: intervals and verdicts of its curves, where it has levels of difficulty.
    """

    title: str
    plots: list[Plot]
    lines: list[str]
    cautions: list[str]
    found: Trends = Trends([], [], [], [])


class Tree(NamedTuple):
    """All that is known of a tree of runs.

    Fields:
        rows: what run_folder.read_runs returned.
        unfinished: what run_folder.unfinished_runs returned.
        parts: in the order of the paper.
        found: of all parts.
        lacking: what missing.missing_runs returned.
        compared: what paper.comparison returned.
    """

    rows: list[Row]
    unfinished: list[Path]
    parts: list[Part]
    found: Trends
    lacking: list[Row]
    compared: list[Row]


def several_tasks(members: list[Row]) -> list[Row]:
    """human_gap.figure_table, empty with a single task, which is neither easier nor harder than another."""
    points = human_gap.figure_table(members)
    return points if len({point["task"] for point in points}) > 1 else []


def known_tasks(members: list[Row]) -> list[Row]:
    """human_gap.human_gap_table, empty where it is known of no task how hard it is."""
    found = human_gap.human_gap_table(members)
    return found if any(map(human_gap.has_place, found)) else []


# Of fine-tuning runs: the figure, its points, and the columns of these; without points it is not drawn.
TUNING_FIGURES: dict[str, tuple[Callable[[list[Row]], Figure], Callable[[list[Row]], list[Row]], tuple[str, ...]]] = {
    "data_adequacy": (figures.data_adequacy, tables.data_adequacy_table, tables.POINT_COLUMNS),
    "four_transfers": (figures.four_transfers, tables.four_transfers_table, tables.POINT_COLUMNS),
    "human_gap": (figures.easy_and_hard_tasks, several_tasks, human_gap.FIGURE_COLUMNS),
}


def describe(
    rows: list[Row], unfinished: list[Path], resamples: int = RESAMPLES, size: str = size_figures.BYTES
) -> Tree:
    """All that is known of a tree of runs.

    Args:
        rows: what run_folder.read_runs returned.
        unfinished: what run_folder.unfinished_runs returned.
        resamples: of items and seeds, behind all intervals and verdicts.
        size: one of size_figures.SIZES, the axis of the figures by size.
    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    run_folder.check_runs(rows)
    parts = [*tuning_parts(rows, resamples), *level_parts(rows, resamples, size)]
    parts += [*domain_parts(rows, resamples), *interpolation_parts(rows), *perplexity_parts(rows)]
    found = Trends(*([row for part in parts for row in part.found[place]] for place in range(len(Trends._fields))))
    return Tree(rows, unfinished, parts, found, missing.missing_runs(rows), paper.comparison(rows, found))


def is_known(row: Row) -> bool:
    """Whether some part is made of a run's setting."""
    return (
        tables.is_fine_tuning_run(row)
        or level_tables.is_level_run(row)
        or row["setting"] in (*domain_tables.SETTINGS, interpolation_tables.SETTING, tables.PERPLEXITY)
    )


def tuning_parts(rows: list[Row], resamples: int) -> list[Part]:
    """Setting 1, section 5 and appendix B: one part for every setting, model and magnitude threshold."""
    sets = tables.figure_sets(rows)
    names = tables.model_names({model for _, model, _ in sets})
    files = tables.file_names(names.values())
    parts = []
    for (setting, model, scope), members in sets.items():
        # The global threshold is the default and the paper's; only the other one is named.
        ending = files[names[model]] + ("_per_layer" if scope == "layer" else "")
        plots = []
        found = tuning_trends.measure(members, resamples)
        told = {
            "data_adequacy": functools.partial(findings.of_tuning, found),
            "four_transfers": lambda _, differences=found.differences: findings.of_transfers(differences),
            "human_gap": functools.partial(findings.of_categories, found),
        }
        for name, (draw, tabulate, columns) in TUNING_FIGURES.items():
            if points := tabulate(members):
                stem = f"setting{setting}_{name}_{ending}"
                plots.append(Plot(stem, functools.partial(draw, members), points, columns, told[name](points)))
        for name, points, columns in (
            ("transfers_compared", found.differences, transfers.DIFFERENCE_COLUMNS),
            ("tasks", known_tasks(members), human_gap.HUMAN_GAP_COLUMNS),
        ):
            if points:
                plots.append(Plot(f"setting{setting}_{name}_{ending}", None, points, columns))
        title = f"Setting {setting}, {names[model]}" + (f", magnitude threshold {scope}" if scope else "")
        table = tables.seed_means(members)
        lines = tuning_summary.section(members, table, found)
        parts.append(Part(title, plots, lines, tuning_summary.cautions(members, table), found))
    return parts


def level_parts(rows: list[Row], resamples: int, size: str) -> list[Part]:
    """Settings 2 to 6, section 4 and own tasks: one part for every setting, model and task."""
    sets = level_tables.level_sets(rows)
    models = tables.model_names({key.model for key in sets})
    tasks = tables.text_names({key.task for key in sets})
    files = tables.file_names([*models.values(), *tasks.values()])
    parts = []
    for key, members in sets.items():
        table = level_tables.level_table(members)
        found = trends.of_figure(key, resampled_curves(members, resamples, 0, table))
        table = trends.with_intervals(table, found)
        setting = key.setting if key.setting == level_tables.OWN_TASK else f"setting{key.setting}"
        stem = f"{setting}_{files[tasks[key.task]]}_{files[models[key.model]]}"
        plots = []
        if level_tables.level_curves(table):
            draw = functools.partial(level_figures.draw, table)
            plots.append(Plot(stem, draw, table, level_tables.LEVEL_COLUMNS, findings.of_levels(found, table)))
        if points := size_figures.size_table(table, size):
            draw = functools.partial(size_figures.draw, points, size)
            shown = [{name: point[name] for name in size_figures.SIZE_COLUMNS} for point in points]
            told = findings.of_sizes(points)
            plots.append(Plot(f"{stem}_by_size", draw, shown, size_figures.SIZE_COLUMNS, told))
        title = f"{level_figures.set_title(key.setting, key.task)}, {models[key.model]}"
        lines = level_summary.section(table, found) + (size_figures.summary_lines(points) if points else [])
        parts.append(Part(title, plots, lines, level_summary.cautions(members, table), found))
    return parts


def domain_parts(rows: list[Row], resamples: int) -> list[Part]:
    """Multi-domain learning and translation: one part for every setting, model and task."""
    sets = domain_tables.domain_sets(rows)
    models = tables.model_names({key.model for key in sets})
    tasks = tables.text_names({key.task for key in sets})
    files = tables.file_names([*models.values(), *tasks.values()])
    parts = []
    for key, members in sets.items():
        table = domain_tables.domain_table(members, resamples)
        effects = minority_tables.minority_table(members, resamples)
        ending = f"{files[tasks[key.task]]}_{files[models[key.model]]}"
        plots = []
        if domain_tables.domain_curves(table):
            draw = functools.partial(domain_figures.draw_domains, table)
            told = findings.of_domains(table)
            plots.append(Plot(f"{key.setting}_{ending}", draw, table, domain_tables.COLUMNS, told))
        if any(row["corrected_effect"] is not None for row in effects):
            draw = functools.partial(domain_figures.draw_minorities, effects, table)
            told = findings.of_minorities(effects)
            plots.append(Plot(f"{key.setting}_minority_{ending}", draw, effects, minority_tables.COLUMNS, told))
        title = f"{domain_figures.TITLE[key.setting]}, {key.task}, {models[key.model]}"
        lines, cautions = domain_summary.section(table, effects), domain_summary.cautions(table, effects)
        parts.append(Part(title, plots, lines, cautions))
    return parts


def interpolation_parts(rows: list[Row]) -> list[Part]:
    """Appendix C: one part for every model and amount of training data."""
    sets = interpolation_tables.interpolation_sets(rows)
    models = tables.model_names({model for _, model, _ in sets})
    files = tables.file_names(models.values())
    parts = []
    for (setting, model, fraction), members in sets.items():
        share = "" if fraction == 1 else f"_{100 * fraction:g}"
        stem = f"{setting}_{files[models[model]]}{share}"
        barriers = interpolation_tables.barrier_table(members)
        plots = [
            Plot(stem, functools.partial(interpolation_figures.interpolation_figure, members),
                 interpolation_tables.interpolation_table(members), interpolation_tables.COLUMNS,
                 findings.of_lines(barriers)),
            Plot(f"{stem}_barriers", None, barriers, interpolation_tables.BARRIER_COLUMNS),
        ]  # fmt: skip
        title = f"Lines between models, {models[model]}" + (f", {100 * fraction:g} % of the data" if share else "")
        lines, cautions = interpolation_summary.section(members), interpolation_summary.cautions(members)
        parts.append(Part(title, plots, lines, cautions))
    return parts


def perplexity_parts(rows: list[Row]) -> list[Part]:
    """One part for every model and text."""
    sets = tables.perplexity_sets(rows)
    models = tables.model_names({model for _, model, _ in sets})
    texts = tables.text_names({text for _, _, text in sets})
    files = tables.file_names([*models.values(), *texts.values()])
    parts = []
    for (setting, model, text), members in sets.items():
        table = tables.perplexity_table(members)
        plots = []
        if tables.perplexity_curves(table):
            stem = f"{setting}_{files[texts[text]]}_{files[models[model]]}"
            draw = functools.partial(figures.perplexity, members)
            told = findings.of_perplexity(table)
            plots.append(Plot(stem, draw, table, tables.PERPLEXITY_COLUMNS, told))
        title = f"Perplexity, {models[model]} on {texts[text]}"
        parts.append(Part(title, plots, perplexity_summary.section(table), perplexity_summary.cautions(table)))
    return parts
