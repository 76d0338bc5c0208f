"""What `benchmark.py gpu` times: a compression, a scoring, an epoch, each on one device, with its floor and memory."""

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from against_original import original_epoch, our_epoch
from harness.cells import Cell
from harness.device import best_precision, clock, matmul_speed, peak_memory, release_memory, reset_peak_memory
from llm_tasks.compressed_model import CompressibleModel, Compression
from llm_tasks.engine.packing import Continuation, distinct_reads
from llm_tasks.engine.proof import scoring_ways
from llm_tasks.engine.ways import PLAIN
from llm_tasks.evaluation import Reading, held, score
from llm_tasks.methods import METHODS, STRENGTHS, Options
from llm_tasks.resources import memory_needed
from our_compression import timed
from pruning import walk
from pruning.blocks import BlockStorage, HostBlocks
from pruning.layers import decoder_blocks, prunable_weights
from pruning.magnitude import magnitude_masks
from pruning.prefetch import Prefetcher
from pruning.replay import Replay
from pruning.walk import InputStatistics, distinct_inputs, walk_cost
from random_models import (
    Questions,
    Shape,
    matrices,
    questions_like_mmlu,
    random_encoder,
    random_llama,
    random_rows,
    random_windows,
    stack,
    without_weights,
)
from roofline import Roofline, Work

WARM_UP_BATCHES = 4  # of an epoch that does not count
WARM_UP_SHAPE = Shape(16, 1, 2, 2, 16, 16)


@dataclass(frozen=True)
class Job:
    """A Llama, the device that it is on, and how it is compressed.

    Attributes:
        shape: of the whole model.
        blocks: that are made and measured.
    """

    shape: Shape
    blocks: int
    device: torch.device
    dtype: torch.dtype
    nsamples: int
    seq_len: int
    tokens_per_batch: int
    sparsity: float
    bits: int
    group_size: int
    rank: int

    @property
    def measured_shape(self) -> Shape:
        return self.shape._replace(layers=self.blocks)

    def extrapolated(self, seconds: float) -> float:
        """Seconds for all blocks, from those for the measured ones."""
        return seconds * self.shape.layers / self.blocks

    def model(self, layout: str, longest: int | None = None) -> PreTrainedModel:
        return random_llama(self.measured_shape, longest or self.seq_len, self.dtype, self.device, layout)

    def cell(self, method: str) -> Cell:
        """The cell that compresses by a method, at the first strength that it takes."""
        kind = METHODS[method].strengths[0]
        return {**dict.fromkeys(STRENGTHS), "compression": method, kind: getattr(self, kind), "seed": 0}

    def how(self) -> Compression:
        """GPTQ as llmcompressor has it: a symmetric grid with scales from the dense weight."""
        options = Options(group_size=self.group_size, symmetric=True, static_groups=True)
        return Compression(options, "layer", False, None, {}, self.tokens_per_batch, "no")


def warm_up(job: Job) -> dict[str, Any]:
    """Load the libraries and kernels that the methods use, on a tiny model."""
    tiny = replace(job, shape=WARM_UP_SHAPE, blocks=1, nsamples=2, seq_len=8, group_size=8, rank=2)
    for method in ("magnitude", "wanda", "sparsegpt", "gptq"):
        _compress(tiny, method, "device")
    return {}


def _compress(job: Job, method: str, layout: str) -> tuple[float, int]:
    """Compress a new random model; returns seconds, and the device's peak memory while it is compressed."""
    release_memory()
    model, computed_on = job.model(layout), job.device if layout == "host" else None
    windows = random_windows(job.shape, job.nsamples, job.seq_len)
    compressible = CompressibleModel(model, job.how(), keep_dense=False, computed_on=computed_on)
    reset_peak_memory([job.device])
    started = clock([job.device])
    compressible.compress_again(job.cell(method), windows if METHODS[method].statistic else None)
    return clock([job.device]) - started, peak_memory([job.device])


def compress(job: Job, method: str, layout: str, roofline: Roofline) -> dict[str, Any]:
    """Seconds, their floor, and memory of one compression."""
    measured, peak = _compress(job, method, layout)
    return {
        "seconds": job.extrapolated(measured),
        "measured": measured,
        "floor": job.extrapolated(roofline.floor(compression_work(job, method, layout))),
        "peak": peak,
        "predicted": predicted_memory(job, method, layout, job.measured_shape),
        "predicted_whole": predicted_memory(job, method, layout, job.shape),
    }


