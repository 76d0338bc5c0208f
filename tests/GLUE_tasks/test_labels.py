"""GLUE_tasks/labels.py and the columns that texts are in; what is refused stands in broken_data.py."""

import json
import logging
from pathlib import Path

import pytest
from transformers import BertConfig

from GLUE_tasks import glue_data, labels, pretrained
from harness.data import Table, read_table

NEGATIVE_FIRST = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}


def table(values: list, typed: bool = True, **columns: list) -> Table:
    return Table("a", "row", range(1, len(values) + 1), {"label": values, **columns}, typed)


@pytest.mark.parametrize(
    ("values", "typed", "kind", "read"),
    [
        (["1", "0", "01"], False, int, [1, 0, 1]),
        (["1", "0.5", "1e-3"], False, float, [1.0, 0.5, 0.001]),
        (["True", "false"], False, bool, [True, False]),
        (["NA", "EU"], False, str, ["NA", "EU"]),
        (["1", "2", "3+"], False, str, ["1", "2", "3+"]),
        ([1, 2.5], True, float, [1.0, 2.5]),
        ([1, 0], True, int, [1, 0]),
        (["1", " 0 "], True, str, ["1", "0"]),
        ([True, False], True, bool, [True, False]),
    ],
)
def test_kinds_of_labels(values: list, typed: bool, kind: type, read: list):
    found = labels.read_labels(table(values, typed))
    assert found.kind is kind and found.values == read


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_number_and_its_text_are_one_label_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for train, validation in ((["0", "1"], [0, 1.0]), ([10, 9], ["9", "10"]), ([1, 0], [1.0, 0.0])):
        paths = [
            write(tmp_path / name, [{"sentence": f"film {n}", "label": label} for n, label in enumerate(some)])
            for name, some in (("train.jsonl", train), ("validation.jsonl", validation))
        ]
        task = glue_data.load_files(*paths)
        assert task.label_names == tuple(sorted((labels.key(label) for label in train), key=int))
        numbers = [task.label_names.index(labels.key(label)) for label in validation]
        assert task.validation[""]["label"][:] == numbers
    assert f"{paths[1]}, line 1: 'label' is 1.0, a number, where training has a whole number" in caplog.text


