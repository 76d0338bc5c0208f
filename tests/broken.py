"""What one row of the tables of broken inputs holds; test_broken_inputs.py tries them all."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Assets(NamedTuple):
    """Sound inputs, to be copied and broken: fixtures of conftest.py."""

    encoder: Path
    decoder: Path
    sentences: tuple[Path, Path]
    text: Path


class Broken(NamedTuple):
    """One input that must be refused.

    Fields:
        name: what is wrong, in a few words.
        script: module with main(argv), such as "llm_tasks.perplexity".
        make: writes the broken input below an empty folder; returns the script's options, without --output_dir.
        says: texts that the one line must hold: the option or file, the value, what is allowed or needed.
    """

    name: str
    script: str
    make: Callable[[Path, Assets], list[str]]
    says: tuple[str, ...]
