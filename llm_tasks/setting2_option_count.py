"""Setting 2: MMLU with two, three and four options; more options are harder (paper, section 3.1.2).

    python llm_tasks/setting2_option_count.py --model_name_or_path lmsys/vicuna-7b-v1.3 --dtype float16 \\
        --compression dense magnitude wanda sparsegpt --sparsity 0.1 0.2 0.3 0.4 0.5 0.6 0.7 --nm_ratio 6:8 4:8 2:8 \\
        --seed 0 1 2 --output_dir "runs/setting2/{compression}/{strength}/{seed}"

On a laptop, 500 questions, from the default assets:

    python llm_tasks/setting2_option_count.py --data_dir ~/.cache/junk_dna/data --max_items 500 --answer_mode cloze \\
        --model_name_or_path ~/.cache/junk_dna/models/SmolLM2-135M-Instruct \\
        --compression dense magnitude --sparsity 0.2 0.4 \\
        --output_dir "runs/setting2/{compression}/{strength}/{seed}"

The paper does not say which options it removes. Here the options of a smaller number are among those of a larger one,
the right one's position is balanced within a subject, and few-shot examples are reduced in the same way. Questions
whose options mean other options ("all of the above"), or are the same twice, are left out at every number of options
and counted. Which distractors stay follows from --seed: give several.

Chance is 1/2, 1/3 and 1/4: a model that loses the same share of what it knows loses more of its score at four options
than at two. Read the drops that are corrected for chance beside the plain ones.

One more level, "4 options, untouched", has all questions and options as published, for comparison with other
evaluations; it stands in tables and in no curve.
"""

import sys
from collections.abc import Sequence

from llm_tasks.run import run
from llm_tasks.settings import SETTINGS


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the models that the command line asks for in setting 2, or in those that it names."""
    return run(argv, __doc__, SETTINGS, 2)


if __name__ == "__main__":
    sys.exit(main())
