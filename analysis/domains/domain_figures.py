"""Figures of multi-domain learning and translation: how every domain or pair of languages falls, and what shares do."""

import math
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import drawing, layout, tables
from analysis.domains import domain_tables
from analysis.domains.domain_tables import MULTI_DOMAIN, domain_table
from analysis.domains.minority_tables import MEAN, minority_table
from analysis.figures import TRANSFER_STYLE
from analysis.levels import level_figures
from analysis.tables import Row

TITLE = {
    domain_tables.MULTI_DOMAIN: "Multi-domain learning",
    domain_tables.TRANSLATION: "Translation",
}
MAX_COLUMNS = 4
LONGEST_NAME = 24  # of a level in a legend
LONGEST_CONDITION = 40  # in a line of a panel's title
WARNING_ROOM = 0.3


def domain_figure(rows: list[Row]) -> Figure:
    """draw_domains of the runs of one of domain_tables.domain_sets; those of other settings are passed over.

    Raises:
        ValueError: no compressed run, or runs of several figures.
    """
    return draw_domains(_one_set(rows))


def draw_domains(table: list[Row]) -> Figure:
    """Every domain's (or pair of languages') score in percent of dense, a panel per condition and transfer.

    Args:
        table: the domain_table of one of domain_tables.domain_sets.
    Raises:
        ValueError: no compressed run.
    Source: the figure "Majority v.s. Minority" of the paper's first version. Added: bands, slopes, the floor of each
        domain, and every domain instead of two.
    """
    curves = domain_tables.domain_curves(table)
    if not curves:
        raise ValueError("the runs hold no compressed model scored by domain, so there is nothing to draw")
    looks = level_looks(table)
    places = {kind: [key[1:] for key in curves if key[0] == kind] for kind in tables.KINDS}
    everything = [points for drawn in curves.values() for points in drawn.values()]
    warned = any(points[0]["dense_mean_score"] is None or points[0]["dense_above_chance"] is False
                 for points in everything)  # fmt: skip
    with drawing.style(drawing.WIDE):
        columns = _columns(places)
        width = min(4.4, max(3.3, 11 / columns))
        size = width, 0.7 * width + 0.9 + 0.19 * (len(looks) + 1)
        figure, panels = drawing.make_panels(places, columns, size=size)
        figure.suptitle(f"{TITLE[table[0]['setting']]}: {table[0]['task']}", fontsize=12, weight="bold")
        for (kind, place), axes in panels.items():
            drawn = curves[kind, *place]
            positions = drawing.strength_axis(axes, kind, list(drawn.values()))
            drawing.dense_line(axes, TRANSFER_STYLE[tables.DENSE])
            for level, points in drawn.items():
                look = {**looks[level], "label": _label(points)}
                drawing.curve(axes, positions, points, look, level_figures.band)
                drawing.chance_line(axes, points, looks[level]["color"])
            # one range for all panels, so that conditions and transfers can be compared
            drawing.limits(axes, everything, level_figures.band, WARNING_ROOM if warned else 0.0)
            drawing.warning(axes, drawn, "dense run")
            axes.set_title(_panel_title(*place))
            drawing.slope_legend(axes, _legend_title(table), 1)
        drawing.label_outer(panels, f"{_metric(table)} (% of dense)")
        drawing.caption(figure, _note(table))
    return figure


def minority_figure(rows: list[Row]) -> Figure:
    """draw_minorities of the runs of one of domain_tables.domain_sets; those of other settings are passed over.

    Raises:
        ValueError: no domain was trained on with two shares, or runs of several figures.
    """
    return draw_minorities(minority_table(rows), _one_set(rows))


def draw_minorities(effects: list[Row], domains: list[Row]) -> Figure:
    """How much more of its score above chance a domain loses as the minority than as the majority, by strength.

    Args:
        effects, domains: minority_table and domain_table of one of domain_tables.domain_sets.
    Raises:
        ValueError: no domain was trained on with two shares.
    """
    table = [row for row in effects if row["corrected_effect"] is not None]
    if not table:
        raise ValueError("no domain stands in two mixtures with different shares, each with a dense run above chance")
    keys = ("transfer", "magnitude_scope")
    places = {
        kind: list(dict.fromkeys(tuple(row[key] for key in keys) for row in table if row["strength_kind"] == kind))
        for kind in tables.KINDS
    }
    looks = {**level_looks(domains), MEAN: {"color": "0.15", "marker": "*", "linewidth": 2.4}}
    with drawing.style():
        columns = _columns(places)
        width = min(5.2, max(3.4, 11 / columns))
        figure, panels = drawing.make_panels(places, columns, size=(width, 0.62 * width + 1.0 + 0.19 * len(looks)))
        figure.suptitle(f"Minority against majority\n{table[0]['task']}", fontsize=12, weight="bold")
        for (kind, place), axes in panels.items():
            own = [row for row in table if (row["strength_kind"], *(row[key] for key in keys)) == (kind, *place)]
            positions = drawing.strength_axis(axes, kind, [own])
            axes.axhline(0, color="0.3", linewidth=1, zorder=1.5)
            for level, look in looks.items():
                _effect_curve(axes, positions, [row for row in own if row["level"] == level], look)
            axes.set_title(_transfer_title(*place))
            drawing.slope_legend(axes, "domain: its smallest and largest share", 1)
        _one_range(list(panels.values()))
        drawing.label_outer(panels, "Minority's drop minus majority's\n(% of dense score above chance)")
        drawing.caption(figure, _minority_note(table))
    return figure


