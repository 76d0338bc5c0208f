"""argparse types that all scripts share: a value out of range ends the program with what is allowed."""

import argparse
from collections.abc import Callable
from typing import Any


def number(kind: type, low: float, high: float, open_high: bool = False) -> Callable[[str], Any]:
    """An argparse type: a number from `low` to `high` (up to, not with, `high` when `open_high`)."""
    bounds = f"[{low:g}, {high:g}{')' if open_high else ']'}"

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__}; allowed: {bounds}") from None
        if not low <= value <= high or (open_high and value == high):
            raise argparse.ArgumentTypeError(f"{text} is outside {bounds}")
        return value

    return convert


def checked(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type that shows the message of the ValueError that `convert` raises."""

    def wrapped(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return wrapped


positive = number(int, 1, 10**9)
