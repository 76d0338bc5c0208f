"""GLUE_tasks/domain_data.py: reading domains, and mixtures of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from GLUE_tasks import domain_data
from GLUE_tasks.domain_data import DOMAIN


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def rows(count: int, text: str = "a film", labels: tuple = (0, 1)) -> list[dict]:
    return [{"sentence": f"{text} {number}", "label": labels[number % len(labels)]} for number in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A --data_dir with two domains of 6 and 4 training rows, 3 and 2 validation rows."""
    for domain, counts in (("movies", (6, 3)), ("tweets", (4, 2))):
        for split, count in zip(("train", "validation"), counts, strict=True):
            write(tmp_path / "mood" / domain / f"{split}.jsonl", rows(count, domain))
    return tmp_path


def counts(task: domain_data.Task) -> tuple[dict, dict]:
    return (
        domain_data.count_rows(task.train[DOMAIN][:]),
        {suffix: len(split) for suffix, split in task.validation.items()},
    )


EXPECTED = {"movies": 6, "tweets": 4}, {"_movies": 3, "_tweets": 2}


def test_a_folder_a_file_for_each_domain_and_a_column_give_the_same_task(folder: Path, tmp_path: Path):
    of_folder = domain_data.load_folder(folder, "mood")
    parts = {split: [folder / "mood" / domain / f"{split}.jsonl" for domain in ("movies", "tweets")]
             for split in ("train", "validation")}  # fmt: skip
    of_files = domain_data.load_files(parts["train"], parts["validation"])
    columns = {}
    for split, paths in parts.items():
        mixed = [{**json.loads(line), DOMAIN: path.parent.name} for path in paths for line in path.open()]
        columns[split] = [write(tmp_path / "one" / f"{split}.jsonl", mixed[::-1])]
    of_column = domain_data.load_files(columns["train"], columns["validation"])
    for task in (of_folder, of_files, of_column):
        assert counts(task) == EXPECTED and task.columns == ("sentence", None) and task.label_names == ("0", "1")
        assert all(text.startswith(name) for text, name in zip(task.train["sentence"], task.train[DOMAIN], strict=True))
    assert len(of_folder.files) == 4 and len(of_column.files) == 2


def test_a_file_is_the_domain_that_its_name_says(folder: Path, tmp_path: Path):
    paths = [write(tmp_path / "flat" / f"{name}.jsonl", rows(4)) for name in ("movies", "tweets")]
    assert counts(domain_data.load_files(paths, paths))[0] == {"movies": 4, "tweets": 4}


def test_float_labels_are_a_regression(tmp_path: Path):
    paths = [write(tmp_path / f"{name}.jsonl", rows(4, labels=(0.5, 1.5))) for name in ("movies", "tweets")]
    assert domain_data.load_files(paths, paths).is_regression


def test_one_domain_only(tmp_path: Path):
    path = write(tmp_path / "movies.jsonl", rows(4))
    with pytest.raises(ValueError, match=r"movies.jsonl: one domain \(movies\); a mixture needs two"):
        domain_data.load_files([path], [path])


def test_domain_that_one_side_lacks(tmp_path: Path):
    movies, tweets, news = (write(tmp_path / f"{name}.jsonl", rows(4)) for name in ("movies", "tweets", "news"))
    with pytest.raises(ValueError, match="the validation data lack the domain 'tweets'; they have movies"):
        domain_data.load_files([movies, tweets], [movies])
    with pytest.raises(ValueError, match="the training data lack the domain 'news'; they have movies, tweets"):
        domain_data.load_files([movies, tweets], [movies, tweets, news])


def test_domain_folder_without_a_split(folder: Path):
    (folder / "mood" / "tweets" / "validation.jsonl").unlink()
    with pytest.raises(ValueError, match=r"tweets has no validation.jsonl \(or .jsonl.gz, .parquet\)"):
        domain_data.load_folder(folder, "mood")
    with pytest.raises(ValueError, match="there is no folder moods"):
        domain_data.load_folder(folder, "moods")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": None}, "line 2 has no 'label'"),
        ({"sentence": None}, "line 2 has no 'sentence'"),
        ({DOMAIN: ""}, f"line 2 has no {DOMAIN!r}"),
    ],
)
def test_row_without_a_field(tmp_path: Path, changed: dict, message: str):
    good = [{**row, DOMAIN: name} for name in ("movies", "tweets") for row in rows(4)]
    bad = [{**row, **(changed if place == 1 else {})} for place, row in enumerate(good)]
    train, validation = write(tmp_path / "a.jsonl", bad), write(tmp_path / "b.jsonl", good)
    with pytest.raises(ValueError, match=f"a.jsonl, {message}"):
        domain_data.load_files([train], [validation])


