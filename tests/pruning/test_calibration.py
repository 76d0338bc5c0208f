import gzip
import io
import json
import logging
import random
from collections.abc import Callable
from itertools import chain, permutations
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pruning import calibration
from pruning.calibration import (
    calibration_tokens,
    default_cache_dir,
    read_texts,
    sample_windows,
    source_content,
    text_windows,
)

BOS, EOS, FIRST = 0, 1, 2  # word w0 has the number FIRST


class CountingTokenizer(PreTrainedTokenizerFast):
    """Remembers every text of a batch that it was given."""

    def __call__(self, text: str | list[str], **options: object) -> object:
        if isinstance(text, list):
            self.__dict__.setdefault("texts", []).extend(text)
        return super().__call__(text, **options)


def word_tokenizer(special: bool = False, added: tuple[str, ...] = (), **tokens: str) -> CountingTokenizer:
    """Words w0 ... w199 are 2 ... 201; with `special`, a text becomes [BOS] text [EOS]."""
    vocabulary = {"[BOS]": BOS, "[EOS]": EOS} | {f"w{number}": FIRST + number for number in range(200)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        backend.post_processor = processors.TemplateProcessing("[BOS] $A [EOS]", None, [("[BOS]", BOS), ("[EOS]", EOS)])
    tokenizer = CountingTokenizer(tokenizer_object=backend, **{"eos_token": "[EOS]", **tokens})
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)} if added else {})
    return tokenizer


def words(first: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(first, first + count))


def ids(first: int, count: int) -> list[int]:
    return list(range(FIRST + first, FIRST + first + count))


@pytest.fixture
def tokenizer() -> CountingTokenizer:
    return word_tokenizer()


def test_every_legal_window_of_a_document_is_drawn_the_last_too(tokenizer: CountingTokenizer):
    sample = sample_windows(tokenizer, [words(0, 10)], 200, 4, seed=0, windows="documents")
    assert sample.kind == "documents" and sample.tokens.shape == (200, 4) and sample.tokens.dtype == torch.int64
    assert {tuple(row) for row in sample.tokens.tolist()} == {tuple(ids(start, 4)) for start in range(7)}


