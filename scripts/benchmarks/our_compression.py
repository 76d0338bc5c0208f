"""Our side of `benchmark.py compression`: one method compresses one model, timed, as peer_llmcompressor.py does."""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from harness.device import keep_freed_memory
from harness.options import positive
from measuring import DECODER, make_parser, seconds
from process_memory import peak_bytes, reset_peak, resident_bytes
from pruning.sparsegpt import sparsegpt_prune
from pruning.walk import CompressLinear, InputStatistics, compress_blocks, walk_cost
from pruning.wanda import wanda_mask
from quantization.gptq import gptq_quantize

STATISTICS = {"wanda": "sq_norms", "sparsegpt": "hessian", "gptq": "hessian"}  # what each method reads of the inputs
DAMPING = 0.01


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of peer_llmcompressor.py."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--windows", type=Path, required=True, help="safetensors file: tokens, (windows, tokens per window)")
    add("--method", choices=tuple(STATISTICS), required=True)
    add("--windows_per_batch", type=positive, required=True, help="windows computed at once")
    add("--save_model", type=Path, help="write the compressed model here")
    add("--result", type=Path, required=True, help="write seconds and bytes here, as JSON")
    add_problem(parser)
    return parser.parse_args(argv)


def add_problem(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model_name_or_path", default=str(DECODER), help="decoder (default asset)")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the weights (default bfloat16)")
    add("--sparsity", type=float, default=0.5, help="wanda, sparsegpt: fraction to prune (default 0.5)")
    add("--bits", type=int, default=4, help="gptq: bits per weight (default 4)")
    add("--group_size", type=positive, default=64,
        help="gptq: inputs that share a scale; the peer wants it to divide all layers' (default 64)")  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Write the figures that peer_llmcompressor.py writes, and where the time went."""
    args = parse_args(argv)
    keep_freed_memory()
    dtype = getattr(torch, args.dtype)
    compress = method_of_the_peer(args.method, args.sparsity, args.bits, args.group_size)
    warm_up_seconds = seconds(lambda: warm_up(compress))
    model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=dtype, use_safetensors=True)
    model.eval().requires_grad_(False)
    tokens = load_file(args.windows)["tokens"]
    cost = walk_cost(model, tuple(tokens.shape), STATISTICS[args.method], dtype)
    floor_seconds = cost.flops / cost.measured_flops_per_second(model.device)
    loading_peak, loaded_bytes = peak_bytes(), resident_bytes()
    reset_peak()
    cpu_started = time.process_time()
    stages = compress_in_stages(model, tokens, compress, STATISTICS[args.method], args.windows_per_batch)
    cpu_seconds, compressing_peak = time.process_time() - cpu_started, peak_bytes()
    result = {
        "seconds": sum(stages.values()),
        "cpu_seconds": cpu_seconds,
        "stages": stages,
        "warm_up_seconds": warm_up_seconds,
        "floor_seconds": floor_seconds,
        "loaded_bytes": loaded_bytes,
        "compressing_peak_bytes": compressing_peak,
        "peak_bytes": max(loading_peak, compressing_peak),
    }
    if args.save_model:
        model.save_pretrained(args.save_model)
        AutoTokenizer.from_pretrained(args.model_name_or_path).save_pretrained(args.save_model)
    args.result.write_text(json.dumps(result))


def method_of_the_peer(name: str, sparsity: float = 0.5, bits: int = 4, group_size: int = 64) -> CompressLinear:
    """Our method with the peer's defaults: GPTQ on a symmetric grid whose scales come from the dense weight."""

    def wanda(W: Tensor, inputs: InputStatistics, name: str) -> Tensor:
        return wanda_mask(W, inputs.sq_norms, sparsity)

    def sparsegpt(W: Tensor, inputs: InputStatistics, name: str) -> Tensor:
        return sparsegpt_prune(W, inputs.inverse_factor(DAMPING), sparsity)

    def gptq(W: Tensor, inputs: InputStatistics, name: str) -> Tensor:
        factor = inputs.inverse_factor(DAMPING)
        return gptq_quantize(W, factor, bits, group_size, symmetric=True, static_groups=True)

    return {"wanda": wanda, "sparsegpt": sparsegpt, "gptq": gptq}[name]


def warm_up(compress: CompressLinear) -> None:
    """Compile the kernels, or load them from where an earlier process has kept them."""
    draw = torch.Generator().manual_seed(0)
    inputs = InputStatistics("hessian", 64, torch.device("cpu"))
    inputs.add(torch.randn(128, 64, generator=draw))
    compress(torch.randn(64, 64, generator=draw), inputs, "")


def compress_in_stages(
    model: PreTrainedModel, tokens: Tensor, compress: CompressLinear, statistic: str, windows_per_batch: int
) -> dict[str, float]:
    """Compress the model in place; returns the seconds of each stage, which add up to the whole."""
    times = dict.fromkeys(("statistics", "factorisation", "method"), 0.0)
    tokens_per_batch = windows_per_batch * tokens.shape[1]

    def timed_compress(W: Tensor, inputs: InputStatistics, name: str) -> Tensor:
        started, factored = time.perf_counter(), times["factorisation"]
        compressed = compress(W, inputs, name)
        times["method"] += time.perf_counter() - started - (times["factorisation"] - factored)
        return compressed

    with (
        timed(InputStatistics, "add", times, "statistics"),
        timed(InputStatistics, "inverse_factor", times, "factorisation"),
    ):
        total = seconds(
            lambda: compress_blocks(model, tokens, timed_compress, statistic, tokens_per_batch=tokens_per_batch)
        )
    return {"forward": total - sum(times.values()), **times}


@contextlib.contextmanager
def timed(
    owner: type | ModuleType,
    name: str,
    times: dict[str, float],
    stage: str,
    now: Callable[[], float] = time.perf_counter,
) -> Iterator[None]:
    """In this context, the seconds of every call of the function `name` of `owner` are added to times[stage].

    Args:
        now: the clock; one that waits for a device counts what the call has started there.
    """
    method = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        started = now()
        try:
            return method(*arguments, **named)
        finally:
            times[stage] += now() - started

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, method)


if __name__ == "__main__":
    main()
