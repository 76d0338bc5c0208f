"""Loading a pretrained model, its config and its tokenizer; what cannot be loaded correctly is refused in one line."""

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

from harness.errors import first_line
from harness.loading_report import check_finite, check_loading, first_names
from harness.model_files import WEIGHT_FILES, check_whole, refusal, refuse_quantized, weight_files

logger = logging.getLogger(__name__)
# Last names of modules that embed positions; names of parameters that embed segments (token types).
POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions")
SEGMENT_TABLE = re.compile(r"token_type_embed|segment_embed|(^|\.)seg_embed")
SEGMENTS = "token_type_ids"
# Entries of a config that say how many tokens a model takes: the second is MPT's, the third is Whisper's.
LENGTHS = ("max_position_embeddings", "max_seq_len", "max_target_positions")

# Floating-point dtypes by safetensors' names.
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def quiet_libraries() -> None:
    """Silence transformers' notices, and the libraries' progress bars where standard error is no terminal."""
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("lm_eval").setLevel(logging.WARNING)  # a line for every task that it knows
    # else transformers asks the hub's service to convert repositories without safetensors, and loads what it made
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # for datasets that is imported later
        if library := sys.modules.get("datasets"):
            library.disable_progress_bars()


def add_model_options(add: Callable[..., argparse.Action]) -> None:
    """Add the options, besides the name, that say how a model is loaded."""
    add("--weights", choices=tuple(WEIGHT_FILES), default="safetensors",
        help="files that hold the weights; bin: pytorch_model.bin, read as tensors alone, so that no code in it runs "
        "(default safetensors)")  # fmt: skip
    add("--revision", help="branch, tag or commit of a hub model (default main)")
    add("--trust_remote_code", action="store_true", help="run code that the model's repository brings")


@contextlib.contextmanager
def _one_line(name: str, what: str = "") -> Iterator[None]:
    """Within, any error becomes a ValueError of one line: the model's name, `what`, and the error's first line.

    For calls of libraries alone. Every kind of error is caught, since tokenizers raises bare Exception.
    """
    try:
        yield
    except Exception as error:
        raise refusal(name, what + first_line(error)) from error


def load_config(
    name: str, trust_remote_code: bool = False, revision: str | None = None, **entries: Any
) -> PretrainedConfig:
    """The config of a model.

    Args:
        name: hub id or folder.
        revision: branch, tag or commit of a hub model.
        entries: values to set in the config, such as num_labels.
    Raises:
        ValueError: the hub has no such model or cannot be reached (names a remedy), the config is damaged or of an
            unknown kind, or the weights are quantized.
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
    """The model on the meta device, built from its config alone, so that shapes can be checked before loading.

    Args:
        auto_class: transformers' class for the kind of model, such as AutoModelForCausalLM.
        check_config: raises ValueError where the caller cannot use a model of this config.
        name, revision, entries: see load_config.
    Raises:
        ValueError: as load_config; `check_config` refuses; or there is no model of this kind for the config.
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
        ValueError: its files are missing or damaged, or its vocabulary is empty.
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
    if len(words) < 2:  # without files, transformers makes a tokenizer of special tokens (and "▁") alone
        raise refusal(name, f"its tokenizer knows no word: {lacking or 'every text would be unknown tokens'}")
    return tokenizer


