"""Speed and memory, each against another way or the floor, side by side in one run.

    python scripts/benchmark.py finetuning
    python scripts/benchmark.py finetuning masks --model_name_or_path roberta-base
    python scripts/benchmark.py compression --peer_python peers/bin/python --calibration c4.jsonl --text wikitext.txt
    python scripts/benchmark.py growth --calibration c4.jsonl
    python scripts/benchmark.py evaluation --peer_python lm_eval_peer/bin/python --threads 1 --output evaluation.json
    python scripts/benchmark.py evaluation --growth --tasks hellaswag --items 50
    python scripts/benchmark.py evaluation --k_shot --subjects astronomy --items 100

finetuning: masks, holding them, and a training epoch against the original's way, which is written out here from what
its code does (selection by a sorted top-k per sparsity; batches of random rows padded to their longest, float32,
AdamW's default, the mask multiplied into a new tensor every step), on the same machine, data and model in turn.

compression: Wanda, SparseGPT and GPTQ against llmcompressor (peer_llmcompressor.py says how to install it), on the same
model, token windows and dtype; each side in a process of its own, in turn; perplexity of both by the same command.
Linux only: peak memory is read from /proc.

growth: seconds of compression over calibration tokens, blocks and the number of strengths.

evaluation: multiple choice by the engine of settings 2 to 6 against lm-evaluation-harness (peer_lm_eval.py says how to
install it), on the same rows, model and dtype; each side in a process of its own, in turn. Linux only. Scoring is
tokenising and computing log-likelihoods. Building, told with it too, is all that makes prompts: the peer's reads the
chosen rows, ours and checks the whole file. With --growth our side alone, over the number of items; with --k_shot all
of setting 4 at once against each number of examples apart.

Ratios are medians over turns; seconds are of this machine. The floor is what the step cannot do without, measured in
the same run.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorWithPadding,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_scheduler,
)

from llm_tasks import commonsense, mmlu, setting4_k_shot, setting5_human_gap
from llm_tasks.arguments import max_length
from llm_tasks.encoding import EncodedLevel, TextEncoder, encode_levels, prompt_text
from llm_tasks.experiment import Evaluation
from llm_tasks.levels import measure
from llm_tasks.prompts import Level
from pruning.calibration import calibration_tokens
from pruning.checkpoints import converted_tensor_by_tensor
from pruning.device import best_precision
from pruning.layers import prunable_weights
from pruning.magnitude import magnitude_masks
from pruning.masks import apply_masks, hold_masks
from pruning.sparsegpt import sparsegpt_prune
from pruning.walk import CompressLinear, InputStatistics, compress_blocks, walk_cost
from pruning.wanda import wanda_mask
from quantization.gptq import gptq_quantize


def imported_when_used(name: str) -> ModuleType:
    """A module that costs nothing before its first attribute is asked for."""
    spec = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# Their libraries take 80 MB, which would count as memory of compression and evaluation.
finetune, glue_data = map(imported_when_used, ("GLUE_tasks.finetune", "GLUE_tasks.glue_data"))

ROOT = Path(__file__).resolve().parents[1]
MEMORY_TITLES = ["peak MB", "peer", "ours", "ours / peer", "beside the loaded: peer", "ours", "ours / peer"]
ASSETS = Path("~/.cache/junk_dna").expanduser()
DECODER = ASSETS / "models" / "SmolLM2-135M-Instruct"
SPARSITIES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
PARTS = ("masks", "hold", "epoch")
STATISTICS = {"wanda": "sq_norms", "sparsegpt": "hessian", "gptq": "hessian"}  # what each method reads of the inputs
DAMPING = 0.01
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
EVALUATED = ("piqa", "hellaswag", "openbookqa", "mmlu")
MOST_SHOTS = 5  # examples of a subject in MMLU's dev split
K_SHOTS = (0, 1, 3, 5)  # of setting 4
WAYS = ("together", "apart", "unshared")  # all levels at once; level by level; level by level, every sequence whole
SIZES = (1, 2, 4)  # times --items, of --growth


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_finetuning(commands.add_parser("finetuning", help="the original's training loop", allow_abbrev=False))
    add_compression(commands.add_parser("compression", help="against llmcompressor", allow_abbrev=False))
    add_growth(commands.add_parser("growth", help="over tokens, blocks and strengths", allow_abbrev=False))
    add_own_side(commands.add_parser("own_side", help="started by compression: one timed run", allow_abbrev=False))
    add_evaluation(commands.add_parser("evaluation", help="against lm-evaluation-harness", allow_abbrev=False))
    add_evaluation_side(
        commands.add_parser("evaluation_side", help="started by evaluation: one timed run", allow_abbrev=False)
    )
    args = parser.parse_args(argv)
    if args.command == "finetuning":
        if unknown := set(args.parts) - set(PARTS):
            parser.error(f"{', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}")
        args.parts = args.parts or PARTS
    if args.command == "compression":
        check_compression(parser, args)
    if args.command == "evaluation":
        check_evaluation(parser, args)
    return args


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def add_finetuning(parser: argparse.ArgumentParser) -> None:
    sentences = ASSETS / "data" / "rated_sentences" / "movie_reviews"
    parser.set_defaults(run=finetuning)
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"what to measure: {', '.join(PARTS)} (default all)")
    add("--model_name_or_path", default=str(ASSETS / "models" / "all-MiniLM-L6-v2"), help="encoder (default asset)")
    add("--train_file", type=Path, default=sentences / "train.jsonl.gz", help="rows to train on (default asset)")
    add("--validation_file", type=Path, default=sentences / "validation.jsonl.gz", help="rows to evaluate")
    add("--max_length", type=int, default=128, help="tokens per row (default 128)")
    add("--max_train_samples", type=int, default=2000, help="rows of an epoch (default 2000)")
    add("--batch_size", type=int, default=32, help="rows per step (default 32)")
    add("--learning_rate", type=float, default=1e-4, help="AdamW's (default 1e-4)")
    add("--sparsity", type=float, default=0.5, help="of the held mask (default 0.5)")
    add("--seeds", type=int, nargs="+", default=[41, 42, 43], help="one pair of epochs each (default 41 42 43)")
    add("--turns", type=int, default=5, help="repetitions of masks and hold (default 5)")


def add_compression(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=compression)
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


def add_problem(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model_name_or_path", default=str(DECODER), help="decoder (default asset)")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the weights (default bfloat16)")
    add("--sparsity", type=float, default=0.5, help="wanda, sparsegpt: fraction to prune (default 0.5)")
    add("--bits", type=int, default=4, help="gptq: bits per weight (default 4)")
    add("--group_size", type=positive, default=64,
        help="gptq: inputs that share a scale; the peer wants it to divide all layers' (default 64)")  # fmt: skip


def add_own_side(parser: argparse.ArgumentParser) -> None:
    """The arguments of peer_llmcompressor.py."""
    parser.set_defaults(run=own_side)
    add = parser.add_argument
    add("--windows", type=Path, required=True, help="safetensors file: tokens, (windows, tokens per window)")
    add("--method", choices=tuple(STATISTICS), required=True)
    add("--windows_per_batch", type=positive, required=True, help="windows computed at once")
    add("--save_model", type=Path, help="write the compressed model here")
    add("--result", type=Path, required=True, help="write seconds and bytes here, as JSON")
    add_problem(parser)


def add_growth(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=growth)
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
    add("--calibration", help="its text, as in compression; without it there is no sweep over strengths")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the weights (default bfloat16)")


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=evaluation)
    add = parser.add_argument
    add("--peer_python", type=Path, help="interpreter of an environment that holds lm-eval; not with the next two")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--growth", action="store_true", help="our side alone, with N, 2 N and 4 N items")
    alone.add_argument("--k_shot", action="store_true",
        help=f"our side alone: MMLU with {', '.join(map(str, K_SHOTS))} examples, at once and each apart, whatever "
        "--tasks and --num_shots say")  # fmt: skip
    add("--tasks", nargs="+", choices=EVALUATED, default=list(EVALUATED), metavar="NAME",
        help=f"of {', '.join(EVALUATED)} (default all)")  # fmt: skip
    add("--items", type=positive, default=100, metavar="N", help="rows of each task, drawn at random (default 100)")
    add("--subjects", nargs="+", metavar="NAME",
        help="mmlu: take the rows of these subjects, one after the other (default: all, in random order)")  # fmt: skip
    add("--num_shots", type=int, choices=range(MOST_SHOTS + 1), default=MOST_SHOTS, metavar="K",
        help=f"mmlu: worked examples, 0 to {MOST_SHOTS} (default {MOST_SHOTS})")  # fmt: skip
    add("--batch_size", type=positive, default=8, help="the peer's: sequences computed at once (default 8)")
    add("--turns", type=positive, default=3, help="runs of each side (default 3)")
    add("--threads", type=positive, default=torch.get_num_threads(), help="of each side (default: torch's)")
    add("--output", type=Path, help="write every measurement here, as JSON, and the tables beside it, as Markdown")
    add_questions(parser)


def add_questions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, default=DECODER, help="folder of a decoder (default asset)")
    add("--data_dir", type=Path, default=ASSETS / "data",
        help="folder of <task>/<split>.jsonl or .jsonl.gz (default assets)")  # fmt: skip
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights (default float32)")
    add("--tokens_per_batch", type=positive, default=4096, help="ours: tokens computed at once (default 4096)")


def add_evaluation_side(parser: argparse.ArgumentParser) -> None:
    """The arguments of peer_lm_eval.py, as far as both sides have them, and what only ours does."""
    parser.set_defaults(run=evaluation_side)
    add = parser.add_argument
    add("--task", choices=EVALUATED, required=True)
    add("--items", type=Path, required=True, help="JSON list of the rows to score, counted from 0")
    add("--shots", type=int, nargs="+", required=True, help="mmlu: worked examples, a level for each number")
    add("--way", choices=WAYS, default="together", help="which levels share what they compute (default together)")
    add("--output", type=Path, required=True, help="write the result here, as JSON")
    add_questions(parser)


def check_compression(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not args.peer_python.is_file():
        parser.error(f"--peer_python {args.peer_python}: no such file; peer_llmcompressor.py says how to make it")
    if not Path("/proc/self/clear_refs").exists():
        parser.error("compression reads peak memory from Linux's /proc, which this system lacks")


def check_evaluation(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    alone = next((f"--{name}" for name in ("growth", "k_shot") if getattr(args, name)), None)
    if not alone and args.peer_python is None:
        parser.error("evaluation needs --peer_python, --growth or --k_shot")
    if alone and args.peer_python is not None:
        parser.error(f"--peer_python {args.peer_python}: {alone} measures our side alone")
    if args.peer_python is not None and not args.peer_python.is_file():
        parser.error(f"--peer_python {args.peer_python}: no such file; peer_lm_eval.py says how to make it")
    if args.subjects and "mmlu" not in args.tasks and not args.k_shot:
        parser.error("--subjects is for mmlu, which is not among --tasks")
    if not (args.model / "config.json").is_file():
        parser.error(f"--model {args.model}: no folder with a config.json")
    if args.output and (args.output.suffix != ".json" or not args.output.parent.is_dir()):
        parser.error(f"--output {args.output} is not the name of a .json file in a folder that exists")
    if not Path("/proc/self/clear_refs").exists():
        parser.error("evaluation reads peak memory from Linux's /proc, which this system lacks")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.run(args)


def finetuning(args: argparse.Namespace) -> None:
    task = glue_data.load_files(args.train_file, args.validation_file)
    pretrained = finetune.load_pretrained(args.model_name_or_path, len(task.label_names))
    accelerator = Accelerator(mixed_precision=best_precision("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"{args.model_name_or_path}, {accelerator.device}, {torch.get_num_threads()} threads, "
          f"precision {accelerator.mixed_precision}")  # fmt: skip
    weights = prunable_weights(pretrained.model, pretrained.new_parameters, include_embeddings=False)
    if "masks" in args.parts:
        report_masks(weights, args.turns)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    train_rows, rows = (
        glue_data.tokenize(split, task.columns, tokenizer, args.max_length)
        for split in (task.train, task.validation[""])
    )
    train_rows = train_rows.select(range(min(len(train_rows), args.max_train_samples)))
    (keep_masks,) = magnitude_masks(weights, [args.sparsity])
    collate = DataCollatorWithPadding(tokenizer)
    if "hold" in args.parts:
        report_hold(pretrained, keep_masks, train_rows, collate, accelerator, args)
    if "epoch" in args.parts:
        report_epoch(pretrained, keep_masks, train_rows, rows, collate, accelerator, args)


def seconds(work: Callable[[], object], device: torch.device | None = None) -> float:
    started = time.perf_counter()
    work()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def in_turn(works: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Seconds of every work in every turn, A B C A B C …, after one uncounted turn."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            times[name].append(seconds(work))
    return times


def ratio(slow: list[float], fast: list[float]) -> str:
    pairs = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return f"{statistics.median(pairs):.2f} (from {pairs[0]:.2f} to {pairs[-1]:.2f})"


def sorted_top_k_masks(weights: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """The original's selection: concatenate, sort the largest, compare with the smallest of them."""
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    largest, _ = torch.topk(magnitudes, int(len(magnitudes) * (1 - sparsity)), sorted=True)
    return {name: (weight.abs() > largest[-1]).float() for name, weight in weights.items()}


