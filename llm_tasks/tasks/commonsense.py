"""PIQA, HellaSwag, OpenBookQA, WinoGrande, CommonsenseQA and BoolQ: items, and their prompts by text or by letter.

By text ("cloze") the prompts of PIQA, HellaSwag, OpenBookQA and BoolQ are those of lm-evaluation-harness, character by
character. It has none for CommonsenseQA, which gets PIQA's. WinoGrande differs: lm-evaluation-harness puts each option
into the gap and scores only the words after it; here the context ends before the gap, and the option and the words
after it are scored. By letter all data sets have lm-evaluation-harness's prompt of CommonsenseQA.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.choices import choice_index, gap_choices, labelled_choices, option_texts
from harness.data import Source, checked_text, read_source, valid_text
from llm_tasks.levels import Prompt, continued, distinct, item_id, letter_options, lettered

UNLABELLED = ("", "-1", "None")


class Question(NamedTuple):
    """One item of any of the data sets.

    Fields:
        question: text before the list of lettered options.
        choices: texts of the options in that list.
        gold: index of the right option.
        context: prompt of which the options are continuations in cloze mode; does not end in a space.
        continuations: the options as continuations, each with the space before it.
        passage: text that the question is about, with a line break at its end; may be empty.
        item: identity of the item, unique within the data set.
        group: identity of the passage, without one of the content: a row and its repetitions are one group.
    """

    question: str
    choices: tuple[str, ...]
    gold: int
    context: str
    continuations: tuple[str, ...]
    passage: str = ""
    item: str = ""
    group: str = ""


class Task(NamedTuple):
    """A data set.

    Fields:
        title: name in figures.
        source: where to read it; the last of its fields is the label.
        read: from a row and its file and line (for messages) to its Question.
        human: accuracy of people, a fraction; None where none is published: the set is shown without difficulty.
    """

    title: str
    source: Source
    read: Callable[[dict[str, Any], str], Question]
    human: float | None


def sources(task: str, splits: Sequence[str] = ()) -> list[Source]:
    """Where to read the items of one of TASKS: its default split, or the splits given."""
    source = TASKS[task].source
    return [source._replace(split=split, hub_split=split) for split in splits] or [source]


def load_task(task: str, data_dir: Path | None, splits: Sequence[str] = ()) -> list[Question]:
    """All items of one of TASKS, of its default split or of the splits given.

    Raises:
        ValueError: see read_source; or a row has no label or an invalid field (the message names file, line and field).
    """
    read = TASKS[task].read
    questions = []
    for source in sources(task, splits):
        label = source.fields[-1]
        for where, row in read_source(source, data_dir):
            if str(row[label]).strip() in UNLABELLED:
                raise ValueError(f"{where}: {label!r} is {row[label]!r}: the split {source.split!r} must have labels")
            questions.append(read(row, where))
    contents = [item_id(task, one.passage, one.question, *one.choices) for one in questions]
    return [
        question._replace(item=item, group=item_id(question.passage) if question.passage else content)
        for question, item, content in zip(questions, distinct(contents), contents, strict=True)
    ]


def cloze_prompt(question: Question) -> Prompt:
    """Options are not listed; the text of each is scored as a continuation of the context."""
    return _prompt(question, question.context, question.continuations)


def letter_prompt(question: Question) -> Prompt:
    """Options are listed by letter; the letters are scored."""
    options = letter_options(len(question.choices))
    return _prompt(question, lettered(question.question, question.choices), options)


def _prompt(question: Question, text: str, options: tuple[str, ...]) -> Prompt:
    return Prompt(
        question.item, question.group, text, header=question.passage, options=options, gold=question.gold,
        choices=tuple(question.choices),
    )  # fmt: skip


def read_piqa(row: dict[str, Any], where: str) -> Question:
    goal = checked_text(row["goal"], where, "goal")
    choices = (checked_text(row["sol1"], where, "sol1"), checked_text(row["sol2"], where, "sol2"))
    gold = choice_index(row["label"], ["0", "1"], where, "label")
    return Question(goal, choices, gold, *continued(f"Question: {goal}\nAnswer:", choices))


def read_hellaswag(row: dict[str, Any], where: str) -> Question:
    """The context is the activity's name and the beginning of a caption or how-to.

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
    """A HellaSwag text without WikiHow's markup: " [title]" becomes ". ", other brackets are deleted.

    An ending that began with a bracket begins with a space then, which is scored.
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def read_openbookqa(row: dict[str, Any], where: str) -> Question:
    """The context is the stem, without "Question:" before it."""
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
    context = before.rstrip()
    continuations = tuple(f"{before[len(context) :]}{choice}{after}" for choice in choices)
    return Question(sentence, choices, gold, context, continuations)


def read_boolq(row: dict[str, Any], where: str) -> Question:
    passage, question = (checked_text(row[field], where, field) for field in ("passage", "question"))
    gold = choice_index(row["answer"], ["False", "True"], where, "answer")
    choices = ("no", "yes")
    context, continuations = continued(f"Question: {question}?\nAnswer:", choices)
    return Question(f"{question}?", choices, gold, context, continuations, f"{passage}\n")


# Accuracy of people: table 3 and appendix B of the paper, which cite Bisk et al. 2020, Zellers et al. 2019,
# Mihaylov et al. 2018, Sakaguchi et al. 2020 and Talmor et al. 2019. BoolQ: Clark et al. 2019.
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
