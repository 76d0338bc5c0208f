"""Setting 3: questions on windows of growing length of a text that holds the answer, and without a text."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from harness.content import files_content
from harness.data import Source, placed
from harness.options import number, positive
from llm_tasks.levels import Level, Prompt, Setting, option, sample
from llm_tasks.tasks import reading
from llm_tasks.tasks.reading import CONTEXT_SETS, ContextItems, Item, Window, windows

logger = logging.getLogger(__name__)

OPEN_BOOK = "{context}\n\nBased on these texts, answer these questions:\n\n"  # both from the paper's code
CLOSED_BOOK = "Answer these questions:\n\n"
# The other levels have the difficulties 0.2 … 1. Without a text, questions are harder than with the longest window
# (paper, table 2). Trends over levels depend only on their order.
CLOSED_BOOK_DIFFICULTY = 1.2


@dataclass(frozen=True, kw_only=True)
class Values:
    """The options that this setting reads."""

    data_dir: Path | None
    max_items: int | None
    overflow: str
    context_dataset: str = option("triviaqa", choices=tuple(CONTEXT_SETS), metavar="NAME",
        help=f"one of {', '.join(CONTEXT_SETS)}; the last two from --data_dir only (default triviaqa)")  # fmt: skip
    context_shares: list[int] = option([20, 40, 60, 80, 100], nargs="+", type=number(int, 1, 100), metavar="PERCENT",
        help="lengths of windows in %% of the full window's tokens, 1 to 100 (default 20 40 60 80 100)")  # fmt: skip
    context_tokens: int = option(768, type=positive,
        help="tokens of the full window (default 768, about 3000 characters)")  # fmt: skip
    no_closed_book: bool = option(False, action="store_true", help="leave out the level without a text")


def load(values: Values) -> ContextItems:
    shares = values.context_shares
    if len(set(shares)) < len(shares):
        raise ValueError(f"--context_shares {' '.join(map(str, shares))}: a number is given twice")
    if values.overflow == "truncate_left":
        raise ValueError("--overflow truncate_left could cut the answer's sentence; setting 3 takes drop_shots or skip")
    data = reading.load(values.context_dataset, values.data_dir, values.max_items)
    if data.without_answer:
        logger.warning("%s: %d contexts do not contain the answer: their questions are left out at every level",
                       values.context_dataset, data.without_answer)  # fmt: skip
    return data._replace(items=sample(data.items, values.max_items, key=lambda item: item.item))


def files(values: Values) -> list[Path | Source]:
    return [placed(CONTEXT_SETS[values.context_dataset].source, values.data_dir)]


def build(data: ContextItems, values: Values, seed: int, tokenizer: PreTrainedTokenizerBase) -> list[Level]:
    counted: dict[str, int] = {}  # questions share documents

    def count_tokens(texts: list[str]) -> list[int]:
        new = [text for text in dict.fromkeys(texts) if text not in counted]
        if new:
            tokens = tokenizer(new, add_special_tokens=False, verbose=False)["input_ids"]
            counted.update(zip(new, map(len, tokens), strict=True))
        return [counted[text] for text in texts]

    levels = open_book_levels(data, sorted(values.context_shares), values.context_tokens, seed, count_tokens)
    if not values.no_closed_book:
        levels.append(closed_book_level(data))
    return [level._replace(dataset=values.context_dataset) for level in levels]


def open_book_levels(
    data: ContextItems, shares: Sequence[int], budget: int, seed: int, count_tokens: Callable[[list[str]], list[int]]
) -> list[Level]:
    """One level for each share of the full window, all with the same questions.

    Args:
        shares: percent, ascending.
        budget: tokens of the full window.
        seed, count_tokens: see reading.windows.
    """
    grown = [windows(item, shares, budget, seed, count_tokens) for item in data.items]
    longer = sum(of_item[-1].num_tokens > budget for of_item in grown)
    levels = []
    for index, share in enumerate(shares):
        shown = [of_item[index] for of_item in grown]
        facts = {
            **left_out(data),
            "longer_than_window": longer,
            "same_as_smaller_share": sum(index > 0 and of_item[index] == of_item[index - 1] for of_item in grown),
            "mean_context_tokens": mean([window.num_tokens for window in shown]),
            "mean_answer_position": mean([window.answer_position for window in shown]),
        }
        prompts = [open_book_prompt(item, window) for item, window in zip(data.items, shown, strict=True)]
        levels.append(Level(f"{share} %", share / 100, "", "answer", prompts, facts=facts))
    return levels


def closed_book_level(data: ContextItems) -> Level:
    prompts = [closed_book_prompt(item) for item in data.items]
    return Level("closed book", CLOSED_BOOK_DIFFICULTY, "", "answer", prompts, facts=left_out(data))


def open_book_prompt(item: Item, window: Window) -> Prompt:
    return closed_book_prompt(item)._replace(header=OPEN_BOOK.format(context=window.text))


def closed_book_prompt(item: Item) -> Prompt:
    return Prompt(
        item=item.item, group=item.group, question=f"Q: {item.question}\nA:", header=CLOSED_BOOK, answers=item.answers
    )


def left_out(data: ContextItems) -> dict[str, float]:
    return {"context_without_answer": data.without_answer, "repeated_items": data.repeated}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


SETTING = Setting(
    name=3,
    task="context_length",
    title="setting 3: context length",
    values=Values,
    content=lambda values: files_content(files(values)),
    readers=lambda values: ("answer",),
    load=load,
    build=build,
    writes=True,
    seeded=True,
)
