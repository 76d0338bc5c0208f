"""Prompts as tokens: at which token an option begins, and how prompts are shortened that are too long for the model."""

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from llm_tasks.engine.packing import Continuation, Tokens, common_length
from llm_tasks.levels import Level, Outcome, Prompt, Responses

OVERFLOWS = ("drop_shots", "truncate_left", "skip")
SHARED_CHARACTERS = 256  # shorter shared beginnings of texts are not tokenised separately
UNSURE_CHARACTERS = 32  # at the end of a shared beginning, whose tokens may depend on what follows
TEXTS_AT_ONCE = 1000


class Stop(NamedTuple):
    """Where a generated answer ends: before the first of these texts, and after so many tokens at the latest."""

    texts: tuple[str, ...]
    max_new_tokens: int


class EncodedLevel(NamedTuple):
    """A level ready to be measured.

    Fields:
        level: the level without the prompts that are left out.
        continuations: per prompt, one for each option; empty if answers are generated.
        contexts: tokens of each prompt; empty if options are scored.
        shortened: number of prompts that lost examples or their start.
        skipped: number of items left out because they are too long at this or another level.
        stops: where the answer to each of `contexts` ends; empty where the reading says it for all.
        judge: makes the level's outcome of what the model said; None where the level's reader says how.
    """

    level: Level
    continuations: list[list[Continuation]]
    contexts: list[Tokens]
    shortened: int
    skipped: int
    stops: Sequence[Stop] = ()
    judge: Callable[[Responses], Outcome] | None = None


class _Anchor:
    """A tokenised text, whose tokens are reused for other texts with the same beginning."""

    def __init__(self, text: str, backend: Tokenizer) -> None:
        self._text, self._backend = text, backend
        encoding = backend.encode(text, add_special_tokens=False)
        self.ids = encoding.ids
        self._starts = [start for start, _ in encoding.offsets]
        self._tokens_before: dict[int, int | None] = {}

    def cut(self, text: str) -> tuple[Tokens, int] | None:
        """Tokens of the longest beginning shared with `text` that can be reused, and its length in characters."""
        shared = common_length(self._text, text)
        if shared < SHARED_CHARACTERS:
            return None
        at = self._text.rfind("\n", 0, shared - UNSURE_CHARACTERS) + 1
        if at not in self._tokens_before:
            self._tokens_before[at] = self._count_before(at)
        count = self._tokens_before[at]
        return None if count is None else (tuple(self.ids[:count]), at)

    def _count_before(self, at: int) -> int | None:
        """Number of tokens before a character, or None if the text from there has other tokens when tokenised alone."""
        count = bisect.bisect_left(self._starts, at)
        if at == 0 or count == len(self.ids) or self._starts[count] != at:
            return None
        rest = self._backend.encode(self._text[at - 1 :], add_special_tokens=False)
        return count if _after_first_character(rest) == self.ids[count:] else None


def _after_first_character(encoding: Encoding) -> list[int]:
    """Token ids without that of the first character, which may depend on the text before it."""
    first = next((index for index, (start, _) in enumerate(encoding.offsets) if start > 0), len(encoding.ids))
    return encoding.ids[first:]


def _parts(items: list) -> Iterator[list]:
    """Split into lists of TEXTS_AT_ONCE: the tokenizer's output takes much memory."""
    return (items[start : start + TEXTS_AT_ONCE] for start in range(0, len(items), TEXTS_AT_ONCE))


