"""Setting 6: facts as free answers against facts as multiple choice (paper, section 3.2.2): FreebaseQA and MMLU.

    python llm_tasks/setting6_factoid_vs_mcq.py --model_name_or_path lmsys/vicuna-7b-v1.3 --dtype float16 \\
        --compression dense magnitude wanda sparsegpt --sparsity 0.1 0.2 0.3 0.4 0.5 0.6 0.7 \\
        --output_dir "runs/setting6/{compression}/{strength}/{seed}"

On a laptop, FreebaseQA in the file that its authors publish, or another set of questions:

    python llm_tasks/setting6_factoid_vs_mcq.py --data_dir ~/.cache/junk_dna/data \\
        --model_name_or_path ~/.cache/junk_dna/models/SmolLM2-135M-Instruct --max_items 500 \\
        --factoid_file FreebaseQA-eval.json --compression dense magnitude --sparsity 0.2 0.4 \\
        --output_dir "runs/setting6/{compression}/{strength}/{seed}"
    python llm_tasks/setting6_factoid_vs_mcq.py --data_dir ~/.cache/junk_dna/data \\
        --model_name_or_path ~/.cache/junk_dna/models/SmolLM2-135M-Instruct --max_items 500 \\
        --factoid_dataset nq_open --answer_mode cloze --compression dense magnitude --sparsity 0.2 0.4 \\
        --output_dir "runs/nq_open/{compression}/{strength}/{seed}"

MMLU has its own options and five few-shot examples; a question for a fact has none. A generated answer is right where
it equals an accepted answer or alias after TriviaQA's normalisation; the paper's code also accepts an answer inside a
longer word, or in the question.

The two floors differ: a model that knows nothing has 1/4 of MMLU right by log-likelihood and none of the free answers.
So the plain drop is larger for facts even where compression destroys the same share of knowledge in both: read the
drops that are corrected for chance beside it. With --answer_mode generate, the paper's way, the floor of MMLU is 0 too:
a model that no longer writes letters is right nowhere, whatever it knows.
"""

import sys
from collections.abc import Sequence

from llm_tasks.run import run
from llm_tasks.settings import SETTINGS


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the models that the command line asks for in setting 6, or in those that it names."""
    return run(argv, __doc__, SETTINGS, 6)


if __name__ == "__main__":
    sys.exit(main())
