"""Broken data, for test_broken_inputs.py: damaged files, oddities of csv and JSON, labels, options, checkpoints."""

import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from broken import Assets, Broken
from torch.optim.lr_scheduler import ConstantLR

from harness.checkpoints import Checkpoints

SENTENCES = "GLUE_tasks.Glue_prune_oneshot"
QUESTIONS = "GLUE_tasks.Mcq_prune_oneshot"
DOMAINS = "GLUE_tasks.Domains_prune_oneshot"
LINE = '{"sentence": "good film", "label": 1}\n{"sentence": "bad film", "label": 0}\n'
HEADER = "question,A,B,C,answer\n"

Make = Callable[[Path, Assets], list[str]]


def parquet(columns: dict[str, list]) -> bytes:
    import pyarrow
    from pyarrow import parquet as library

    stream = io.BytesIO()
    library.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


def options(assets: Assets, train: Path, validation: Path, *more: str) -> list[str]:
    return ["--model_name_or_path", str(assets.encoder), "--train_file", str(train), "--validation_file",
            str(validation), "--max_length", "16", *more]  # fmt: skip


def trained_on(name: str, content: str | bytes, *more: str) -> Make:
    """Training rows in a file with this name and content, and sound validation rows."""

    def make(folder: Path, assets: Assets) -> list[str]:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return options(assets, path, assets.sentences[1], *more)

    return make


def validated_on(name: str, content: str) -> Make:
    def make(folder: Path, assets: Assets) -> list[str]:
        (folder / name).write_text(content)
        return options(assets, assets.sentences[0], folder / name)

    return make


def scores_validated_on(content: str) -> Make:
    """A regression by its training labels."""

    def make(folder: Path, assets: Assets) -> list[str]:
        (folder / "t.jsonl").write_text(rows(0.5, 1.5))
        (folder / "v.jsonl").write_text(content)
        return options(assets, folder / "t.jsonl", folder / "v.jsonl")

    return make


def asked(name: str, content: str) -> Make:
    """Questions as training rows and for validation."""

    def make(folder: Path, assets: Assets) -> list[str]:
        (folder / name).write_text(content)
        return options(assets, folder / name, folder / name)

    return make


def rows(*labels: object) -> str:
    return "".join(json.dumps({"sentence": f"good film {n}", "label": label}) + "\n" for n, label in enumerate(labels))


def file(name: str, what: str, content: str | bytes, *says: str) -> Broken:
    """A broken file of training sentences, which the line names."""
    return Broken(f"{what} ({name})", SENTENCES, trained_on(name, content), (name, *says))


