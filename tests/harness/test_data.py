"""harness/data.py: rows with their places, whatever the file's kind; damage names the file and the line."""

import gzip
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from harness import data as data_files
from harness.data import file_kind, read_rows, read_table, read_text, valid_text

ROWS = [{"text": "Zoë\u2028said", "label": 1}, {"text": "more", "label": 0}]


def as_parquet(rows: Sequence[dict]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows)), file)
    return file.getvalue()


def write_rows(path: Path, rows: Sequence[dict]) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    content = as_parquet(rows) if ".parquet" in path.name else lines
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("suffix", data_files.SUFFIXES)
def test_rows_and_where_they_stand(suffix: str, tmp_path: Path):
    path = write_rows(tmp_path / f"a.b{suffix}", ROWS)
    place = "row" if "parquet" in suffix else "line"
    assert list(read_rows(path)) == [(f"{path}, {place} 1", ROWS[0]), (f"{path}, {place} 2", ROWS[1])]


def test_the_first_rows_of_the_hub_are_streamed(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(*_: object, streaming: bool, **__: object) -> datasets.IterableDataset:
        asked.append(streaming)
        return datasets.Dataset.from_dict({"text": ["a", "b", "c"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = data_files.Source("own", "test", "lab/own", None, "test", ("text",))
    for first, rows in ((2, "ab"), (None, "abc")):
        found = list(data_files.read_source(source, None, first))
        assert found == [(f"lab/own test, row {n}", {"text": text}) for n, text in enumerate(rows, start=1)]
    assert asked == [True, False]


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n \r\n\n{"a": 2}')  # with a byte order mark, and no end of line
    assert list(read_rows(path)) == [(f"{path}, line 1", {"a": 1}), (f"{path}, line 4", {"a": 2})]


def test_a_csv_file_is_read_where_it_is_allowed_and_its_fields_are_texts(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n"x, y",1\r\nz,\r\n"two\nlines",3\n')
    expected = [({"a": "x, y", "b": "1"}, 2), ({"a": "z", "b": ""}, 3), ({"a": "two\nlines", "b": "3"}, 5)]
    assert list(read_rows(path, suffixes=data_files.TABLE_SUFFIXES)) == [
        (f"{path}, line {number}", row) for row, number in expected
    ]
    for content, message in ((b"a,b\n1,2,3\n", "line 2 has 1 more fields than the first line names"),
                             (b'a,b\n"1,2\n', "cannot be read as csv: unexpected end of data")):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            list(read_rows(path, suffixes=data_files.TABLE_SUFFIXES))


def test_a_json_file_may_be_one_list(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=1))
    assert list(read_rows(path)) == [(f"{path}, row 1", ROWS[0]), (f"{path}, row 2", ROWS[1])]
    path.write_text('[{"a": 1}, 2]')
    with pytest.raises(ValueError, match=r"a\.json, row 2 is not one JSON object"):
        list(read_rows(path))
    path.write_text('[{"a": 1}')
    with pytest.raises(ValueError, match=r"a\.json is no list of JSON objects"):
        list(read_rows(path))


def test_of_a_parquet_file_only_the_columns_asked_for_are_read_if_it_has_them(tmp_path: Path):
    path = write_rows(tmp_path / "a.parquet", ROWS)
    assert [row for _, row in read_rows(path, ["label"])] == [{"label": 1}, {"label": 0}]
    assert [row for _, row in read_rows(path, ["label", "missing"])] == ROWS


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a"\n')
    rows = read_rows(path)
    assert next(rows) == (f"{path}, line 1", {"a": 1})
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 is not one JSON object"):
        next(rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"[1]\n", r"a\.jsonl, line 1 is not one JSON object$"),
        ("a.json", b'{"a": 1}\n\n{"a": 2,\n', r"a\.json, line 3 is not one JSON object: "),
        ("a.jsonl", b'{"a": "\xff"}\n', r"a\.jsonl cannot be read as json: "),
        ("a.jsonl.gz", b'{"a": 1}\n', r"a\.jsonl\.gz cannot be read as json: "),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], r"a\.jsonl\.gz cannot be read as json: "),
        ("a.parquet", b"plain", r"a\.parquet cannot be read as parquet: "),
        ("a.parquet", as_parquet(ROWS)[:-9], r"a\.parquet cannot be read as parquet: "),
        ("a.parquet.gz", as_parquet(ROWS), r"a\.parquet\.gz cannot be read as parquet: "),
        ("a.parquet", b"", r"a\.parquet cannot be read as parquet: "),
        ("a.csv", b"a\n1\n", r"a\.csv is not one of \.jsonl\.gz, \.jsonl, "),
        ("a.txt", b"text", r"a\.txt is not one of "),
    ],
)
def test_damage_names_the_file(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_rows(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet.gz"])
def test_a_file_that_is_not_there_is_named(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"there is no file .*{name}"):
        list(read_rows(tmp_path / name))
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"there is no file .*{name}"):
        list(read_rows(tmp_path / name))


def test_an_error_of_who_reads_the_rows_stays_what_it_is(tmp_path: Path):
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ConnectionError):
        for _ in read_rows(path):
            raise ConnectionError


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_whole_texts(name: str, tmp_path: Path):
    content = "\ufeffZoë\r\nsaid\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    assert read_text(tmp_path / name) == "Zoë\r\nsaid\n"
    (tmp_path / name).write_bytes(b"\xff")
    with pytest.raises(ValueError, match=rf"{name} cannot be read as txt"):
        read_text(tmp_path / name)
    with pytest.raises(ValueError, match=r"a\.jsonl is not one of \.txt\.gz, \.txt"):
        read_text(tmp_path / "a.jsonl")


