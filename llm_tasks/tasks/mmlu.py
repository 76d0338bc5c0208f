"""MMLU: its questions, with all or fewer options, as few-shot prompts of lm-evaluation-harness."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.data import Source, checked_text, local_or_hub, read_source
from harness.options import number
from llm_tasks.levels import LETTERS, Prompt, digest, item_id, letter_options, option, repeated_items, sample

SHOT_SPLITS = ("dev", "validation")  # splits for few-shot examples
FIELDS = ("question", "subject", "choices", "answer")
HEADERS = {
    "letter": "The following are multiple choice questions (with answers) about {subject}.\n\n",
    "cloze": "The following are questions (with answers) about {subject}.\n\n",
}
# Options that refer to other options: without those, or with other letters, their meaning changes or is lost.
_WHICH = "(?:all|any|both|each|either|neither|nether|nither|none)"
_LETTER = r"\(?[a-e]\b\)?\.?"
_LETTER_LIST = rf"{_LETTER}(?:,? {_LETTER})*,? (?:and|or|nor|to|&) {_LETTER}(?!\w)"
REFERRING = re.compile(
    "|".join(
        (
            r"\b(?:of|all|both|none|listed|given) (?:the )?(?:above|below|foregoing)\b",
            rf"^\W*{_WHICH} of (?:these|those)\b",
            rf"\b{_WHICH} of (?:these|those)\W*$",
            rf"\b{_WHICH} (?:of )?(?:the )?(?:answers|choices|options|statements)\b",
            rf"^\W*(?:{_WHICH} of them|all|both|either|neither)\W*$",
            rf"\b(?:all of|answers|both|either|neither|nether|options) {_LETTER_LIST}",
            rf"^\W*{_LETTER_LIST}(?: above| only)?\W*$",
            r"\([a-e]\),? (?:and|or|nor|to) \([a-e]\)",
        )
    ),
    re.IGNORECASE,
)


class Question(NamedTuple):
    """One question.

    Fields:
        question: text, as in the data set.
        choices: texts of the options.
        answer: index of the right option.
        subject: with underscores: "high_school_biology".
        item: identity of the question with all its options; stays when options are removed.
        repeats: of a question that is there again, the identity of the first.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str
    item: str
    repeats: str | None = None

    @property
    def content(self) -> str:
        """The identity that it has in common with its repetitions."""
        return self.repeats or self.item


def num_shots() -> Any:
    """Declares --num_shots, the number of few-shot examples, for settings 2 and 6."""
    return option(5, type=number(int, 0, 5), help="settings 2 and 6: few-shot examples of MMLU, 0 to 5 (default 5)")


def shot_split() -> Any:
    """Declares --shot_split, the split of few-shot examples, for settings 2, 4 and 6."""
    return option("dev", choices=SHOT_SPLITS,
        help="settings 2, 4 and 6: MMLU's split for few-shot examples; the paper uses validation, of which questions "
        "that are in the test split too are left out (default dev, MMLU's split for few-shot examples)")  # fmt: skip


def subjects() -> Any:
    """Declares --subjects for settings 2, 4 and 6."""
    return option(nargs="+", metavar="NAME",
        help="settings 2, 4 and 6: subjects of MMLU, such as high_school_biology (default: all)")  # fmt: skip


def source(split: str) -> Source:
    """Where to read a split: "test", "validation" or "dev"."""
    return Source("mmlu", split, "cais/mmlu", "all", split, FIELDS)


def load(data_dir: Path | None, split: str) -> list[Question]:
    """All questions of a split, in the file's order; repeated ones have different identities.

    Args:
        data_dir: folder with mmlu/<split>.jsonl, all subjects in one file; the hub when None.
    Raises:
        ValueError: no such file, or an invalid row (the message names file, line and field).
    """
    questions, seen = [], Counter()
    for where, row in read_source(source(split), data_dir):
        question = _question(where, row)
        seen[question.item] += 1
        if seen[question.item] > 1:  # 27 of the test questions are there twice
            again = item_id(question.item, f"repeat {seen[question.item]}")
            question = question._replace(item=again, repeats=question.item)
        questions.append(question)
    return questions


