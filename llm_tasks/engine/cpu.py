"""What the engine computes in another way on CPUs; its other files reach the compiled loops through this one alone.

That is: layers in bf16 computed by compiled loops (fused_layers.py, bf16_kernels.py), grouped heads that share their
keys, and batches computed in parallel by worker threads. How much is computed at once also differs on CPUs; these sizes
stand where they are used, in log_likelihood.py, packing.py and option_values.py.

torch divides a matmul among its threads, but most operations between matmuls run on one thread while the others wait:
two threads on one batch are 1.4 times as fast as one, two workers with a batch each 1.8 times.

A compiled loop is first tried on the layer's input, and replaces the layer only where the results are equal to
rounding; `--plain` switches all of this off.
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

from llm_tasks.engine.packing import Block
from llm_tasks.engine.ways import Ways, is_of_transformers

WORKER_TOKENS = 1024  # tokens of a worker's batch: with fewer, matmuls lose more than a worker gains
UNEVEN = 1.03  # tokens of the fullest batch, as a multiple of the mean

Tasks = queue.LifoQueue
Task = Callable[[Tasks], None]  # puts the tasks that follow from it into the queue


def in_bf16_on_cpu(computed: PreTrainedModel | Tensor) -> bool:
    """Whether it is in bf16 on a CPU, as the compiled loops need it."""
    return computed.device.type == "cpu" and computed.dtype == torch.bfloat16


def allows_workers(model: PreTrainedModel) -> bool:
    """Whether several threads may run the model at once.

    Not if its state changes in a forward pass: modules are offloaded, or frequencies of rotary embeddings depend on the
    batch. Nor on a GPU, or if the model's code is not that of transformers.
    """
    if model.device.type != "cpu" or not is_of_transformers(model):
        return False
    modules = list(model.modules())
    offloads = any(hasattr(module, "_hf_hook") for module in modules)
    rope_types = [str(getattr(module, "rope_type", "")) for module in modules]
    changes_frequencies = any(name in rope_type for rope_type in rope_types for name in ("dynamic", "long"))
    return not offloads and not changes_frequencies


def divide(ways: Ways, budget: int, tokens: int) -> tuple[int, int]:
    """See divide_among_workers; one worker with the whole budget if several are not proven on the model."""
    return divide_among_workers(budget, tokens) if ways.workers else (1, budget)


def divide_among_workers(budget: int, tokens: int) -> tuple[int, int]:
    """Number of workers, at least 1, and tokens per batch of each, so that all compute about as many batches.

    Args:
        budget: tokens computed at once, by all workers together.
        tokens: number of tokens to compute.
    """
    workers = min(torch.get_num_threads(), budget // WORKER_TOKENS, math.ceil(tokens / WORKER_TOKENS))
    if workers < 2:
        return 1, budget
    tokens = math.ceil(UNEVEN * tokens)
    batches = math.ceil(tokens / budget)  # of each worker
    return workers, min(math.ceil(tokens / (batches * workers)), budget // workers)


def run(first: Task, workers: int) -> None:
    """Run a task and all tasks that it puts into its queue, the latest first, in several worker threads.

    Args:
        workers: number of workers; with one, tasks run in the calling thread.
    Raises:
        BaseException: the first that a task raised; no task is started after it.
    """
    tasks: Tasks = queue.LifoQueue()
    tasks.put(first)
    if workers == 1:
        while not tasks.empty():
            tasks.get()(tasks)
        return
    threads, errors = torch.get_num_threads(), []

    def work() -> None:
        torch.set_num_threads(max(1, threads // workers))  # for this worker
        while (task := tasks.get()) is not None:
            try:
                if not errors:
                    task(tasks)
            except BaseException as error:
                errors.append(error)
            finally:
                tasks.task_done()

    try:
        with ThreadPoolExecutor(workers, thread_name_prefix="worker") as pool:
            try:
                for _ in range(workers):
                    pool.submit(work)
                tasks.join()
            finally:  # after an interrupt too; the queue gives the latest first
                for _ in range(workers):
                    tasks.put(None)
    finally:
        torch.set_num_threads(threads)
    try:
        if errors:
            raise errors[0]
    finally:
        errors.clear()  # the error's traceback holds this frame, and so would keep all errors in memory


def proven_layers(model: PreTrainedModel, tokens: Sequence[int]) -> tuple[str, ...]:
    """Names of the layer types that compiled loops compute as the model does, tried on these tokens."""
    if not in_bf16_on_cpu(model) or not is_of_transformers(model):
        return ()
    from llm_tasks.engine import fused_layers  # importing numba takes half a second and 90 MB

    load_compiler(model)
    return fused_layers.proven(model, tokens)


def load_compiler(model: PreTrainedModel) -> None:
    """Load numba if the compiled loops are used: workers would wait for it, a third of a second."""
    if in_bf16_on_cpu(model):
        from llm_tasks.engine import bf16_kernels

        bf16_kernels.load_compiler()


@contextlib.contextmanager
def prepared(model: PreTrainedModel, ways: Ways) -> Iterator[None]:
    """Inside, in all threads, layers of the types that were proven are computed by compiled loops."""
    faster: contextlib.AbstractContextManager = contextlib.nullcontext()
    if ways.compiles:
        from llm_tasks.engine import fused_layers

        load_compiler(model)
        faster = fused_layers.replaced(fused_layers.replacements(model, ways.compiles))
    with _grouped_heads(model, ways), faster:
        yield


def attends_in_blocks(ways: Ways) -> bool:
    """Whether attention is computed by blocks (packing.cut_into_blocks), so that long rows cost no more than short."""
    return ways.packs and "attention" in ways.compiles


def in_blocks(blocks: list[Block] | None) -> contextlib.AbstractContextManager:
    """Inside, in this thread, compiled attention computes only these blocks; see fused_layers.in_blocks."""
    if blocks is None:
        return contextlib.nullcontext()
    from llm_tasks.engine import fused_layers

    return fused_layers.in_blocks(blocks)


def compiled_log_sums(logits: Tensor) -> Tensor:
    """logsumexp of every row of logits in bf16 on a CPU, float32."""
    from llm_tasks.engine import bf16_kernels

    return bf16_kernels.log_sums(logits)


@contextlib.contextmanager
def _grouped_heads(model: PreTrainedModel, ways: Ways) -> Iterator[None]:
    """On a CPU, heads of a group read the same keys and values, which transformers would copy for each head.

    On a GPU no fast kernel does that with a mask.
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