def report_masks(weights: dict[str, Tensor], turns: int) -> None:
    weights = {name: weight.detach() for name, weight in weights.items()}
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    half = len(magnitudes) // 2

    def floor() -> None:
        threshold = float(np.partition(magnitudes.numpy(), half)[half])
        for _ in SPARSITIES:
            torch.gt(magnitudes, threshold)

    times = in_turn(
        {
            "ours": lambda: magnitude_masks(weights, SPARSITIES),
            "original": lambda: [sorted_top_k_masks(weights, sparsity) for sparsity in SPARSITIES],
            "floor": floor,
        },
        turns,
    )
    print(f"\nmasks: {len(SPARSITIES)} sparsities of {len(magnitudes):,} weights")
    middle = {name: statistics.median(values) for name, values in times.items()}
    print(f"  seconds: original {middle['original']:.2f}, ours {middle['ours']:.3f}, "
          f"floor (one selection, nine mask writes) {middle['floor']:.3f}")  # fmt: skip
    print(f"  original / ours:  {ratio(times['original'], times['ours'])}")
    print(f"  original / floor: {ratio(times['original'], times['floor'])}")


def report_hold(pretrained, keep_masks, rows, collate, accelerator: Accelerator, args: argparse.Namespace) -> None:
    """Steps with and without held masks, in turn, on batches as training makes them."""
    batches = finetune.LengthGroupedBatches(rows["length"][:], args.batch_size, seed=0)
    columns = rows.remove_columns("length")
    groups = [[collate(list(columns.select(batch)))] for batch, _ in zip(batches, range(args.turns * 4), strict=False)]
    groups = [[{name: tensor.to(accelerator.device) for name, tensor in group[0].items()}] for group in groups]
    steppers = {}
    for name in ("free", "held"):
        model = pretrained.copy(seed=0).to(accelerator.device).train()
        optimizer = finetune.make_optimizer(model, args.learning_rate, 0.0)
        if name == "held":
            parameters = dict(model.named_parameters())
            apply_masks(parameters, keep_masks)
            hold_masks(optimizer, parameters, keep_masks)
        steppers[name] = accelerator.prepare(model, optimizer)

    def step(name: str, group: list) -> None:
        model, optimizer = steppers[name]
        finetune.train_step(accelerator, model, group)
        optimizer.step()
        optimizer.zero_grad()

    # the hook alone, run as often: the difference of two steps drowns in their own noise
    model, optimizer = steppers["held"]
    hooks = list(optimizer.optimizer._optimizer_step_post_hooks.values())
    free, held, hook = [], [], []
    for group in groups:
        free.append(seconds(lambda group=group: step("free", group), accelerator.device))
        held.append(seconds(lambda group=group: step("held", group), accelerator.device))
        hook.append(seconds(lambda: [call(optimizer, (), {}) for call in hooks], accelerator.device))
    tokens = statistics.mean(group[0]["input_ids"].numel() for group in groups)
    print(f"\nhold: {len(groups)} steps of {args.batch_size} rows, {tokens:.0f} tokens each with padding")
    print(f"  ms per step: free {1e3 * statistics.median(free):.0f}, held {1e3 * statistics.median(held):.0f}, "
          f"of which the hook {1e3 * statistics.median(hook):.1f}")  # fmt: skip
    print(f"  hook / free step: {100 * statistics.median(hook) / statistics.median(free):.1f} %")