def load_with_examples(
    data_dir: Path | None, subjects: Sequence[str] | None, max_items: int | None, num_shots: int, option_name: str,
    shot_split: str,
) -> tuple[list[Question], list[Question]]:  # fmt: skip
    """The test questions of these subjects, and few-shot examples that are not among the test questions.

    13 questions of the validation split are in the test split too, none of the dev split.

    Args:
        subjects: all if None.
        max_items: size of a sample of the questions; all if None. Examples do not depend on it.
        num_shots: number of examples that every subject must have; with 0 none are read.
        option_name: the option that gives num_shots, for messages.
        shot_split: one of SHOT_SPLITS.
    Returns:
        Questions, and examples of all subjects, each in the file's order.
    Raises:
        ValueError: see load, of_subjects and check_examples.
    """
    test = load(data_dir, "test")
    questions = sample(of_subjects(test, subjects), max_items, key=lambda question: question.item)
    examples = []
    if num_shots:
        known = {question.item for question in test}
        examples = [example for example in load(data_dir, shot_split) if example.item not in known]
    check_examples(questions, examples, num_shots, option_name, shot_split)
    return questions, examples


def files(data_dir: Path | None, *splits: str) -> list[Path | Source]:
    """Where these splits are: local files, or sources on the hub."""
    return [local_or_hub(source(split), data_dir) for split in splits]


def of_subjects(questions: Iterable[Question], subjects: Sequence[str] | None) -> list[Question]:
    """The questions of these subjects; all questions for None.

    Raises:
        ValueError: there is no question of a subject.
    """
    questions = list(questions)
    known = {question.subject for question in questions}
    for subject in subjects or ():
        if subject not in known:
            raise ValueError(f"--subjects {subject}: there are {', '.join(sorted(known))}")
    return [question for question in questions if not subjects or question.subject in subjects]


def by_subject(questions: Iterable[Question]) -> dict[str, list[Question]]:
    """The questions of each subject, in their order."""
    groups = defaultdict(list)
    for question in questions:
        groups[question.subject].append(question)
    return dict(groups)


def check_examples(
    questions: Iterable[Question], examples: Iterable[Question], count: int, option: str, split: str = "dev"
) -> None:
    """Check that every subject of the questions has `count` examples.

    Args:
        option, split: for the message: the option that gives the count, the split of the examples.
    Raises:
        ValueError: a subject has fewer (the message names it and says how many).
    """
    available = Counter(example.subject for example in examples)
    for subject in by_subject(questions):
        if available[subject] < count:
            raise ValueError(
                f"{option} {count}: the {split} split has {available[subject]} example(s) of the subject {subject}"
            )


def prompts(
    questions: Iterable[Question], examples: Iterable[Question], reader: str, num_shots: int | None = None,
    grouped: bool = False,
) -> list[Prompt]:  # fmt: skip
    """Prompts of the questions, each with the first `num_shots` few-shot examples of its subject.

    Args:
        examples: of all subjects, in the order in which they are shown; their options may be reduced.
        reader: "letter" or "generate" (options are listed, the answer is a letter), or "cloze" (the answer is the
            option's text).
        num_shots: number of examples, fewer if the subject has fewer; all for None.
        grouped: the questions of a subject are a group without examples too: other levels of the same questions have
            some. Otherwise they then share nothing, and each is a group of its own, with its repetitions.
    Source: lm-evaluation-harness, tasks mmlu (letter) and mmlu_continuation (cloze), with their headers.
    """
    shots = {
        subject: tuple(shot_text(example, reader) for example in members[:num_shots])
        for subject, members in by_subject(examples).items()
    }
    return [
        Prompt(
            item=question.item,
            group=question.content if num_shots == 0 and not grouped else question.subject,
            question=question_text(question, reader),
            header=header(question.subject, reader),
            shots=shots.get(question.subject, ()),
            options=option_texts(question, reader),
            gold=question.answer,
            choices=tuple(question.choices),
        )
        for question in questions
    ]


def repeated_questions(questions: Iterable[Question]) -> dict[str, float]:
    """The fact of a level that so many of its questions are there again; empty where none is."""
    return repeated_items(question.content for question in questions)


def header(subject: str, reader: str) -> str:
    return HEADERS["cloze" if reader == "cloze" else "letter"].format(subject=subject.replace("_", " "))


def question_text(question: Question, reader: str) -> str:
    """The question up to where its answer begins; its options are listed unless the reader is "cloze"."""
    text = question.question.strip()
    if reader == "cloze":
        return f"Question: {text}\nAnswer:"
    listed = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return "\n".join((text, *listed, "Answer:"))


