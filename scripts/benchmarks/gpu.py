"""Compression, scoring and fine-tuning at real sizes on a GPU, each beside its floor; models are random.

    python scripts/benchmark.py gpu --output gpu.json
    python scripts/benchmark.py gpu --shape 70B --layout host --blocks_measured 4 --parts compression
    python scripts/benchmark.py gpu --peer_python peers/bin/python lm_eval_peer/bin/python

Speed depends on shapes, not on weights: a random Llama is made on the device and calibrated on random tokens, and an
encoder of RoBERTa's shape is trained on random tokens. The floor is what a step cannot do without at the speeds that
this device reaches in the same run: the largest of its matmuls' time, its memory's and the way's from the host.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import against_lm_eval
import device_work
from harness.device import device_name, device_named, is_out_of_memory, keep_freed_memory, release_memory, use_device
from harness.errors import first_line
from harness.models import quiet_libraries
from harness.options import number, positive
from llm_tasks.methods import METHODS
from measuring import ASSETS, DECODER, HERE, make_parser, print_table, run_quietly, side_environment
from random_models import ENCODERS, SHAPES, Questions, Shape, random_windows, save_for_peer
from roofline import Roofline, measured_roofline

PARTS = ("compression", "scoring", "finetuning")
CALIBRATED = ("wanda", "sparsegpt", "gptq")  # what llmcompressor has too
PEERS = {"compression": "llmcompressor", "scoring": "lm_eval"}  # by part, the library
LAYOUTS = ("device", "host")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, or an accelerator such as cuda:1 (default auto)")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default all")
    add("--layout", nargs="+", choices=LAYOUTS, default=["device"],
        help="where the decoder blocks are: on the device or in host memory, one at a time on the device (default "
        "device; both may be given)")  # fmt: skip
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the decoder")
    add("--output", type=Path, help="write every figure here, as JSON")
    add_shape(parser)
    add_work(parser)
    args = parser.parse_args(argv)
    check_args(parser, args)
    return args


def add_shape(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("shape of the random Llama")
    group.add_argument("--shape", choices=tuple(SHAPES), default="7B", help="sizes to begin with (default 7B)")
    for name in Shape._fields:
        group.add_argument(f"--{name}", type=positive, help=f"another {name.replace('_', ' ')} than the shape's")
    group.add_argument("--blocks_measured", type=positive, metavar="N",
        help="make and measure N blocks; seconds are extrapolated linearly to all (default all)")  # fmt: skip


def add_work(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("work")
    add = group.add_argument
    names = [name for name in METHODS if name in ("magnitude", *CALIBRATED)]
    add("--methods", nargs="+", choices=tuple(METHODS), default=names, metavar="NAME",
        help=f"of {', '.join(METHODS)} (default {' '.join(names)})")  # fmt: skip
    add("--nsamples", type=positive, default=128, help="calibration windows (default 128)")
    add("--seq_len", type=positive, default=2048, help="tokens per calibration window (default 2048)")
    add("--tokens_per_batch", type=positive, default=4096, help="tokens computed at once (default 4096)")
    add("--sparsity", type=number(float, 0, 1, open_high=True), default=0.5, help="fraction to prune (default 0.5)")
    add("--bits", type=number(int, 2, 16), default=4, help="bits of a quantized weight (default 4)")
    add("--group_size", type=positive, default=128, help="inputs that share a scale (default 128)")
    add("--rank", type=positive, default=64, help="of low_rank (default 64)")
    add(
        "--stages",
        action="store_true",
        help="compress once more with a clock that waits for the device at each stage, and print where time goes",
    )
    add("--subjects", type=positive, default=57, help="groups of prompts that share few-shot examples (default 57)")
    add("--questions", type=positive, default=20, help="of each subject (default 20)")
    add("--example_tokens", type=positive, default=90, help="tokens of an example and of a question (default 90)")
    add("--plain_prompts", type=positive, default=57, help="prompts scored the plain way, one by one (default 57)")
    add("--encoder", choices=tuple(ENCODERS), help="shape to fine-tune (default large; tiny with --shape tiny)")
    add("--rows", type=positive, default=3200, help="of an epoch (default 3200)")
    add("--max_length", type=positive, default=128, help="tokens of a row (default 128)")
    add("--batch_size", type=positive, default=32, help="rows per step (default 32)")
    add(
        "--peer_python",
        type=Path,
        nargs="+",
        default=[],
        help="interpreters of environments that hold llmcompressor (compression) or lm-eval (scoring: MMLU)",
    )
    add("--model", type=Path, default=DECODER, help="decoder for MMLU against lm-eval (default asset)")
    add("--data_dir", type=Path, default=ASSETS / "data", help="folder of mmlu/ (default assets)")
    add("--items", type=positive, default=500, help="rows of MMLU against lm-eval (default 500)")


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    shape = asked_shape(args)
    try:
        args.device = device_named(args.device)
    except ValueError as error:
        parser.error(str(error))
    if shape.hidden % shape.heads or shape.heads % shape.kv_heads:
        parser.error(f"--heads {shape.heads} does not divide --hidden {shape.hidden}, or --kv_heads {shape.kv_heads} "
                     f"not --heads")  # fmt: skip
    if shape.vocabulary < 8:
        parser.error(f"--vocabulary {shape.vocabulary}: the letters and a token of text need 8")
    if args.blocks_measured and args.blocks_measured > shape.layers:
        parser.error(f"--blocks_measured {args.blocks_measured}: the model has {shape.layers} blocks")
    for python in args.peer_python:
        if not python.is_file():
            parser.error(f"--peer_python {python}: no such file; peer_llmcompressor.py and peer_lm_eval.py say how to "
                         "make it")  # fmt: skip
    if args.output and not args.output.parent.is_dir():
        parser.error(f"--output {args.output}: its folder does not exist")


def asked_shape(args: argparse.Namespace) -> Shape:
    """All blocks of the Llama that is asked for."""
    given = {name: getattr(args, name) for name in Shape._fields if getattr(args, name) is not None}
    return SHAPES[args.shape]._replace(**given)


def main(argv: list[str] | None = None) -> int:
    """Measure the parts that are asked for; returns 1 if one of them failed."""
    args = parse_args(argv)
    if "host" in args.layout and args.device.type == "cpu":
        raise SystemExit("gpu: --layout host brings blocks to an accelerator; the device is the CPU")
    quiet_libraries()
    keep_freed_memory()
    use_device(args.device)
    roofline = measured_roofline(args.device, getattr(torch, args.dtype))
    found: dict[str, Any] = {"options": vars(args), "device": device_name(args.device), **roofline._asdict()}
    print(headline(args, roofline), flush=True)
    works = {"compression": measure_compression, "scoring": measure_scoring, "finetuning": measure_finetuning}
    failures: list[str] = []
    for part in dict.fromkeys(args.parts):
        found[part] = works[part](args, roofline, failures)
    if args.output:
        args.output.write_text(json.dumps({**found, "failures": failures}, default=str, indent=1))
    return 1 if failures else 0


def headline(args: argparse.Namespace, roofline: Roofline) -> str:
    """What is measured where, and how fast the device is."""
    shape = asked_shape(args)
    link = roofline.link_bytes_per_second
    lines = [
        f"{device_name(args.device)} ({args.device}), torch {torch.__version__}; {args.dtype}: "
        f"{roofline.flops_per_second / 1e12:.3g} TFLOP/s, float32: {roofline.float32_flops_per_second / 1e12:.3g}; "
        f"memory: {roofline.bytes_per_second / 1e9:.3g} GB/s" + (f", from host: {link / 1e9:.3g}" if link else ""),
        f"random Llama: {', '.join(f'{name} {size}' for name, size in shape._asdict().items())}",
    ]
    if args.blocks_measured:
        lines.append(f"{args.blocks_measured} of {shape.layers} blocks are measured: seconds are extrapolated linearly "
                     "to all, memory is that of the measured ones")  # fmt: skip
    if args.device.type == "cpu":
        lines.append("on the CPU memory is that of the whole process since its start, and no prediction is compared")
    return "\n".join(lines)


def attempt(what: str, work: Callable[[], dict[str, Any]], failures: list[str]) -> dict[str, Any] | None:
    """What the work returns; None, and a line, where it fails by memory, numbers or a peer's error."""
    try:
        return work()
    except (RuntimeError, ValueError, ArithmeticError, OSError, SystemExit) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            reason = f"out of memory: {first_line(error)}"
        else:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = lines[-1] if isinstance(error, SystemExit) else f"{type(error).__name__}: {lines[0]}"
    failures.append(f"{what}: {reason}")
    print(f"gpu: {failures[-1]}", file=sys.stderr, flush=True)
    release_memory()
    return None


