import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from scipy import stats
from transformers import AutoTokenizer

from GLUE_tasks import classification, glue_data
from GLUE_tasks.glue_data import SCORES, chance_level, standard_error, subset_indices
from GLUE_tasks.glue_metric import GlueMetric


@pytest.mark.parametrize(
    ("spelling", "name"), [("QNLI", "qnli"), ("SST-2", "sst2"), ("STS-B", "stsb"), ("sst_2", "sst2"), ("CoLA", "cola")]
)
def test_task_names_in_any_spelling(spelling: str, name: str):
    assert glue_data.canonical_name(spelling) == name


def test_all_nine_glue_tasks_have_columns():
    nine = {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}
    assert set(glue_data.HUB_TASKS) == nine <= set(glue_data.COLUMNS)


def test_a_task_that_the_hub_lacks_needs_a_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(glue_data.COLUMNS, "parcels", ("title", "body"))
    monkeypatch.setattr(glue_data, "hub_tables", lambda *_: pytest.fail("the hub was asked"))
    said = (
        r"^--task_name parcels: nyu-mll/glue on the hub has no such data set, only cola, .*, wnli; "
        r"give --data_dir DIR with glue/parcels/train\.jsonl and validation\.jsonl$"
    )
    with pytest.raises(ValueError, match=said):
        glue_data.load_glue("parcels", None)
    with pytest.raises(ValueError, match=r"has no glue/parcels/train\.jsonl \(or \.jsonl\.gz, \.parquet\)$"):
        glue_data.load_glue("parcels", tmp_path)
    with pytest.raises(ValueError, match=r"; leave --data_dir out to load from the hub$"):
        glue_data.load_glue("rte", tmp_path)


def test_metrics_by_hand():
    predictions, labels = np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])
    assert SCORES["accuracy"](predictions, labels) == 0.75
    assert SCORES["f1"](predictions, labels) == pytest.approx(2 / 3)  # precision 1/2, recall 1
    # (tp tn - fp fn) / sqrt((tp+fp)(tp+fn)(tn+fp)(tn+fn)) = 2 / sqrt(2 * 1 * 3 * 2)
    assert SCORES["matthews_correlation"](predictions, labels) == pytest.approx(2 / np.sqrt(12))


def test_correlations_equal_scipys():
    draw = np.random.default_rng(0)
    predictions, labels = draw.normal(size=20), draw.normal(size=20)
    assert SCORES["pearson"](predictions, labels) == pytest.approx(stats.pearsonr(predictions, labels)[0])
    assert SCORES["spearmanr"](predictions, labels) == pytest.approx(stats.spearmanr(predictions, labels)[0])


@pytest.mark.parametrize("metric", ["matthews_correlation", "pearson", "spearmanr", "f1"])
def test_a_constant_prediction_scores_0(metric: str):
    assert SCORES[metric](np.zeros(4), np.array([0, 1, 1, 1])) == 0.0


@pytest.mark.parametrize("metric", ["matthews_correlation", "pearson", "spearmanr"])
def test_constant_labels_correlate_with_nothing(metric: str):
    """As in a resample of the bootstrap."""
    assert SCORES[metric](np.array([0, 1, 1, 1]), np.ones(4)) == 0.0


def test_metric_module_computes_what_its_name_lists_without_a_download():
    found = GlueMetric(config_name="accuracy,f1").compute(predictions=[1, 0, 1, 1], references=[1, 0, 0, 1])
    assert found == {"accuracy": 0.75, "f1": pytest.approx(0.8)}
    found = GlueMetric(config_name="pearson,spearmanr").compute(predictions=[0.5, 1.5], references=[1.0, 3.0])
    assert found == {"pearson": pytest.approx(1), "spearmanr": pytest.approx(1)}


def test_chance_is_the_best_constant_answer():
    labels = np.array([0, 1, 1, 1])
    assert chance_level("accuracy", labels) == 0.75
    assert chance_level("f1", labels) == pytest.approx(6 / 7)
    assert chance_level("matthews_correlation", labels) == chance_level("pearson", labels) == 0


