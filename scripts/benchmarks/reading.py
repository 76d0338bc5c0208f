"""Seconds and memory of reading, describing and drawing trees of many runs.

    python scripts/benchmark.py reading
    python scripts/benchmark.py reading --runs 100000 --steps read

The runs are made up: settings 2 to 6, three models, seven compressions at 87 strengths in all, and as many seeds as it
takes, each with its items. Steps: "read" reads them; "described" makes tables, intervals and verdicts as well; "drawn"
is all that plot_results.py does. Each step is measured in a separate process. Linux only: peak memory is read from
/proc.
"""

import argparse
import functools
import io
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from harness import run_folder
from harness.options import positive
from measuring import make_parser, markdown_table

STEPS = ("read", "described", "drawn")
PRUNERS = ("magnitude", "wanda", "sparsegpt", "ria")
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NM_RATIOS = ("7:8", "6:8", "5:8", "4:8", "3:8", "2:8", "1:8")
BITS = (16, 14, 12, 10, 8, 6, 4, 3, 2)
RANKS = (500, 400, 300, 200, 100)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--runs", type=positive, nargs="+", default=[1000, 10_000], help="in a tree (default 1000 10000)")
    add("--items", type=positive, default=300, help="at each of three levels (default 300)")
    add("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="default all")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    rows = []
    for count in args.runs:
        with tempfile.TemporaryDirectory() as folder:
            tree, out = Path(folder) / "runs", Path(folder) / "figures"
            write_made_up_runs(tree, count, args.items)
            for step in args.steps:
                wall, cpu, peak = measured(program(step), str(tree), str(out))
                rows.append([f"{count:,}", step, f"{wall:.1f}", f"{cpu:.1f}", f"{peak / 1e6:.0f} MB"])
    print(markdown_table(["runs", "up to", "seconds", "CPU seconds", "peak memory"], rows))


def program(step: str) -> str:
    """The Python program of a step; its arguments are the tree and the folder of the figures."""
    if step == "drawn":
        script = str(Path(__file__).resolve().parents[1] / "plot_results.py")
        return (
            "import runpy, sys; sys.argv[1:] = ['--results_dir', sys.argv[1], '--output_dir', sys.argv[2]]; "
            f"runpy.run_path({script!r}, run_name='__main__')"
        )
    work = "rows = run_folder.read_runs(Path(sys.argv[1]))" + ("; kinds.describe(rows)" * (step == "described"))
    return f"import sys; from pathlib import Path; from analysis import kinds; from harness import run_folder; {work}"


def measured(work: str, *arguments: str) -> tuple[float, float, int]:
    """Seconds, CPU seconds and peak bytes of a process that runs a Python program; CalledProcessError if it fails."""
    # Of the process itself: what the system tells its parent includes the parent's memory before the program starts.
    work += "; print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM:')))"
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", work, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, 1024 * int(done.stdout.splitlines()[-1])


def write_made_up_runs(tree: Path, count: int, items: int) -> None:
    """Write `count` runs as the scripts write them; their scores fall as compression grows."""
    points = [("dense", None, None, 0.0)]
    points += [(name, "sparsity", amount, amount) for name in PRUNERS for amount in SPARSITIES]
    points += [(name, "nm", ratio, 1 - int(ratio[0]) / 8) for name in PRUNERS for ratio in NM_RATIOS]
    points += [(name, "bits", bits, 1 - bits / 16) for name in ("rtn", "gptq") for bits in BITS]
    points += [("low_rank", "rank", rank, 1 - rank / 600) for rank in RANKS]
    sweep = list(itertools.product(range(2, 7), ("lab/a", "lab/b", "lab/c"), points))
    for number in range(count):
        seed, (setting, model, (compression, kind, strength, amount)) = number // len(sweep), sweep[number % len(sweep)]
        # Runs at the same strength share their items' file.
        scores, content = made_up_items(amount, seed % 4, items)
        folder = tree / model / f"{setting}" / compression / f"{strength}" / f"{seed}"
        folder.mkdir(parents=True)
        recorded = {"seed": seed, "compression": compression, "group_size": 128, "symmetric": False}
        text = json.dumps({"arguments": recorded, "environment": {}})
        (folder / run_folder.ARGUMENTS_FILE).write_text(text)
        (folder / run_folder.ITEMS_FILE).write_bytes(content)
        levels = [
            {"level": f"{index + 2} options", "difficulty": index, "metric": "accuracy", "score": score,
             "chance": 1 / (index + 2), "stderr": 0.01, "num_examples": items}
            for index, score in enumerate(scores)
        ]  # fmt: skip
        run = {
            **dict.fromkeys(run_folder.RUN_KEYS, 0), "setting": setting, "model": model, "task": f"task {setting}",
            "compression": compression, "strength_kind": kind, "strength": strength, "seed": seed, "recipe": "one",
            "requested_sparsity": amount if kind in ("sparsity", "nm") else 0.0, "measured_sparsity": amount,
            "compression_recipe": "two", "parameter_ratio": 1 - amount, "precision": "no", "dtype": "torch.float32",
            "levels": levels,
        }  # fmt: skip
        (folder / run_folder.RESULT_FILE).write_text(json.dumps(run, indent=2))


@functools.cache
def made_up_items(amount: float, seed: int, items: int) -> tuple[list[float], bytes]:
    """The scores at three levels, and the bytes of the items.npz that holds them."""
    generator = np.random.default_rng([seed, round(1000 * amount)])
    right = [generator.random(items) < 0.4 * (1 - amount**2) + 1 / (index + 2) for index in range(3)]
    names = [f"subject {number % 57}/{number}" for number in range(items)]
    columns = {
        "level": np.repeat(np.arange(3, dtype=np.int32), items),
        "item": np.array(names * 3),
        "group": np.array([name.partition("/")[0] for name in names] * 3),
        "score": np.concatenate(right).astype(float),
        "option_log_likelihood": generator.normal(size=9 * items),
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **columns)
    return [float(scores.mean()) for scores in right], stream.getvalue()


if __name__ == "__main__":
    main()
