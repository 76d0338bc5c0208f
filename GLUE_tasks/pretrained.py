"""A pretrained model with the head of a task: loading, drawing a new head, the order of its outputs."""

import copy
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from GLUE_tasks.labels import numbers_by_plain_name, plain
from GLUE_tasks.transfers import Pruning
from harness import models
from harness.content import model_content
from harness.model_files import check_checkpoint_files

logger = logging.getLogger(__name__)

# Classes whose head a checkpoint may lack, since it will be trained; a head that generates text must be there.
NEW_HEADS = (AutoModelForSequenceClassification, AutoModelForMultipleChoice)
# Architectures that initialise a head as a whole, otherwise than its layers one by one, as earlier versions did.
HEADS_AS_A_WHOLE = (
    "t5", "mt5", "umt5", "t5gemma", "t5gemma2", "modernbert", "modernbert-decoder", "modernvbert", "ultravbert",
)  # fmt: skip


@dataclass(frozen=True)
class PretrainedSource:
    """Where a pretrained model is and how it is loaded: the command line's model options."""

    name: str
    weights: str = "safetensors"
    revision: str | None = None
    trust_remote_code: bool = False
    ignore_mismatched_sizes: bool = False

    def check_files(self) -> None:
        """Raises ValueError where the checkpoint's files cannot be loaded (harness.model_files)."""
        check_checkpoint_files(self.name, self.weights, self.trust_remote_code, self.revision)

    def config(self) -> PretrainedConfig:
        """The checkpoint's config."""
        return models.load_config(self.name, self.trust_remote_code, self.revision)

    def content(self) -> dict[str, str]:
        """What identifies the model: hashes of its files, or the hub's commit."""
        return model_content(self.name, self.revision, self.weights, self.trust_remote_code)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; if it has no padding token, as most decoders', it pads with its end-of-text token.

        Raises:
            ValueError: the tokenizer cannot be read, or has neither of the two tokens.
        """
        tokenizer = models.load_tokenizer(self.name, self.trust_remote_code, self.revision)
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ValueError(
                    f"--model_name_or_path {self.name}: its tokenizer has neither a pad_token nor an eos_token"
                )
            tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"
        return tokenizer

    def without_weights(self, num_labels: int | None, auto_class: type) -> PreTrainedModel:
        """The model with a head of `num_labels` outputs, on the meta device."""
        entries = _head_size(num_labels)
        return models.meta_model(self.name, auto_class, self.trust_remote_code, revision=self.revision, **entries)

    def load(self, num_labels: int | None, auto_class: type) -> "Pretrained":
        """The model with a head of `num_labels` outputs; it pads as its tokenizer and refuses ids without embedding."""
        options = self.trust_remote_code, self.ignore_mismatched_sizes, auto_class, self.weights, self.revision
        loaded, tokenizer = load_pretrained(self.name, num_labels, *options), self.tokenizer()
        models.refuse_unknown_ids(loaded.model, tokenizer)
        pad_as_tokenizer(loaded.model, tokenizer)
        return loaded


@dataclass(frozen=True)
class Pretrained:
    """A loaded model, which is never changed, and the names of the parameters that its checkpoint lacks."""

    model: PreTrainedModel
    new_parameters: frozenset[str]

    def copy(self, seed: int) -> PreTrainedModel:
        """A copy to train: pretrained weights bit-equal, new parameters (the head) drawn by `seed` alone."""
        model = copy.deepcopy(self.model)
        draw_new_parameters(model, self.new_parameters, seed)
        return model


def load_pretrained(
    name: str,
    num_labels: int | None,
    trust_remote_code: bool = False,
    ignore_mismatched_sizes: bool = False,
    auto_class: type = AutoModelForSequenceClassification,
    weights: str = "safetensors",
    revision: str | None = None,
) -> Pretrained:
    """A pretrained model in float32, with a head for classification unless `auto_class` is another kind of model.

    Args:
        num_labels: outputs of the head, 1 for a regression; None keeps the config's number.
        weights, revision: see harness.models.load_pretrained.
    Raises:
        ValueError: the checkpoint lacks more than a head.
    """
    config = models.load_config(name, trust_remote_code, revision, **_head_size(num_labels))
    model, new = models.load_pretrained(
        name, auto_class, torch.float32, config, weights, revision, trust_remote_code, new_head=auto_class in NEW_HEADS,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )  # fmt: skip
    logger.info("%s: %d weights; new: %s", name, model.num_parameters(), ", ".join(sorted(new)) or "none")
    return Pretrained(model, new)


def _head_size(num_labels: int | None) -> dict[str, int | None]:
    """Config entries that set the size of the head; none for None."""
    return {} if num_labels is None else {"problem_type": None, "num_labels": num_labels}


def draw_new_parameters(model: PreTrainedModel, names: Collection[str], seed: int) -> None:
    """Initialise the named parameters as from_pretrained does, from `seed`; all others stay as they are."""
    torch.manual_seed(seed)
    # what has this flag is left alone by transformers
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor._is_hf_initialized = name not in names
    for module in model.modules():
        module._is_hf_initialized = all(parameter._is_hf_initialized for parameter in module.parameters())
    model.initialize_weights()


def head_arithmetic(config: PretrainedConfig, auto_class: type) -> int:
    """Number of the distributions that a new head is drawn from: 2 where earlier versions drew it from others."""
    return 2 if auto_class in NEW_HEADS and config.model_type in HEADS_AS_A_WHOLE else 1


def check_model(
    source: PretrainedSource, auto_class: type, num_labels: int | None, max_length: int, pruning: Pruning
) -> None:
    """Refuse, from the config alone, a length above the model's and N:M groups that do not divide a layer's inputs.

    Raises:
        ValueError: names the option, and what the model takes.
    """
    model = source.without_weights(num_labels, auto_class)
    longest = models.longest_input(model)
    if longest is not None and max_length > longest:
        raise ValueError(f"--max_length {max_length}: {source.name} takes at most {longest} tokens")
    pruning.check_groups(model.base_model)


def check_trained_head(source: PretrainedSource, auto_class: type) -> None:
    """Raises ValueError where a checkpoint's config says that it is of another class, which lacks the task's head."""
    saved, wanted = source.config().architectures, type(source.without_weights(None, auto_class)).__name__
    if saved and wanted not in saved and auto_class in NEW_HEADS:
        raise ValueError(
            f"--num_train_epochs 0: {source.name} is a {', '.join(saved)}; the head that {wanted} adds must be trained "
            "first"
        )


def check_room_for_text(source: PretrainedSource, max_length: int) -> None:
    """Raises ValueError where `max_length` leaves no room for text beside the special tokens around a pair."""
    special = source.tokenizer().num_special_tokens_to_add(pair=True)
    if max_length < special + 2:
        raise ValueError(
            f"--max_length {max_length}: {source.name} puts {special} tokens around a pair of texts; "
            f"allowed: {special + 2} or more"
        )


def pad_as_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set a decoder's pad_token_id to the tokenizer's: its classification head reads the last token before padding.

    Other models keep the padding token that they have.
    """
    config, kind = model.config.get_text_config(), type(model.config)
    decoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    if config.pad_token_id is None or (decoder and not model.config.is_encoder_decoder):
        if config.pad_token_id != tokenizer.pad_token_id:
            logger.info("rows are padded with %r, for the model too", tokenizer.pad_token)
        config.pad_token_id = tokenizer.pad_token_id


