"""Setting 3: questions on a text that holds the answer, of which more and more is shown, and on none."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from harness.content import files_content
from harness.data import Source, local_or_hub
from harness.options import number, positive
from llm_tasks.levels import Level, Prompt, Setting, option, sample
from llm_tasks.tasks import reading
from llm_tasks.tasks.reading import CONTEXT_SETS, ContextItems, Item, Window, windows

logger = logging.getLogger(__name__)

OPEN_BOOK = "{context}\n\nBased on these texts, answer these questions:\n\n"  # both as the paper's code has them
CLOSED_BOOK = "Answer these questions:\n\n"
# Shares are 0.2 … 1; without a text the question is harder than with the longest (paper, table 2), and trends over
# levels use their order alone.
CLOSED_BOOK_DIFFICULTY = 1.2


@dataclass(frozen=True, kw_only=True)
class Values:
    """The options that this setting reads."""

    data_dir: Path | None
    max_items: int | None
    overflow: str
    context_dataset: str = option("triviaqa", choices=tuple(CONTEXT_SETS), metavar="NAME",
        help=f"of {', '.join(CONTEXT_SETS)}; the last two from --data_dir alone (default triviaqa)")  # fmt: skip
    context_shares: list[int] = option([20, 40, 60, 80, 100], nargs="+", type=number(int, 1, 100), metavar="PERCENT",
        help="of the full window's tokens, 1 to 100 (default 20 40 60 80 100)")  # fmt: skip
    context_tokens: int = option(768, type=positive,
        help="the model's tokens in the full window, about 3000 characters (default 768)")  # fmt: skip
    no_closed_book: bool = option(False, action="store_true", help="without the level that has no text")


def load(values: Values) -> ContextItems:
    shares = values.context_shares
    if len(set(shares)) < len(shares):
        raise ValueError(f"--context_shares {' '.join(map(str, shares))}: a number stands there twice")
    if values.overflow == "truncate_left":
        raise ValueError("--overflow truncate_left could cut the answer's sentence; setting 3 takes drop_shots or skip")
    found = reading.load(values.context_dataset, values.data_dir, values.max_items)
    if found.without_answer:
        logger.warning("%s: %d contexts do not contain the answer: their questions are left out at every level",
                       values.context_dataset, found.without_answer)  # fmt: skip
    return found._replace(items=sample(found.items, values.max_items, key=lambda item: item.item))


def files(values: Values) -> list[Path | Source]:
    return [local_or_hub(CONTEXT_SETS[values.context_dataset].source, values.data_dir)]


def build(data: ContextItems, values: Values, seed: int, tokenizer: PreTrainedTokenizerBase) -> list[Level]:
    counted: dict[str, int] = {}  # questions share documents

    def count_tokens(texts: list[str]) -> list[int]:
        new = [text for text in dict.fromkeys(texts) if text not in counted]
        if new:
            tokens = tokenizer(new, add_special_tokens=False, verbose=False)["input_ids"]
            counted.update(zip(new, map(len, tokens), strict=True))
        return [counted[text] for text in texts]

    made = open_book_levels(data, sorted(values.context_shares), values.context_tokens, seed, count_tokens)
    if not values.no_closed_book:
        made.append(closed_book_level(data))
    return [level._replace(dataset=values.context_dataset) for level in made]


def open_book_levels(
    found: ContextItems, shares: Sequence[int], budget: int, seed: int, count_tokens: Callable[[list[str]], list[int]]
) -> list[Level]:
    """One level for each share of the full window, with the same questions.

    Args:
        shares: percent, ascending.
        budget: tokens of the full window.
    """
    grown = [windows(item, shares, budget, seed, count_tokens) for item in found.items]
    longer = sum(of_item[-1].num_tokens > budget for of_item in grown)
    made = []
    for index, share in enumerate(shares):
        own = [of_item[index] for of_item in grown]
        facts = {
            **left_out(found),
            "longer_than_window": longer,
            "same_as_smaller_share": sum(index > 0 and of_item[index] == of_item[index - 1] for of_item in grown),
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
