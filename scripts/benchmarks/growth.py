"""Seconds of compression over calibration tokens, blocks and the number of strengths.

    python scripts/benchmark.py growth --calibration c4.jsonl

Tokens and blocks are measured on random Llamas; strengths on a model of yours, by perplexity.py.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.options import positive
from measuring import CLOCKS, DECODER, ROOT, growth_exponent, make_parser, print_table, run_quietly, seconds
from our_compression import STATISTICS, method_of_the_peer
from pruning.walk import compress_blocks
from random_models import Shape, random_llama

VOCABULARY = 1000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--methods", nargs="+", choices=tuple(STATISTICS), default=list(STATISTICS), help="default all")
    add("--nsamples", type=positive, nargs=3, default=[8, 16, 32], help="calibration windows (default 8 16 32)")
    add("--blocks", type=positive, nargs=3, default=[2, 4, 8], help="of a random Llama (default 2 4 8)")
    add("--calibration_length", type=positive, default=512, help="tokens per calibration window (default 512)")
    add("--hidden_size", type=positive, default=576, help="of the random Llama (default 576, as SmolLM2-135M)")
    add("--turns", type=positive, default=3, help="repetitions; the fastest counts (default 3)")
    add("--clock", choices=tuple(CLOCKS), default="wall",
        help="cpu: of all threads; steadier on a shared machine (with OMP_NUM_THREADS=1)")  # fmt: skip
    add("--strengths", type=positive, nargs="+", default=[1, 2, 4], help="in one sweep (default 1 2 4)")
    add("--model_name_or_path", default=str(DECODER), help="decoder of the sweep over strengths (default asset)")
    add("--calibration", help="its text: .txt, .jsonl or .parquet, also .gz; without it no sweep over strengths")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the weights (default bfloat16)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Print seconds over calibration windows, blocks and strengths."""
    args = parse_args(argv)
    dtype = getattr(torch, args.dtype)
    print(f"random Llama of width {args.hidden_size}, windows of {args.calibration_length} tokens, {args.dtype}, "
          f"{torch.get_num_threads()} threads, {args.clock} time, best of {args.turns} turns", flush=True)  # fmt: skip
    blocks, windows = min(args.blocks), min(args.nsamples)
    shapes = {
        f"calibration windows ({blocks} blocks)": [(size, size, blocks) for size in args.nsamples],
        f"blocks ({windows} windows)": [(size, windows, size) for size in args.blocks],
    }
    for title, sizes in shapes.items():
        rows = []
        for name in args.methods:
            models = [
                (small_llama(blocks, args.hidden_size, args.calibration_length, dtype), windows)
                for _, windows, blocks in sizes
            ]
            times = growth_times(name, models, args.calibration_length, args.turns, CLOCKS[args.clock])
            exponent = growth_exponent([size for size, *_ in sizes], times)
            rows.append([name, *(f"{time:.2f}" for time in times), f"{exponent:.2f}"])
        print_table([title, *(str(size) for size, *_ in sizes), "seconds grow as size ^"], rows)
    if args.calibration:
        print_strengths(args)


def growth_times(
    name: str, models: list[tuple[PreTrainedModel, int]], length: int, turns: int, clock: Callable[[], float]
) -> list[float]:
    """Seconds of a method on each (model, windows): the fastest of the turns, after one that does not count."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(turns + 1):
        for (model, windows), measured in zip(models, times, strict=True):
            tokens = random_tokens(windows, length)
            started = clock()
            compress_blocks(model, tokens, method_of_the_peer(name), STATISTICS[name])
            measured.append(clock() - started)
    return [min(measured[1:]) for measured in times]


def small_llama(blocks: int, hidden_size: int, length: int, dtype: torch.dtype) -> PreTrainedModel:
    """A Llama of SmolLM2's proportions with random weights, on whose values a method's time does not depend."""
    heads, kv_heads = hidden_size // 64, max(1, hidden_size // 192)
    shape = Shape(hidden_size, blocks, heads, kv_heads, hidden_size * 8 // 3, VOCABULARY)
    return random_llama(shape, length, dtype, torch.device("cpu"))


def random_tokens(windows: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(0))


def print_strengths(args: argparse.Namespace) -> None:
    """Print seconds of perplexity.py with more and more sparsities: in total, per strength, and outside the runs."""
    rows = []
    for count in args.strengths:
        with tempfile.TemporaryDirectory() as folder:
            whole, per_run = sweep(args, count, Path(folder))
        rows.append([str(count), f"{whole:.1f}", f"{statistics.mean(per_run[1:] or per_run):.1f}",
                     f"{whole - sum(per_run):.1f}"])  # fmt: skip
    print_table(["strengths (wanda)", "seconds", "per strength, after the first", "outside of them"], rows)


def sweep(args: argparse.Namespace, count: int, folder: Path) -> tuple[float, list[float]]:
    """Seconds of one process that compresses with Wanda at `count` sparsities, and of each of its runs in order."""
    sparsities = [f"{0.3 + 0.4 * index / count:.3g}" for index in range(count)]
    command = [
        sys.executable, str(ROOT / "llm_tasks" / "perplexity.py"), "--model_name_or_path", args.model_name_or_path,
        "--dtype", args.dtype, "--compression", "wanda", "--sparsity", *sparsities, "--calibration", args.calibration,
        "--nsamples", str(min(args.nsamples)), "--calibration_length", str(args.calibration_length),
        "--text", args.calibration, "--seq_len", "64", "--max_windows", "1", "--output_dir", f"{folder}/{{strength}}",
    ]  # fmt: skip
    whole = seconds(lambda: run_quietly(command, None, folder))
    results = [json.loads((folder / sparsity / "all_results.json").read_text()) for sparsity in sparsities]
    return whole, [result["seconds"] for result in results]


if __name__ == "__main__":
    main()
