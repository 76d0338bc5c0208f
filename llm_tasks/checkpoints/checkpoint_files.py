"""Models that were compressed elsewhere, by their files: of what kind, of what size, whether of this parent.

Nothing is loaded here. A checkpoint is a folder, a GGUF file or a hub id; its weights are dense (a pruned model),
quantized in one of the ways that transformers reads, in GGUF, or an adapter of PEFT that is added to the parent.
"""

import functools
import importlib.util
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from transformers import AutoConfig, PretrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from harness.content import content_sha256, settings_sha256
from harness.errors import first_line
from harness.model_files import check_checkpoint_files, check_whole, quantization, read_json, weight_files

logger = logging.getLogger(__name__)

DENSE_WEIGHTS, GGUF, ADAPTER = "dense weights", "gguf", "adapter"
# By kind, the packages that read it besides this project's own: name of the module, requirement for pip.
PACKAGES: dict[str, dict[str, str]] = {
    GGUF: {"gguf": "gguf==0.19.0"},
    ADAPTER: {"peft": "peft==0.21.2"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors==0.20.1"},
    "gptq": {"gptqmodel": "gptqmodel==7.6.0", "optimum": "optimum==2.3.0"},
    "awq": {"gptqmodel": "gptqmodel==7.6.0"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "torchao": {"torchao": "torchao"},
    "hqq": {"hqq": "hqq"},
    "quanto": {"optimum.quanto": "optimum-quanto"},
    "auto-round": {"auto_round": "auto-round"},
    "aqlm": {"aqlm": "aqlm"},
    "vptq": {"vptq": "vptq"},
    "eetq": {"eetq": "eetq"},
}
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
SETTINGS = ("config.json", "adapter_config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json")
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "num_local_experts", "num_experts",
)  # fmt: skip
# Entries of a config that change what the same weights compute.
ARITHMETIC = (
    "rope_parameters", "rope_theta", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "hidden_act",
    "hidden_activation", "sliding_window", "num_experts_per_tok", "partial_rotary_factor", "query_pre_attn_scalar",
    "final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "embedding_multiplier", "residual_multiplier",
)  # fmt: skip


def refusal(name: str, reason: str) -> ValueError:
    """The error for a checkpoint that is refused: names the option, the checkpoint and the reason."""
    return ValueError(f"--checkpoint {name}: {reason}")


@dataclass(frozen=True)
class Checkpoint:
    """The files of a model that was compressed elsewhere.

    Attributes:
        name: as the command line names it.
        folder: that holds the files.
        kind: DENSE_WEIGHTS, GGUF, ADAPTER, or what config.json names the quantization (quant_method).
        files: with the weights; of an adapter with what it adds to the parent.
    """

    name: str
    folder: Path
    kind: str
    files: tuple[Path, ...]

    @property
    def weights(self) -> str:
        """Kind of file that the weights are read from, as --weights names it."""
        return "bin" if self.files[0].suffix == ".bin" else "safetensors"

    @property
    def gguf_file(self) -> str | None:
        return self.files[0].name if self.kind == GGUF else None

    @functools.cached_property
    def content(self) -> dict[str, str]:
        """What identifies it: a hash of the contents of its weights and of the settings beside them."""
        settings = () if self.kind == GGUF else SETTINGS
        return {"checkpoint_sha256": settings_sha256(content_sha256(self.files), self.folder, settings)}


def safe_label(name: str) -> str:
    """A checkpoint's name in folders and figures: the last part of its path, of <name>/model the part above."""
    parts = [part for part in os.path.abspath(name).split(os.sep) if part] or ["checkpoint"]
    last = parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1].removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip(".-") or "checkpoint"


def check_labels(names: Iterable[str]) -> None:
    """Raises ValueError where two checkpoints would have one label, and so one folder and one curve."""
    labels: dict[str, str] = {}
    for name in dict.fromkeys(names):
        other = labels.setdefault(safe_label(name), name)
        if other != name:
            raise ValueError(
                f"--checkpoint {other} {name}: both would be called {safe_label(name)!r}; give one of the folders, or "
                "a link to it, another name"
            )