def test_a_level_by_hand():
    """A quarter of the training data; three of four answers, all of which are 1, are right."""
    predictions, labels = np.array([1, 1, 1, 1]), np.array([0, 1, 1, 1])
    level = classification.data_share_level({"validation_split_percentage": 25}, "accuracy", predictions, labels)
    assert level == {
        "level": 25, "difficulty": 0.75, "metric": "accuracy", "score": 0.75, "chance": 0.75, "num_examples": 4,
        "stderr": pytest.approx(np.sqrt(0.75 * 0.25 / 4)), "constant_prediction": True,
    }  # fmt: skip
    assert not classification.level_of("accuracy", labels, predictions)["constant_prediction"]


def test_standard_error_of_accuracy_by_hand_and_of_correlation_against_theory():
    labels = np.array([1, 1, 1, 0] * 25)
    assert standard_error("accuracy", np.ones(100), labels) == pytest.approx(np.sqrt(0.75 * 0.25 / 100))
    draw = np.random.default_rng(0)
    labels = draw.normal(size=400)
    predictions = labels + draw.normal(size=400)
    correlation = np.corrcoef(labels, predictions)[0, 1]
    theory = (1 - correlation**2) / np.sqrt(399)  # of normal variables; the bootstrap of 200 is good to about 5 %
    assert standard_error("pearson", predictions, labels) == pytest.approx(theory, rel=0.2)


def test_subsets_are_random_seeded_and_nested():
    tenth, quarter = (subset_indices(200, share, seed=1) for share in (10, 25))
    assert len(tenth) == 20 and len(quarter) == 50 and quarter[:20] == tenth
    assert tenth != subset_indices(200, 10, seed=2)
    assert tenth == subset_indices(200, 10, seed=1)
    assert sorted(subset_indices(200, 100, seed=1)) == list(range(200))


def test_prefix_limit_and_at_least_one_row():
    assert subset_indices(200, 2, seed=1, how="prefix") == [0, 1, 2, 3]
    assert len(subset_indices(200, 50, seed=1, limit=80)) == 40
    assert len(subset_indices(10, 0.01, seed=1)) == 1


def test_a_share_is_rounded_and_a_limit_beyond_the_rows_limits_nothing():
    """10 % of 19 rows are 1.9; 50 % of 200 rows are 100, whatever --max_train_samples above 200."""
    assert len(subset_indices(19, 10, seed=1)) == 2
    assert subset_indices(200, 50, seed=1, limit=300) == subset_indices(200, 50, seed=1)


