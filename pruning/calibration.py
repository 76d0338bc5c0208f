"""Token windows from C4, WikiText-2 or a text file: drawn at random for calibration, consecutive for perplexity."""

import contextlib
import hashlib
import json
import logging
import os
import random
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness import data as data_files
from harness.content import content_sha256, sha256
from harness.data import file_kind, hub_errors, read_rows, read_text, valid_text
from harness.progress import Progress

logger = logging.getLogger(__name__)

WINDOWS = ("auto", "documents", "joined")
SUFFIXES = (*data_files.SUFFIXES, *data_files.TEXT_SUFFIXES)
# Commits of the hub's data sets: every machine reads the same text, and cached windows are read without the hub.
C4_REVISION = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
WIKITEXT_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
C4_FILES = {"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"}
C4_DOCUMENTS = 50_000  # other codes tokenise a few thousand until 128 are longer than 2048 tokens
HUB_CONFIGS = {"c4": "en", "wikitext2": "wikitext-2-raw-v1"}
HUB_SPLITS = {"c4": tuple(C4_FILES), "wikitext2": ("train", "validation", "test")}
# Tokens between documents in pretraining; a chat model's eos_token ends a message instead.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")
BATCH = 64
CACHE_VERSION = 1  # part of the cache's keys; raised when the same arguments give other tokens


@dataclass(frozen=True)
class Sample:
    """Calibration windows and how they were drawn.

    Attributes:
        tokens: (num_samples, seq_len) int64.
        kind: "documents" or "joined" (see sample_windows).
        num_tokens: number of tokens that the windows were drawn from.
    """

    tokens: Tensor
    kind: str
    num_tokens: int


