"""PIQA, HellaSwag, OpenBookQA, WinoGrande, CommonsenseQA and BoolQ: items, and their prompts by text or by letter.

By text ("cloze") the prompts of PIQA, HellaSwag, OpenBookQA and BoolQ are those of lm-evaluation-harness, character by
character; it has none for CommonsenseQA, which is asked as PIQA is. WinoGrande differs: lm-evaluation-harness scores
the words after the gap alone, each time behind another option's name; here the options share the words before the gap,
and an option's name and all that follows it are scored. By letter every set is asked as lm-evaluation-harness asks
CommonsenseQA.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.choices import LETTERS, choice_index, gap_choices, labelled_choices, option_texts
from harness.data import Source, checked_text, read_source, valid_text
from llm_tasks.levels import Prompt, continued, distinct, item_id, lettered

UNLABELLED = ("", "-1", "None")


class Question(NamedTuple):
    """One item of any of the data sets.

    Fields:
        question: what lettered options answer or complete.
        choices: the options as a list shows them.
        gold: which of them is right.
        context: what the options continue where they are scored by their text; no space at its end.
        continuations: the options as they continue it, with the space before them.
        passage: what the question is about, with its line break; may be empty.
        item: identity of the item; no other one of the data set has it.
    """

    question: str
    choices: tuple[str, ...]
    gold: int
    context: str
    continuations: tuple[str, ...]
    passage: str = ""
    item: str = ""


class Task(NamedTuple):
    """A data set.

    Fields:
        title: as figures name it.
        source: where it is; the last of its fields is the label.
        read: the question of a row, and of where the row stands.
        human: accuracy of people, a fraction; None where none is published: the set is shown without difficulty.
    """

    title: str
    source: Source
    read: Callable[[dict[str, Any], str], Question]
    human: float | None


def sources(task: str, splits: Sequence[str] = ()) -> list[Source]:
    """Where the items of one of TASKS are; in its own split unless others are named."""
    source = TASKS[task].source
    return [source._replace(split=split, hub_split=split) for split in splits] or [source]


def load_task(task: str, data_dir: Path | None, splits: Sequence[str] = ()) -> list[Question]:
    """All items of one of TASKS, of its own split or of those named, one after the other.

    Raises:
        ValueError: see read_source; or a row has no label or a damaged field (names where it stands, and the field).
    """
    read = TASKS[task].read
    questions = []
    for source in sources(task, splits):
        label = source.fields[-1]
        for where, row in read_source(source, data_dir):
            if str(row[label]).strip() in UNLABELLED:
                raise ValueError(f"{where}: {label!r} is {row[label]!r}: the split {source.split!r} must have labels")
            questions.append(read(row, where))
    items = distinct(item_id(task, found.passage, found.question, *found.choices) for found in questions)
    return [found._replace(item=item) for found, item in zip(questions, items, strict=True)]


def cloze_prompt(question: Question) -> Prompt:
    """The options are not listed; each one's text is scored as the context's continuation."""
    return _prompt(question, question.context, question.continuations)


def letter_prompt(question: Question) -> Prompt:
    """The options are listed, and the letter is asked for."""
    letters = tuple(f" {letter}" for letter in LETTERS[: len(question.choices)])
    return _prompt(question, lettered(question.question, question.choices), letters)


def _prompt(question: Question, text: str, options: tuple[str, ...]) -> Prompt:
    # Questions on one passage are right or wrong together.
    group = item_id(question.passage) if question.passage else question.item
    return Prompt(question.item, group, text, header=question.passage, options=options, gold=question.gold)


def read_piqa(row: dict[str, Any], where: str) -> Question:
    goal = checked_text(row["goal"], where, "goal")
    choices = (checked_text(row["sol1"], where, "sol1"), checked_text(row["sol2"], where, "sol2"))
    gold = choice_index(row["label"], ["0", "1"], where, "label")
    return Question(goal, choices, gold, *continued(f"Question: {goal}\nAnswer:", choices))


def read_hellaswag(row: dict[str, Any], where: str) -> Question:
    """A caption's or how-to's beginning, with the activity's name before it.

    Source: lm-evaluation-harness, hellaswag/utils.py.
    """
    label, start = (checked_text(row[field], where, field) for field in ("activity_label", "ctx_a"))
    rest = valid_text(row["ctx_b"], where, "ctx_b")
    context = without_markup(f"{label}: {start} {rest.capitalize()}")
    endings = option_texts(row["endings"], where, "endings")
    choices = tuple(checked_text(without_markup(ending), where, "endings") for ending in endings)
    gold = choice_index(row["label"], [str(index) for index in range(len(choices))], where, "label")
    return Question(context, choices, gold, *continued(context, choices))


def without_markup(text: str) -> str:
    """A HellaSwag text without WikiHow's marks: " [title]" ends a sentence, other brackets go.

    A space is left where an ending began with a mark, and it is scored.
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def read_openbookqa(row: dict[str, Any], where: str) -> Question:
    """The stem alone is continued, without any "Question:"."""
    stem = checked_text(row["question_stem"], where, "question_stem")
    choices, gold = labelled_choices(row, where)
    return Question(stem, choices, gold, *continued(stem, choices))


