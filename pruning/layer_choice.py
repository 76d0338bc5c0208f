"""Which weights of a decoder are compressed: chosen by block index, by range of blocks, or by name."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence

from transformers import PreTrainedModel

from pruning.layers import decoder_blocks, decoder_weights

RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)
EXPERT = re.compile(r"\[\d+\]$")  # behind the name of one expert's matrix
MOST_NAMES = 20  # that a message lists


def parse_layers(text: str) -> str:
    """A choice of layers as --only_layers takes it, checked as far as it can be without a model.

    Args:
        text: parts separated by commas: a block ("7"), a range of blocks, both ends included ("0-3"), a name or some
            of its dotted parts ("down_proj", "self_attn.q_proj", "3.mlp"), or a pattern of the whole name with *, ?
            and [] ("*.down_proj").
    Returns:
        The parts without spaces.
    Raises:
        ValueError: a part is empty, or a range goes down.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part:
            raise ValueError(f"{text!r} has an empty part; allowed: blocks, ranges and names, such as 0-3,7,down_proj")
        if (found := RANGE.fullmatch(part)) and found[2] and int(found[2]) < int(found[1]):
            raise ValueError(f"{part!r} is a range of blocks that goes down; write {found[2]}-{found[1]}")
    return ",".join(parts)


def block_indices(model: PreTrainedModel) -> dict[str, int]:
    """The index of the block that holds each weight, by the weight's name; the model may be without weights."""
    prefix = f"{decoder_blocks(model)[0]}."
    return {name: int(name.removeprefix(prefix).partition(".")[0]) for name in decoder_weights(model)}


def matching(part: str, blocks: Mapping[str, int]) -> list[str]:
    """The weights that one part of a choice names, in their order; none where it names none.

    Args:
        part: see parse_layers.
        blocks: block_indices of the model.
    """
    if found := RANGE.fullmatch(part):
        first, last = int(found[1]), int(found[2] or found[1])
        # A range that leaves the model names nothing: the user has another model in mind.
        inside = last <= max(blocks.values())
        return [name for name, block in blocks.items() if inside and first <= block <= last]
    if whole := [name for name in blocks if part in _forms(name)]:
        return whole
    if any(letter in part for letter in "*?["):
        return [name for name in blocks if any(fnmatch.fnmatchcase(form, part) for form in _forms(name))]
    return [name for name in blocks if any(f".{part}." in f".{form}." for form in _forms(name))]


def _forms(name: str) -> set[str]:
    """The name, and the name without ".weight" or the number of an expert."""
    return {name, name.removesuffix(".weight"), EXPERT.sub("", name)}


def choose_weights(blocks: Mapping[str, int], only: str | None = None, skip: str | None = None) -> list[str]:
    """The weights that are compressed, in the order of the blocks.

    Args:
        blocks: block_indices of the model.
        only, skip: what is compressed (None: all), and what is left out of that; see parse_layers.
    Raises:
        ValueError: a part names no weight, or nothing is left; says which blocks and names there are.
    """
    chosen = dict.fromkeys(blocks)
    if only is not None:
        named = _named("--only_layers", only, blocks)
        chosen = {name: None for name in blocks if name in named}
    if skip is not None:
        named = _named("--skip_layers", skip, blocks)
        chosen = {name: None for name in chosen if name not in named}
    if not chosen:
        options = f"--only_layers {only} " if only is not None else ""
        raise ValueError(f"{options}--skip_layers {skip} leaves no weight to compress; there are {there_are(blocks)}")
    return list(chosen)


def _named(option: str, choice: str, blocks: Mapping[str, int]) -> set[str]:
    """The weights that a choice names; ValueError where a part names none."""
    found: set[str] = set()
    for part in choice.split(","):
        own = matching(part, blocks)
        if not own:
            raise ValueError(f"{option} {choice}: {part!r} names no weight; there are {there_are(blocks)}")
        found |= set(own)
    return found


def there_are(blocks: Mapping[str, int]) -> str:
    """The blocks and the names inside them, for a message."""
    names = list(dict.fromkeys(name_in_block(name, block) for name, block in blocks.items()))
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"blocks 0 to {max(blocks.values())} and in them {', '.join(names[:MOST_NAMES])}{more}"


def name_in_block(name: str, block: int) -> str:
    """The weight's name inside its block, the same in all blocks: "mlp.down_proj"."""
    inside = name.partition(f".{block}.")[2]
    return EXPERT.sub("", inside).removesuffix(".weight")


def layers_label(only: str | None, skip: str | None) -> str | None:
    """A choice as folders and figures name it: "0-3", "down_proj", "without_0"; None where all are compressed."""
    parts = [*([only] if only is not None else []), *([f"without_{skip}"] if skip is not None else [])]
    return "_".join(part.replace("*", "").strip(".") for part in parts) or None


def sizes_by_block(names: Iterable[str], blocks: Mapping[str, int], numels: Mapping[str, int]) -> dict[int, int]:
    """How many weights of each block are among some matrices."""
    found: dict[int, int] = {}
    for name in names:
        found[blocks[name]] = found.get(blocks[name], 0) + numels[name]
    return found


def in_one_block(names: Sequence[str], blocks: Mapping[str, int]) -> bool:
    """Whether all of some weights are in the same block."""
    return len({blocks[name] for name in names}) == 1