def open_checkpoint(name: str, trust_remote_code: bool = False) -> Checkpoint:
    """Find out what a checkpoint is; a hub id is downloaded.

    Raises:
        ValueError: there is no such checkpoint, or its files are missing, damaged, or of a kind that nothing reads.
    """
    path = Path(name)
    if name.endswith(".gguf"):
        return _gguf(name, path if path.is_file() else _downloaded_file(name))
    if path.is_file():
        raise refusal(name, "this is a file; give a model's folder, a .gguf file or a hub id")
    folder = path if path.is_dir() else downloaded(name)
    ggufs = sorted(folder.glob("*.gguf"))
    if (folder / "adapter_config.json").is_file():
        files = [folder / file for file in ADAPTER_FILES if (folder / file).is_file()][:1]
        if not files:
            raise refusal(name, f"it has adapter_config.json and neither {' nor '.join(ADAPTER_FILES)}")
        return Checkpoint(name, folder, ADAPTER, tuple(files))
    if not (folder / "config.json").is_file():
        if len(ggufs) > 1:
            raise refusal(name, f"the folder holds {len(ggufs)} GGUF files; name one, such as {ggufs[0]}")
        if not ggufs:
            raise refusal(name, "the folder has no config.json, no adapter_config.json and no GGUF file")
        return _gguf(name, ggufs[0])
    return _of_folder(name, folder, trust_remote_code)


def _gguf(name: str, path: Path) -> Checkpoint:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise refusal(name, f"{path.name} does not begin as a GGUF file; download it again")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise refusal(name, "a GGUF in several files is not read; llama.cpp's gguf-split --merge makes one of them")
    return Checkpoint(name, path.parent, GGUF, (path,))


def _of_folder(name: str, folder: Path, trust_remote_code: bool) -> Checkpoint:
    config = read_json(folder / "config.json")
    method = quantization_method(config)
    found = {weights: weight_files(str(folder), weights) for weights in ("safetensors", "bin")}
    weights = "safetensors" if found["safetensors"] or not found["bin"] else "bin"
    if method is None:
        with _named(name, folder):
            check_checkpoint_files(str(folder), weights, trust_remote_code)
    elif method not in AUTO_QUANTIZER_MAPPING and method != "bitsandbytes":
        raise refusal(name, f"transformers has no loader for its quantization, {method!r} (config.json)")
    elif lacking := [path.name for path in found[weights] if not path.is_file()] or not found[weights]:
        raise refusal(name, f"the folder lacks its weights ({lacking[0] if found[weights] else 'model.safetensors'})")
    with _named(name, folder):
        check_whole(str(folder), weights)
    return Checkpoint(name, folder, method or DENSE_WEIGHTS, tuple(found[weights]))


