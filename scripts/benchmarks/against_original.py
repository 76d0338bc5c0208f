"""Masks, holding them, and a training epoch against the original's way.

    python scripts/benchmark.py finetuning
    python scripts/benchmark.py finetuning masks --model_name_or_path roberta-base

The original's way is written out here after its code: it selects by a sorted top-k for each sparsity, pads batches of
random rows to their longest, computes in float32 with AdamW's defaults, and multiplies the mask into a new tensor every
step. Both ways get the same machine, data and model, in turn. Ratios are medians over turns. The floor is what the step
cannot do without, measured in the same run.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorWithPadding, get_scheduler

from GLUE_tasks import glue_data
from GLUE_tasks.pretrained import Pretrained, load_pretrained
from harness import training
from harness.device import best_precision, default_device
from measuring import ASSETS, in_turn, make_parser, ratio, seconds
from pruning.layers import prunable_weights
from pruning.magnitude import magnitude_masks
from pruning.masks import apply_masks, hold_masks
from pruning.transfers import start_transfer

SPARSITIES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
PARTS = ("masks", "hold", "epoch")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    sentences = ASSETS / "data" / "rated_sentences" / "movie_reviews"
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
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}")
    args.parts = args.parts or PARTS
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure the parts that are named and print what they took."""
    args = parse_args(argv)
    task = glue_data.load_files(args.train_file, args.validation_file)
    pretrained = load_pretrained(args.model_name_or_path, len(task.label_names))
    accelerator = Accelerator(mixed_precision=best_precision(default_device()))
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


def sorted_top_k_masks(weights: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """The original's selection: concatenate, sort the largest, compare with the smallest of them."""
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    largest, _ = torch.topk(magnitudes, int(len(magnitudes) * (1 - sparsity)), sorted=True)
    return {name: (weight.abs() > largest[-1]).float() for name, weight in weights.items()}


def report_masks(weights: dict[str, Tensor], turns: int) -> None:
    """Print how long masks of all SPARSITIES take in both ways, and the floor: one selection and the mask writes."""
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


def report_hold(
    pretrained: Pretrained, keep_masks: dict[str, Tensor], rows: Dataset, collate: DataCollatorWithPadding,
    accelerator: Accelerator, args: argparse.Namespace,
) -> None:  # fmt: skip
    """Print how long steps take with and without held masks, in turn, on batches as training makes them."""
    batches = training.LengthGroupedBatches(rows["length"][:], args.batch_size, seed=0)
    columns = rows.remove_columns("length")
    groups = [[collate(list(columns.select(batch)))] for batch, _ in zip(batches, range(args.turns * 4), strict=False)]
    groups = [[{name: tensor.to(accelerator.device) for name, tensor in group[0].items()}] for group in groups]
    steppers = {}
    for name in ("free", "held"):
        model = pretrained.copy(seed=0).to(accelerator.device).train()
        optimizer = training.make_optimizer(model, args.learning_rate, 0.0)
        if name == "held":
            parameters = dict(model.named_parameters())
            apply_masks(parameters, keep_masks)
            hold_masks(optimizer, parameters, keep_masks)
        steppers[name] = accelerator.prepare(model, optimizer)

    def step(name: str, group: list) -> None:
        model, optimizer = steppers[name]
        training.train_step(accelerator, model, group)
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


def original_epoch(
    pretrained: Pretrained, keep_masks: dict[str, Tensor], rows: Dataset, collate: DataCollatorWithPadding,
    device: torch.device, args: argparse.Namespace, seed: int,
) -> torch.nn.Module:  # fmt: skip
    """A model trained by the original's loop: random rows padded to their longest, float32, w * m after every step."""
    model = pretrained.copy(seed).to(device).train()
    parameters = dict(model.named_parameters())
    masks = {name: keep.to(device).float() for name, keep in keep_masks.items()}
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].data = parameters[name].data * mask
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    loader = DataLoader(rows.remove_columns("length"), args.batch_size, shuffle=True, collate_fn=collate,
                        generator=torch.Generator().manual_seed(seed))  # fmt: skip
    scheduler = get_scheduler("linear", optimizer, int(training.WARMUP_FRACTION * len(loader)), len(loader))
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


def our_epoch(
    pretrained: Pretrained, keep_masks: dict[str, Tensor], rows: Dataset, collate: DataCollatorWithPadding,
    accelerator: Accelerator, args: argparse.Namespace, seed: int,
) -> torch.nn.Module:  # fmt: skip
    """A model trained by our Sparse Transfer, one epoch on the same rows."""
    model = pretrained.copy(seed).to(accelerator.device)
    optimizer = training.make_optimizer(model, args.learning_rate, 0.0)
    start_transfer("sparse_transfer", optimizer, dict(model.named_parameters()), keep_masks)
    model, optimizer = accelerator.prepare(model, optimizer)
    recipe = training.Recipe(args.learning_rate, args.batch_size, num_epochs=1, seed=seed)
    training.train(accelerator, model, optimizer, rows, collate, recipe)
    return model


def report_epoch(
    pretrained: Pretrained, keep_masks: dict[str, Tensor], train_rows: Dataset, rows: Dataset,
    collate: DataCollatorWithPadding, accelerator: Accelerator, args: argparse.Namespace,
) -> None:  # fmt: skip
    """Print seconds and validation accuracy of an epoch in both ways, a pair for each seed, and the floor."""

    def accuracy(model: torch.nn.Module) -> float:
        outputs = training.predict(accelerator, model, rows, collate, 128)
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
    floor = flops / matmul_speed(accelerator)
    print(f"\nepoch: {len(train_rows)} rows, sparse transfer at sparsity {args.sparsity}, seeds {args.seeds}")
    middle = {name: statistics.median(values) for name, values in times.items()}
    print(f"  seconds: original {middle['original']:.1f}, ours {middle['ours']:.1f}, floor {floor:.1f} "
          f"({flops / 1e12:.1f} TFLOP of the real tokens at this machine's speed of matmuls)")  # fmt: skip
    print(f"  original / ours: {ratio(times['original'], times['ours'])}")
    for name, values in scores.items():
        print(f"  accuracy {name}: {' '.join(f'{value:.3f}' for value in values)}")


def matmul_speed(accelerator: Accelerator) -> float:
    """FLOP per second of a matmul of large square matrices, in the precision that training computes in."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
    matrix = torch.randn(2048, 2048, device=accelerator.device, dtype=dtype)
    times = [seconds(lambda: matrix @ matrix, accelerator.device) for _ in range(5)]
    return 2 * 2048**3 / min(times)


if __name__ == "__main__":
    main()
