"""Domains_prune_oneshot.py end to end on the tiny encoder, and its mistakes."""

import json
import random
import shlex
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from conftest import WORDS
from result_keys import assert_keys_are_told

from analysis.contrasts import domain_table, minority_table
from GLUE_tasks import Domains_prune_oneshot, pretrained
from GLUE_tasks import options as script_options
from harness import run_folder

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

DOMAINS = ("movies", "news", "tweets")


@pytest.fixture(scope="module")
def domain_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A --data_dir with the task "mood" in three domains of 40 training and 11 validation rows."""
    root, draw = tmp_path_factory.mktemp("domains"), random.Random(0)
    for domain in DOMAINS:
        for split, count in (("train", 40), ("validation", 11)):
            path = root / "mood" / domain / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = []
            for number in range(count):
                opinion = draw.choice(WORDS[:3] if number % 2 else WORDS[3:6])
                rows.append({"sentence": " ".join([*draw.choices(WORDS[6:], k=4), opinion]), "label": number % 2})
            path.write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture
def options(tiny_encoder: Path, domain_dir: Path) -> list[str]:
    return [
        "--model_name_or_path", str(tiny_encoder), "--data_dir", str(domain_dir), "--task_name", "mood",
        "--max_length", "16", "--per_device_train_batch_size", "8", "--learning_rate", "1e-3",
        "--num_train_epochs", "1", "--noembed", "--mixed_precision", "no", "--seed", "41",
    ]  # fmt: skip


def run(*argv: object) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Domains_prune_oneshot.main([str(word) for word in argv])


SWEEP = ["--mixture", "movies=0.8", "tweets=0.8,news=0.1", "--max_train_samples", "40", "--balanced_validation",
         "--sparse_method", "dense_transfer", "sparse_transfer", "--sparsity", "0.5"]  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny_encoder, domain_dir) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    failed = run(
        "--model_name_or_path", tiny_encoder, "--data_dir", domain_dir, "--task_name", "mood", "--max_length", 16,
        "--per_device_train_batch_size", 8, "--learning_rate", "1e-3", "--num_train_epochs", 1, "--noembed",
        "--mixed_precision", "no", "--seed", 41, *SWEEP, "--output_dir", root / "{mixture}" / "{transfer}",
    )  # fmt: skip
    assert failed == 0
    return root


def test_every_domain_is_a_level_with_its_share_and_rows(swept: Path):
    assert_keys_are_told(swept)
    rows = run_folder.read_runs(swept)
    assert len(rows) == 2 * 2 * 3 and {row["num_train_examples"] for row in rows} == {40}
    found = {(row["mixture"], row["level"]): (row["share"], row["train_rows"], row["difficulty"]) for row in rows}
    assert found == {
        ("movies=0.8", "movies"): (0.8, 32, 1 - 0.8), ("movies=0.8", "news"): (0.1, 4, 0.9),
        ("movies=0.8", "tweets"): (0.1, 4, 0.9), ("tweets=0.8,news=0.1", "tweets"): (0.8, 32, 1 - 0.8),
        ("tweets=0.8,news=0.1", "news"): (0.1, 4, 0.9), ("tweets=0.8,news=0.1", "movies"): (0.1, 4, 0.9),
    }  # fmt: skip
    run_folder.check_runs(rows)


def test_scores_are_those_of_the_stored_items_on_balanced_rows(swept: Path):
    for row in run_folder.read_runs(swept):
        items = run_folder.read_items(row["folder"])
        labels = items[f"label_{row['level']}"]
        assert np.mean(items[f"prediction_{row['level']}"] == labels) == row["score"]
        assert row["num_examples"] == len(labels) == 10 and row["chance"] == labels.mean() == 0.5
        assert row[f"eval_accuracy_{row['level']}"] == row["score"]


def test_the_sweep_gives_figures_and_the_cost_of_being_the_minority(swept: Path):

    rows = run_folder.read_runs(swept)
    assert len(domain_table(rows)) == 12
    assert {row["level"]: (row["minority_share"], row["majority_share"]) for row in minority_table(rows)} == {
        "movies": (0.1, 0.8), "tweets": (0.1, 0.8), "mean of the domains": (None, None)
    }  # fmt: skip


def test_natural_mixture_is_the_default_and_takes_all_rows(options, tmp_path: Path):
    assert run(*options, "--sparse_method", "dense_transfer", "--output_dir", tmp_path) == 0
    rows = run_folder.read_runs(tmp_path)
    assert {(row["mixture"], row["train_rows"], row["num_train_examples"]) for row in rows} == {("natural", 40, 120)}
    assert {row["num_examples"] for row in rows} == {11}


def test_a_share_of_the_data_keeps_the_mixture(options, tmp_path: Path):
    assert run(*options, "--mixture", "movies=0.8", "--validation_split_percentage", 50, "--sparse_method",
               "dense_transfer", "--output_dir", tmp_path) == 0  # fmt: skip
    rows = run_folder.read_runs(tmp_path)
    assert rows[0]["num_train_examples"] == 25, "40 movies are 0.8 of 50 rows; half of these"
    assert {row["level"]: row["train_rows"] for row in rows} == {"movies": 20, "news": 3, "tweets": 2}


def test_rows_of_a_mixture_are_drawn_by_seed_and_their_number_is_rounded(options):
    """12.5 % of 45 rows are 5.6: six, of which 4.8 are movies: five."""
    argv = [*options, "--mixture", "movies=0.8", "--max_train_samples", "45", "--output_dir", "x"]
    kind = Domains_prune_oneshot.task_kind(script_options.parse(Domains_prune_oneshot.make_parser(), argv))
    task = kind.load(kind.tasks[0])
    one, again, other = (task.choose_rows(120, {"seed": s, "validation_split_percentage": 12.5}) for s in (1, 1, 2))
    assert one == again != other and len(one) == len(other) == 6
    assert [sum(row < 40 for row in rows) for rows in (one, other)] == [5, 5]


def test_second_call_and_listed_cells_compute_nothing(swept, options, monkeypatch: pytest.MonkeyPatch, capsys):
    def load_pretrained(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(pretrained, "load_pretrained", load_pretrained)
    out = ["--output_dir", swept / "{mixture}" / "{transfer}"]
    assert run(*options, *SWEEP, *out) == 0
    capsys.readouterr()
    assert run(*options, *SWEEP, *out, "--list_cells") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert run(*shlex.split(lines[-1])[2:]) == 0
    assert "1 of 1 runs are complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mixture", "radio=0.5"], "'radio' is no domain of the data; they have movies, news, tweets"),
        (["--mixture", "movies=0.8,tweets=0.4"], "movies=0.8 tweets=0.4: the shares sum to 1.2, above 1"),
        (["--mixture", "movies"], "'movies' is no DOMAIN=SHARE with a share in [0, 1]"),
        (["--mixture", "movies=0.8", "--max_train_samples", "60"],
         "60 rows with movies=0.8 need 48 of 'movies', which has 40; lower --max_train_samples or the share"),
        (["--mixture", "movies=0.8", "tweets=0.8"], "several mixtures need --max_train_samples"),
        (["--subset", "prefix"], "--subset prefix: a mixture is always a random sample"),
        (["--task_name", "moods"], "there is no folder moods"),
        (["--train_file", "a.csv"], "--train_file and --validation_file go together"),
        (["--train_file", "a.csv", "--validation_file", "a.csv"], "give either --data_dir and --task_name, or"),
        (["--data_dir", "nowhere"], "--data_dir nowhere is no folder"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_a_model_loads(options, words, message, tmp_path: Path, capsys, monkeypatch):
    def load_pretrained(*_):
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr(pretrained, "load_pretrained", load_pretrained)
    with pytest.raises(SystemExit) as stopped:
        run(*options, "--output_dir", tmp_path / "{mixture}", *words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
