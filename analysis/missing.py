"""Runs that the grid of a tree asks for and that are not there."""

import itertools

from analysis.names import compression_name, markdown, percent, strength_text
from analysis.table import Row, compression_order
from harness import run_folder

# Coordinates of a run in the grid of its sweep.
GROUP = ("setting", "model", "task")
# The method by which a model was made.
WAY = ("compression", "layers", "allocation", "magnitude_scope", "transfer", "pair")
POINT = ("strength_kind", "strength")
SEEDS = ("seed", "end_seed")
PLACE = tuple(name for name in run_folder.COORDINATES if name not in {*GROUP, *WAY, *POINT, *SEEDS})
MISSING_COLUMNS = (*run_folder.COORDINATES, "requested_sparsity")
MOST_LINES = 40

Cells = dict[tuple, set[tuple]]


def missing_runs(rows: list[Row]) -> list[Row]:
    """The coordinates of every run of the full grid that is not there.

    The grid of one setting, model and task has a cell for every method (WAY) at every strength that any method has, of
    the kinds that this method takes, in every place (amount of data, mixture), with every seed of this method. A method
    that was never run is not missed, and neither is a strength that no run has.

    Args:
        rows: what run_folder.read_runs returned.
    Returns:
        Rows of MISSING_COLUMNS: run_folder.COORDINATES, and the requested_sparsity of runs at that strength.
    """
    found: dict[tuple, Cells] = {}
    sparsity = {}
    for row in rows:
        own = run_folder.coordinates(row)
        parts = [tuple(own[name] for name in names) for names in (GROUP, WAY, POINT, PLACE, SEEDS)]
        group, way, point, where, seeds = parts
        found.setdefault(group, {}).setdefault(way, set()).add((point, where, seeds))
        sparsity[point] = row["requested_sparsity"]
    missing = []
    for group, ways in found.items():
        for way, present in ways.items():
            for point, where, seeds in _grid(ways, present) - present:
                names = (*GROUP, *WAY, *POINT, *PLACE, *SEEDS)
                values = (*group, *way, *point, *where, *seeds)
                missing.append({**dict(zip(names, values, strict=True)), "requested_sparsity": sparsity[point]})
    return sorted(missing, key=_order)


def _grid(ways: Cells, present: set[tuple]) -> set[tuple]:
    everything = set().union(*ways.values())
    kinds = {point[0] for point, _, _ in present}
    # Each checkpoint is a method of one strength, the share of bytes of its own files.
    points = {point for point, _, _ in everything if point[0] in kinds - {"bytes"}}
    points |= {point for point, _, _ in present if point[0] == "bytes"}
    places = {where for _, where, _ in everything}
    return set(itertools.product(points, places, {seeds for *_, seeds in present}))


def _order(row: Row) -> tuple:
    fixed = tuple(str(row[name]) for name in (*GROUP, *PLACE, *WAY))
    return fixed, compression_order(row), row["seed"], row["end_seed"] or 0


def missing_lines(missing: list[Row]) -> list[str]:
    """A Markdown table with a line for every method and place.

    Args:
        missing: what missing_runs returned.
    """
    groups: dict[tuple, dict[str, list[str]]] = {}
    for row in missing:
        key = tuple(row[name] for name in (*GROUP, *PLACE, *WAY))
        strength = strength_text(row) or "dense"
        groups.setdefault((key, _way_name(row), _place_name(row)), {}).setdefault(strength, []).append(str(row["seed"]))
    body = []
    for (key, way, place), strengths in itertools.islice(groups.items(), MOST_LINES):
        setting, model, task, *_ = key
        listed = "; ".join(f"{strength} (seed {' '.join(seeds)})" for strength, seeds in strengths.items())
        body.append([setting, model, task or "", way, place, listed])
    more = len(groups) - len(body)
    return [
        f"Runs of the full grid of what the tree holds that are not there: {len(missing)} (all in `missing.csv`):",
        "",
        *markdown(["setting", "model", "task", "made by", "where", "lacking"], body),
        *(["", f"And {more} more lines."] if more else []),
    ]


def _way_name(row: Row) -> str:
    name = compression_name(row) if row["transfer"] is None else row["transfer"]
    return name if row["pair"] is None else f"{name}, {row['pair']}"


def _place_name(row: Row) -> str:
    told = {name: row[name] for name in PLACE if row[name] is not None}
    if "data_fraction" in told:
        told["data_fraction"] = f"{percent(told['data_fraction'])} data"
    return ", ".join(f"{value}" if name == "data_fraction" else f"{name} {value}" for name, value in told.items())
