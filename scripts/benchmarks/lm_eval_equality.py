"""lm-evaluation-harness's tasks by its own HFLM and by our engine: the same items, prompts, scores; the time of each.

    python scripts/benchmark.py local_tasks --data_dir DIR [DIR …] --items 300 --output_dir lm_eval_local
    python scripts/benchmark.py tasks --include_path lm_eval_local --tasks hellaswag nq_open c4 --output tasks.json

Both sides run in this process, in turn, with one model in memory: `simple_evaluate(model=HFLM(...))`, then
`simple_evaluate(model=EngineLM(...))`; then the tasks as levels of own_task.py. Seconds are of simple_evaluate on one
task, with its building of prompts; of own_task's way of encoding and measuring alone. Needs lm_eval
(requirements-lm-eval.txt). An item is equal where all its log-likelihoods agree to --tolerance, all its texts and
choices are the same, and so are all its scores.
"""

import argparse
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from harness.device import device_named, keep_freed_memory, use_device
from harness.options import positive
from llm_tasks.compressed_model import max_length
from llm_tasks.evaluation import Evaluation, Reading, encode, measure
from llm_tasks.option_values import tokens_scored_at_once
from llm_tasks.tasks import lm_eval_tasks
from llm_tasks.tasks.lm_eval_levels import items_of, make_level
from measuring import CLOCKS, DECODER, make_parser, print_table