def test_documents_serve_in_turn_and_only_those_longer_than_a_window(tokenizer: CountingTokenizer):
    texts = [words(0, 5), words(10, 4), words(20, 5), words(30, 1), words(40, 5)]  # the second is as long as a window
    begins_again = set()
    for seed in range(20):
        tokens = sample_windows(tokenizer, texts, 3, 4, seed, "documents").tokens
        assert sorted(int(row[0] - FIRST) // 10 for row in tokens) == [0, 2, 4]
        tokens = sample_windows(tokenizer, texts, 5, 4, seed, "documents").tokens
        drawn = [int(row[0] - FIRST) // 10 for row in tokens]
        assert set(drawn[:3]) == {0, 2, 4}
        begins_again.add(drawn[3] == drawn[0])
    assert begins_again == {True, False}  # the next round is drawn, not the first one again


def test_a_document_begins_with_the_tokenizers_special_token_and_has_none_behind():
    tokens = sample_windows(word_tokenizer(special=True), [words(0, 3)], 50, 3, 0, "documents").tokens
    assert {tuple(row) for row in tokens.tolist()} == {(BOS, *ids(0, 2)), tuple(ids(0, 3))}


def test_documents_too_short_are_refused_with_the_length_of_the_longest(tokenizer: CountingTokenizer):
    with pytest.raises(ValueError, match=r"longer than 8 tokens: the longest has 6; .*windows='joined'"):
        sample_windows(tokenizer, [words(0, 6), words(0, 2)], 1, 8, 0, "documents")


@pytest.mark.parametrize("special", [False, True])
def test_joined_windows_are_those_of_one_order_of_the_documents(special: bool):
    texts, lengths = [words(0, 2), words(10, 1), words(20, 3)], [(0, 2), (10, 1), (20, 3)]
    streams = set()
    for order in permutations(lengths):
        parts = [ids(*order[0])] + [[EOS, *ids(*document)] for document in order[1:]]
        stream = [BOS] * special + list(chain.from_iterable(parts))
        streams.add(frozenset(tuple(stream[start : start + 2]) for start in range(0, 8, 2)))
    drawn = set()
    for seed in range(60):
        tokens = sample_windows(word_tokenizer(special), texts, 4, 2, seed, "joined").tokens
        drawn.add(frozenset(map(tuple, tokens.tolist())))
    assert drawn == streams


def test_joined_windows_are_drawn_without_replacement_from_anywhere(tokenizer: CountingTokenizer):
    starts = set()
    for seed in range(30):
        tokens = sample_windows(tokenizer, [words(0, 21)], 3, 4, seed, "joined").tokens
        drawn = [int(row[0]) - FIRST for row in tokens]
        assert len(set(drawn)) == 3 and tokens.tolist() == [ids(start, 4) for start in drawn]
        starts.update(drawn)
    assert starts == {0, 4, 8, 12, 16}


@pytest.mark.parametrize("end_of_text", ["<|endoftext|>", "<|end_of_text|>"])
def test_end_of_text_goes_before_the_end_of_a_turn(end_of_text: str):
    tokenizer = word_tokenizer(added=(end_of_text,))
    stream = sample_windows(tokenizer, ["w5", "w5"], 3, 1, 0, "joined").tokens
    assert sorted(stream.flatten().tolist()) == [FIRST + 5, FIRST + 5, tokenizer.convert_tokens_to_ids(end_of_text)]


def test_a_blank_line_joins_where_there_is_no_end_of_text_token():
    backend = Tokenizer(models.WordLevel({"a": 0, "\n": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert sample_windows(tokenizer, ["aa", "aa"], 1, 6, 0, "joined").tokens.tolist() == [[0, 0, 1, 1, 0, 0]]


def test_too_little_text_says_how_many_tokens_are_missing(tokenizer: CountingTokenizer):
    with pytest.raises(ValueError, match="3 windows of 4 need 12 tokens; the text has 8, 4 are missing"):
        sample_windows(tokenizer, [words(0, 4), words(0, 3)], 3, 4, 0)
    assert sample_windows(tokenizer, [words(0, 4), words(0, 3)], 2, 4, 0).kind == "joined"


def test_auto_takes_documents_if_they_hold_enough_windows_apart(tokenizer: CountingTokenizer):
    assert sample_windows(tokenizer, [words(0, 9), words(0, 5)], 3, 4, 0).kind == "documents"  # 2 + 1 windows
    assert sample_windows(tokenizer, [words(0, 9), words(0, 5)], 2, 7, 0).kind == "joined"  # 1 window, 15 tokens


@pytest.mark.parametrize("windows", ["documents", "joined"])
def test_the_seed_alone_decides(windows: str, tokenizer: CountingTokenizer):
    texts = [words(start, 20) for start in range(0, 100, 7)]
    state = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    one = sample_windows(tokenizer, texts, 6, 8, 1, windows).tokens
    random.random()
    torch.rand(1)
    assert torch.equal(one, sample_windows(tokenizer, texts, 6, 8, 1, windows).tokens)
    assert not torch.equal(one, sample_windows(tokenizer, texts, 6, 8, 2, windows).tokens)
    random.setstate(state[0])
    torch.set_rng_state(state[1])
    sample_windows(tokenizer, texts, 6, 8, 3, windows)
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
    assert (np.random.get_state()[1] == state[2]).all()


@pytest.mark.parametrize("windows", ["auto", "documents", "joined"])
def test_no_more_is_tokenised_than_needed(windows: str, tokenizer: CountingTokenizer):
    texts = [words(0, 9)] * (5 * calibration.BATCH)
    sample_windows(tokenizer, texts, 4, 8, 0, windows)
    assert len(tokenizer.texts) == calibration.BATCH


def test_texts_that_cannot_fill_a_window_are_not_tokenised_for_documents(tokenizer: CountingTokenizer):
    sample_windows(tokenizer, ["w1 w2", words(0, 9)], 1, 8, 0, "documents")
    assert tokenizer.texts == [words(0, 9)]


def test_a_document_may_have_more_tokens_than_characters():
    backend = Tokenizer(models.WordLevel({"s": 0}, unk_token="s"))
    backend.normalizer = normalizers.Replace("ß", "ss")
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert sample_windows(tokenizer, ["ßß"], 1, 3, 0, "documents").tokens.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("name", ["num_samples", "seq_len"])
def test_sizes_below_one_are_refused(name: str, tokenizer: CountingTokenizer, tmp_path: Path):
    sizes = {"num_samples": 1, "seq_len": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        sample_windows(tokenizer, ["w1"], **sizes, seed=0)
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        calibration_tokens(tokenizer, tmp_path / "missing.txt", **sizes, seed=0)


def test_an_unknown_kind_is_refused(tokenizer: CountingTokenizer):
    with pytest.raises(ValueError, match="windows is 'packed'; it must be one of auto, documents, joined"):
        sample_windows(tokenizer, ["w1"], 1, 1, 0, "packed")


def test_text_windows_by_hand(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    assert text_windows(word_tokenizer(), words(0, 11), 4).tolist() == [ids(0, 4), ids(4, 4)]
    digest = calibration._text_digest([words(0, 11)])[:16]
    assert f"text: 11 tokens, 2 windows of 4, sha256 of the text {digest}" in caplog.text
    special = text_windows(word_tokenizer(special=True), words(0, 11), 4)  # 13 tokens with [EOS], which is left out
    assert special.tolist() == [[BOS, *ids(0, 3)], ids(3, 4), ids(7, 4)] and special.dtype == torch.int64


def test_text_windows_refuse_a_text_shorter_than_one(tokenizer: CountingTokenizer):
    with pytest.raises(ValueError, match="the text has 3 tokens, 2 fewer than a window of 5"):
        text_windows(tokenizer, "w1 w2 w3", 5)
    with pytest.raises(ValueError, match="the text has 0 tokens, 5 fewer than a window of 5"):
        text_windows(tokenizer, "", 5)
    with pytest.raises(ValueError, match="seq_len is 0"):
        text_windows(tokenizer, "w1", 0)


def as_json_lines(texts: list, text_field: str) -> bytes:
    return "".join(json.dumps({"id": 1, text_field: text}, ensure_ascii=False) + "\n" for text in texts).encode()


def as_parquet(texts: list, text_field: str) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table({"id": [1] * len(texts), text_field: texts}), file)
    return file.getvalue()


WRITERS: dict[str, Callable[[list, str], bytes]] = {
    ".jsonl": as_json_lines,
    ".json": as_json_lines,
    ".parquet": as_parquet,
    ".txt": lambda texts, _: "".join(texts).encode(),
}


def write(path: Path, texts: list, text_field: str = "text") -> Path:
    content = WRITERS[Path(path.name.removesuffix(".gz")).suffix](texts, text_field)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("suffix", calibration.SUFFIXES)
@pytest.mark.parametrize("text_field", ["text", "passage"])
def test_documents_of_a_file(suffix: str, text_field: str, tmp_path: Path):
    texts = ["Zoë\u2028said\r\nthis", " \n", "more"]
    path = write(tmp_path / f"some.{suffix}", texts, text_field)
    expected = ["".join(texts)] if ".txt" in suffix else [texts[0], texts[2]]
    assert read_texts(path, text_field=text_field) == read_texts(str(path), text_field=text_field) == expected


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_missing_field_names_those_that_are_there(suffix: str, tmp_path: Path):
    path = write(tmp_path / f"a{suffix}", ["x"], "passage")
    with pytest.raises(ValueError, match=r"a\.[a-z]+ has no field 'text'; it has id, passage"):
        read_texts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl, line 2 is not one JSON object"),
        ("a.jsonl", b'[{"text": "x"}]\n', "a.jsonl, line 1 is not one JSON object"),
        ("a.jsonl", b'\n{"text": null}\n', "line 2: 'text' is no text but NoneType"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: 'text' is no valid Unicode"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl cannot be read as json"),
        ("a.txt", b"\xff", "a.txt cannot be read as txt"),
        ("a.txt.gz", b"plain", "a.txt.gz cannot be read as txt"),
        ("a.txt.gz", gzip.compress(b"words " * 99, mtime=0)[:-9], "a.txt.gz cannot be read as txt"),
        ("a.parquet", b"plain", "a.parquet cannot be read as parquet"),
        ("a.csv", b"text", "a.csv is not one of .jsonl.gz"),
        ("a.txt", b" \n", "a.txt holds no text"),
        ("a.jsonl", b"", "a.jsonl holds no text"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_texts(tmp_path / name)


def test_a_source_is_known_by_its_content_whatever_its_name(tmp_path: Path):
    one, same, other = (
        source_content("text", write(tmp_path / name, [text]))
        for name, text in (("one.txt", "w1"), ("same.txt", "w1"), ("other.txt", "w2"))
    )
    assert one["text_content_sha256"] == same["text_content_sha256"] != other["text_content_sha256"]
    assert len({found["text_sha256"] for found in (one, same, other)}) == 3


def test_an_unknown_source_names_the_known_ones(tmp_path: Path):
    with pytest.raises(ValueError, match="ptb is neither a file nor one of c4, wikitext2"):
        read_texts("ptb")
    with pytest.raises(ValueError, match="is neither a file nor"):
        read_texts(tmp_path)


@pytest.mark.parametrize("config", ["", "wikitext-2-raw-v1"])
def test_raw_wikitext_gives_the_hubs_rows_joined_by_blank_lines(config: str, tmp_path: Path):
    folder = tmp_path / "wikitext2" / config
    write(folder / "test.jsonl", ["", " = Title = \n", "", " Some text . \n"])
    write(folder / "train.txt.gz", [" \n = Title = \n \n Some text . \n"])
    expected = "\n\n = Title = \n\n\n\n\n Some text . \n"
    assert read_texts("wikitext2", split="test", data_dir=tmp_path) == [expected]
    assert read_texts("wikitext2", data_dir=str(tmp_path)) == [expected]


def test_c4_is_the_first_documents_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "C4_DOCUMENTS", 2)
    write(tmp_path / "c4" / "en" / "train.json.gz", ["one", "two", "three"])
    assert read_texts("c4", data_dir=tmp_path) == ["one", "two"]


def test_a_missing_split_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no c4/train\.jsonl \(or"):
        read_texts("c4", data_dir=tmp_path)
    with pytest.raises(ValueError, match="c4 has no split 'test'; it has train, validation"):
        read_texts("c4", split="test")


def test_the_hub_is_asked_for_the_file_of_one_commit_and_no_configuration(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(*names: str, **options: object) -> datasets.IterableDataset:
        asked.append((names, options.get("data_files", options["split"]), options["revision"]))
        return datasets.Dataset.from_dict({"text": ["one", "two", "three"]}).to_iterable_dataset()

    monkeypatch.setattr(calibration, "C4_DOCUMENTS", 2)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_texts("c4") == ["one", "two"]
    assert read_texts("wikitext2", split="test") == ["one\n\ntwo\n\nthree"]
    assert asked == [
        (("allenai/c4",), {"train": "en/c4-train.00000-of-01024.json.gz"}, calibration.C4_REVISION),
        (("Salesforce/wikitext", "wikitext-2-raw-v1"), "test", calibration.WIKITEXT_REVISION),
    ]


@pytest.mark.parametrize(("source", "commit"), [("c4", "C4_REVISION"), ("wikitext2", "WIKITEXT_REVISION")])
def test_each_split_and_commit_of_the_hub_has_its_own_windows(
    source: str, commit: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    first = {("train", "a"): 0, ("validation", "a"): 20, ("train", "b"): 40}

    def load_dataset(*_: str, split: str, revision: str, **__: object) -> datasets.IterableDataset:
        return datasets.Dataset.from_dict({"text": [words(first[split, revision], 8)]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for split, revision in first:
        monkeypatch.setattr(calibration, commit, revision)
        found = calibration_tokens(word_tokenizer(), source, 1, 8, 0, split=split, cache_dir=tmp_path)
        assert found.tolist() == [ids(first[split, revision], 8)]


@pytest.mark.parametrize("source", ["c4", "wikitext2"])
def test_without_a_hub_the_remedy_is_named(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def load_dataset(*_: str, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=rf"{source}: Couldn't reach .* give a text file .* DIR with {source}/train"):
        calibration_tokens(word_tokenizer(), source, 1, 2, 0, cache_dir=tmp_path)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    return write(tmp_path / "some.txt", [words(0, 100)])


def test_a_second_call_reads_the_cache(text_file: Path, monkeypatch: pytest.MonkeyPatch, caplog, tmp_path: Path):
    caplog.set_level(logging.INFO)
    first = calibration_tokens(word_tokenizer(), text_file, 3, 8, 5, cache_dir=tmp_path / "cache")
    assert first.shape == (3, 8) and first.dtype == torch.int64
    assert torch.equal(first, sample_windows(word_tokenizer(), [words(0, 100)], 3, 8, 5).tokens)
    monkeypatch.delattr(calibration, "sample_windows")
    elsewhere = write(tmp_path / "other.txt", [words(0, 100)])  # the content counts, not the name
    assert torch.equal(first, calibration_tokens(word_tokenizer(), elsewhere, 3, 8, 5, cache_dir=tmp_path / "cache"))
    made, read = caplog.messages
    assert made == (
        f"calibration: 3 windows of 8 tokens, seed 5, from {text_file}: 1 document(s), sha256 of the text "
        f"{calibration._text_digest([words(0, 100)])[:16]}; windows=documents, 100 tokens to draw from"
    )
    assert read == made.replace(str(text_file), str(elsewhere)) + ", cached"


def test_whatever_decides_the_tokens_has_its_own_file(text_file: Path, tmp_path: Path):
    plain = {"source": text_file, "num_samples": 2, "seq_len": 8, "seed": 0}
    changes = (
        {}, {"num_samples": 3}, {"seq_len": 7}, {"seed": 1}, {"windows": "joined"}, {"text_field": "passage"},
        {"source": write(tmp_path / "other.txt", [words(1, 100)])},
    )  # fmt: skip
    tokenizer = word_tokenizer()
    for number, change in enumerate(changes, start=1):
        calibration_tokens(tokenizer, **plain | change, cache_dir=tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == number
    others = (
        word_tokenizer(special=True),
        word_tokenizer(bos_token="[BOS]", eos_token="[EOS]"),
        word_tokenizer(bos_token="[EOS]", eos_token="[BOS]"),  # the same vocabulary, but another separator
    )
    for number, other in enumerate(others, start=1):
        calibration_tokens(other, **plain, cache_dir=tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == len(changes) + number


def test_the_same_bytes_read_otherwise_are_other_windows(tmp_path: Path):
    """As rows of WikiText-2, which are joined by blank lines; as documents; and as one plain text."""
    rows = write(tmp_path / "wikitext2" / "train.jsonl", [words(0, 5), words(5, 5)])
    plain = tmp_path / "plain.txt"
    plain.write_bytes(rows.read_bytes())
    found = [
        calibration_tokens(word_tokenizer(), source, 1, 10, 0, windows="joined", data_dir=tmp_path, cache_dir=tmp_path)
        for source in ("wikitext2", rows, plain)
    ]
    assert found[0].tolist() == [ids(0, 10)] and EOS in found[1] and EOS not in found[2]


def test_tokenizers_of_python_are_told_apart_by_their_vocabulary():
    def slow(**vocabulary: int) -> SimpleNamespace:
        return SimpleNamespace(is_fast=False, eos_token_id=0, get_vocab=lambda: vocabulary, get_added_vocab=lambda: {})

    assert calibration._tokenizer_digest(slow(a=1, b=2)) == calibration._tokenizer_digest(slow(b=2, a=1))
    assert calibration._tokenizer_digest(slow(a=1, b=2)) != calibration._tokenizer_digest(slow(a=2, b=1))


def test_truncation_of_an_earlier_call_does_not_matter(text_file: Path, tmp_path: Path):
    tokenizer = word_tokenizer(pad_token="[EOS]")
    first = calibration_tokens(tokenizer, text_file, 2, 8, 0, cache_dir=tmp_path / "cache")
    tokenizer(["w1", "w2 w3"], truncation=True, max_length=2, padding="max_length")
    assert tokenizer.backend_tokenizer.truncation is not None
    assert torch.equal(first, calibration_tokens(tokenizer, text_file, 2, 8, 0, cache_dir=tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("damage", [lambda raw: raw[:-3], lambda raw: b"", lambda raw: raw[:-3] + b"\1\1\1"])
def test_windows_of_a_damaged_cache_file_are_drawn_again(
    damage: Callable[[bytes], bytes], text_file: Path, caplog, tmp_path: Path
):
    def call() -> torch.Tensor:
        return calibration_tokens(word_tokenizer(), text_file, 2, 8, 0, cache_dir=tmp_path / "cache")

    first = call()
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert torch.equal(first, call())
    assert "the windows are drawn again" in caplog.text
    caplog.clear()
    assert torch.equal(first, call())
    assert not caplog.records and list((tmp_path / "cache").iterdir()) == [file]


def test_a_cache_that_cannot_be_written_costs_a_warning(text_file: Path, caplog, tmp_path: Path):
    blocked = write(tmp_path / "blocked.txt", ["a file where the folder should be"])
    assert calibration_tokens(word_tokenizer(), text_file, 2, 8, 0, cache_dir=blocked).shape == (2, 8)
    assert "the calibration windows are not cached" in caplog.text


def test_a_text_that_is_too_short_is_named_and_nothing_is_cached(text_file: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"some\.txt: 20 windows of 8 need 160 tokens; the text has 100, 60 are"):
        calibration_tokens(word_tokenizer(), text_file, 20, 8, 0, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_default_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text_file: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    calibration_tokens(word_tokenizer(), text_file, 2, 8, 0)
    assert len(list((tmp_path / "xdg" / "junk_dna" / "calibration").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "junk_dna" / "calibration"


@pytest.mark.network
def test_wikitext_on_the_hub_has_the_published_number_of_tokens():
    from transformers import AutoTokenizer

    (text,) = read_texts("wikitext2", split="test")
    windows = text_windows(AutoTokenizer.from_pretrained("openai-community/gpt2"), text, 1)
    assert len(windows) == 287_644  # what transformers' documentation of perplexity shows


@pytest.mark.network
def test_c4_on_the_hub_holds_enough_long_documents():
    from transformers import AutoTokenizer

    texts = read_texts("c4")
    assert len(texts) == calibration.C4_DOCUMENTS
    tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2")
    assert sample_windows(tokenizer, texts, 128, 2048, 0).kind == "documents"
