"""recover.py on a tiny model: what is held and frozen, resuming to the same bits, the control, what is refused."""

import json
import logging
import random
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import WORDS, slow_cases
from result_keys import assert_keys_are_told
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from harness import run_folder
from harness.checkpoints import finished
from harness.training import Recipe
from llm_tasks import perplexity, recover
from llm_tasks.recovery import options as recovery_options
from llm_tasks.recovery import run as recovery
from llm_tasks.recovery.recovered import recovered_from
from llm_tasks.recovery.training_text import TrainingText
from pruning.layers import decoder_weights

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
TRANSFERS = ("dense_transfer_freezing", "sparse_transfer", "sparse_to_dense")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three files with different documents of WORDS: to train on, to calibrate on, to evaluate on."""
    draw, folder = random.Random(5), tmp_path_factory.mktemp("texts")
    found = {}
    for name in ("train", "calibration", "evaluation"):
        rows = [{"text": " ".join(draw.choices(WORDS[:7], k=60))} for _ in range(40)]
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Calibration windows are kept in the tests' own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def options(tiny_decoder: Path, texts: dict[str, Path]) -> list[str]:
    return [
        "--model_name_or_path", str(tiny_decoder), "--train_text", str(texts["train"]), "--train_length", "24",
        "--calibration", str(texts["calibration"]), "--nsamples", "6", "--calibration_length", "16",
        "--text", str(texts["evaluation"]), "--seq_len", "24", "--max_windows", "5", "--precision", "no",
        "--per_device_train_batch_size", "3", "--max_train_steps", "6", "--learning_rate", "1e-2",
    ]  # fmt: skip


def start(argv: list[str]) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return recover.main(argv)


def read(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name: weight.matrix for name, weight in decoder_weights(model).items()}


SWEEP = ["--compression", "wanda", "magnitude", "--sparsity", "0.5"]


@pytest.fixture(scope="module")
def tree(options: list[str], cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of both compressions in all transfers, with its control: <compression>/<transfer>."""
    folder = tmp_path_factory.mktemp("sweep")
    assert start([*options, *SWEEP, "--eval_steps", "2", "--output_dir", str(folder / "{compression}/{transfer}")]) == 0
    return folder


def test_transfers_hold_freeze_and_regrow_and_the_control_trains_alike(
    tree: Path, tiny_decoder: Path, options: list[str], tmp_path: Path
):
    dense = matrices(tiny_decoder)
    control = read(tree / "dense" / "dense_transfer")
    assert (control["compression"], control["strength"], control["measured_sparsity"]) == ("dense", None, 0)
    for compression in ("wanda", "magnitude"):
        # what a setting's script makes of the same options
        pruned = tmp_path / "pruned" / compression
        shared = options[: options.index("--precision")]
        for name in ("--train_text", "--train_length"):
            where = shared.index(name)
            shared = shared[:where] + shared[where + 2 :]
        words = [
            *shared,
            "--compression",
            compression,
            "--sparsity",
            "0.5",
            "--save_model",
            "--output_dir",
            str(pruned),
        ]
        assert perplexity.main([*words, "--precision", "no"]) == 0
        keep = {name: matrix != 0 for name, matrix in matrices(pruned / "model").items()}
        before = read(pruned)["levels"][0]["score"]
        for transfer in TRANSFERS:
            folder = tree / compression / transfer
            result, made = read(folder), matrices(folder / "model")
            assert result["train_windows_sha256"] == control["train_windows_sha256"]
            assert (result["num_steps"], result["num_train_tokens"]) == (6, 6 * 3 * 24) == (
                control["num_steps"], control["num_train_tokens"]
            )  # fmt: skip
            assert [point["step"] for point in result["curve"]] == [0, 2, 4, 6] and len(result["train_losses"]) == 6
            assert result["masked_fraction"] == pytest.approx(0.5, abs=0.01)
            zeros = sum(int((matrix == 0).sum()) for matrix in made.values())
            total = sum(matrix.numel() for matrix in made.values())
            assert result["measured_sparsity"] == zeros / total
            moved = {name: matrix != dense[name] for name, matrix in made.items()}
            start_score = result["curve"][0]["perplexity"]
            if transfer == "sparse_transfer":
                assert all(torch.equal(matrix != 0, keep[name]) for name, matrix in made.items())
                assert result["measured_sparsity"] == result["masked_fraction"] and start_score == pytest.approx(before)
            elif transfer == "dense_transfer_freezing":
                assert all(torch.equal(own, keep[name]) for name, own in moved.items()), "frozen to the bit"
                assert start_score == control["curve"][0]["perplexity"]
            else:
                assert zeros < total * 0.01 and start_score == pytest.approx(before)