TIMES = ("wall theirs", "wall ours", "cpu theirs", "cpu ours")
Samples = dict[tuple[str, int, str], dict[str, Any]]  # by task, document and filter


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--include_path", type=Path, help="folder of task files")
    add("--tasks", nargs="+", required=True, metavar="NAME", help="tasks or groups of lm-eval")
    add("--num_fewshot", type=int, help="examples before each question (default: as each task says)")
    add("--model", type=Path, default=DECODER, help="folder of a decoder (default asset)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    add("--device", default="cpu", help="cpu, or an accelerator such as cuda:1 (default cpu)")
    add("--batch_size", type=positive, default=8, help="HFLM's: sequences computed at once (default 8)")
    add("--turns", type=positive, default=1, help="runs of each side (default 1)")
    add("--threads", type=positive, default=1, help="of the CPU (default 1)")
    add("--tolerance", type=float, default=1e-4, help="of log-likelihoods, as a share of 1 + their size (default 1e-4)")
    add("--no_level", action="store_true", help="leave out the tasks as levels of own_task.py")
    add("--output", type=Path, help="write the results here, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Compare the sides task by task; exit code 1 where scores in float32 differ beyond rounding."""
    args = parse_args(argv)
    try:
        lm_eval_tasks.load_levels(tuple(args.tasks), args.include_path, args.num_fewshot)
    except ValueError as error:
        raise SystemExit(f"tasks: {error}") from error
    torch.set_num_threads(args.threads)
    device = device_named(args.device)
    use_device(device)
    keep_freed_memory()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    dtype = getattr(torch, args.dtype)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, use_safetensors=True).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    found = [compare_task(name, model, tokenizer, args) for name in args.tasks]
    titles = ["task", "items", "equal", "largest difference", "theirs", "ours", *TIMES, "ratio", "ratio CPU"]
    print_table(titles, [table_row(one) for one in found])
    if args.output:
        args.output.write_text(json.dumps({"options": vars(args), "tasks": found}, default=str, indent=1))
    close = [math.isclose(one["ours"], one["theirs"], rel_tol=args.tolerance) for one in found]
    return int(args.dtype == "float32" and not all(close))


def table_row(one: dict[str, Any]) -> list[str]:
    seconds = one["seconds"]
    ratios = [seconds[f"{clock} theirs"] / seconds[f"{clock} ours"] for clock in CLOCKS]
    return [
        one["task"], str(one["items"]), f"{one['equal']:.2%}", f"{one['difference']:.1e}",
        *(f"{one[side]:.6f}" for side in ("theirs", "ours")), *(f"{seconds[name]:.1f}" for name in TIMES),
        *(f"{value:.2f}" for value in ratios),
    ]  # fmt: skip


def compare_task(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace
) -> dict[str, Any]:
    """One task by both sides and as a level: share of equal items, scores, and the median seconds of each."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from llm_tasks.lm_eval_bridge import EngineLM

    manager = lm_eval_tasks.task_manager(args.include_path)

    def evaluated(kind: type) -> dict[str, Any]:
        lm = kind(pretrained=model, tokenizer=tokenizer, batch_size=args.batch_size)
        return simple_evaluate(
            model=lm, tasks=[name], task_manager=manager, num_fewshot=args.num_fewshot, log_samples=True,
            bootstrap_iters=0,
        )  # fmt: skip

    sides: dict[str, Callable[[], Any]] = {
        "theirs": lambda: evaluated(HFLM),
        "ours": lambda: evaluated(EngineLM),
        "own_task": lambda: as_level(name, model, tokenizer, args),
    }
    if args.no_level:
        del sides["own_task"]
    seconds: dict[str, list[float]] = {f"{clock} {side}": [] for clock in CLOCKS for side in sides}
    results: dict[str, Any] = {}
    for _ in range(args.turns):
        for side, work in sides.items():
            started = {clock: now() for clock, now in CLOCKS.items()}
            results[side] = work()
            for clock, now in CLOCKS.items():
                seconds[f"{clock} {side}"].append(now() - started[clock])
    theirs, ours = samples_of(results["theirs"]), samples_of(results["ours"])
    pairs = [(theirs[key], ours[key]) for key in theirs]
    level = level_of(name, args)
    chosen = lm_eval_tasks.choose_metric(level, [])
    metric, key = lm_eval_tasks.metric_names(level)[chosen]
    differences = [difference(one, other) for one, other in pairs]
    equal = [
        apart <= args.tolerance and same_answers(one, other)
        for apart, (one, other) in zip(differences, pairs, strict=True)
    ]
    described = {
        "task": name, "metric": chosen, "items": len({(task, doc) for task, doc, _ in theirs}),
        "equal": float(np.mean(equal)), "difference": max(differences),
        "seconds": {side: float(np.median(own)) for side, own in seconds.items()},
        "results": {side: plain(results[side]["results"]) for side in ("theirs", "ours")},
    }  # fmt: skip
    for side, found in (("theirs", theirs), ("ours", ours)):
        described[side] = score(results[side]["results"], name, metric, key, found)
    if not args.no_level:
        measured = results["own_task"]
        wanted = np.sort(scores_of(ours, metric, key))
        described["own_task"] = measured.levels[0]["metrics"]
        described["level_equal"] = bool(np.array_equal(np.sort(measured.items["score"]), wanted))
    print(json.dumps({key: value for key, value in described.items() if key != "results"}), flush=True)
    return described


def level_of(name: str, args: argparse.Namespace) -> lm_eval_tasks.TaskLevel:
    return lm_eval_tasks.load_levels((name,), args.include_path, args.num_fewshot)[0]


def as_level(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace
) -> Evaluation:
    """The task measured as own_task.py measures it: its first metric, all items."""
    level = level_of(name, args)
    made = make_level(level, items_of(level, None), lm_eval_tasks.choose_metric(level, []), name, None)
    reading = Reading(tokens_per_batch=tokens_scored_at_once(None, model.device))
    encoded = encode({0: [made._replace(difficulty=0.0)]}, tokenizer, max_length(model), reading)[0]
    return measure(model, tokenizer, encoded, reading)


def samples_of(result: dict[str, Any]) -> Samples:
    return {
        (task, sample["doc_id"], sample["filter"]): sample for task, own in result["samples"].items() for sample in own
    }


def numbers_of(sample: dict[str, Any]) -> list[float]:
    """The log-likelihoods of an item; none where it is answered in words."""
    flat = [answer[0] if isinstance(answer, tuple | list) else answer for own in sample["resps"] for answer in own]
    return [float(value) for value in flat if not isinstance(value, str)]


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference between log-likelihoods of an item, as a share of 1 + their size."""
    pairs = zip(numbers_of(one), numbers_of(other), strict=True)
    return max((abs(a - b) / (1 + abs(a)) for a, b in pairs), default=0.0)


def same_answers(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether prompts, texts, what is chosen, what is greedy and all scores but the log-likelihoods are the same."""
    texts = [
        [str(answer) for own in side["resps"] for answer in own if isinstance(answer, str)] for side in (one, other)
    ]
    greedy = [[answer[1] for own in side["resps"] for answer in own if isinstance(answer, tuple | list)]
              for side in (one, other)]  # fmt: skip
    chosen = [int(np.argmax(numbers_of(side))) if numbers_of(side) else None for side in (one, other)]
    names = [name for name in one["metrics"] if isinstance(one[name], int | float) and name != "perplexity"]
    scores = [[side[name] for name in names] for side in (one, other)]
    asked = [side["prompt_hash"] + str(side["arguments"]) for side in (one, other)]
    return all(first == second for first, second in (texts, greedy, chosen, scores, asked))


def scores_of(samples: Samples, metric: str, key: str) -> np.ndarray:
    """The metric of each item under one filter, (items,)."""
    kept = [sample for (_, _, used), sample in samples.items() if used == key]
    if metric == lm_eval_tasks.PER_BYTE:
        return np.array([lm_eval_tasks.probability_of(sample) for sample in kept])
    return np.array([float(sample[metric]) for sample in kept])


def score(results: dict[str, Any], name: str, metric: str, key: str, samples: Samples) -> float:
    """What lm-eval reports of a task or group by a metric; of whole texts its bits per byte."""
    reported = "bits_per_byte" if metric == lm_eval_tasks.PER_BYTE else metric
    return float(results[name][f"{reported},{key}"])


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


if __name__ == "__main__":
    raise SystemExit(main())
