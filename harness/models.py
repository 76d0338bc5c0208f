"""A pretrained model, its config and its tokenizer: loaded as they were meant, or refused in one line."""

import argparse
import contextlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from harness.loading_report import check_finite, check_loading, some
from harness.model_files import WEIGHT_FILES, check_whole, refusal, refuse_quantized, weight_files

logger = logging.getLogger(__name__)
# Names of the modules that embed positions, and of the parameters that embed segments.
POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions")
SEGMENT_TABLE = re.compile(r"token_type_embed|segment_embed|(^|\.)seg_embed")
SEGMENTS = "token_type_ids"

# What safetensors calls them.
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def quiet_libraries() -> None:
    """The libraries' progress bars and notices only where somebody watches; what a loading lacks is said by ours."""
    transformers.utils.logging.set_verbosity_error()
    # else transformers loads what a service made of a repository without safetensors, and asks that service for more
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # which datasets reads where it is imported later
        if library := sys.modules.get("datasets"):
            library.disable_progress_bars()


def add_model_options(add: Callable[..., argparse.Action]) -> None:
    """The options that say how every script loads its model, besides its name."""
    add("--weights", choices=tuple(WEIGHT_FILES), default="safetensors",
        help="files that hold the weights; bin: pytorch_model.bin, read as tensors alone, so that no code in it runs "
        "(default safetensors)")  # fmt: skip
    add("--revision", help="branch, tag or commit of a hub model (default main)")
    add("--trust_remote_code", action="store_true", help="run code that the model's repository brings")


@contextlib.contextmanager
def _one_line(name: str, what: str = "") -> Iterator[None]:
    """Within, an error of a library that reads a model's files becomes a ValueError of one line that names the model.

    tokenizers raises bare Exception, so that every kind is caught; there is no code of ours within.
    """
    try:
        yield
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")
        raise refusal(name, what + said) from error


def load_config(
    name: str, trust_remote_code: bool = False, revision: str | None = None, **entries: Any
) -> PretrainedConfig:
    """The config of a model.

    Args:
        name: hub id or folder.
        revision: branch, tag or commit of a hub model.
        entries: replace the config's own, such as num_labels.
    Raises:
        ValueError: the hub has no such model or cannot be reached (names what to do without a hub), the config is
            damaged or of no known kind, or the weights are quantized.
    """
    try:
        with _one_line(name):
            config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision or "main")
            for entry, value in entries.items():  # not before: a problem_type of the file may refuse num_labels
                setattr(config, entry, value)
    except ValueError as error:
        if Path(name).is_dir() or not isinstance(error.__cause__, OSError):
            raise
        raise ValueError(
            f"{error}; without a hub, give a folder: python scripts/fetch_default_assets.py makes some"
        ) from error
    refuse_quantized(name, config.to_dict())
    return config


def meta_model(
    name: str,
    auto_class: type,
    trust_remote_code: bool = False,
    check_config: Callable[[PretrainedConfig], None] = lambda config: None,
    revision: str | None = None,
    **entries: Any,
) -> PreTrainedModel:
    """The model's structure without weights, made from its config alone: shapes can be checked before loading.

    Args:
        auto_class: what kind of model, such as AutoModelForCausalLM.
        check_config: raises ValueError where the config is not that of a model that the caller can use.
        name, revision, entries: see load_config.
    Raises:
        ValueError: see load_config; `check_config` refuses; or the config makes no model of this kind.
    """
    config = load_config(name, trust_remote_code, revision, **entries)
    try:
        check_config(config)
    except ValueError as error:
        raise refusal(name, str(error)) from error
    try:
        with torch.device("meta"), _one_line(name, "its config makes no model: "):
            return auto_class.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise refusal(name, f"transformers has no {auto_class.__name__} for a {config.model_type}") from error


