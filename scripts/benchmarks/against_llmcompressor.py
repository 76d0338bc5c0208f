"""Wanda, SparseGPT and GPTQ against llmcompressor (peer_llmcompressor.py says how to install it).

    python scripts/benchmark.py compression --peer_python peers/bin/python --calibration c4.jsonl --text wikitext.txt

Both sides get the same model, token windows and dtype, and run in separate processes, in turn: ours, the peer, ours, …
The same command measures both sides' perplexity. Ratios are medians over turns. The floor is what the walk's matmuls
take at this machine's speed, measured in the same run. Linux only: peak memory is read from /proc.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from harness.options import positive
from measuring import (
    HERE,
    MEMORY_TITLES,
    ROOT,
    make_parser,
    memory_cells,
    print_table,
    ratio,
    run_quietly,
    side_environment,
)
from our_compression import STATISTICS, add_problem
from pruning.calibration import calibration_tokens


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--peer_python", type=Path, required=True, help="interpreter of an environment that holds llmcompressor")
    add("--calibration", required=True, help="text: a .txt, .jsonl or .parquet file, also .gz; c4 or wikitext2")
    add("--text", help="held-out text, as --calibration; without it perplexity is not measured")
    add("--nsamples", type=positive, default=32, help="calibration windows (default 32)")
    add("--calibration_length", type=positive, default=512, help="tokens per calibration window (default 512)")
    add("--windows_per_batch", type=positive, default=8, help="windows computed at once, on both sides (default 8)")
    add("--seq_len", type=positive, default=1024, help="tokens per evaluated window (default 1024)")
    add("--max_windows", type=positive, default=32, help="evaluated windows (default 32)")
    add("--methods", nargs="+", choices=tuple(STATISTICS), default=list(STATISTICS), help="default all")
    add("--turns", type=positive, default=3, help="runs of each method on each side (default 3)")
    add("--threads", type=positive, default=torch.get_num_threads(), help="of each side (default: torch's)")
    add("--output", type=Path, help="write every measurement here, as JSON")
    add_problem(parser)
    args = parser.parse_args(argv)
    if not args.peer_python.is_file():
        parser.error(f"--peer_python {args.peer_python}: no such file; peer_llmcompressor.py says how to make it")
    if not Path("/proc/self/clear_refs").exists():
        parser.error("peak memory is read from Linux's /proc, which this system lacks")
    return args


class Problem(NamedTuple):
    """The work that both sides are given.

    Fields:
        windows: safetensors file with the calibration tokens, (windows, tokens per window).
        options: command line of all other options that our_compression.py and peer_llmcompressor.py share.
        environment: environment variables of both processes.
    """

    windows: Path
    options: list[str]
    environment: dict[str, str]


def main(argv: list[str] | None = None) -> None:
    """Run every method on both sides, in turn, and print the tables."""
    args = parse_args(argv)
    shown = f"{args.nsamples} windows of {args.calibration_length} tokens"
    print(f"{args.model_name_or_path}, {shown}, {args.dtype}, {args.threads} threads, sparsity {args.sparsity}, "
          f"{args.bits} bits in groups of {args.group_size}", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        problem = make_problem(args, Path(folder))
        runs = {name: take_turns(problem, name, args.peer_python, args.turns, Path(folder)) for name in args.methods}
        scores = perplexities(args, problem, Path(folder)) if args.text else {}
    model_bytes = max(run["loaded_bytes"] for sides in runs.values() for run in sides["ours"])
    print(f"peer: {runs[args.methods[0]]['peer'][0]['versions']}; ours when loaded: {model_bytes / 1e6:.0f} MB")
    print_compression(runs, scores)
    if args.output:
        args.output.write_text(json.dumps({"options": problem.options, "runs": runs, "perplexity": scores}, indent=1))


def make_problem(args: argparse.Namespace, folder: Path) -> Problem:
    """Draw the calibration windows and write them to <folder>/windows.safetensors, which both sides read."""
    windows = folder / "windows.safetensors"
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    tokens = calibration_tokens(tokenizer, args.calibration, args.nsamples, args.calibration_length, seed=0)
    save_file({"tokens": tokens}, windows)
    shared = ("model_name_or_path", "dtype", "sparsity", "bits", "group_size", "windows_per_batch")
    options = [part for name in shared for part in (f"--{name}", str(getattr(args, name)))]
    return Problem(windows, options, side_environment(args.threads, Path(args.model_name_or_path).is_dir()))


def take_turns(
    problem: Problem, method: str, peer_python: Path, turns: int, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Measurements of each side, one per turn; the first turn's models are kept as <folder>/<method>-<side>."""
    sides = {
        "ours": [sys.executable, str(HERE / "our_compression.py")],
        "peer": [str(peer_python), str(HERE / "peer_llmcompressor.py")],
    }
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(turns):
        for side, command in sides.items():
            result = folder / "result.json"
            command = [*command, "--method", method, "--windows", str(problem.windows), "--result", str(result)]
            saved = [] if turn else ["--save_model", str(folder / f"{method}-{side}")]
            run_quietly([*command, *problem.options, *saved], problem.environment, folder)
            runs[side].append(json.loads(result.read_text()))
            print(f"  {method} {side}, turn {turn + 1}: {runs[side][-1]['seconds']:.1f} s", flush=True)
    return runs


