"""Random models of known shapes, made where they are computed, and random inputs for them: speed needs no weights.

Nothing is downloaded, and a model on a device never is in host memory.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)
from transformers.initialization import no_init_weights

from GLUE_tasks.pretrained import Pretrained
from llm_tasks.engine.packing import Continuation
from pruning.blocks import move_outside
from pruning.layers import decoder_blocks

SPREAD = 0.02  # standard deviation of weights


class Shape(NamedTuple):
    """Sizes of a Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int


SHAPES = {
    "7B": Shape(4096, 32, 32, 32, 11008, 32000),
    "13B": Shape(5120, 40, 40, 40, 13824, 32000),
    "70B": Shape(8192, 80, 64, 8, 28672, 32000),
    "tiny": Shape(32, 3, 2, 1, 64, 64),
}
# Of an encoder: hidden size, layers, heads, intermediate size, vocabulary.
ENCODERS = {"large": (1024, 24, 16, 4096, 50265), "tiny": (32, 2, 2, 64, 64)}


def llama_config(shape: Shape, longest: int, dtype: torch.dtype) -> LlamaConfig:
    """The config of a Llama of this shape that takes `longest` tokens."""
    return LlamaConfig(
        hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, intermediate_size=shape.intermediate, vocab_size=shape.vocabulary,
        max_position_embeddings=longest, dtype=dtype, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip


def random_llama(
    shape: Shape, longest: int, dtype: torch.dtype, device: torch.device, layout: str = "device"
) -> PreTrainedModel:
    """A Llama with random weights on a device.

    Args:
        layout: "host" leaves the decoder blocks in host memory; their weights are drawn on the device, too.
    """
    with torch.device("cpu" if layout == "host" else device), no_init_weights():
        model = AutoModelForCausalLM.from_config(llama_config(shape, longest, dtype), dtype=dtype)
    draw_weights(model, device)
    if layout == "host":
        move_outside(model, device)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def draw_weights(model: nn.Module, device: torch.device) -> None:
    """Draw every weight anew, in place, by the device's generator; norms get 1 and biases 0."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            there = parameter.device.type == device.type
            drawn = parameter if there else torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            drawn.normal_(0, SPREAD)
            if not there:
                parameter.copy_(drawn)
        else:
            parameter.fill_(0 if name.endswith("bias") else 1)


def without_weights(shape: Shape, longest: int, dtype: torch.dtype) -> PreTrainedModel:
    """The Llama on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(llama_config(shape, longest, dtype), dtype=dtype)


def matrices(model: PreTrainedModel) -> list[Tensor]:
    """The matrices of the decoder blocks."""
    return [weight for weight in decoder_blocks(model)[1].parameters() if weight.dim() == 2]


def random_windows(shape: Shape, count: int, length: int) -> Tensor:
    """Calibration windows, (count, length)."""
    return torch.randint(3, shape.vocabulary, (count, length), generator=torch.Generator().manual_seed(0))


class Questions(NamedTuple):
    """How many questions are asked, and how long they are, in tokens."""

    subjects: int = 57
    each: int = 20
    examples: int = 5
    example_tokens: int = 90
    question_tokens: int = 90

    @property
    def prompt_tokens(self) -> int:
        return self.examples * self.example_tokens + self.question_tokens

    @property
    def prompts(self) -> int:
        return self.subjects * self.each


def questions_like_mmlu(asked: Questions, vocabulary: int) -> list[Continuation]:
    """For each question four letters to score; the examples before it are those of its subject."""
    draw = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(7, vocabulary) for _ in range(count))

    found = []
    for _ in range(asked.subjects):
        examples = tokens(asked.examples * asked.example_tokens)
        for _ in range(asked.each):
            prompt = (*examples, *tokens(asked.question_tokens))
            found += [Continuation((*prompt, letter), len(prompt)) for letter in (3, 4, 5, 6)]
    return found


def random_encoder(name: str, longest: int, device: torch.device) -> Pretrained:
    """An encoder of ENCODERS with a head of two classes, in float32 on a device."""
    hidden, layers, heads, intermediate, vocabulary = ENCODERS[name]
    config = RobertaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=intermediate,
        vocab_size=vocabulary, max_position_embeddings=longest + 2, type_vocab_size=1, pad_token_id=1, num_labels=2,
    )  # fmt: skip
    with torch.device(device), no_init_weights():
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    draw_weights(model, device)
    new = frozenset(name for name, _ in model.named_parameters() if name.startswith("classifier."))
    return Pretrained(model, new)


def random_rows(name: str, count: int, length: int) -> Dataset:
    """Rows to train an encoder of ENCODERS on, all of one length."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, ENCODERS[name][-1], (count, length), generator=draw)
    columns = {"input_ids": ids.tolist(), "attention_mask": [[1] * length] * count}
    return Dataset.from_dict({**columns, "labels": [row % 2 for row in range(count)], "length": [length] * count})


def stack(rows: Sequence[dict[str, list[int] | int]]) -> dict[str, Tensor]:
    """A batch of rows of one length."""
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0] if key != "length"}


def save_for_peer(model: PreTrainedModel, folder: Path) -> None:
    """Write the model with a tokenizer that a peer's loader accepts; no text is ever tokenized."""
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