def option_texts(question: Question, reader: str) -> tuple[str, ...]:
    """The answers that the prompt may continue with, each with a space before it."""
    if reader == "cloze":
        return tuple(f" {choice}" for choice in question.choices)
    return letter_options(len(question.choices))


def shot_text(example: Question, reader: str) -> str:
    """A few-shot example, followed by an empty line."""
    return f"{question_text(example, reader)}{option_texts(example, reader)[example.answer]}\n\n"


def refers_to_others(choice: str) -> bool:
    """Whether an option refers to other options: "all of the above", "both A and B", "neither"."""
    return REFERRING.search(choice) is not None


def reducible(
    questions: Iterable[Question], most: int, keep_referring: bool = False
) -> tuple[list[Question], Counter[str]]:
    """The questions whose options can be reduced without changing the meaning of the remaining ones.

    Args:
        most: the largest number of options of any level; questions with fewer are left out of all levels.
        keep_referring: keep questions with options that refer to other options.
    Returns:
        These questions in their order; and how many others have "too_few_options", "duplicate_options" or
        "options_refer_to_others".
    """
    kept, left_out = [], Counter()
    for question in questions:
        if len(question.choices) < most:
            left_out["too_few_options"] += 1
        elif len({choice.strip() for choice in question.choices}) < len(question.choices):
            left_out["duplicate_options"] += 1
        elif not keep_referring and any(map(refers_to_others, question.choices)):
            left_out["options_refer_to_others"] += 1
        else:
            kept.append(question)
    return kept, left_out


def reduce_options(questions: Iterable[Question], count: int, seed: int, keep_order: bool = False) -> list[Question]:
    """Each question with `count` of its options, the right one among them.

    The distractors that are kept are the first of one random order per question: those of a smaller `count` are among
    those of a larger one. The right option's index is balanced within a subject: each index is right equally often, to
    within one question, so that always answering the same letter scores 1 / count. The result depends on the seed and
    the questions' content only: not on the order of the questions, not on other subjects, and for the questions of a
    sample (levels.sample) not on whether the others are there.

    Args:
        questions: with at least `count` options each.
        count: at least 1.
        keep_order: keep the order of the options; the right one is then the last more often than not.
    Source: the paper, section 3.1.2, which does not say how it removes options.
    """
    questions = list(questions)
    indices = {} if keep_order else _balanced_indices(questions, count, seed)
    reduced = []
    for question in questions:
        distractors = [index for index in range(len(question.choices)) if index != question.answer]
        shown = random.Random(f"{seed} {question.item}").sample(distractors, len(distractors))[: count - 1]
        if keep_order:
            shown = sorted((*shown, question.answer))
        else:
            shown.insert(indices[question.item], question.answer)
        choices = tuple(question.choices[index] for index in shown)
        reduced.append(question._replace(choices=choices, answer=shown.index(question.answer)))
    return reduced


def _balanced_indices(questions: Iterable[Question], count: int, seed: int) -> dict[str, int]:
    """The right option's index by item: within `count` questions of a subject, each index occurs once."""
    indices = {}
    for subject, members in by_subject(questions).items():
        items = sorted((question.item for question in members), key=digest)  # a sample is the start of this order
        for start in range(0, len(items), count):
            draw = random.Random(f"{seed} {subject} {count} {start}")
            block = draw.sample(range(count), count)
            indices.update(zip(items[start : start + count], block, strict=False))
    return indices


def _question(where: str, row: dict[str, Any]) -> Question:
    texts = row["choices"]
    if not isinstance(texts, list | tuple) or not 2 <= len(texts) <= len(LETTERS):
        raise ValueError(f"{where}: 'choices' is no list of 2 to {len(LETTERS)} options")
    question = checked_text(row["question"], where, "question")
    subject = checked_text(row["subject"], where, "subject")
    choices = tuple(checked_text(text, where, "choices") for text in texts)
    answer = _answer(row["answer"], len(choices), where)
    return Question(question, choices, answer, subject, item_id(subject, question, *choices))


def _answer(value: object, count: int, where: str) -> int:
    """Index of the right option, from an index or a letter."""
    letters = LETTERS[:count]
    if isinstance(value, str) and len(value) == 1 and value in letters:
        return letters.index(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        allowed = f"a number from 0 to {count - 1} or a letter from A to {letters[-1]}"
        raise ValueError(f"{where}: 'answer' {value!r} is not among the {count} options; it must be {allowed}")
    return value