class TextEncoder:
    """Tokenizes texts with the tokenizer's special tokens before a text, but not those after it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        without = tokenizer("a", add_special_tokens=False)["input_ids"]
        with_special = tokenizer("a")["input_ids"]
        starts = [at for at in range(len(with_special)) if with_special[at : at + len(without)] == without]
        self.leading: Tokens = tuple(with_special[: starts[0]]) if starts else ()
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self._first: Tokens = () if first is None else (first,)
        self._ids: dict[int, int] = {}
        self._backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend:  # calls of the tokenizer set these again
            self._backend.no_truncation()
            self._backend.no_padding()

    def encode(self, texts: Iterable[str]) -> dict[str, Tokens]:
        """Tokens of each distinct text, the leading special tokens included.

        A beginning that texts share, such as the few-shot examples of prompts, is tokenised once, up to a line break
        after which the tokens are the same with and without the beginning.
        """
        distinct = sorted(set(texts))
        anchor: _Anchor | None = None
        whole: list[str] = []
        tails: list[tuple[str, Tokens, int]] = []  # a text, the tokens of its beginning, where the rest begins
        encoded: dict[str, Tokens] = {}
        for text, following in itertools.zip_longest(distinct, distinct[1:], fillvalue=""):
            cut = anchor.cut(text) if anchor else None
            if cut:
                tails.append((text, *cut))
            elif self._backend and common_length(text, following) >= SHARED_CHARACTERS:
                anchor = _Anchor(text, self._backend)
                encoded[text] = self._intern(anchor.ids)
            else:
                whole.append(text)
        for part in _parts(whole):
            rows = self._tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
            encoded |= {text: self._intern(row) for text, row in zip(part, rows, strict=True)}
        for part in _parts(tails):
            rows = self._backend.encode_batch([text[at - 1 :] for text, _, at in part], add_special_tokens=False)
            for (text, beginning, _), row in zip(part, rows, strict=True):
                encoded[text] = self._intern((*beginning, *_after_first_character(row)))
        return encoded

    def _intern(self, ids: Sequence[int]) -> Tokens:
        """The leading tokens and these, with one int object per token id: millions of them would take much memory."""
        return (*self.leading, *(self._ids.setdefault(token, token) for token in ids))

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
        """Tokens of each (context, option) as one text, scored from the first token that the context alone lacks.

        Spaces at the end of a context count as part of the option, line breaks as part of the context. A token that
        spans the boundary is scored. An empty context becomes the tokenizer's begin or end of text token.

        Raises:
            ValueError: an option that adds no token to its context, or an empty context without such a token.
        Source: lm-evaluation-harness, api/model.py _encode_pair, which cuts by the number of the context's tokens, and
            so does not score a token that spans the boundary.
        """
        contexts = [context.rstrip(" ") for context, _ in pairs]
        moved = [(kept, context[len(kept) :] + option) for kept, (context, option) in zip(contexts, pairs, strict=True)]
        encoded = self.encode(text for context, option in moved for text in (context, context + option))
        continuations = []
        for context, option in moved:
            tokens = encoded[context + option]
            start = common_length(encoded[context], tokens)
            if start == 0:
                if not self._first:
                    raise ValueError(f"{option!r} has no context, and the tokenizer has no begin or end of text token")
                tokens, start = self._first + tokens, len(self._first)
            if start == len(tokens):
                raise ValueError(f"the option {option!r} adds no token to its context, {context[-40:]!r}")
            continuations.append(Continuation(tokens, start))
        return continuations


def prompt_text(prompt: Prompt, num_shots: int | None = None) -> str:
    """Text of a prompt, with its first `num_shots` few-shot examples, all if None."""
    return prompt.header + "".join(prompt.shots[:num_shots]) + prompt.question


def encode_levels(
    levels: Sequence[Level], encoder: TextEncoder, max_length: int, max_new_tokens: int, overflow: str
) -> list[EncodedLevel]:
    """Tokenize levels; prompts that are too long are shortened, or their items left out of all levels.

    Args:
        max_length: longest input of the model, in tokens.
        max_new_tokens: tokens of it reserved for a generated answer.
        overflow: "drop_shots" drops the last few-shot examples until the prompt fits, "truncate_left" cuts the prompt's
            beginning; neither cuts the question. With "skip", or if that is not enough, the item is left out.
    Raises:
        ValueError: no prompt of a level is left.
    """
    fitted = []
    for level in levels:
        limit = max_length - max_new_tokens if level.reader == "answer" else max_length
        fitted.append(_fit_level(level, encoder, limit, overflow))
    dropped = {
        prompt.item
        for level, (_, fitting) in zip(levels, fitted, strict=True)
        for prompt, tokens in zip(level.prompts, fitting, strict=True)
        if tokens is None
    }
    encoded = []
    for level, (shortened, fitting) in zip(levels, fitted, strict=True):
        kept = [index for index, prompt in enumerate(level.prompts) if prompt.item not in dropped]
        if not kept:
            reserved = f", {max_new_tokens} of them for the answer (--max_new_tokens)" * (level.reader == "answer")
            raise ValueError(
                f"level {level.name!r} of {level.dataset}: none of its {len(level.prompts)} prompts fits into the "
                f"{max_length} tokens that the model takes{reserved} (--overflow {overflow})"
            )
        prompts = [level.prompts[index] for index in kept]
        tokens = [fitting[index] for index in kept]
        generates = level.reader == "answer"
        kept_level = level._replace(prompts=prompts)
        cut = sum(index in shortened for index in kept)
        skipped = len(level.prompts) - len(kept)
        encoded.append(EncodedLevel(kept_level, [] if generates else tokens, tokens if generates else [], cut, skipped))
    return encoded


def _fit_level(
    level: Level, encoder: TextEncoder, limit: int, overflow: str
) -> tuple[set[int], list[list[Continuation] | Tokens | None]]:
    """Indices of the prompts that were shortened, and the tokens of all; None for one that does not fit."""
    whole = _encode(level.prompts, [prompt_text(prompt) for prompt in level.prompts], encoder)
    shortened: set[int] = set()
    fitting: list[list[Continuation] | Tokens | None] = []
    for index, (prompt, tokens) in enumerate(zip(level.prompts, whole, strict=True)):
        excess = _length(tokens) - limit
        if excess > 0:
            tokens = _shorten(prompt, tokens, excess, encoder, overflow)
            if tokens is not None:
                shortened.add(index)
        fitting.append(tokens)
    return shortened, fitting


def _encode(prompts: Sequence[Prompt], texts: Sequence[str], encoder: TextEncoder) -> list[list[Continuation] | Tokens]:
    if not any(prompt.options for prompt in prompts):
        encoded = encoder.encode(texts)
        return [encoded[text] for text in texts]
    pairs = [(text, option) for prompt, text in zip(prompts, texts, strict=True) for option in prompt.options]
    continuations = iter(encoder.continuations(pairs))
    return [[next(continuations) for _ in prompt.options] for prompt in prompts]


def _length(tokens: list[Continuation] | Tokens) -> int:
    """Number of tokens in the model's input, which lacks the last token of an option."""
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
        # Cuts only tokens that are the same without the question: none that spans its beginning.
        if excess <= min(common_length(start, row) for row in rows) - lead:
            rows = [(*row[:lead], *row[lead + excess :]) for row in rows]
            if isinstance(tokens, tuple):
                return rows[0]
            return [Continuation(row, option.start - excess) for row, option in zip(rows, tokens, strict=True)]
    return None
