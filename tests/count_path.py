"""How far control travels in one run: the files of ours that are entered, and the pairs of calling and called file.

    python tests/count_path.py llm_tasks/setting2_option_count.py --model_name_or_path … --output_dir …

A file is entered where one of its functions is called, in any thread, imports not counted. A pair is counted where the
calling frame is of another file of ours: a callback counts, too, and a call through a library does not.
"""

import importlib
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class CallPath(NamedTuple):
    """The files that were entered, and the pairs of calling and called file, all relative to the root."""

    files: set[str]
    pairs: set[tuple[str, str]]


def count_path(main: Callable[[Sequence[str]], object], argv: Sequence[str]) -> CallPath:
    """What a call of a script's main enters; `argv` are its arguments."""
    inside, tests = f"{ROOT}/", f"{ROOT}/tests/"
    found = CallPath(set(), set())

    def is_ours(path: str) -> bool:
        return path.startswith(inside) and not path.startswith(tests) and "/.venv/" not in path

    def note(frame: FrameType, event: str, argument: object) -> None:
        called = frame.f_code.co_filename
        if event != "call" or not is_ours(called) or frame.f_code.co_name == "<module>":
            return
        found.files.add(called.removeprefix(inside))
        calling = frame.f_back.f_code.co_filename if frame.f_back else ""
        if is_ours(calling) and calling != called:
            found.pairs.add((calling.removeprefix(inside), called.removeprefix(inside)))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        main(argv)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


if __name__ == "__main__":
    script, *words = sys.argv[1:]
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    path = count_path(module.main, words)
    for calling, called in sorted(path.pairs):
        print(f"{calling} -> {called}")
    print(f"{len(path.files)} files, {len(path.pairs)} pairs")