def read_commonsense_qa(row: dict[str, Any], where: str) -> Question:
    question = checked_text(row["question"], where, "question").strip()
    choices, gold = labelled_choices(row, where)
    return Question(question, choices, gold, *continued(f"Question: {question}\nAnswer:", choices))


def read_winogrande(row: dict[str, Any], where: str) -> Question:
    sentence, choices, gold = gap_choices(row, where)
    before, _, after = sentence.partition("_")
    bare = before.rstrip()
    continuations = tuple(f"{before[len(bare) :]}{choice}{after}" for choice in choices)
    return Question(sentence, choices, gold, bare, continuations)


def read_boolq(row: dict[str, Any], where: str) -> Question:
    passage, question = (checked_text(row[field], where, field) for field in ("passage", "question"))
    gold = choice_index(row["answer"], ["False", "True"], where, "answer")
    choices = ("no", "yes")
    context, continuations = continued(f"Question: {question}?\nAnswer:", choices)
    return Question(f"{question}?", choices, gold, context, continuations, f"{passage}\n")


# People's accuracy: table 3 and appendix B of the paper, where the set is in them. They are of Bisk et al. 2020,
# Zellers et al. 2019, Mihaylov et al. 2018, Sakaguchi et al. 2020 and Talmor et al. 2019. BoolQ: Clark et al. 2019.
# Splits are those that lm-evaluation-harness scores.
TASKS = {
    "piqa": Task(
        "PIQA",
        Source("piqa", "validation", "baber/piqa", None, "validation", ("goal", "sol1", "sol2", "label")),
        read_piqa,
        0.95,
    ),
    "hellaswag": Task(
        "HellaSwag",
        Source("hellaswag", "validation", "Rowan/hellaswag", None, "validation",
               ("activity_label", "ctx_a", "ctx_b", "endings", "label")),
        read_hellaswag,
        0.956,
    ),
    "openbookqa": Task(
        "OpenBookQA",
        Source("openbookqa", "test", "allenai/openbookqa", "main", "test", ("question_stem", "choices", "answerKey")),
        read_openbookqa,
        0.92,
    ),
    "winogrande": Task(
        "WinoGrande",
        Source("winogrande", "validation", "allenai/winogrande", "winogrande_xl", "validation",
               ("sentence", "option1", "option2", "answer")),
        read_winogrande,
        0.94,
    ),
    "commonsense_qa": Task(
        "CommonsenseQA",
        Source("commonsense_qa", "validation", "tau/commonsense_qa", None, "validation",
               ("question", "choices", "answerKey")),
        read_commonsense_qa,
        0.89,
    ),
    "boolq": Task(
        "BoolQ",
        Source("boolq", "validation", "google/boolq", None, "validation", ("passage", "question", "answer")),
        read_boolq,
        0.90,
    ),
}  # fmt: skip
