"""The calls of decoder blocks in a forward pass: captured, replaced by others, or made with blocks brought to a device.

A block is computed with the arguments that the model itself gives it: masks and rotary embeddings differ between the
blocks of sliding-window models.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from pruning.blocks import BlockStorage


class Call(NamedTuple):
    """The arguments of a block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class StopForward(Exception):
    """Raised in a hook to end a forward pass once all inputs that are needed have been seen; not an error."""


class NotReplayedError(ValueError):
    """The blocks, run one by one, do not compute what the whole model computes."""


def run_block(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """Output hidden states of `block`; some architectures return them first in a tuple."""
    output = block(hidden, *call.args, **call.kwargs)
    return output[0] if isinstance(output, tuple | list) else output


def split_call(block: str, args: tuple, kwargs: dict[str, Any], takes_cache: bool = False) -> tuple[Tensor, Call]:
    """A block's arguments, split into the hidden states and the rest.

    Args:
        takes_cache: a KV cache may be among them.
    """
    if not args or not isinstance(args[0], Tensor) or args[0].dim() != 3:
        raise NotReplayedError(f"{block} does not take hidden states (batch, tokens, features) first")
    if not takes_cache and any(hasattr(value, "get_seq_length") for value in (*args, *kwargs.values())):
        raise NotReplayedError(f"{block} is given a KV cache although use_cache is off")
    return args[0], Call(args[1:], kwargs)


@contextmanager
def forwards_replaced(blocks: nn.ModuleList, forwards: list[Callable]) -> Iterator[None]:
    """Inside, each block's forward is replaced by the function of the same index in `forwards`."""
    before = [vars(block).get("forward") for block in blocks]  # accelerate sets one on modules that it offloads
    for block, forward in zip(blocks, forwards, strict=True):
        block.forward = forward
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


@contextmanager
def blocks_replaced(
    blocks: nn.ModuleList,
    like: Any,
    output: Tensor | None = None,
    takes_cache: bool = False,
    stop_at: int | None = None,
) -> Iterator[list[tuple[Tensor, Call]]]:
    """Inside, blocks return their input hidden states uncomputed; yields the list of their calls, in order.

    Args:
        like: an output of one of these blocks, for its type: hidden states, alone or first in a tuple.
        output: hidden states that every block returns instead of its input.
        takes_cache: blocks may be given a KV cache.
        stop_at: the call with this index raises StopForward.
    """
    seen: list[tuple[Tensor, Call]] = []

    def replacement(block: nn.Module) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            seen.append(split_call(type(block).__name__, args, kwargs, takes_cache))
            if len(seen) - 1 == stop_at:
                raise StopForward
            hidden = args[0] if output is None else output
            return hidden if isinstance(like, Tensor) else type(like)((hidden, *like[1:]))

        return forward

    with forwards_replaced(blocks, [replacement(block) for block in blocks]):
        yield seen


@contextmanager
def blocks_held(blocks: nn.ModuleList, storage: BlockStorage) -> Iterator[None]:
    """Inside, `storage` brings each block whenever the model calls it, so that the whole model can be run."""

    def held(index: int, block: nn.Module) -> Callable:
        original = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with storage.hold(index):
                return original(*args, **kwargs)

        return forward

    with forwards_replaced(blocks, [held(index, block) for index, block in enumerate(blocks)]):
        yield
