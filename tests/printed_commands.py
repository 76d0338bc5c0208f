"""Commands as documents print them: found in the text, taken apart, called in this process."""

import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

ASSIGNMENT = re.compile(r"([A-Z_]+)=(.*)", re.DOTALL)
BLOCK = re.compile(r"(?:^(?: {4}.*|[ \t]*)\n)+", re.MULTILINE)  # lines indented by four spaces, and empty ones


def quoted(text: str) -> list[str]:
    """What a text has in code letters."""
    return re.findall(r"`([^`]+)`", text)


def code_blocks(text: str) -> Iterator[str]:
    """The indented code blocks of a document, without their indent."""
    for block in BLOCK.findall(text):
        lines = [line.removeprefix("    ") for line in block.splitlines()]
        if any(lines):
            yield "\n".join(lines).strip("\n")


def is_command(text: str) -> bool:
    """Whether a text starts python or bash, perhaps behind variables."""
    return bool(re.match(r"([A-Z_]+=('[^']*'|\"[^\"]*\"|\S*) )*(python|bash) \S", text))


def printed_commands(text: str) -> Iterator[str]:
    """Every command of a document: of its code blocks (continued lines joined, comments cut), and in code letters."""
    for block in code_blocks(text):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            command = re.sub(r"\s+# .*", "", line).strip()
            if is_command(command):
                yield command
    without_blocks = BLOCK.sub("\n", text)
    yield from filter(is_command, (" ".join(span.split()) for span in quoted(without_blocks)))


def parts(command: str) -> tuple[dict[str, str], list[str]]:
    """The variables in front of a command, and its words."""
    variables, words = {}, shlex.split(command)
    while found := ASSIGNMENT.fullmatch(words[0]):
        variables[found[1]] = found[2]
        del words[0]
    return variables, words


def load(path: str, load_script: Callable[[str], ModuleType]) -> ModuleType:
    """The script of this path, seen from the project root."""
    if Path(path).parent.name == "scripts":
        return load_script(Path(path).stem)
    return importlib.import_module(".".join(Path(path).with_suffix("").parts))


def run(words: list[str], load_script: Callable[[str], ModuleType]) -> int | None:
    """Call the main function of the script that the words start, in this process."""
    return load(words[0], load_script).main(words[1:])