def head_order(config: PretrainedConfig, classes: Sequence[str]) -> list[int] | None:
    """Index of the head's output for each class, by name; None where the model's names are not the data's.

    Raises:
        ValueError: the config's id2label and label2id contradict each other.
    Source: transformers, run_glue.py, which compares lower-case names too.
    """
    output_names = config_names(config)
    if output_names is None or len(output_names) != len(classes):
        return None
    outputs = numbers_by_plain_name(output_names)
    wanted = [outputs.get(plain(name)) for name in classes]
    count = len(output_names)
    return None if len(outputs) != count or None in wanted or len(set(wanted)) != count else wanted


def config_names(config: PretrainedConfig) -> list[str] | None:
    """The names of a model's outputs in its config, in order; None if they are only LABEL_0, LABEL_1 …

    Raises:
        ValueError: id2label and label2id contradict each other.
    """
    count = config.num_labels or 0
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    default = {number: f"LABEL_{number}" for number in range(count)}
    other = {int(number): str(name) for name, number in (config.label2id or {}).items()}
    if default in (names, other) or not other:
        names = names if names != default else other
    elif names != other:
        raise ValueError(
            f"--model_name_or_path {config.name_or_path}: config.json's id2label ({names}) and label2id "
            f"({config.label2id}) contradict each other"
        )
    if not names or names == default or sorted(names) != list(range(count)):
        return None
    return [names[number] for number in range(count)]


def name_head(config: PretrainedConfig, classes: Sequence[str], order: Sequence[int] | None) -> None:
    """Write a task's classes and its kind of loss into a model's config.

    Args:
        classes: names in the data's order; empty for a regression.
        order: what head_order returned.
    """
    config.problem_type = "single_label_classification" if classes else "regression"
    if classes:
        config.label2id = dict(zip(classes, order or range(len(classes)), strict=True))
        config.id2label = dict(sorted((number, name) for name, number in config.label2id.items()))
