"""One task in several domains: reading its rows, and mixtures in which domains have unequal shares."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset

from GLUE_tasks import glue_data
from GLUE_tasks.glue_data import Task

DOMAIN = "domain"
SPLIT_NAMES = ("train", "validation", "dev", "test")  # files called so have their folder's name as domain
NATURAL = "natural"  # the mixture that the data have

Shares = dict[str, float]
Part = tuple[Path, Dataset]  # the rows of a domain and the file that holds them


def load_folder(data_dir: Path, name: str) -> Task:
    """The domains in `data_dir`/<name>/<domain>/{train,validation}.jsonl[.gz]|.parquet.

    Raises:
        ValueError: no such folder, a domain without one of the files, or what make_task refuses.
    """
    folder = Path(data_dir) / name
    if not folder.is_dir():
        raise ValueError(f"--data_dir {data_dir}: there is no folder {name}")
    parts: dict[str, dict[str, Part]] = {"train": {}, "validation": {}}
    for domain in sorted(path for path in folder.iterdir() if path.is_dir()):
        for split, own in parts.items():
            path = glue_data.find_split(domain, split)
            if path is None:
                raise ValueError(f"{domain} has no {split}.jsonl (or .jsonl.gz, .parquet)")
            own[domain.name] = path, glue_data.read_file(path)
    return make_task(name, parts["train"], parts["validation"])


def load_files(train_files: Sequence[Path], validation_files: Sequence[Path]) -> Task:
    """The domains of csv, json or parquet files: a `domain` column names them, or every file is one.

    A file without the column has its own name as its domain; its folder's, where it is called train or validation.

    Raises:
        ValueError: what glue_data.read_file and make_task refuse.
    """
    name = Path(train_files[0]).parent.name
    return make_task(name, _by_domain(train_files), _by_domain(validation_files))


def _by_domain(files: Iterable[Path]) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for path in map(Path, files):
        data = glue_data.read_file(path)
        if DOMAIN in data.column_names:
            found = _split_by_column(path, data)
        else:
            stem = path.name.partition(".")[0]
            found = {path.parent.name if stem in SPLIT_NAMES else stem: (path, data)}
        if twice := sorted(parts.keys() & found.keys()):
            raise ValueError(f"{path} and {parts[twice[0]][0]} both hold the domain {twice[0]!r}; put them in one file")
        parts |= found
    return parts


def _split_by_column(path: Path, data: Dataset) -> dict[str, Part]:
    names = data[DOMAIN][:]
    if (lacking := next((row for row, name in enumerate(names, start=1) if name in (None, "")), None)) is not None:
        raise ValueError(f"{path}: row {lacking} has no {DOMAIN!r}")
    names = np.array([str(name) for name in names])
    return {str(name): (path, data.select(np.flatnonzero(names == name))) for name in dict.fromkeys(names)}


def make_task(name: str, train: Mapping[str, Part], validation: Mapping[str, Part]) -> Task:
    """One task of all domains; its training rows keep their `domain`, validation has a split for each.

    Raises:
        ValueError: fewer than two domains, one that either side lacks, a file without a label or text column or with
            empty fields, labels of several types, or a label that one domain alone has.
    """
    if len(train) < 2:
        raise ValueError(
            f"{', '.join(str(path) for path, _ in train.values())}: one domain ({', '.join(train)}); a mixture needs "
            f"two: give several files, or a {DOMAIN!r} column with several names"
        )
    for side, own, other in (("validation", validation, train), ("training", train, validation)):
        if lacking := sorted(other.keys() - own.keys()):
            raise ValueError(f"the {side} data lack the domain {lacking[0]!r}; they have {', '.join(own)}")
    (first_path, first), *_ = train.values()
    columns = glue_data.text_columns(first_path, first, ("label", DOMAIN))
    for path, data in (*train.values(), *validation.values()):
        glue_data.check_columns(path, data, columns)
    kind = _label_type(train)
    train = {domain: (path, _plain(data, columns, domain)) for domain, (path, data) in sorted(train.items())}
    splits = {f"_{domain}": _plain(validation[domain][1], columns, domain) for domain in train}
    if not kind.startswith("float"):
        _check_labels(train)
    return glue_data.make_task(
        name, columns, datasets.concatenate_datasets([data for _, data in train.values()]), splits,
        regression=kind.startswith("float"),
        files=tuple(dict.fromkeys(path for path, _ in (*train.values(), *validation.values()))),
    )  # fmt: skip


def _plain(data: Dataset, columns: tuple[str, str | None], domain: str) -> Dataset:
    """The columns that count, with the domain's name in every row."""
    kept = [name for name in ("label", *columns) if name]
    return data.select_columns(kept).add_column(DOMAIN, [domain] * len(data))


def _label_type(train: Mapping[str, Part]) -> str:
    kinds = {getattr(data.features["label"], "dtype", "list"): path for path, data in train.values()}
    if len(kinds) > 1:
        (one, path), (other, other_path), *_ = kinds.items()
        raise ValueError(f"labels are {one} in {path} and {other} in {other_path}; give them one type")
    return next(iter(kinds))


def _check_labels(train: Mapping[str, Part]) -> None:
    """Refuse a label that one domain alone has: its scores would be those of another task."""
    known = {domain: set(data.unique("label")) for domain, (_, data) in train.items()}
    for label in sorted(set().union(*known.values())):
        holders = [domain for domain, labels in known.items() if label in labels]
        if len(holders) == 1:
            raise ValueError(
                f"label {label!r} occurs in the domain {holders[0]!r} alone; scores of domains with different labels "
                "cannot be compared"
            )