def measure_compression(args: argparse.Namespace, roofline: Roofline, failures: list[str]) -> dict[str, Any]:
    """Each method in each layout, and llmcompressor's."""
    job = compression_job(args)
    attempt("warm-up", lambda: device_work.warm_up(job), failures)
    found: dict[str, Any] = {}
    for layout in args.layout:
        for method in args.methods:
            name = f"{method}, blocks on the {layout}"
            work = attempt(name, lambda m=method, where=layout: device_work.compress(job, m, where, roofline), failures)
            if work and args.stages:
                staged = attempt(name, lambda m=method, where=layout: device_work.stages(job, m, where), failures)
                work["stages"] = staged
            if work:
                found[name] = work
                print(f"  {name}: {work['seconds']:.2f} s", flush=True)
    peers = peer_compression(args, job, failures)
    print_compression(found, peers)
    return {**found, "llmcompressor": peers}


def compression_job(args: argparse.Namespace) -> device_work.Job:
    shape = asked_shape(args)
    return device_work.Job(
        shape, args.blocks_measured or shape.layers, args.device, getattr(torch, args.dtype), args.nsamples,
        args.seq_len, args.tokens_per_batch, args.sparsity, args.bits, args.group_size, args.rank,
    )  # fmt: skip


def print_compression(found: dict[str, Any], peers: dict[str, Any]) -> None:
    rows = []
    for name, work in found.items():
        method = name.partition(",")[0]
        peer = peers.get(method)
        rows.append([
            name, f"{work['seconds']:.2f}", f"{work['floor']:.2f}", f"{work['seconds'] / work['floor']:.2f}",
            gigabytes(work["peak"]), gigabytes(work["predicted"]), gigabytes(work["predicted_whole"]),
            f"{peer['seconds']:.2f}" if peer else "-", f"{peer['seconds'] / work['seconds']:.2f}" if peer else "-",
            gigabytes(peer.get("device_peak_bytes")) if peer else "-",
        ])  # fmt: skip
    if rows:
        print_table(["seconds of compression", "ours", "floor", "ours / floor", "peak GB", "predicted",
                     "predicted for all blocks", "llmcompressor", "llmcompressor / ours", "its peak GB"],
                    rows)  # fmt: skip
    staged = {name: work["stages"] for name, work in found.items() if work.get("stages")}
    if staged:
        names = list(next(iter(staged.values())))
        rows = [[name, *(f"{seconds[stage]:.2f}" for stage in names)] for name, seconds in staged.items()]
        print_table(["seconds by stage, of the measured blocks", *names], rows)


