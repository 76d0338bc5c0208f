"""What is special to CPUs, behind one door: the engine asks this file, and nothing else of it.

Layers in bf16 that compiled loops compute (fused_layers.py, bf16_kernels.py), heads that share keys, and batches side
by side in threads ("lanes"): torch divides one matmul among all threads, but leaves most of what stands between matmuls
to one of them while the others wait. Two threads that work together are 1.4 times as fast as one, two lanes 1.8 times.

What replaces a layer of the model is tried on that layer's own input first, and used only where the result is the same
to rounding; with `--plain` nothing of this is used.
"""

import contextlib
import math
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llm_tasks.engine.ways import Ways, is_of_transformers

LANE_TOKENS = 1024  # of a lane's batch: smaller ones take longer in matmuls than a lane gains
UNEVEN = 1.03  # times the mean: what the fullest of some batches holds

Tasks = queue.LifoQueue
Task = Callable[[Tasks], None]  # puts what has to be done after it into the queue
Block = tuple[int, slice]  # a row of a batch, and contiguous tokens of it


def in_bf16_on_cpu(computed: PreTrainedModel | Tensor) -> bool:
    """Whether the compiled loops can compute it."""
    return computed.device.type == "cpu" and computed.dtype == torch.bfloat16


def takes_lanes(model: PreTrainedModel) -> bool:
    """Whether several threads may run the model at once: nothing in it changes while it runs.

    They may not where modules are moved in and out as they are needed, where frequencies of rotary embeddings follow
    the batch, in code from outside transformers, and anywhere but on a CPU.
    """
    if model.device.type != "cpu" or not is_of_transformers(model):
        return False
    modules = list(model.modules())
    moved = any(hasattr(module, "_hf_hook") for module in modules)
    followed = any(kind in str(getattr(module, "rope_type", "")) for module in modules for kind in ("dynamic", "long"))
    return not moved and not followed


def divide(ways: Ways, budget: int, tokens: int) -> tuple[int, int]:
    """How many lanes to compute some tokens in, at least 1, and how many tokens each of them computes at once.

    Args:
        budget: tokens computed at once, by all lanes.
        tokens: that have to be computed.
    """
    return divide_into_lanes(budget, tokens) if ways.lanes else (1, budget)


def divide_into_lanes(budget: int, tokens: int) -> tuple[int, int]:
    """How many lanes to compute some tokens in, at least 1, and how many tokens each of them computes at once.

    Several share the budget, so that all have about as many batches to compute.

    Args:
        budget: tokens computed at once, by all lanes.
        tokens: that have to be computed.
    """
    lanes = min(torch.get_num_threads(), budget // LANE_TOKENS, math.ceil(tokens / LANE_TOKENS))
    if lanes < 2:
        return 1, budget
    tokens = math.ceil(UNEVEN * tokens)
    turns = math.ceil(tokens / budget)
    return lanes, min(math.ceil(tokens / (turns * lanes)), budget // lanes)


def run(first: Task, lanes: int) -> None:
    """Do a task and all that it puts into its queue, the latest first, in so many lanes; one is the calling thread.

    Raises:
        BaseException: what a task raised first; no other task is begun after it.
    """
    tasks: Tasks = queue.LifoQueue()
    tasks.put(first)
    if lanes == 1:
        while not tasks.empty():
            tasks.get()(tasks)
        return
    threads, errors = torch.get_num_threads(), []

    def work() -> None:
        torch.set_num_threads(max(1, threads // lanes))  # of this lane
        while (task := tasks.get()) is not None:
            try:
                if not errors:
                    task(tasks)
            except BaseException as error:
                errors.append(error)
            finally:
                tasks.task_done()

    try:
        with ThreadPoolExecutor(lanes, thread_name_prefix="lane") as pool:
            try:
                for _ in range(lanes):
                    pool.submit(work)
                tasks.join()
            finally:  # an interrupt too: what comes last is taken first
                for _ in range(lanes):
                    tasks.put(None)
    finally:
        torch.set_num_threads(threads)
    try:
        if errors:
            raise errors[0]
    finally:
        errors.clear()  # this frame is in the error's traceback: what failed would stay in memory


def proven_layers(model: PreTrainedModel, tokens: Sequence[int]) -> tuple[str, ...]:
    """Names of the kinds of layers that compiled loops compute as the model's own code does, on these tokens."""
    if not in_bf16_on_cpu(model) or not is_of_transformers(model):
        return ()
    from llm_tasks.engine import fused_layers  # its compiler takes half a second and 90 MB

    load_compiler(model)
    return fused_layers.proven(model, tokens)


def load_compiler(model: PreTrainedModel) -> None:
    """Load what compiles the loops for a model in bf16 on a CPU: a third of a second, for which lanes would wait."""
    if in_bf16_on_cpu(model):
        from llm_tasks.engine import bf16_kernels

        bf16_kernels.load_compiler()


@contextlib.contextmanager
def prepared(model: PreTrainedModel, ways: Ways) -> Iterator[None]:
    """Inside, in all lanes of an engine, the layers that were proven are computed by compiled loops."""
    faster: contextlib.AbstractContextManager = contextlib.nullcontext()
    if ways.compiles:
        from llm_tasks.engine import fused_layers

        load_compiler(model)
        faster = fused_layers.replaced(fused_layers.replacements(model, ways.compiles))
    with _grouped_heads(model, ways), faster:
        yield


def attends_in_blocks(ways: Ways) -> bool:
    """Whether attention costs what the blocks of its rows cost, however long the rows."""
    return ways.packs and "attention" in ways.compiles


def in_blocks(blocks: list[Block] | None) -> contextlib.AbstractContextManager:
    """Inside, in this thread, compiled attention computes these blocks alone; see fused_layers.in_blocks."""
    if blocks is None:
        return contextlib.nullcontext()
    from llm_tasks.engine import fused_layers

    return fused_layers.in_blocks(blocks)


def compiled_log_sums(logits: Tensor) -> Tensor:
    """Logarithm of the sum of exponentials of every row of logits in bf16 on a CPU, float32."""
    from llm_tasks.engine import bf16_kernels

    return bf16_kernels.log_sums(logits)


@contextlib.contextmanager
def _grouped_heads(model: PreTrainedModel, ways: Ways) -> Iterator[None]:
    """On a CPU, let the heads of a group read the same keys and values: transformers would copy them per head.

    On a GPU there is no fast kernel for that together with a mask.
    """
    switch = "TRANSFORMERS_SDPA_FORCE_GQA"
    if model.device.type != "cpu" or not (ways.packs or ways.shares) or switch in os.environ:
        yield
        return
    os.environ[switch] = "1"
    try:
        yield
    finally:
        del os.environ[switch]
