"""Prune a language model and train it on: what comes back, beside the dense model trained in the same way.

    python llm_tasks/recover.py --model_name_or_path lmsys/vicuna-7b-v1.5 --compression wanda magnitude \\
        --sparsity 0.5 --train_text c4 --max_train_steps 1000 --checkpointing_steps 100 \\
        --output_dir "runs/recover/{compression}/{strength}/{transfer}/{seed}"

Each run prunes, trains in one of the paper's transfers, measures perplexity on held-out text on the way, and writes the
model to <output_dir>/model. sparse_transfer keeps pruned weights at zero; sparse_to_dense lets them grow again;
dense_transfer_freezing keeps the small weights at their dense values and trains the others; dense_transfer prunes
nothing and trains on the same windows for as many steps. Settings 2 to 6 measure the models that are written.
"""

import sys
from collections.abc import Sequence

from llm_tasks.recovery.run import run


def main(argv: Sequence[str] | None = None) -> int:
    """Train the models that the command line asks for."""
    return run(argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
