"""GLUE tasks and tasks in files: text columns, labels as numbers, subsets of rows, tokenization, metrics."""

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from GLUE_tasks import labels
from GLUE_tasks.labels import LABEL, Labels
from harness.data import Table, hub_errors, read_table, valid_text

logger = logging.getLogger(__name__)

HUB_NAME = "nyu-mll/glue"
HUB_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")  # the data sets of HUB_NAME
# Sentence columns per task, on the hub and in --data_dir; tasks that the hub's GLUE lacks are in --data_dir alone.
COLUMNS = {
    "cola": ("sentence", None),
    "sst2": ("sentence", None),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
VALIDATION = {"mnli": {"": "validation_matched", "_mm": "validation_mismatched"}}
# GLUE's metrics of tasks that have others than accuracy. Figures show the first, as do appendix B's human scores.
METRICS = {
    "cola": ("matthews_correlation",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearmanr"),
}
DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d(:\d\d(:\d\d(\.\d+)?)?)?(Z|[+-]\d\d:?\d\d)?)?")
# Limits of repeats_label: fewest rows per value on average, most values per label.
ROWS_PER_VALUE, VALUES_PER_LABEL = 10, 10


@dataclass(frozen=True)
class Columns:
    """The columns that a task's texts are in.

    Fields:
        texts: one or two.
        by_order: the columns that earlier versions read: the first ones, even if they determine the label.
    """

    texts: tuple[str, str | None]
    by_order: tuple[str, str | None] = ("", None)


@dataclass(frozen=True)
class Task:
    """One task's data, with labels 0 ... num_labels - 1, or floats when `is_regression`.

    `validation` holds one data set per suffix of the score's name: "" for the main one, "_mm" for MNLI mismatched.
    `decisions` are entries of the run's identity where earlier versions of this project read the data otherwise.
    """

    name: str
    columns: tuple[str, str | None]
    train: Dataset
    validation: dict[str, Dataset]
    label_names: tuple[str, ...]
    files: tuple[Path, ...]
    metrics: tuple[str, ...]
    decisions: dict[str, Any] = field(default_factory=dict)

    @property
    def is_regression(self) -> bool:
        return not self.label_names


def canonical_name(task_name: str) -> str:
    """GLUE's short name of a task, from any spelling: "STS-B" -> "stsb".

    Raises:
        ValueError: no GLUE task has that name.
    """
    name = task_name.lower().replace("-", "").replace("_", "")
    if name not in COLUMNS:
        raise ValueError(f"{task_name!r} is no GLUE task; there are {', '.join(COLUMNS)} (any case)")
    return name


def name_of_files(path: Path) -> str:
    """The name of a task in files: that of the file's folder; in the root folder, the file's."""
    return Path(os.path.abspath(path)).parent.name or path.name.partition(".")[0]


def load_glue(name: str, data_dir: Path | None) -> Task:
    """A GLUE task from `data_dir`/glue/<name>/<split>.jsonl[.gz]|.parquet, or from the hub without `data_dir`.

    Raises:
        ValueError: `data_dir` lacks the train or validation split (names the file that was looked for), the task is
            none of HUB_TASKS and there is no `data_dir`, or the hub cannot be reached.
    """
    suffixes = VALIDATION.get(name, {"": "validation"})
    if data_dir is None:
        if name not in HUB_TASKS:
            raise ValueError(
                f"--task_name {name}: {HUB_NAME} on the hub has no such data set, only {', '.join(HUB_TASKS)}; give "
                f"--data_dir DIR with glue/{name}/train.jsonl and {suffixes['']}.jsonl"
            )
        try:
            tables = hub_tables(HUB_NAME, name, ("train", *suffixes.values()))
        except ValueError as error:
            raise ValueError(
                f"--task_name {name}: {error}; without a hub, give --data_dir DIR with glue/{name}/train.jsonl and "
                f"{suffixes['']}.jsonl"
            ) from error
        train, splits, files = tables["train"], {key: tables[split] for key, split in suffixes.items()}, ()
    else:
        paths = {key: find_split(Path(data_dir) / "glue" / name, split) for key, split in suffixes.items()}
        paths = {key: path for key, path in paths.items() if path is not None}
        train_path = find_split(Path(data_dir) / "glue" / name, "train")
        if train_path is None or "" not in paths:
            lacking = "train" if train_path is None else suffixes[""]
            raise ValueError(
                f"--data_dir {data_dir} has no glue/{name}/{lacking}.jsonl (or .jsonl.gz, .parquet)"
                f"{'; leave --data_dir out to load from the hub' if name in HUB_TASKS else ''}"
            )
        train, splits = read_table(train_path), {key: read_table(path) for key, path in paths.items()}
        files = (train_path, *paths.values())
    return make_task(name, COLUMNS[name], [train], splits, files, glue_task=name)


def hub_tables(
    name: str, config: str | None, splits: Sequence[str], first_train_rows: int | None = None
) -> dict[str, Table]:
    """Splits of a hub data set, by their names.

    Args:
        first_train_rows: most rows of "train"; None is all.
    Raises:
        ValueError: the hub cannot be reached or has no such data set; says why in one line.
    """
    with hub_errors():
        loaded = datasets.load_dataset(name, config)
    tables = {}
    for split in splits:
        rows = loaded[split]
        if split == "train" and first_train_rows is not None:
            rows = rows.select(range(min(len(rows), first_train_rows)))
        where = " ".join(filter(None, (name, config, split)))
        columns = {column: rows[column][:] for column in rows.column_names}
        tables[split] = Table(where, "row", range(1, len(rows) + 1), columns)
    return tables


def load_files(
    train_file: Path, validation_file: Path, text_columns: Sequence[str] | None = None, by_order: bool = False
) -> Task:
    """A task from two csv, json or parquet files with a `label` column and one or two text columns.

    Labels that are numbers with decimals make a regression; else every distinct label is a class, in sorted order.

    Args:
        text_columns: the one or two to take; choose_columns chooses when None.
        by_order: choose as earlier versions did, which did not skip columns that determine the label.
    Raises:
        ValueError: a file is missing, empty, of another kind, lacks labels or text, or validation holds labels that
            training lacks; or all training labels are the same.
    """
    train, validation = read_table(train_file), read_table(validation_file)
    columns = choose_columns([train], [labels.read_labels(train)], text_columns, by_order=by_order)
    name = name_of_files(Path(train_file))
    files = (Path(train_file), Path(validation_file))
    return make_task(name, columns.texts, [train], {"": validation}, files, decisions=decisions(name, columns))


def decisions(name: str, columns: Columns) -> dict[str, Any]:
    """Identity entries of a task in files where earlier versions chose other text columns, or metrics by the name."""
    decided: dict[str, Any] = {}
    if columns.texts != columns.by_order:
        decided["text_columns"] = [name for name in columns.texts if name]
    if name in METRICS:
        decided["metrics"] = "not by the folder's name"
    return decided


def choose_columns(
    tables: Sequence[Table],
    known: Sequence[Labels],
    named: Sequence[str] | None = None,
    others: Collection[str] = (LABEL,),
    by_order: bool = False,
) -> Columns:
    """The text columns of training files: `sentence1` and `sentence2` when both exist, else the first one or two.

    A text column that determines the label (see repeats_label) is skipped if there is one that does not. Columns of
    numbers, of true and false, or of dates are no text columns.

    Args:
        tables: files with the same columns; the first one's order counts.
        known: the labels of each file.
        named: the columns of --text_columns, which are then taken.
        others: columns that cannot be inputs.
        by_order: choose as earlier versions did, which did not skip columns that determine the label.
    Raises:
        ValueError: there is no text column beside `label` (names the file and its columns), or a column of `named` is
            not there.
    """
    first = tables[0]
    texts = [name for name in first.columns if name not in others and _is_text(first, name)]
    dated = ".json" not in Path(first.name).name  # where earlier versions took dates for texts
    oldest_choice = _first_two([name for name in first.columns if name not in others and _is_text(first, name, dated)])
    if named:
        for name in named:
            if name in others:
                raise ValueError(f"--text_columns {' '.join(named)}: {name!r} is no text to learn from")
            if name not in first.columns:
                raise ValueError(
                    f"--text_columns {' '.join(named)}: {first.name} has no column {name!r}; it has "
                    f"{', '.join(first.columns)}"
                )
        return Columns((*named, None)[:2], by_order=oldest_choice)
    if not texts:
        raise ValueError(f"{first.name} has no text column beside 'label'; it has {', '.join(first.columns)}")
    repeating = tuple(name for name in texts if repeats_label(tables, known, name))
    kept = [name for name in texts if name not in repeating]
    if by_order or not kept:
        return Columns(oldest_choice if by_order else _first_two(texts), by_order=oldest_choice)
    for name in repeating:
        logger.warning(
            "%s: the column %r determines the label and is not used; --text_columns can name it", first.name, name
        )
    return Columns(_first_two(kept), oldest_choice)


def _first_two(texts: Sequence[str]) -> tuple[str, str | None]:
    if not texts:
        return "", None
    return ("sentence1", "sentence2") if {"sentence1", "sentence2"} <= set(texts) else (*texts[:2], None)[:2]


def _is_text(table: Table, name: str, with_dates: bool = False) -> bool:
    """Whether a column holds texts. In csv, where all values are, columns of numbers, dates, true and false do not."""
    texts = [value for value in table.columns[name] if isinstance(value, str) and (table.typed or value)]
    if not table.typed and all(labels.DECIMAL.fullmatch(text.strip()) for text in texts):
        return False
    if not table.typed and all(text.strip().lower() in labels.TRUTH for text in texts):
        return False
    return bool(texts) and (with_dates or not all(map(DATE.fullmatch, texts)))


def repeats_label(tables: Sequence[Table], known: Sequence[Labels], name: str) -> bool:
    """Whether a column determines the label, as `label_text` does: each value has one label, and values are few.

    Few is at most half as many as rows, and either at most as many as labels, or at most VALUES_PER_LABEL per label
    with ROWS_PER_VALUE rows each on average. A column of texts that all differ therefore never counts.
    """
    label_of: dict[Any, str] = {}
    count = 0
    for table, read in zip(tables, known, strict=True):
        for value, label in zip(table.columns.get(name, ()), map(labels.key, read.values), strict=False):
            if not isinstance(value, str) or label_of.setdefault(value, label) != label:
                return False
            count += 1
    num_labels = len(set(label_of.values()))
    few = max(num_labels, min(VALUES_PER_LABEL * num_labels, count // ROWS_PER_VALUE))
    return num_labels > 1 and len(label_of) <= min(few, count // 2)


def check_columns(table: Table, columns: tuple[str, str | None]) -> None:
    """Raises ValueError where a table lacks one of the columns: names the table, the column and those that it has."""
    for name in filter(None, columns):
        if name not in table.columns:
            raise ValueError(f"{table.name} has no column {name!r}; it has {', '.join(table.columns)}")


def find_split(folder: Path, split: str) -> Path | None:
    """The file <split>.jsonl.gz, .jsonl or .parquet in a folder; None if there is none."""
    candidates = (folder / f"{split}{suffix}" for suffix in (".jsonl.gz", ".jsonl", ".parquet"))
    return next((path for path in candidates if path.is_file()), None)


def make_task(
    name: str,
    columns: tuple[str, str | None],
    train: Sequence[Table],
    splits: Mapping[str, Table],
    files: tuple[Path, ...],
    glue_task: str | None = None,
    decisions: dict[str, Any] | None = None,
    constants: Mapping[str, Sequence[str]] | None = None,
) -> Task:
    """A task from tables: texts and labels are checked, labels become 0 ... num_labels - 1, or floats.

    Args:
        columns: the text columns.
        train: tables of training rows, which are concatenated.
        splits: tables of validation rows, by suffix (see Task).
        glue_task: GLUE's name of the task, whose classes and metrics are used; None for files, whatever their name.
        decisions: see Task.
        constants: further columns: for each one value per table, first of `train`, then of `splits`.
    Raises:
        ValueError: a column, text or label is missing, or labels differ in type (names where).
    """
    known = [labels.read_labels(table) for table in train]
    kinds = {read.kind for read in known}
    if float in kinds and len(kinds) > 1:
        one, other = (next(t.name for t, k in zip(train, known, strict=True) if (k.kind is float) is is_float)
                      for is_float in (True, False))  # fmt: skip
        raise ValueError(f"labels are numbers with decimals in {one} and classes in {other}; give them one type")
    regression = glue_task == "stsb" or (glue_task is None and kinds == {float})
    tables = [*train, *splits.values()]
    all_labels = [*known, *(labels.read_labels(table) for table in splits.values())]
    if regression:
        label_names = ()
        encoded = [labels.scores(table, read) for table, read in zip(tables, all_labels, strict=True)]
        if kinds == {float} and glue_task is None and all(v.is_integer() for read in known for v in read.values):
            logger.warning(
                "%s: labels are numbers with decimals, all whole: a regression; for classes write 1, not 1.0",
                train[0].name,
            )
    else:
        classes = labels.make_classes(list(zip(train, known, strict=True)), glue_task)
        label_names = classes.names
        encoded = [
            labels.class_numbers(table, read, classes, kinds, glue_task is not None)
            for table, read in zip(tables, all_labels, strict=True)
        ]
    sets = []
    for index, (table, numbers) in enumerate(zip(tables, encoded, strict=True)):
        extra = {key: [values[index]] * len(table) for key, values in (constants or {}).items()}
        sets.append(_data_set(table, columns, numbers, regression, extra))
    trained, evaluated = sets[: len(train)], sets[len(train) :]
    logger.info(
        "%s: texts: %s; labels: %r, %s", name, ", ".join(filter(None, columns)), LABEL,
        "numbers (a regression)" if regression else f"{len(label_names)} classes ({_listed(label_names)})",
    )  # fmt: skip
    metrics = METRICS.get(glue_task, ("pearson", "spearmanr") if regression else ("accuracy",))
    whole = trained[0] if len(trained) == 1 else datasets.concatenate_datasets(trained)
    return Task(
        name, columns, whole, dict(zip(splits, evaluated, strict=True)), label_names, files, metrics, decisions or {}
    )


def _listed(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _data_set(
    table: Table, names: tuple[str, str | None], numbers: list, regression: bool, extra: Mapping[str, list[str]]
) -> Dataset:
    """Texts and labels of a table, in memory.

    Raises:
        ValueError: a column is missing, or a row's text is (names the file, the row and the column).
    """
    check_columns(table, names)
    texts = {}
    for name in filter(None, names):
        for index, value in enumerate(table.columns[name]):
            if value is None:
                raise ValueError(f"{table.where(index)} has no {name!r}")
            valid_text(value, table.where(index), name)
        texts[name] = table.columns[name]
    kinds = {**dict.fromkeys((*texts, *extra), pa.string()), LABEL: pa.float32() if regression else pa.int64()}
    # through Arrow: from_dict inspects every value, which takes as long as reading the file
    columns = pa.table({**texts, **extra, LABEL: numbers}, pa.schema(kinds.items()))
    return Dataset(datasets.table.InMemoryTable(columns))


def subset_indices(num_rows: int, percentage: float, seed: int, how: str = "random", limit: int | None = None) -> list:
    """Indices of the training rows that a run uses. Subsets are nested: 25 % contains all rows of 10 %.

    Args:
        percentage: share of the rows, in (0, 100]; at least one row is taken.
        how: "random" draws with `seed`, as the paper says; "prefix" takes the first rows, as the original does.
        limit: number of rows that count as 100 %; None is all.
    """
    order = np.arange(num_rows) if how == "prefix" else np.random.default_rng(seed).permutation(num_rows)
    available = min(num_rows, limit or num_rows)
    return order[: max(1, round(available * percentage / 100))].tolist()


def tokenize(split: Dataset, columns: tuple[str, str | None], tokenizer: Any, max_length: int) -> Dataset:
    """Model inputs, `labels` and `length` (tokens, at most max_length) per row; nothing is padded."""
    first, second = columns

    def encode(rows: dict[str, list]) -> dict[str, list]:
        texts = (rows[first],) if second is None else (rows[first], rows[second])
        encoded = tokenizer(*texts, max_length=max_length, truncation=True)
        return {**encoded, "labels": rows["label"], "length": [len(ids) for ids in encoded["input_ids"]]}

    return split.map(encode, batched=True, remove_columns=split.column_names, desc="tokenize")


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.mean(predictions == references))


def correlation(statistic: Callable) -> Callable[[np.ndarray, np.ndarray], float]:
    """A metric from a scipy correlation; 0 where one side is constant, so that the correlation is undefined."""

    def score(predictions: np.ndarray, references: np.ndarray) -> float:
        if np.ptp(predictions) == 0 or np.ptp(references) == 0:
            return 0.0
        return float(statistic(predictions, references).statistic)

    return score


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": lambda predictions, references: float(f1_score(references, predictions, zero_division=0)),
    "matthews_correlation": lambda predictions, references: float(matthews_corrcoef(references, predictions)),
    "pearson": correlation(stats.pearsonr),
    "spearmanr": correlation(stats.spearmanr),
}


def chance_level(metric: str, references: np.ndarray) -> float:
    """Score of the best constant prediction: the largest class for accuracy, 0 for correlations.

    For F1 it is the score of always answering 1.
    """
    if metric == "accuracy":
        return float(np.unique(references, return_counts=True)[1].max() / len(references))
    return SCORES["f1"](np.ones_like(references), references) if metric == "f1" else 0.0


def standard_error(metric: str, predictions: np.ndarray, references: np.ndarray, resamples: int = 200) -> float:
    """Standard error of a score over items: binomial for accuracy, bootstrap with a fixed seed for the others."""
    n = len(references)
    if metric == "accuracy":
        score = accuracy(predictions, references)
        return float(np.sqrt(score * (1 - score) / n))
    rows = np.random.default_rng(0).integers(n, size=(resamples, n))
    return float(np.std([SCORES[metric](predictions[row], references[row]) for row in rows], ddof=1))
