"""Which fast paths an engine takes on a model, and the lengths at which a model changes its arithmetic."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import PretrainedConfig, PreTrainedModel

ANSWER_WAYS = ("together", "cached", "whole")

Item = TypeVar("Item")


class Ways(NamedTuple):
    """The fast paths that are taken on a model. All False is the plain way: each sequence is fed by itself.

    Fields:
        shares: the keys and values of a beginning that sequences have in common are computed once.
        packs: sequences stand side by side in a row, every token with a position and a mask of its own.
        pads: sequences of different lengths stand in one batch, padded at their end. Where they are packed, rows are
            padded anyway; where they only share, those of one length stand in a batch.
        keeps: the model computes the logits of the wanted positions alone (`logits_to_keep`).
        projects: logits are the last hidden states times the output layer's weights and nothing else, so that they are
            computed here, a part of the vocabulary at a time.
        compiles: names of the kinds of layers that a CPU computes by compiled loops (engine/cpu.py).
        lanes: batches are computed side by side in threads of a CPU.
        answers: prompts of any length are answered "together"; those of one length with a cache ("cached"), or fed
            whole again for every token ("whole").
    """

    shares: bool = False
    packs: bool = False
    pads: bool = False
    keeps: bool = False
    projects: bool = False
    compiles: tuple[str, ...] = ()
    lanes: bool = False
    answers: str = ANSWER_WAYS[-1]

    @property
    def batches(self) -> bool:
        """Whether several sequences may stand in one batch; in the plain way each is fed by itself."""
        return self.shares or self.packs or self.pads

    def described(self) -> dict[str, Any]:
        """As results hold it."""
        return {**self._asdict(), "compiles": list(self.compiles)}


PLAIN = Ways()


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether the model can be told the position of every token."""
    return "position_ids" in inspect.signature(model.forward).parameters


def takes_kept_logits(model: PreTrainedModel) -> bool:
    """Whether the model computes the logits of given positions alone (`logits_to_keep`).

    Not where it is spread over devices: the positions would be on the first one, the hidden states on the last.
    """
    return not is_spread(model) and "logits_to_keep" in inspect.signature(model.forward).parameters


def is_of_transformers(model: PreTrainedModel) -> bool:
    """Whether the model's code is that of transformers, and not what its repository brings."""
    return type(model).__module__.startswith("transformers.")


def is_spread(model: PreTrainedModel) -> bool:
    """Whether a model's layers are on several devices."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


# Decoders whose positions, windows or layers arithmetic 1 took for Llama's.
WRONG_IN_1 = (
    "gpt_neo", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "data2vec-text",
    "moshi", "xlnet", "nanochat", "llama4_text", "deepseek_v4", "hy_v4", "recurrent_gemma", "reformer", "prophetnet",
)  # fmt: skip


def arithmetic(config: PretrainedConfig, dtype: torch.dtype, precision: str, readers: Sequence[str]) -> int:
    """Number of the arithmetic by which the engine computes a model; raised where a change gives other numbers.

    1: the first. 2: logits of single positions in float32 where layers are in another dtype, and fast paths only where
    they are proven: that moves scores in bf16 and fp16, and all that is measured on models that 1 computed wrongly.

    Args:
        dtype: of the weights.
        precision: of a float32 model's matmuls, "no" or "bf16".
        readers: "letter", "cloze", "generate", "answer" or "perplexity", which the engine has no part in.
    """
    if set(readers) == {"perplexity"}:
        return 1
    config = config.get_text_config()
    rounds = dtype != torch.float32 or precision != "no"
    was_wrong = config.model_type in WRONG_IN_1 or lengths_of(config).boundary is not None
    was_wrong = was_wrong or most_keys(config) is not None
    return 2 if was_wrong or (rounds and set(readers) != {"answer"}) else 1


def most_keys(config: PretrainedConfig) -> int | None:
    """The most keys that a token attends to, where a model selects keys by their scores; None where it selects none.

    In a packed row there are other keys, masked ones too, and rounding decides which are selected.
    """
    limits = [getattr(config, name, None) for name in ("index_topk", "keep_window_size")]
    return min(filter(None, limits), default=None)


class Lengths(NamedTuple):
    """Where a model's arithmetic depends on how long the longest sequence of a batch is.

    Fields:
        boundary: sequences of up to so many tokens are computed alike; None where length changes nothing.
        each: above it, every length is computed in its own way (dynamic NTK), not all in the same (LongRoPE).
    Source: transformers, modeling_rope_utils.py, dynamic_rope_update.
    """

    boundary: int | None = None
    each: bool = False

    def kind(self, length: int) -> int:
        """Sequences of one kind are computed alike; 0 is that of short ones."""
        if self.boundary is None or length <= self.boundary:
            return 0
        return length if self.each else 1

    def grouped(self, sequences: Sequence[Item], lengths: Iterable[int]) -> dict[int, list[Item]]:
        """Sequences of these lengths by their kind, short ones first; those of a kind in the order given."""
        found: dict[int, list[Item]] = {}
        for sequence, length in zip(sequences, lengths, strict=True):
            found.setdefault(self.kind(length), []).append(sequence)
        return dict(sorted(found.items()))


def lengths_of(config: PretrainedConfig) -> Lengths:
    """Where the arithmetic of a model with this (text) config changes with the length of its input."""
    found = [_boundary(config, rope) for rope in _rope_parameters(config)]
    boundaries = [one.boundary for one in found if one.boundary is not None]
    if not boundaries:
        return Lengths()
    # Several kinds of layers with boundaries of their own: above the first, every length is kept apart.
    return Lengths(min(boundaries), any(one.each for one in found) or len(set(boundaries)) > 1)


def _rope_parameters(config: PretrainedConfig) -> list[Mapping[str, Any]]:
    """The parameters of rotary embeddings, of every kind of layer."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in given.values() if isinstance(value, Mapping)]
    return [given, *nested]


def _boundary(config: PretrainedConfig, rope: Mapping[str, Any]) -> Lengths:
    kind = str(rope.get("rope_type") or rope.get("type") or "")
    longest = getattr(config, "max_position_embeddings", None)
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    if "dynamic" in kind:
        return Lengths(min(filter(None, (longest, original)), default=None), each=True)
    if kind in ("longrope", "su"):
        return Lengths(original or longest)
    return Lengths()
