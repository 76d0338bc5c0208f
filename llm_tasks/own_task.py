"""How far may a model be compressed before it breaks on your own task? A file of your own in place of a data set.

    python llm_tasks/own_task.py --model_name_or_path Qwen/Qwen3-1.7B --task_file support.jsonl \\
        --compression dense wanda sparsegpt gptq --sparsity 0.2 0.3 0.4 0.5 0.6 --bits 8 4 \\
        --output_dir "runs/support/{compression}/{strength}/{seed}"
    python scripts/plot_results.py --results_dir runs/support --output_dir runs/support/figures

The file holds one item in every line (.jsonl, also .gz), or is a .parquet file. Multiple choice, here in two levels:

    {"question": "Which port does HTTPS use?", "choices": ["80", "443"], "answer": "B", "level": 1}
    {"question": "Which key opens help?", "choices": ["Esc", "F1"], "answer": 1, "context": "F1: help", "level": 1}
    {"question": "What is 17 * 3?", "choices": ["41", "51", "57"], "answer": "51", "level": 2}

`answer` is a choice's text, its letter, or, as a number, its index from 0. Where the model is to write the answer
itself, `answers` holds all texts that are right: {"question": "Who wrote Emma?", "answers": ["Jane Austen", "Austen"]}.
A file holds one of the two kinds.

Optional are `context`, a text that stands before the question, and `level`, which every item has or none. Levels that
are numbers are difficulties, larger is harder; others go from easy to hard as they first appear. Items that differ in
context alone are the same item, so that a question may stand at several levels, with more or less help. Other fields
are not read; the log names them. --max_items takes so many of each level.

How to read the result: summary.md says for every level what the dense model scores, and for every strength how much of
that is lost, with its 95 % interval; the largest strength whose interval still holds 0 is as far as your items can tell
that nothing is lost, and more items narrow the interval. A level whose dense score is not above chance says nothing, at
any strength: the model cannot do it to begin with, or needs another --answer_mode. Small models often fail to say
letters: --answer_mode cloze compares the choices' texts instead.
"""

import sys
from collections.abc import Sequence

from llm_tasks.run import run
from llm_tasks.settings import own_task


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the models that the command line asks for on a task of your own."""
    return run(argv, __doc__, {own_task.SETTING.name: own_task.SETTING}, own_task.SETTING.name)


if __name__ == "__main__":
    sys.exit(main())