def test_file_without_a_column(tmp_path: Path):
    movies = write(tmp_path / "movies.jsonl", rows(4))
    tweets = write(tmp_path / "tweets.jsonl", [{"sentence": "a film"}])
    with pytest.raises(ValueError, match=r"tweets.jsonl has no column 'label'; it has sentence"):
        domain_data.load_files([movies, tweets], [movies, tweets])
    other = write(tmp_path / "other.jsonl", [{"text": "a film", "label": 1}])
    with pytest.raises(ValueError, match=r"other.jsonl has no column 'sentence'; it has text, label"):
        domain_data.load_files([movies, other], [movies, other])


def test_the_domain_is_no_text_to_learn_from(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{DOMAIN: name, "label": label} for name in "ab" for label in (0, 1)])
    with pytest.raises(ValueError, match="has no text column beside 'label'"):
        domain_data.load_files([path], [path])


def test_the_same_domain_twice(folder: Path):
    path = folder / "mood" / "movies" / "train.jsonl"
    with pytest.raises(ValueError, match="both hold the domain 'movies'; put them in one file"):
        domain_data.load_files([path, path], [path])


def test_labels_of_one_domain_only(tmp_path: Path):
    movies = write(tmp_path / "movies.jsonl", rows(4))
    tweets = write(tmp_path / "tweets.jsonl", rows(6, labels=(0, 1, 2)))
    with pytest.raises(ValueError, match="label 2 occurs only in the domain 'tweets'"):
        domain_data.load_files([movies, tweets], [movies, tweets])
    words = write(tmp_path / "words.jsonl", rows(4, labels=("good", "bad")))
    with pytest.raises(ValueError, match=r"a label is a whole number in .*movies.jsonl and a text in .*words.jsonl"):
        domain_data.load_files([movies, words], [movies, words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["movies"], "'movies' is no DOMAIN=SHARE with a share in [0, 1]"),
        (["movies=much"], "'movies=much' is no DOMAIN=SHARE"),
        (["movies=1.2"], "'movies=1.2' is no DOMAIN=SHARE"),
        (["movies=nan"], "'movies=nan' is no DOMAIN=SHARE"),
        (["=0.5"], "'=0.5' is no DOMAIN=SHARE"),
        (["movies=0.2", "movies=0.3"], "'movies' is named twice"),
        (["movies=0.7", "tweets=0.5"], "movies=0.7 tweets=0.5: the shares sum to 1.2, above 1"),
    ],
)
def test_mistaken_shares(words: list[str], message: str):
    with pytest.raises(ValueError) as raised:
        domain_data.parse_shares(words)
    assert message in str(raised.value)


def test_domains_not_named_divide_the_rest_equally():
    shares = domain_data.complete_shares({"tweets": 0.7}, ["movies", "news", "tweets"])
    assert shares == {"movies": 0.15, "news": 0.15, "tweets": 0.7}
    assert domain_data.complete_shares({"a": 0.7}, "abcd")["b"] == 0.1, "the share of a mixture that says 0.1"
    assert domain_data.complete_shares({"movies": 0.5, "news": 0.5}, ["movies", "news", "tweets"])["tweets"] == 0


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"radio": 0.5}, "'radio' is no domain of the data; they have movies, tweets"),
        ({"movies": 0.5, "tweets": 0.2}, "the shares of all domains sum to 0.7, not 1"),
        ({"movies": 1.0}, "all rows would come from 'movies'; that is no mixture"),
    ],
)
def test_shares_that_make_no_mixture(named: dict, message: str):
    with pytest.raises(ValueError, match=message):
        domain_data.complete_shares(named, ["movies", "tweets"])


