"""Which folders of a tree hold runs: whatever walks a tree sees the same ones."""

import os
from collections.abc import Iterable
from pathlib import Path


def folders_with(names: Iterable[str], *tops: Path) -> list[Path]:
    """The folders that have a file of one of these names, in and below the given ones; sorted.

    Links to folders are followed. A folder that is reached in several ways is there once: by its path without a link
    below the first of `tops` that has one.
    """
    names, seen, found, left = set(names), set(), [], list(tops)
    for top in left:  # which grows by the links on the way
        real_top = os.path.realpath(top)
        for folder, subfolders, files in os.walk(top):
            real = os.path.normpath(os.path.join(real_top, os.path.relpath(folder, top)))
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            if not names.isdisjoint(files):
                found.append(Path(folder))
            left += sorted(path for name in subfolders if os.path.islink(path := os.path.join(folder, name)))
    return sorted(found)
