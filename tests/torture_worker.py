"""A sweep of tiny runs for tests/test_torture.py: what a script does with its cells, without a model.

    python tests/torture_worker.py OUTPUT_DIR NUM_CELLS SECONDS_PER_CELL [JOURNAL]

Every run's numbers follow from its cell alone. The journal, on another disk, gets a line when a run starts, ends or
fails.
"""

import logging
import os
import sys
import time
from pathlib import Path

import numpy as np

from harness import run_folder
from harness.cells import check_folders, output_folders, run_cells, start_logging


def main(output_dir: str, num_cells: str, seconds: str, journal: str = os.devnull) -> int:
    start_logging()
    logging.getLogger().setLevel(logging.ERROR)
    folders = output_folders(f"{output_dir}/{{group}}/{{seed}}",
                             [{"group": f"g{seed % 7}", "seed": seed} for seed in range(int(num_cells))])  # fmt: skip
    identities = {folder: {"seed": cell["seed"]} for folder, cell in folders.items()}
    check_folders(identities)

    def note(event: str, seed: int) -> None:
        line = f"{event} {seed} {os.getpid()}\n".encode()
        descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, line)
        os.close(descriptor)

    def compute(folder: Path) -> None:
        seed = folders[folder]["seed"]
        note("start", seed)
        try:
            run_folder.start_run(folder, identities[folder], {})
            time.sleep(float(seconds))
            run_folder.write_run(folder, *outcome(seed))
        except Exception:
            note("fail", seed)
            raise
        note("done", seed)

    return 1 if run_cells(identities, compute) else 0


# What read_runs wants to be names.
NAMED = {"model": "m", "compression": "dense", "strength_kind": None}


def outcome(seed: int) -> tuple[dict, dict[str, np.ndarray]]:
    """A result and its items, 16 kB that do not compress."""
    draws = np.random.default_rng(seed).random(2000)
    level = {"level": 1, "difficulty": 0.0, "metric": "accuracy", "score": draws.mean(), "chance": 0.5,
             "stderr": draws.std(), "num_examples": len(draws)}  # fmt: skip
    return {**dict.fromkeys(run_folder.RUN_KEYS, 0), "seed": seed, "levels": [level], **NAMED}, {"score": draws}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
