"""Checkpoints with a trained head: order of classes, loss, names, segments; and a run's own loss of a batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from GLUE_tasks import Glue_interpolate, Glue_prune_oneshot, classification, glue_data, labels, pretrained, transfers
from GLUE_tasks.runner import Inputs, fit_inputs
from harness import run_folder, training

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48,
         "max_position_embeddings": 32, "vocab_size": 18}  # fmt: skip


def trained_head(folder: Path, encoder: Path, **config: object) -> Path:
    """A BERT with a random head of two outputs that differ, whose config says what they are."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**{**SIZES, "initializer_range": 0.5, **config}))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return folder


def named(path: Path, files: tuple[Path, Path], names: tuple[object, object]) -> tuple[Path, Path]:
    """The sentences with other labels."""
    path.mkdir()
    for source in files:
        rows = [json.loads(line) for line in source.read_text().splitlines()]
        lines = (json.dumps({**row, "label": names[row["label"]]}) + "\n" for row in rows)
        (path / source.name).write_text("".join(lines))
    return path / files[0].name, path / files[1].name


def command(model: Path, files: tuple[Path, Path], folder: Path, *more: str) -> list[str]:
    return ["--model_name_or_path", str(model), "--train_file", str(files[0]), "--validation_file", str(files[1]),
            "--max_length", "16", "--mixed_precision", "no", "--output_dir", str(folder), *more]  # fmt: skip


def test_a_trained_head_answers_in_the_order_of_its_names(
    tiny_encoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path
):
    """The same weights with their outputs called the other way round give the opposite answer to every item."""
    files = named(tmp_path / "data", sentence_files, ("neg", "pos"))
    predictions = {}
    for name, outputs in (("straight", ("NEG", "POS")), ("turned", ("POS", "NEG"))):
        model = trained_head(tmp_path / name, tiny_encoder, id2label=dict(enumerate(outputs)))
        assert Glue_prune_oneshot.main(command(model, files, tmp_path / f"run_{name}", "--num_train_epochs", "0")) == 0
        predictions[name] = run_folder.read_items(tmp_path / f"run_{name}")["prediction"]
        assert json.loads((tmp_path / f"run_{name}/all_results.json").read_text())["label_names"] == ["neg", "pos"]
    assert 0 < predictions["straight"].mean() < 1  # not all the same
    np.testing.assert_array_equal(predictions["turned"], 1 - predictions["straight"])
    recorded = [run_folder.recorded_arguments(tmp_path / f"run_{name}") for name in predictions]
    assert "label_order" not in recorded[0] and recorded[1]["label_order"] == [1, 0]


@pytest.mark.slow
def test_training_teaches_the_outputs_that_the_names_say(
    tiny_encoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path
):
    """Trained and saved with turned outputs: accuracy, names in the saved config, and what the saved model answers."""
    files = named(tmp_path / "data", sentence_files, ("neg", "pos"))
    model = trained_head(tmp_path / "model", tiny_encoder, id2label={0: "POS", 1: "NEG"}, initializer_range=0.02)
    options = ("--num_train_epochs", "12", "--learning_rate", "3e-3", "--save_model")
    assert Glue_prune_oneshot.main(command(model, files, tmp_path / "run", *options)) == 0
    (row,) = run_folder.read_runs(tmp_path / "run")
    assert row["score"] > 0.8
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model").eval()
    assert saved.config.id2label == {0: "pos", 1: "neg"} and saved.config.label2id == {"pos": 0, "neg": 1}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    sentences = [json.loads(line)["sentence"] for line in files[1].read_text().splitlines()]
    with torch.no_grad():
        answers = saved(**tokenizer(sentences, padding=True, return_tensors="pt")).logits.argmax(-1)
    named_answers = [saved.config.id2label[int(answer)] for answer in answers]
    items = run_folder.read_items(tmp_path / "run")
    assert named_answers == [("neg", "pos")[number] for number in items["prediction"]]

    line = ["--start", str(tmp_path / "run"), "--sparsity", "0.5", "--num_points", "3", "--output_dir"]
    assert Glue_interpolate.main([*line, str(tmp_path / "line")]) == 0
    first = json.loads((tmp_path / "line/all_results.json").read_text())["levels"][0]
    assert first["score"] == pytest.approx(row["score"])  # where the line starts


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"num_labels": 1, "problem_type": "regression"}, (0, 1)),
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, (0, 1)),
        ({"num_labels": 2, "problem_type": "single_label_classification"}, (0.0, 1.5)),
    ],
)
def test_problem_type_of_the_checkpoint_chooses_no_loss(
    config: dict, names: tuple, tiny_encoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path
):
    model = trained_head(tmp_path / "model", tiny_encoder, **config)
    files = named(tmp_path / "data", sentence_files, names)
    options = ("--max_train_steps", "1", "--ignore_mismatched_sizes", "--save_model")
    assert Glue_prune_oneshot.main(command(model, files, tmp_path / "run", *options)) == 0
    saved = json.loads((tmp_path / "run/model/config.json").read_text())
    assert saved["problem_type"] == ("regression" if names[1] == 1.5 else "single_label_classification")
    found = json.loads((tmp_path / "run/all_results.json").read_text())
    assert found["label_names"] == (None if names[1] == 1.5 else ["0", "1"])
    if names == (0, 1):  # cross entropy of a random head, near log 2 at its usual size; a squared error is not
        task = glue_data.load_files(*files)
        net = pretrained.load_pretrained(str(model), 2, ignore_mismatched_sizes=True).copy(42)
        inputs = classification.tokenize_task(task, AutoTokenizer.from_pretrained(model), 16)
        inputs = fit_inputs(inputs, net.eval(), task.label_names)
        batch = inputs.collate([inputs.train[n] for n in range(4)])
        batch.pop("length", None)
        out = net(**batch)
        expected = torch.nn.functional.cross_entropy(out.logits, batch["labels"])
        assert training.model_loss(net, batch).item() == pytest.approx(expected.item(), abs=1e-6)