def test_results_are_those_of_the_saved_model_and_are_read_as_a_tree(
    tree: Path, tiny_decoder: Path, tmp_path: Path, texts: dict[str, Path]
):
    folder = tree / "wanda" / "sparse_transfer"
    again = tmp_path / "again"
    words = [
        "--model_name_or_path", str(tiny_decoder), "--compression", "checkpoint", "--checkpoint", str(folder / "model"),
        "--text", str(texts["evaluation"]), "--seq_len", "24", "--max_windows", "5", "--precision", "no",
    ]  # fmt: skip
    assert perplexity.main([*words, "--output_dir", str(again)]) == 0
    result, origin = read(folder), read(again)["recovered_from"]
    assert read(again)["levels"][0]["score"] == pytest.approx(result["levels"][0]["score"], rel=1e-6)
    assert read(again)["measured_sparsity"] == result["measured_sparsity"]
    assert origin == {name: result[name] for name in origin} and origin["transfer"] == "sparse_transfer"
    assert recovered_from(str(folder)) is None and recovered_from(str(again / "model")) is None
    items = run_folder.read_items(folder)
    assert items["curve_loss"].shape == (5, 4)
    np.testing.assert_array_equal(items["curve_loss"][:, -1], items["window_loss"])
    rows = run_folder.read_runs(tree)
    assert len(rows) == 7 and {row["setting"] for row in rows} == {"recovery"}
    run_folder.check_runs(rows)
    card = (folder / "model" / "README.md").read_text()
    assert "wanda, sparsity 0.5, sparse_transfer" in card and "6 steps on 432 tokens" in card
    assert not finished(folder)
    assert_keys_are_told(tree)
    assert_keys_are_told(again)


