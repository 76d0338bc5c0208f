"""The requests of lm-evaluation-harness as tokens, by the rules of its own models of transformers.

They are kept to the token, where our own prompts differ (engine/encoding.py): all white space at the end of a context
is moved to its continuation, a token that spans the boundary is not scored, and what is too long loses its beginning.

Source of all rules: lm-evaluation-harness 0.4.13, api/model.py (TemplateLM), models/huggingface.py (HFLM) and utils.py.
"""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from llm_tasks.engine.encoding import TextEncoder
from llm_tasks.engine.packing import Continuation, Tokens


class RequestEncoder:
    """Makes tokens of requests.

    Args:
        max_length: tokens that the model takes.
        add_bos_token: whether the tokenizer adds its special tokens; None: as it does by itself.
        prefix_token_id: what stands before a text without a context; None: the begin, else the end of text token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
    ) -> None:  # fmt: skip
        self._tokenizer, self._max_length, self._adds = tokenizer, max_length, add_bos_token
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self._prefix = first if prefix_token_id is None else prefix_token_id
        self._prefix_text = None if self._prefix is None else tokenizer.decode(self._prefix)
        self._encoder = TextEncoder(tokenizer)
        bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
        # Special tokens that are only ever added before a text can be added to tokens that texts share.
        self._only_leads = list(whole) == [*self._encoder.leading, *bare]
        self.cut = 0  # requests that lost their beginning

    def tokens_of(self, texts: Iterable[str], adds: bool | None = None) -> dict[str, Tokens]:
        """Tokens of each distinct text.

        Args:
            adds: whether special tokens are added; None: as said for all, and none where the text begins with them.
        """
        with_special, without = [], []
        for text in dict.fromkeys(texts):
            begun = adds is None and self._prefix_text is not None and text.startswith(self._prefix_text)
            chosen = False if begun else (self._adds if adds is None else adds)
            (without if chosen is False else with_special).append(text)
        return {**self._encoded(without, False), **self._encoded(with_special, True)}

    def _encoded(self, texts: list[str], special: bool) -> dict[str, Tokens]:
        if not texts:
            return {}
        if special and not self._only_leads:
            return dict(zip(texts, map(tuple, self._tokenizer(texts, verbose=False)["input_ids"]), strict=True))
        found = self._encoder.encode(texts)
        lead = 0 if special else len(self._encoder.leading)
        return {text: found[text][lead:] for text in texts}

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
        """Tokens of each (context, continuation), of which those after the context's own number are scored.

        Raises:
            ValueError: a continuation without tokens, longer than the model takes, or without anything before it.
        """
        moved = [_moved(*pair) for pair in pairs]
        encoded = self.tokens_of(text for before, after in moved if before for text in (before, before + after))
        bare = self.tokens_of((after for before, after in moved if not before), adds=False)
        found = []
        for (context, given), (before, after) in zip(pairs, moved, strict=True):
            if before:
                first, rest = encoded[before], encoded[before + after][len(encoded[before]) :]
            elif context:
                raise ValueError(f"the context {context!r} of {given!r} is nothing but white space")
            else:
                first, rest = self._without_context(bare[after])
            if not first or not 0 < len(rest) <= self._max_length:
                raise ValueError(
                    f"the continuation {given!r} of a context that ends in {context[-40:]!r} has {len(rest)} tokens; "
                    f"1 to {self._max_length} can be scored after at least one other"
                )
            found.append(self._cut((*first, *rest), len(rest)))
        return found

    def _without_context(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        """What stands before a text without a context, and the tokens to score."""
        if self._prefix is None:
            raise ValueError("the tokenizer has no begin or end of text token to stand before a text without a context")
        return (tokens[:1], tokens[1:]) if tokens[:1] == (self._prefix,) else ((self._prefix,), tokens)

    def _cut(self, tokens: Tokens, scored: int) -> Continuation:
        kept = tokens[-(self._max_length + 1) :]
        self.cut += len(kept) < len(tokens)
        return Continuation(kept, len(kept) - scored)

    def windows(self, texts: Sequence[str]) -> list[list[Continuation]]:
        """The parts of each text, in which every token is scored once; none of a text without tokens.

        The first part stands after the prefix token. Each further one begins with the token before it; the last one
        with as many as the model takes.
        """
        encoded = self.tokens_of(texts)
        return [self._windows(encoded[text]) for text in texts]

    def _windows(self, tokens: Tokens) -> list[Continuation]:
        if not tokens:
            return []
        first = tokens[: self._max_length]
        before, _ = self._without_context(())
        found = [Continuation((*before, *first), 1)]
        done = len(first)
        while done < len(tokens):
            end = min(done + self._max_length, len(tokens))
            part = tokens[end - self._max_length - 1 : end]
            found.append(Continuation(part, len(part) - (end - done)))
            done = end
        return found

    def prompts(self, texts: Sequence[str], max_new_tokens: Sequence[int]) -> list[Tokens]:
        """Tokens of each text, without its beginning where that leaves no room for as many new tokens.

        Raises:
            ValueError: the model does not take so many new tokens, or a text has no tokens.
        """
        begin = self._tokenizer.bos_token
        begun = {text for text in texts if begin is not None and text.startswith(begin)}
        encoded = self.tokens_of(begun, adds=False)
        encoded |= self.tokens_of((text for text in texts if text not in begun), adds=self._adds is not False)
        found = []
        for text, new in zip(texts, max_new_tokens, strict=True):
            room = self._max_length - new
            if room <= 0:
                raise ValueError(f"{new} new tokens are asked for; the model takes {self._max_length} in all")
            if not encoded[text]:
                raise ValueError(f"the prompt {text!r} has no tokens")
            self.cut += len(encoded[text]) > room
            found.append(encoded[text][-room:])
        return found


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """The context without white space at its end, which stands before the continuation then."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