def load_tokenizer(name: str, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        ValueError: its files are lacking or damaged, so that it cannot be made or would know no word.
    """
    lacking = _lacking_tokenizer_files(name)
    try:
        with _one_line(name, "its tokenizer cannot be read: "):
            tokenizer = AutoTokenizer.from_pretrained(
                name, trust_remote_code=trust_remote_code, revision=revision or "main"
            )
            words = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()
            words -= set(tokenizer.all_special_tokens)
    except ValueError as error:
        if lacking:
            raise refusal(name, f"its tokenizer cannot be read: {lacking}") from error
        raise
    if len(words) < 2:  # where there is no file, transformers makes one of special tokens (and "▁") alone
        raise refusal(name, f"its tokenizer knows no word: {lacking or 'every text would be unknown tokens'}")
    return tokenizer


def _lacking_tokenizer_files(name: str) -> str:
    """Which files a folder's tokenizer can be in where it has none of them, or which it lacks; else nothing."""
    folder = Path(name)
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else {"tokenizer.json"}
    if not there & {"tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt",
                    "vocab.json", "tekken.json"}:  # fmt: skip
        return "the folder has no tokenizer.json (nor tokenizer.model, vocab.txt, vocab.json with merges.txt …)"
    if "vocab.json" in there and not there & {"tokenizer.json", "merges.txt"}:
        return "there is vocab.json without merges.txt"
    return ""


def load_pretrained(
    name: str,
    auto_class: type,
    dtype: torch.dtype | str,
    config: PretrainedConfig | None = None,
    weights: str = "safetensors",
    revision: str | None = None,
    trust_remote_code: bool = False,
    device_map: str | Mapping[str, str] | None = None,
    new_head: bool = False,
    ignore_mismatched_sizes: bool = False,
    offload_folder: Path | None = None,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """A model of which every weight is the checkpoint's, and the names of those that are not: a new head's.

    Args:
        auto_class: what kind of model, such as AutoModelForCausalLM.
        dtype: of the weights; "auto" takes the checkpoint's.
        config: takes the place of the checkpoint's own.
        weights: "safetensors", or "bin": pytorch_model.bin, by torch.load(weights_only=True), which runs no code.
        revision: branch, tag or commit of a hub model.
        device_map: "auto", or where each part of the model goes.
        new_head: a head that the checkpoint lacks (and the pooler before it) may be new, for training.
        ignore_mismatched_sizes: a head of another size is replaced by a new one.
        offload_folder: for weights that are to stay on disk, but in another form than the files'.
    Raises:
        ValueError: weights are missing, of other shapes, not finite, or have no place in the model (names them).
    """
    options = {} if config is None else {"config": config}
    check_whole(name, weights)
    with _report() as report:
        try:
            # mismatched sizes are judged below: transformers' own error points to a report that is silenced
            model, loading = auto_class.from_pretrained(
                name, **options, dtype=dtype, use_safetensors=weights == "safetensors", revision=revision or "main",
                trust_remote_code=trust_remote_code, device_map=device_map, ignore_mismatched_sizes=True,
                output_loading_info=True, offload_folder=offload_folder,
            )  # fmt: skip
        except OSError as error:
            raise refusal(name, _unreadable(error, weights)) from error
        except RuntimeError as error:
            if not (failed := re.findall(r"^(\S+)\s*\|\s*CONVERSION", "\n".join(report), re.MULTILINE)):
                raise
            raise refusal(name, f"the file's tensors do not make up {some(failed)}: some are missing, or their shapes "
                          "differ") from error  # fmt: skip
    try:
        new = check_loading(model, loading, new_head, ignore_mismatched_sizes)
        check_finite(model)
    except ValueError as error:
        raise refusal(name, str(error)) from error
    return model, new


def _unreadable(error: OSError, weights: str) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if weights == "safetensors" and "does not appear to have a file named" in said:
        return "the hub has no safetensors of it; --weights bin reads pytorch_model.bin, without running code"
    return said.rstrip(".")


@contextlib.contextmanager
def _report() -> Iterator[list[str]]:
    """What transformers reports of a loading, kept from the screen; its errors say no name but point to it."""
    library, said = logging.getLogger("transformers.modeling_utils"), []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()))
    before = library.level, library.propagate
    library.addHandler(handler)
    library.setLevel(logging.WARNING)
    library.propagate = False
    try:
        yield said
    finally:
        library.removeHandler(handler)
        library.setLevel(before[0])
        library.propagate = before[1]


def refuse_unknown_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """From now on, tokens that the model has no embedding for end in a ValueError that names one.

    A tokenizer with more tokens than the model is common and harmless as long as no text needs them; so nothing is
    looked at where it is not larger.
    """
    table = model.get_input_embeddings()
    rows = table.weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest < rows:
        return
    logger.warning(
        "%s: the tokenizer's ids go up to %d, the embedding has %d rows; a text that needs those beyond is refused",
        tokenizer.name_or_path, largest, rows,
    )  # fmt: skip

    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs and inputs[0].numel() and (highest := int(inputs[0].max())) >= rows:
            word = tokenizer.convert_ids_to_tokens(highest)
            raise ValueError(
                f"the texts hold token {highest} ({word!r}), for which the model's embedding of {rows} rows has none: "
                f"the tokenizer of {tokenizer.name_or_path} is not the model's"
            )

    table.register_forward_pre_hook(check)


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


def stored_dtype(name: str, weights: str = "safetensors") -> torch.dtype | None:
    """What from_pretrained takes as a local checkpoint's dtype where its config says none; None for a hub id."""
    files = weight_files(name, weights)
    if not files or weights == "bin":
        tensors = torch.load(files[0], map_location="meta", weights_only=True) if files else {}
        dtypes = [tensor.dtype for tensor in tensors.values() if isinstance(tensor, Tensor)]
        return next((dtype for dtype in dtypes if dtype.is_floating_point), None)
    with safe_open(files[0], "pt") as stored:
        names = (stored.get_slice(key).get_dtype() for key in stored.keys())  # noqa: SIM118 - no mapping
        return next((FLOATS[name] for name in names if name in FLOATS), None)
