"""Labels of a task: read from tables, checked, and turned into class numbers or the floats of a regression."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.data import Table

logger = logging.getLogger(__name__)

LABEL = "label"
# GLUE's classes by number; F1 is that of class 1.
GLUE_CLASSES = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("not_entailment", "entailment"),
}
WHOLE = re.compile(r"[+-]?\d+")
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# Texts that stand for a missing or infinite number.
NO_NUMBER = frozenset(("nan", "na", "n/a", "none", "null", "inf", "infinity", "-nan", "-inf", "-infinity", "+inf"))
TRUTH = {"true": True, "false": False}
# Types that labels may have, and their names in errors.
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Labels:
    """The labels of a table's rows, all of one type (`kind`): bool, int, float or str."""

    kind: type
    values: list[Any]


@dataclass(frozen=True)
class Classes:
    """The classes of a task.

    Fields:
        names: in the order of the class numbers, from 0.
        numbers: class number by every spelling of a label.
    """

    names: tuple[str, ...]
    numbers: Mapping[str, int]


def read_labels(table: Table) -> Labels:
    """The labels of all rows, checked.

    Whole numbers mixed with numbers with decimals are floats. csv has no types: there, labels that are all whole
    numbers are int, all numbers float, all true or false bool, and others str.

    Raises:
        ValueError: a label is missing, a list, NaN, infinite or of another type than the others (names the file, the
            row and the value).
    """
    if LABEL not in table.columns:
        raise ValueError(f"{table.name} has no column {LABEL!r}; it has {', '.join(table.columns)}")
    values = [value.strip() if isinstance(value, str) else value for value in table.columns[LABEL]]
    for index, value in enumerate(values):
        if value is None or value == "":
            raise ValueError(f"{table.where(index)} has no {LABEL!r}")
        if type(value) not in KINDS:
            allowed = ", ".join(KINDS.values())
            raise ValueError(f"{table.where(index)}: {LABEL!r} is {_shown(value)}; allowed: {allowed}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{table.where(index)}: {LABEL!r} is {value}, which is no label")
    if not table.typed:
        return _parse(table, values)
    kinds = {type(value): index for index, value in reversed(list(enumerate(values)))}
    if kinds.keys() == {int, float}:
        return Labels(float, [float(value) for value in values])
    if len(kinds) > 1:
        (first, index), (other, other_index), *_ = sorted(kinds.items(), key=lambda kind: kind[1])
        raise ValueError(
            f"{table.where(other_index)}: {LABEL!r} is {values[other_index]!r}, {KINDS[other]}, where "
            f"{table.where(index)} has {values[index]!r}, {KINDS[first]}: give all labels one type"
        )
    return Labels(next(iter(kinds)), values)


def _parse(table: Table, texts: list[str]) -> Labels:
    """Labels of a csv file, parsed from its texts."""
    if all(map(WHOLE.fullmatch, texts)):
        return Labels(int, [int(text) for text in texts])
    if all(text.lower() in TRUTH for text in texts):
        return Labels(bool, [TRUTH[text.lower()] for text in texts])
    numbers = [DECIMAL.fullmatch(text) is not None for text in texts]
    if all(numbers):
        values = [float(text) for text in texts]
        for index, value in enumerate(values):
            if not math.isfinite(value):
                raise ValueError(f"{table.where(index)}: {LABEL!r} is {texts[index]}, which is infinite")
        return Labels(float, values)
    decimals = any(number and not WHOLE.fullmatch(text) for number, text in zip(numbers, texts, strict=True))
    others = [index for index, number in enumerate(numbers) if not number]
    if decimals or (any(numbers) and all(texts[index].lower() in NO_NUMBER for index in others)):
        number = table.where(numbers.index(True))
        raise ValueError(
            f"{table.where(others[0])}: {LABEL!r} is {texts[others[0]]!r}, no number, where {number} has one"
        )
    return Labels(str, texts)