def calibration_tokens(
    tokenizer: PreTrainedTokenizerBase,
    source: str | Path,
    num_samples: int,
    seq_len: int,
    seed: int,
    *,
    windows: str = "auto",
    split: str = "train",
    text_field: str = "text",
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> Tensor:
    """Calibration windows drawn from a text, the same on every machine; a second call reads them from the cache.

    Args:
        source: "c4", "wikitext2" or a file (see read_texts).
        num_samples: windows to draw, at least 1.
        seq_len: tokens per window, at least 1.
        seed: seed of the draw.
        windows: "auto", "documents" or "joined" (see sample_windows).
        split: part of c4 or wikitext2; a file has none.
        text_field: column of a json or parquet file.
        data_dir: folder with <source>/<split>.jsonl for c4 and wikitext2; the hub when None.
        cache_dir: folder of cached windows; default_cache_dir() when None.
    Returns:
        (num_samples, seq_len) int64.
    Raises:
        ValueError: an argument out of range, a source that cannot be read, or a text that is too short.
    """
    _check_sizes(num_samples=num_samples, seq_len=seq_len)
    _check_kind(windows)
    path = source_file(source, split, data_dir)
    recipe = {
        "version": CACHE_VERSION,
        "source": _source_digest(source, split, path),
        "tokenizer": _tokenizer_digest(tokenizer),
        "num_samples": num_samples,
        "seq_len": seq_len,
        "seed": seed,
        "windows": windows,
        "text_field": text_field,
    }
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    cache_file = Path(cache_dir or default_cache_dir()).expanduser() / f"{key}.safetensors"
    cached = _read_cache(cache_file)
    if cached is None:
        texts = read_texts(source, split=split, text_field=text_field, data_dir=data_dir)
        try:
            sample = sample_windows(tokenizer, texts, num_samples, seq_len, seed, windows)
        except ValueError as error:
            raise ValueError(f"calibration text {source}: {error}") from error
        tokens, facts = sample.tokens, _facts(sample, texts)
        _write_cache(cache_file, tokens, facts)
    else:
        tokens, facts = cached
    logger.info(
        "calibration: %d windows of %d tokens, seed %d, from %s: %s document(s), sha256 of the text %s; "
        "windows=%s, %s%s",
        *(num_samples, seq_len, seed, source, facts["documents"], facts["text_sha256"][:16], facts["kind"]),
        *(f"{facts['tokens']} tokens to draw from", ", cached" if cached else ""),
    )
    return tokens


def read_texts(
    source: str | Path,
    *,
    split: str = "train",
    text_field: str = "text",
    data_dir: str | Path | None = None,
) -> list[str]:
    """Documents of a source in its order, without those that are only white space.

    Args:
        source: "c4" (the first C4_DOCUMENTS of the shard that Wanda and SparseGPT calibrate on), "wikitext2" (one
            document: the rows of a split joined by blank lines), or a file: .txt is one document, .json and .jsonl hold
            one in every line, .parquet in every row; each may end in .gz.
        split: part of c4 (train, validation) or wikitext2 (train, validation, test); a file has none.
        text_field: column of a json or parquet file that holds the text.
        data_dir: reads c4 and wikitext2 from data_dir/<source>/[<config>/]<split>.jsonl (or another suffix); a .txt of
            WikiText-2 may be the raw file, whose lines are the hub's rows. None reads from the hub.
    Raises:
        ValueError: the source does not exist, cannot be read, lacks the text field or holds no text, or the hub cannot
            be reached.
    """
    path = source_file(source, split, data_dir)
    limit = C4_DOCUMENTS if source == "c4" else None
    if path is None:
        texts = _hub_texts(str(source), split)
    elif source == "wikitext2" and file_kind(path, SUFFIXES) == "txt":
        texts = _wikitext_rows(_read_file(path, text_field)[0])
    else:
        texts = _read_file(path, text_field, limit)
    if source == "wikitext2":  # GPTQ's join for both splits; Wanda and SparseGPT join the training rows by spaces
        texts = ["\n\n".join(texts)]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError(f"{path or source} holds no text")
    return texts


def sample_windows(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    num_samples: int,
    seq_len: int,
    seed: int,
    windows: str = "auto",
) -> Sample:
    """Draw windows of tokens from documents; only as many documents are tokenised as are needed.

    Args:
        texts: documents.
        num_samples, seq_len, seed: see calibration_tokens.
        windows: "documents" draws documents longer than seq_len and takes a window at a random offset of each; no
            document is drawn again before all were drawn. "joined" joins documents in random order by the end-of-text
            token (a blank line if the tokenizer has none), cuts the result into windows and draws without replacement.
            "auto" is "documents" if the long documents hold num_samples windows that do not overlap, else "joined".
    Raises:
        ValueError: sizes below 1, an unknown value of `windows`, or a text that is too short (the message gives its
            length in tokens).
    Source: Wanda and SparseGPT, lib/data.py and datautils.py: "documents". They never draw the last window of a
        document, which we do, and draw documents with replacement from the start.
    """
    _check_sizes(num_samples=num_samples, seq_len=seq_len)
    _check_kind(windows)
    draw = random.Random(seed)
    shuffled = draw.sample(texts, len(texts))
    if windows != "joined":
        documents, num_tokens = _long_documents(tokenizer, shuffled, num_samples, seq_len)
        enough = sum(len(ids) // seq_len for ids in documents) >= num_samples
        if enough or (documents and windows == "documents"):
            return Sample(_draw_from_documents(documents, num_samples, seq_len, draw), "documents", num_tokens)
    if windows == "documents":
        longest = max((len(ids) for ids in _tokenize(tokenizer, shuffled, _start_tokens(tokenizer, texts))), default=0)
        raise ValueError(
            f"no document is longer than {seq_len} tokens: the longest has {longest}; take a smaller seq_len, longer "
            "documents or windows='joined'"
        )
    stream = joined_stream(tokenizer, shuffled, num_samples * seq_len)
    return Sample(_draw_from_stream(stream, num_samples, seq_len, draw), "joined", len(stream))


def text_windows(tokenizer: PreTrainedTokenizerBase, text: str, seq_len: int) -> Tensor:
    """Consecutive windows of one text, tokenised as a whole, as published perplexities are measured.

    The tokenizer's special tokens are at the start of the text only, not of every window; an incomplete last window is
    dropped.

    Returns:
        (number of windows, seq_len) int64.
    Raises:
        ValueError: seq_len below 1, or a text shorter than one window (the message says how many tokens are missing).
    Source: Wanda lib/eval.py, GPTQ datautils.py.
    """
    _check_sizes(seq_len=seq_len)
    (ids,) = _tokenize(tokenizer, [text], _start_tokens(tokenizer, [text]))
    count = len(ids) // seq_len
    if count == 0:
        raise ValueError(f"the text has {len(ids)} tokens, {seq_len - len(ids)} fewer than a window of {seq_len}")
    digest = _text_digest([text])[:16]
    logger.info("text: %d tokens, %d windows of %d, sha256 of the text %s", len(ids), count, seq_len, digest)
    return torch.from_numpy(ids[: count * seq_len].reshape(count, seq_len).astype(np.int64))


def default_cache_dir() -> Path:
    """Folder of cached windows: junk_dna/calibration in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "junk_dna" / "calibration"


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")


def _check_kind(windows: str) -> None:
    if windows not in WINDOWS:
        raise ValueError(f"windows is {windows!r}; it must be one of {', '.join(WINDOWS)}")


def source_file(source: str | Path, split: str = "train", data_dir: str | Path | None = None) -> Path | None:
    """Path of the file that holds a source (see read_texts); None if it is read from the hub.

    Raises:
        ValueError: there is no such file or split, or the file's suffix is unknown.
    """
    if source not in HUB_CONFIGS:
        path = Path(source).expanduser()
        if not path.is_file():
            raise ValueError(f"{source} is neither a file nor one of {', '.join(HUB_CONFIGS)}")
        file_kind(path, SUFFIXES)
        return path
    if split not in HUB_SPLITS[source]:
        raise ValueError(f"{source} has no split {split!r}; it has {', '.join(HUB_SPLITS[source])}")
    if data_dir is None:
        return None
    folders = (Path(data_dir).expanduser() / source, Path(data_dir).expanduser() / source / HUB_CONFIGS[source])
    candidates = (folder / f"{split}{suffix}" for folder in folders for suffix in SUFFIXES)
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise ValueError(f"{data_dir} has no {source}/{split}.jsonl (or {', '.join(SUFFIXES)})")
    return path


def source_content(
    name: str, source: str | Path, split: str = "train", data_dir: str | Path | None = None
) -> dict[str, str]:
    """What a run records of the content of a source (see read_texts): the hub's commit, else hashes of the file.

    Args:
        name: of the option, which is the prefix of the keys.
    Returns:
        <name>_commit; or <name>_sha256, of the file's name and content, and <name>_content_sha256, of its content.
    """
    try:
        path = source_file(source, split, data_dir)
    except ValueError as error:
        raise ValueError(f"--{name} {source}: {error}") from error
    if path is None:
        return {f"{name}_commit": {"c4": C4_REVISION, "wikitext2": WIKITEXT_REVISION}[str(source)]}
    return {f"{name}_sha256": sha256([path]), f"{name}_content_sha256": content_sha256([path])}


def _read_file(path: Path, text_field: str, limit: int | None = None) -> list[str]:
    """The first `limit` texts of a file (all when None), empty ones included."""
    if file_kind(path, SUFFIXES) == "txt":
        return [read_text(path)]
    return list(islice(_texts(path, text_field), limit))


def _texts(path: Path, text_field: str) -> Iterator[str]:
    for where, row in read_rows(path, [text_field]):
        if text_field not in row:
            raise ValueError(f"{path} has no field {text_field!r}; it has {', '.join(row)}")
        yield valid_text(row[text_field], where, text_field)


def _wikitext_rows(text: str) -> list[str]:
    """Rows of a raw WikiText file as on the hub: each line with its newline; a blank line is an empty row."""
    lines = text.removesuffix("\n").split("\n")
    return [f"{line}\n" if line.strip() else "" for line in lines]


def _hub_texts(source: str, split: str) -> list[str]:
    import datasets  # takes a second, and files do without it

    remedy = f"give a text file as the source, or a data_dir DIR with {source}/{split}.jsonl"
    with hub_errors(f"{source}: ", f"; without a hub, {remedy}"):
        if source == "wikitext2":
            rows = datasets.load_dataset(
                "Salesforce/wikitext", HUB_CONFIGS[source], split=split, revision=WIKITEXT_REVISION
            )
        else:
            # By file name: the configuration that other codes load is gone from the hub, and "en" is 300 GB.
            rows = datasets.load_dataset(
                "allenai/c4", data_files={split: C4_FILES[split]}, split=split, streaming=True, revision=C4_REVISION
            ).take(C4_DOCUMENTS)
        return [row["text"] for row in rows]


def _start_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
    """Special tokens that the tokenizer puts before a text, without those that it puts after it."""
    # Encodes some of the text: in an empty one, tokens before and after could not be told apart.
    encoded = tokenizer(texts[0][:100], return_special_tokens_mask=True, verbose=False)
    pairs = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    return np.array([token for token, _ in takewhile(lambda pair: pair[1], pairs)], dtype=np.int32)


def _separator_tokens(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Tokens between joined documents: the end-of-text token, or those of a blank line."""
    added = tokenizer.get_added_vocab()
    token = next((added[name] for name in END_OF_TEXT if name in added), tokenizer.eos_token_id)
    ids = [token] if token is not None else tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    return np.array(ids, dtype=np.int32)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], start: np.ndarray) -> Iterator[np.ndarray]:
    """Token ids of each text, int32, with `start` in front."""
    for first in Progress(range(0, len(texts), BATCH), name="tokenise"):
        batch = list(texts[first : first + BATCH])
        encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for ids in encoded["input_ids"]:
            yield np.concatenate([start, np.array(ids, dtype=np.int32)])


