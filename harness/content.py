"""Models and data by their content: hashes of local files, commits of what comes from the hub."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from httpx2 import HTTPError  # huggingface_hub's client
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import OfflineModeIsEnabled

from harness.data import Source
from harness.model_files import weight_files

TOKENIZER = (
    "tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json", "*.model", "*.spm", "*.tiktoken",
    "*.bpe", "*.codes", "tekken.json", "normalizer.json", "dict.txt",
)  # fmt: skip
TEMPLATES = ("chat_template*", "additional_chat_templates/*")
# Entries of JSON files that say where a model was and which version wrote it: they change no number.
PROVENANCE = {"_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "is_local"}
COMMIT = re.compile("[0-9a-f]{40}")


def sha256(paths: Iterable[Path]) -> str:
    """Hash of the names and contents of files, in the order of their paths."""
    digest = hashlib.sha256()
    for path in sorted(map(Path, paths)):
        digest.update(path.name.encode())
        digest.update(_digest(path))
    return digest.hexdigest()


def content_sha256(paths: Iterable[Path]) -> str:
    """Hash of the contents of files in the order given, and of the suffix by which each is read; not of their names."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        digest.update(Path(path.name.removesuffix(".gz")).suffix.encode())
        digest.update(_digest(path))
    return digest.hexdigest()


def files_content(files: Sequence[Path | Source]) -> dict[str, str]:
    """What data are by their content: hashes of local files and commits of the hub's, where there are some.

    Args:
        files: in an order that follows from what each is for.
    Returns:
        data_sha256, which counts the files' names, as records have had it from the start; data_content_sha256, which
        does not; data_commit.
    Raises:
        ValueError: the hub cannot be reached (says what to do without one).
    """
    local = [path for path in files if isinstance(path, Path)]
    hub = [source for source in files if not isinstance(source, Path)]
    found = {}
    if local:
        found |= {"data_sha256": sha256(local), "data_content_sha256": content_sha256(local)}
    if hub:
        found |= {"data_commit": " ".join(sorted({_source_commit(source) for source in hub}))}
    return found


def _source_commit(source: Source) -> str:
    remedy = f"give --data_dir DIR with {source.folder}/{source.split}.jsonl"
    if source.hub_id is None:
        raise ValueError(f"{source.folder} is not on the hub: {remedy}")
    try:
        return f"{source.hub_id}@{dataset_commit(source.hub_id, source.hub_config, source.hub_revision)}"
    except ValueError as error:
        raise ValueError(f"{error}; without a hub, {remedy}") from error


def _digest(path: Path) -> bytes:
    found = path.stat()
    # A time of change can be set back; the time of that cannot.
    return _file_digest(path.absolute(), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _file_digest(path: Path, *_: int) -> bytes:
    """Hash of a file's content, cached until the file changes: the whole numbers are its inode, size and times."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def model_content(
    name: str, revision: str | None = None, weights: str | None = None, with_code: bool = False
) -> dict[str, str]:
    """What a model is, by its content: of a folder hashes of its files, of a hub id the commit.

    Args:
        name: folder or hub id.
        revision: of the hub's; None is its main branch.
        weights: kind of file that the weights are read from, "safetensors" (default) or "bin".
        with_code: the model's own code is run, and is part of what it is.
    Returns:
        model_sha256 (weights), config_sha256, generation_config_sha256, tokenizer_sha256, template_sha256 and
        code_sha256, or model_commit. A file that is not there has a hash too.
    Raises:
        ValueError: the hub cannot be reached and its cache does not hold the model.
    """
    folder = Path(name)
    if not folder.is_dir():
        return {"model_commit": model_commit(name, revision)}
    found = {
        "model_sha256": sha256(weight_files(name, weights or "safetensors")),
        "config_sha256": _named_sha256(folder, ["config.json"]),
        "generation_config_sha256": _named_sha256(folder, ["generation_config.json"]),
        "tokenizer_sha256": _named_sha256(folder, TOKENIZER),
        "template_sha256": _named_sha256(folder, TEMPLATES),
    }
    return found | ({"code_sha256": _named_sha256(folder, ["**/*.py"])} if with_code else {})


def _named_sha256(folder: Path, patterns: Iterable[str]) -> str:
    """Hash of names, relative to the folder, and contents; of JSON settings without their provenance."""
    digest = hashlib.sha256()
    for path in sorted(set(chain.from_iterable(map(folder.glob, patterns)))):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(hashlib.sha256(_settings(path)).digest() if "config" in path.name else _digest(path))
    return digest.hexdigest()


def _settings(path: Path) -> bytes:
    """A JSON file without entries that change no number, however it is laid out; another file as it is."""
    content = path.read_bytes()
    try:
        found = json.loads(content)
    except ValueError:  # damage, which whoever loads it names
        return content
    return json.dumps(_without_provenance(found), sort_keys=True).encode()


def _without_provenance(value: object) -> object:
    if isinstance(value, list):
        return [_without_provenance(part) for part in value]
    if isinstance(value, dict):
        return {name: _without_provenance(part) for name, part in value.items() if name not in PROVENANCE}
    return value


def model_commit(name: str, revision: str | None = None) -> str:
    """The commit that a hub id stands for, which a branch or tag may have moved to since.

    Raises:
        ValueError: the hub cannot be reached and its cache does not hold the model.
    """
    try:
        # snapshots/<commit>/config.json, and the file that from_pretrained reads
        return Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    except (OSError, ValueError) as error:
        raise ValueError(f"--model_name_or_path {name}: {str(error).splitlines()[0]}") from error


@functools.cache
def dataset_commit(name: str, config: str | None = None, revision: str | None = None) -> str:
    """The commit of a hub data set: the hub's newest, or without a hub that of the copy that `datasets` reads.

    Raises:
        ValueError: the hub cannot be reached and there is no copy.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    try:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled("offline mode")
        return HfApi().dataset_info(name, revision=revision).sha
    except (OSError, HTTPError) as error:
        copies = [folder for folder in _dataset_copies(name, config) if COMMIT.fullmatch(folder.name)]
        if not copies:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise ValueError(f"{name}: {reason}") from error
        return max(copies, key=lambda folder: folder.stat().st_mtime).name


def _dataset_copies(name: str, config: str | None) -> Iterable[Path]:
    """The folders <config>/<version>/<commit> in which `datasets` keeps what it made of a hub data set."""
    import datasets  # takes a second, and files do without it
    from datasets.naming import camelcase_to_snakecase

    owner, _, last = name.rpartition("/")
    folder = "___".join(filter(None, (owner, camelcase_to_snakecase(last))))
    return Path(datasets.config.HF_DATASETS_CACHE).expanduser().glob(f"{folder}/{config or '*'}/*/*/")
