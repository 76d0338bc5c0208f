"""Reading data: rows of csv, JSON and parquet files and of hub data sets, and checks of their fields.

`where` is what errors call a row: "<path>, line 3".
"""

import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from harness.errors import first_line
from harness.options import check_data_dir

SUFFIXES = (".jsonl.gz", ".jsonl", ".json.gz", ".json", ".parquet", ".parquet.gz")
TABLE_SUFFIXES = (*SUFFIXES, ".csv.gz", ".csv")
TEXT_SUFFIXES = (".txt.gz", ".txt")
PROVENANCE_FILE = "SOURCE.json"  # says where the default assets' data come from; holds no rows
# What readers raise where the bytes are not what the suffix says, or end too early.
DAMAGE = (EOFError, OSError, zlib.error, csv.Error, UnicodeDecodeError)
# First bytes of files that are no UTF-8 text, and what errors say of them.
OTHER_FILES = {
    b"\xff\xfe": "UTF-16, not UTF-8; save it as UTF-8",
    b"\xfe\xff": "UTF-16, not UTF-8; save it as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32, not UTF-8; save it as UTF-8",
    b"PAR1": "a parquet file; its name must end in .parquet",
    b"\x1f\x8b": "compressed by gzip; its name must end in .gz",
    b"PK\x03\x04": "a zip file or a spreadsheet; export it as csv",
    b"version https://git-lfs": "a pointer of git-lfs, not the data; run git lfs pull",
}
# Fields under which one JSON object holds all rows of a data set.
ROW_FIELDS = ("data", "rows", "examples", "items", "instances", "questions", "train", "validation", "test")
LONGEST_CSV_FIELD = 2**31 - 1  # characters; the csv module's own limit is 131,072

NumberedRows = Iterator[tuple[int, dict[str, Any]]]


def read_rows(
    path: Path, columns: Sequence[str] | None = None, suffixes: tuple[str, ...] = SUFFIXES
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) for the rows of a file, in order; `where` is "<path>, line 3" or "<path>, row 3".

    Rows are read lazily; empty lines are skipped. The path is a file's name, never a pattern.

    Args:
        path: .json and .jsonl hold one object per line, .json may be one list of objects; .gz may follow any suffix.
        columns: if a parquet file has all of these, only these are read; other files are read whole.
        suffixes: the allowed ones; TABLE_SUFFIXES adds .csv, whose first line names the columns. Its values are texts
            as they stand: "NA" and "null" are texts, an empty field is "". Columns without a name are left out.
    Raises:
        ValueError: no such file, another suffix, or damage (names the file, and the line where there is one).
    """
    for unit, number, row in _numbered_rows(Path(path), columns, suffixes):
        yield f"{path}, {unit} {number}", row


@dataclass(frozen=True)
class Table:
    """All rows of a file or of a hub split, by column.

    Fields:
        name: the file's path, or the hub data set with config and split.
        unit: what rows are counted in, "line" or "row".
        numbers: number of each row in that unit, from 1.
        columns: values of all rows by column, None where a row lacks the field.
        typed: False for csv, whose values are all texts.
    """

    name: str
    unit: str
    numbers: Sequence[int]
    columns: dict[str, list[Any]]
    typed: bool = True

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, index: int) -> str:
        """What errors call the row at this index: "<path>, line 3"."""
        return f"{self.name}, {self.unit} {self.numbers[index]}"

    def select(self, indices: Sequence[int]) -> "Table":
        """The rows at these indices, as a table."""
        columns = {name: [values[index] for index in indices] for name, values in self.columns.items()}
        return Table(self.name, self.unit, [self.numbers[index] for index in indices], columns, self.typed)


def read_table(path: Path) -> Table:
    """All rows of a csv, JSON or parquet file.

    Raises:
        ValueError: as read_rows, or the file has no rows.
    """
    path = Path(path)
    units, numbers, columns = set(), [], {}
    for index, (unit, number, row) in enumerate(_numbered_rows(path, None, TABLE_SUFFIXES)):
        units.add(unit)
        numbers.append(number)
        for name, value in row.items():
            values = columns.setdefault(name, [])
            values += [None] * (index - len(values))
            values.append(value)
    if not numbers:
        raise ValueError(f"{path} is empty: it holds no rows")
    for values in columns.values():
        values += [None] * (len(numbers) - len(values))
    return Table(str(path), units.pop(), numbers, columns, typed=file_kind(path, TABLE_SUFFIXES) != "csv")


def _numbered_rows(
    path: Path, columns: Sequence[str] | None, suffixes: tuple[str, ...]
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    kind = file_kind(path, suffixes)
    with _opened(path, kind) as file:
        if kind == "parquet":
            yield from (("row", number, row) for number, row in _parquet_rows(file, path, columns))
        elif kind == "csv":
            yield from (("line", number, row) for number, row in _csv_rows(file, path))
        elif not _is_jsonl(path) and _first_character(file) == b"[":
            yield from (("row", number, row) for number, row in _json_list(file, path))
        else:
            yield from (("line", number, row) for number, row in _json_lines(file, path))


def _is_jsonl(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".jsonl")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        ValueError: no such file, another suffix, or it cannot be read.
    """
    with _opened(path, file_kind(path, TEXT_SUFFIXES)) as file:
        return file.read().decode("utf-8-sig")