def test_names_that_do_not_match_are_said(
    tiny_encoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model = trained_head(tmp_path / "model", tiny_encoder, id2label={0: "spam", 1: "ham"})
    assert Glue_prune_oneshot.main(command(model, sentence_files, tmp_path / "run", "--num_train_epochs", "0")) == 0
    assert "names its outputs spam, ham, which are not the data's classes (0, 1)" in caplog.text


@pytest.mark.slow
def test_masks_are_those_of_the_cells_own_head(tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """MNLI's trained head is ranked with the body, for MNLI alone; STS-B and RTE, whose heads are new, share theirs."""
    pair = ("sentence1", "sentence2")
    for task, split, names, labels_of in (
        ("stsb", "validation", pair, (0.5, 2.0, 4.5)), ("rte", "validation", pair, (0, 1, 1)),
        ("mnli", "validation_matched", ("premise", "hypothesis"), (0, 1, 2)),
    ):  # fmt: skip
        folder = tmp_path / "data/glue" / task
        folder.mkdir(parents=True)
        texts = (("good film", "bad plot"), ("good film", "great plot"), ("story", "fine plot"))
        rows = [dict(zip((*names, "label"), (*text, label), strict=True))
                for text, label in zip(texts, labels_of, strict=True)]  # fmt: skip
        for name in ("train", split):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = trained_head(tmp_path / "mnli", tiny_encoder, num_labels=3)
    argv = ["--model_name_or_path", str(model), "--data_dir", str(tmp_path / "data"), "--max_length", "16"]
    argv += ["--mixed_precision", "no", "--noembed", "--ignore_mismatched_sizes", "--max_train_steps", "1"]
    argv += ["--sparse_method", "sparse_transfer", "--sparsity", "0.5", "--save_model", "--output_dir"]
    selected, select = [], transfers.select_masks
    monkeypatch.setattr(transfers, "select_masks", lambda *args: selected.append(args[1]) or select(*args))
    assert Glue_prune_oneshot.main([*argv, str(tmp_path / "{task_name}"), "--task_name", "stsb", "rte", "mnli"]) == 0
    assert selected == [{"classifier.weight", "classifier.bias"}, set()]
    assert Glue_prune_oneshot.main([*argv, str(tmp_path / "alone"), "--task_name", "mnli"]) == 0
    swept, alone = (load_file(tmp_path / name / "model/model.safetensors") for name in ("mnli", "alone"))
    assert all(torch.equal(swept[name], alone[name]) for name in alone)
    assert (alone["classifier.weight"] == 0).any()


def test_f1_is_of_glues_positive_class_whatever_the_order_of_names(tiny_encoder: Path, tmp_path: Path):
    """MRPC's class 1, equivalent; the outputs stand the other way round."""
    folder = tmp_path / "data/glue/mrpc"
    folder.mkdir(parents=True)
    words = ("good", "bad", "film", "plot", "story", "awful")
    for split, count in (("train", 8), ("validation", 30)):
        rows = [{"sentence1": f"{words[n % 6]} {words[n % 5]}", "sentence2": words[n % 4], "label": int(n % 3 > 0)}
                for n in range(count)]  # fmt: skip
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = trained_head(tmp_path / "model", tiny_encoder, id2label={0: "EQUIVALENT", 1: "NOT_EQUIVALENT"})
    data = ["--task_name", "mrpc", "--data_dir", str(tmp_path / "data"), "--max_length", "16"]
    argv = ["--model_name_or_path", str(model), *data, "--mixed_precision", "no", "--num_train_epochs", "0"]
    argv += ["--output_dir", str(tmp_path / "run")]
    assert Glue_prune_oneshot.main(argv) == 0
    items = run_folder.read_items(tmp_path / "run")
    chosen, gold = items["prediction"] == 1, items["label"] == 1
    assert gold.mean() == pytest.approx(2 / 3) and 0 < chosen.sum() < len(chosen)
    found = json.loads((tmp_path / "run/all_results.json").read_text())
    assert found["eval_f1"] == pytest.approx(2 * (chosen & gold).sum() / (chosen.sum() + gold.sum()))
    assert found["label_names"] == list(labels.GLUE_CLASSES["mrpc"])


def test_segment_ids_go_to_models_that_have_segments(tiny_encoder: Path, tmp_path: Path):
    """With BERT's tokenizer: BERT reads the second text as the second segment, RoBERTa and GPT-2 get no segments."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder, model_input_names=names)
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"sentence1": "good film", "sentence2": f"{word} plot", "label": n}) + "\n"
                            for n, word in enumerate(("bad", "great"))))  # fmt: skip
    task = glue_data.load_files(path, path)
    inputs = classification.tokenize_task(task, tokenizer, 16)
    rows = [{name: value for name, value in row.items() if name != "length"} for row in inputs.train]
    models = {
        "Bert": ({}, [[0, 0, 0, 0, 1, 1, 1]] * 2),
        "Roberta": ({"type_vocab_size": 1}, None),
        "GPT2": ({"n_embd": 32, "n_layer": 1, "n_head": 2, "pad_token_id": 0}, None),
    }
    for name, (options, segments) in models.items():
        sizes = {} if name == "GPT2" else SIZES
        config = getattr(transformers, f"{name}Config")(**{**sizes, "vocab_size": 18, **options})
        model = getattr(transformers, f"{name}ForSequenceClassification")(config)
        batch = fit_inputs(inputs, model).collate(rows)
        assert (batch["token_type_ids"].tolist() if "token_type_ids" in batch else None) == segments, name
        training.model_loss(model, batch).backward()


def test_outputs_are_put_in_the_order_of_the_classes():
    inputs = Inputs(None, {}, None, order=(2, 0, 1))
    np.testing.assert_array_equal(inputs.in_order(np.array([[10.0, 11.0, 12.0]])), [[12.0, 10.0, 11.0]])


def test_three_turned_classes_are_taught_and_named_as_they_are_answered(tiny_encoder: Path, tmp_path: Path):
    """Classes a, b and c are outputs 2, 0 and 1: turned back, unlike two swapped ones, they would be 1, 2 and 0."""
    tokenizer, path = AutoTokenizer.from_pretrained(tiny_encoder), tmp_path / "three.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n"
                            for text, label in (("good film", "a"), ("bad plot", "b"), ("story", "c"))))  # fmt: skip
    task = glue_data.load_files(path, path)
    model = BertForSequenceClassification(BertConfig(**SIZES, id2label={0: "b", 1: "c", 2: "a"}))
    order = pretrained.head_order(model.config, task.label_names)
    inputs = fit_inputs(classification.tokenize_task(task, tokenizer, 16), model, task.label_names, order)
    rows = [{name: value for name, value in row.items() if name != "length"} for row in inputs.train]
    assert order == [2, 0, 1] and inputs.collate(rows)["labels"].tolist() == [2, 0, 1]
    assert model.config.id2label == {0: "b", 1: "c", 2: "a"} and model.config.label2id == {"a": 2, "b": 0, "c": 1}


def test_the_environment_changes_no_number(
    tiny_encoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Precision, accumulation and compilation as accelerate launch would set them: the same bits, said and recorded."""
    from accelerate.state import AcceleratorState

    losses = []
    for name in ("plain", "set"):
        AcceleratorState._reset_state(reset_partial_state=True)
        if name == "set":
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
            monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
            monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
        options = ("--max_train_steps", "4", "--learning_rate", "1e-2", "--per_device_train_batch_size", "8")
        argv = command(tiny_encoder, sentence_files, tmp_path / name, *options)
        assert Glue_prune_oneshot.main(argv) == 0
        losses.append(run_folder.read_runs(tmp_path / name)[0]["train_loss"])
    assert losses[0] == losses[1]
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 is ignored: 1 is used" in caplog.text
    assert "ACCELERATE_MIXED_PRECISION=bf16 is ignored: no is used" in caplog.text
    recorded = json.loads((tmp_path / "set" / run_folder.ARGUMENTS_FILE).read_text())["environment"]["variables"]
    assert recorded["ACCELERATE_DYNAMO_BACKEND"] == "INDUCTOR"
    assert Accelerator().gradient_accumulation_steps == 4  # what it would have been


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_accelerates_other_ways_to_train_are_refused(
    name: str, tiny_encoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(SystemExit):
        Glue_prune_oneshot.main(command(tiny_encoder, sentence_files, tmp_path / "run"))
    assert f"ACCELERATE_USE_{name}=true is set" in capsys.readouterr().err
