"""Speed and memory, measured beside another way of doing the same: the original's, a peer's, or the floor.

    python scripts/benchmark.py finetuning     masks and training against the original's way
    python scripts/benchmark.py compression    against llmcompressor
    python scripts/benchmark.py growth         compression over more and more tokens, blocks and strengths
    python scripts/benchmark.py streaming      models larger than memory: peaks, predicted and measured
    python scripts/benchmark.py evaluation     against lm-evaluation-harness
    python scripts/benchmark.py local_tasks    lm-evaluation-harness's task files on local copies of their data
    python scripts/benchmark.py tasks          tasks of lm-evaluation-harness by its own model and by our engine
    python scripts/benchmark.py cells          long lists of cells: listing, checking, skipping
    python scripts/benchmark.py gpu            compression, scoring and fine-tuning at real sizes, beside their floors
    python scripts/benchmark.py reading        large trees of runs: plot_results.py and its parts

Each has its own options: python scripts/benchmark.py evaluation --help. Ratios carry over to other machines; seconds do
not. A floor is what a step cannot do without, measured in the same run.
"""

import argparse
import subprocess
import sys
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent / "benchmarks"
FILES = {
    "finetuning": "against_original.py",
    "compression": "against_llmcompressor.py",
    "growth": "growth.py",
    "streaming": "streaming.py",
    "evaluation": "against_lm_eval.py",
    "local_tasks": "local_lm_eval.py",
    "tasks": "lm_eval_equality.py",
    "gpu": "gpu.py",
    "cells": "cells.py",
    "reading": "reading.py",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", choices=FILES, help="what to measure")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="its own options")
    args = parser.parse_args(argv)
    program = PROGRAMS / FILES[args.name]
    return subprocess.run([sys.executable, str(program), *args.options], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