DAMAGED = [
    file("cut.jsonl", "JSON cut off", LINE[:-5], "line 2", "not one JSON object"),
    file("cut.jsonl.gz", "gzip cut off", gzip.compress(LINE.encode() * 50, mtime=0)[:-20], "cannot be read"),
    file("plain.jsonl.gz", "no gzip", LINE, "cannot be read", "gzip"),
    file("packed.csv", "gzip without its suffix", gzip.compress(b"sentence,label\na,1\n"), "compressed by gzip", ".gz"),
    file("table.csv", "parquet called csv", parquet({"sentence": ["a"], "label": [1]}), "parquet file", ".parquet"),
    file("plain.parquet", "csv called parquet", "sentence,label\ngood,1\n", "cannot be read as parquet"),
    file(
        "cut.parquet", "parquet cut off", parquet({"sentence": ["a"], "label": [1]})[:-9], "cannot be read as parquet"
    ),
    file("lfs.jsonl", "pointer of git-lfs", "version https://git-lfs.github.com/spec/v1\noid x\n", "git lfs pull"),
    file("wide.csv", "UTF-16", "sentence,label\ngood,1\n".encode("utf-16"), "UTF-16", "UTF-8"),
    file("latin.csv", "Latin-1", b"sentence,label\nfine,1\ncaf\xe9,0\n", "line 3 is no UTF-8"),
    file("none.jsonl", "no byte", "", "is empty"),
    file("sheet.xlsx", "spreadsheet", b"PK\x03\x04", "is not one of", ".csv"),
]
CSV = [
    file("header.csv", "a header alone", "sentence,label\n", "is empty"),
    file("twice.csv", "a column twice", "sentence,label,label\ngood,1,0\n", "line 1 names the column 'label' twice"),
    file("short.csv", "a short row", "sentence,label\ngood,1\nbad\n", "line 3 has 1 fields", "names 2"),
    file("long.csv", "a long row", "sentence,label\ngood,1\nbad, really,0\n", "line 3 has 1 more fields"),
    file("quote.csv", "an open quote", 'sentence,label\n"good,1\nbad,0\n', "cannot be read as csv"),
    file("nul.csv", "a NUL byte", "sentence,label\ngood,1\nb\0ad,0\n", "line 3 holds a NUL byte"),
    file("numbers.csv", "no text column", "id,label\n1,1\n2,0\n", "no text column", "id, label"),
    file("nolabel.csv", "an empty label", 'sentence,label\n"good\nfilm",1\nbad,\n', "line 4 has no 'label'"),
]
JSON = [
    file("document.json", "rows under a key", json.dumps({"version": 1, "data": [{"label": 1}]}, indent=1),
         "one JSON object", "'data'", "a file of its own"),
    file("line.json", "rows under a key in one line", '{"data": [{"sentence": "a", "label": 1}]}\n', "'data'"),
    file("mixed.json", "a row that is no object", '\n [{"sentence": "good", "label": 1}, 2]', "row 2", "JSON object"),
    file("listed.jsonl", "a list in jsonl", '[{"sentence": "good", "label": 1}]', "line 1 is not one JSON object"),
    file("twice.jsonl", "a field twice", LINE + '{"sentence": "a", "label": 1, "label": 0}\n', "line 3", "'label'",
         "twice"),
    file("deep.json", "nested too deeply", "[" * 100_000, "nested too deeply"),
    file("half.jsonl", "half a character", '{"sentence": "\\ud800", "label": 1}\n' + LINE, "line 1", "'sentence'",
         "Unicode"),
    file("number.jsonl", "a number for a text", LINE + '{"sentence": 3, "label": 1}\n', "line 3", "'sentence'", "int"),
    file("null.jsonl", "null for a text", LINE + '{"sentence": null, "label": 1}\n', "line 3 has no 'sentence'"),
]  # fmt: skip
LABELS = [
    file("list.jsonl", "a list", rows(1, [0, 1]), "line 2", "'label'", "[0, 1]", "allowed"),
    file("object.jsonl", "an object", rows({"a": 1}, 0), "line 1", "'label'", "{'a': 1}"),
    file("kinds.jsonl", "numbers and texts", rows(0, 1, "pos"), "line 3", "'pos'", "a text", "line 1 has 0"),
    file("truth.jsonl", "numbers and true", rows(0, 1, True), "line 3", "True", "true or false"),
    file("nan.jsonl", "NaN", rows(0.5, float("nan")), "line 2", "nan"),
    file("infinite.jsonl", "Infinity", rows(0.5, float("-inf")), "line 2", "-inf"),
    file("null.jsonl", "null", rows(0, None), "line 2 has no 'label'"),
    file("blank.jsonl", "white space", rows("good", " "), "line 2 has no 'label'"),
    file("nan.csv", "nan between numbers", "sentence,label\na,0.5\nb,nan\n", "line 3", "'nan'", "no number"),
    file("typing.csv", "a letter in a number", "sentence,label\na,0.5\nb,1.O\n", "line 3", "'1.O'", "no number"),
    file("bytes.parquet", "bytes", parquet({"sentence": ["a", "b"], "label": [b"x", b"y"]}), "row 1", "b'x'", "bytes"),
    file("one.jsonl", "all the same", rows(1, 1, 1), "every training label is 1"),
    Broken("an unknown validation label", SENTENCES, validated_on("v.jsonl", rows(0, 1, 2)),
           ("v.jsonl, line 3", "'label' is 2", "they have 0, 1")),
    Broken("a validation label that is no number", SENTENCES, scores_validated_on(rows("a")),
           ("v.jsonl, line 1", "'a'", "no number")),
]  # fmt: skip
COLUMNS = [
    Broken("a column that is not there", SENTENCES, trained_on("a.jsonl", LINE, "--text_columns", "text"),
           ("--text_columns text", "a.jsonl has no column 'text'", "sentence, label")),
    Broken("the label as a text column", SENTENCES, trained_on("a.jsonl", LINE, "--text_columns", "label"),
           ("--text_columns label", "no text to learn from")),
    Broken("three text columns", SENTENCES, trained_on("a.jsonl", LINE, "--text_columns", "a", "b", "c"),
           ("--text_columns a b c", "one column, or two")),
    Broken("a domain without a name", DOMAINS,
           trained_on("d.jsonl", '{"sentence": "a", "label": 1, "domain": " "}\n'), ("line 1 has no 'domain'",)),
]  # fmt: skip
OPTIONS = [
    Broken(f"options: {what}", QUESTIONS, asked(name, content), (f"{name}, line {line}", *says))
    for what, name, content, line, says in (
        ("the empty one is right", "q.csv", HEADER + "which,good,,poor,B\n", 2, ("'answer' is 'B'", "A, C")),
        ("one alone", "q.csv", HEADER + "which,good,,,A\n", 2, ("'choices' holds 1", "2 to 26")),
        ("twice the same", "q.csv", HEADER + "which,good,good,poor,A\n", 2, ("'good' more than once",)),
        ("no answer", "q.csv", HEADER + "which,good,fine,poor,\n", 2, ("'answer' is ''",)),
        ("no question", "q.csv", HEADER + ",good,fine,poor,A\n", 2, ("'question' is empty",)),
        ("an index or a text", "q.csv", HEADER + "how many,1,2,3,2\n", 2, ("'answer' 2 may mean '2' or '3'",)),
        ("an index too high", "q.csv", HEADER + "which,good,fine,poor,3\n", 2, ("'answer' is 3", "0 to 2")),
        ("an empty one in a list", "q.jsonl", '{"question": "which", "choices": ["a", ""], "answer": 0}\n', 1,
         ("'choices' is empty",)),
        ("a number in a list", "q.jsonl", '{"question": "which", "choices": ["a", 2], "answer": 0}\n', 1,
         ("'choices'", "int")),
        ("true as an answer", "q.jsonl", '{"question": "which", "choices": ["a", "b"], "answer": true}\n', 1,
         ("'answer' is True",)),
    )
]  # fmt: skip


