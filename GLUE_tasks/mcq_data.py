"""Multiple-choice questions for fine-tuning: CommonsenseQA, WinoGrande, arithmetic, and users' files."""

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from GLUE_tasks.glue_data import name_of_files
from harness.choices import (
    LETTERS,
    gap_choices,
    gold_index,
    labelled_choices,
    lettered_choices,
    read_choices,
    unread_fields,
)
from harness.data import (
    TABLE_SUFFIXES,
    Source,
    check_fields,
    checked_text,
    file_kind,
    local_file,
    read_rows,
    read_source,
    valid_text,
)

logger = logging.getLogger(__name__)

WINOGRANDE_CONFIGS = tuple(f"winogrande_{size}" for size in ("xs", "s", "m", "l", "xl", "debiased"))
SPELLINGS = {"commonsenseqa": "commonsense_qa", "csqa": "commonsense_qa", "winogrande": "winogrande", "mawps": "mawps",
             "svamp": "svamp"}  # fmt: skip
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
ANSWER_FIELDS = ("answer", "Answer", "result_float")  # of word problems
PLACEHOLDER = re.compile(r"\b(?:number|N_)(\d+)\b")  # in MAWPS, stands for a number in another field


class Question(NamedTuple):
    """A question as pairs of texts, (context, option) for each option.

    Fields:
        context: the first text of every pair; may be empty.
        options: the second texts.
        gold: index of the right option.
    """

    context: str
    options: tuple[str, ...]
    gold: int


class Task(NamedTuple):
    """The questions of one task.

    Fields:
        files: the local files they were read from.
        facts: entries of all_results.json about the data.
    """

    name: str
    train: list[Question]
    validation: list[Question]
    files: tuple[Path, ...]
    facts: dict[str, Any]


Reader = Callable[[dict[str, Any], str], Question]  # takes a row, and what errors call it


class Benchmark(NamedTuple):
    """A data set of the hub.

    Fields:
        hub_id: its id on the hub.
        fields: those that every row must have.
        read: makes a question of a row; None for word problems, which arithmetic_reader reads.
        validation_split: the split that is evaluated.
    """

    hub_id: str
    fields: tuple[str, ...]
    read: Reader | None
    validation_split: str = "validation"


def canonical_name(task_name: str) -> str:
    """The task's name from any spelling: "CommonsenseQA" -> "commonsense_qa".

    Raises:
        ValueError: there is no such task.
    """
    name = SPELLINGS.get(task_name.lower().replace("-", "").replace("_", ""))
    if name is None:
        raise ValueError(
            f"{task_name!r} is no multiple-choice task; there are {', '.join(BENCHMARKS)} (any case), and "
            "--train_file with --validation_file for others"
        )
    return name


def load_benchmark(
    name: str,
    data_dir: Path | None,
    train_split: str = "train",
    hub_config: str | None = None,
    read_arithmetic: Reader | None = None,
) -> Task:
    """One of BENCHMARKS, from `data_dir`/<name>/<split>.jsonl[.gz]|.parquet, or from the hub without `data_dir`.

    Args:
        read_arithmetic: reads word problems (see arithmetic_reader).
    Raises:
        ValueError: there is no such split, or a question is not usable (names file, line and field).
    """
    benchmark = BENCHMARKS[name]
    read = benchmark.read or read_arithmetic
    splits, files = [], []
    for split in (train_split, benchmark.validation_split):
        source = Source(name, split, benchmark.hub_id, hub_config, split, benchmark.fields)
        splits.append([read(row, where) for where, row in read_source(source, data_dir)])
        files += [local_file(source, data_dir)] if data_dir else []
    facts = {"train_split": train_split, "validation_split": benchmark.validation_split}
    return _task(name, *splits, tuple(files), facts)


def load_files(train_file: Path, validation_file: Path, read: Reader) -> Task:
    """A task from two csv, json or parquet files; `read` makes a question of each row.

    Raises:
        ValueError: a file is missing, damaged, empty or of another kind, or a question is not usable.
    """
    splits = []
    for path in (train_file, validation_file):
        rows = list(_file_rows(path))
        splits.append([read(row, where) for where, row in rows])
        if not rows:
            raise ValueError(f"{path} holds no questions")
        others = {name for _, row in rows for name in row} - {*LETTERS, "answerKey"}
        if read is read_question and (unread := unread_fields(others, ("question", "choices", "answer", "context"))):
            logger.info("%s: fields not read: %s", path, unread)
    return _task(name_of_files(train_file), *splits, (train_file, validation_file), {})