def _shown(value: object) -> str:
    text = f"{value!r}, a {type(value).__name__}"
    return text if len(text) < 100 else f"{text[:60]}…, a {type(value).__name__}"


def key(value: object) -> str:
    """A label as a text: "1" for 1, 1.0 and "1"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    return str(int(text)) if isinstance(value, int) and not isinstance(value, bool) else text


def make_classes(parts: Sequence[tuple[Table, Labels]], glue_task: str | None = None) -> Classes:
    """The classes of the training rows: whole numbers in numeric order, other labels sorted as texts.

    Args:
        parts: the training tables and their labels.
        glue_task: labels are GLUE's numbers or names of this task's classes, in GLUE's order.
    Raises:
        ValueError: all labels are the same, or one is no class of the GLUE task.
    """
    known: dict[str, tuple[Any, str]] = {}
    for table, labels in parts:
        for index, value in enumerate(labels.values):
            if key(value) not in known:
                known[key(value)] = value, table.where(index)
    if len(known) < 2:
        ((value, _),) = known.values()
        raise ValueError(f"{parts[0][0].name}: every training {LABEL} is {value!r}; nothing can be learnt")
    if glue_task in GLUE_CLASSES:
        names = GLUE_CLASSES[glue_task]
        spellings = {**{str(number): number for number in range(len(names))}, **numbers_by_plain_name(names)}
        for text, (value, where) in known.items():
            if plain(text) not in spellings:
                allowed = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
                raise ValueError(f"{where}: {LABEL!r} is {value!r}; {glue_task} has {allowed}")
        there = sorted({spellings[plain(text)] for text in known})
        numbers = {text: there.index(number) for text, number in spellings.items() if number in there}
        return Classes(tuple(names[number] for number in there), numbers)
    numeric = all(WHOLE.fullmatch(text) for text in known) and any(labels.kind is not str for _, labels in parts)
    ordered = sorted(known, key=int) if numeric else sorted(known)
    return Classes(tuple(ordered), {text: number for number, text in enumerate(ordered)})


def class_numbers(table: Table, labels: Labels, classes: Classes, kinds: set[type], is_glue: bool = False) -> list[int]:
    """The number of each row's class.

    Args:
        kinds: types of the training labels; if these rows have another, such as "0" for 0, a warning is logged.
        is_glue: labels may be names of classes, in any case.
    Raises:
        ValueError: no training row has the label (names the file, the row and the value).
    """
    numbers = []
    for index, value in enumerate(labels.values):
        number = classes.numbers.get(plain(key(value)) if is_glue else key(value))
        if number is None:
            raise ValueError(
                f"{table.where(index)}: {LABEL!r} is {value!r}, which no training row has; they have "
                f"{', '.join(classes.names)}"
            )
        numbers.append(number)
    if labels.kind not in kinds:
        logger.warning(
            "%s: %r is %r, %s, where training has %s: taken as the same label",
            table.where(0), LABEL, labels.values[0], KINDS[labels.kind], " or ".join(KINDS[kind] for kind in kinds),
        )  # fmt: skip
    return numbers


def scores(table: Table, labels: Labels) -> list[float]:
    """Labels of a regression as floats.

    Raises:
        ValueError: a label is no number (names the file, the row and the value).
    """
    if labels.kind in (int, float):
        return [float(value) for value in labels.values]
    for index, value in enumerate(labels.values):
        if labels.kind is bool or not DECIMAL.fullmatch(value) or not math.isfinite(float(value)):
            raise ValueError(f"{table.where(index)}: {LABEL!r} is {value!r}, no number, and training has numbers")
    return [float(value) for value in labels.values]


def plain(name: str) -> str:
    """A class's name in lower case with words joined by underscores: "Not entailment" becomes "not_entailment"."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def numbers_by_plain_name(names: Sequence[str]) -> dict[str, int]:
    """The number of each class by its plain name, counted from 0 in the order of `names`."""
    return {plain(name): number for number, name in enumerate(names)}
