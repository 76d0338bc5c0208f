"""Sentences and their translations by pair of languages: read from files or the hub, checked, tokenized."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from GLUE_tasks import glue_data
from harness.data import Table, read_table, valid_text

logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("src", "tgt")
LANGUAGE_COLUMNS = ("src_lang", "tgt_lang")
TRANSLATION = "translation"  # the hub's column: texts by language


class Pair(NamedTuple):
    """A source and a target language, as codes of the model's tokenizer."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"


@dataclass(frozen=True)
class Corpus:
    """Parallel sentences: rows of `src` and `tgt` by pair of languages, in the order of the pairs."""

    name: str
    train: Mapping[Pair, Dataset]
    validation: Mapping[Pair, Dataset]
    files: tuple[Path, ...] = field(default=())


def parse_pair(text: str) -> Pair:
    """ "en_XX-ro_RO" -> Pair.

    Raises:
        ValueError: not two different codes with a hyphen between them.
    """
    codes = text.split("-")
    if len(codes) != 2 or not all(codes) or codes[0] == codes[1]:
        raise ValueError(f"{text!r} is no SOURCE-TARGET, such as en_XX-ro_RO")
    return Pair(*codes)


def parse_resources(words: Sequence[str]) -> dict[Pair, float]:
    """["en_XX-de_DE=45e6", ...] -> number of sentence pairs in pretraining, by pair of languages.

    Raises:
        ValueError: a word that is no SOURCE-TARGET=SENTENCES, or a number of 0 or less.
    """
    sizes = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            size = float(text)
        except ValueError:
            size = 0.0
        if not 0 < size < float("inf"):
            raise ValueError(f"{word!r} is no SOURCE-TARGET=SENTENCES with a number above 0")
        sizes[parse_pair(name)] = size
    return sizes


def load_files(
    train_files: Sequence[Path], validation_files: Sequence[Path], pairs: Sequence[Pair], pool: int | None
) -> Corpus:
    """A corpus of csv, json or parquet files.

    Args:
        train_files: empty where nothing is trained.
        pairs: those to read, in order; if empty, all in the files, which a `translation` column does not allow.
        pool: keep the first rows of each pair for training, at most this many; None keeps all.
    Raises:
        ValueError: a file that cannot be read, lacks a column or a text, or a pair without validation rows.
    """
    files = tuple(map(Path, (*train_files, *validation_files)))
    validation = _merged((read_pairs(read_table(path), pairs) for path in validation_files), None)
    wanted = list(pairs or validation)
    train = _merged((read_pairs(read_table(path), wanted) for path in train_files), pool)
    return _corpus(glue_data.name_of_files(Path(validation_files[0])), train, validation, wanted, files)


def load_hub(name: str, configs: Sequence[str], split: str, pairs: Sequence[Pair], pool: int | None) -> Corpus:
    """A corpus of a hub data set with a `translation` column; rows without a text are skipped, and logged.

    Args:
        configs: of the data set, such as "de-en"; a pair is read from each that holds both of its languages.
        split: the split to evaluate, "validation" or "test".
        pairs, pool: see load_files.
    Raises:
        ValueError: the hub cannot be reached, or a pair is in none of the configs.
    """
    train, validation = [], []
    for config in configs or [None]:
        try:
            tables = glue_data.hub_tables(name, config, ("train", split), pool)
        except ValueError as error:
            raise ValueError(
                f"--dataset_name {name}: {error}; without a hub, give --validation_file (and --train_file) with the "
                f"columns {', '.join(TEXT_COLUMNS + LANGUAGE_COLUMNS)}"
            ) from error
        train.append(read_pairs(tables["train"], pairs, drop_empty=True))
        validation.append(read_pairs(tables[split], pairs, drop_empty=True))
    return _corpus(name.rpartition("/")[2], _merged(train, pool), _merged(validation, None), pairs, ())


def read_pairs(table: Table, pairs: Sequence[Pair], drop_empty: bool = False) -> dict[Pair, Dataset]:
    """The rows of a table by pair of languages, as `src` and `tgt`.

    Args:
        pairs: those to read; if empty, all, which a `translation` column does not allow.
        drop_empty: skip rows without a text instead of refusing them.
    Raises:
        ValueError: a column is missing, or a row has no text (names the row and the column).
    """
    read = _rows_of_dictionaries if TRANSLATION in table.columns else _rows_of_columns
    by_pair: dict[Pair, dict[str, list]] = {}
    dropped = 0
    for index, pair, texts in read(table, pairs):
        lacking = next((name for name, text in texts.items() if not isinstance(text, str) or not text.strip()), None)
        if lacking is not None and not drop_empty:
            raise ValueError(f"{table.where(index)} ({pair}) has no text in {lacking!r}")
        if lacking is not None:
            dropped += 1
            continue
        columns = by_pair.setdefault(pair, {name: [] for name in TEXT_COLUMNS})
        for name, (column, text) in zip(TEXT_COLUMNS, texts.items(), strict=True):
            columns[name].append(valid_text(text, table.where(index), column))
    if dropped:
        logger.warning("%s: %d rows without a text are left out", table.name, dropped)
    return {pair: Dataset.from_dict(columns) for pair, columns in by_pair.items()}


