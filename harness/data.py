"""The one reader of data: rows of csv, JSON and parquet files or of the hub, each with its place, and their checks."""

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

SUFFIXES = (".jsonl.gz", ".jsonl", ".json.gz", ".json", ".parquet", ".parquet.gz")
TABLE_SUFFIXES = (*SUFFIXES, ".csv.gz", ".csv")
TEXT_SUFFIXES = (".txt.gz", ".txt")
PROVENANCE = "SOURCE.json"  # stands beside the default assets' data and is none
# What readers raise where the bytes are not what the suffix says, or end too early.
DAMAGE = (EOFError, OSError, zlib.error, csv.Error, UnicodeDecodeError)


def read_rows(
    path: Path, columns: Sequence[str] | None = None, suffixes: tuple[str, ...] = SUFFIXES
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands ("<path>, line 3" or "<path>, row 3") and its fields, in the file's order.

    Rows are read as they are asked for; blank lines are none.

    Args:
        path: .json and .jsonl hold one object in every line, .json may be one list of objects; each may end in .gz,
            .parquet too.
        columns: of a parquet file that has all of these, only these are read.
        suffixes: TABLE_SUFFIXES reads .csv too, with a line of names first; an empty field is not there.
    Raises:
        ValueError: no such file, another suffix, or damage (names the file, and the line where there is one).
    """
    kind = file_kind(path, suffixes)
    read = {"parquet": _parquet_rows, "csv": _csv_rows, "json": _json_rows}[kind]
    with _opened(path, kind) as file:
        yield from read(file, path, columns)


def read_text(path: Path) -> str:
    """The whole of a text file, UTF-8.

    Raises:
        ValueError: no such file, another suffix, or it cannot be read.
    """
    with _opened(path, file_kind(path, TEXT_SUFFIXES)) as file:
        return file.read().decode("utf-8-sig")


def file_kind(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> str:
    """txt, json, csv or parquet, by the file's name.

    Raises:
        ValueError: the name ends in none of `suffixes`.
    """
    if not path.name.endswith(suffixes):
        raise ValueError(f"{path} is not one of {', '.join(suffixes)}")
    kind = Path(path.name.removesuffix(".gz")).suffix.removeprefix(".")
    return "json" if kind == "jsonl" else kind


def valid_text(value: object, where: str, field: str) -> str:
    """The value, if it is a text that can be encoded; it may be empty.

    Raises:
        ValueError: it is not; names where it stands and the field.
    """
    if not isinstance(value, str):
        raise ValueError(f"{where}: {field!r} is no text but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write half a character, \ud800; tokenizers refuse it
        raise ValueError(f"{where}: {field!r} is no valid Unicode: {error}") from error
    return value


def check_fields(row: dict[str, Any], where: str, fields: Iterable[str]) -> None:
    """Every field is in the row.

    Raises:
        ValueError: names the first one that is not, and those that are.
    """
    for field in fields:
        if field not in row:
            raise ValueError(f"{where} lacks the field {field!r}; it has {', '.join(row)}")


def checked_text(value: object, where: str, field: str) -> str:
    """The value, if it is a text that is more than white space.

    Raises:
        ValueError: it is not; names where it stands and the field.
    """
    text = valid_text(value, where, field)
    if not text.strip():
        raise ValueError(f"{where}: {field!r} is empty")
    return text


@contextlib.contextmanager
def _opened(path: Path, kind: str) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked; damage found while they are read is a ValueError that names the file."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            yield file
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from error


def _json_rows(lines: BinaryIO, path: Path, _: Sequence[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    if ".jsonl" not in path.name and lines.peek(1)[:1] == b"[":
        yield from _json_list(lines.read(), path)
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not one JSON object: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not one JSON object")
        yield where, row


def _json_list(content: bytes, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no list of JSON objects: {error}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number} is not one JSON object")
        yield f"{path}, row {number}", row


def _csv_rows(file: BinaryIO, path: Path, _: Sequence[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    for row in lines:
        where = f"{path}, line {lines.line_num}"
        if None in row:
            raise ValueError(f"{where} has {len(row[None])} more fields than the first line names")
        yield where, {name: value for name, value in row.items() if value}


def _parquet_rows(file: BinaryIO, path: Path, columns: Sequence[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow  # takes 25 MB, and other files do without it
    from pyarrow import parquet

    number = 0
    try:
        # The end of a parquet file is read first: an unpacking stream would start over for every part.
        table = parquet.ParquetFile(io.BytesIO(file.read()) if path.suffix == ".gz" else file)
        names = set(table.schema_arrow.names)
        wanted = list(columns) if columns is not None and names.issuperset(columns) else None
        for batch in table.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error


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


def placed(source: Source, data_dir: Path | None) -> Path | Source:
    """Where read_source reads from: the split's file (see local_file), or the hub."""
    return source if data_dir is None else local_file(source, data_dir)


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
