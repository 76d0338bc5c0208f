"""Multiple choice by the engine of settings 2 to 6 against lm-evaluation-harness (peer_lm_eval.py: how to install it).

    python scripts/benchmark.py evaluation --peer_python lm_eval_peer/bin/python --threads 1 --output evaluation.json
    python scripts/benchmark.py evaluation --growth --tasks hellaswag --items 50
    python scripts/benchmark.py evaluation --k_shot --subjects astronomy --items 100

Both sides get the same rows, model and dtype, and run in separate processes, in turn. Linux only. "Score" is tokenising
and computing log-likelihoods, once libraries and weights are loaded. "Build" makes the prompts: the peer reads the
chosen rows for it, our side reads and checks the whole file. With --growth our side alone runs, on more and more items;
with --k_shot it measures all of setting 4 at once, and each number of few-shot examples apart. Ratios are medians over
turns.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from harness.device import device_named
from harness.options import positive
from llm_tasks.tasks import commonsense, mmlu
from measuring import (
    HERE,
    MEMORY_TITLES,
    growth_exponent,
    make_parser,
    markdown_table,
    memory,
    memory_cells,
    print_table,
    ratio,
    run_quietly,
    side_environment,
)
from our_evaluation import EVALUATED, WAYS, add_questions, load_questions

MOST_SHOTS = 5  # examples of a subject in MMLU's dev split
K_SHOTS = (0, 1, 3, 5)  # few-shot examples of setting 4, which --k_shot measures
SIZES = (1, 2, 4)  # multiples of --items that --growth measures
Table = tuple[list[str], list[list[str]]]  # titles and rows


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
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
    args = parser.parse_args(argv)
    check_args(parser, args)
    return args


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    alone = next((f"--{name}" for name in ("growth", "k_shot") if getattr(args, name)), None)
    if not alone and args.peer_python is None:
        parser.error("one of --peer_python, --growth and --k_shot is needed")
    if alone and args.peer_python is not None:
        parser.error(f"--peer_python {args.peer_python}: {alone} measures our side alone")
    if args.peer_python is not None and not args.peer_python.is_file():
        parser.error(f"--peer_python {args.peer_python}: no such file; peer_lm_eval.py says how to make it")
    if args.subjects and "mmlu" not in args.tasks and not args.k_shot:
        parser.error("--subjects is for mmlu, which is not among --tasks")
    try:
        device_named(args.device)
    except ValueError as error:
        parser.error(str(error))
    if not (args.model / "config.json").is_file():
        parser.error(f"--model {args.model}: no folder with a config.json")
    if args.output and (args.output.suffix != ".json" or not args.output.parent.is_dir()):
        parser.error(f"--output {args.output} is not the name of a .json file in a folder that exists")
    if not Path("/proc/self/clear_refs").exists():
        parser.error("peak memory is read from Linux's /proc, which this system lacks")


def main(argv: list[str] | None = None) -> None:
    """Measure both sides, or ours alone at several sizes or in several ways; print the tables and write them."""
    args = parse_args(argv)
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
        raise SystemExit(f"evaluation: {error}") from error
    told = f"{args.model} on {args.device}, {args.dtype}, {args.threads} threads"
    told += f", {args.items} items of a task, {args.turns} turns"
    print(told, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = measured(args, rows, Path(folder))
    if args.output:
        args.output.write_text(json.dumps({"options": vars(args), "rows": rows, "runs": runs}, default=str, indent=1))
    tables = tables_of(runs)
    for table in tables:
        print_table(*table)
    if args.output:
        shown = "\n\n".join([told, *(markdown_table(*table) for table in tables)])
        args.output.with_suffix(".md").write_text(f"{shown}\n")


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
    """What was measured, by task and side."""
    runs = {}
    for task, chosen in rows.items():
        commands = {"peer": peer_command(args, task), "ours": our_command(args, task, [args.num_shots])}
        runs[task] = run_in_turn(task, commands, dict.fromkeys(commands, chosen), args.turns, args.threads, folder)
    print(f"peer: {next(iter(runs.values()))['peer'][0]['versions']}")
    return runs


def our_command(args: argparse.Namespace, task: str, shots: Sequence[int], way: str = "together") -> list[str]:
    own = ["--shots", *map(str, shots), "--way", way]
    own += ["--tokens_per_batch", str(args.tokens_per_batch)] if args.tokens_per_batch else []
    return [sys.executable, str(HERE / "our_evaluation.py"), *both_sides(args, task), *own]


def peer_command(args: argparse.Namespace, task: str) -> list[str]:
    own = ["--threads", str(args.threads), "--batch_size", str(args.batch_size)]
    shots = ["--num_fewshot", str(args.num_shots)] if task == "mmlu" else []
    return [str(args.peer_python), str(HERE / "peer_lm_eval.py"), *both_sides(args, task), *own, *shots]


def both_sides(args: argparse.Namespace, task: str) -> list[str]:
    return ["--task", task, "--model", str(args.model), "--data_dir", str(args.data_dir), "--dtype", args.dtype,
            "--device", args.device]  # fmt: skip


def run_in_turn(
    title: str, commands: dict[str, list[str]], rows: dict[str, list[int]], turns: int, threads: int, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Run the commands in turn, A B C A B C …, each on its rows; returns the results of each, one for every turn."""
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
        same_text: share of rows of which both scored the same texts, split into prompt and option alike.
        differing: of the rows that are not predicted or judged alike, both sides' rows: peer, ours.
    """

    acc: float
    acc_norm: float | None
    largest: float
    same_text: float
    differing: list[tuple[dict[str, Any], dict[str, Any]]]


def agreement(peer_rows: Sequence[dict[str, Any]], our_rows: Sequence[dict[str, Any]]) -> Agreement:
    """Compare the rows of peer_lm_eval.py with those of our_evaluation.py.

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
    tables = [agreement_table(runs, found), differing_table(found), seconds_table(runs), memory_table(runs),
              device_memory_table(runs)]  # fmt: skip
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


