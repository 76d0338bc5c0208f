"""A split of a data set in the `--data_dir` layout, or on the hub."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from pruning.data_files import SUFFIXES, check_fields, read_rows

PROVENANCE = "SOURCE.json"  # stands beside the default assets' data and is none


class Source(NamedTuple):
    """Where a split of a data set is.

    Fields:
        folder: below --data_dir, such as "mmlu" or "trivia_qa/rc.wikipedia.nocontext".
        split: name of the local file, without its suffix.
        hub_id: the hub's data set; None if it has none.
        hub_config: the hub's configuration, None for its only one.
        hub_split: the split's name on the hub.
        fields: which every row must have.
        hub_revision: branch, tag or commit; None for the newest.
    """

    folder: str
    split: str
    hub_id: str | None
    hub_config: str | None
    hub_split: str
    fields: tuple[str, ...]
    hub_revision: str | None = None


def local_file(source: Source, data_dir: Path) -> Path:
    """The split's file, `data_dir`/<folder>/<split>.jsonl or with another of SUFFIXES.

    Raises:
        ValueError: there is none; says what was looked for and what is there.
    """
    data_dir = Path(data_dir).expanduser()
    if not data_dir.is_dir():
        raise ValueError(f"--data_dir {data_dir} is no folder")
    candidates = (data_dir / source.folder / f"{source.split}{suffix}" for suffix in SUFFIXES)
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        there = ", ".join(f"{folder} ({', '.join(splits)})" for folder, splits in _data_sets(data_dir).items())
        remedy = "; leave --data_dir out to load from the hub" if source.hub_id else ""
        raise ValueError(
            f"--data_dir {data_dir} has no {source.folder}/{source.split}.jsonl (or {', '.join(SUFFIXES)}); "
            f"it has {there or 'no data set'}{remedy}"
        )
    return path


def read_source(
    source: Source, data_dir: Path | None, first: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """All rows of a split, one by one, each with where it stands ("<path>, line 3").

    A "sequence of struct" column is a dict of lists on the hub and a list of dicts in JSON.

    Args:
        data_dir: local layout (see local_file); the hub when None.
        first: read no more than this many rows, which the hub then sends one by one instead of as whole files.
    Raises:
        ValueError: no such file or data set, the hub cannot be reached, a row lacks a field, or there are no rows.
    """
    rows = _hub_rows(source, first) if data_dir is None else read_rows(local_file(source, data_dir))
    is_empty = True
    for where, row in islice(rows, first):
        check_fields(row, where, source.fields)
        is_empty = False
        yield where, row
    if is_empty:
        raise ValueError(f"{local_file(source, data_dir) if data_dir else source.hub_id} holds no rows")


def _data_sets(data_dir: Path) -> dict[str, list[str]]:
    """The splits in each folder of the layout, with or without a configuration's folder below it."""
    found = defaultdict(list)
    for path in sorted(chain(data_dir.glob("*/*"), data_dir.glob("*/*/*"))):
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        if suffix and path.is_file() and path.name != PROVENANCE:
            found[str(path.parent.relative_to(data_dir))].append(path.name.removesuffix(suffix))
    return dict(found)


def _hub_rows(source: Source, first: int | None) -> Iterable[tuple[str, dict[str, Any]]]:
    import datasets  # takes a second, and files do without it

    remedy = f"give --data_dir DIR with {source.folder}/{source.split}.jsonl"
    if source.hub_id is None:
        raise ValueError(f"{source.folder} is not on the hub: {remedy}")
    name = " ".join(filter(None, (source.hub_id, source.hub_config, source.hub_split)))
    try:
        rows = datasets.load_dataset(
            source.hub_id,
            source.hub_config,
            split=source.hub_split,
            revision=source.hub_revision,
            streaming=first is not None,
        )
        rows = rows if first is None else list(rows.take(first))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"{name}: {reason}; without a hub, {remedy}") from error
    return ((f"{name}, row {number}", row) for number, row in enumerate(rows, start=1))
