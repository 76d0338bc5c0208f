"""The files of a model's folder: which of them hold the weights, and what is refused before anything is loaded."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING

# The file that from_pretrained reads first, by --weights; else the shards that the index beside it names.
WEIGHT_FILES = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
INDEX_FILE = "model.safetensors.index.json"
JSON_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", INDEX_FILE, "pytorch_model.bin.index.json",
)  # fmt: skip
READ_SUFFIXES = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"}
OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf")
LFS_POINTER = b"version https://git-lfs"
DENSE_DTYPES = {"F16", "BF16", "F32", "F64"}  # safetensors' names


def refusal(name: str, reason: str) -> ValueError:
    """The error that says why a model is refused."""
    return ValueError(f"--model_name_or_path {name}: {reason}")


def weight_files(name: str, weights: str = "safetensors") -> list[Path]:
    """The files from which from_pretrained reads a local model's weights; none for a hub id.

    Args:
        weights: "safetensors" or "bin" (--weights).
    """
    folder = Path(name)
    whole = folder / WEIGHT_FILES[weights]
    if whole.is_file():
        return [whole]
    index = folder / f"{WEIGHT_FILES[weights]}.index.json"
    return sorted({folder / shard for shard in read_json(index)["weight_map"].values()}) if index.is_file() else []


def check_checkpoint_files(
    name: str, weights: str = "safetensors", trust_remote_code: bool = False, revision: str | None = None
) -> None:
    """Refuse a model folder that cannot be loaded, or not as what it is, before anything is; hub ids pass.

    Args:
        weights: "safetensors" or "bin" (--weights).
        revision: of a hub model; a folder has none.
    Raises:
        ValueError: no such folder, files that are lacking, damaged or of another kind (names the file).
    """
    try:
        folder = Path(name)
        if not name or not folder.is_dir():
            _refuse_what_is_no_folder(name)
        elif revision is not None:
            raise refusal(name, f"--revision {revision} is of a hub model; this is a folder")
        else:
            _check_folder(name, folder, weights, trust_remote_code)
    except OSError as error:  # no permission, a name too long
        raise refusal(name, f"{error.filename or name} cannot be read: {error.strerror}") from error


def _check_folder(name: str, folder: Path, weights: str, trust_remote_code: bool) -> None:
    for path in sorted(folder.iterdir()):
        if path.suffix in READ_SUFFIXES:
            _check_is_content(path)
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path", "its base model")
        raise refusal(name, f"adapter_config.json makes it an adapter of {base}; merge it into that model and save "
                      "the result (peft: merge_and_unload, save_pretrained)")  # fmt: skip
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if ggufs and not any((folder / file).is_file() for file in WEIGHT_FILES.values()) and not weight_files(name):
        raise refusal(name, f"{ggufs[0]} is GGUF, which is not read; give the model that it was made from")
    if not (folder / "config.json").is_file():
        raise refusal(name, "the folder has no config.json")
    for file in JSON_FILES:
        if (folder / file).is_file():
            read_json(folder / file)
    config = read_json(folder / "config.json")
    _check_kind(name, config, trust_remote_code)
    refuse_quantized(name, config)
    _check_weights(name, weights)


def refuse_quantized(name: str, config: Mapping[str, Any]) -> None:
    """Raises ValueError where the entries of a config say that the weights are stored quantized."""
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    for key in ("quantization_config", "compression_config"):
        for found in filter(None, (part.get(key) for part in parts)):
            method = found.get("quant_method") if isinstance(found, Mapping) else getattr(found, "quant_method", None)
            method = getattr(method, "value", method) or "an unnamed method"
            raise refusal(name, f"its weights are quantized ({key} of config.json: {method}), which is not read; give "
                          "the dense model that it was made from")  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a model holds.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, no JSON object")
    if path.name.endswith(".index.json") and not _is_index(content):
        raise ValueError(f"{path} has no weight_map from weights to files")
    return content


def _is_index(content: dict[str, Any]) -> bool:
    files = content.get("weight_map")
    return isinstance(files, dict) and bool(files) and all(isinstance(file, str) for file in files.values())


def _refuse_what_is_no_folder(name: str) -> None:
    path = Path(name)
    if name and path.is_file():
        kind = "GGUF, which is not read" if path.suffix == ".gguf" else "a file"
        raise refusal(name, f"this is {kind}; give a model's folder or its hub id")
    if not name or path.exists() or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise refusal(name, "no such folder")


def _check_is_content(path: Path) -> None:
    if not path.is_file():
        if path.is_symlink():
            raise ValueError(f"{path} is a link to nothing; download it again")
        return
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if not start:
        # what it is for is looked at later, where something else may be wrong that says more
        return
    if start == LFS_POINTER:
        raise ValueError(f"{path} is a git-lfs pointer, not the file itself; run git lfs pull in the folder")


def _check_kind(name: str, config: Mapping[str, Any], trust_remote_code: bool) -> None:
    kind, code = config.get("model_type"), config.get("auto_map")
    if isinstance(code, Mapping) and "AutoConfig" in code and kind not in CONFIG_MAPPING:
        if trust_remote_code:
            return
        module = str(code["AutoConfig"]).rpartition(".")[0]
        raise refusal(name, f"it brings code of its own ({module}.py); read it, then give --trust_remote_code")
    if kind is None:
        raise refusal(name, "config.json names no model_type")
    if kind not in CONFIG_MAPPING:
        raise refusal(name, f"transformers knows no model_type {kind!r} (config.json); a newer version may")


def _check_weights(name: str, weights: str) -> None:
    folder = Path(name)
    if config_file := read_json(folder / "config.json").get("transformers_weights"):
        raise refusal(name, f"transformers_weights of config.json names {config_file}; rename it to model.safetensors")
    if any(folder.glob("*.distcp")):
        raise refusal(name, "the weights are a distributed checkpoint (*.distcp); save them as safetensors")
    files = weight_files(name, weights)
    if not files:
        raise refusal(name, _why_there_are_no(folder, weights))
    if lacking := [path.name for path in files if not path.is_file()]:
        index = f"{WEIGHT_FILES[weights]}.index.json"
        raise refusal(name, f"{index} names {lacking[0]}, which is not there ({len(lacking)} of {len(files)} files)")
    for path in files:
        _check_safetensors(path) if weights == "safetensors" else _check_pickle(path)


def _why_there_are_no(folder: Path, weights: str) -> str:
    found = [path.name for pattern in OTHER_WEIGHTS for path in sorted(folder.glob(pattern))]
    if weights == "bin":
        return f"--weights bin reads pytorch_model.bin; the folder has {', '.join(found[:3]) or 'no weights'}"
    if weight_files(str(folder), "bin"):
        return (
            f"the weights are a pickle ({found[0]}): --weights bin reads them, as tensors alone, so that no code runs; "
            "or save them as safetensors (model.save_pretrained) from a source you trust"
        )
    there = f"; there is {', '.join(found[:3])}" if found else ""
    return f"the folder has no weights (model.safetensors){there}"


def _check_safetensors(path: Path) -> None:
    """Refuse a file that is no safetensors, or whose matrices are not numbers of a dense model."""
    kinds, _ = _header(path)
    for key, dtype in kinds.items():
        if key.endswith("weight") and dtype not in DENSE_DTYPES:
            raise ValueError(f"{path}: {key} is stored as {dtype}, so quantized, which is not read; give the dense "
                             "model that it was made from")  # fmt: skip


def check_whole(name: str, weights: str) -> None:
    """Refuse, when they are about to be read, weights of a folder that end too early: that ends a run, not a sweep.

    Raises:
        ValueError: names the file, and how much of it is there.
    """
    for path in weight_files(name, weights) if weights == "safetensors" and Path(name).is_dir() else []:
        end, size = _header(path)[1], path.stat().st_size
        if size < end:
            raise ValueError(f"{path} is cut short: {size:,} of {end:,} bytes are there; download it again")


def _header(path: Path) -> tuple[dict[str, str], int]:
    """The dtype of every matrix in a safetensors file, and how many bytes the file has when it is whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path} is cut short or no safetensors file ({size:,} bytes); download it again")
        content = file.read(length)
    try:
        header = json.loads(content)
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        kinds = {key: entry["dtype"] for key, entry in header.items() if len(entry["shape"]) > 1}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} has a damaged header; download it again") from error
    if not header:
        raise ValueError(f"{path} holds no weights")
    return kinds, end


def _check_pickle(path: Path) -> None:
    """Refuse a .bin file that is cut short, or that asks for anything but tensors; nothing in it runs."""
    with path.open("rb") as file:
        start = file.read(2)
    if not zipfile.is_zipfile(path):
        if start[:1] != b"\x80":
            raise ValueError(f"{path} is cut short or no file of torch.save; download it again")
        try:  # as torch before 1.6 wrote it: nothing lists what it asks for, so that it is read
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of the unpickler, whose module no source of ours imports
            raise ValueError(f"{path} is cut short or asks for code and is not read: --weights bin takes tensors alone"
                             ) from error  # fmt: skip
        return
    try:
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}); download it again") from error
    if others:
        raise ValueError(f"{path} asks for code ({', '.join(sorted(others)[:3])}) and is not read: --weights bin takes "
                         "tensors alone")  # fmt: skip
