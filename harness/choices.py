"""The options of a multiple-choice question as data files hold them, and which of them is right."""

from collections.abc import Sequence
from typing import Any

from harness.data import checked_text, valid_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICE_FIELDS = ("text", "label")


def read_texts(values: object, where: str, field: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{where}: {field!r} must be a list of texts")
    return tuple(checked_text(value, where, field).strip() for value in values)


def read_choices(values: object, where: str) -> tuple[str, ...]:
    choices = read_texts(values, where, "choices")
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"{where}: 'choices' holds {len(choices)}; allowed: 2 to {len(LETTERS)}")
    for choice in choices:
        if choices.count(choice) > 1:
            raise ValueError(f"{where}: 'choices' holds {choice!r} more than once")
    return choices


def lettered_choices(row: dict[str, Any], where: str) -> tuple[tuple[str, ...], str]:
    """The options in the fields A, B, C … that are not empty, and their letters: an empty one leaves its letter out."""
    letters = "".join(letter for letter in LETTERS if valid_text(row.get(letter) or "", where, letter).strip())
    return read_choices([row[letter] for letter in letters], where), letters


def gold_index(answer: object, choices: Sequence[str], where: str, letters: str = LETTERS) -> int:
    """Which choice the answer says: a number is an index, a text is a choice or its letter.

    Args:
        letters: of the choices, A is index 0; some may be left out.
    Raises:
        ValueError: it says none, or two different ones.
    """
    letters = letters[: len(choices)]
    indices = [str(LETTERS.index(letter)) for letter in letters]
    if isinstance(answer, int) and not isinstance(answer, bool):
        said, names = str(answer), indices
    else:
        said, names = answer.strip() if isinstance(answer, str) else "", list(letters)
    found = sorted({spelling.index(said) for spelling in (choices, names) if said in spelling})
    if not found:
        whole = letters == LETTERS[: len(choices)]
        ranges = [f"{names[0]} to {names[-1]}" if whole else ", ".join(names) for names in (letters, indices)]
        raise ValueError(
            f"{where}: 'answer' is {answer!r}; allowed: the text of a choice, its letter ({ranges[0]}), its index "
            f"({ranges[1]}, a number)"
        )
    if len(found) > 1:
        meant = " or ".join(repr(choices[index]) for index in found)
        raise ValueError(f"{where}: 'answer' {answer!r} may mean {meant}: say it as another of text, letter, index")
    return found[0]


def choice_index(value: object, names: Sequence[str], where: str, field: str) -> int:
    """Which of the names a label says, given as a text or a number.

    Raises:
        ValueError: none of them.
    """
    name = str(value).strip()
    if name not in names:
        raise ValueError(f"{where}: {field!r} is {value!r}; allowed: {', '.join(names)}")
    return names.index(name)


def labelled_choices(row: dict[str, Any], where: str) -> tuple[tuple[str, ...], int]:
    """The texts of `choices`, in a dict of lists or a list of dicts, and which of them `answerKey` says.

    Raises:
        ValueError: they are not that, fewer than two, texts and labels differ in number, or no label is the key.
    """
    given = row["choices"]
    if isinstance(given, list):
        given = {field: [choice.get(field) for choice in given if isinstance(choice, dict)] for field in CHOICE_FIELDS}
    if not isinstance(given, dict) or any(not given.get(field) for field in CHOICE_FIELDS):
        raise ValueError(f"{where}: 'choices' must hold 'text' and 'label' of every option")
    given = {**given, "label": _as_texts(given["label"])}
    texts, labels = (option_texts(given[field], where, f"choices.{field}") for field in CHOICE_FIELDS)
    if len(texts) != len(labels):
        raise ValueError(f"{where}: 'choices' has {len(texts)} texts and {len(labels)} labels")
    # Some copies say 1 to 4 where others say A to D, in the labels, in the key or in both.
    numbers = [str(number) for number in range(1, len(labels) + 1)]
    key = str(row["answerKey"]).strip()
    names = next((names for names in (labels, list(LETTERS[: len(labels)]), numbers) if key in names), labels)
    return texts, choice_index(key, names, where, "answerKey")


def _as_texts(labels: object) -> object:
    """Labels, of which some may be whole numbers, as texts."""
    if not isinstance(labels, list | tuple):
        return labels
    return [str(label) if isinstance(label, int) and not isinstance(label, bool) else label for label in labels]


def gap_choices(row: dict[str, Any], where: str) -> tuple[str, tuple[str, str], int]:
    """A sentence with a gap, "_", the two texts that may stand there, and which is right, in WinoGrande's fields."""
    sentence = checked_text(row["sentence"], where, "sentence")
    if "_" not in sentence:
        raise ValueError(f"{where}: 'sentence' has no gap, '_'")
    choices = (checked_text(row["option1"], where, "option1"), checked_text(row["option2"], where, "option2"))
    gold = choice_index(row["answer"], ["1", "2"], where, "answer")
    return sentence, choices, gold


def option_texts(values: object, where: str, field: str) -> tuple[str, ...]:
    """Two or more texts.

    Raises:
        ValueError: no list, fewer, or one that is empty.
    """
    if not isinstance(values, list | tuple) or not 2 <= len(values) <= len(LETTERS):
        raise ValueError(f"{where}: {field!r} must be a list of 2 to {len(LETTERS)} texts")
    return tuple(checked_text(value, where, field) for value in values)
