"""Every mistake a user can make ends in one line that names it, before a model loads."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from GLUE_tasks import Glue_prune_oneshot, pretrained
from GLUE_tasks.glue_data import COLUMNS
from harness import run_folder

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture
def error(monkeypatch, capsys, tiny_encoder, sentence_files, tmp_path):
    """Run the script on the toy task with more (or other) options; returns the last line it printed."""

    def load(*_):
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr(pretrained, "load_pretrained", load)
    train, validation = sentence_files
    base = {"--model_name_or_path": tiny_encoder, "--train_file": train, "--validation_file": validation,
            "--max_length": 16, "--output_dir": tmp_path / "out"}  # fmt: skip

    def run(*words: object, **changed: object) -> str:
        options = base | {f"--{name}": value for name, value in changed.items()}
        argv = [str(part) for pair in options.items() if pair[1] is not None for part in pair]
        with pytest.raises(SystemExit) as stopped:
            Glue_prune_oneshot.main([*argv, *map(str, words)])
        assert stopped.value.code == 2
        assert not run_folder.is_complete(tmp_path / "out")
        return capsys.readouterr().err.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("-0.1", "argument --sparsity: -0.1 is outside [0, 1)"),
        ("1.0", "argument --sparsity: 1.0 is outside [0, 1)"),
        ("1.5", "argument --sparsity: 1.5 is outside [0, 1)"),
        ("abc", "argument --sparsity: 'abc' is no float; allowed: [0, 1)"),
        ("nan", "argument --sparsity: nan is outside [0, 1)"),
    ],
)
def test_sparsity(error, value: str, message: str):
    assert message in error(f"--sparsity={value}")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("8:8", "'8:8' keeps 8 of every 8 weights; N must be from 1 to M - 1"),
        ("0:8", "'0:8' keeps 0 of every 8"),
        ("9:8", "'9:8' keeps 9 of every 8"),
        ("28", "'28' is the original's notation for 2 pruned of 8; write what is kept: 6:8"),
    ],
)
def test_nm_ratio(error, value: str, message: str):
    assert message in error("--nm_ratio", value)


def test_groups_that_do_not_divide_a_layer_name_the_layer(error):
    assert "--nm_ratio 3:5: encoder.layer.0.attention.self.query.weight has 32 inputs, no multiple of 5" in error(
        "--noembed", "--nm_ratio", "3:5"
    )


def test_unknown_task(error):
    message = error(train_file=None, validation_file=None, task_name="qnlii")
    assert f"'qnlii' is no GLUE task; there are {', '.join(COLUMNS)}" in message


def test_a_task_that_is_not_on_the_hub_needs_a_data_dir(error, monkeypatch):
    monkeypatch.setitem(COLUMNS, "parcels", ("title", "body"))
    message = error(train_file=None, validation_file=None, task_name="parcels")
    assert "--task_name parcels: nyu-mll/glue on the hub has no such data set" in message
    assert "give --data_dir DIR with glue/parcels/train.jsonl and validation.jsonl" in message


def test_unknown_transfer(error):
    assert "'sparse'" in error("--sparse_method", "sparse", "--sparsity", 0.5)


def test_unknown_option_and_no_abbreviation(error):
    assert "unrecognized arguments: --sparsit 0.5" in error("--sparsit", 0.5)


def test_unknown_kind_of_sparsity_is_no_silent_dense_run(error):
    assert "invalid choice: 'unstructured'" in error("--sparse_init", "unstructured", "--sparsity", 0.5)


def test_both_freeze_options(error):
    message = error("--freeze_weights", "--freeze_weights_frompretrain", "--sparsity", 0.5)
    assert "--freeze_weights and --freeze_weights_frompretrain exclude each other" in message


def test_transfer_without_a_strength(error):
    assert "sparse_transfer needs --sparsity or --nm_ratio" in error("--freeze_weights")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sparse_init", "sparse_nm", "--sparsity", "0.5"), "sparse_nm takes --nm_ratio"),
        (("--sparse_init", "sparse_unstuctured", "--nm_ratio", "4:8"), "sparse_unstuctured takes --sparsity"),
        (("--sparse_init", "dense", "--sparsity", "0.5"), "--sparse_init dense takes neither"),
    ],
)
def test_kind_and_strength_that_contradict(error, words, message: str):
    assert message in error(*words)


def test_no_task_and_no_file(error):
    assert "give either --task_name or --train_file" in error(train_file=None, validation_file=None)
    assert "--train_file and --validation_file go together" in error(validation_file=None)


def test_data_dir_without_the_task(error, tmp_path: Path):
    message = error(train_file=None, validation_file=None, task_name="rte", data_dir=tmp_path)
    assert f"--data_dir {tmp_path} has no glue/rte/train.jsonl" in message


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_csv_without_a_label_column(error, tmp_path: Path):
    path = tmp_path / "train.csv"
    path.write_text("sentence,stars\ngood,1\nbad,0\n")
    assert f"{path} has no column 'label'; it has sentence, stars" in error(train_file=path)


def test_empty_file(error, tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_text("")
    assert f"{path} is empty" in error(train_file=path)


def test_file_with_a_header_and_no_row(error, tmp_path: Path):
    path = tmp_path / "train.csv"
    path.write_text("sentence,label\n")
    assert f"{path} is empty" in error(train_file=path)


def test_file_that_is_no_json(error, tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_text("good film\n")
    assert f"{path}, line 1 is not one JSON object: Expecting value" in error(train_file=path)


def test_missing_file_and_wrong_kind(error, tmp_path: Path):
    assert f"there is no file {tmp_path / 'nowhere.csv'}" in error(train_file=tmp_path / "nowhere.csv")
    (tmp_path / "train.txt").write_text("x")
    assert "train.txt is not one of .jsonl.gz, .jsonl" in error(train_file=tmp_path / "train.txt")


def test_labels_in_validation_that_training_lacks(error, tmp_path: Path):
    path = write(tmp_path / "validation.jsonl", [{"sentence": "good", "label": 2}])
    assert f"{path}, line 1: 'label' is 2, which no training row has; they have 0, 1" in error(validation_file=path)


def test_all_one_label(error, tmp_path: Path):
    path = write(tmp_path / "train.jsonl", [{"sentence": "good", "label": 1}] * 3)
    assert "every training label is 1; nothing can be learnt" in error(train_file=path)


def test_missing_label(error, tmp_path: Path):
    path = write(tmp_path / "train.jsonl", [{"sentence": "good", "label": 1}, {"sentence": "bad", "label": None}])
    assert f"{path}, line 2 has no 'label'" in error(train_file=path)


def test_missing_text(error, tmp_path: Path):
    path = write(tmp_path / "train.jsonl", [{"sentence": "good", "label": 1}, {"sentence": None, "label": 0}])
    assert f"{path}, line 2 has no 'sentence'" in error(train_file=path)


def test_output_dir_that_cannot_be_written(error, tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder" in error(output_dir=tmp_path / "file" / "run")


def test_several_cells_and_no_placeholder(error):
    assert "gives several runs the folder" in error("--freeze_weights", "--sparsity", 0.1, 0.2)
    assert "add {seed}" in error("--seed", 1, 2)


def test_output_dir_that_holds_a_different_run(tiny_encoder, sentence_files, tmp_path: Path, capsys):
    folder = tmp_path / "other"
    run_folder.start_run(folder, {"learning_rate": 5.0}, {})
    run_folder.write_json(folder / run_folder.RESULT_FILE, {})
    with pytest.raises(SystemExit):
        Glue_prune_oneshot.main([
            "--model_name_or_path", str(tiny_encoder), "--train_file", str(sentence_files[0]), "--validation_file",
            str(sentence_files[1]), "--max_length", "16", "--output_dir", str(folder),
        ])  # fmt: skip
    message = capsys.readouterr().err
    assert f"--output_dir {folder} holds a run with other arguments" in message
    assert "learning_rate: 2e-05 here, 5.0 there" in message and "--overwrite" in message


def test_model_folder_without_weights(error, tiny_encoder: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder, folder)
    (folder / "model.safetensors").unlink()
    assert f"--model_name_or_path {folder}: the folder has no weights" in error(model_name_or_path=folder)


def test_pickle_only_checkpoint(error, tiny_encoder: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    assert "the weights are a pickle (pytorch_model.bin)" in error(model_name_or_path=folder)


def test_missing_model_folder(error, tmp_path: Path):
    assert "no such folder" in error(model_name_or_path=tmp_path / "nowhere")


def test_model_that_the_hub_does_not_have(error, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub.\nMore lines.")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    message = error(model_name_or_path="roberta-bas")
    assert "--model_name_or_path roberta-bas: We couldn't connect to the hub; without" in message
    assert "fetch_default_assets.py makes some" in message


def test_task_without_data_dir_and_without_a_hub(error, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    message = error(train_file=None, validation_file=None, task_name="rte")
    assert "--task_name rte: Couldn't reach the hub; without a hub, give --data_dir DIR" in message
    assert "glue/rte/train.jsonl" in message


def test_length_that_the_model_cannot_take(error):
    assert "takes at most 32 tokens" in error(max_length=33)


def test_a_warm_up_that_outlasts_the_training(error):
    words = ("--max_train_steps", 3, "--num_warmup_steps")
    assert "--num_warmup_steps 3: the training has 3 steps (--max_train_steps" in error(*words, 3)


def test_no_training_for_a_new_head(error):
    assert "the head that BertForSequenceClassification adds must be trained first" in error("--num_train_epochs", 0)


def test_a_folder_of_the_kernel_takes_no_run(error):
    """Its permissions let root write."""
    assert "--output_dir /proc/run: /proc " in error(output_dir="/proc/run")


def test_resume_from_a_folder_without_a_checkpoint(error, tmp_path: Path):
    assert "no checkpoint (progress.json) there" in error("--resume_from_checkpoint", tmp_path)


def test_tracker_that_is_not_installed(error):
    assert "--report_to dvclive: not installed" in error("--with_tracking", "--report_to", "dvclive")