def _long_documents(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], num_documents: int, seq_len: int
) -> tuple[list[np.ndarray], int]:
    """Token ids of the first `num_documents` documents longer than seq_len, and how many tokens these have."""
    start = _start_tokens(tokenizer, texts)
    # A token covers a byte or more (but for rare normalisations): shorter texts need no tokenising.
    candidates = [text for text in texts if len(start) + len(text.encode()) > seq_len]
    ids_per_text = _tokenize(tokenizer, candidates, start)
    documents = list(islice((ids for ids in ids_per_text if len(ids) > seq_len), num_documents))
    return documents, sum(map(len, documents))


def _draw_from_documents(documents: list[np.ndarray], num_samples: int, seq_len: int, draw: random.Random) -> Tensor:
    """A window at a random offset of each document, then of documents drawn at random, num_samples in all."""
    chosen = documents + draw.choices(documents, k=num_samples - len(documents))
    starts = [draw.randint(0, len(ids) - seq_len) for ids in chosen]  # randint includes both ends
    rows = [ids[start : start + seq_len] for ids, start in zip(chosen, starts, strict=True)]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def joined_stream(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], num_tokens: int) -> np.ndarray:
    """Token ids of documents joined by separators: as many whole documents as give `num_tokens`, or all."""
    separator = _separator_tokens(tokenizer)
    parts = [_start_tokens(tokenizer, texts)]
    total = len(parts[0])
    for ids in _tokenize(tokenizer, texts, np.array([], dtype=np.int32)):
        new = [separator, ids] if len(parts) > 1 else [ids]
        parts += new
        total += sum(map(len, new))
        if total >= num_tokens:
            break
    return np.concatenate(parts)


