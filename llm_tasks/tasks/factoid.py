"""Questions about facts, without a text that holds the answer: FreebaseQA, TriviaQA, NQ-open and WebQuestions."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from harness.data import Source, check_fields, checked_text, read_json, read_source
from llm_tasks.levels import Prompt, item_id
from llm_tasks.tasks.reading import alias_texts, answer_texts


class Question(NamedTuple):
    """A question, its identity (item_id), and all texts that are right answers."""

    item: str
    question: str
    answers: tuple[str, ...]


class FactoidSet(NamedTuple):
    """A data set.

    Fields:
        title: name in figures.
        source: where to read it; the first of its fields is the question.
        answers: from a row and its file and line (for messages) to all its right answers.
    """

    title: str
    source: Source
    answers: Callable[[dict[str, Any], str], tuple[str, ...]]


def load(name: str, data_dir: Path | None, freebase_file: Path | None = None) -> list[Question]:
    """The distinct questions of a data set of FACTOID_SETS; a repeated one has the answers of all its rows.

    Args:
        data_dir: folder of local data sets; the hub when None.
        freebase_file: read FreebaseQA from its published file instead (see freebase_rows).
    Raises:
        ValueError: the data set cannot be read, or a row has no question or no answers.
    """
    factoid_set = FACTOID_SETS[name]
    rows = freebase_rows(freebase_file) if freebase_file else read_source(factoid_set.source, data_dir)
    field = factoid_set.source.fields[0]
    answers_of: dict[str, tuple[str, ...]] = {}
    for where, row in rows:
        question = checked_text(row[field], where, field).strip()
        answers = (*answers_of.get(question, ()), *factoid_set.answers(row, where))
        answers_of[question] = tuple(dict.fromkeys(answers))
    return [Question(item_id(question), question, answers) for question, answers in answers_of.items()]


def prompt(question: Question) -> Prompt:
    """The question in the prompt of the paper's code.

    Source: the original authors' llm-kick, factoid_qa/main_freebase.py, whose prompt ends with a space. Tokenizers
    join a space to the word after it, so that models are not trained on prompts that end with one; ours ends at "is".
    """
    text = f"Please give answer to this question: {question.question}\nThe answer is"
    return Prompt(item=question.item, group=question.item, question=text, answers=question.answers)


def freebase_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions of FreebaseQA's published file, each with its file and number for messages.

    Args:
        path: .json or .json.gz, an object with the list "Questions".
    Raises:
        ValueError: there is no such file, it is damaged or holds no such list, or a question lacks a field.
    """
    path = Path(path).expanduser()
    try:
        questions = read_json(path)
    except ValueError as error:
        raise ValueError(f"--factoid_file: {error}") from error
    if isinstance(questions, dict):
        questions = questions.get("Questions")
    if not isinstance(questions, list) or not questions:
        raise ValueError(f"--factoid_file {path} holds no list 'Questions'")
    for number, row in enumerate(questions, start=1):
        where = f"{path}, question {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where} is no JSON object")
        check_fields(row, where, FACTOID_SETS["freebaseqa"].source.fields)
        yield where, row


def _freebase_answers(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """All names of the answers of all parses."""
    return answer_texts(list(_names(row["Parses"])), where, "Parses")


def _names(records: object) -> Iterator[object]:
    """The texts of all fields "AnswersName" in nested objects and lists."""
    if isinstance(records, dict):
        for name, value in records.items():
            yield from _flat(value) if name == "AnswersName" else _names(value)
    elif isinstance(records, list):
        for value in records:
            yield from _names(value)


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, list):
        for part in value:
            yield from _flat(part)
    else:
        yield value


FACTOID_SETS = {
    "freebaseqa": FactoidSet(
        "FreebaseQA",
        Source(
            "freebase_qa", "test", "KelvinJiang/freebase_qa", None, "test", ("RawQuestion", "Parses"),
            hub_revision="refs/convert/parquet",  # the hub's conversion: the data set itself is a script
        ),
        _freebase_answers,
    ),
    "triviaqa": FactoidSet(
        "TriviaQA",
        Source(
            "trivia_qa/rc.wikipedia.nocontext", "validation", "mandarjoshi/trivia_qa",
            "rc.wikipedia.nocontext", "validation",
            ("question", "answer"),
        ),
        lambda row, where: alias_texts(row["answer"], where),
    ),
    "nq_open": FactoidSet(
        "NQ-open",
        Source(
            "nq_open", "validation", "google-research-datasets/nq_open", None, "validation", ("question", "answer")
        ),
        lambda row, where: answer_texts(row["answer"], where, "answer"),
    ),
    "web_questions": FactoidSet(
        "WebQuestions",
        Source("web_questions", "test", "stanfordnlp/web_questions", None, "test", ("question", "answers")),
        lambda row, where: answer_texts(row["answers"], where, "answers"),
    ),
}  # fmt: skip
