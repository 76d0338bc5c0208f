"""The fast paths that the engine takes on a model, and the input lengths at which a model's arithmetic changes."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import PretrainedConfig, PreTrainedModel

ANSWER_WAYS = ("together", "cached", "whole")

Item = TypeVar("Item")


class Ways(NamedTuple):
    """The fast paths that are taken on a model. With all False, each sequence is fed alone.

    Fields:
        shares: keys and values of prefixes that sequences share are computed once.
        packs: several sequences are packed into a row, by a mask and positions for every token.
        pads: sequences of different lengths are batched, padded at their end. Packed rows are padded anyway; with
            `shares` alone, the sequences of a batch have one length.
        keeps: the model computes logits only at given positions (`logits_to_keep`).
        projects: logits are the last hidden states times the output layer's weights, without a further step, so that
            the engine computes them itself, for a part of the vocabulary at a time.
        compiles: names of the layer types that compiled loops compute on a CPU (engine/cpu.py).
        workers: batches are computed in parallel by worker threads of a CPU.
        answers: "together": prompts of any length are answered in one batch; "cached": those of one length, with a KV
            cache; "whole": all tokens are fed again at every step.
    """

    shares: bool = False
    packs: bool = False
    pads: bool = False
    keeps: bool = False
    projects: bool = False
    compiles: tuple[str, ...] = ()
    workers: bool = False
    answers: str = ANSWER_WAYS[-1]

    @property
    def batches(self) -> bool:
        """Whether a batch may have several sequences."""
        return self.shares or self.packs or self.pads

    def described(self) -> dict[str, Any]:
        """The fast paths as a run's results record them."""
        record = {**self._asdict(), "compiles": list(self.compiles)}
        record["lanes"] = record.pop("workers")  # the key that all runs have
        return record


PLAIN = Ways()


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether the model takes the position of every token (`position_ids`)."""
    return "position_ids" in inspect.signature(model.forward).parameters


def takes_kept_logits(model: PreTrainedModel) -> bool:
    """Whether the model can compute logits only at given positions (`logits_to_keep`).

    Not if it is spread over devices: positions would be on the first one, hidden states on the last.
    """
    return not is_spread(model) and "logits_to_keep" in inspect.signature(model.forward).parameters


def is_of_transformers(model: PreTrainedModel) -> bool:
    """Whether the model's code is part of transformers, not of the model's repository."""
    return type(model).__module__.startswith("transformers.")


def is_spread(model: PreTrainedModel) -> bool:
    """Whether a model's layers are on several devices."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


# Decoders whose windows are counted in the row, which the proof of arithmetic 2 did not notice.
WRONG_IN_2 = ("gpt_neo",)
# Decoders whose positions, windows or layers differ from Llama's, which arithmetic 1 did not notice.
WRONG_IN_1 = (
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "data2vec-text", "moshi",
    "xlnet", "nanochat", "llama4_text", "deepseek_v4", "hy_v4", "recurrent_gemma", "reformer", "prophetnet",
)  # fmt: skip


def arithmetic(config: PretrainedConfig, dtype: torch.dtype, precision: str, readers: Sequence[str]) -> int:
    """Version number of the engine's results on a model, part of a run's identity; raised when they change.

    1: the first. 2: single-token scores in float32 when layers are in another dtype, and only fast paths that are
    proven. This changes scores in bf16 and fp16, and all results of models that version 1 computed wrongly. 3: a proof
    that notices windows counted in the row, of models that have them.

    Args:
        dtype: dtype of the weights.
        precision: that of a float32 model's matmuls, "no" or "bf16".
        readers: "letter", "cloze", "generate", "answer", or "perplexity", which does not use the engine.
    """
    if set(readers) == {"perplexity"}:
        return 1
    config = config.get_text_config()
    if config.model_type in WRONG_IN_2:
        return 3
    rounds = dtype != torch.float32 or precision != "no"
    was_wrong = config.model_type in WRONG_IN_1 or lengths_of(config).boundary is not None
    was_wrong = was_wrong or most_keys(config) is not None
    return 2 if was_wrong or (rounds and set(readers) != {"answer"}) else 1


def most_keys(config: PretrainedConfig) -> int | None:
    """The most keys that a token attends to, in a model that selects keys by their scores; None in other models.

    In a packed row there are other, masked keys too, and rounding may change which ones are selected.
    """
    limits = [getattr(config, name, None) for name in ("index_topk", "keep_window_size")]
    return min(filter(None, limits), default=None)


class Lengths(NamedTuple):
    """How a model's arithmetic depends on the length of the longest sequence in a batch.

    Fields:
        boundary: up to this length, all sequences have the same arithmetic; None if it does not depend on length.
        each: whether above it every length has another arithmetic (dynamic NTK), or all have the same (LongRoPE).
    Source: transformers, modeling_rope_utils.py, dynamic_rope_update.
    """

    boundary: int | None = None
    each: bool = False

    def group(self, length: int) -> int:
        """Number of the group of sequences with the same arithmetic; 0 for those up to the boundary."""
        if self.boundary is None or length <= self.boundary:
            return 0
        return length if self.each else 1

    def grouped(self, sequences: Sequence[Item], lengths: Iterable[int]) -> dict[int, list[Item]]:
        """Sequences by group, from short to long; within a group in the order given."""
        groups: dict[int, list[Item]] = {}
        for sequence, length in zip(sequences, lengths, strict=True):
            groups.setdefault(self.group(length), []).append(sequence)
        return dict(sorted(groups.items()))


def lengths_of(config: PretrainedConfig) -> Lengths:
    """How the arithmetic of a model with this (text) config depends on the length of its input."""
    of_layers = [_lengths_of_rope(config, rope) for rope in _rope_parameters(config)]
    boundaries = [lengths.boundary for lengths in of_layers if lengths.boundary is not None]
    if not boundaries:
        return Lengths()
    # If layer types have different boundaries, every length above the first is a group.
    return Lengths(min(boundaries), any(lengths.each for lengths in of_layers) or len(set(boundaries)) > 1)


def _rope_parameters(config: PretrainedConfig) -> list[Mapping[str, Any]]:
    """The parameters of rotary embeddings, for every layer type."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in given.values() if isinstance(value, Mapping)]
    return [given, *nested]


def _lengths_of_rope(config: PretrainedConfig, rope: Mapping[str, Any]) -> Lengths:
    rope_type = str(rope.get("rope_type") or rope.get("type") or "")
    longest = getattr(config, "max_position_embeddings", None)
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    if "dynamic" in rope_type:
        return Lengths(min(filter(None, (longest, original)), default=None), each=True)
    if rope_type in ("longrope", "su"):
        return Lengths(original or longest)
    return Lengths()
