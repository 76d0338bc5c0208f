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
from harness.errors import first_line
from harness.model_files import weight_files

TOKENIZER = (
    "tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json", "*.model", "*.spm", "*.tiktoken",
    "*.bpe", "*.codes", "tekken.json", "normalizer.json", "dict.txt",
)  # fmt: skip
TEMPLATES = ("chat_template*", "additional_chat_templates/*")
# Entries of JSON files that say where a model was and which version wrote it: they change no number.
PROVENANCE_KEYS = {"_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "is_local"}
COMMIT = re.compile("[0-9a-f]{40}")


def sha256(paths: Iterable[Path]) -> str:
    """Hash of the names and contents of files, in the order of their paths."""
    digest = hashlib.sha256()
    for path in sorted(map(Path, paths)):
        digest.update(path.name.encode())
        digest.update(_digest(path))
    return digest.hexdigest()


def content_sha256(paths: Iterable[Path]) -> str:
    """Hash of the contents and suffixes of files, in the order given; their names do not count."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        digest.update(Path(path.name.removesuffix(".gz")).suffix.encode())
        digest.update(_digest(path))
    return digest.hexdigest()


def files_content(files: Sequence[Path | Source]) -> dict[str, str]:
    """What identifies data: hashes of local files, and commits of hub data sets.

    Args:
        files: ordered by their use, such as training before validation, so that the same data have the same hash.
    Returns:
        data_sha256 (of contents and file names, as in the oldest runs) and data_content_sha256 (of contents alone)
        where there are local files; data_commit where there are hub data sets.
    Raises:
        ValueError: the hub cannot be reached (says what to do without one).
    """
    local = [path for path in files if isinstance(path, Path)]
    hub = [source for source in files if not isinstance(source, Path)]
    content = {}
    if local:
        content |= {"data_sha256": sha256(local), "data_content_sha256": content_sha256(local)}
    if hub:
        content |= {"data_commit": " ".join(sorted({_source_commit(source) for source in hub}))}
    return content


def _source_commit(source: Source) -> str:
    remedy = f"give --data_dir DIR with {source.folder}/{source.split}.jsonl"
    if source.hub_id is None:
        raise ValueError(f"{source.folder} is not on the hub: {remedy}")
    try:
        return f"{source.hub_id}@{dataset_commit(source.hub_id, source.hub_config, source.hub_revision)}"
    except ValueError as error:
        raise ValueError(f"{error}; without a hub, {remedy}") from error


def _digest(path: Path) -> bytes:
    stat = path.stat()
    # st_mtime can be set back, st_ctime cannot
    return _file_digest(path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _file_digest(path: Path, *_: int) -> bytes:
    """Hash of a file's content, cached by path, inode, size and times, so that a changed file is read again."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def model_content(
    name: str, revision: str | None = None, weights: str | None = None, with_code: bool = False
) -> dict[str, str]:
    """What identifies a model: hashes of the files in a folder, or the commit of a hub id.

    Args:
        name: folder or hub id.
        revision: branch, tag or commit of a hub model; None is main.
        weights: kind of file that the weights are read from, "safetensors" (default) or "bin".
        with_code: hash the folder's .py files too, since they are run.
    Returns:
        model_sha256 (weights), config_sha256, generation_config_sha256, tokenizer_sha256, template_sha256 and
        code_sha256, or model_commit. A missing file has the hash of nothing.
    Raises:
        ValueError: the hub cannot be reached and its cache does not hold the model.
    """
    folder = Path(name)
    if not folder.is_dir():
        return {"model_commit": model_commit(name, revision)}
    content = {
        "model_sha256": sha256(weight_files(name, weights or "safetensors")),
        "config_sha256": _named_sha256(folder, ["config.json"]),
        "generation_config_sha256": _named_sha256(folder, ["generation_config.json"]),
        "tokenizer_sha256": _named_sha256(folder, TOKENIZER),
        "template_sha256": _named_sha256(folder, TEMPLATES),
    }
    return content | ({"code_sha256": _named_sha256(folder, ["**/*.py"])} if with_code else {})


def settings_sha256(weights: str, folder: Path, names: Iterable[str]) -> str:
    """Hash of a hash of weights and of the settings beside them, which count without PROVENANCE_KEYS.

    Args:
        weights: the hash.
        names: of the JSON files; those that the folder lacks do not count.
    """
    return hashlib.sha256(f"{weights} {_named_sha256(folder, names)}".encode()).hexdigest()


def _named_sha256(folder: Path, patterns: Iterable[str]) -> str:
    """Hash of the relative names and the contents of files; config files count without PROVENANCE_KEYS."""
    digest = hashlib.sha256()
    for path in sorted(set(chain.from_iterable(map(folder.glob, patterns)))):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(hashlib.sha256(_settings(path)).digest() if "config" in path.name else _digest(path))
    return digest.hexdigest()


def _settings(path: Path) -> bytes:
    """A JSON file's content in one layout and without PROVENANCE_KEYS; another file's content as it is."""
    content = path.read_bytes()
    try:
        settings = json.loads(content)
    except ValueError:  # damaged: loading it ends in an error that names it
        return content
    return json.dumps(_without_provenance(settings), sort_keys=True).encode()


def _without_provenance(value: object) -> object:
    if isinstance(value, list):
        return [_without_provenance(part) for part in value]
    if isinstance(value, dict):
        return {name: _without_provenance(part) for name, part in value.items() if name not in PROVENANCE_KEYS}
    return value


def model_commit(name: str, revision: str | None = None) -> str:
    """The commit that a hub model's branch, tag or id stands for now.

    Raises:
        ValueError: the hub cannot be reached and its cache does not hold the model.
    """
    try:
        # snapshots/<commit>/config.json, and the file that from_pretrained reads
        return Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    except (OSError, ValueError) as error:
        raise ValueError(f"--model_name_or_path {name}: {first_line(error)}") from error


@functools.cache
def dataset_commit(name: str, config: str | None = None, revision: str | None = None) -> str:
    """The commit of a hub data set: that on the hub, or offline that of the cached copy that `datasets` reads.

    Raises:
        ValueError: the hub cannot be reached and there is no cached copy.
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
            raise ValueError(f"{name}: {first_line(error)}") from error
        return max(copies, key=lambda folder: folder.stat().st_mtime).name


def _dataset_copies(name: str, config: str | None) -> Iterable[Path]:
    """The folders <config>/<version>/<commit> in which `datasets` caches a hub data set."""
    import datasets  # takes a second, and files do without it
    from datasets.naming import camelcase_to_snakecase

    owner, _, last = name.rpartition("/")
    folder = "___".join(filter(None, (owner, camelcase_to_snakecase(last))))
    return Path(datasets.config.HF_DATASETS_CACHE).expanduser().glob(f"{folder}/{config or '*'}/*/*/")
