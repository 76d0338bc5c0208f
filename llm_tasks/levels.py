"""What is asked of a model: an item of a data set as a prompt, and the prompts of one level of difficulty."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from harness.choices import LETTERS

Item = TypeVar("Item")

READERS = ("letter", "generate", "cloze", "answer")


class Prompt(NamedTuple):
    """One item as it is put to the model: header + shots + question, then an option or a generated answer.

    Fields:
        item: identity of the item, the same at every level and in every run (item_id).
        group: items that share examples or a document, such as an MMLU subject; uncertainty is computed over groups.
        question: ends where the answer begins, without a blank: "...\\nAnswer:". Never cut.
        header: what stands before the examples, or a document; may lose its start where the prompt is too long.
        shots: worked examples, each with its blank lines; the last ones may be dropped where the prompt is too long.
        options: continuations with the blank before them, (" A", " B") or (" Paris", " Rome"); none for an answer.
        gold: which option is right.
        answers: texts of which each is right, for a generated answer.
    """

    item: str
    group: str
    question: str
    header: str = ""
    shots: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    gold: int | None = None
    answers: tuple[str, ...] = ()


class Level(NamedTuple):
    """The prompts of one level of difficulty.

    Fields:
        name: as figures show it: "4 options", "60 %", "5 shots", "PIQA".
        difficulty: larger is harder; None where it follows from the dense model's score and `human`.
        dataset: where the items are from.
        reader: one of READERS: the option's letter by log-likelihood, the letter as the token that the model generates,
            the option's text by log-likelihood, or a generated answer.
        prompts: one per item.
        human: score of people, a fraction, where it defines the difficulty.
        facts: what construction left out or found, by name, such as {"options_refer_to_others": 649}.
    """

    name: str
    difficulty: float | None
    dataset: str
    reader: str
    prompts: list[Prompt]
    human: float | None = None
    facts: dict[str, float] = {}  # noqa: RUF012  a NamedTuple's default is never changed


def item_id(*content: str) -> str:
    """Identity of an item from its content: 16 hexadecimal digits, whatever file or position it is read from."""
    return hashlib.sha256("\x1f".join(content).encode()).hexdigest()[:16]


def distinct(items: Iterable[str]) -> list[str]:
    """The identities; one that was there before gets a number: "4f…", "4f…-2"."""
    seen: Counter[str] = Counter()
    found = []
    for item in items:
        seen[item] += 1
        found.append(item if seen[item] == 1 else f"{item}-{seen[item]}")
    return found


def lettered(question: str, choices: Sequence[str]) -> str:
    """Question, a line for each option, "Answer:".

    Source: lm-evaluation-harness, commonsense_qa/default.yaml.
    """
    lines = [f"{letter}. {choice.strip()}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([f"Question: {question.strip()}", *lines, "Answer:"])


def continued(context: str, choices: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The context without the blanks at its end, and the choices behind these blanks and one more.

    Source: lm-evaluation-harness: target_delimiter, and api/model.py, _encode_pair.
    """
    bare = context.rstrip()
    return bare, tuple(f"{context[len(bare) :]} {choice}" for choice in choices)


def sample(items: Sequence[Item], count: int | None, key: Callable[[Item], str]) -> list[Item]:
    """The `count` items of smallest sha256 of their key, in their own order; all if count is None.

    It is the same subset for every seed and every order of the file, and a part of every larger one.
    """
    if count is None or count >= len(items):
        return list(items)
    chosen = sorted(range(len(items)), key=lambda place: digest(key(items[place])))[:count]
    return [items[place] for place in sorted(chosen)]


def digest(key: str) -> bytes:
    """What orders the items of a sample."""
    return hashlib.sha256(key.encode()).digest()
