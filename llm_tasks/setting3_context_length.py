"""Setting 3: questions on a text that holds the answer; the longer the text, the harder, and no text is hardest.

    python llm_tasks/setting3_context_length.py --model_name_or_path lmsys/vicuna-7b-v1.3 --dtype float16 \\
        --max_items 2000 --compression dense magnitude wanda sparsegpt --sparsity 0.1 0.2 0.3 0.4 0.5 0.6 0.7 \\
        --nm_ratio 6:8 4:8 2:8 --output_dir "runs/setting3/{compression}/{strength}/{seed}"

On a laptop, 300 questions of SQuAD from the default assets:

    python llm_tasks/setting3_context_length.py --data_dir ~/.cache/junk_dna/data --context_dataset squad \\
        --model_name_or_path ~/.cache/junk_dna/models/SmolLM2-135M-Instruct --max_items 300 \\
        --compression dense magnitude --sparsity 0.2 0.4 \\
        --output_dir "runs/setting3/{compression}/{strength}/{seed}"

The paper (section 3.1.3) takes x % of a text's tokens around the answer and splits no sentence; its code cuts 3072
characters from the start, wherever the answer is. Here the full window, 100 %, is what fits into --context_tokens
around the answer's sentence, and x % of it is the part that grew first, so that the answer is in every window and a
smaller window is in every larger one. Where in its window an answer stands is drawn for each question by --seed. A
question whose texts hold no answer is left out at every level and counted.

Texts of SQuAD and of Natural Questions are single paragraphs, often shorter than --context_tokens: there neighbouring
levels share many windows (counted as same_as_smaller_share). From the hub, TriviaQA's texts are read one by one where
--max_items is given, the first so many rows; all of them are some 16 GB.
"""

import sys
from collections.abc import Sequence

from llm_tasks.run import run
from llm_tasks.settings import SETTINGS


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the models that the command line asks for in setting 3, or in those that it names."""
    return run(argv, __doc__, SETTINGS, 3)


if __name__ == "__main__":
    sys.exit(main())