def level_looks(table: list[Row]) -> dict[str, dict]:
    """Colour and marker of each domain, the same in every panel: by name; of pairs of languages by difficulty."""
    if table[0]["setting"] == MULTI_DOMAIN:
        return level_figures.level_looks(sorted({point["level"] for point in table}))
    return level_figures.level_looks(list(dict.fromkeys(point["level"] for point in table)))


def _one_set(rows: list[Row]) -> list[Row]:
    sets = domain_tables.domain_sets(rows)
    if len(sets) > 1:
        raise ValueError(f"the runs belong in {len(sets)} figures; take one of domain_tables.domain_sets")
    return domain_table(rows)


def _columns(places: dict[str, list]) -> int:
    """Panels in a line: as many as there are transfers to a condition, or all of them where they are few."""
    most = max(places.values(), key=len)
    per_condition = math.ceil(len(most) / len({place[0] for place in most}))
    return len(most) if len(most) <= MAX_COLUMNS else min(MAX_COLUMNS, max(2, per_condition))


def _label(points: list[Row]) -> str:
    level = domain_tables.level_statistics(points)
    name = layout.shortened(level["level"], LONGEST_NAME)
    share = "" if level["share"] is None else f", {drawing.percent(level['share'])}"
    return f"{name}{share}: {drawing.slope_text(level, level['theil_sen_slope'])}"


def _legend_title(table: list[Row]) -> str:
    shares = any(point["share"] is not None for point in table)
    what = "domain" if table[0]["setting"] == MULTI_DOMAIN else "languages"
    return f"{what}{', share' if shares else ''}: Theil-Sen slope"


def _panel_title(condition: str, transfer: str, scope: str | None) -> str:
    # a mixture of many domains breaks after its commas
    lines = textwrap.wrap(condition.replace(",", ", "), LONGEST_CONDITION)
    return "\n".join([_transfer_title(transfer, scope), *lines])


def _transfer_title(transfer: str, scope: str | None) -> str:
    name = TRANSFER_STYLE[transfer]["label"]
    return f"{name} (threshold per layer)" if scope == "layer" else name


def _metric(table: list[Row]) -> str:
    name = table[0]["metric"]
    return "BLEU" if name == "bleu" else name.replace("_", " ").capitalize()


def _effect_curve(axes: Axes, positions: dict[float | str, float], rows: list[Row], look: dict) -> None:
    if not rows:
        return
    where = [positions[row["strength"]] for row in rows]
    label = layout.shortened(rows[0]["level"], LONGEST_NAME)
    if label != MEAN:
        label += ": " + " and ".join(drawing.percent(rows[0][f"{side}_share"]) for side in ("minority", "majority"))
    axes.plot(where, [100 * row["corrected_effect"] for row in rows], **look, label=label)
    bounds = [_effect_band(row) for row in rows]
    if all(bound is not None for bound in bounds):
        drawing.draw_band(axes, where, bounds, look["color"])


def _effect_band(row: Row) -> tuple[float, float] | None:
    """The interval over items, widened to the seeds' range; None without either."""
    known = [row[name] for name in ("corrected_effect_low", "corrected_effect_high") if row[name] is not None]
    known += [row[name] for name in ("lowest_seed_effect", "highest_seed_effect") if row[name] is not None]
    return (100 * min(known), 100 * max(known)) if known else None


def _one_range(panels: list[Axes]) -> None:
    low, high = min(axes.get_ylim()[0] for axes in panels), max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, high)


def _note(table: list[Row]) -> str:
    counts = sorted({point["num_examples"] for point in table})
    items = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"{table[0]['model']}. {items} items per level. {_seeds(table)} Band: 95 % interval over items, each compared "
        "with the dense run's outcome on it, widened to the range of the seeds. Dotted: chance level. Slope: "
        "normalized drop per unit of sparsity."
    )


def _minority_note(table: list[Row]) -> str:
    return (
        f"{table[0]['model']}. The same domain and items in two mixtures: what is lost of the dense score above chance "
        "where its share of the training rows is smallest, minus the same where it is largest; below 0 the minority "
        f"loses more. {_seeds(table)} Band: 95 % interval over items, widened to the range of the seeds."
    )


def _seeds(table: list[Row]) -> str:
    counts = sorted({len(row["seeds"]) for row in table})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{seeds} seed{'' if seeds == '1' else 's'}."