def _rows_of_columns(table: Table, pairs: Sequence[Pair]) -> Iterable[tuple[int, Pair, dict[str, Any]]]:
    columns = table.columns
    for name in (*TEXT_COLUMNS, *LANGUAGE_COLUMNS):
        if name not in columns:
            raise ValueError(
                f"{table.name} has no column {name!r}; it has {', '.join(columns)}, and needs "
                f"{', '.join(TEXT_COLUMNS + LANGUAGE_COLUMNS)}, or {TRANSLATION!r} with --pairs"
            )
    for index in range(len(table)):
        codes = [columns[name][index] for name in LANGUAGE_COLUMNS]
        for name, code in zip(LANGUAGE_COLUMNS, codes, strict=True):
            if not isinstance(code, str) or not code.strip():
                raise ValueError(f"{table.where(index)} has no {name!r}")
        pair = Pair(*(code.strip() for code in codes))
        if not pairs or pair in pairs:
            yield index, pair, {name: columns[name][index] for name in TEXT_COLUMNS}


def _rows_of_dictionaries(table: Table, pairs: Sequence[Pair]) -> Iterable[tuple[int, Pair, dict[str, Any]]]:
    """Rows such as {"translation": {"en": ..., "ro": ...}}; none of a pair whose languages the table lacks."""
    if not pairs:
        raise ValueError(f"{table.name} has a {TRANSLATION!r} column: give --pairs SOURCE-TARGET, such as en_XX-ro_RO")
    rows = table.columns[TRANSLATION]
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{table.where(index)}: {TRANSLATION!r} holds no texts by language but {row!r:.60}")
    known = list(dict.fromkeys(code for row in rows for code in row))
    keys = {pair: tuple(_language_key(code, known) for code in pair) for pair in pairs}
    for index, row in enumerate(rows):
        for pair, names in keys.items():
            if None not in names:
                yield index, pair, {name: row.get(name) for name in names}


def _language_key(code: str, known: Sequence[str]) -> str | None:
    """The key of a language in the rows: its code, or the code without its region ("en" of en_XX); else None."""
    return next((name for name in (code, code.partition("_")[0]) if name in known), None)


def _merged(parts: Iterable[Mapping[Pair, Dataset]], pool: int | None) -> dict[Pair, Dataset]:
    by_pair: dict[Pair, list[Dataset]] = {}
    for part in parts:
        for pair, rows in part.items():
            by_pair.setdefault(pair, []).append(rows)
    whole = {pair: datasets.concatenate_datasets(rows) for pair, rows in by_pair.items()}
    return {pair: rows.select(range(min(len(rows), pool or len(rows)))) for pair, rows in whole.items()}


def _corpus(
    name: str,
    train: Mapping[Pair, Dataset],
    validation: Mapping[Pair, Dataset],
    pairs: Sequence[Pair],
    files: tuple[Path, ...],
) -> Corpus:
    for pair in pairs:
        if pair not in validation:
            held = ", ".join(map(str, validation)) or "none"
            raise ValueError(f"{name}: there are no validation rows of {pair}; there are those of {held}")
    if not pairs:
        raise ValueError(f"{name}: there are no rows to translate")
    return Corpus(name, {pair: train[pair] for pair in pairs if pair in train}, dict(validation), files)


def check_shots(corpus: Corpus, shots: int) -> None:
    """Refuse a number of shots for which a pair has too few training rows.

    Raises:
        ValueError: names the pair, the rows that it has and those that it needs.
    """
    for pair in corpus.validation:
        available = len(corpus.train.get(pair, ()))
        if shots > available:
            raise ValueError(f"--shots {shots}: {pair} has {available} training rows; {shots} are needed of every pair")


def known_languages(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The language codes of a multilingual tokenizer; empty for a tokenizer of two fixed languages."""
    if not hasattr(tokenizer, "src_lang"):
        return []
    codes = getattr(tokenizer, "lang_code_to_id", None) or getattr(tokenizer, "extra_special_tokens", None) or ()
    return sorted(str(code) for code in codes)


def check_languages(tokenizer: PreTrainedTokenizerBase, pairs: Iterable[Pair]) -> None:
    """Refuse codes that a multilingual tokenizer does not know and would encode as the unknown token.

    Raises:
        ValueError: names the code and those that the tokenizer takes.
    """
    known = known_languages(tokenizer)
    for pair in pairs:
        for code in pair:
            if known and code not in known:
                raise ValueError(
                    f"{code!r} in {pair} is no language of the model's tokenizer; it has {' '.join(known)}"
                )


def target_token(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> int | None:
    """Id of the token that a translation begins with and that names its language; None for two fixed languages."""
    if not hasattr(tokenizer, "src_lang"):
        return None
    if hasattr(tokenizer, "get_lang_id"):  # M2M100: its tokens are not spelled like the codes
        return tokenizer.get_lang_id(pair.target)
    return tokenizer.convert_tokens_to_ids(pair.target)


def tokenize(rows: Dataset, pair: Pair, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Model inputs, `labels` (the translation's tokens) and `length` per row; nothing is padded."""
    if hasattr(tokenizer, "src_lang"):
        tokenizer.src_lang, tokenizer.tgt_lang = pair
    encoded = tokenizer(rows["src"][:], text_target=rows["tgt"][:], max_length=max_length, truncation=True)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    return Dataset.from_dict({**encoded, "length": lengths})
