"""Setting 4: MMLU after five, three, one and no few-shot example; fewer are harder (paper, section 3.1.4).

    python llm_tasks/setting4_k_shot.py --model_name_or_path lmsys/vicuna-7b-v1.3 --dtype float16 \\
        --compression dense magnitude wanda sparsegpt --sparsity 0.1 0.2 0.3 0.4 0.5 0.6 0.7 --nm_ratio 6:8 4:8 2:8 \\
        --seed 0 1 2 --output_dir "runs/setting4/{compression}/{strength}/{seed}"

On a laptop, 500 questions, from the default assets:

    python llm_tasks/setting4_k_shot.py --data_dir ~/.cache/junk_dna/data --max_items 500 --answer_mode cloze \\
        --model_name_or_path ~/.cache/junk_dna/models/SmolLM2-135M-Instruct \\
        --compression dense magnitude --sparsity 0.2 0.4 \\
        --output_dir "runs/setting4/{compression}/{strength}/{seed}"

The examples are the first k of one order of a subject's dev examples, so that a prompt with few is the start of the one
with more. The paper says that they come from the validation set (`--shot_split validation`); its code takes the first
of the dev split, which is made for this. Here the order follows from --seed, because which examples are shown matters
at small k; `--shot_order file` takes the file's, as lm-evaluation-harness and the paper's code do.
"""

import sys
from collections.abc import Sequence

from llm_tasks.run import run
from llm_tasks.settings import SETTINGS


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the models that the command line asks for in setting 4, or in those that it names."""
    return run(argv, __doc__, SETTINGS, 4)


if __name__ == "__main__":
    sys.exit(main())
