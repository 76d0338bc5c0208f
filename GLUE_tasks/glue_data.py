"""GLUE tasks and csv/json files: columns, labels, scores, random subsets, tokenisation."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

HUB_NAME = "nyu-mll/glue"
# Sentence columns per task; the hub's, and those of --data_dir.
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
# The metrics GLUE asks for; the first is the one that figures show (the human scores of appendix B are in it).
METRICS = {
    "cola": ("matthews_correlation",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearmanr"),
}
FILE_SUFFIXES = (".csv", ".json", ".jsonl", ".csv.gz", ".json.gz", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class Task:
    """One task's data, with labels 0 ... num_labels - 1, or floats when `is_regression`.

    `validation` holds one data set per key suffix: "" for the scores that count, "_mm" for MNLI mismatched.
    """

    name: str
    columns: tuple[str, str | None]
    train: Dataset
    validation: dict[str, Dataset]
    label_names: tuple[str, ...]
    files: tuple[Path, ...]

    @property
    def is_regression(self) -> bool:
        return not self.label_names

    @property
    def metrics(self) -> tuple[str, ...]:
        return METRICS.get(self.name, ("pearson", "spearmanr") if self.is_regression else ("accuracy",))


def canonical_name(task_name: str) -> str:
    """GLUE's short name of a task, from any spelling: "STS-B" -> "stsb".

    Raises:
        ValueError: no GLUE task has that name.
    """
    name = task_name.lower().replace("-", "").replace("_", "")
    if name not in COLUMNS:
        raise ValueError(f"{task_name!r} is no GLUE task; there are {', '.join(COLUMNS)} (any case)")
    return name


def load_glue(name: str, data_dir: Path | None) -> Task:
    """A GLUE task from `data_dir`/glue/<name>/<split>.jsonl[.gz]|.parquet, or from the hub without `data_dir`.

    Raises:
        ValueError: `data_dir` lacks the train or validation split (names the file that was looked for), or the hub
            cannot be reached.
    """
    suffixes = VALIDATION.get(name, {"": "validation"})
    if data_dir is None:
        try:
            loaded = datasets.load_dataset(HUB_NAME, name)
        except OSError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(
                f"--task_name {name}: {reason}; without a hub, give --data_dir DIR with glue/{name}/train.jsonl and "
                f"{suffixes['']}.jsonl"
            ) from error
        splits, files = {key: loaded[split] for key, split in suffixes.items()}, ()
        train = loaded["train"]
    else:
        paths = {key: find_split(Path(data_dir) / "glue" / name, split) for key, split in suffixes.items()}
        paths = {key: path for key, path in paths.items() if path is not None}
        train_path = find_split(Path(data_dir) / "glue" / name, "train")
        if train_path is None or "" not in paths:
            lacking = "train" if train_path is None else suffixes[""]
            raise ValueError(
                f"--data_dir {data_dir} has no glue/{name}/{lacking}.jsonl (or .jsonl.gz, .parquet); "
                "leave --data_dir out to load from the hub"
            )
        train, splits = read_file(train_path), {key: read_file(path) for key, path in paths.items()}
        files = (train_path, *paths.values())
    return make_task(name, COLUMNS[name], train, splits, regression=name == "stsb", files=files)


def load_files(train_file: Path, validation_file: Path) -> Task:
    """A task from two csv, json or parquet files with a `label` column and one or two text columns.

    Float labels make a regression; else every distinct label is a class, in sorted order. `sentence1`/`sentence2`
    are the text columns when both exist, otherwise the first one or two text columns (as HF's run_glue).

    Raises:
        ValueError: a file is missing, empty, of another kind, lacks labels or text, or validation holds labels that
            training lacks; or all training labels are the same.
    """
    train, validation = read_file(train_file), read_file(validation_file)
    columns = text_columns(train_file, train)
    for path, data in ((train_file, train), (validation_file, validation)):
        check_columns(path, data, columns)
    name = Path(train_file).parent.name
    regression = getattr(train.features["label"], "dtype", "").startswith("float")
    return make_task(name, columns, train, {"": validation}, regression, (Path(train_file), Path(validation_file)))


def text_columns(path: Path, data: Dataset, others: Collection[str] = ("label",)) -> tuple[str, str | None]:
    """The text columns of a file: `sentence1` and `sentence2` when both exist, else the first one or two.

    Args:
        others: columns that are no text to learn from.
    Raises:
        ValueError: there is none beside `label` (names the file and what it has).
    """
    kinds = {name: getattr(feature, "dtype", "") for name, feature in data.features.items()}  # lists have none
    texts = [name for name, kind in kinds.items() if name not in others and kind.endswith("string")]
    if not texts:
        raise ValueError(f"{path} has no text column beside 'label'; it has {', '.join(data.column_names)}")
    return ("sentence1", "sentence2") if {"sentence1", "sentence2"} <= set(texts) else (*texts[:2], None)[:2]


def check_columns(path: Path, data: Dataset, columns: tuple[str, str | None]) -> None:
    """Refuse a file without rows, one that lacks `label` or a text column, and one of whose rows does.

    Raises:
        ValueError: names the file and the column, and the row where there is one.
    """
    if data.num_rows == 0:
        raise ValueError(f"{path} is empty")
    for name in filter(None, ("label", *columns)):
        if name not in data.column_names:
            raise ValueError(f"{path} has no column {name!r}; it has {', '.join(data.column_names)}")
        if nulls := data.data.column(name).is_null().to_numpy().nonzero()[0].tolist():
            raise ValueError(f"{path}: row {nulls[0] + 1} has no {name!r}")


def find_split(folder: Path, split: str) -> Path | None:
    """The file of a split in a folder of the --data_dir layout, None if there is none."""
    candidates = (folder / f"{split}{suffix}" for suffix in (".jsonl.gz", ".jsonl", ".parquet"))
    return next((path for path in candidates if path.is_file()), None)


def read_file(path: Path) -> Dataset:
    """A data set from a csv, json(l) or parquet file, gz or not.

    Raises:
        ValueError: the file does not exist, is empty, is of another kind or cannot be parsed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if suffix not in FILE_SUFFIXES:
        raise ValueError(f"{path} is not one of {', '.join(FILE_SUFFIXES)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    kind = {"jsonl": "json"}.get(suffix.split(".")[1], suffix.split(".")[1])
    try:
        return datasets.load_dataset(kind, data_files={"train": str(path)}, split="train")
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error.__cause__ or error}") from error
    except ValueError as error:  # datasets' answer to a file without a row
        raise ValueError(f"{path} is empty: {error}") from error


def make_task(
    name: str,
    columns: tuple[str, str | None],
    train: Dataset,
    splits: dict[str, Dataset],
    regression: bool,
    files: tuple[Path, ...],
) -> Task:
    """Labels of all splits as 0 ... n - 1 (or floats), and the checks that every source of data must pass."""
    if regression:
        label_names = ()
        encode: Callable[[Any], Any] = float
    else:
        known = train.unique("label")
        label_names = tuple(map(str, sorted(known)))
        if len(known) < 2:
            raise ValueError(f"{name}: every training label is {known[0]!r}; nothing can be learnt")
        numbers = {label: number for number, label in enumerate(sorted(known))}
        for split in splits.values():
            if unknown := set(split.unique("label")) - set(known):
                raise ValueError(f"{name}: validation holds labels that training lacks: {sorted(map(str, unknown))}")
        encode = numbers.__getitem__
    train, *rest = (_with_labels(split, encode, regression) for split in (train, *splits.values()))
    return Task(name, columns, train, dict(zip(splits, rest, strict=True)), label_names, files)


def _with_labels(split: Dataset, encode: Callable[[Any], Any], regression: bool) -> Dataset:
    labels = [encode(label) for label in split["label"][:]]
    dtype = datasets.Value("float32" if regression else "int64")
    return split.remove_columns("label").add_column("label", labels, feature=dtype)


def subset_indices(num_rows: int, percentage: float, seed: int, how: str = "random", limit: int | None = None) -> list:
    """Rows of the training set that a run may see: nested, so that 25 % holds everything that 10 % holds.

    Args:
        percentage: share of the rows, in (0, 100]; at least one row is taken.
        how: "random" draws with `seed`, as the paper says; "prefix" takes the first rows, as the original does.
        limit: rows that count as 100 %; all of them when None.
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

    return split.map(encode, batched=True, remove_columns=split.column_names, desc="tokenise")


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.mean(predictions == references))


def correlation(statistic: Callable) -> Callable[[np.ndarray, np.ndarray], float]:
    """A scipy correlation that is 0 where it is undefined: a constant prediction knows nothing of the reference."""

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
    """Standard error of a score over evaluated items: binomial for accuracy, seeded bootstrap for the others."""
    n = len(references)
    if metric == "accuracy":
        score = accuracy(predictions, references)
        return float(np.sqrt(score * (1 - score) / n))
    rows = np.random.default_rng(0).integers(n, size=(resamples, n))
    return float(np.std([SCORES[metric](predictions[row], references[row]) for row in rows], ddof=1))