class _named:
    """Inside, errors that name a folder as --model_name_or_path name the checkpoint instead."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, ValueError):
            reason = str(error).removeprefix(f"--model_name_or_path {self._folder}: ")
            raise refusal(self._name, reason) from error


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """How a config says that its weights are quantized; None for dense weights, pruned ones too."""
    _, entry = quantization(config) or ("", None)
    if not isinstance(entry, Mapping):
        return None
    if entry.get("quant_method"):
        return str(entry["quant_method"])
    return "bitsandbytes" if entry.get("load_in_4bit") or entry.get("load_in_8bit") else "compressed-tensors"


def downloaded(name: str, revision: str | None = None, option: str = "--checkpoint") -> Path:
    """The folder in the hub's cache that holds a hub id's files, downloaded if need be.

    Raises:
        ValueError: there is no such folder and no such model on the hub, or the hub cannot be reached.
    """
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise ValueError(f"{option} {name}: no such folder")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*HUB_FILES, "*.bin"]))
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} {name}: no such folder, and of the hub: {first_line(error)}") from error
    return folder


def _downloaded_file(name: str) -> Path:
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not file or owner in ("", ".", "..", "~"):
        raise refusal(name, "no such file")
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except (OSError, ValueError) as error:
        raise refusal(name, f"no such file, and of the hub: {first_line(error)}") from error


def check_installed(checkpoint: Checkpoint) -> None:
    """Raises ValueError, with the command that installs them, where packages are missing that read a checkpoint."""
    needed = PACKAGES.get(checkpoint.kind, {})
    missing = [requirement for module, requirement in needed.items() if not _is_installed(module)]
    if missing:
        raise refusal(
            checkpoint.name, f"it is {checkpoint.kind}, which needs packages: pip install {' '.join(missing)}"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of "optimum.quanto" without optimum
        return False


def own_config(checkpoint: Checkpoint, trust_remote_code: bool = False) -> PretrainedConfig | None:
    """The config that a checkpoint brings; None for an adapter, which is added to the parent.

    Raises:
        ValueError: it cannot be read.
    """
    if checkpoint.kind == ADAPTER:
        return None
    more = {"gguf_file": checkpoint.gguf_file} if checkpoint.gguf_file else {}
    try:
        return AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code, **more)
    except Exception as error:  # of libraries, for files of any content
        raise refusal(checkpoint.name, f"its config cannot be read: {first_line(error)}") from error


def check_parent(checkpoint: Checkpoint, own: PretrainedConfig | None, parent: PretrainedConfig) -> dict[str, str]:
    """Refuse a checkpoint of another architecture than the parent's.

    Returns:
        By name, how its config differs where a compression may make it differ: sizes that are smaller than the
        parent's, and entries that change what the weights compute. The checkpoint's own values count.
    Raises:
        ValueError: another architecture or vocabulary, or a size that is larger than the parent's.
    """
    if own is None:
        return {}
    if own.model_type != parent.model_type:
        raise refusal(
            checkpoint.name, f"another architecture: it is a {own.model_type}, the parent a {parent.model_type}"
        )
    own, parent = own.get_text_config(), parent.get_text_config()
    differences = {}
    for name in ("vocab_size", *SIZES, *ARITHMETIC):
        here, there = getattr(own, name, None), getattr(parent, name, None)
        if _alike(here, there):
            continue
        told = f"{_short(here)}, the parent's {_short(there)}"
        sizes = isinstance(here, int) and isinstance(there, int)
        if name == "vocab_size" or (name in SIZES and sizes and here > there):
            raise refusal(checkpoint.name, f"another architecture: its {name} is {told}")
        differences[name] = told
    return differences


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return None not in (one, other) and abs(one - other) <= 1e-6 * max(abs(one), abs(other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    return one == other


def _short(value: Any) -> str:
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def check_tokenizer(checkpoint: Checkpoint, parent: Any, load: Any) -> None:
    """Refuse a checkpoint with another tokenizer than the parent's: prompts are read by the parent's.

    Args:
        parent: the parent's tokenizer.
        load: from a folder, its tokenizer; raises ValueError where there is none that can be read.
    Raises:
        ValueError: names the first difference.
    """
    from llm_tasks.checkpoints import tokenizer_check  # of GGUF files, in a package that may be missing

    if checkpoint.kind == GGUF:
        difference = tokenizer_check.gguf_difference(checkpoint.files[0], parent)
    elif any((checkpoint.folder / file).is_file() for file in tokenizer_check.VOCABULARY_FILES):
        with _named(checkpoint.name, checkpoint.folder):
            own = load(str(checkpoint.folder))
        difference = tokenizer_check.difference(own, parent)
    else:
        return  # it brings none
    if difference:
        raise refusal(checkpoint.name, f"its tokenizer is not the parent's: {difference}")


def total_bytes(files: Collection[Path]) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in files)


def parent_files(name: str, weights: str, revision: str | None) -> list[Path]:
    """The files that hold a parent's weights; a hub id is downloaded."""
    folder = name if Path(name).is_dir() else str(downloaded(name, revision, "--model_name_or_path"))
    return weight_files(folder, weights)


def stored_bytes(
    checkpoint: Checkpoint, blocks: Mapping[str, int], name_in_model: Callable[[str], str] = str
) -> int | None:
    """Bytes that a checkpoint's files take for the weights of these modules: values, scales, zero points, indices.

    Args:
        blocks: by the name of a module inside the decoder blocks that holds weights, such as
            "model.layers.0.mlp.up_proj", the index of its block. A checkpoint may lack whole blocks.
        name_in_model: the name in the model of a tensor by its name in the files.
    Returns:
        None where the files do not tell: a pickle, an adapter, or tensors of other names (the log names a module).
    """
    if checkpoint.kind == GGUF:
        from gguf import GGUFReader

        tensors = GGUFReader(checkpoint.files[0]).tensors
        return sum(int(t.n_bytes) for t in tensors if t.name.startswith("blk.") and len(t.shape) > 1) or None
    if checkpoint.kind == ADAPTER or checkpoint.weights == "bin":
        return None
    found, total = set(), 0
    for file in checkpoint.files:
        for key, size in tensor_bytes(file).items():
            owner = next((name for name in _owners(name_in_model(key)) if name in blocks), None)
            if owner is not None and not key.endswith(".bias"):
                found.add(owner)
                total += size
    stored = {blocks[name] for name in found} or set(blocks.values())
    if lacking := [name for name, block in blocks.items() if name not in found and block in stored]:
        told = "--checkpoint %s: no file names a tensor of %s; how many bytes its decoder blocks take is not known"
        logger.warning(told, checkpoint.name, lacking[0])
        return None
    return total


def _owners(key: str) -> list[str]:
    """The names of the modules that a tensor may belong to: bitsandbytes hangs its own names below "weight"."""
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def tensor_bytes(file: Path) -> dict[str, int]:
    """Bytes of every tensor in a safetensors file, by name."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    return {key: entry["data_offsets"][1] - entry["data_offsets"][0] for key, entry in header.items()}