def test_kinds():
    names = ("a.jsonl", "a.json.gz", "a.b.parquet.gz")
    assert [file_kind(Path(name)) for name in names] == ["json", "json", "parquet"]
    assert file_kind(Path("a.txt.gz"), data_files.TEXT_SUFFIXES) == "txt"


def test_texts_are_checked():
    assert valid_text("", "here", "a") == ""
    with pytest.raises(ValueError, match=r"^here: 'a' is no text but int$"):
        valid_text(1, "here", "a")
    with pytest.raises(ValueError, match=r"^here: 'a' is no valid Unicode: "):
        valid_text("\ud800", "here", "a")


def test_a_path_is_a_path_and_no_pattern(tmp_path: Path):
    for name in ("data[1]", "data1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a*?::b.csv").write_text(f"where\n{name}\n")
    (tmp_path / "data1" / "axx::b.csv").write_text("where\nnowhere\n")
    for name in ("data[1]", "data1"):
        assert read_table(tmp_path / name / "a*?::b.csv").columns == {"where": [name]}


def test_a_file_is_read_as_it_is_now_whatever_its_time(tmp_path: Path):
    path = tmp_path / "a.csv"
    for rows in (["x", "y"], ["z"]):
        path.write_text("\n".join(["a", *rows]))
        os.utime(path, (1, 1))
        assert read_table(path).columns == {"a": rows}


def test_csv_fields_are_texts_of_any_length(tmp_path: Path):
    long = "x" * 200_000
    (tmp_path / "a.csv").write_text(f'a,b,\nNA,{long},1\nnull,"{long}\r\n",2\n\nNone,nan,3\n')
    table = read_table(tmp_path / "a.csv")
    assert table.columns == {"a": ["NA", "null", "None"], "b": [long, f"{long}\r\n", "nan"]}  # not the nameless one
    assert not table.typed and table.where(2).endswith("a.csv, line 6")


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_the_byte_order_mark_are_no_data(ends: str, mark: bytes, tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(mark + ends.join(["a,b", "1,2", "3,4", ""]).encode())
    assert read_table(tmp_path / "a.csv").columns == {"a": ["1", "3"], "b": ["2", "4"]}
    (tmp_path / "a.json").write_bytes(mark + ends.join(["", " ", '[{"a": 1},', '{"a": 2}]', ""]).encode())
    assert read_table(tmp_path / "a.json").columns == {"a": [1, 2]}


def test_rows_that_lack_a_field_have_none(tmp_path: Path):
    (tmp_path / "A.JSONL").write_text('{"a": 1}\n{"b": 2}\n{"a": 3, "c": 4}\n')
    table = read_table(tmp_path / "A.JSONL")
    assert table.columns == {"a": [1, None, 3], "b": [None, 2, None], "c": [None, None, 4]}
    assert table.select([2, 0]).columns["a"] == [3, 1] and table.select([2]).where(0).endswith("line 3")