def _lacking_tokenizer_files(name: str) -> str:
    """Says which tokenizer files a folder lacks; empty where there are enough, and for a hub id."""
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
    """Load a model with all weights of its checkpoint; only a head may be newly initialised.

    Args:
        auto_class: transformers' class for the kind of model, such as AutoModelForCausalLM.
        dtype: of the weights; "auto" takes the checkpoint's.
        config: used instead of the checkpoint's.
        weights: "safetensors", or "bin": pytorch_model.bin, by torch.load(weights_only=True), which runs no code.
        revision: branch, tag or commit of a hub model.
        device_map: "auto", or the device of each module, as from_pretrained takes it.
        new_head: the checkpoint may lack the head, and the pooler before it: they will be trained.
        ignore_mismatched_sizes: with new_head, a head of another size is replaced by a new one.
        offload_folder: where weights on disk are written that cannot be read from the checkpoint's files as they are.
    Returns:
        The model, and the names of its newly initialised weights.
    Raises:
        ValueError: weights are missing, unexpected, of other shapes or not finite (names them).
    """
    options = {} if config is None else {"config": config}
    check_whole(name, weights)
    with _report() as report:
        try:
            # mismatched sizes are refused below: transformers' error points to a report that is silenced
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
            raise refusal(name, f"the file's tensors do not make up {first_names(failed)}: some are missing, or their "
                          "shapes differ") from error  # fmt: skip
    try:
        new = check_loading(model, loading, new_head, ignore_mismatched_sizes)
        check_finite(model)
    except ValueError as error:
        raise refusal(name, str(error)) from error
    return model, new


def _unreadable(error: OSError, weights: str) -> str:
    reason = first_line(error)
    if weights == "safetensors" and "does not appear to have a file named" in reason:
        return "the hub has no safetensors of it; --weights bin reads pytorch_model.bin, without running code"
    return reason


@contextlib.contextmanager
def _report() -> Iterator[list[str]]:
    """Collects what transformers logs while loading, instead of printing it; its errors refer to these lines."""
    library, messages = logging.getLogger("transformers.modeling_utils"), []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()))
    before = library.level, library.propagate
    library.addHandler(handler)
    library.setLevel(logging.WARNING)
    library.propagate = False
    try:
        yield messages
    finally:
        library.removeHandler(handler)
        library.setLevel(before[0])
        library.propagate = before[1]


def refuse_unknown_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the model raise ValueError on token ids that it has no embedding for; the error names the token.

    Does nothing where the tokenizer has no such id. Where it has, a warning is logged: that is common, and harmless
    until a text needs one.
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
    """The most tokens that the model's position embeddings allow; None where nothing limits them.

    RoBERTa and models like it count positions from padding_idx + 1: a table of 514 rows allows 512 tokens.
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in POSITION_TABLES and getattr(module, "padding_idx", None) is not None:
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor):
                return weight.shape[0] - module.padding_idx - 1
    return configured_length(model.config)


def configured_length(config: PretrainedConfig) -> int | None:
    """The most tokens that a config allows; None where it names no limit."""
    config = config.get_text_config()
    longest = next((getattr(config, name) for name in LENGTHS if getattr(config, name, None) is not None), None)
    return longest if isinstance(longest, int) and longest > 0 else None  # XLNet says -1: no limit


def has_segments(model: nn.Module) -> bool:
    """Whether a model has embeddings of two or more segments (token types), as BERT has for two texts.

    Other models fail on segment ids, or look them up in the word embedding (GPT-2).
    """
    sizes = [parameter.shape[0] for name, parameter in model.named_parameters() if SEGMENT_TABLE.search(name)]
    return max(sizes, default=0) > 1


def save_model(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, str] | None = None
) -> None:
    """Write a folder that from_pretrained loads; see written_whole."""
    with written_whole(folder, texts) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


@contextlib.contextmanager
def written_whole(folder: Path, texts: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Inside, a new folder to write a model's files to; it replaces `folder` afterwards, and not after an error.

    Args:
        texts: contents of further files by name, such as a model card.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for name, text in (texts or {}).items():
        (partial / name).write_text(text)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def stored_dtype(name: str, weights: str = "safetensors") -> torch.dtype | None:
    """The dtype that from_pretrained loads a local checkpoint in where its config names none; None for a hub id."""
    files = weight_files(name, weights)
    if not files or weights == "bin":
        tensors = torch.load(files[0], map_location="meta", weights_only=True) if files else {}
        dtypes = [tensor.dtype for tensor in tensors.values() if isinstance(tensor, Tensor)]
        return next((dtype for dtype in dtypes if dtype.is_floating_point), None)
    with safe_open(files[0], "pt") as stored:
        names = (stored.get_slice(key).get_dtype() for key in stored.keys())  # noqa: SIM118 - no mapping
        return next((FLOATS[name] for name in names if name in FLOATS), None)