def device_memory_table(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> Table:
    """Peak memory of the device; without rows where the models are on the CPU."""
    rows = []
    for task, sides in runs.items():
        peer, ours = (max(run.get("device_peak_bytes", 0) for run in sides[side]) for side in ("peer", "ours"))
        if ours:
            rows.append([task, f"{peer / 1e6:.0f}", f"{ours / 1e6:.0f}", f"{ours / peer:.0%}" if peer else "-"])
    return ["peak MB of the device", "peer", "ours", "ours / peer"], rows


def tokens_table(ours: dict[str, list[dict[str, Any]]]) -> Table:
    """Tokens that our side computes, padding included; distinct ones, the floor; the peer's, padding left out."""
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
    """What our side measured, by task and number of items."""
    runs = {}
    for task, chosen in rows.items():
        some = {str(args.items * size): chosen[: args.items * size] for size in SIZES}
        commands = dict.fromkeys(some, our_command(args, task, [args.num_shots]))
        runs[task] = run_in_turn(task, commands, some, args.turns, args.threads, folder)
    return runs


def growth_tables(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> list[Table]:
    return [growth_table(task, by_size) for task, by_size in runs.items()]


def growth_table(task: str, runs: dict[str, list[dict[str, Any]]]) -> Table:
    """Seconds and tokens at each number of items, in total and per item."""
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
    """What our side measured of setting 4, by each of WAYS."""
    commands = {way: our_command(args, "mmlu", K_SHOTS, way) for way in WAYS}
    return run_in_turn("mmlu", commands, dict.fromkeys(WAYS, rows["mmlu"]), args.turns, args.threads, folder)


def ways_tables(runs: dict[str, list[dict[str, Any]]]) -> list[Table]:
    return [ways_table(runs), tokens_table(runs), stages_table(runs)]


def ways_table(runs: dict[str, list[dict[str, Any]]]) -> Table:
    """Tokens, seconds, memory and log-likelihoods of each way beside those of all levels together."""
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


if __name__ == "__main__":
    main()
