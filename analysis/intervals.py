"""The intervals that analysis.verdicts gives drops, put into the tables that figures are drawn of."""

from analysis.names import percent
from analysis.replicates import DATA_SETTING
from analysis.table import SPARSE, Row
from analysis.verdicts import BOUNDS, CURVE_KEYS, Trends

POINT = ("strength_kind", "strength")


def with_intervals(table: list[Row], trends: Trends) -> list[Row]:
    """The rows of one level_table with the drop_low and drop_high that of_figure gave."""
    bounds = {_place(point): point for point in trends.points}
    empty = {"drop_low": None, "drop_high": None}
    return [{**row, **{name: bounds.get(_place(row), empty)[name] for name in empty}} for row in table]


def _place(point: Row) -> tuple:
    return tuple(point[name] for name in (*CURVE_KEYS[3:], "level", "strength"))


def with_tuned_intervals(table: list[Row], trends: Trends) -> list[Row]:
    """The rows of seed_means of one set, sparse transfer with the intervals of its drops that `trends` gave."""
    of_amounts = (point for point in trends.points if point["setting"] == DATA_SETTING)
    bounds = {tuple(point[name] for name in ("task", "level", *POINT)): point for point in of_amounts}
    found = []
    for row in table:
        place = (row["task"], percent(row["data_fraction"]), *(row[name] for name in POINT))
        own = bounds.get(place, {}) if row["transfer"] == SPARSE else {}
        found.append({**row, **{name: own.get(name) for name in BOUNDS}})
    return found
