"""The main script end to end, in this process, on a tiny random encoder and a toy task."""

import errno
import json
import math
import shutil
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import slow_cases
from result_keys import assert_keys_are_told
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2Model

from GLUE_tasks import Glue_interpolate, Glue_prune_oneshot, pretrained, transfers
from harness import checkpoints, run_folder, training
from harness.models import meta_model
from pruning.layers import prunable_weights

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

TRANSFERS = ["dense_transfer_freezing", "sparse_transfer", "sparse_to_dense"]


@pytest.fixture
def options(tiny_encoder: Path, sentence_files: tuple[Path, Path]) -> list[str]:
    train, validation = map(str, sentence_files)
    return [
        "--model_name_or_path", str(tiny_encoder), "--train_file", train, "--validation_file", validation,
        "--max_length", "16", "--per_device_train_batch_size", "8", "--learning_rate", "1e-3",
        "--num_train_epochs", "1", "--noembed", "--mixed_precision", "no", "--seed", "41",
    ]  # fmt: skip


def run(*argv: object) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Glue_prune_oneshot.main([str(word) for word in argv])


def result(folder: Path) -> dict:
    assert_keys_are_told(folder)
    return json.loads((folder / "all_results.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def prunable_names(tiny_encoder: Path) -> set[str]:
    model = meta_model(str(tiny_encoder), AutoModelForSequenceClassification, False, num_labels=2)
    return set(prunable_weights(model, {"classifier.weight"}, include_embeddings=False))


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny_encoder, sentence_files) -> Path:
    """A sweep of four transfers, two sparsities and one N:M, in one call, with saved models."""
    root = tmp_path_factory.mktemp("sweep")
    train, validation = map(str, sentence_files)
    failed = run(
        "--model_name_or_path", tiny_encoder, "--train_file", train, "--validation_file", validation,
        "--max_length", 16, "--per_device_train_batch_size", 8, "--learning_rate", 1e-3, "--num_train_epochs", 1,
        "--noembed", "--mixed_precision", "no", "--seed", 41, "--save_model",
        "--sparse_method", "dense_transfer", *TRANSFERS, "--sparsity", 0, 0.37, "--nm_ratio", "6:8",
        "--output_dir", root / "{transfer}" / "{strength}",
    )  # fmt: skip
    assert failed == 0
    return root


def test_sweep_writes_every_cell_with_the_contract_keys(swept: Path):
    rows = run_folder.read_runs(swept)
    assert len(rows) == 1 + 3 * 3
    assert {(row["transfer"], row["strength"]) for row in rows} == {
        ("dense_transfer", None), *((t, s) for t in TRANSFERS for s in (0, 0.37, "6:8"))
    }  # fmt: skip
    for row in rows:
        assert row["num_examples"] == 37 and row["num_train_examples"] == 90 and row["level"] == 100
        assert row["eval_accuracy"] == row["score"]
        items = run_folder.read_items(row["folder"])
        assert np.mean(items["prediction"] == items["label"]) == row["score"]
        assert row["chance"] == 19 / 37


@pytest.mark.parametrize(("strength", "sparsity"), [("0", 0.0), ("0.37", 0.37), ("6of8", 0.25)])
def test_sparse_transfer_saves_exactly_the_zeros_asked_for(swept, tiny_encoder, strength: str, sparsity: float):
    saved = weights(swept / "sparse_transfer" / strength)
    names = prunable_names(tiny_encoder)
    total = sum(saved[name].numel() for name in names)
    zeros = sum(int((saved[name] == 0).sum()) for name in names)
    assert zeros == round(sparsity * total)
    assert result(swept / "sparse_transfer" / strength)["measured_sparsity"] == zeros / total


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_sparsity_0_equals_dense_transfer_bit_for_bit(swept: Path, transfer: str):
    dense = weights(swept / "dense_transfer" / "dense")
    other = weights(swept / transfer / "0")
    assert dense.keys() == other.keys() and all(torch.equal(dense[name], other[name]) for name in dense)
    pair = result(swept / transfer / "0"), result(swept / "dense_transfer" / "dense")
    assert pair[0]["eval_accuracy"] == pair[1]["eval_accuracy"]


def test_frozen_weights_are_bit_equal_to_pretrained_ones_and_the_rest_trains(swept: Path, tiny_encoder: Path):
    before = load_file(tiny_encoder / "model.safetensors")
    after = weights(swept / "dense_transfer_freezing" / "0.37")
    names = prunable_names(tiny_encoder)
    magnitudes = torch.cat([before[name.removeprefix("bert.")].abs().flatten() for name in sorted(names)])
    pairs = [(before[name.removeprefix("bert.")].flatten(), after[name].flatten()) for name in sorted(names)]
    old, new = (torch.cat(side) for side in zip(*pairs, strict=True))
    smallest = magnitudes.argsort()[: round(0.37 * len(magnitudes))]
    assert torch.equal(old[smallest], new[smallest])
    assert int((old != new).sum()) > 0.9 * (len(old) - len(smallest))


def test_sparse_to_dense_grows_back(swept: Path):
    assert result(swept / "sparse_to_dense" / "0.37")["measured_sparsity"] < 0.01
    assert result(swept / "sparse_to_dense" / "0.37")["masked_fraction"] == pytest.approx(0.37, abs=1e-4)


def test_new_head_and_embeddings_are_not_pruned(swept: Path):
    saved = weights(swept / "sparse_transfer" / "0.37")
    assert (saved["classifier.weight"] != 0).all()
    assert (saved["bert.embeddings.word_embeddings.weight"][1:] != 0).all()  # row 0 is padding


def test_saved_model_loads_and_predicts_what_was_measured(swept: Path, sentence_files):
    from transformers import AutoTokenizer

    folder = swept / "sparse_transfer" / "6of8"
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = [json.loads(line) for line in sentence_files[1].read_text().splitlines()]
    predicted = [
        int(model(**tokenizer(row["sentence"], truncation=True, max_length=16, return_tensors="pt")).logits.argmax())
        for row in rows
    ]
    assert predicted == run_folder.read_items(folder)["prediction"].tolist()


def test_a_trained_head_is_evaluated_without_training_and_a_new_one_is_refused(swept, options, tmp_path: Path, capsys):
    trained = swept / "sparse_transfer" / "6of8"
    untrained = [*options, "--num_train_epochs", 0, "--sparse_method", "dense_transfer", "--output_dir"]
    assert run(*untrained, tmp_path / "trained", "--model_name_or_path", trained / "model") == 0
    made = result(tmp_path / "trained")
    assert (made["train_loss"], made["num_steps"], made["eval_accuracy"]) == (None, 0, result(trained)["eval_accuracy"])
    with pytest.raises(SystemExit):
        run(*untrained, tmp_path / "new")
    assert "the head that BertForSequenceClassification adds must be trained first" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_cell_alone_equals_the_same_cell_of_a_sweep(swept: Path, options: list[str], tmp_path: Path):
    """The form the original's README prints, without --sparse_init, with a freeze option."""
    assert run(*options, "--freeze_weights", "--sparsity", 0.37, "--save_model", "--output_dir", tmp_path) == 0
    alone, swept_cell = weights(tmp_path), weights(swept / "sparse_transfer" / "0.37")
    assert all(torch.equal(alone[name], swept_cell[name]) for name in alone)


def test_same_seed_twice_is_bit_equal_and_another_seed_is_not(options: list[str], tmp_path: Path):
    base = [*options, "--sparse_method", "dense_transfer", "--save_model"]
    run(*base, "--output_dir", tmp_path / "one")
    run(*base, "--output_dir", tmp_path / "two")
    run(*base[: base.index("--seed")], "--seed", 42, "--sparse_method", "dense_transfer", "--save_model",
        "--output_dir", tmp_path / "other")  # fmt: skip
    one, two, other = (weights(tmp_path / name) for name in ("one", "two", "other"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


@pytest.mark.slow
def test_a_seed_of_a_sweep_equals_the_same_seed_alone(options: list[str], tiny_encoder: Path, tmp_path: Path):
    """Head, order of rows, dropout and, with --prune_new_head, masks: all are of the cell's own seed."""
    base = [*options[: options.index("--seed")], "--freeze_weights", "--sparsity", 0.5, "--prune_new_head",
            "--save_model", "--output_dir"]  # fmt: skip
    assert run(*base, tmp_path / "{seed}", "--seed", 41, 42) == run(*base, tmp_path / "alone", "--seed", 42) == 0
    swept, alone = weights(tmp_path / "42"), weights(tmp_path / "alone")
    assert all(torch.equal(swept[name], alone[name]) for name in alone)
    model = pretrained.load_pretrained(str(tiny_encoder), num_labels=2).copy(42)
    ranked = prunable_weights(model, {"classifier.weight", "classifier.bias"}, False, True)
    (keep,) = transfers.magnitude_masks(ranked, [0.5])
    assert torch.equal(swept["classifier.weight"] != 0, keep["classifier.weight"])


def test_the_first_rows_are_evaluated(options: list[str], tmp_path: Path):
    """Of 37 rows with alternating labels four: the last four would have the other ones."""
    argv = ["--max_eval_samples", 4, "--max_train_steps", 1, "--sparse_method", "dense_transfer"]
    assert run(*options, *argv, "--output_dir", tmp_path) == 0
    rows = [json.loads(line) for line in Path(options[options.index("--validation_file") + 1]).read_text().splitlines()]
    assert run_folder.read_items(tmp_path)["label"].tolist() == [row["label"] for row in rows[:4]]
    assert result(tmp_path)["levels"][0]["num_examples"] == 4


@pytest.mark.slow
def test_part_of_an_epoch_is_its_share_of_the_steps(swept: Path, options: list[str], tmp_path: Path):
    base = [*options, "--sparse_method", "dense_transfer", "--save_model", "--output_dir"]
    of_one = result(swept / "sparse_transfer" / "6of8")["num_steps"]
    steps = math.ceil(1.3 * of_one)
    assert of_one < steps < 1.5 * of_one
    run(*base, tmp_path / "part", "--num_train_epochs", 1.3)
    run(*base, tmp_path / "steps", "--max_train_steps", steps)
    part, whole = weights(tmp_path / "part"), weights(tmp_path / "steps")
    assert result(tmp_path / "part")["num_steps"] == steps
    assert all(torch.equal(part[name], whole[name]) for name in part)


@pytest.mark.slow
def test_evaluating_after_each_epoch_does_not_change_the_training(options: list[str], tmp_path: Path):
    base = [*options, "--num_train_epochs", 2, "--sparse_method", "dense_transfer", "--save_model", "--output_dir"]
    run(*base, tmp_path / "last")
    run(*base, tmp_path / "each", "--eval_each_epoch")
    last, each = weights(tmp_path / "last"), weights(tmp_path / "each")
    assert all(torch.equal(last[name], each[name]) for name in last)


@pytest.mark.parametrize("checkpointing", ["4", *slow_cases("epoch")])
@pytest.mark.parametrize("transfer", ["sparse_transfer", *slow_cases("dense_transfer_freezing")])
def test_killed_and_resumed_training_equals_an_uninterrupted_one(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: str, transfer: str
):
    """Killed at step 18 of 24, in the middle of the second epoch; dropout is on."""
    base = [*options, "--num_train_epochs", 2, "--sparse_method", transfer, "--sparsity", 0.5, "--save_model"]
    run(*base, "--output_dir", tmp_path / "whole")

    class Killed(BaseException):
        pass

    steps = iter(range(1, 100))
    original = training.train_step

    def killed_at_18(*args):
        if next(steps) == 18:
            raise Killed
        return original(*args)

    cut = [*base, "--checkpointing_steps", checkpointing, "--output_dir", tmp_path / "cut"]
    monkeypatch.setattr(training, "train_step", killed_at_18)
    with pytest.raises(Killed):
        run(*cut)
    assert not run_folder.is_complete(tmp_path / "cut")
    assert len(checkpoints.finished(tmp_path / "cut")) == 1
    calls = []
    monkeypatch.setattr(training, "train_step", lambda *args: calls.append(1) or original(*args))
    assert run(*cut) == 0
    assert len(calls) == (24 - 16 if checkpointing == "4" else 12)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert result(tmp_path / "whole")["train_loss"] == result(tmp_path / "cut")["train_loss"]
    assert checkpoints.finished(tmp_path / "cut") == []


def test_accumulated_micro_batches_equal_one_large_batch(tiny_encoder: Path, options: list[str], tmp_path: Path):
    """90 rows: the last group of an epoch is short and is averaged over what it holds. Dropout off, equal lengths."""
    quiet = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, quiet)
    config = json.loads((quiet / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (quiet / "config.json").write_text(json.dumps(config))
    rows = [{"sentence": f"the film is {word}", "label": int(word in ("good", "great", "fine"))}
            for word in ["good", "bad", "fine", "awful", "great"] * 18]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    base = [*options, "--model_name_or_path", quiet, "--train_file", tmp_path / "train.jsonl", "--save_model",
            "--sparse_method", "dense_transfer", "--subset", "prefix"]  # fmt: skip
    run(*base, "--per_device_train_batch_size", 90, "--output_dir", tmp_path / "large")
    micro = ["--per_device_train_batch_size", 32, "--gradient_accumulation_steps", 3]
    run(*base, *micro, "--output_dir", tmp_path / "small")
    large, small = weights(tmp_path / "large"), weights(tmp_path / "small")
    assert result(tmp_path / "large")["num_steps"] == result(tmp_path / "small")["num_steps"] == 1
    # one AdamW step moves every weight by about lr = 1e-3, in the gradient's direction
    assert all(torch.allclose(large[name], small[name], atol=1e-4) for name in large if "embeddings" not in name)


def test_second_call_computes_nothing_and_loads_no_model(swept, options, monkeypatch: pytest.MonkeyPatch):
    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(pretrained, "load_pretrained", load)
    assert run(*options, "--sparse_method", "dense_transfer", *TRANSFERS, "--sparsity", 0, 0.37, "--nm_ratio", "6:8",
               "--save_model", "--output_dir", swept / "{transfer}" / "{strength}") == 0  # fmt: skip


def test_failed_cell_leaves_nothing_that_looks_finished_and_the_exit_code_says_so(options, tmp_path: Path):
    """A learning rate and a weight decay that overflow float32."""
    assert run(*options, "--learning_rate", "10", "--weight_decay", 10, "--max_train_steps", 400,
               "--sparse_method", "dense_transfer", "--output_dir", tmp_path) == 1  # fmt: skip
    assert not run_folder.is_complete(tmp_path)


def test_a_full_disk_fails_the_cell_and_keeps_what_was_finished(swept, options, tmp_path: Path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    finished, failing = (tmp_path / "sparse_transfer" / strength for strength in ("0.37", "0.5"))
    shutil.copytree(swept / "sparse_transfer" / "0.37", finished)
    before = (finished / run_folder.RESULT_FILE).read_bytes()
    monkeypatch.setattr(run_folder, "replace_file", full)
    assert run(*options, "--save_model", "--sparse_method", "sparse_transfer", "--sparsity", 0.37, 0.5,
               "--output_dir", tmp_path / "{transfer}" / "{strength}") == 1  # fmt: skip
    assert (finished / run_folder.RESULT_FILE).read_bytes() == before
    assert not run_folder.is_complete(failing)


def test_scores_need_no_cache_folder(options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """That of evaluate would lie below a file."""
    (tmp_path / "file").touch()
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "file" / "cache")
    argv = [*options, "--sparse_method", "dense_transfer", "--max_train_steps", 1, "--output_dir", tmp_path / "run"]
    assert run(*argv) == 0


def test_bf16_holds_the_mask_exactly(options: list[str], tmp_path: Path, tiny_encoder: Path):
    base = [word for word in options if word != "no"]
    base[base.index("--mixed_precision") + 1 : base.index("--mixed_precision") + 1] = ["bf16"]
    assert run(*base, "--freeze_weights", "--sparsity", 0.37, "--save_model", "--output_dir", tmp_path) == 0
    names = prunable_names(tiny_encoder)
    saved = weights(tmp_path)
    total = sum(saved[name].numel() for name in names)
    assert sum(int((saved[name] == 0).sum()) for name in names) == round(0.37 * total)
    assert result(tmp_path)["precision"] == "bf16"


def test_prune_new_head_prunes_the_head_too(options: list[str], tmp_path: Path):
    run(*options, "--freeze_weights", "--sparsity", 0.9, "--prune_new_head", "--save_model", "--output_dir", tmp_path)
    assert (weights(tmp_path)["classifier.weight"] == 0).any()


def test_nm_on_gpt2_groups_inputs_and_is_another_run_than_before(options, tiny_encoder, tmp_path: Path, capsys):
    """Zeros of the saved model; older records, of grouped outputs, are refused, those of a sparsity are not."""
    shutil.copytree(tiny_encoder, tmp_path / "gpt2")
    config = GPT2Config(vocab_size=18, n_embd=16, n_layer=1, n_head=2, n_positions=32, pad_token_id=0)
    GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    argv = [*options, "--model_name_or_path", tmp_path / "gpt2", "--freeze_weights", "--max_train_steps", 1,
            "--save_model", "--output_dir", tmp_path / "{strength}"]  # fmt: skip
    assert run(*argv, "--nm_ratio", "2:4", "--sparsity", 0.5) == 0
    kept = weights(tmp_path / "2of4")["transformer.h.0.attn.c_attn.weight"] != 0  # (16 inputs, 48 outputs)
    assert kept.T.reshape(48, 4, 4).sum(-1).eq(2).all()
    AcceleratorState._reset_state(reset_partial_state=True)
    line = ["--start", tmp_path / "0.5", "--nm_ratio", "2:4", "--num_points", 3, "--output_dir", tmp_path / "line"]
    assert Glue_interpolate.main(list(map(str, line))) == 0
    assert run_folder.recorded_arguments(tmp_path / "line")["method_arithmetic"] == 2
    assert result(tmp_path / "line")["method_recipe"] == result(tmp_path / "2of4")["method_recipe"] is not None
    for strength in ("2of4", "0.5"):
        path = tmp_path / strength / run_folder.ARGUMENTS_FILE
        record = json.loads(path.read_text())
        del record["arguments"]["method_arithmetic"]
        path.write_text(json.dumps(record))
    assert run(*argv, "--sparsity", 0.5) == 0
    with pytest.raises(SystemExit):
        run(*argv, "--nm_ratio", "2:4")
    assert "2of4 holds a run with other arguments (method_arithmetic: 2 here, 1 there)" in capsys.readouterr().err


def test_every_cell_starts_at_the_same_loss_scale(options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The scaler stands for that of fp16 on a GPU; each training halves it, and the second one fails."""
    start, train, scales = training.start_accelerator, training.train, []

    def start_scaled(*words: str | None) -> accelerate.Accelerator:
        accelerator = start(*words)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        return accelerator

    def train_halving(accelerator: accelerate.Accelerator, *rest: object) -> dict:
        scales.append(accelerator.scaler.get_scale())
        trace = train(accelerator, *rest)
        accelerator.scaler.update(accelerator.scaler.get_scale() / 2)
        if len(scales) == 2:
            raise FloatingPointError("of the second cell")
        return trace

    monkeypatch.setattr(training, "start_accelerator", start_scaled)
    monkeypatch.setattr(training, "train", train_halving)
    argv = [*options, "--sparse_method", "dense_transfer", "--max_train_steps", 1, "--output_dir", tmp_path / "{seed}"]
    assert run(*argv, "--seed", 1, 2, 3) == 1
    assert scales == [64.0] * 3


@pytest.mark.slow
def test_masks_are_selected_once_per_sweep(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    original = transfers.magnitude_masks
    monkeypatch.setattr(transfers, "magnitude_masks", lambda *args: calls.append(args[1]) or original(*args))
    run(*options, "--sparse_method", "sparse_transfer", "--sparsity", 0.2, 0.4, "--seed", 1, 2,
        "--validation_split_percentage", 50, 100,
        "--output_dir", tmp_path / "{strength}" / "{fraction}" / "{seed}")  # fmt: skip
    assert calls == [[0.2, 0.4]]
    rows = run_folder.read_runs(tmp_path)
    assert {(row["data_fraction"], row["level"], row["num_train_examples"]) for row in rows} == {
        (0.5, 50, 45),
        (1, 100, 90),
    }


def test_list_cells_prints_commands_that_make_the_same_runs(options, tmp_path: Path, capsys: pytest.CaptureFixture):
    import shlex

    sweep = [*options, "--sparse_method", "dense_transfer", "sparse_transfer", "--sparsity", 0.5, "--nm_ratio", "4:8",
             "--output_dir", tmp_path / "{transfer}" / "{strength}"]  # fmt: skip
    assert run(*sweep, "--list_cells") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and not any(tmp_path.iterdir())
    for line in lines:
        assert run(*shlex.split(line)[2:]) == 0
    before = {row["folder"]: row["seconds"] for row in run_folder.read_runs(tmp_path)}
    assert run(*sweep) == 0  # all complete, with the same arguments
    assert {row["folder"]: row["seconds"] for row in run_folder.read_runs(tmp_path)} == before


def test_regression_from_files(options: list[str], tmp_path: Path):
    for name in ("train", "validation"):
        rows = [{"text": "good film " * (i % 4 + 1), "label": float(i % 4)} for i in range(24)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(*options, "--train_file", tmp_path / "train.jsonl", "--validation_file", tmp_path / "validation.jsonl",
        "--sparse_method", "dense_transfer", "--output_dir", tmp_path / "out")  # fmt: skip
    made = result(tmp_path / "out")
    assert made["levels"][0]["metric"] == "pearson" and made["levels"][0]["chance"] == 0
    assert -1 <= made["eval_spearmanr"] <= 1


def test_tracking_writes_where_an_installed_tracker_says(options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """accelerate's own tracker interface, with a tracker of the test's."""
    logged = []

    class Memory(accelerate.tracking.GeneralTracker):
        name = "memory"
        requires_logging_directory = False

        def __init__(self):
            super().__init__()

        @property
        def tracker(self):
            return None

        def store_init_configuration(self, values):
            logged.append(("config", values["seed"]))

        def log(self, values, step=None, **_):
            logged.append((step, sorted(values)))

    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *_: [Memory()])
    run(*options, "--sparse_method", "dense_transfer", "--with_tracking", "--eval_each_epoch", "--num_train_epochs", 2,
        "--output_dir", tmp_path)  # fmt: skip
    assert logged[0] == ("config", 41)
    assert (1, ["eval_accuracy"]) in logged and (2, ["eval_accuracy"]) in logged


def test_a_sparsity_that_rounds_to_no_weight_fails_its_cell_alone(options: list[str], tmp_path: Path, caplog):
    """Of all 15,360 weights together, 1e-05 is less than a half."""
    words = ["--sparse_method", "sparse_transfer", "--sparsity", 1e-5, 0.37]
    assert run(*options, *words, "--output_dir", tmp_path / "{strength}") == 1
    assert "--sparsity 1e-05 removed nothing" in caplog.text
    assert [path.parent.name for path in tmp_path.glob("*/all_results.json")] == ["0.37"]