def test_the_models_own_names_decide_the_order_of_the_outputs():
    config = BertConfig(**NEGATIVE_FIRST)
    assert pretrained.head_order(config, ("positive", "negative")) == [1, 0]
    assert pretrained.head_order(config, ("negative", "positive")) == [0, 1]
    assert pretrained.head_order(config, ("0", "1")) is None and pretrained.head_order(BertConfig(), ("0", "1")) is None
    assert pretrained.head_order(config, ("negative", "positive", "neutral")) is None
    mnli = BertConfig(id2label={0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"})
    assert pretrained.head_order(mnli, labels.GLUE_CLASSES["mnli"]) == [2, 1, 0]
    assert pretrained.head_order(BertConfig(id2label={0: "not entailment", 1: "Entailment"}),
                             labels.GLUE_CLASSES["rte"]) == [1, 0]  # fmt: skip


def test_names_that_contradict_each_other_are_refused():
    config = BertConfig(id2label={0: "neg", 1: "pos"}, label2id={"pos": 0, "neg": 1})
    with pytest.raises(ValueError, match=r"id2label .* and label2id .* contradict each other"):
        pretrained.head_order(config, ("neg", "pos"))


def test_a_head_is_called_by_the_datas_classes_and_trained_by_their_loss():
    config = BertConfig(**NEGATIVE_FIRST, problem_type="multi_label_classification")
    pretrained.name_head(config, ("pos", "neg"), [1, 0])
    assert config.id2label == {0: "neg", 1: "pos"} and config.label2id == {"pos": 1, "neg": 0}
    assert config.problem_type == "single_label_classification"
    config = BertConfig(num_labels=1)
    pretrained.name_head(config, (), None)
    assert config.problem_type == "regression" and config.num_labels == 1


def test_glues_classes_have_the_hubs_numbers():
    """Features of nyu-mll/glue: models' outputs are matched with the names, labels in numbers with their order."""
    assert labels.GLUE_CLASSES == {
        "cola": ("unacceptable", "acceptable"), "sst2": ("negative", "positive"),
        "mrpc": ("not_equivalent", "equivalent"), "qqp": ("not_duplicate", "duplicate"),
        "mnli": ("entailment", "neutral", "contradiction"), "qnli": ("entailment", "not_entailment"),
        "rte": ("entailment", "not_entailment"), "wnli": ("not_entailment", "entailment"),
    }  # fmt: skip


@pytest.mark.parametrize("names", [(0, 1), ("not_equivalent", "equivalent"), ("Not Equivalent", "EQUIVALENT")])
def test_glues_classes_are_known_by_number_and_by_name(names: tuple, tmp_path: Path):
    folder = tmp_path / "glue" / "mrpc"
    folder.mkdir(parents=True)
    rows = [{"sentence1": "a", "sentence2": "b", "label": names[number]} for number in (1, 0, 1)]
    for split in ("train", "validation"):
        write(folder / f"{split}.jsonl", rows)
    task = glue_data.load_glue("mrpc", tmp_path)
    assert task.label_names == ("not_equivalent", "equivalent") and task.metrics == ("accuracy", "f1")
    assert task.train["label"][:] == [1, 0, 1]  # F1 is that of 1, equivalent
    unknown = -1 if names[0] == 0 else "other"
    with pytest.raises(ValueError, match=rf"line 4: 'label' is {unknown!r}; mrpc has 0 \(not_equivalent\)"):
        write(folder / "train.jsonl", [*rows, {**rows[0], "label": unknown}])
        glue_data.load_glue("mrpc", tmp_path)


def sentiment(count: int) -> list[dict]:
    return [
        {"text": f"film {n}", "label": n % 3 % 2, "label_text": ("bad", "good")[n % 3 % 2], "stars": f"{n % 3} stars",
         "other": f"n{n % 2}"}
        for n in range(count)
    ]  # fmt: skip


def test_columns_that_determine_the_label_are_no_input_unless_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    path = write(tmp_path / "a.jsonl", sentiment(40))
    task = glue_data.load_files(path, path)
    assert task.columns == ("text", "other") and task.decisions == {"text_columns": ["text", "other"]}
    for name in ("label_text", "stars"):
        assert f"{path}: the column '{name}' determines the label and is not used; --text_columns" in caplog.text
    assert "texts: text, other; labels: 'label', 2 classes (0, 1)" in caplog.text
    named = glue_data.load_files(path, path, ["label_text"])
    assert named.columns == ("label_text", None) and named.decisions == {"text_columns": ["label_text"]}
    as_before = glue_data.load_files(path, path, by_order=True)
    assert as_before.columns == ("text", "label_text") and as_before.decisions == {}


@pytest.mark.parametrize(
    ("values", "numbers", "repeats"),
    [
        ([f"film {n}" for n in range(40)], [n % 2 for n in range(40)], False),  # all differ
        (["a", "b"] * 20, [0, 1] * 20, True),
        (["a", "b"] * 20, [0, 1] * 19 + [1, 1], False),  # determines nothing: one value has both labels
        ([f"{n % 4}" for n in range(40)], [n % 2 for n in range(40)], True),  # four values, ten rows each
        ([f"{n % 8}" for n in range(40)], [n % 2 for n in range(40)], False),  # five rows each
        (["a", "b"], [0, 1], False),
        (["a"] * 4, [0, 1] * 2, False),
    ],
)
def test_which_columns_determine_the_label(values: list[str], numbers: list[int], repeats: bool):
    found = table(numbers, text=values)
    assert glue_data.repeats_label([found], [labels.read_labels(found)], "text") is repeats


def test_a_single_text_column_is_an_input_even_where_it_determines_the_label(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{"text": ("bad", "good")[n % 2], "label": n % 2} for n in range(20)])
    assert glue_data.load_files(path, path).columns == ("text", None)


def test_numbers_dates_and_truths_are_no_texts(tmp_path: Path):
    (tmp_path / "a.csv").write_text(
        "id,day,kept,text,label\n1,2020-01-02,True,good,1\n2,2021-01-02 10:00:00,False,12,0\n3,2020-05-05,True,,0\n"
    )
    task = glue_data.load_files(tmp_path / "a.csv", tmp_path / "a.csv")
    assert task.columns == ("text", None) and task.train["text"][:] == ["good", "12", ""]
    first = read_table(tmp_path / "a.csv")
    named = glue_data.choose_columns([first], [labels.read_labels(first)], ["id", "text"])
    assert named.texts == ("id", "text")


@pytest.mark.parametrize("name", ["mrpc", "cola", "qqp"])
def test_a_folders_name_chooses_no_metric(name: str, tmp_path: Path):
    folder = tmp_path / name
    folder.mkdir()
    path = write(folder / "train.jsonl", [{"text": f"film {n}", "label": n % 2} for n in range(4)])
    task = glue_data.load_files(path, path)
    assert task.metrics == ("accuracy",) and task.name == name and "metrics" in task.decisions


def test_a_task_in_files_always_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "data")
    for path in ("train.csv", "./train.csv", "../data/train.csv", "x/../train.csv", tmp_path / "data/train.csv"):
        assert glue_data.name_of_files(Path(path)) == "data"
    assert glue_data.name_of_files(Path("/train.csv")) == "train"