def _draw_from_stream(stream: np.ndarray, num_samples: int, seq_len: int, draw: random.Random) -> Tensor:
    """Windows that do not overlap, drawn without replacement."""
    wanted = num_samples * seq_len
    if len(stream) < wanted:
        raise ValueError(
            f"{num_samples} windows of {seq_len} need {wanted} tokens; the text has {len(stream)}, "
            f"{wanted - len(stream)} are missing; give more text, or take fewer or shorter windows"
        )
    count = len(stream) // seq_len
    rows = stream[: count * seq_len].reshape(count, seq_len)[draw.sample(range(count), num_samples)]
    return torch.from_numpy(rows.astype(np.int64))


def _text_digest(texts: Iterable[str]) -> str:
    """sha256 of the texts, a zero byte between them."""
    digest = hashlib.sha256()
    for number, text in enumerate(texts):
        digest.update((b"\0" if number else b"") + text.encode())
    return digest.hexdigest()


def _source_digest(source: str | Path, split: str, path: Path | None) -> str:
    """Part of the cache's key: how the documents are read, and the sha256 of the file or the hub's commit."""
    if path is None:
        return f"{source}@{C4_REVISION if source == 'c4' else WIKITEXT_REVISION}:{split}:{C4_DOCUMENTS}"
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    reader = f"{source}:{C4_DOCUMENTS}" if source in HUB_CONFIGS else "file"
    return f"{reader}:{file_kind(path, SUFFIXES)}:{content}"


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the tokenizer's vocabulary and rules, without its current truncation and padding settings."""
    if tokenizer.is_fast:
        content = tokenizer.backend_tokenizer.to_str()
        content = content[content.index('"added_tokens"') :]  # parsing it all would take most of a cached call
    else:
        content = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    return hashlib.sha256(f"{content}{_separator_tokens(tokenizer).tolist()}".encode()).hexdigest()


def _facts(sample: Sample, texts: Sequence[str]) -> dict[str, str]:
    """What is logged about a sample; metadata of its cache file."""
    return {
        "kind": sample.kind,
        "documents": str(len(texts)),
        "tokens": str(sample.num_tokens),
        "text_sha256": _text_digest(texts),
        "tokens_sha256": _tensor_digest(sample.tokens),
    }


def _tensor_digest(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()


def _read_cache(path: Path) -> tuple[Tensor, dict[str, str]] | None:
    """Cached windows and what is logged about them (_facts); None if there are none or the file is damaged."""
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tokens, facts = file.get_tensor("tokens").clone(), file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        logger.warning("%s cannot be read; the windows are drawn again: %s", path, error)
        return None
    if facts.get("tokens_sha256") != _tensor_digest(tokens):
        logger.warning("%s is damaged; the windows are drawn again", path)
        return None
    return tokens, facts


def _write_cache(path: Path, tokens: Tensor, facts: dict[str, str]) -> None:
    """Write the cache file by rename, so that another process reads all of it or none."""
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(save({"tokens": tokens}, metadata=facts))
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        logger.warning("the calibration windows are not cached: %s", error)