def test_training_lowers_the_loss_as_a_plain_loop_does(options: list[str], tiny_decoder: Path, tmp_path: Path):
    """The control against AdamW written out: same windows, order, schedule and weights."""
    assert start([*options, "--lr_scheduler_type", "constant", "--output_dir", str(tmp_path / "run")]) == 0
    result = read(tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    asked = recovery_options.parse(recovery_options.make_parser(""), [*options, "--output_dir", "x"])
    planned = recovery.plan_job(asked, {Path("x"): asked.cells[0]})
    windows = recovery.prepare(planned).training(0).tokens
    order = recovery.training.LengthGroupedBatches([24] * len(windows), 3, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    losses = []
    for batch in list(order)[:6]:
        loss = model(windows[batch], labels=windows[batch]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert result["train_losses"] == pytest.approx(losses, rel=1e-4)
    assert result["curve"][-1]["perplexity"] < result["curve"][0]["perplexity"]
    made = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, weight in model.named_parameters():
        torch.testing.assert_close(made[name], weight.detach(), rtol=1e-3, atol=1e-4)


def test_a_control_has_the_recipe_of_what_was_calibrated_layer_by_layer(options: list[str], tmp_path: Path):
    """--true_sequential says how Wanda is calibrated, and nothing of how any model is trained."""
    words = ["--compression", "wanda", "--sparsity", "0.5", "--true_sequential", "--max_train_steps", "2"]
    both = ["--transfer", "dense_transfer", "sparse_transfer", "--output_dir", str(tmp_path / "{transfer}")]
    assert start([*options, *words, *both]) == 0
    assert read(tmp_path / "dense_transfer")["recipe"] == read(tmp_path / "sparse_transfer")["recipe"]


@pytest.mark.parametrize("transfer", [*slow_cases(*TRANSFERS[1:]), TRANSFERS[0]])
def test_a_killed_training_goes_on_to_the_same_bits(
    transfer: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = [*options, "--compression", "wanda", "--nm_ratio", "2:4", "--transfer", transfer, "--eval_steps", "2"]
    assert start([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    save = recovery.Checkpoints.save

    def save_and_die(self: recovery.Checkpoints, *arguments: object) -> None:
        save(self, *arguments)
        raise KeyboardInterrupt

    killed = [*words, "--checkpointing_steps", "3", "--output_dir", str(tmp_path / "killed")]
    monkeypatch.setattr(recovery.Checkpoints, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        start(killed)
    monkeypatch.setattr(recovery.Checkpoints, "save", save)
    assert [path.name for path in finished(tmp_path / "killed")] == ["checkpoint-3"]
    assert start(killed) == 0
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    one, other = (read(tmp_path / name) for name in ("whole", "killed"))
    assert one["curve"] == other["curve"] and one["train_losses"] == other["train_losses"]
    assert not finished(tmp_path / "killed")


def test_a_complete_run_is_skipped_and_another_recipe_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    words = [*options, "--output_dir", str(tmp_path / "run")]
    assert start(words) == 0
    written = (tmp_path / "run" / "all_results.json").stat().st_mtime_ns
    assert start([*words, "--tokens_per_batch", "24"]) == 0
    assert (tmp_path / "run" / "all_results.json").stat().st_mtime_ns == written
    with pytest.raises(SystemExit):
        start([*words, "--learning_rate", "2e-2"])
    assert "learning_rate: 0.02 here, 0.01 there" in capsys.readouterr().err
    assert start([*words, "--list_cells"]) == 0
    with pytest.raises(SystemExit):
        start([*words, "--learning_rate", "2e-2", "--list_cells"])
    assert "learning_rate: 0.02 here, 0.01 there" in capsys.readouterr().err


def test_lists_name_every_cell_and_their_commands_are_single_cells(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    template = str(tmp_path / "{compression}/{strength}/{transfer}/{seed}")
    words = [*options, *SWEEP, "--nm_ratio", "2:4", "--seed", "1", "2", "--magnitude_scope", "global"]
    assert start([*words, "--list_cells", "--output_dir", template]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (1 + 2 * 2 * 3)
    for line in lines:
        argv = shlex.split(line)[2:]
        capsys.readouterr()
        assert start([*argv, "--list_cells"]) == 0
        (again,) = capsys.readouterr().out.splitlines()
        assert sorted(shlex.split(again)[2:]) == sorted(argv)
    assert start([*words, "--list_cells", "--group_by", "compression,strength", "--output_dir", template]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_dry_run_loads_nothing(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recovery, "load_model", None)
    monkeypatch.setattr(recovery, "prepare", None)
    assert start([*options, *SWEEP, "--dry_run", "--output_dir", str(tmp_path / "{compression}/{transfer}")]) == 0
    told = capsys.readouterr().out
    assert "7 runs, of which 7 are missing" in told and "6 steps of 3 windows of 24 tokens, 432 tokens" in told
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--transfer", "sparse"], "--transfer: invalid choice: 'sparse' (choose from "),
        (["--max_train_steps", "0"], "--max_train_steps: 0 is outside [1, "),
        (["--train_text", "/none.txt"], "--train_text /none.txt: /none.txt is neither a file nor one of c4, wikitext2"),
        (["--train_length", "40"], "--train_length 40: "),
        (["--train_length", "1"], "--train_length: 1 is outside [2, "),
        (["--stream"], "unrecognized arguments: --stream"),
        (["--compression", "rtn"], "--compression rtn: what is trained is pruned by magnitude, wanda"),
        (["--compression", "wanda", "--sparsity", "0.5", "--bits", "4"], "unrecognized arguments: --bits 4"),
        (["--compression", "wanda"], "--compression wanda needs --sparsity or --nm_ratio"),
        (["--compression", "wanda", "--sparsity", "0.5", "--transfer", "dense_transfer"], "prunes nothing"),
        (["--transfer", "sparse_transfer"], "--compression dense: nothing is pruned"),
        (["--compression", "magnitude", "--nm_ratio", "2:4", "--magnitude_scope", "global"], "--magnitude_scope ranks"),
        (["--compression", "wanda", "--sparsity", "0.5", "--block_size", "4"], "--block_size is obeyed by"),
        (["--compression", "sparsegpt", "--nm_ratio", "2:4", "--block_size", "6"], "--block_size 6 is no multiple"),
        (["--true_sequential"], "--true_sequential is obeyed by"),
        (["--lr_scheduler_type", "constant", "--num_warmup_steps", "2"], "--num_warmup_steps: "),
        (["--max_train_steps", "6", "--num_warmup_steps", "6"], "--num_warmup_steps 6: the training has 6 steps"),
        (["--data_dir", "/nowhere"], "--data_dir /nowhere is no folder"),
        (["--list_cells", "--dry_run"], "argument --dry_run: not allowed with argument --list_cells"),
        (["--compression", "wanda", "--nm_ratio", "3:5", "--transfer", "sparse_transfer"], "no multiple of 5"),
        (["--train_field", "words"], "has no field 'words'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_a_model_loads(
    words: list[str], reason: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(recovery, "load_model", None)
    with pytest.raises(SystemExit) as ended:
        start([*options, *words, "--output_dir", str(tmp_path / "run")])
    assert ended.value.code == 2 and reason in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_help_names_its_own_default_and_no_method_that_is_refused(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        start(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "also .gz (default that of --train_text)" in told and "sparsegpt: columns per update" in told
    assert "gptq" not in told.replace("sparsegpt", "")


def test_text_that_is_evaluated_on_alone_is_refused(
    options: list[str], texts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    short = tmp_path / "short.txt"
    short.write_text(" ".join(random.Random(0).choices(WORDS, k=48)))
    with pytest.raises(SystemExit):
        start([*options, "--train_text", str(short), "--text", str(short), "--output_dir", str(tmp_path / "run")])
    assert f"--train_text {short}: no window of 24 tokens is there to train on: it is" in capsys.readouterr().err


def test_little_text_is_read_several_times_and_a_missing_control_is_said(
    options: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    short = tmp_path / "short.txt"
    short.write_text(" ".join(random.Random(0).choices(WORDS, k=24 * 6)))
    words = ["--compression", "magnitude", "--sparsity", "0.5", "--transfer", "sparse_transfer"]
    with caplog.at_level(logging.WARNING):
        assert start([*options, *words, "--train_text", str(short), "--output_dir", str(tmp_path / "run")]) == 0
    assert "holds 6 of the 18 windows" in caplog.text and "no control" in caplog.text
    result = read(tmp_path / "run")
    assert (result["num_train_examples"], result["num_epochs"]) == (6, 3)


def test_held_weights_that_move_are_an_error():
    keep, dense = {"w": torch.tensor([True, False])}, {"w": torch.tensor([1.0, 2.0])}
    recovery.check_held("sparse_transfer", {"w": torch.tensor([5.0, 0.0])}, dense, keep)
    recovery.check_held("dense_transfer_freezing", {"w": torch.tensor([5.0, 2.0])}, dense, keep)
    recovery.check_held("sparse_to_dense", {"w": torch.tensor([5.0, 7.0])}, dense, keep)
    for transfer in ("sparse_transfer", "dense_transfer_freezing"):
        with pytest.raises(RuntimeError, match="weights of w moved"):
            recovery.check_held(transfer, {"w": torch.tensor([1.0, 7.0])}, dense, keep)


def test_a_model_stored_in_bfloat16_is_trained_in_float32_and_saved_in_bfloat16(options: list[str], tmp_path: Path):
    words = ["--compression", "ria", "--sparsity", "0.5", "--transfer", "sparse_transfer", "--dtype", "bfloat16"]
    assert start([*options, *words, "--output_dir", str(tmp_path / "run")]) == 0
    made = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    result = read(tmp_path / "run")
    assert result["dtype"] == "torch.bfloat16" and result["measured_sparsity"] == result["masked_fraction"]


@pytest.mark.parametrize(
    ("windows", "batch", "accumulated", "steps", "read"),
    [(12, 3, 1, 4, 12), (12, 3, 1, 6, 18), (7, 3, 1, 3, 7), (7, 3, 1, 4, 10), (7, 3, 2, 2, 7), (7, 3, 2, 5, 20)],
)
def test_tokens_are_those_that_were_trained_on(windows: int, batch: int, accumulated: int, steps: int, read: int):
    """Of seven windows in batches of three the third batch of an epoch has one."""
    recipe = Recipe(1e-4, batch, 1, 0, max_steps=steps, accumulation_steps=accumulated)
    text = TrainingText(torch.zeros(windows, 5, dtype=torch.int64), 0)
    assert recovery.training_facts(SimpleNamespace(recipe=recipe), text)["num_train_tokens"] == 5 * read


def test_a_sparsity_that_rounds_to_no_weight_is_not_trained(options: list[str], tmp_path: Path, caplog):
    """Wanda would remove round(0.02 * 24) weights of a row at most."""
    words = ["--compression", "wanda", "--sparsity", "0.02", "--transfer", "sparse_transfer"]
    assert start([*options, *words, "--output_dir", str(tmp_path / "run")]) == 1
    assert "--sparsity 0.02 removed nothing" in caplog.text
    assert not (tmp_path / "run" / "all_results.json").exists()