def read_json(path: Path) -> object:
    """The value in a JSON file whose name ends in .json or .json.gz.

    Raises:
        ValueError: no such file, another suffix, or damage (names the file).
    """
    file_kind(path, (".json", ".json.gz"))
    with _opened(path, "JSON") as file:
        return _parsed(file.read(), f"{path} cannot be read as JSON")


def file_kind(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> str:
    """The kind of file by its suffix, in any case: "txt", "json" (.jsonl too), "csv" or "parquet".

    Raises:
        ValueError: the name ends in none of `suffixes`.
    """
    name = path.name.lower()
    if not name.endswith(suffixes):
        raise ValueError(f"{path} is not one of {', '.join(suffixes)}")
    kind = Path(name.removesuffix(".gz")).suffix.removeprefix(".")
    return "json" if kind == "jsonl" else kind


def valid_text(value: object, where: str, field: str) -> str:
    """The value, which must be a text that UTF-8 can encode; it may be empty.

    Raises:
        ValueError: names the row and the field.
    """
    if not isinstance(value, str):
        raise ValueError(f"{where}: {field!r} is no text but {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write half a character, \ud800; tokenizers refuse it
        raise ValueError(f"{where}: {field!r} is no valid Unicode: {error}") from error
    return value


def check_fields(row: dict[str, Any], where: str, fields: Iterable[str]) -> None:
    """Raises ValueError where the row lacks a field: names the first such field, and those that it has."""
    for field in fields:
        if field not in row:
            raise ValueError(f"{where} lacks the field {field!r}; it has {', '.join(row)}")


def checked_text(value: object, where: str, field: str) -> str:
    """The value, which must be a text of more than white space.

    Raises:
        ValueError: names the row and the field.
    """
    text = valid_text(value, where, field)
    if not text.strip():
        raise ValueError(f"{where}: {field!r} is empty")
    return text


@contextlib.contextmanager
def _opened(path: Path, kind: str) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed; damage met within the context becomes a ValueError that names the file."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
            if kind != "parquet":
                _check_start(file)
            yield file
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from error


def _check_start(file: BinaryIO) -> None:
    start = file.read(max(map(len, OTHER_FILES)))
    file.seek(0)
    for mark, what in OTHER_FILES.items():
        if start.startswith(mark):
            raise OSError(f"it is {what}")


def _first_character(file: BinaryIO) -> bytes:
    """The first byte that is no white space and no byte order mark."""
    first = b""
    while not first and (part := file.read(4096)):
        first = part.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    file.seek(0)
    return first


def _text_lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a UTF-8 text, each with its end: \\n, \\r\\n or \\r."""
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise OSError(f"line {number} is no UTF-8: {error}") from error
        if "\0" in text:
            raise OSError(f"line {number} holds a NUL byte")
        yield from re.split(r"(?<=\r)(?=[^\n])", text) if "\r" in text[:-2] else (text,)


def _parsed(content: bytes | str, what: str) -> Any:
    """The value of a JSON text; NaN and Infinity are read too, as floats.

    Raises:
        ValueError: the text is no JSON, or an object has a field twice; the message is `what` and the reason.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        return DECODER.decode(text.removeprefix("\ufeff"))
    except RecursionError as error:
        raise ValueError(f"{what}: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the field {twice!r} is there twice")
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=_object)  # json.loads would make one for every line


def _json_lines(file: BinaryIO, path: Path) -> NumberedRows:
    first = None
    count = 0
    for number, line in enumerate(_json_text_lines(file), start=1):
        if not line.strip("\ufeff \t\r\n"):
            continue
        where = f"{path}, line {number}"
        try:
            row = _parsed(line, f"{where} is not one JSON object")
        except ValueError:
            if count == 0:
                _check_no_document(file, path)
            raise
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not one JSON object")
        count += 1
        if count == 1 and _list_of_rows(row):  # it may be the only one
            first = number, row
            continue
        if first is not None:
            yield first
            first = None
        yield number, row
    if first is not None:
        raise _holds_rows(path, first[1])


def _json_text_lines(file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise OSError(f"line {number} is no UTF-8: {error}") from error


def _check_no_document(file: BinaryIO, path: Path) -> None:
    """Raises ValueError where the whole file is one JSON object, which says more than that its first line is none."""
    file.seek(0)
    try:
        document = _parsed(file.read(), "")
    except ValueError:
        return
    if isinstance(document, dict):
        raise _holds_rows(path, document)


def _list_of_rows(document: dict[str, Any]) -> str | None:
    """Name of the field of a document that holds the rows of a data set, if there is one."""
    for name, value in document.items():
        known = len(document) == 1 or name.lower() in ROW_FIELDS
        if known and isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            return name
    return None


def _holds_rows(path: Path, document: dict[str, Any]) -> ValueError:
    field = _list_of_rows(document)
    advice = f"write the list under {field!r} into a file of its own" if field else "write one object in every line"
    return ValueError(f"{path} is one JSON object with {', '.join(map(repr, document))}, no rows; {advice}")


def _json_list(file: BinaryIO, path: Path) -> NumberedRows:
    for number, row in enumerate(_parsed(file.read(), f"{path} is no list of JSON objects"), start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number} is not one JSON object")
        yield number, row


def _csv_rows(file: BinaryIO, path: Path) -> NumberedRows:
    csv.field_size_limit(LONGEST_CSV_FIELD)
    lines = csv.reader(_text_lines(file), strict=True)
    names = None
    while True:
        try:
            fields = next(lines, None)
        except csv.Error as error:
            raise OSError(f"{error} (line {lines.line_num})") from error
        if fields is None:
            return
        where = f"{path}, line {lines.line_num}"
        if not fields or (len(fields) == 1 and not fields[0].strip() and (names is None or len(names) > 1)):
            continue
        if names is None:
            names = [name.strip() for name in fields]
            if twice := [name for name, count in Counter(filter(None, names)).items() if count > 1]:
                raise ValueError(f"{where} names the column {twice[0]!r} twice")
            continue
        if len(fields) > len(names):
            raise ValueError(f"{where} has {len(fields) - len(names)} more fields than the first line names")
        if len(fields) < len(names):
            raise ValueError(f"{where} has {len(fields)} fields, and the first line names {len(names)}")
        yield lines.line_num, {name: value for name, value in zip(names, fields, strict=True) if name}


def _parquet_rows(file: BinaryIO, path: Path, columns: Sequence[str] | None) -> NumberedRows:
    import pyarrow  # takes 25 MB, and other files do without it
    from pyarrow import parquet

    number = 0
    try:
        # Parquet is read from its end: a gzip stream would start over at every seek.
        table = parquet.ParquetFile(io.BytesIO(file.read()) if path.name.lower().endswith(".gz") else file)
        names = table.schema_arrow.names
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"{path} names the column {twice[0]!r} twice")
        wanted = list(columns) if columns is not None and set(names).issuperset(columns) else None
        for batch in table.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pyarrow.ArrowException as error:
        raise OSError(first_line(error)) from error


class Source(NamedTuple):
    """Where a split of a data set is.

    Fields:
        folder: below --data_dir, such as "mmlu" or "trivia_qa/rc.wikipedia.nocontext".
        split: name of the local file, without its suffix.
        hub_id: the data set's id on the hub; None if it is not there.
        hub_config: its configuration on the hub; None if it has only one.
        hub_split: the split's name on the hub.
        fields: those that every row must have.
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
    check_data_dir(data_dir)
    data_dir = Path(data_dir).expanduser()
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


def local_or_hub(source: Source, data_dir: Path | None) -> Path | Source:
    """What read_source reads: the split's file (see local_file), or without `data_dir` the source on the hub."""
    return source if data_dir is None else local_file(source, data_dir)


def read_source(
    source: Source, data_dir: Path | None, first: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) for the rows of a split, in order; `where` is "<path>, line 3".

    A "sequence of struct" column is a dict of lists on the hub and a list of dicts in JSON.

    Args:
        data_dir: folder of local data (see local_file); None reads from the hub.
        first: read at most this many rows; the hub then streams them instead of sending whole files.
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
    """The splits by folder: <dataset>/<split> and <dataset>/<config>/<split>."""
    splits = defaultdict(list)
    for path in sorted(chain(data_dir.glob("*/*"), data_dir.glob("*/*/*"))):
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        if suffix and path.is_file() and path.name != PROVENANCE_FILE:
            splits[str(path.parent.relative_to(data_dir))].append(path.name.removesuffix(suffix))
    return dict(splits)


@contextlib.contextmanager
def hub_errors(before: str = "", after: str = "") -> Iterator[None]:
    """Within, an error of loading from the hub becomes a ValueError with the reason in one line.

    Args:
        before, after: text around the reason, such as the data set's name and a remedy.
    Raises:
        ValueError: the hub cannot be reached, has no such data set, or sent damaged files.
    """
    import datasets

    try:
        yield
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{before}{first_line(error)}{after}") from error


def _hub_rows(source: Source, first: int | None) -> Iterable[tuple[str, dict[str, Any]]]:
    import datasets  # takes a second, and files do without it

    remedy = f"give --data_dir DIR with {source.folder}/{source.split}.jsonl"
    if source.hub_id is None:
        raise ValueError(f"{source.folder} is not on the hub: {remedy}")
    name = " ".join(filter(None, (source.hub_id, source.hub_config, source.hub_split)))
    with hub_errors(f"{name}: ", f"; without a hub, {remedy}"):
        rows = datasets.load_dataset(
            source.hub_id, source.hub_config, split=source.hub_split, revision=source.hub_revision,
            streaming=first is not None,
        )  # fmt: skip
        rows = rows if first is None else list(rows.take(first))
    return ((f"{name}, row {number}", row) for number, row in enumerate(rows, start=1))