def write_split(folder: Path, split: str, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{split}.jsonl.gz", "wt") as stream:
        stream.write("\n".join(map(json.dumps, rows)))


def test_mnli_has_two_validation_splits_and_goes_on_without_the_second(tmp_path: Path):
    rows = [{"premise": "a", "hypothesis": "b", "label": label, "idx": label} for label in (0, 1, 2)]
    for split in ("train", "validation_matched"):
        write_split(tmp_path / "glue" / "mnli", split, rows)
    assert set(glue_data.load_glue("mnli", tmp_path).validation) == {""}
    write_split(tmp_path / "glue" / "mnli", "validation_mismatched", rows[:2])
    task = glue_data.load_glue("mnli", tmp_path)
    assert {key: len(split) for key, split in task.validation.items()} == {"": 3, "_mm": 2}
    assert task.label_names == ("entailment", "neutral", "contradiction") and task.metrics == ("accuracy",)


def test_stsb_is_a_regression(tmp_path: Path):
    for split in ("train", "validation"):
        write_split(tmp_path / "glue" / "stsb", split, [{"sentence1": "a", "sentence2": "b", "label": 2.5}] * 2)
    task = glue_data.load_glue("stsb", tmp_path)
    assert task.is_regression and task.metrics == ("pearson", "spearmanr") and task.train["label"][:] == [2.5, 2.5]


GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")


def test_texts_of_a_pair_are_in_run_glues_order():
    """transformers, run_glue.py, task_to_keys: models fine-tuned elsewhere know the texts of a task in this order."""
    assert glue_data.COLUMNS.items() >= {
        "cola": ("sentence", None), "mnli": ("premise", "hypothesis"), "mrpc": ("sentence1", "sentence2"),
        "qnli": ("question", "sentence"), "qqp": ("question1", "question2"), "rte": ("sentence1", "sentence2"),
        "sst2": ("sentence", None), "stsb": ("sentence1", "sentence2"), "wnli": ("sentence1", "sentence2"),
    }.items()  # fmt: skip


def test_metrics_are_glues():
    """Wang et al. 2018, table 1; the first is the one of figures."""
    of_glue = {name: own for name, own in glue_data.METRICS.items() if name in GLUE}
    assert of_glue == {
        "cola": ("matthews_correlation",), "mrpc": ("accuracy", "f1"), "qqp": ("accuracy", "f1"),
        "stsb": ("pearson", "spearmanr"),
    }  # fmt: skip


def test_the_first_column_is_the_first_text(tiny_encoder: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    rows = Dataset.from_dict({"b": ["the film"], "a": ["good"], "label": [1]})
    found = glue_data.tokenize(rows, ("a", "b"), tokenizer, max_length=16)
    assert tokenizer.decode(found["input_ids"][0]) == "[CLS] good [SEP] the film [SEP]"


def test_classes_that_training_lacks_leave_no_gap(tmp_path: Path):
    """Neutral and contradiction alone: class numbers 0 and 1, as the head has two outputs."""
    rows = [{"premise": "a", "hypothesis": "b", "label": label} for label in (2, 1)]
    for split in ("train", "validation_matched"):
        write_split(tmp_path / "glue" / "mnli", split, rows)
    task = glue_data.load_glue("mnli", tmp_path)
    assert task.label_names == ("neutral", "contradiction") and task.train["label"][:] == [1, 0]


def test_text_labels_are_numbered_in_sorted_order(tmp_path: Path):
    for name in ("train", "validation"):
        (tmp_path / f"{name}.csv").write_text("text,label\ngood,pos\nbad,neg\n")
    task = glue_data.load_files(tmp_path / "train.csv", tmp_path / "validation.csv")
    assert task.label_names == ("neg", "pos") and task.train["label"][:] == [1, 0]
    assert task.columns == ("text", None)


def test_two_text_columns_make_a_pair_and_sentence1_goes_first(tmp_path: Path):
    for name in ("train", "validation"):
        (tmp_path / f"{name}.csv").write_text("note,sentence1,sentence2,label\nx,a,b,0\ny,c,d,1\n")
    assert glue_data.load_files(tmp_path / "train.csv", tmp_path / "validation.csv").columns == (
        "sentence1",
        "sentence2",
    )


def test_columns_that_hold_no_text_are_passed_over(tmp_path: Path):
    for name in ("train", "validation"):
        rows = [{"tags": ["a"], "idx": label, "text": "good", "label": label} for label in (0, 1)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert glue_data.load_files(tmp_path / "train.jsonl", tmp_path / "validation.jsonl").columns == ("text", None)


def test_tokens_are_cut_not_padded(tiny_encoder: Path, sentence_files: tuple[Path, Path]):
    task = glue_data.load_files(*sentence_files)
    rows = glue_data.tokenize(task.train, task.columns, AutoTokenizer.from_pretrained(tiny_encoder), max_length=6)
    words = [len(sentence.split()) for sentence in task.train["sentence"][:]]
    assert rows["length"][:] == [min(count + 2, 6) for count in words]  # [CLS] and [SEP]
    assert [len(ids) for ids in rows["input_ids"][:]] == rows["length"][:]


@pytest.mark.network
def test_the_hub_has_every_glue_task():
    for name in glue_data.HUB_TASKS:
        task = glue_data.load_glue(name, None)
        assert len(task.train) > 600 and task.columns[0] in task.train.column_names