def original_epoch(pretrained, keep_masks, rows, collate, device: torch.device, args, seed: int) -> torch.nn.Module:
    """The original's loop: random rows padded to their longest, float32, AdamW by default, w * m after every step."""
    model = pretrained.copy(seed).to(device).train()
    parameters = dict(model.named_parameters())
    masks = {name: keep.to(device).float() for name, keep in keep_masks.items()}
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].data = parameters[name].data * mask
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    loader = DataLoader(rows.remove_columns("length"), args.batch_size, shuffle=True, collate_fn=collate,
                        generator=torch.Generator().manual_seed(seed))  # fmt: skip
    scheduler = get_scheduler("linear", optimizer, int(finetune.WARMUP_FRACTION * len(loader)), len(loader))
    torch.manual_seed(seed)
    for batch in loader:
        model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, mask in masks.items():
                parameters[name].data = parameters[name].data * mask
    return model


def our_epoch(pretrained, keep_masks, rows, collate, accelerator: Accelerator, args, seed: int) -> torch.nn.Module:
    model = pretrained.copy(seed).to(accelerator.device)
    optimizer = finetune.make_optimizer(model, args.learning_rate, 0.0)
    finetune.start_transfer("sparse_transfer", optimizer, dict(model.named_parameters()), keep_masks)
    model, optimizer = accelerator.prepare(model, optimizer)
    recipe = finetune.Recipe(args.learning_rate, args.batch_size, num_epochs=1, seed=seed)
    finetune.train(accelerator, model, optimizer, rows, collate, recipe, Path())
    return model


