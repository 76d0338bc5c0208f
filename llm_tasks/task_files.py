"""A fixed sample of a data set's items."""

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


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