def test_rows_are_whole_and_sum_to_the_total():
    assert domain_data.rows_per_domain({"a": 0.7, "b": 0.2, "c": 0.1}, 10) == {"a": 7, "b": 2, "c": 1}
    thirds = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    assert domain_data.rows_per_domain(thirds, 10) == {"a": 4, "b": 3, "c": 3}
    assert domain_data.rows_per_domain({"a": 0.55, "b": 0.45}, 10) == {"a": 6, "b": 4}
    for total in range(1, 40):
        assert sum(domain_data.rows_per_domain({"a": 0.61, "b": 0.28, "c": 0.11}, total).values()) == total


def test_largest_mixture_and_too_few_rows():
    available, shares = {"movies": 700, "tweets": 40}, {"movies": 0.9, "tweets": 0.1}
    assert domain_data.largest_total(available, shares) == 400, "tweets: 40 / 0.1; movies would do for 777"
    assert domain_data.natural_shares({"movies": 30, "tweets": 10}) == {"movies": 0.75, "tweets": 0.25}
    assert domain_data.largest_total({"movies": 700, "tweets": 7}, {"movies": 0.93, "tweets": 0.07}) == 100, "7 / 0.07"
    domain_data.check_rows(available, shares, 400)
    with pytest.raises(ValueError, match=r"500 rows with tweets=0\.1 need 50 of 'tweets', which has 40; lower"):
        domain_data.check_rows(available, shares, 500)


def test_a_domains_rows_as_minority_are_among_those_as_majority():
    domains = ["movies", "tweets"] * 50
    few = domain_data.mixture_rows(domains, {"movies": 30, "tweets": 5}, seed=1)
    many = domain_data.mixture_rows(domains, {"movies": 5, "tweets": 30}, seed=1)
    assert len(few) == len(set(few)) == 35 and domain_data.count_rows(domains[i] for i in few)["movies"] == 30
    assert {i for i in few if i % 2} < {i for i in many if i % 2}
    assert {i for i in many if not i % 2} < {i for i in few if not i % 2}
    assert domain_data.mixture_rows(domains, {"movies": 30, "tweets": 5}, seed=2) != few
    assert domain_data.mixture_rows(domains, {"movies": 0, "tweets": 2}, seed=1)[0] % 2


def test_balanced_rows_have_the_same_chance_everywhere(folder: Path):
    labels = [1, 1, 0, 1, 0, 1, 1]
    assert domain_data.balanced_rows(labels) == [0, 1, 2, 4]
    assert domain_data.balanced_rows(labels, limit=3) == [0, 2]
    assert domain_data.balanced_rows(labels, limit=1) == [0, 2], "one of each label at least"
    task = domain_data.load_folder(folder, "mood")
    balanced = domain_data.evaluated_rows(task, True, None)
    assert all(np.mean(split["label"][:]) == 0.5 for split in balanced.validation.values())
    capped = domain_data.evaluated_rows(task, False, 2)
    assert [len(split) for split in capped.validation.values()] == [2, 2]
    assert len(task.validation["_movies"]) == 3, "the task that was given stays as it is"


def test_balanced_rows_are_limited_too(folder: Path):
    """Six rows of two labels: the first of each within --max_eval_samples 2 or 3."""
    write(folder / "mood" / "movies" / "validation.jsonl", rows(6))
    task = domain_data.load_folder(folder, "mood")
    for limit, left in ((2, 2), (3, 2), (4, 4)):
        movies = domain_data.evaluated_rows(task, True, limit).validation["_movies"]
        assert movies["sentence"][:] == [f"a film {number}" for number in range(left)]


def test_what_cannot_be_balanced(folder: Path, tmp_path: Path):
    write(folder / "mood" / "tweets" / "validation.jsonl", rows(3, labels=(1,)))
    task = domain_data.load_folder(folder, "mood")
    with pytest.raises(ValueError, match="--balanced_validation: the domain 'tweets' has no row labelled '0'"):
        domain_data.evaluated_rows(task, True, None)
    paths = [write(tmp_path / f"{name}.jsonl", rows(4, labels=(0.5, 1.5))) for name in ("movies", "tweets")]
    with pytest.raises(ValueError, match="the domain 'movies' has numbers"):
        domain_data.evaluated_rows(domain_data.load_files(paths, paths), True, None)
