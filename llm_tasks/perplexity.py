"""Perplexity of a language model, dense and compressed.

    python llm_tasks/perplexity.py --model_name_or_path lmsys/vicuna-7b-v1.5 --compression wanda --sparsity 0.5 \\
        --output_dir runs/vicuna-7b/wanda/0.5

A sweep, with one load of the model:

    python llm_tasks/perplexity.py --model_name_or_path lmsys/vicuna-7b-v1.5 --compression dense magnitude wanda gptq \\
        --sparsity 0.1 0.3 0.5 0.7 --nm_ratio 6:8 4:8 2:8 --bits 8 4 3 --seed 0 1 2 \\
        --output_dir "runs/{compression}/{strength}/{seed}"

The text is cut into windows that do not overlap, the last one is dropped where it is not full, and the mean of the
windows' mean losses is exponentiated: the convention of published perplexities on WikiText-2.
"""

import sys
from collections.abc import Sequence

from llm_tasks.run import run
from llm_tasks.settings import perplexity


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the models that the command line asks for by their perplexity."""
    return run(argv, __doc__, {perplexity.SETTING.name: perplexity.SETTING}, perplexity.SETTING.name)


if __name__ == "__main__":
    sys.exit(main())
