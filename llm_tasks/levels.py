"""What a prompt, a level of difficulty and a setting are, and what data sets need to make prompts of their rows.

An item's identity follows from its content, so that the same item is paired in every run; a sample of a data set is the
same for every seed and every order of the file.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from harness.choices import LETTERS

Item = TypeVar("Item")

BY_DENSE = "harder_by_dense"  # the fact of a level whose difficulty is 1 - the dense model's score
# Options that settings obey whose prompts have options to choose from, or whose answers are generated.
CHOICE_OPTIONS = ("answer_mode", "length_normalized")
ANSWER_OPTIONS = ("answer_metric", "max_new_tokens", "min_new_tokens")


class Prompt(NamedTuple):
    """One item as it is put to the model: header + shots + question, then an option or a generated answer.

    Fields:
        item: identity of the item, the same at every level and in every run (item_id).
        group: items that share examples or a document, such as an MMLU subject, or are the same row again: uncertainty
            is computed over groups.
        question: ends where the answer begins, without a space: "...\\nAnswer:". Never cut.
        header: what stands before the examples, or a document; may lose its start where the prompt is too long.
        shots: few-shot examples, each with the empty line behind it; a prompt that is too long may lose the last ones.
        options: continuations with the space before them, (" A", " B") or (" Paris", " Rome"); none for an answer.
        gold: which option is right.
        answers: texts of which each is right, for a generated answer.
        choices: what the options mean where they are letters: the listed texts.
    """

    item: str
    group: str
    question: str
    header: str = ""
    shots: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    gold: int | None = None
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


class Level(NamedTuple):
    """The prompts of one level of difficulty.

    Fields:
        name: as figures show it: "4 options", "60 %", "5 shots", "PIQA".
        difficulty: larger is harder; None where it follows from the dense model's score and `human`.
        dataset: where the items are from.
        reader: "letter", the option's letter by log-likelihood; "generate", the letter as the token that the model
            generates; "cloze", the option's text by log-likelihood; "answer", a generated answer; or "lm_eval", as a
            task of lm-evaluation-harness says.
        prompts: one per item.
        human: score of people, a fraction, where it defines the difficulty; None where it is not known.
        facts: counts of what was left out and other facts of its items, such as {"options_refer_to_others": 649}.
        encode: of reader "lm_eval", makes the level's EncodedLevel (engine/encoding.py) of the tokenizer and the number
            of tokens that the model takes; its prompts are then only shown.
    """

    name: str
    difficulty: float | None
    dataset: str
    reader: str
    prompts: list[Prompt]
    human: float | None = None
    facts: dict[str, float] = {}  # noqa: RUF012  a NamedTuple's default is never changed
    encode: Callable[..., Any] | None = None


class Responses(NamedTuple):
    """What the model said at one level.

    Fields:
        log_likelihood: of each continuation, (continuations,), in nats.
        greedy: whether each continuation is what the model would choose, (continuations,) bool.
        texts: the answer to each context, up to its stop.
    """

    log_likelihood: np.ndarray
    greedy: np.ndarray
    texts: Sequence[str]


class Outcome(NamedTuple):
    """What one level came to.

    Fields:
        metrics: the value of each metric per item.
        columns: whatever else tells items apart.
        metric: which metric is the level's score; None where the reading says it.
        chance: score of guessing; None where the reader says it.
        totals: metrics that are of all items together, by name.
    """

    metrics: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]
    metric: str | None = None
    chance: float | None = None
    totals: dict[str, float] = {}  # noqa: RUF012  a NamedTuple's default is never changed


def option(default: Any = None, **declaration: Any) -> Any:
    """A field of a setting's `values` that is the option of its name.

    Args:
        default: of the option.
        declaration: what argparse's add_argument takes besides.
    """
    return dataclasses.field(
        default_factory=lambda: default, metadata={"declaration": {"default": default, **declaration}}
    )


class Setting(NamedTuple):
    """Where a setting's items come from and what makes them harder.

    Fields:
        name: 2 … 6, "own_task" or "perplexity"; {setting} in --output_dir.
        task: its name in results.
        title: heads its options in --help.
        values: frozen dataclass of the options that the functions below read; it declares some of them (see `option`),
            which may be other settings' too.
        content: hashes or commits of what `load` reads, from the values, and a number raised where results changed;
            ValueError where a file is lacking.
        readers: how answers are read off the model, from the values: readers of Level, or "perplexity".
        load: reads and checks its data, from the values; ValueError where they are not usable.
        build: its levels from easy to hard, from data, values, seed and tokenizer.
        answer_mode: how its options to choose from are read without --answer_mode; None where it has no such prompts.
        writes: whether some of its answers are generated.
        seeded: whether the seed changes its levels.
        unrecorded: options that are not in a run's identity: a hash of what they name is, by `content`.
        check: refuses, before anything is read, options that do not go together: takes all options by name, and those
            that the command line holds; raises ValueError.
    """

    name: int | str
    task: str
    title: str
    values: type
    content: Callable[[Any], dict[str, Any]]
    readers: Callable[[Any], tuple[str, ...]]
    load: Callable[[Any], Any]
    build: Callable[[Any, Any, int, PreTrainedTokenizerBase], list[Level]]
    answer_mode: str | None = None
    writes: bool = False
    seeded: bool = False
    unrecorded: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Any], Mapping[str, Any]], None] | None = None

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """The options that it declares, by name: arguments of argparse's add_argument."""
        declared = [field for field in dataclasses.fields(self.values) if field.metadata]
        return {field.name: dict(field.metadata["declaration"]) for field in declared}

    @property
    def obeys(self) -> tuple[str, ...]:
        """Names of the options that change what it computes, besides those that all settings obey."""
        return (*self.options, *(CHOICE_OPTIONS if self.answer_mode else ()), *(ANSWER_OPTIONS if self.writes else ()))


def item_id(*content: str) -> str:
    """Identity of an item from its content: 16 hexadecimal digits, whatever file or position it is read from."""
    return hashlib.sha256("\x1f".join(content).encode()).hexdigest()[:16]


def distinct(items: Iterable[str]) -> list[str]:
    """The identities, each once: the second "4f…" becomes "4f…-2"."""
    seen: Counter[str] = Counter()
    found = []
    for item in items:
        seen[item] += 1
        found.append(item if seen[item] == 1 else f"{item}-{seen[item]}")
    return found


def repeated_items(contents: Iterable[Hashable]) -> dict[str, float]:
    """The fact of a level that so many of its items are there again, by the content of each; empty where none is."""
    contents = list(contents)
    count = len(contents) - len(set(contents))
    return {"repeated_items": count} if count else {}


def letter_options(count: int) -> tuple[str, ...]:
    """The letters of so many options as a prompt is continued: (" A", " B")."""
    return tuple(f" {letter}" for letter in LETTERS[:count])


def lettered(question: str, choices: Sequence[str]) -> str:
    """Question, a line for each option, "Answer:".

    Source: lm-evaluation-harness, commonsense_qa/default.yaml.
    """
    lines = [f"{letter}. {choice.strip()}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([f"Question: {question.strip()}", *lines, "Answer:"])


def continued(context: str, choices: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The context without the spaces at its end, and each choice behind these spaces and one more.

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
    chosen = sorted(range(len(items)), key=lambda index: digest(key(items[index])))[:count]
    return [items[index] for index in sorted(chosen)]


def digest(key: str) -> bytes:
    """Its sha256, by which a sample orders items."""
    return hashlib.sha256(key.encode()).digest()