def predicted_memory(job: Job, method: str | None, layout: str, shape: Shape) -> int | None:
    """Bytes on the device that llm_tasks.resources.memory_needed predicts; None on a CPU.

    Args:
        method: None where nothing is compressed.
    """
    if job.device.type == "cpu":
        return None
    model = without_weights(shape, job.seq_len, job.dtype)
    statistic = METHODS[method].statistic if method else None
    size = (job.nsamples, job.seq_len)
    costs = [walk_cost(model, size, statistic, job.dtype, job.tokens_per_batch)] if statistic else []
    needed = memory_needed(model, job.dtype, layout, True, costs, job.tokens_per_batch)
    return sum(needed.device.values())


def compression_work(job: Job, method: str, layout: str) -> Work:
    """What compressing the measured blocks cannot do without.

    Two forward passes of all tokens and the statistics; for a Hessian its factor, and each row's update of all later
    columns in float32. Every weight is read at both passes and written once.
    """
    model = without_weights(job.measured_shape, job.seq_len, job.dtype)
    statistic, tokens = METHODS[method].statistic, job.nsamples * job.seq_len
    weights = matrices(model)
    weight_bytes = sum(weight.numel() for weight in weights) * job.dtype.itemsize
    flops = float32_flops = 0.0
    states = 0
    if statistic:
        flops = walk_cost(model, (job.nsamples, job.seq_len), statistic, job.dtype).flops
        flops += 2 * attention_flops(job.measured_shape, tokens, job.seq_len / 2)
        states = 4 * tokens * job.shape.hidden * job.dtype.itemsize * job.blocks  # read and written by either pass
    if statistic == "hessian":
        _, blocks = decoder_blocks(model)
        inputs = distinct_inputs(model, walk.block_weights(blocks[0], "block"))
        factors = 2 / 3 * sum(size**3 for size in inputs) * job.blocks
        float32_flops = factors + sum(weight.numel() * weight.shape[1] for weight in weights)
    passes = 3 if statistic else 2
    return Work(flops, float32_flops, passes * weight_bytes + states, weight_bytes if layout == "host" else 0)


def attention_flops(shape: Shape, tokens: float, keys: float) -> float:
    """Of the two matmuls of attention, for tokens that attend to so many keys in the mean."""
    return 4 * shape.hidden * shape.layers * tokens * keys


def stages(job: Job, method: str, layout: str) -> dict[str, float]:
    """Seconds of each stage of the measured blocks; the CPU waits for the device at each, which takes a little longer.

    "Passes" are forward passes that collect statistics, "advance" those through the compressed block; "rest" is
    everything else, such as the trial of the walk, and copies of blocks from the host.
    """

    def now() -> float:
        return clock([job.device])

    parts = {"bring": (Prefetcher, "take"), "passes": (walk, "collect_statistics"), "sums": (InputStatistics, "add"),
             "compress": (walk, "_compress"), "factor": (InputStatistics, "inverse_factor"),
             "advance": (Replay, "advance")}  # fmt: skip
    times = dict.fromkeys(parts, 0.0)
    with _all_timed(parts, times, now):
        whole, _ = _compress(job, method, layout)
    outermost = sum(times[name] for name in ("bring", "passes", "compress", "advance"))
    times["passes"] -= times["sums"]
    times["compress"] -= times["factor"]
    return {**times, "rest": whole - outermost}


@contextmanager
def _all_timed(parts: dict[str, tuple[Any, str]], times: dict[str, float], now: Any) -> Iterator[None]:
    if not parts:
        yield
        return
    (stage, (owner, name)), *others = parts.items()
    with timed(owner, name, times, stage, now), _all_timed(dict(others), times, now):
        yield