def report_epoch(pretrained, keep_masks, train_rows, rows, collate, accelerator, args) -> None:
    def accuracy(model: torch.nn.Module) -> float:
        outputs = finetune.predict(accelerator, model, rows, collate, 128)
        return float(np.mean(outputs.argmax(axis=1) == np.asarray(rows["labels"][:])))

    times: dict[str, list[float]] = {"original": [], "ours": []}
    scores: dict[str, list[float]] = {"original": [], "ours": []}
    for seed in args.seeds:
        started = time.perf_counter()
        model = original_epoch(pretrained, keep_masks, train_rows, collate, accelerator.device, args, seed)
        times["original"].append(time.perf_counter() - started)
        scores["original"].append(accuracy(model))
        started = time.perf_counter()
        model = our_epoch(pretrained, keep_masks, train_rows, collate, accelerator, args, seed)
        times["ours"].append(time.perf_counter() - started)
        scores["ours"].append(accuracy(model))
    flops = 6 * sum(keep.numel() for keep in keep_masks.values()) * sum(train_rows["length"][:])
    floor = flops / matrix_speed(accelerator)
    print(f"\nepoch: {len(train_rows)} rows, sparse transfer at sparsity {args.sparsity}, seeds {args.seeds}")
    middle = {name: statistics.median(values) for name, values in times.items()}
    print(f"  seconds: original {middle['original']:.1f}, ours {middle['ours']:.1f}, floor {floor:.1f} "
          f"({flops / 1e12:.1f} TFLOP of the real tokens at this machine's speed of matrix products)")  # fmt: skip
    print(f"  original / ours: {ratio(times['original'], times['ours'])}")
    for name, values in scores.items():
        print(f"  accuracy {name}: {' '.join(f'{value:.3f}' for value in values)}")


