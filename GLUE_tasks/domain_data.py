"""One task in several domains: reading its rows, and mixtures in which domains have unequal shares."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from GLUE_tasks import glue_data, labels
from GLUE_tasks.glue_data import Task
from GLUE_tasks.labels import LABEL, Labels
from harness.data import Table, read_table

DOMAIN = "domain"
SPLIT_NAMES = ("train", "validation", "dev", "test")  # files of these names are the domain of their folder's name
NATURAL = "natural"  # the mixture with the shares that the data have

Shares = dict[str, float]


def load_folder(data_dir: Path, name: str, text_columns: Sequence[str] | None = None) -> Task:
    """The domains in `data_dir`/<name>/<domain>/{train,validation}.jsonl[.gz]|.parquet.

    Raises:
        ValueError: no such folder, a domain without one of the files, or what make_task refuses.
    """
    folder = Path(data_dir) / name
    if not folder.is_dir():
        raise ValueError(f"--data_dir {data_dir}: there is no folder {name}")
    parts: dict[str, dict[str, Table]] = {"train": {}, "validation": {}}
    for domain in sorted(path for path in folder.iterdir() if path.is_dir()):
        for split, tables in parts.items():
            path = glue_data.find_split(domain, split)
            if path is None:
                raise ValueError(f"{domain} has no {split}.jsonl (or .jsonl.gz, .parquet)")
            tables[domain.name] = read_table(path)
    return make_task(name, parts["train"], parts["validation"], text_columns)


def load_files(
    train_files: Sequence[Path], validation_files: Sequence[Path], text_columns: Sequence[str] | None = None
) -> Task:
    """The domains of csv, json or parquet files, by their `domain` column; a file without that column is one domain.

    The name of such a domain is the file's, or the folder's if the file is called as one of SPLIT_NAMES.

    Raises:
        ValueError: what read_table and make_task refuse.
    """
    name = glue_data.name_of_files(Path(train_files[0]))
    return make_task(name, _by_domain(train_files), _by_domain(validation_files), text_columns)


def _by_domain(files: Iterable[Path]) -> dict[str, Table]:
    parts: dict[str, Table] = {}
    for path in map(Path, files):
        table = read_table(path)
        if DOMAIN in table.columns:
            tables = _split_by_column(table)
        else:
            stem = path.name.partition(".")[0]
            tables = {glue_data.name_of_files(path) if stem in SPLIT_NAMES else stem: table}
        if twice := sorted(parts.keys() & tables.keys()):
            raise ValueError(
                f"{path} and {parts[twice[0]].name} both hold the domain {twice[0]!r}; put them in one file"
            )
        parts |= tables
    return parts


def _split_by_column(table: Table) -> dict[str, Table]:
    names = table.columns[DOMAIN]
    for index, name in enumerate(names):
        if name is None or not str(name).strip():
            raise ValueError(f"{table.where(index)} has no {DOMAIN!r}")
    rows: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        rows.setdefault(str(name), []).append(index)
    return {name: table.select(indices) for name, indices in rows.items()}


def make_task(
    name: str, train: Mapping[str, Table], validation: Mapping[str, Table], text_columns: Sequence[str] | None = None
) -> Task:
    """One task of all domains: training rows have a column `domain`, and validation has a split "_<domain>" for each.

    Args:
        text_columns: the one or two to take; glue_data.choose_columns chooses when None.
    Raises:
        ValueError: fewer than two domains, a domain that only training or only validation has, a file without a label
            or text column or with empty fields, labels of several types, or a label that only one domain has.
    """
    if len(train) < 2:
        raise ValueError(
            f"{', '.join(table.name for table in train.values())}: one domain ({', '.join(train)}); a mixture needs "
            f"two: give several files, or a {DOMAIN!r} column with several names"
        )
    for side, here, other in (("validation", validation, train), ("training", train, validation)):
        if lacking := sorted(other.keys() - here.keys()):
            raise ValueError(f"the {side} data lack the domain {lacking[0]!r}; they have {', '.join(here)}")
    known = {domain: labels.read_labels(table) for domain, table in train.items()}
    columns = glue_data.choose_columns(list(train.values()), list(known.values()), text_columns, (LABEL, DOMAIN))
    for table in (*train.values(), *validation.values()):
        glue_data.check_columns(table, columns.texts)
    if float not in {read.kind for read in known.values()}:
        _check_labels(train, known)
    train = dict(sorted(train.items()))
    return glue_data.make_task(
        name, columns.texts, list(train.values()), {f"_{domain}": validation[domain] for domain in train},
        files=tuple(dict.fromkeys(Path(table.name) for table in (*train.values(), *validation.values()))),
        decisions=glue_data.decisions(name, columns), constants={DOMAIN: [*train, *train]},
    )  # fmt: skip


def _check_labels(train: Mapping[str, Table], known: Mapping[str, Labels]) -> None:
    """Raises ValueError for a label that only one domain has: its scores would be those of another task."""
    labels_of = {domain: set(map(labels.key, read.values)) for domain, read in known.items()}
    for label in sorted(set().union(*labels_of.values())):
        holders = [domain for domain, present in labels_of.items() if label in present]
        if len(holders) == 1:
            one = known[holders[0]].kind
            other = next((domain for domain, read in known.items() if read.kind is not one), None)
            if other is not None:
                raise ValueError(
                    f"a label is {labels.KINDS[one]} in {train[holders[0]].name} and {labels.KINDS[known[other].kind]} "
                    f"in {train[other].name}; give all labels one type"
                )
            raise ValueError(
                f"label {label} occurs only in the domain {holders[0]!r}; scores of domains with different labels "
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
    # rounded, so that 0.3 / 3 equals a share given as 0.1
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
    """Whole numbers of rows that sum to `total`: the largest remainders are rounded up, of equal ones the first."""
    exact = {domain: share * total for domain, share in shares.items()}
    counts = {domain: math.floor(value + 1e-9) for domain, value in exact.items()}
    by_remainder = sorted(shares, key=lambda domain: counts[domain] - exact[domain])
    for domain in by_remainder[: total - sum(counts.values())]:
        counts[domain] += 1
    return counts


def largest_total(available: Mapping[str, int], shares: Shares) -> int:
    """The most rows that a mixture of these shares can have."""
    return min(math.floor(available[domain] / share + 1e-9) for domain, share in shares.items() if share > 0)


def mixture_shares(mixture: str, domains: Iterable[str], total: int | None) -> tuple[Shares, int]:
    """A mixture's share of each domain, and how many training rows it has.

    Args:
        mixture: "movies=0.7,tweets=0.1", or NATURAL.
        domains: domain of every training row.
        total: number of rows; None is as many as possible.
    Raises:
        ValueError: the data lack a domain, or a domain has too few rows.
    """
    available = count_rows(domains)
    if mixture == NATURAL:
        shares = natural_shares(available)
    else:
        shares = complete_shares(parse_shares(mixture.split(",")), available)
    total = total or largest_total(available, shares)
    check_rows(available, shares, total)
    return shares, total


def check_rows(available: Mapping[str, int], shares: Shares, total: int) -> None:
    """Refuse a mixture for which a domain has too few rows.

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
    """Indices of random rows of every domain, as many as `counts` says.

    For one seed a domain's rows are nested: those of a smaller count are among those of a larger one.
    """
    names = np.asarray(domains)
    chosen: list[int] = []
    for domain, count in counts.items():
        rows = np.flatnonzero(names == domain)
        chosen += rows[np.random.default_rng(seed).permutation(len(rows))[:count]].tolist()
    return chosen


def evaluated_rows(task: Task, balanced: bool, limit: int | None) -> Task:
    """The task with the first `limit` validation rows of each domain at most, as many of each label if `balanced`.

    Raises:
        ValueError: `balanced` of a regression, or a domain's validation rows lack a label.
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
    """Indices, in order, of the first rows of each label, as many of each as the rarest label has.

    Chance on these rows is 1 / number of labels.

    Args:
        limit: most rows in all, though at least one of each label; None is no limit.
    """
    labels = np.asarray(labels)
    known, counts = np.unique(labels, return_counts=True)
    each = int(counts.min()) if limit is None else min(int(counts.min()), max(1, limit // len(known)))
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:each] for label in known])).tolist()
