"""Prompts as tokens: at which token an option begins, and what a prompt loses that is longer than the model takes."""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from llm_tasks.engine.packing import Continuation, Tokens, common_length
from llm_tasks.levels import Level, Prompt

OVERFLOWS = ("drop_shots", "truncate_left", "skip")
SHARED_CHARACTERS = 256  # that texts must share for a beginning to be tokenised apart
UNSURE_CHARACTERS = 32  # before they part, whose tokens may differ
TEXTS_AT_ONCE = 1000


class EncodedLevel(NamedTuple):
    """A level ready to be measured.

    Fields:
        level: its prompts are those that are left.
        continuations: of each prompt, one per option; empty where answers are generated.
        contexts: of each prompt, the tokens after which an answer is generated; empty where options are scored.
        shortened: prompts that lost examples or their start.
        skipped: items that are left out because they are too long at this or another level.
    """

    level: Level
    continuations: list[list[Continuation]]
    contexts: list[Tokens]
    shortened: int
    skipped: int


class _Anchor:
    """A tokenised text; other texts that begin like it reuse the tokens of what they share."""

    def __init__(self, text: str, backend: Tokenizer) -> None:
        self._text, self._backend = text, backend
        encoding = backend.encode(text, add_special_tokens=False)
        self.ids = encoding.ids
        self._starts = [start for start, _ in encoding.offsets]
        self._tokens_before: dict[int, int | None] = {}

    def cut(self, text: str) -> tuple[Tokens, int] | None:
        """Tokens of the longest usable beginning that the text shares, and its length in characters."""
        shared = common_length(self._text, text)
        if shared < SHARED_CHARACTERS:
            return None
        at = self._text.rfind("\n", 0, shared - UNSURE_CHARACTERS) + 1
        if at not in self._tokens_before:
            self._tokens_before[at] = self._count_before(at)
        count = self._tokens_before[at]
        return None if count is None else (tuple(self.ids[:count]), at)

    def _count_before(self, at: int) -> int | None:
        """Number of tokens before a character, if the rest of the text has the same tokens by itself; else None."""
        count = bisect.bisect_left(self._starts, at)
        if at == 0 or count == len(self.ids) or self._starts[count] != at:
            return None
        rest = self._backend.encode(self._text[at - 1 :], add_special_tokens=False)
        return count if _behind_first_character(rest) == self.ids[count:] else None


def _behind_first_character(encoding: Encoding) -> list[int]:
    """All tokens but that of the first character, which may depend on what stood before it."""
    first = next((index for index, (start, _) in enumerate(encoding.offsets) if start > 0), len(encoding.ids))
    return encoding.ids[first:]


def _parts(items: list) -> Iterator[list]:
    """Split into lists of TEXTS_AT_ONCE: the tokenizer's own records are large."""
    return (items[start : start + TEXTS_AT_ONCE] for start in range(0, len(items), TEXTS_AT_ONCE))