def perplexities(args: argparse.Namespace, problem: Problem, folder: Path) -> dict[str, float]:
    """Perplexity of the dense model and of each compressed one in `folder`, by name, on the same windows of --text."""
    models = {"dense": Path(args.model_name_or_path)}
    models |= {f"{method}-{side}": folder / f"{method}-{side}" for method in args.methods for side in ("ours", "peer")}
    scores = {}
    for name, model in models.items():
        out = folder / "perplexity" / name
        evaluation = ["--text", args.text, "--seq_len", str(args.seq_len), "--max_windows", str(args.max_windows)]
        run_quietly(
            [sys.executable, str(ROOT / "llm_tasks" / "perplexity.py"), "--model_name_or_path", str(model), "--dtype",
             args.dtype, "--output_dir", str(out), *evaluation],
            problem.environment, folder,
        )  # fmt: skip
        scores[name] = json.loads((out / "all_results.json").read_text())["levels"][0]["score"]
    return scores


def print_compression(runs: dict[str, dict[str, list[dict[str, Any]]]], scores: dict[str, float]) -> None:
    """Print seconds, memory, perplexity where it was measured, and our stages; `runs` is by method and side."""
    rows = []
    for method, sides in runs.items():
        ours, peer = ([run["seconds"] for run in sides[side]] for side in ("ours", "peer"))
        floor = statistics.median(run["floor_seconds"] for run in sides["ours"])
        rows.append([method, f"{statistics.median(peer):.1f}", f"{statistics.median(ours):.1f}", ratio(peer, ours),
                     ratio(*([run["cpu_seconds"] for run in sides[side]] for side in ("peer", "ours"))),
                     f"{floor:.1f}"])  # fmt: skip
    print_table(["seconds", "peer", "ours", "peer / ours", "the same in CPU time", "floor"], rows)
    rows = []
    for method, sides in runs.items():
        rows.append([method, *memory_cells(sides)])
    print_table(MEMORY_TITLES, rows)
    if scores:
        rows = [[method, f"{scores[f'{method}-peer']:.3f}", f"{scores[f'{method}-ours']:.3f}",
                 f"{scores[f'{method}-ours'] / scores[f'{method}-peer'] - 1:+.2%}"] for method in runs]  # fmt: skip
        print_table([f"perplexity (dense {scores['dense']:.3f})", "peer", "ours", "ours / peer - 1"], rows)
    stages = list(next(iter(runs.values()))["ours"][0]["stages"])
    rows = [[method, *(f"{statistics.median(run['stages'][stage] for run in sides['ours']):.2f}" for stage in stages),
             f"{sides['ours'][0]['warm_up_seconds']:.1f}"] for method, sides in runs.items()]  # fmt: skip
    print_table(["our seconds", *stages, "uncounted: compiling or loading kernels"], rows)


if __name__ == "__main__":
    main()
