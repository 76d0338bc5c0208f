"""The folder that a pretrained model comes from: what is refused before loading, structure without weights, tensors."""

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Names of the modules that embed positions, and of the parameters that embed segments.
POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions")
SEGMENT_TABLE = re.compile(r"token_type_embed|segment_embed|(^|\.)seg_embed")
SEGMENTS = "token_type_ids"
INDEX_FILE = "model.safetensors.index.json"
# What safetensors calls them.
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def quiet_libraries() -> None:
    """The libraries' progress bars and notices only where somebody watches."""
    transformers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # which datasets reads where it is imported later
        if library := sys.modules.get("datasets"):
            library.disable_progress_bars()


def check_checkpoint_files(name: str) -> None:
    """Refuse a model folder that cannot be loaded, before anything is; hub ids pass.

    Raises:
        ValueError: no such folder, no config, no weights, or weights as a pickle only.
    """
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
            raise ValueError(f"--model_name_or_path {name}: no such folder")
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"--model_name_or_path {name}: the folder has no config.json")
    if any(folder.glob("*.safetensors")):
        return
    if pickles := [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]:
        raise ValueError(
            f"--model_name_or_path {name}: the weights are a pickle ({pickles[0].name}), which can run any code when "
            "read; save them as safetensors (model.save_pretrained) from a source you trust"
        )
    raise ValueError(f"--model_name_or_path {name}: the folder has no weights (model.safetensors)")


def weight_files(name: str) -> list[Path]:
    """The files that a local model's weights are read from; none for a hub id."""
    return sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else []


def meta_model(
    name: str,
    auto_class: type,
    trust_remote_code: bool,
    check_config: Callable[[PretrainedConfig], None] = lambda config: None,
    **config_options: Any,
) -> PreTrainedModel:
    """The model's structure without weights, made from its config alone: shapes can be checked before loading.

    Args:
        name: hub id or folder.
        auto_class: what kind of model, such as AutoModelForCausalLM.
        check_config: raises ValueError where the config is not that of a model that the caller can use.
        config_options: entries that replace the config's own, such as num_labels.
    Raises:
        ValueError: the hub has no such model or cannot be reached (names what to do without a hub), or
            `check_config` refuses.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise ValueError(
            f"--model_name_or_path {name}: {str(error).splitlines()[0].rstrip('.')}; without a hub, give a folder: "
            "python scripts/fetch_default_assets.py makes some"
        ) from error
    for option, value in config_options.items():  # not before: a problem_type of the file may refuse num_labels
        setattr(config, option, value)
    try:
        check_config(config)
    except ValueError as error:
        raise ValueError(f"--model_name_or_path {name}: {error}") from error
    with torch.device("meta"):
        return auto_class.from_config(config, trust_remote_code=trust_remote_code)


def longest_input(model: nn.Module) -> int | None:
    """The most tokens that the model's positions take; None where nothing limits them.

    RoBERTa and its kin count positions from behind that of padding: a table of 514 takes 512 tokens.
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in POSITION_TABLES and getattr(module, "padding_idx", None) is not None:
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor):
                return weight.shape[0] - module.padding_idx - 1
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None  # XLNet says -1: no limit


def has_segments(model: nn.Module) -> bool:
    """Whether a model has an embedding of at least two segments, as BERT has of the first and second text.

    Others crash on segment ids, or look them up among their words (GPT-2).
    """
    sizes = [parameter.shape[0] for name, parameter in model.named_parameters() if SEGMENT_TABLE.search(name)]
    return max(sizes, default=0) > 1


def save_model(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, str] | None = None
) -> None:
    """A folder that from_pretrained loads; half a folder never stands under this name.

    Args:
        texts: further files, such as a model card, by name.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for name, text in (texts or {}).items():
        (partial / name).write_text(text)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


@contextlib.contextmanager
def converted_tensor_by_tensor(dtype: torch.dtype | str) -> Iterator[None]:
    """Within, from_pretrained reads files of another dtype without mapping them.

    What is converted is copied; a mapped file would stay in memory beside the copies until all of them are made: three
    times the model where float32 becomes bfloat16. Files of the same dtype are mapped, which copies nothing.

    Args:
        dtype: what the model is loaded in; "auto" converts nothing.
    """
    library = transformers.modeling_utils

    def opened(path: str, *args: Any, **options: Any) -> Any:
        stored = safe_open(path, *args, **options)
        keys = stored.keys()
        if not any(_differs(stored.get_slice(key).get_dtype(), dtype) for key in keys):
            return stored
        with stored:
            return safe_open(path, *args, **{**options, "backend": "pread"})

    with mock.patch.object(library, "safe_open", opened) if dtype != "auto" else contextlib.nullcontext():
        yield


def _differs(stored: str, dtype: torch.dtype) -> bool:
    """Whether floating-point numbers of this name in a safetensors file are not of this dtype."""
    return stored in FLOATS and FLOATS[stored] != dtype


class Checkpoint:
    """The safetensors files of a model folder, read tensor by tensor."""

    def __init__(self, folder: Path) -> None:
        index = folder / INDEX_FILE
        if index.is_file():
            files = json.loads(index.read_text())["weight_map"]
            self._files = {key: folder / name for key, name in files.items()}
        else:
            path = folder / "model.safetensors"
            if not path.is_file():
                raise ValueError(f"{folder} has neither {INDEX_FILE} nor model.safetensors")
            with safe_open(path, "pt") as stored:
                self._files = dict.fromkeys(stored.keys(), path)

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def read(self, keys: list[str], backend: str = "pread") -> dict[str, Tensor]:
        """The tensors of these keys; backend "mmap" maps them from the file instead of reading them."""
        found = {}
        for path in sorted({self._files[key] for key in keys}):
            with safe_open(path, "pt", backend=backend) as stored:
                found.update({key: stored.get_tensor(key) for key in keys if self._files[key] == path})
        return found
