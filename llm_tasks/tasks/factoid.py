"""Questions for facts that are asked without a text: FreebaseQA, TriviaQA, Natural Questions and WebQuestions."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from harness.data import Source, check_fields, checked_text, read_json, read_source
from llm_tasks.levels import Prompt, item_id
from llm_tasks.tasks.reading import alias_texts, answer_texts


class Question(NamedTuple):
    """A question, its identity, and texts of which each answers it."""

    item: str
    question: str
    answers: tuple[str, ...]


class FactoidSet(NamedTuple):
    """A data set.

    Fields:
        title: as figures name it.
        source: where it is; the first of its fields is the question.
        answers: all answers of a row, from the row and where it stands.
    """

    title: str
    source: Source
    answers: Callable[[dict[str, Any], str], tuple[str, ...]]


def load(name: str, data_dir: Path | None, freebase_file: Path | None = None) -> list[Question]:
    """The questions of a data set of FACTOID_SETS, each once: a repeated one has the answers of all its rows.

    Args:
        data_dir: local layout; the hub when None.
        freebase_file: FreebaseQA as published, instead (see freebase_rows).
    Raises:
        ValueError: the data set cannot be read, or a row lacks its question or answers.
    """
    factoid_set = FACTOID_SETS[name]
    rows = freebase_rows(freebase_file) if freebase_file else read_source(factoid_set.source, data_dir)
    field = factoid_set.source.fields[0]
    found: dict[str, tuple[str, ...]] = {}
    for where, row in rows:
        question = checked_text(row[field], where, field).strip()
        answers = (*found.get(question, ()), *factoid_set.answers(row, where))
        found[question] = tuple(dict.fromkeys(answers))
    return [Question(item_id(question), question, answers) for question, answers in found.items()]


def prompt(question: Question) -> Prompt:
    """The question as the paper's code asks it, up to where the answer begins.

    Source: the original authors' llm-kick, factoid_qa/main_freebase.py, whose prompt ends with a space. Tokenizers
    put a space with the word behind it, so that a model never sees one at the end of what it continues; ours ends
    at "is".
    """
    text = f"Please give answer to this question: {question.question}\nThe answer is"
    return Prompt(item=question.item, group=question.item, question=text, answers=question.answers)


def freebase_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions of a file of FreebaseQA as its authors publish it, and where each stands.

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
            raise ValueError(f"{where} is no record")
        check_fields(row, where, FACTOID_SETS["freebaseqa"].source.fields)
        yield where, row


def _freebase_answers(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """All names of all answers of all parses."""
    return answer_texts(list(_names(row["Parses"])), where, "Parses")


def _names(records: object) -> Iterator[object]:
    """What stands under "AnswersName", one text or lists of them, however records and lists are nested."""
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