def gigabytes(number: int | None) -> str:
    return f"{number / 1e9:.3g}" if number else "-"


def peer_compression(args: argparse.Namespace, job: device_work.Job, failures: list[str]) -> dict[str, Any]:
    """llmcompressor on the same model, blocks and windows, by method; nothing without an interpreter that has it."""
    python, methods = peer_with(args.peer_python, "compression"), [name for name in CALIBRATED if name in args.methods]
    found: dict[str, Any] = {}
    if python is None or not methods:
        return found
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_for_peer(job.model("host"), folder / "model")
        save_file({"tokens": random_windows(job.shape, job.nsamples, job.seq_len)}, folder / "windows.safetensors")
        for method in methods:
            command = [
                str(python), str(HERE / "peer_llmcompressor.py"), "--model_name_or_path", str(folder / "model"),
                "--windows", str(folder / "windows.safetensors"), "--method", method, "--dtype", args.dtype,
                "--sparsity", str(args.sparsity), "--bits", str(args.bits), "--group_size", str(args.group_size),
                "--windows_per_batch", str(max(1, args.tokens_per_batch // args.seq_len)), "--result",
                str(folder / "result.json"),
            ]  # fmt: skip

            def run(command: list[str] = command) -> dict[str, Any]:
                run_quietly(command, side_environment(torch.get_num_threads(), True), folder)
                result = json.loads((folder / "result.json").read_text())
                return {**result, "seconds": job.extrapolated(result["seconds"]), "measured": result["seconds"]}

            if result := attempt(f"llmcompressor, {method}", run, failures):
                found[method] = result
                print(f"  llmcompressor, {method}: {result['seconds']:.2f} s", flush=True)
    return found


def peer_with(pythons: list[Path], part: str) -> Path | None:
    """The first of some interpreters that has the peer of a part; says so where there are some, and none has it."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    for python in pythons:
        if subprocess.run([str(python), "-c", code, PEERS[part]], check=False).returncode == 0:
            return python
    if pythons:
        print(f"gpu: no interpreter of --peer_python has {PEERS[part]}: {part} has no peer", file=sys.stderr)
    return None


def measure_scoring(args: argparse.Namespace, roofline: Roofline, failures: list[str]) -> dict[str, Any]:
    """Multiple choice with shared few-shot examples by the engine and the plain way; MMLU against lm-eval."""
    job = compression_job(args)
    asked = Questions(args.subjects, args.questions, 5, args.example_tokens, args.example_tokens)
    found, rows = {}, []
    for layout in args.layout:
        work = attempt(
            f"scoring, blocks on the {layout}",
            lambda where=layout: device_work.score_questions(job, asked, where, args.plain_prompts, roofline), failures,
        )  # fmt: skip
        if work:
            found[layout] = work
            rows.append([f"blocks on the {layout}", f"{work['prompts'] / work['seconds']:.1f}",
                         f"{work['plain_prompts'] / work['plain_seconds']:.1f}",
                         f"{work['plain_seconds'] / work['plain_prompts'] / (work['seconds'] / work['prompts']):.1f}",
                         f"{work['prompts'] / work['floor']:.1f}", f"{work['seconds'] / work['floor']:.2f}",
                         f"{work['tokens_computed'] / work['tokens_distinct']:.3f}", gigabytes(work["peak"]),
                         gigabytes(work["predicted"]), f"{work['trial_seconds']:.1f}"])  # fmt: skip
    if rows:
        print(f"\n{asked.prompts} prompts of {asked.prompt_tokens} tokens, {asked.subjects} subjects, four letters")
        print_table(["prompts per second", "engine", "plain", "engine / plain", "at the floor", "seconds / floor",
                     "tokens / distinct", "peak GB", "predicted", "once: seconds of trials"], rows)  # fmt: skip
    if (python := peer_with(args.peer_python, "scoring")) is not None:
        attempt("MMLU against lm-eval", lambda: against_harness(args, python), failures)
    return found


def against_harness(args: argparse.Namespace, python: Path) -> dict[str, Any]:
    """`benchmark.py evaluation` on MMLU with both sides on the device; prints its tables and writes beside --output."""
    words = ["--peer_python", str(python), "--tasks", "mmlu", "--device", str(args.device), "--dtype", args.dtype,
             "--model", str(args.model), "--data_dir", str(args.data_dir), "--items", str(args.items), "--turns", "1",
             "--tokens_per_batch", str(args.tokens_per_batch)]  # fmt: skip
    if args.output:
        words += ["--output", str(args.output.with_name(f"{args.output.stem}_mmlu.json"))]
    against_lm_eval.main(words)
    return {}


def measure_finetuning(args: argparse.Namespace, roofline: Roofline, failures: list[str]) -> dict[str, Any]:
    """An epoch with a held mask, against the original's loop."""
    encoder = args.encoder or ("tiny" if args.shape == "tiny" else "large")
    work = attempt(
        "finetuning",
        lambda: device_work.finetune(encoder, args.rows, args.max_length, args.batch_size, args.sparsity, args.device),
        failures,
    )
    if work:
        title = f"an epoch of {args.rows} rows of {args.max_length} tokens, encoder {encoder}"
        shown = [f"{work[name]:.2f}" for name in ("original", "ours", "floor")]
        ratios = [f"{work['original'] / work['ours']:.2f}", f"{work['ours'] / work['floor']:.2f}"]
        print_table(
            [title, "original s", "ours s", "floor s", "original / ours", "ours / floor", "peak GB",
             "dropped weights not 0"],
            [[work["precision"], *shown, *ratios, gigabytes(work["peak"]), str(work["unheld"])]],
        )  # fmt: skip
    return work or {}


if __name__ == "__main__":
    sys.exit(main())
