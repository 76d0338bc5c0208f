"""Whether two tokenizers are the same, and the first thing in which they are not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harness.gguf_models import UNUSED_TOKEN

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
# What tokenizers of one vocabulary differ in: spaces, digits, line ends, case, letters beyond ASCII, marks, code.
PROBES = (
    "Which gas do plants take in?", " a  b   c", "Question:\n\n1. A\tB\r\n", "1234567 3.14", "don't DON'T I'll",
    "naïve café Ωμέγα 日本語 🙂", "e\u0301 \u00a0 \ufeff", "def f(x):\n    return x**2  # ok",
    "<s> </s> <|im_start|>user", "", " ", "…—“quoted”", "aaaaaaaaaaaaaaaa", "HTTP/1.1 https://example.org/?q=1&r=2",
)  # fmt: skip


def difference(own: PreTrainedTokenizerBase, parent: PreTrainedTokenizerBase) -> str:
    """The first difference of a tokenizer from the parent's, "" where there is none."""
    here, there = own.get_vocab(), parent.get_vocab()
    if told := vocabulary_difference(here, there):
        return told
    for text in PROBES:
        ids, wanted = own(text)["input_ids"], parent(text)["input_ids"]
        if ids != wanted:
            return f"{text!r} is {_shown(ids)}, the parent's {_shown(wanted)}"
    return ""


def vocabulary_difference(here: Mapping[str, int], there: Mapping[str, int]) -> str:
    """The token of lowest index that two vocabularies (index by token) do not share, as a text; "" where all are."""
    if here == there:
        return ""
    own, parent = ({index: token for token, index in vocabulary.items()} for vocabulary in (here, there))
    index = min(index for index in own.keys() | parent.keys() if own.get(index) != parent.get(index))
    return f"index {index} is {_token(own, index)}, the parent's {_token(parent, index)}"


def _token(tokens: Mapping[int, str], index: int) -> str:
    return repr(tokens[index]) if index in tokens else "no token"


def _shown(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 8 else f"{ids[:8]} …".replace("] …", ", …]")


def gguf_difference(file: Path, parent: PreTrainedTokenizerBase) -> str:
    """The first difference of a GGUF file's vocabulary and merges from the parent's, "" where there is none.

    transformers does not rebuild all of llama.cpp's tokenizers, so that the file's tables are compared, not what a
    tokenizer makes of them. Tokens that only pad the vocabulary do not count.
    """
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    if "tokenizer.ggml.tokens" not in fields:
        return "the file holds none"
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents() if "tokenizer.ggml.token_type" in fields else []
    used = {token: i for i, token in enumerate(tokens) if i >= len(kinds) or kinds[i] != UNUSED_TOKEN}
    there = parent.get_vocab()
    if told := vocabulary_difference(used, there):
        return told
    if "tokenizer.ggml.merges" not in fields or not parent.is_fast:
        return ""
    merges = fields["tokenizer.ggml.merges"].contents()
    wanted = _merges(json.loads(parent.backend_tokenizer.to_str())["model"])
    for place, (one, other) in enumerate(zip(merges, wanted, strict=False)):
        if one != other:
            return f"merge {place} is {one!r}, the parent's {other!r}"
    return "" if len(merges) == len(wanted) else f"{len(merges)} merges, the parent's {len(wanted)}"


def _merges(model: Mapping[str, Any]) -> list[str]:
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