class TextEncoder:
    """A tokenizer that puts its special tokens before a text, never after it, whatever its own habit."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = tokenizer("a")["input_ids"]
        starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
        self.leading: Tokens = tuple(whole[: starts[0]]) if starts else ()
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self._first: Tokens = () if first is None else (first,)
        self._ids: dict[int, int] = {}
        self._backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend:  # every call of the tokenizer sets these again
            self._backend.no_truncation()
            self._backend.no_padding()

    def encode(self, texts: Iterable[str]) -> dict[str, Tokens]:
        """Tokens of each distinct text, the leading special ones included.

        Of texts that begin alike, as prompts with the same examples do, the beginning is tokenised once, up to a line's
        end behind which the tokens were found to be the same with and without it.
        """
        distinct = sorted(set(texts))
        anchor: _Anchor | None = None
        whole: list[str] = []
        tails: list[tuple[str, Tokens, int]] = []  # a text, the tokens of its beginning, where the rest begins
        found: dict[str, Tokens] = {}
        for text, following in itertools.zip_longest(distinct, distinct[1:], fillvalue=""):
            cut = anchor.cut(text) if anchor else None
            if cut:
                tails.append((text, *cut))
            elif self._backend and common_length(text, following) >= SHARED_CHARACTERS:
                anchor = _Anchor(text, self._backend)
                found[text] = self._intern(anchor.ids)
            else:
                whole.append(text)
        for part in _parts(whole):
            rows = self._tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
            found |= {text: self._intern(row) for text, row in zip(part, rows, strict=True)}
        for part in _parts(tails):
            rows = self._backend.encode_batch([text[at - 1 :] for text, _, at in part], add_special_tokens=False)
            for (text, beginning, _), row in zip(part, rows, strict=True):
                found[text] = self._intern((*beginning, *_behind_first_character(row)))
        return found

    def _intern(self, ids: Sequence[int]) -> Tokens:
        """The leading tokens and these, as numbers that all texts share: millions of their own take much memory."""
        return (*self.leading, *(self._ids.setdefault(token, token) for token in ids))

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
        """Each (context, option) as one tokenised text, scored from the token on at which it leaves the context's own.

        Spaces at the end of a context count as the option's, line ends as the context's. A token that reaches over the
        boundary is scored whole. An empty context becomes the tokenizer's first token, its begin or end of text.

        Raises:
            ValueError: an option without a token of its own, or with no token before it.
        Source: lm-evaluation-harness, api/model.py _encode_pair, which cuts by the number of the context's tokens and
            so scores too little where one reaches over the boundary.
        """
        bare = [context.rstrip(" ") for context, _ in pairs]
        moved = [(start, context[len(start) :] + option) for start, (context, option) in zip(bare, pairs, strict=True)]
        encoded = self.encode(text for context, option in moved for text in (context, context + option))
        found = []
        for context, option in moved:
            alone, whole = encoded[context], encoded[context + option]
            start = common_length(alone, whole)
            if start == 0:
                if not self._first:
                    raise ValueError(f"{option!r}: nothing stands before it; the tokenizer has no begin or end of text")
                whole, start = self._first + whole, len(self._first)
            if start == len(whole):
                raise ValueError(f"the option {option!r} has no token of its own after {context[-40:]!r}")
            found.append(Continuation(whole, start))
        return found


def prompt_text(prompt: Prompt, num_shots: int | None = None) -> str:
    """What stands before the option or the answer, with the first `num_shots` examples, all if None."""
    return prompt.header + "".join(prompt.shots[:num_shots]) + prompt.question


def encode_levels(
    levels: Sequence[Level], encoder: TextEncoder, max_length: int, max_new_tokens: int, overflow: str
) -> list[EncodedLevel]:
    """The levels as tokens, none longer than the model takes; an item that is too long at one level is left out of all.

    Args:
        max_length: tokens that the model takes.
        max_new_tokens: room that is left for a generated answer.
        overflow: "drop_shots" drops the last examples until the prompt fits, "truncate_left" cuts its beginning, both
            never the question; "skip", and what still does not fit, leaves the item out.
    Raises:
        ValueError: a level of which nothing is left.
    """
    fitted = []
    for level in levels:
        limit = max_length - max_new_tokens if level.reader == "answer" else max_length
        fitted.append(_fit_level(level, encoder, limit, overflow))
    dropped = {
        prompt.item
        for level, (_, found) in zip(levels, fitted, strict=True)
        for prompt, tokens in zip(level.prompts, found, strict=True)
        if tokens is None
    }
    encoded = []
    for level, (shortened, found) in zip(levels, fitted, strict=True):
        kept = [index for index, prompt in enumerate(level.prompts) if prompt.item not in dropped]
        if not kept:
            room = f", {max_new_tokens} of them for the answer (--max_new_tokens)" if level.reader == "answer" else ""
            raise ValueError(
                f"level {level.name!r} of {level.dataset}: none of its {len(level.prompts)} prompts fits into the "
                f"{max_length} tokens that the model takes{room} (--overflow {overflow})"
            )
        prompts = [level.prompts[index] for index in kept]
        tokens = [found[index] for index in kept]
        generates = level.reader == "answer"
        kept_level = level._replace(prompts=prompts)
        cut = sum(index in shortened for index in kept)
        skipped = len(level.prompts) - len(kept)
        encoded.append(EncodedLevel(kept_level, [] if generates else tokens, tokens if generates else [], cut, skipped))
    return encoded


def _fit_level(
    level: Level, encoder: TextEncoder, limit: int, overflow: str
) -> tuple[set[int], list[list[Continuation] | Tokens | None]]:
    """Places of the prompts that were shortened, and the tokens of all; None for one that does not fit."""
    whole = _encode(level.prompts, [prompt_text(prompt) for prompt in level.prompts], encoder)
    shortened: set[int] = set()
    found: list[list[Continuation] | Tokens | None] = []
    for index, (prompt, tokens) in enumerate(zip(level.prompts, whole, strict=True)):
        excess = _length(tokens) - limit
        if excess > 0:
            tokens = _shorten(prompt, tokens, excess, encoder, overflow)
            if tokens is not None:
                shortened.add(index)
        found.append(tokens)
    return shortened, found


def _encode(prompts: Sequence[Prompt], texts: Sequence[str], encoder: TextEncoder) -> list[list[Continuation] | Tokens]:
    if not any(prompt.options for prompt in prompts):
        encoded = encoder.encode(texts)
        return [encoded[text] for text in texts]
    pairs = [(text, option) for prompt, text in zip(prompts, texts, strict=True) for option in prompt.options]
    continuations = iter(encoder.continuations(pairs))
    return [[next(continuations) for _ in prompt.options] for prompt in prompts]


def _length(tokens: list[Continuation] | Tokens) -> int:
    """Tokens that the model is fed: the last one of an option never is."""
    if isinstance(tokens, tuple):
        return len(tokens)
    return max(len(continuation.tokens) for continuation in tokens) - 1


def _shorten(
    prompt: Prompt, tokens: list[Continuation] | Tokens, excess: int, encoder: TextEncoder, overflow: str
) -> list[Continuation] | Tokens | None:
    if overflow == "drop_shots":
        limit = _length(tokens) - excess
        for num_shots in reversed(range(len(prompt.shots))):
            (fewer,) = _encode([prompt], [prompt_text(prompt, num_shots)], encoder)
            if _length(fewer) <= limit:
                return fewer
    elif overflow == "truncate_left":
        lead = len(encoder.leading)
        rows = [tokens] if isinstance(tokens, tuple) else [option.tokens for option in tokens]
        before = prompt_text(prompt._replace(question=""))
        start = encoder.encode([before])[before]
        # Only what is in front of the question whether or not it follows: no token that reaches into it.
        if excess <= min(common_length(start, row) for row in rows) - lead:
            rows = [(*row[:lead], *row[lead + excess :]) for row in rows]
            if isinstance(tokens, tuple):
                return rows[0]
            return [Continuation(row, option.start - excess) for row, option in zip(rows, tokens, strict=True)]
    return None