def matrix_speed(accelerator: Accelerator) -> float:
    """FLOP per second of a product of large square matrices in the precision that training computes in."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
    matrix = torch.randn(2048, 2048, device=accelerator.device, dtype=dtype)
    times = [seconds(lambda: matrix @ matrix, accelerator.device) for _ in range(5)]
    return 2 * 2048**3 / min(times)


class Problem(NamedTuple):
    """What both sides are given.

    Fields:
        windows: safetensors file with the calibration tokens, (windows, tokens per window).
        options: the other options that own_side and peer_llmcompressor.py share, as a command line.
        environment: of both processes.
    """

    windows: Path
    options: list[str]
    environment: dict[str, str]


def compression(args: argparse.Namespace) -> None:
    """Run every method on both sides, in turn, and print the tables."""
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
    """Draw the windows and write them where both sides read them."""
    windows = folder / "windows.safetensors"
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    tokens = calibration_tokens(tokenizer, args.calibration, args.nsamples, args.calibration_length, seed=0)
    save_file({"tokens": tokens}, windows)
    shared = ("model_name_or_path", "dtype", "sparsity", "bits", "group_size", "windows_per_batch")
    options = [part for name in shared for part in (f"--{name}", str(getattr(args, name)))]
    return Problem(windows, options, side_environment(args.threads, Path(args.model_name_or_path).is_dir()))


def side_environment(threads: int, model_is_local: bool) -> dict[str, str]:
    """Of the process of either side."""
    given = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    offline = {"HF_HUB_OFFLINE": "1"} if model_is_local else {}
    return {**os.environ, **given, **offline, "TOKENIZERS_PARALLELISM": "false"}


def take_turns(
    problem: Problem, method: str, peer_python: Path, turns: int, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Measurements of each side, one per turn; the first turn's models are kept as <folder>/<method>-<side>."""
    sides = {
        "ours": [sys.executable, str(Path(__file__).resolve()), "own_side"],
        "peer": [str(peer_python), str(ROOT / "scripts" / "peer_llmcompressor.py")],
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


def run_quietly(command: list[str], environment: dict[str, str] | None, folder: Path) -> None:
    """Run with all output in <folder>/log.txt, whose end is shown where the command fails.

    Raises:
        SystemExit: the command failed.
    """
    log = folder / "log.txt"
    with log.open("w") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{log.read_text()[-4000:]}\n{' '.join(command)}: exit code {done.returncode}")


def perplexities(args: argparse.Namespace, problem: Problem, folder: Path) -> dict[str, float]:
    """Of the dense model and of every model in `folder`, on the same windows, by llm_tasks/perplexity.py."""
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


def memory(runs: list[dict[str, Any]], beside_the_loaded: bool, work: str = "compressing") -> float:
    """Median over runs of peak bytes: of the whole process, or of the work beyond what was there before."""
    if beside_the_loaded:
        return statistics.median(run[f"{work}_peak_bytes"] - run["loaded_bytes"] for run in runs)
    return statistics.median(run["peak_bytes"] for run in runs)


def memory_cells(sides: dict[str, list[dict[str, Any]]], work: str = "compressing") -> list[str]:
    """Under MEMORY_TITLES; no ratio where the peer's work fitted into what loading had left."""
    cells = []
    for beside_the_loaded in (False, True):
        peer, ours = (memory(sides[side], beside_the_loaded, work) for side in ("peer", "ours"))
        cells += [f"{peer / 1e6:.0f}", f"{ours / 1e6:.0f}", f"{ours / peer:.0%}" if peer else "-"]
    return cells


def print_table(titles: list[str], rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    print()
    for row in (titles, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def own_side(args: argparse.Namespace) -> None:
    """One compression by our code; writes the figures that peer_llmcompressor.py writes, and where the time went."""
    dtype = getattr(torch, args.dtype)
    compress = method_of_the_peer(args.method, args.sparsity, args.bits, args.group_size)
    warm_up_seconds = seconds(lambda: warm_up(compress))
    with converted_tensor_by_tensor(dtype):
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
    """The methods as the peer does them: GPTQ on a symmetric grid whose scales come from the dense weight."""

    def wanda(W: Tensor, inputs: InputStatistics, name: str) -> Tensor:
        return wanda_mask(W, inputs.sq_norms, sparsity)

    def sparsegpt(W: Tensor, inputs: InputStatistics, name: str) -> Tensor:
        return sparsegpt_prune(W, inputs.inverse_factor(DAMPING), sparsity)

    def gptq(W: Tensor, inputs: InputStatistics, name: str) -> Tensor:
        factor = inputs.inverse_factor(DAMPING)
        return gptq_quantize(W, factor, bits, group_size, symmetric=True, static_groups=True)

    return {"wanda": wanda, "sparsegpt": sparsegpt, "gptq": gptq}[name]


def warm_up(compress: CompressLinear) -> None:
    """Have the kernels compiled, or read from where the last process left them."""
    draw = torch.Generator().manual_seed(0)
    inputs = InputStatistics("hessian", 64, torch.device("cpu"))
    inputs.add(torch.randn(128, 64, generator=draw))
    compress(torch.randn(64, 64, generator=draw), inputs, "")


def compress_in_stages(
    model: PreTrainedModel, tokens: Tensor, compress: CompressLinear, statistic: str, windows_per_batch: int
) -> dict[str, float]:
    """Compress the model in place; seconds of each stage, which add up to the whole."""
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
def timed(owner: type, name: str, times: dict[str, float], stage: str) -> Iterator[None]:
    """While this holds, the time that owner.name takes is added to times[stage]."""
    own = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return own(*arguments)
        finally:
            times[stage] += time.perf_counter() - started

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, own)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The most that was resident since the last reset_peak; ru_maxrss may be that of the process that started this."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def growth(args: argparse.Namespace) -> None:
    """Print seconds over calibration windows, blocks and strengths."""
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
            models = [(random_llama(blocks, args.hidden_size, dtype), windows) for _, windows, blocks in sizes]
            times = growth_times(name, models, args.calibration_length, args.turns, CLOCKS[args.clock])
            exponent = growth_exponent([size for size, *_ in sizes], times)
            rows.append([name, *(f"{time:.2f}" for time in times), f"{exponent:.2f}"])
        print_table([title, *(str(size) for size, *_ in sizes), "seconds grow as size ^"], rows)
    if args.calibration:
        print_strengths(args)


def growth_times(
    name: str, models: list[tuple[PreTrainedModel, int]], length: int, turns: int, clock: Callable[[], float]
) -> list[float]:
    """Fastest seconds of a method for each (model, windows), measured in turn after one uncounted turn."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(turns + 1):
        for (model, windows), measured in zip(models, times, strict=True):
            tokens = random_tokens(windows, length)
            started = clock()
            compress_blocks(model, tokens, method_of_the_peer(name), STATISTICS[name])
            measured.append(clock() - started)
    return [min(measured[1:]) for measured in times]


def random_llama(blocks: int, hidden_size: int, dtype: torch.dtype) -> PreTrainedModel:
    """Blocks of SmolLM2's proportions; the time of a method does not depend on what the weights are."""
    config = LlamaConfig(
        vocab_size=1000, hidden_size=hidden_size, intermediate_size=hidden_size * 8 // 3, num_hidden_layers=blocks,
        num_attention_heads=hidden_size // 64, num_key_value_heads=max(1, hidden_size // 192), head_dim=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)


def random_tokens(windows: int, length: int) -> Tensor:
    return torch.randint(1000, (windows, length), generator=torch.Generator().manual_seed(0))


def growth_exponent(sizes: list[int], times: list[float]) -> float:
    """Slope of log seconds over log size: 1 where time is proportional, less where a part of it is constant."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def print_strengths(args: argparse.Namespace) -> None:
    """Seconds of sweeps of perplexity.py over more and more sparsities, in and outside the compressions."""
    rows = []
    for count in args.strengths:
        with tempfile.TemporaryDirectory() as folder:
            whole, per_run = sweep(args, count, Path(folder))
        rows.append([str(count), f"{whole:.1f}", f"{statistics.mean(per_run[1:] or per_run):.1f}",
                     f"{whole - sum(per_run):.1f}"])  # fmt: skip
    print_table(["strengths (wanda)", "seconds", "per strength, after the first", "outside of them"], rows)


def sweep(args: argparse.Namespace, count: int, folder: Path) -> tuple[float, list[float]]:
    """Seconds of one process that compresses with Wanda at `count` sparsities, and of each of its runs in order."""
    sparsities = [f"{0.3 + 0.4 * place / count:.3g}" for place in range(count)]
    command = [
        sys.executable, str(ROOT / "llm_tasks" / "perplexity.py"), "--model_name_or_path", args.model_name_or_path,
        "--dtype", args.dtype, "--compression", "wanda", "--sparsity", *sparsities, "--calibration", args.calibration,
        "--nsamples", str(min(args.nsamples)), "--calibration_length", str(args.calibration_length),
        "--text", args.calibration, "--seq_len", "64", "--max_windows", "1", "--output_dir", f"{folder}/{{strength}}",
    ]  # fmt: skip
    whole = seconds(lambda: run_quietly(command, None, folder))
    results = [json.loads((folder / sparsity / "all_results.json").read_text()) for sparsity in sparsities]
    return whole, [result["seconds"] for result in results]


Table = tuple[list[str], list[list[str]]]  # titles and rows


def evaluation(args: argparse.Namespace) -> None:
    """Measure both sides, or ours alone at several sizes or in several ways; print the tables and write them."""
    if args.growth:
        measured, tables_of = growth_in_items, growth_tables
    elif args.k_shot:
        measured, tables_of = all_shots, ways_tables
    else:
        measured, tables_of = against_the_peer, comparison_tables
    count = args.items * (max(SIZES) if args.growth else 1)
    try:
        tasks = ["mmlu"] if args.k_shot else list(dict.fromkeys(args.tasks))
        rows = {task: draw_rows(load_questions(task, args.data_dir), count, args.subjects) for task in tasks}
    except ValueError as error:
        raise SystemExit(f"benchmark.py evaluation: {error}") from error
    told = f"{args.model}, {args.dtype}, {args.threads} threads, {args.items} items of a task, {args.turns} turns"
    print(told, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = measured(args, rows, Path(folder))
    if args.output:
        options = {name: value for name, value in vars(args).items() if name != "run"}
        args.output.write_text(json.dumps({"options": options, "rows": rows, "runs": runs}, default=str, indent=1))
    tables = tables_of(runs)
    for table in tables:
        print_table(*table)
    if args.output:
        args.output.with_suffix(".md").write_text("\n\n".join([told, *(markdown(*table) for table in tables)]) + "\n")


def load_questions(task: str, data_dir: Path) -> list[mmlu.Question] | list[commonsense.Question]:
    """All rows of the split that lm-evaluation-harness scores, in the file's order."""
    return mmlu.load(data_dir, "test") if task == "mmlu" else commonsense.load_task(task, data_dir)


def draw_rows(
    questions: Sequence[mmlu.Question] | Sequence[commonsense.Question], count: int, subjects: Sequence[str] | None
) -> list[int]:
    """`count` rows at random, the same ones every time; those of a smaller count are the first of a larger one.

    MMLU's questions share the examples of their subject, so its rows come subject by subject, the last one cut.

    Raises:
        ValueError: there are fewer rows, or a subject has none.
    """
    draw = random.Random(0)
    if isinstance(questions[0], mmlu.Question):
        members: dict[str, list[int]] = {}
        for row, question in enumerate(questions):
            members.setdefault(question.subject, []).append(row)
        mmlu.of_subjects(questions, subjects)
        names = list(dict.fromkeys(subjects)) if subjects else draw.sample(sorted(members), len(members))
        rows = [row for name in names for row in members[name]]
    else:
        rows = draw.sample(range(len(questions)), len(questions))
    if len(rows) < count:
        raise ValueError(f"--items: {count} rows are wanted, and there are {len(rows)}")
    return rows[:count]


def against_the_peer(
    args: argparse.Namespace, rows: dict[str, list[int]], folder: Path
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The measurements of each task's two sides."""
    runs = {}
    for task, chosen in rows.items():
        commands = {"peer": peer_command(args, task), "ours": our_command(args, task, [args.num_shots])}
        runs[task] = run_in_turn(task, commands, dict.fromkeys(commands, chosen), args.turns, args.threads, folder)
    print(f"peer: {next(iter(runs.values()))['peer'][0]['versions']}")
    return runs


def our_command(args: argparse.Namespace, task: str, shots: Sequence[int], way: str = "together") -> list[str]:
    own = ["--tokens_per_batch", str(args.tokens_per_batch), "--shots", *map(str, shots), "--way", way]
    return [sys.executable, str(Path(__file__).resolve()), "evaluation_side", *both_sides(args, task), *own]


def peer_command(args: argparse.Namespace, task: str) -> list[str]:
    own = ["--threads", str(args.threads), "--batch_size", str(args.batch_size)]
    shots = ["--num_fewshot", str(args.num_shots)] if task == "mmlu" else []
    return [str(args.peer_python), str(ROOT / "scripts" / "peer_lm_eval.py"), *both_sides(args, task), *own, *shots]


def both_sides(args: argparse.Namespace, task: str) -> list[str]:
    return ["--task", task, "--model", str(args.model), "--data_dir", str(args.data_dir), "--dtype", args.dtype]


def run_in_turn(
    title: str, commands: dict[str, list[str]], rows: dict[str, list[int]], turns: int, threads: int, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """What every command measured in every turn, A B C A B C …; each is given its rows and where to write."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    environment = side_environment(threads, model_is_local=True)
    items, result = folder / "items.json", folder / "result.json"
    for turn in range(turns):
        for name, command in commands.items():
            items.write_text(json.dumps(rows[name]))
            run_quietly([*command, "--items", str(items), "--output", str(result)], environment, folder)
            runs[name].append(json.loads(result.read_text()))
            result.unlink()
            print(f"  {title} {name}, turn {turn + 1}: {runs[name][-1]['seconds']['score']:.1f} s", flush=True)
    return runs


class Agreement(NamedTuple):
    """How far both sides say the same of one task's rows.

    Fields:
        acc: share of rows of which both hold the same option most likely.
        acc_norm: the same per character of an option; None where the peer has no such score.
        largest: the largest difference of two log-likelihoods.
        same_text: share of rows of which both scored the same texts, cut at the same place.
        differing: of the rows that are not predicted or judged alike, both sides' rows: peer, ours.
    """

    acc: float
    acc_norm: float | None
    largest: float
    same_text: float
    differing: list[tuple[dict[str, Any], dict[str, Any]]]


def agreement(peer_rows: Sequence[dict[str, Any]], our_rows: Sequence[dict[str, Any]]) -> Agreement:
    """Compare the rows of peer_lm_eval.py with those of evaluation_side.

    Raises:
        SystemExit: a row is on one side only, or its options or the right one are not the same.
    """
    peer, ours = ({row["row"]: row for row in rows} for rows in (peer_rows, our_rows))
    if lonely := sorted(peer.keys() ^ ours.keys()):
        raise SystemExit(f"row {lonely[0]} was scored by one side only; of such rows there are {len(lonely)}")
    pairs = [(peer[row], ours[row]) for row in sorted(ours)]
    for one, other in pairs:
        if one["gold"] != other["gold"] or len(one["log_likelihoods"]) != len(other["log_likelihoods"]):
            raise SystemExit(f"row {one['row']} is not the same item on both sides")
    predicted = [[predictions(row["log_likelihoods"], pair[1]["lengths"]) for row in pair] for pair in pairs]
    same = np.array([[a == b for a, b in zip(*both, strict=True)] for both in predicted])
    judged = "acc_norm" in pairs[0][0]
    metrics = ["acc", "acc_norm"] if judged else ["acc"]
    differing = [
        pair for pair, alike in zip(pairs, same, strict=True)
        if not alike[: len(metrics)].all() or any(pair[0][metric] != pair[1][metric] for metric in metrics)
    ]  # fmt: skip
    return Agreement(
        float(same[:, 0].mean()),
        float(same[:, 1].mean()) if judged else None,
        max(largest_difference(*pair) for pair in pairs),
        float(np.mean([one["requests_sha256"] == other["requests_sha256"] for one, other in pairs])),
        differing,
    )


def predictions(log_likelihoods: Sequence[float], lengths: Sequence[int]) -> tuple[int, int]:
    """The most likely option, and the most likely per character; the first of equal ones."""
    scores = np.array(log_likelihoods)
    return int(scores.argmax()), int((scores / lengths).argmax())


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    return float(np.abs(np.subtract(one["log_likelihoods"], other["log_likelihoods"])).max())


def comparison_tables(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> list[Table]:
    """Agreement, differing items, seconds, memory and tokens; the runs are by task and side."""
    found = {task: agreement(sides["peer"][0]["rows"], sides["ours"][0]["rows"]) for task, sides in runs.items()}
    tables = [agreement_table(runs, found), differing_table(found), seconds_table(runs), memory_table(runs)]
    shown = {task: sides["ours"] for task, sides in runs.items()}
    return [table for table in (*tables, tokens_table(shown), stages_table(shown)) if table[1]]


def agreement_table(runs: dict[str, dict[str, list[dict[str, Any]]]], found: dict[str, Agreement]) -> Table:
    titles = ["task", "items", "same prediction: acc", "acc_norm", "largest difference of log-likelihoods",
              "same text", "acc: peer", "ours", "acc_norm: peer", "ours", "shortened: peer's requests",
              "our items"]  # fmt: skip
    rows = []
    for task, sides in runs.items():
        peer, ours = sides["peer"][0], sides["ours"][0]
        same = found[task]
        means = [shown_mean(side["rows"], metric) for metric in ("acc", "acc_norm") for side in (peer, ours)]
        rows.append([task, str(len(ours["rows"])), f"{same.acc:.2%}",
                     "none" if same.acc_norm is None else f"{same.acc_norm:.2%}", f"{same.largest:.1e}",
                     f"{same.same_text:.0%}", *means, str(peer["cut_requests"]), str(ours["shortened"])])  # fmt: skip
    return titles, rows


def shown_mean(rows: Sequence[dict[str, Any]], metric: str) -> str:
    return f"{statistics.mean(row[metric] for row in rows):.4f}" if metric in rows[0] else "none"


def differing_table(found: dict[str, Agreement]) -> Table:
    """Every row that is not predicted or judged alike, with the log-likelihoods of its options."""
    rows = [
        [task, str(peer["row"]), peer["group"] or "", str(ours["gold"]),
         *(" ".join(f"{value:.5f}" for value in side["log_likelihoods"]) for side in (peer, ours)),
         " ".join(map(str, ours["lengths"])), "yes" if peer["requests_sha256"] == ours["requests_sha256"] else "no"]
        for task, same in found.items() for peer, ours in same.differing
    ]  # fmt: skip
    return ["differing items of", "row", "subject", "gold", "log-likelihoods: peer", "ours", "characters",
            "same text"], rows  # fmt: skip


def seconds_table(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> Table:
    titles = ["seconds", "score: peer", "ours", "peer / ours", "the same in CPU time", "build and score: peer", "ours",
              "peer / ours"]  # fmt: skip
    rows = []
    for task, sides in runs.items():
        (peer, ours), (peer_cpu, our_cpu), (peer_all, our_all) = (
            [spent(sides[side], clock, stages) for side in ("peer", "ours")]
            for clock, stages in (("seconds", ["score"]), ("cpu_seconds", ["score"]), ("seconds", ["build", "score"]))
        )
        rows.append([task, f"{statistics.median(peer):.1f}", f"{statistics.median(ours):.1f}", ratio(peer, ours),
                     ratio(peer_cpu, our_cpu), f"{statistics.median(peer_all):.1f}",
                     f"{statistics.median(our_all):.1f}", ratio(peer_all, our_all)])  # fmt: skip
    return titles, rows


def spent(runs: list[dict[str, Any]], clock: str, stages: list[str]) -> list[float]:
    """Seconds of the stages together, in each run; clock is seconds or cpu_seconds."""
    return [sum(run[clock][stage] for stage in stages) for run in runs]


def memory_table(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> Table:
    return MEMORY_TITLES, [[task, *memory_cells(sides, "scoring")] for task, sides in runs.items()]


def tokens_table(ours: dict[str, list[dict[str, Any]]]) -> Table:
    """What we compute, padding included, the floor, and what the peer feeds, padding left out."""
    rows = []
    for task, (run, *_) in ours.items():
        computed, distinct, fed = (run[f"tokens_{name}"] for name in ("computed", "distinct", "of_peer"))
        rows.append([task, f"{computed:,}", f"{distinct:,}", f"{computed / distinct:.3f}", f"{fed:,}",
                     f"{fed / distinct:.2f}", f"{fed / computed:.2f}"])  # fmt: skip
    return ["tokens", "ours", "distinct", "ours / distinct", "peer", "peer / distinct", "peer / ours"], rows


def stages_table(ours: dict[str, list[dict[str, Any]]]) -> Table:
    stages = ("load", "build", "tokenize", "forward")
    rows = [
        [name, *(f"{statistics.median(spent(runs, 'seconds', [stage])):.2f}" for stage in stages)]
        for name, runs in ours.items()
    ]
    return ["our seconds", *stages], rows


def growth_in_items(
    args: argparse.Namespace, rows: dict[str, list[int]], folder: Path
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The measurements of each task at each number of items."""
    runs = {}
    for task, chosen in rows.items():
        some = {str(args.items * size): chosen[: args.items * size] for size in SIZES}
        commands = dict.fromkeys(some, our_command(args, task, [args.num_shots]))
        runs[task] = run_in_turn(task, commands, some, args.turns, args.threads, folder)
    return runs


def growth_tables(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> list[Table]:
    return [growth_table(task, by_size) for task, by_size in runs.items()]


def growth_table(task: str, runs: dict[str, list[dict[str, Any]]]) -> Table:
    """Cost over the number of items, in all and per item."""
    sizes = [int(name) for name in runs]
    costs = {
        "seconds": [statistics.median(spent(some, "seconds", ["score"])) for some in runs.values()],
        "tokens": [some[0]["tokens_computed"] for some in runs.values()],
        "distinct tokens": [some[0]["tokens_distinct"] for some in runs.values()],
    }
    rows = []
    for name, values in costs.items():
        per_item = (f"{value / size:.4g}" for value, size in zip(values, sizes, strict=True))
        shown = (f"{value:.1f}" if name == "seconds" else f"{value:,}" for value in values)
        rows.append([name, *shown, *per_item, f"{growth_exponent(sizes, values):.2f}"])
    return [f"{task}, items", *runs, *(f"per item of {name}" for name in runs), "grows as items ^"], rows


def all_shots(args: argparse.Namespace, rows: dict[str, list[int]], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The measurements of setting 4 in each way."""
    commands = {way: our_command(args, "mmlu", K_SHOTS, way) for way in WAYS}
    return run_in_turn("mmlu", commands, dict.fromkeys(WAYS, rows["mmlu"]), args.turns, args.threads, folder)


def ways_tables(runs: dict[str, list[dict[str, Any]]]) -> list[Table]:
    return [ways_table(runs), tokens_table(runs), stages_table(runs)]


def ways_table(runs: dict[str, list[dict[str, Any]]]) -> Table:
    """Each way against all levels together, in tokens, seconds, memory and what came out."""
    together = runs["together"]
    base = spent(together, "seconds", ["score"])
    rows = []
    for way, some in runs.items():
        seconds = spent(some, "seconds", ["score"])
        pairs = zip(some[0]["rows"], together[0]["rows"], strict=True)
        largest = max(largest_difference(*pair) for pair in pairs)
        rows.append([way, f"{some[0]['tokens_computed']:,}",
                     f"{some[0]['tokens_computed'] / together[0]['tokens_computed']:.2f}",
                     f"{statistics.median(seconds):.1f}", ratio(seconds, base),
                     f"{memory(some, True, 'scoring') / 1e6:.0f}", f"{largest:.1e}"])  # fmt: skip
    return [f"{', '.join(map(str, K_SHOTS))} shots", "tokens", "/ together", "seconds of scoring", "/ together",
            "peak MB beside the loaded", "largest difference of log-likelihoods"], rows  # fmt: skip


def markdown(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def evaluation_side(args: argparse.Namespace) -> None:
    """Score a task's rows by our engine; write the figures that peer_lm_eval.py writes, and the tokens."""
    times: dict[str, dict[str, float]] = {clock: {} for clock in CLOCKS}
    with stage("load", times):
        dtype = getattr(torch, args.dtype)
        with converted_tensor_by_tensor(dtype):
            model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, use_safetensors=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        for parameter in model.parameters():
            parameter.sum()  # weights of the file's own dtype are mapped, and count from when they are first read
    loading_peak, loaded_bytes = peak_bytes(), resident_bytes()
    reset_peak()
    with stage("build", times):
        questions = load_questions(args.task, args.data_dir)
        chosen = {questions[row].item: row for row in json.loads(args.items.read_text())}
        levels = make_levels(args.task, args.data_dir, [questions[row] for row in chosen.values()], args.shots)
    with stage("tokenize", times):
        encoded = encode_levels(levels, TextEncoder(tokenizer), max_length(model), 1, "drop_shots")
    with stage("forward", times):
        found = measure_by(args.way, model, tokenizer, encoded, args.tokens_per_batch)
    scoring_peak = peak_bytes()
    for stages in times.values():
        stages["score"] = stages["tokenize"] + stages["forward"]
    result = {
        "rows": [row for some, outcome in found for row in scored_rows(some, outcome, chosen)],
        "seconds": times["wall"],
        "cpu_seconds": times["cpu"],
        "loaded_bytes": loaded_bytes,
        "scoring_peak_bytes": scoring_peak,
        "peak_bytes": max(loading_peak, scoring_peak),
        "shortened": sum(level.shortened for level in encoded),
        "tokens_computed": sum(outcome.facts["tokens_computed"] for _, outcome in found),
        "tokens_distinct": sum(outcome.facts["tokens_distinct"] for _, outcome in found),
        "tokens_of_peer": sum(map(tokens_of_peer, encoded)),
    }
    args.output.write_text(json.dumps(result))


@contextlib.contextmanager
def stage(name: str, times: dict[str, dict[str, float]]) -> Iterator[None]:
    """Seconds of what is done while this holds become times[clock][name]."""
    started = {clock: now() for clock, now in CLOCKS.items()}
    yield
    for clock, now in CLOCKS.items():
        times[clock][name] = now() - started[clock]


def make_levels(
    task: str, data_dir: Path, questions: Sequence[mmlu.Question] | Sequence[commonsense.Question],
    shots: Sequence[int],
) -> list[Level]:  # fmt: skip
    """The task as settings 4 and 5 ask it; mmlu with the examples of lm-evaluation-harness, in the file's order."""
    if task != "mmlu":
        return [setting5_human_gap.task_level(task, list(questions), "cloze")]
    examples = mmlu.load(data_dir, "dev")
    mmlu.check_examples(questions, examples, max(shots), "--num_shots")
    return setting4_k_shot.levels(questions, examples, shots, "letter")


def measure_by(
    way: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: list[EncodedLevel],
    tokens_per_batch: int,
) -> list[tuple[list[EncodedLevel], Evaluation]]:  # fmt: skip
    """The levels that were measured together, and what was found; `way` is one of WAYS."""
    parts = [encoded] if way == "together" else [[level] for level in encoded]
    share = way != "unshared"
    return [(part, measure(model, tokenizer, part, tokens_per_batch=tokens_per_batch, share=share)) for part in parts]


def scored_rows(levels: list[EncodedLevel], outcome: Evaluation, chosen: dict[str, int]) -> list[dict[str, Any]]:
    """What is said of each row at each level, as peer_lm_eval.py writes it, and the characters of its options.

    Args:
        outcome: of the levels, by measure.
        chosen: the row of each item.
    """
    rows = []
    for index, encoded in enumerate(levels):
        columns = {name: outcome.items[f"level{index}_{name}"] for name in ("option_count", "option_log_likelihood")}
        parts = np.split(columns["option_log_likelihood"], columns["option_count"].cumsum()[:-1])
        for place, (prompt, part) in enumerate(zip(encoded.level.prompts, parts, strict=True)):
            metrics = {"acc": "accuracy", "acc_norm": "accuracy_norm"}
            texts = json.dumps([[prompt_text(prompt), option] for option in prompt.options])
            rows.append(
                {
                    "row": chosen[prompt.item],
                    "level": encoded.level.name,
                    "gold": prompt.gold,
                    "log_likelihoods": part.tolist(),
                    "lengths": [max(1, len(option.removeprefix(" "))) for option in prompt.options],
                    **{
                        name: float(outcome.items[f"level{index}_{own}"][place])
                        for name, own in metrics.items() if f"level{index}_{own}" in outcome.items
                    },
                    "requests_sha256": hashlib.sha256(texts.encode()).hexdigest(),
                }
            )  # fmt: skip
    return rows


def tokens_of_peer(encoded: EncodedLevel) -> int:
    """Tokens that lm-evaluation-harness feeds: every sequence whole, those that differ in the last token once.

    Source: lm-evaluation-harness, models/huggingface.py, _lookup_one_token_cont.
    """
    fed = {continuation.tokens[:-1] for options in encoded.continuations for continuation in options}
    return sum(map(len, fed))


if __name__ == "__main__":
    main()