def checkpoint(change: Callable[[Path], None] = lambda path: None, **origin: object) -> Make:
    """A checkpoint of some other run, or a damaged one, for --resume_from_checkpoint."""

    def make(folder: Path, assets: Assets) -> list[str]:
        accelerator = Accelerator(cpu=True, mixed_precision="no")
        model = torch.nn.Linear(2, 2)
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
        Checkpoints(folder, origin).save(accelerator, ConstantLR(optimizer.optimizer), 3, 0.5)
        AcceleratorState._reset_state(reset_partial_state=True)
        path = folder / "checkpoint-3"
        change(path)
        given = options(assets, *assets.sentences, "--mixed_precision", "no", "--seed", "7")
        return [*given, "--resume_from_checkpoint", str(path)]

    return make


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def flip(folder: Path) -> None:
    path = folder / "random_states_0.pkl"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


CHECKPOINTS = [
    Broken(f"checkpoint: {what}", SENTENCES, make, ("--resume_from_checkpoint", "checkpoint-3", *says))
    for what, make, says in (
        ("of another seed", checkpoint(identity={"seed": 6}, precision="no"), ("another run", "seed: 7 here, 6 there")),
        ("in another precision", checkpoint(identity={}, precision="bf16"), ("precision: 'no' here, 'bf16' there",)),
        ("of an unknown run", checkpoint(), ("does not say which run",)),
        ("weights cut off", checkpoint(cut("model.safetensors")), ("damaged", "model.safetensors")),
        ("optimizer cut off", checkpoint(cut("optimizer.bin")), ("damaged", "optimizer.bin")),
        ("random states damaged", checkpoint(flip), ("damaged", "random_states_0.pkl")),
        ("progress cut off", checkpoint(cut("progress.json")), ("damaged", "progress.json")),
        ("no optimizer", checkpoint(lambda folder: (folder / "optimizer.bin").unlink()), ("damaged", "optimizer.bin")),
        ("no files", checkpoint(lambda folder: (shutil.rmtree(folder), folder.mkdir())), ("no checkpoint",)),
    )
]
CASES: list[Broken] = [*DAMAGED, *CSV, *JSON, *LABELS, *COLUMNS, *OPTIONS, *CHECKPOINTS]
