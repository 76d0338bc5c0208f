"""Tiny language models, tokenizers and what they are asked, for the tests of the engine."""

import random

import pytest
import torch
from conftest import decoder_configs, slow_cases
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llm_tasks.engine import packing
from llm_tasks.engine.packing import Continuation

VOCABULARY = 40
ARCHITECTURES = decoder_configs()
# Of each way to know where a token stands one; the others take their time.
QUICK = ("gemma3", "opt", "bloom", "mixtral")
EACH = [*QUICK, *slow_cases(*(name for name in ARCHITECTURES if name not in QUICK))]


def make_model(name: str, attention: str | None = None) -> PreTrainedModel:
    """Random weights large enough for attention to matter: a wrong mask or position moves every log-likelihood."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name], attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


def continuations(subjects: int = 2, questions: int = 6, prefix: int = 12) -> list[Continuation]:
    """Subjects with examples in common, questions below them, options of one token or several, some alike at first."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(count)]

    found = []
    for _ in range(subjects):
        examples = tokens(prefix)
        for number in range(questions):
            question = examples[: draw.choice([4, prefix])] + tokens(draw.randrange(2, 9))
            same = tokens(number % 3)
            options = [tokens(1) if number % 2 else same + tokens(draw.randrange(1, 6)) for _ in range(4)]
            found += [Continuation((*question, *option), len(question)) for option in options]
    return [*found, found[0]]


def one_at_a_time(model: PreTrainedModel, asked: list[Continuation]) -> tuple[list[float], list[int]]:
    """The twin: each continuation whole, by itself, without a cache."""
    totals, firsts = [], []
    for tokens, start in asked:
        with torch.no_grad():
            scores = model(torch.tensor([tokens[:-1]]), use_cache=False).logits[0].log_softmax(dim=-1)
        totals.append(sum(scores[at - 1, tokens[at]].item() for at in range(start, len(tokens))))
        firsts.append(scores[start - 1].argmax().item())
    return totals, firsts


def share_little(monkeypatch: pytest.MonkeyPatch, gain: int = 1) -> None:
    """Make prefixes and rows of so few tokens that tiny models get several of them."""
    monkeypatch.setattr(packing, "PREFIX_GAIN", gain)
    monkeypatch.setattr(packing, "PREFIX_TOKENS", 8)
    monkeypatch.setattr(packing, "ROW_TOKENS", (24,))


SPECIAL = ["<unk>", "<s>", "</s>"]
LETTERS = "ABCDabcdqrst:.\n"
BEFORE, AROUND, NOTHING = "<s> $A", "<s> $A </s>", "$A"


def bpe(
    merges: list[tuple[str, str]], pre_tokenizer: object = None, template: str = NOTHING, blank: str = " ",
    **tokens: str,
) -> PreTrainedTokenizerFast:  # fmt: skip
    """A tokenizer of single characters and the merges given, without a padding token."""
    pieces = [*SPECIAL, blank, *LETTERS, "Ċ", *dict.fromkeys(first + second for first, second in merges)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Fuse()
    names = [(name, vocabulary[name]) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=names)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **tokens)


def byte_level(template: str = NOTHING, **tokens: str) -> PreTrainedTokenizerFast:
    """Like GPT-2's: a word has the blank before it."""
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return bpe([("Ġ", "A"), ("Ġ", "B"), ("a", "b")], pre_tokenizer, template, "Ġ", **tokens)