def score_questions(
    job: Job, asked: Questions, layout: str, plain_prompts: int, roofline: Roofline
) -> dict[str, Any]:  # fmt: skip
    """Seconds of scoring all prompts by the engine, and some of them the plain way; the floor; memory."""
    release_memory()
    longest = max(job.seq_len, asked.prompt_tokens + 1)
    model = job.model(layout, longest)
    continuations = questions_like_mmlu(asked, job.shape.vocabulary)
    reading = Reading(tokens_per_batch=job.tokens_per_batch)

    def storage() -> BlockStorage | None:
        return HostBlocks(decoder_blocks(model)[1], job.device) if layout == "host" else None

    started = clock([job.device])
    reads = distinct_reads(continuations)
    with held(model, storage()):
        ways = scoring_ways(model, reads)
    trial_seconds = clock([job.device]) - started
    score(model, continuations[:4], reading, ways, storage=storage())  # what is tried once for a model, too
    reset_peak_memory([job.device])
    started = clock([job.device])
    scores = score(model, continuations, reading, ways, storage=storage())
    seconds = clock([job.device]) - started
    peak = peak_memory([job.device])
    some = spread(continuations, min(plain_prompts, asked.prompts))
    started = clock([job.device])
    score(model, some, reading, PLAIN, storage=storage())
    plain_seconds = clock([job.device]) - started
    work = scoring_work(job, asked, scores.work.distinct, layout)
    return {
        "prompts": asked.prompts, "seconds": job.extrapolated(seconds), "plain_prompts": len(some) // 4,
        "plain_seconds": job.extrapolated(plain_seconds), "trial_seconds": trial_seconds,
        "tokens_computed": scores.work.computed, "tokens_distinct": scores.work.distinct, "peak": peak,
        "predicted": predicted_memory(job, None, layout, job.measured_shape), "ways": ways.described(),
        "floor": job.extrapolated(roofline.floor(work)),
    }  # fmt: skip


def spread(continuations: list[Continuation], count: int) -> list[Continuation]:
    """`count` prompts from all subjects, with their letters."""
    prompts = len(continuations) // 4
    chosen = [index * prompts // count for index in range(count)]
    return [continuations[4 * index + letter] for index in chosen for letter in range(4)]


def scoring_work(job: Job, asked: Questions, distinct: int, layout: str) -> Work:
    """Matmuls of the distinct tokens with the blocks' weights, attention, and the output layer where it is read."""
    model = without_weights(job.measured_shape, job.seq_len, job.dtype)
    weights = sum(weight.numel() for weight in matrices(model))
    examples = asked.subjects * asked.examples * asked.example_tokens
    questions = distinct - examples
    keys = asked.examples * asked.example_tokens
    flops = 2 * distinct * weights
    flops += attention_flops(job.measured_shape, examples, keys / 2)
    flops += attention_flops(job.measured_shape, questions, keys + asked.question_tokens / 2)
    flops += 2 * asked.prompts * job.shape.hidden * job.shape.vocabulary
    weight_bytes = weights * job.dtype.itemsize
    return Work(flops, 0.0, weight_bytes, weight_bytes if layout == "host" else 0)


def finetune(
    encoder: str, count: int, length: int, batch_size: int, sparsity: float, device: torch.device
) -> dict[str, Any]:
    """Seconds of an epoch of Sparse Transfer, ours and the original's loop, each after a few batches to warm up."""
    release_memory()
    accelerator = Accelerator(mixed_precision=best_precision(device), cpu=device.type == "cpu")
    pretrained = random_encoder(encoder, length, accelerator.device)
    rows = random_rows(encoder, count, length)
    weights = prunable_weights(pretrained.model, pretrained.new_parameters, include_embeddings=False)
    (keep_masks,) = magnitude_masks(weights, [sparsity])
    args = argparse.Namespace(learning_rate=1e-4, batch_size=batch_size)
    few = rows.select(range(min(count, WARM_UP_BATCHES * batch_size)))
    original_epoch(pretrained, keep_masks, few, stack, accelerator.device, args, 0)
    our_epoch(pretrained, keep_masks, few, stack, accelerator, args, 0)
    accelerator.free_memory()
    started = clock([device])
    original_epoch(pretrained, keep_masks, rows, stack, accelerator.device, args, 0)
    original = clock([device]) - started
    release_memory()
    reset_peak_memory([device])
    started = clock([device])
    trained = our_epoch(pretrained, keep_masks, rows, stack, accelerator, args, 0)
    ours, peak = clock([device]) - started, peak_memory([device])
    parameters = dict(accelerator.unwrap_model(trained).named_parameters())
    unheld = sum(int((parameters[name].detach()[~keep] != 0).sum()) for name, keep in keep_masks.items())
    flops = 6.0 * sum(weight.numel() for weight in weights.values()) * count * length
    precision = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    return {
        "original": original, "ours": ours, "floor": flops / matmul_speed(device, precision), "peak": peak,
        "unheld": unheld, "precision": str(precision).removeprefix("torch."), "steps": math.ceil(count / batch_size),
    }  # fmt: skip
