"""Models that think before they answer: closes a thinking block that a prompt opens, and finds the answer after one.

Blocks are recognised by the tags in TAGS. A prompt that ends after an unknown tag that looks like an opening one is
refused, since an answer would be scored inside the block.
"""

import re
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase


class Tags(NamedTuple):
    """The tags around a thinking block, and the text that closes an open block without a thought (`empty`)."""

    opening: str
    closing: str
    empty: str


TAGS = (
    Tags("<think>", "</think>", "\n</think>\n\n"),  # Qwen3, DeepSeek-R1, GLM, SmolLM3, Nemotron; as Qwen3 closes it
    Tags("<thinking>", "</thinking>", "\n</thinking>\n\n"),
    Tags("<thought>", "</thought>", "\n</thought>\n\n"),
    Tags("<reasoning>", "</reasoning>", "\n</reasoning>\n\n"),
    Tags("<seed:think>", "</seed:think>", "</seed:think>"),  # Seed-OSS
    Tags("[THINK]", "[/THINK]", "[/THINK]"),  # Magistral, Ministral
    Tags("<|START_THINKING|>", "<|END_THINKING|>", "<|END_THINKING|>"),  # Command A
    Tags("<|inner_prefix|>", "<|inner_suffix|>", "<|inner_suffix|>"),  # Apertus
    Tags("<|begin_of_thought|>", "<|end_of_thought|>", "<|end_of_thought|>"),
    Tags("◁think▷", "◁/think▷", "◁/think▷"),  # Kimi
    Tags("<|channel>", "<channel|>", "<channel|>"),  # Gemma 4
    # gpt-oss: all channels but "final", such as "analysis"
    Tags("<|channel|>", "<|channel|>final<|message|>", "<|channel|>final<|message|>"),
)
HARMONY = TAGS[-1]
HARMONY_ANSWER = "<|start|>assistant"  # end of gpt-oss's prompts; the model then writes the name of a channel
LOOKS_LIKE_THINKING = re.compile(r"[<\[◁][^<>\[\]▷\s]*(?:think|thought|reason)[^<>\[\]▷\s]*[>\]▷]", re.IGNORECASE)
ENDS = re.compile(
    r"/|(?<![a-z])(?:end|no)(?![a-z])", re.IGNORECASE
)  # in a tag: it closes a block, or says that there is none


def open_tags(text: str) -> Tags | None:
    """The tags of the thinking block inside which `text` ends; None if it ends outside."""
    for tags in TAGS:
        at = text.rfind(tags.opening)
        if at >= 0 and tags.closing not in text[at:]:
            return tags
    return None


def closing_of(text: str) -> str:
    """Text to add to a prompt so that an answer, not a thought, follows; empty if the prompt opens no thinking block.

    Raises:
        ValueError: the prompt ends inside a block whose closing tag is not known.
    """
    if tags := open_tags(text):
        line_break = "" if text[-1:].isspace() or not tags.empty.startswith("\n") else "\n"
        return line_break + tags.empty
    if text.endswith(HARMONY_ANSWER):
        return HARMONY.empty
    tags_found = LOOKS_LIKE_THINKING.findall(text)
    if tags_found and not ENDS.search(tags_found[-1]):
        raise ValueError(
            f"ends inside {tags_found[-1]}, whose closing tag is not known; a template may have a switch, "
            """--chat_template_kwargs '{"enable_thinking": false}'"""
        )
    return ""


def after_thinking(text: str, inside: bool = False) -> str | None:
    """The part of a generated text after its thinking blocks; None if the last block is not closed.

    Args:
        inside: whether the prompt ends inside a block.
    """
    ends = [at + len(tags.closing) for tags in TAGS if (at := text.rfind(tags.closing)) >= 0]
    rest = text[max(ends, default=0) :]
    if (inside and not ends) or rest.lstrip().startswith(tuple(tags.opening for tags in TAGS)):
        return None
    return rest


class AnswerDecoder:
    """Decodes generated tokens to the text of the answer, without special tokens and thinking blocks.

    Args:
        ends: tokens that end an answer.
        inside: whether prompts end inside a thinking block.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: set[int], inside: bool = False) -> None:
        self._tokenizer, self._ends, self._inside = tokenizer, ends, inside
        special = set(tokenizer.all_special_tokens)
        self._special = sorted(special, key=len, reverse=True)
        parts = {part for tags in TAGS for part in (tags.opening, tags.closing)} | {"<|message|>"}
        self._hidden = bool(special & parts)  # whether decoding without special tokens would drop the tags

    def answer(self, tokens: list[int]) -> str | None:
        """The answer's text; None while the model is still thinking."""
        kept = [token for token in tokens if token not in self._ends]
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        shown = self._tokenizer.decode(kept, skip_special_tokens=False) if self._hidden else text
        answer = after_thinking(shown, self._inside)
        if answer is None or answer == shown:
            return None if answer is None else text
        for token in self._special:
            answer = answer.replace(token, "")
        return answer
