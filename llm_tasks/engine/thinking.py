"""Models that think before they answer: where a prompt ends inside a thinking block, and what follows one.

A block is known by the tags around it. Known are the pairs of TAGS; a tag that only looks like one is refused where an
answer would be scored inside it.
"""

import re
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase


class Tags(NamedTuple):
    """What opens a thinking block and what ends it, and the text that closes an open one without a thought."""

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
    # gpt-oss: what is written to another channel than the last, such as analysis
    Tags("<|channel|>", "<|channel|>final<|message|>", "<|channel|>final<|message|>"),
)
HARMONY = TAGS[-1]
HARMONY_ANSWER = "<|start|>assistant"  # a channel is named before anything is written
LOOKS_LIKE_THINKING = re.compile(r"[<\[◁][^<>\[\]▷\s]*(?:think|thought|reason)[^<>\[\]▷\s]*[>\]▷]", re.IGNORECASE)
ENDS = re.compile(r"/|(?<![a-z])(?:end|no)(?![a-z])", re.IGNORECASE)  # of a block, or without one


def open_tags(text: str) -> Tags | None:
    """The tags of the block inside which `text` ends, None outside of any."""
    for tags in TAGS:
        at = text.rfind(tags.opening)
        if at >= 0 and tags.closing not in text[at:]:
            return tags
    return None


def closing_of(text: str) -> str:
    """What must follow a prompt's end for an answer, not a thought, to come next; nothing where it may come at once.

    Raises:
        ValueError: the text ends inside a block whose tags are not known.
    """
    if tags := open_tags(text):
        line_break = "" if text[-1:].isspace() or not tags.empty.startswith("\n") else "\n"
        return line_break + tags.empty
    if text.endswith(HARMONY_ANSWER):
        return HARMONY.empty
    found = LOOKS_LIKE_THINKING.findall(text)
    if found and not ENDS.search(found[-1]):
        raise ValueError(
            f"ends inside {found[-1]}, and what closes it is not known; a template may have a switch, "
            """--chat_template_kwargs '{"enable_thinking": false}'"""
        )
    return ""


def after_thinking(text: str, inside: bool = False) -> str | None:
    """The part of what a model wrote that is its answer; None where it never came to it.

    Args:
        inside: whether the prompt ended inside a block.
    """
    ends = [at + len(tags.closing) for tags in TAGS if (at := text.rfind(tags.closing)) >= 0]
    rest = text[max(ends, default=0) :]
    if (inside and not ends) or rest.lstrip().startswith(tuple(tags.opening for tags in TAGS)):
        return None
    return rest


class Writer:
    """Reads what one model writes: texts of tokens without its special ones, and of the answer alone.

    Args:
        tokenizer: the model's.
        ends: tokens that end an answer.
        inside: whether prompts end inside a thinking block.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: set[int], inside: bool = False) -> None:
        self._tokenizer, self._ends, self._inside = tokenizer, ends, inside
        special = set(tokenizer.all_special_tokens)
        self._special = sorted(special, key=len, reverse=True)
        parts = {part for tags in TAGS for part in (tags.opening, tags.closing)} | {"<|message|>"}
        self._hidden = bool(special & parts)  # tags that disappear with the other special tokens

    def answer(self, tokens: list[int]) -> str | None:
        """What is judged of these tokens; None while the model still thinks."""
        kept = [token for token in tokens if token not in self._ends]
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        shown = self._tokenizer.decode(kept, skip_special_tokens=False) if self._hidden else text
        answer = after_thinking(shown, self._inside)
        if answer is None or answer == shown:
            return None if answer is None else text
        for token in self._special:
            answer = answer.replace(token, "")
        return answer