def _file_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row); in csv, an answer that is a whole number becomes an int, as in files with types."""
    untyped = file_kind(path, TABLE_SUFFIXES) == "csv"
    for where, row in read_rows(path, suffixes=TABLE_SUFFIXES):
        answer = row.get("answer")
        if untyped and answer and re.fullmatch(r"0|[1-9]\d*", answer.strip()):
            row = {**row, "answer": int(answer)}
        yield where, row


def _task(
    name: str, train: list[Question], validation: list[Question], files: tuple[Path, ...], facts: dict[str, Any]
) -> Task:
    known = {(question.context, frozenset(question.options)) for question in train}
    repeated = sum((question.context, frozenset(question.options)) in known for question in validation)
    if repeated:
        logger.warning("%s: %d of %d validation questions are training questions", name, repeated, len(validation))
    counts = Counter(len(question.options) for question in validation)
    options = {str(count): counts[count] for count in sorted(counts)}
    return Task(name, train, validation, files, {**facts, "validation_in_train": repeated, "option_counts": options})


def read_commonsense_qa(row: dict[str, Any], where: str) -> Question:
    """A question with five options, as fairseq writes them: "Q: …" and "A: …"."""
    choices, gold = labelled_choices(row, where)
    if len(choices) != 5:
        raise ValueError(f"{where}: 'choices' has {len(choices)} options; CommonsenseQA has 5")
    return question_pairs(checked_text(row["question"], where, "question"), choices, gold)


def read_winogrande(row: dict[str, Any], where: str) -> Question:
    """The sentence up to its gap, then the rest with an option in the gap (as Sakaguchi et al. 2020)."""
    sentence, choices, gold = gap_choices(row, where)
    before, _, after = sentence.partition("_")
    return Question(before.strip(), tuple(f"{choice}{after}".strip() for choice in choices), gold)


def read_question(row: dict[str, Any], where: str) -> Question:
    """A row of a user's file: `question`, `choices`, `answer`, and `context` if there is one.

    `choices` is a list of two or more texts; in csv it is a JSON list, or the texts are in columns A, B, C …, where an
    empty one is no option. `answer` is a choice's text, its letter, or as a number its index from 0. The hub's form is
    read too: `choices` with labels, and `answerKey`.

    Raises:
        ValueError: a field is missing or of another form (names the row and the field).
    """
    row = {field: value for field, value in row.items() if value is not None}
    check_fields(row, where, ["question"])
    question = checked_text(row["question"], where, "question")
    context = valid_text(row.get("context", ""), where, "context")
    if "answerKey" in row:
        check_fields(row, where, ["choices"])
        choices, gold = labelled_choices(row, where)
    else:
        check_fields(row, where, ["answer"])
        if "choices" not in row and "A" in row:
            choices, letters = lettered_choices(row, where)
            gold = gold_index(row["answer"], choices, where, letters)
        else:
            choices = read_choices(_choices(row, where), where)
            gold = gold_index(row["answer"], choices, where)
    return question_pairs(question, choices, gold, context)


def _choices(row: dict[str, Any], where: str) -> object:
    """The field `choices`; a text is parsed as JSON."""
    check_fields(row, where, ["choices"])
    if not isinstance(row["choices"], str):
        return row["choices"]
    try:
        return json.loads(row["choices"])
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: 'choices' is neither a list of texts nor one in JSON: {error}") from error


def question_pairs(question: str, choices: Iterable[str], gold: int, context: str = "") -> Question:
    """A question as pairs: (question, option), or with a context (context, question and option).

    The tokenizer cuts the longer text of a pair that is too long: the context, not the question.
    """
    if context.strip():
        return Question(context.strip(), tuple(f"Q: {question.strip()} A: {choice}" for choice in choices), gold)
    return Question(f"Q: {question.strip()}", tuple(f"A: {choice}" for choice in choices), gold)


def arithmetic_reader(num_options: int, seed: int) -> Reader:
    """A function that makes a multiple-choice question (numeric_options) of a word problem with a numeric answer.

    A row has `question`, or SVAMP's `Body` and `Question`, and `answer`, `Answer` or `result_float` (MAWPS in the
    Calc-X collection). In another form of MAWPS, `Question` has number0, number1 … or N_00, N_01 … in place of the
    numbers that `Numbers` lists.

    Args:
        num_options: options of every question.
        seed: of the random options, together with the problem's text.
    Raises (the function):
        ValueError: a field is missing, the answer is no number, or the text refers to a number that `Numbers` lacks.
    """

    def read(row: dict[str, Any], where: str) -> Question:
        text = _problem_text({field: value for field, value in row.items() if value is not None}, where)
        field = next((name for name in ANSWER_FIELDS if name in row), "Answer")
        check_fields(row, where, [field])
        answer = _number(row[field], where, f"{field!r} is")
        generator = np.random.default_rng([seed, *hashlib.sha256(text.encode()).digest()[:8]])
        options, gold = numeric_options(numbers_in(text), answer, num_options, generator)
        return question_pairs(text, options, gold)

    return read


def _problem_text(row: dict[str, Any], where: str) -> str:
    if "question" in row:
        fields = ["question"]
    else:
        fields = ["Body", "Question"] if "Body" in row and "Numbers" not in row else ["Question"]
    check_fields(row, where, fields)
    parts = [checked_text(row[name], where, name).strip() for name in fields]
    text = " ".join(part if part[-1] in ".?!,;:" or part is parts[-1] else f"{part}." for part in parts)
    numbers = row.get("Numbers", "")
    numbers = numbers.split() if isinstance(numbers, str) else numbers
    values = [_number(number, where, "'Numbers' holds") for number in numbers]

    def value(match: re.Match) -> str:
        index = int(match[1])
        if index >= len(values):
            raise ValueError(f"{where}: the text has {match[0]}, 'Numbers' has {len(values)}")
        return np.format_float_positional(values[index], trim="-")

    return PLACEHOLDER.sub(value, text)


def _number(value: object, where: str, what: str) -> float:
    try:
        number = float(str(value).replace(",", ""))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {what} {value!r}, no number")
    return number


def numbers_in(text: str) -> list[float]:
    """The numbers written in digits in a text, in order."""
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def numeric_options(
    numbers: list[float], answer: float, count: int, generator: np.random.Generator
) -> tuple[tuple[str, ...], int]:
    """The options of a word problem: the answer and wrong numbers, in random order.

    Wrong options are the results of the four operations on two of the problem's numbers, in random order. If these are
    too few, the numbers themselves follow, then near misses: the answer plus or minus 1, 2, 3 …, or tenths of an answer
    with decimals.

    Neither size nor form tells the answer. How many wrong options are smaller is drawn uniformly, as far as there are
    enough; with the results of operations alone, the smallest option would be right in 44 % of SVAMP. Options are
    negative only if the answer is, and whole if the answer is.

    Args:
        numbers: those in the problem's text.
        count: number of options, the answer included.
    Returns:
        The options as texts, and the index of the answer.
    Source: ours. SVAMP (Patel et al. 2021) keeps a problem's numbers and changes the operation, which fools solvers
        that choose the wrong operation.
    """
    answer = round(float(answer), 2)
    operations = sorted({value for first, second in _ordered_pairs(numbers) for value in _results(first, second)})
    unit = 1.0 if answer.is_integer() else max(round(abs(answer) / 10, 2), 0.01)
    misses = [answer + sign * step * unit for step in range(1, count) for sign in (1, -1)]
    ranked = [*generator.permutation(operations), *generator.permutation(sorted(set(numbers))), *misses]
    wrong = [
        value
        for value in dict.fromkeys(round(float(value), 2) for value in ranked)
        if (value.is_integer() or not answer.is_integer()) and (value >= 0 or answer < 0)
    ]
    smaller = [value for value in wrong if value < answer][: generator.integers(count)]
    options = [*smaller, *[value for value in wrong if value > answer][: count - 1 - len(smaller)]]
    generator.shuffle(options)
    gold = int(generator.integers(count))
    options.insert(gold, answer)
    return tuple(f"{value:.2f}".rstrip("0").rstrip(".") for value in options), gold


def _ordered_pairs(numbers: list[float]) -> Iterable[tuple[float, float]]:
    return ((a, b) for i, a in enumerate(numbers) for j, b in enumerate(numbers) if i != j)


def _results(first: float, second: float) -> Iterable[float]:
    yield from (round(value, 2) for value in (first + second, first - second, first * second))
    if second:
        yield round(first / second, 2)


BENCHMARKS = {
    "commonsense_qa": Benchmark("tau/commonsense_qa", ("question", "choices", "answerKey"), read_commonsense_qa),
    "winogrande": Benchmark("allenai/winogrande", ("sentence", "option1", "option2", "answer"), read_winogrande),
    # The splits of the Calc-X collection, without training problems that are nearly those of validation and test.
    "mawps": Benchmark("MU-NLPC/Calc-mawps", (), None),
    "svamp": Benchmark("ChilleD/SVAMP", (), None, validation_split="test"),  # 700 and 300 problems, no third split
}
ARITHMETIC = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.read is None)
