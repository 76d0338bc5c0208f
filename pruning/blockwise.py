"""Many forward passes of a model whose blocks are elsewhere: each block is brought to the device once for all passes.

A pass is run up to a block to see with which arguments the model calls it, the blocks before it returning their inputs
uncomputed; then the block is computed on the hidden states that the pass has reached. So a pass makes its embeddings
and masks anew for every block, which costs little beside a block, and needs no memory for them between blocks.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.device import WITH_STREAMS, to_device
from harness.progress import Progress
from pruning.block_calls import Call, NotReplayedError, StopForward, blocks_replaced
from pruning.blocks import CPU, BlockStorage
from pruning.layers import decoder_blocks


class Pass(NamedTuple):
    """A forward pass.

    Fields:
        run: runs it, the same whenever it is called, and returns what is wanted of its output.
        within: makes a context in which its blocks are computed, such as autocast.
    """

    run: Callable[[], Any]
    within: Callable[[], contextlib.AbstractContextManager]


@torch.no_grad()
def run_blockwise(
    model: PreTrainedModel,
    storage: BlockStorage,
    passes: Sequence[Pass],
    finished: Callable[[int], None] = lambda index: None,
    activations: torch.device = CPU,
) -> Iterator[Any]:
    """Results of forward passes, in order, with one block after the other held for all of them.

    The model must compute with its blocks one by one what it computes as a whole (see replay.check_replayed).

    Args:
        storage: where the blocks are; what lies outside of them is on the device.
        passes: a pass may read, at a block, what passes before it have left in a KV cache at that block.
        finished: called with the index of a block once all passes have gone through it.
        activations: device that holds the hidden states of all passes.
    """
    if not passes:
        return
    blocks = decoder_blocks(model)[1]
    hidden = [_stored(_reach(blocks, 0, None, one.run)[0], activations) for one in passes]
    output: Any = None
    for index in Progress(range(len(blocks)), "blocks of all batches"):
        with storage.hold(index) as block:
            device = next(block.parameters()).device
            for number, one in enumerate(passes):
                call = _reach(blocks, index, output, one.run)[1]
                with one.within():
                    output = block(to_device(hidden[number], device), *call.args, **call.kwargs)
                states = output if isinstance(output, Tensor) else output[0]
                hidden[number] = _stored(states, activations, hidden[number])
        finished(index)
    device = model.get_input_embeddings().weight.device
    for number, one in enumerate(passes):
        with blocks_replaced(blocks, output, to_device(hidden[number], device), takes_cache=True):
            yield one.run()
        hidden[number] = None  # it is not needed any more


def _stored(states: Tensor, where: torch.device, before: Tensor | None = None) -> Tensor:
    """Hidden states on the device that holds them; on the host in pinned memory, where the device has streams.

    The CPU does not wait for a copy to pinned memory: the device alone reads it, in the order of its work.

    Args:
        before: those of the block before, whose memory is used again.
    """
    if where.type != "cpu" or states.device.type not in WITH_STREAMS:
        return states.to(where)
    if before is None or (before.shape, before.dtype) != (states.shape, states.dtype):
        before = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
    return before.copy_(states, non_blocking=True)


def _reach(blocks: nn.ModuleList, index: int, output: Any, run: Callable[[], object]) -> tuple[Tensor, Call]:
    """The hidden states and other arguments with which a pass calls block `index`, uncomputed blocks before it.

    Args:
        output: what a block returns, for its type; not read for the first block.
    """
    calls = blocks_replaced(blocks, output, takes_cache=True, stop_at=index)
    with calls as seen, contextlib.suppress(StopForward):
        run()
    if len(seen) != index + 1:
        raise NotReplayedError(f"a pass calls {len(seen)} blocks up to block {index}")
    return seen[-1]
