"""Setting 5: does compression harm tasks more on which the model is further behind people?

    python llm_tasks/setting5_human_gap.py --model_name_or_path lmsys/vicuna-13b-v1.3 \\
        --compression dense magnitude wanda sparsegpt --sparsity 0.1 0.3 0.5 0.7 --nm_ratio 6:8 4:8 2:8 \\
        --output_dir "runs/setting5/{compression}/{strength}/{seed}"

Three hundred items of other tasks:

    python llm_tasks/setting5_human_gap.py --model_name_or_path lmsys/vicuna-13b-v1.3 --tasks winogrande boolq \\
        --max_items 300 --compression dense wanda --sparsity 0.5 --output_dir "runs/few/{compression}/{strength}/{seed}"

A level is a data set, asked without examples. Its difficulty is (human - dense) / human with the dense model's own
accuracy, so it is known where the dense model's run is; the human scores are those the paper prints (section 3.2.1,
table 3; appendix B). The paper's scores are accuracies of lm-evaluation-harness, by the summed log-likelihood of an
option's text: that is --answer_mode cloze, the default here; commonsense.py says where prompts differ from its. Chance
is what one draw among an item's options scores; where all items have the same options, the share of the commonest
answer if that is more: 62 % of BoolQ's answers are "yes".
"""

import sys
from collections.abc import Sequence

from llm_tasks.run import run
from llm_tasks.settings import SETTINGS


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the models that the command line asks for in setting 5, or in those that it names."""
    return run(argv, __doc__, SETTINGS, 5)


if __name__ == "__main__":
    sys.exit(main())
