"""The files of a model's folder: which hold the weights, and checks of them all before anything is loaded."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from harness.errors import first_line

# By value of --weights, the file that from_pretrained reads; where it is not there, the shards that its index names.
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
    """The error for a model that is refused: names the option, the model and the reason."""
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
    """Refuse, before anything is loaded, a model folder that cannot be loaded correctly; a hub id is not checked.

    Args:
        weights: "safetensors" or "bin" (--weights).
        trust_remote_code: the model's own code may be run.
        revision: of a hub model; refused for a folder.
    Raises:
        ValueError: no such folder, or files that are missing, damaged or of another kind (names the file).
    """
    try:
        folder = Path(name)
        if not name or not folder.is_dir():
            _check_hub_id(name)
        elif revision is not None:
            raise refusal(name, f"--revision {revision} goes with a hub model; this is a folder")
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
        raise refusal(name, f"{ggufs[0]} is GGUF, which is not read; give the model that it was made from "
                      "(llm_tasks measure this one beside it: --compression checkpoint)")  # fmt: skip
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
    if found := quantization(config):
        key, entry = found
        method = entry.get("quant_method") if isinstance(entry, Mapping) else getattr(entry, "quant_method", None)
        method = getattr(method, "value", method) or "an unnamed method"
        raise refusal(name, f"its weights are quantized ({key} of config.json: {method}), which is not read; give "
                      "the dense model that it was made from (llm_tasks measure this one beside it: "
                      "--compression checkpoint)")  # fmt: skip


def quantization(config: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Name and content of the entry that says how weights are quantized, of a config or of a part of it; else None."""
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    entries = ((key, part.get(key)) for part in parts for key in ("quantization_config", "compression_config"))
    return next((found for found in entries if found[1]), None)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model.

    Raises:
        ValueError: the file is damaged, holds no object, or is an index without weight_map.
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


def _check_hub_id(name: str) -> None:
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
        return  # the check of this kind of file refuses it later, with a better reason
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
        raise refusal(name, _why_no_weights(folder, weights))
    if lacking := [path.name for path in files if not path.is_file()]:
        index = f"{WEIGHT_FILES[weights]}.index.json"
        raise refusal(name, f"{index} names {lacking[0]}, which is not there ({len(lacking)} of {len(files)} files)")
    for path in files:
        _check_safetensors(path) if weights == "safetensors" else _check_pickle(path)


def _why_no_weights(folder: Path, weights: str) -> str:
    others = [path.name for pattern in OTHER_WEIGHTS for path in sorted(folder.glob(pattern))]
    if weights == "bin":
        return f"--weights bin reads pytorch_model.bin; the folder has {', '.join(others[:3]) or 'no weights'}"
    if weight_files(str(folder), "bin"):
        return (
            f"the weights are a pickle ({others[0]}): --weights bin reads them, as tensors alone, so that no code "
            "runs; or save them as safetensors (model.save_pretrained) from a source you trust"
        )
    there = f"; there is {', '.join(others[:3])}" if others else ""
    return f"the folder has no weights (model.safetensors){there}"


def _check_safetensors(path: Path) -> None:
    """Refuse a file that is no safetensors, or whose matrices are quantized."""
    kinds, _ = _header(path)
    for key, dtype in kinds.items():
        if key.endswith("weight") and dtype not in DENSE_DTYPES:
            raise ValueError(f"{path}: {key} is stored as {dtype}, so quantized, which is not read; give the dense "
                             "model that it was made from")  # fmt: skip


def check_whole(name: str, weights: str) -> None:
    """Refuse a local model whose safetensors end too early; called just before they are read, so that one run fails.

    Raises:
        ValueError: names the file, its size and the size that it should have.
    """
    for path in weight_files(name, weights) if weights == "safetensors" and Path(name).is_dir() else []:
        end, size = _header(path)[1], path.stat().st_size
        if size < end:
            raise ValueError(f"{path} is cut short: {size:,} of {end:,} bytes are there; download it again")


def _header(path: Path) -> tuple[dict[str, str], int]:
    """The dtype of every matrix in a safetensors file by name, and the size in bytes that the file should have."""
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
    """Refuse a .bin file that is cut short, or whose pickle needs more than tensors; no code in it runs."""
    with path.open("rb") as file:
        start = file.read(2)
    if not zipfile.is_zipfile(path):
        if start[:1] != b"\x80":
            raise ValueError(f"{path} is cut short or no file of torch.save; download it again")
        try:  # torch's format before 1.6 has no list of what the pickle needs, so that it is loaded
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler's own error cannot be named: no file here imports pickle
            raise ValueError(f"{path} is cut short or asks for code and is not read: --weights bin takes tensors alone"
                             ) from error  # fmt: skip
        return
    try:
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}); download it again") from error
    if others:
        raise ValueError(f"{path} asks for code ({', '.join(sorted(others)[:3])}) and is not read: --weights bin takes "
                         "tensors alone")  # fmt: skip