def parse_shares(words: Sequence[str]) -> Shares:
    """["movies=0.7", "tweets=0.1"] -> shares by domain.

    Raises:
        ValueError: a word that is no NAME=SHARE with a share in [0, 1], a domain named twice, or a sum above 1.
    """
    shares: Shares = {}
    for word in words:
        domain, equals, text = word.rpartition("=")
        try:
            share = float(text)
        except ValueError:
            share = math.nan
        if not equals or not domain or not 0 <= share <= 1:
            raise ValueError(f"{word!r} is no DOMAIN=SHARE with a share in [0, 1]")
        if domain in shares:
            raise ValueError(f"{domain!r} is named twice")
        shares[domain] = share
    if (total := math.fsum(shares.values())) > 1 + 1e-9:
        raise ValueError(f"{' '.join(words)}: the shares sum to {total:.4g}, above 1")
    return shares


def complete_shares(named: Shares, domains: Collection[str]) -> Shares:
    """A share for every domain, in their order: those not named divide what is left equally.

    Raises:
        ValueError: a domain that the data lack, every domain named and a sum below 1, or all rows from one domain.
    """
    if unknown := [domain for domain in named if domain not in domains]:
        raise ValueError(f"{unknown[0]!r} is no domain of the data; they have {', '.join(domains)}")
    rest, others = 1 - math.fsum(named.values()), [domain for domain in domains if domain not in named]
    if not others and rest > 1e-9:
        raise ValueError(f"the shares of all domains sum to {1 - rest:.4g}, not 1")
    # rounded, so that 0.3 / 3 is the share of a mixture that says 0.1
    each = round(max(0.0, rest) / max(1, len(others)), 12)
    shares = {domain: named.get(domain, each) for domain in domains}
    if max(shares.values()) == 1:
        raise ValueError(f"all rows would come from {max(shares, key=shares.__getitem__)!r}; that is no mixture")
    return shares


def count_rows(domains: Iterable[str]) -> dict[str, int]:
    """Rows of each domain, by name."""
    names, counts = np.unique(list(domains), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def natural_shares(available: Mapping[str, int]) -> Shares:
    """The shares that the data have."""
    total = sum(available.values())
    return {domain: count / total for domain, count in available.items()}


def rows_per_domain(shares: Shares, total: int) -> dict[str, int]:
    """`total` divided by the shares into whole rows; the largest remainders are rounded up, the first of equal ones."""
    exact = {domain: share * total for domain, share in shares.items()}
    counts = {domain: math.floor(value + 1e-9) for domain, value in exact.items()}
    by_remainder = sorted(shares, key=lambda domain: counts[domain] - exact[domain])
    for domain in by_remainder[: total - sum(counts.values())]:
        counts[domain] += 1
    return counts


def largest_total(available: Mapping[str, int], shares: Shares) -> int:
    """The most rows that a mixture can have."""
    return min(math.floor(available[domain] / share + 1e-9) for domain, share in shares.items() if share > 0)


def check_rows(available: Mapping[str, int], shares: Shares, total: int) -> None:
    """Refuse a mixture that a domain has too few rows for.

    Raises:
        ValueError: names the domain, the rows that it has and those that it needs.
    """
    for domain, needed in rows_per_domain(shares, total).items():
        if needed > available[domain]:
            raise ValueError(
                f"{total} rows with {domain}={shares[domain]:.4g} need {needed} of {domain!r}, which has "
                f"{available[domain]}; lower --max_train_samples or the share"
            )


def mixture_rows(domains: Sequence[str], counts: Mapping[str, int], seed: int) -> list[int]:
    """Random rows of every domain, as many as `counts` says.

    A domain's rows are nested for a seed: those it has as a minority are among those it has as the majority.
    """
    names = np.asarray(domains)
    chosen: list[int] = []
    for domain, count in counts.items():
        own = np.flatnonzero(names == domain)
        chosen += own[np.random.default_rng(seed).permutation(len(own))[:count]].tolist()
    return chosen


def evaluated_rows(task: Task, balanced: bool, limit: int | None) -> Task:
    """The task with the first `limit` validation rows of each domain at most, as many of each label if `balanced`.

    Raises:
        ValueError: labels that are numbers cannot be balanced, or a domain's validation rows lack a label.
    """
    splits = {}
    for suffix, data in task.validation.items():
        rows = range(min(len(data), limit or len(data)))
        if balanced:
            labels = data["label"][:]
            lacking = set(range(len(task.label_names))) - set(labels)
            if task.is_regression or lacking:
                what = "numbers" if task.is_regression else f"no row labelled {task.label_names[min(lacking)]!r}"
                raise ValueError(f"--balanced_validation: the domain {suffix[1:]!r} has {what}")
            rows = balanced_rows(labels, limit)
        splits[suffix] = data.select(rows)
    return replace(task, validation=splits)


def balanced_rows(labels: Sequence[int], limit: int | None = None) -> list[int]:
    """Rows with as many of each label, in their order: the first of each, as many as the rarest label has.

    Args:
        limit: most rows in all, or one of each label where it is below (default: no limit).
    Returns:
        Rows that are the same for every run, on which chance is 1 / labels.
    """
    labels = np.asarray(labels)
    known, counts = np.unique(labels, return_counts=True)
    each = int(counts.min()) if limit is None else min(int(counts.min()), max(1, limit // len(known)))
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:each] for label in known])).tolist()
