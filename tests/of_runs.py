"""Tables and figures of rows of runs, for tests that start from run folders."""

from typing import Any

from matplotlib.figure import Figure

from analysis import (
    cautions,
    compression_plots,
    contrasts,
    curves,
    human_gap,
    intervals,
    lines,
    plots,
    tuned_plots,
    tuned_sections,
    verdicts,
)
from analysis.replicates import resampled_curves
from analysis.resampling import RESAMPLES
from analysis.table import domain_sets, level_sets, level_table, only_set, perplexity_sets, perplexity_table, seed_means

Rows = list[dict[str, Any]]


def data_adequacy_table(rows: Rows) -> Rows:
    return plots.data_adequacy_points(seed_means(rows))


def data_adequacy(rows: Rows) -> Figure:
    return plots.data_adequacy(data_adequacy_table(rows))


def four_transfers_table(rows: Rows) -> Rows:
    return plots.four_transfers_points(seed_means(rows))


def four_transfers(rows: Rows) -> Figure:
    return plots.four_transfers(four_transfers_table(rows))


def gap_table(rows: Rows) -> Rows:
    return human_gap.gap_table(seed_means(rows))


def gap_figure_table(rows: Rows) -> Rows:
    return human_gap.figure_table(seed_means(rows), gap_table(rows))


def easy_and_hard_tasks(rows: Rows) -> Figure:
    return plots.easy_and_hard_tasks(seed_means(rows), gap_table(rows))


def left_out(rows: Rows) -> list[str]:
    return human_gap.left_out(seed_means(rows), gap_table(rows))


def gap_lines(rows: Rows) -> list[str]:
    return tuned_sections.gap_lines(seed_means(rows), gap_table(rows))


def levels_with_intervals(rows: Rows, resamples: int = RESAMPLES) -> Rows:
    """The level_table of one figure with intervals."""
    members = only_set(level_sets(rows))
    table = level_table(members)
    for key, own in level_sets(members).items():
        table = intervals.with_intervals(table, verdicts.of_figure(key, resampled_curves(own, resamples, 0, table)))
    return table


def levels(rows: Rows) -> Figure:
    return plots.levels(levels_with_intervals(rows))


def by_size(rows: Rows, size: str = curves.BYTES) -> Figure:
    return compression_plots.by_size(curves.size_table(levels_with_intervals(rows), size), size)


def domains(rows: Rows) -> Figure:
    return plots.domains(contrasts.domain_table(only_set(domain_sets(rows))))


def minorities(rows: Rows) -> Figure:
    members = only_set(domain_sets(rows))
    return tuned_plots.minorities(contrasts.minority_table(members), contrasts.domain_table(members))


def lines_between_models(rows: Rows) -> Figure:
    return tuned_plots.lines_between_models(lines.line_table(rows), lines.barrier_table(rows))


def line_section(rows: Rows) -> list[str]:
    return tuned_sections.line_section(lines.line_table(rows), lines.barrier_table(rows))


def line_cautions(rows: Rows) -> list[str]:
    return cautions.line_cautions(lines.line_table(rows))


def perplexity(rows: Rows) -> Figure:
    return compression_plots.perplexity(perplexity_table(only_set(perplexity_sets(rows))))
