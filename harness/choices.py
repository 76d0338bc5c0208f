"""Reading multiple-choice questions from rows of data sets: their options, and which of them is right.

`where` is in all functions what errors call the row, such as "<path>, line 3".
"""

import difflib
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from harness.data import checked_text, valid_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICE_FIELDS = ("text", "label")
ALIKE = 0.7  # similarity from which a name may be another one misspelt: "lvl" is "level", "label" is not


def unread_fields(held: Collection[str], read: Collection[str]) -> str:
    """The fields of a file that nothing reads, each with the missing field that its name may stand for.

    Args:
        held: the fields that rows have.
        read: those that are read.
    """
    missing, names = set(read) - set(held), []
    for name in sorted(set(held) - set(read)):
        near = difflib.get_close_matches(name.lower(), missing, 1, ALIKE)
        names.append(f"{name} (did you mean {near[0]}?)" if near else name)
    return ", ".join(names)


def read_texts(values: object, where: str, field: str) -> tuple[str, ...]:
    """A list of one or more texts, stripped; ValueError where it is none or a text is empty."""
    if not isinstance(values, list) or not values:
        raise ValueError(f"{where}: {field!r} must be a list of texts")
    return tuple(checked_text(value, where, field).strip() for value in values)


def read_choices(values: object, where: str) -> tuple[str, ...]:
    """The list in the field `choices`, stripped; ValueError unless it holds 2 to 26 different texts."""
    choices = read_texts(values, where, "choices")
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"{where}: 'choices' holds {len(choices)}; allowed: 2 to {len(LETTERS)}")
    for choice in choices:
        if choices.count(choice) > 1:
            raise ValueError(f"{where}: 'choices' holds {choice!r} more than once")
    return choices


def lettered_choices(row: dict[str, Any], where: str) -> tuple[tuple[str, ...], str]:
    """The options in the fields A, B, C … that are not empty, and the letters of these fields, such as "ABD"."""
    letters = "".join(letter for letter in LETTERS if valid_text(row.get(letter) or "", where, letter).strip())
    return read_choices([row[letter] for letter in letters], where), letters


def gold_index(answer: object, choices: Sequence[str], where: str, letters: str = LETTERS) -> int:
    """Index of the right choice. An answer that is an int counts from 0; a text is a choice's text or its letter.

    Args:
        letters: one per choice. An int is a letter's index in the alphabet, so that gaps count: of "ABD", D is 3.
    Raises:
        ValueError: the answer names no choice, or may mean two different ones.
    """
    letters = letters[: len(choices)]
    indices = [str(LETTERS.index(letter)) for letter in letters]
    if isinstance(answer, int) and not isinstance(answer, bool):
        spelling, names = str(answer), indices
    else:
        spelling, names = answer.strip() if isinstance(answer, str) else "", list(letters)
    meanings = sorted({options.index(spelling) for options in (choices, names) if spelling in options})
    if not meanings:
        whole = letters == LETTERS[: len(choices)]
        ranges = [f"{names[0]} to {names[-1]}" if whole else ", ".join(names) for names in (letters, indices)]
        raise ValueError(
            f"{where}: 'answer' is {answer!r}; allowed: the text of a choice, its letter ({ranges[0]}), its index "
            f"({ranges[1]}, a number)"
        )
    if len(meanings) > 1:
        meant = " or ".join(repr(choices[index]) for index in meanings)
        raise ValueError(f"{where}: 'answer' {answer!r} may mean {meant}; give it as another of text, letter, index")
    return meanings[0]


def choice_index(value: object, names: Sequence[str], where: str, field: str) -> int:
    """Index in `names` of a label, a text or a number; ValueError where it is none of them."""
    name = str(value).strip()
    if name not in names:
        raise ValueError(f"{where}: {field!r} is {value!r}; allowed: {', '.join(names)}")
    return names.index(name)


def labelled_choices(row: dict[str, Any], where: str) -> tuple[tuple[str, ...], int]:
    """Texts of the field `choices`, whose options have `text` and `label`, and the index of the one in `answerKey`.

    `choices` is a dict of lists, as the hub gives it, or a list of dicts, as JSON files do.

    Raises:
        ValueError: another form, fewer than two options, unlike numbers of texts and labels, or a key without label.
    """
    choices = row["choices"]
    if isinstance(choices, list):
        options = [option for option in choices if isinstance(option, dict)]
        choices = {field: [option.get(field) for option in options] for field in CHOICE_FIELDS}
    if not isinstance(choices, dict) or any(not choices.get(field) for field in CHOICE_FIELDS):
        raise ValueError(f"{where}: 'choices' must hold 'text' and 'label' of every option")
    choices = {**choices, "label": _as_texts(choices["label"])}
    texts, labels = (option_texts(choices[field], where, f"choices.{field}") for field in CHOICE_FIELDS)
    if len(texts) != len(labels):
        raise ValueError(f"{where}: 'choices' has {len(texts)} texts and {len(labels)} labels")
    # Some copies have 1 to 4 where others have A to D, in the labels, in the key or in both.
    numbers = [str(number) for number in range(1, len(labels) + 1)]
    key = str(row["answerKey"]).strip()
    names = next((names for names in (labels, list(LETTERS[: len(labels)]), numbers) if key in names), labels)
    return texts, choice_index(key, names, where, "answerKey")


def _as_texts(labels: object) -> object:
    """The labels with whole numbers as texts."""
    if not isinstance(labels, list | tuple):
        return labels
    return [str(label) if isinstance(label, int) and not isinstance(label, bool) else label for label in labels]


def gap_choices(row: dict[str, Any], where: str) -> tuple[str, tuple[str, str], int]:
    """WinoGrande's fields: the sentence with a gap "_", the two options for the gap, and the index of the right one."""
    sentence = checked_text(row["sentence"], where, "sentence")
    if "_" not in sentence:
        raise ValueError(f"{where}: 'sentence' has no gap, '_'")
    choices = (checked_text(row["option1"], where, "option1"), checked_text(row["option2"], where, "option2"))
    gold = choice_index(row["answer"], ["1", "2"], where, "answer")
    return sentence, choices, gold


def option_texts(values: object, where: str, field: str) -> tuple[str, ...]:
    """A list of 2 to 26 texts, as they are; ValueError where it is none or a text is empty."""
    if not isinstance(values, list | tuple) or not 2 <= len(values) <= len(LETTERS):
        raise ValueError(f"{where}: {field!r} must be a list of 2 to {len(LETTERS)} texts")
    return tuple(checked_text(value, where, field) for value in values)


def guessing_score(options: Sequence[Sequence[str]], golds: Sequence[Collection[int]]) -> float:
    """Expected accuracy of a model that knows nothing of the questions.

    It draws one of the options of each; or, where all questions have the same ones, such as yes and no in any order,
    always gives the one that is right most often, if that is better. A single question tells nothing of that.

    Args:
        options: texts that each question offers.
        golds: indices of the right ones.
    """
    drawn = float(np.mean([len(right) / len(own) for own, right in zip(options, golds, strict=True)]))
    if len(options) == 1 or len(set(map(frozenset, options))) > 1:
        return drawn
    right = Counter(text for own, places in zip(options, golds, strict=True) for text in {own[at] for at in places})
    return max(drawn, max(right.values(), default=0) / len(options))
