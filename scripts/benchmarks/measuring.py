"""What the benchmarks share: clocks, processes, works measured in turn, tables."""

import argparse
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from harness.device import clock
from process_memory import anonymous_bytes

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ASSETS = Path("~/.cache/junk_dna").expanduser()
DECODER = ASSETS / "models" / "SmolLM2-135M-Instruct"
MEMORY_TITLES = ["peak MB", "peer", "ours", "ours / peer", "beside the loaded: peer", "ours", "ours / peer"]
SAMPLES = 50  # of memory, a second
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def make_parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def seconds(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds that the work takes by the clock; on a GPU until all that it started has ended."""
    started = time.perf_counter()
    work()
    if device is not None:
        clock([device])  # waits for it
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
    """slow / fast turn by turn: the median, the smallest and the largest."""
    pairs = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return f"{statistics.median(pairs):.2f} (from {pairs[0]:.2f} to {pairs[-1]:.2f})"


def growth_exponent(sizes: list[int], times: list[float]) -> float:
    """Slope of log seconds over log size: 1 where time is proportional, less where a part of it is constant."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def side_environment(threads: int, model_is_local: bool) -> dict[str, str]:
    """Environment variables of either side's process: as many threads, and no hub where the model is in a folder."""
    given = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    offline = {"HF_HUB_OFFLINE": "1"} if model_is_local else {}
    return {**os.environ, **given, **offline, "TOKENIZERS_PARALLELISM": "false"}


def run_quietly(command: list[str], environment: dict[str, str] | None, folder: Path) -> None:
    """Run a command with all output in <folder>/log.txt, of which the end is shown where the command fails.

    Raises:
        SystemExit: the command failed.
    """
    log = folder / "log.txt"
    with log.open("w") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    check_ended(command, done.returncode, log)


class Watched(NamedTuple):
    """What a process took: its peak of anonymous bytes, and seconds of CPU time, which other processes stretch less."""

    peak: int
    cpu_seconds: float


def run_watched(command: list[str], environment: dict[str, str] | None, folder: Path) -> Watched:
    """run_quietly, watching the process: its bytes are sampled SAMPLES times a second.

    Raises:
        SystemExit: the command failed.
    """
    log, peak, before = folder / "log.txt", 0, resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(1 / SAMPLES)
    check_ended(command, process.returncode, log)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Watched(peak, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def check_ended(command: list[str], code: int, log: Path) -> None:
    """Raises SystemExit with the end of the log where a command failed."""
    if code:
        raise SystemExit(f"{log.read_text()[-4000:]}\n{' '.join(command)}: exit code {code}")


def memory(runs: list[dict[str, Any]], beside_the_loaded: bool, work: str = "compressing") -> float:
    """Median over runs of the peak bytes: of the whole process, or of the work beyond what loading left."""
    if beside_the_loaded:
        return statistics.median(run[f"{work}_peak_bytes"] - run["loaded_bytes"] for run in runs)
    return statistics.median(run["peak_bytes"] for run in runs)


def memory_cells(sides: dict[str, list[dict[str, Any]]], work: str = "compressing") -> list[str]:
    """The row under MEMORY_TITLES; it has no ratio where the peer's work fitted into memory that loading had freed."""
    cells = []
    for beside_the_loaded in (False, True):
        peer, ours = (memory(sides[side], beside_the_loaded, work) for side in ("peer", "ours"))
        cells += [f"{peer / 1e6:.0f}", f"{ours / 1e6:.0f}", f"{ours / peer:.0%}" if peer else "-"]
    return cells


def print_table(titles: list[str], rows: list[list[str]]) -> None:
    """Print aligned columns after an empty line."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    print()
    for row in (titles, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def markdown_table(titles: list[str], rows: list[list[str]]) -> str:
    """The table in Markdown; a bar in a cell does not end it."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
