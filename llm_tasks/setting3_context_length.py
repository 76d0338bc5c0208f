"""Setting 3: questions on a text that holds the answer; the longer the text, the harder, and no text is hardest.

    python llm_tasks/setting3_context_length.py --model_name_or_path lmsys/vicuna-7b-v1.3 --dtype float16 \\
        --max_items 2000 --compression dense magnitude wanda sparsegpt --sparsity 0.1 0.2 0.3 0.4 0.5 0.6 0.7 \\
        --nm_ratio 6:8 4:8 2:8 --output_dir "runs/setting3/{compression}/{strength}/{seed}"

On a laptop, 300 questions of SQuAD from local files:

    python llm_tasks/setting3_context_length.py --model_name_or_path SmolLM2-135M-Instruct --data_dir data \\
        --context_dataset squad --max_items 300 --compression dense magnitude --sparsity 0.2 0.4 \\
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

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from harness.data import Source, placed
from harness.options import number, positive
from llm_tasks.evaluation import ANSWER_OPTIONS, LevelSetting
from llm_tasks.levels import Level, Prompt, sample
from llm_tasks.tasks import reading
from llm_tasks.tasks.reading import CONTEXT_SETS, ContextItems, Item, Window, windows

logger = logging.getLogger(__name__)

OPTIONS = ("context_dataset", "context_shares", "context_tokens", "no_closed_book", "max_items", *ANSWER_OPTIONS)
OPEN_BOOK = "{context}\n\nBased on these texts, answer these questions:\n\n"  # both as the paper's code has them
CLOSED_BOOK = "Answer these questions:\n\n"
# Shares are 0.2 … 1; without a text the question is harder than with the longest (paper, table 2), and trends over
# levels use their order alone.
CLOSED_BOOK_DIFFICULTY = 1.2


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("setting 3: context length").add_argument
    add("--context_dataset", choices=tuple(CONTEXT_SETS), default="triviaqa", metavar="NAME",
        help=f"of {', '.join(CONTEXT_SETS)}; the last two from --data_dir alone (default triviaqa)")  # fmt: skip
    add("--context_shares", nargs="+", type=number(int, 1, 100), default=[20, 40, 60, 80, 100], metavar="PERCENT",
        help="of the full window's tokens, 1 to 100 (default 20 40 60 80 100)")  # fmt: skip
    add("--context_tokens", type=positive, default=768,
        help="the model's tokens in the full window, about 3000 characters (default 768)")  # fmt: skip
    add("--no_closed_book", action="store_true", help="without the level that has no text")


def load(args: argparse.Namespace) -> ContextItems:
    if len(set(args.context_shares)) < len(args.context_shares):
        raise ValueError(f"--context_shares {' '.join(map(str, args.context_shares))}: a number stands there twice")
    if args.overflow == "truncate_left":
        raise ValueError("--overflow truncate_left could cut the answer's sentence; setting 3 takes drop_shots or skip")
    found = reading.load(args.context_dataset, args.data_dir, args.max_items)
    if found.without_answer:
        logger.warning("%s: %d contexts do not contain the answer: their questions are left out at every level",
                       args.context_dataset, found.without_answer)  # fmt: skip
    return found._replace(items=sample(found.items, args.max_items, key=lambda item: item.item))


def files(args: argparse.Namespace) -> list[Path | Source]:
    return [placed(CONTEXT_SETS[args.context_dataset].source, args.data_dir)]


def readers(args: argparse.Namespace) -> tuple[str, ...]:
    return ("answer",)


def build(items: ContextItems, args: argparse.Namespace, seed: int, tokenizer: PreTrainedTokenizerBase) -> list[Level]:
    counted: dict[str, int] = {}  # questions share documents

    def count_tokens(texts: list[str]) -> list[int]:
        new = [text for text in dict.fromkeys(texts) if text not in counted]
        if new:
            tokens = tokenizer(new, add_special_tokens=False, verbose=False)["input_ids"]
            counted.update(zip(new, map(len, tokens), strict=True))
        return [counted[text] for text in texts]

    made = open_book_levels(items, sorted(args.context_shares), args.context_tokens, seed, count_tokens)
    if not args.no_closed_book:
        made.append(closed_book_level(items))
    return [level._replace(dataset=args.context_dataset) for level in made]


def open_book_levels(
    found: ContextItems, shares: Sequence[int], budget: int, seed: int, count_tokens: Callable[[list[str]], list[int]]
) -> list[Level]:
    """One level for each share of the full window, with the same questions.

    Args:
        shares: percent, ascending.
        budget: tokens of the full window.
    """
    grown = [windows(item, shares, budget, seed, count_tokens) for item in found.items]
    longer = sum(own[-1].num_tokens > budget for own in grown)
    made = []
    for place, share in enumerate(shares):
        own = [of_item[place] for of_item in grown]
        facts = {
            **left_out(found),
            "longer_than_window": longer,
            "same_as_smaller_share": sum(place > 0 and of_item[place] == of_item[place - 1] for of_item in grown),
            "mean_context_tokens": mean([window.num_tokens for window in own]),
            "mean_answer_position": mean([window.answer_position for window in own]),
        }
        prompts = [open_book_prompt(item, window) for item, window in zip(found.items, own, strict=True)]
        made.append(Level(f"{share} %", share / 100, "", "answer", prompts, facts=facts))
    return made


def closed_book_level(found: ContextItems) -> Level:
    prompts = [closed_book_prompt(item) for item in found.items]
    return Level("closed book", CLOSED_BOOK_DIFFICULTY, "", "answer", prompts, facts=left_out(found))


def open_book_prompt(item: Item, window: Window) -> Prompt:
    return closed_book_prompt(item)._replace(header=OPEN_BOOK.format(context=window.text))


def closed_book_prompt(item: Item) -> Prompt:
    return Prompt(
        item=item.item, group=item.group, question=f"Q: {item.question}\nA:", header=CLOSED_BOOK, answers=item.answers
    )


def left_out(found: ContextItems) -> dict[str, float]:
    return {"context_without_answer": found.without_answer, "repeated_items": found.repeated}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


SETTING = LevelSetting(3, "context_length", add_options, load, files, readers, build, OPTIONS, seeded=True)


def main(argv: Sequence[str] | None = None) -> int:
    from llm_tasks.settings import run  # here: it imports this file

    return run(argv, SETTING.name, __doc__)


if __name__ == "__main__":
    sys.exit(main())
