"""The line between two models: walked in place on toys, and by the script between models that it fine-tuned."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from result_keys import assert_keys_are_told
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from analysis import estimators
from GLUE_tasks import Glue_interpolate, Glue_prune_oneshot, interpolation, model_pairs, pretrained
from GLUE_tasks.transfers import Pruning, Strength
from harness import records, run_folder, training
from harness.content import sha256

ROOT = Path(__file__).parents[2]


class Point(nn.Module):
    """A model of one weight vector."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(values))


def test_points_hold_both_ends_exactly():
    assert interpolation.points(3).tolist() == [0, 0.5, 1]
    twenty_one = interpolation.points(21)
    assert len(twenty_one) == 21 and twenty_one[0] == 0 and twenty_one[-1] == 1
    with pytest.raises(ValueError, match="2 points: at least 3 are needed, the two ends and one between"):
        interpolation.points(2)


def test_a_quadratic_loss_has_the_barrier_worked_out_by_hand():
    """Loss 4 - |w|^2 between (1, 1) and (1, -1): 2 at the ends, 3 halfway at (1, 0), where it stands 1 above both."""
    model, end, alphas = Point(1.0, 1.0), Point(1.0, -1.0), interpolation.points(5)
    losses = interpolation.walk(
        model, interpolation.line_tensors(end), alphas, lambda: 4 - float((model.weight**2).sum())
    )
    assert losses == pytest.approx([2, 2.75, 3, 2.75, 2], abs=1e-6)
    for definition in estimators.DEFINITIONS:
        assert estimators.barrier(losses, alphas, definition) == pytest.approx((1, 0.5), abs=1e-6)


def test_a_tilted_quadratic_has_two_barriers():
    """Loss a (3 - 2 a) on the way from 0 to 1: 0, 9/8 at 3/4 and 1; the line there is 3/4, the ends' mean 1/2."""
    model, alphas = Point(0.0), interpolation.points(9)
    losses = interpolation.walk(
        model, {"weight": torch.tensor([1.0])}, alphas, lambda: float(model.weight * (3 - 2 * model.weight))
    )
    # against the line a (2 - 2 a) is highest at 1/2: 1/2
    assert estimators.barrier(losses, alphas, estimators.STRAIGHT_LINE) == pytest.approx((0.5, 0.5), abs=1e-6)
    assert estimators.barrier(losses, alphas, estimators.MEAN_OF_ENDS) == pytest.approx((0.625, 0.75), abs=1e-6)


def layers(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def test_every_point_is_where_the_formula_says_and_the_ends_are_bit_equal():
    start, end, alphas = layers(0), layers(1), interpolation.points(21)
    with torch.no_grad():
        start[0].weight[0, 0] = -0.0  # whose sign arithmetic would lose
        end[0].weight[0, 0] = -0.0
        end[1].running_mean += 1
    before = {name: tensor.clone() for name, tensor in interpolation.line_tensors(start).items()}
    assert "1.running_mean" in before and "1.num_batches_tracked" not in before
    target = {name: tensor.clone() for name, tensor in interpolation.line_tensors(end).items()}
    storage = start[0].weight.data_ptr()
    seen = interpolation.walk(
        start, interpolation.line_tensors(end), alphas,
        lambda: {name: tensor.clone() for name, tensor in interpolation.line_tensors(start).items()},
    )  # fmt: skip
    for name, tensor in before.items():
        as_bits = [seen[place][name].view(torch.int32) for place in (0, -1)]
        assert torch.equal(as_bits[0], tensor.view(torch.int32))
        assert torch.equal(as_bits[1], target[name].view(torch.int32))
        for alpha, point in zip(alphas, seen, strict=True):
            exact = (1 - alpha) * tensor.double() + alpha * target[name].double()
            # at most 21 roundings of half a unit of float32, of numbers below 2
            torch.testing.assert_close(point[name].double(), exact, rtol=0, atol=21 * 2**-24)
    assert start[0].weight.data_ptr() == storage
    assert all(torch.equal(tensor, target[name]) for name, tensor in interpolation.line_tensors(end).items())


def test_a_line_from_a_model_to_itself_never_leaves_it():
    model = layers(2)
    before = {name: tensor.clone() for name, tensor in interpolation.line_tensors(model).items()}

    def is_unchanged() -> bool:
        return all(torch.equal(tensor, before[name]) for name, tensor in interpolation.line_tensors(model).items())

    assert all(interpolation.walk(model, dict(before), interpolation.points(21), is_unchanged))


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (nn.Linear(3, 2), nn.Linear(3, 4), r"parameter weight is \[2, 3\] at the start and \[4, 3\] at the end"),
        (nn.Linear(3, 2), nn.Linear(3, 2, bias=False), "the start has a parameter bias, which the end lacks"),
        (nn.Linear(3, 2, bias=False), nn.Linear(3, 2), "the end has a parameter bias, which the start lacks"),
    ],
)
def test_models_of_different_shapes_have_no_line(start: nn.Module, end: nn.Module, message: str):
    with pytest.raises(ValueError, match=message):
        interpolation.walk(start, interpolation.line_tensors(end), interpolation.points(3), lambda: None)


def test_buffers_that_differ_are_named_or_refused():
    start, end = layers(3), layers(3)
    assert interpolation.check_buffers(start, end) == []
    end[1].running_mean += 1
    assert interpolation.check_buffers(start, end) == ["1.running_mean"]
    end[1].num_batches_tracked += 1
    with pytest.raises(ValueError, match=r"the buffer 1\.num_batches_tracked differs between the two models"):
        interpolation.check_buffers(start, end)


def test_item_losses_equal_torchs():
    outputs, labels = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32), np.arange(9) % 3
    expected = nn.functional.cross_entropy(torch.tensor(outputs), torch.tensor(labels), reduction="none")
    np.testing.assert_allclose(interpolation.item_losses(outputs, labels, False), expected, rtol=1e-5)
    assert interpolation.item_losses(np.array([[1.5], [0.0]]), np.array([1.0, 2.0]), True).tolist() == [0.25, 4.0]
    with pytest.raises(FloatingPointError, match="NaN or infinite at a point of the line"):
        interpolation.item_losses(np.array([[np.nan, 0.0]]), np.array([0]), False)


def write_task(folder: Path, name: str, columns: tuple[str, str], labels: list, source: tuple[Path, Path]) -> None:
    """A task of the --data_dir layout whose first sentence is the toy's and whose second is empty but for a word."""
    target = folder / "glue" / name
    target.mkdir(parents=True)
    for path in source:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        pairs = [{columns[0]: row["sentence"], columns[1]: "film", "label": labels[row["label"]]} for row in rows]
        (target / path.name).write_text("\n".join(map(json.dumps, pairs)) + "\n")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory, sentence_files: tuple[Path, Path]) -> Path:
    folder = tmp_path_factory.mktemp("lmc_data")
    write_task(folder, "rte", ("sentence1", "sentence2"), [0, 1], sentence_files)
    write_task(folder, "stsb", ("sentence1", "sentence2"), [0.5, 4.0], sentence_files)
    return folder


def fine_tune(tiny_encoder: Path, data_dir: Path, output_dir: object, *more: object) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    options = [
        "--model_name_or_path", tiny_encoder, "--data_dir", data_dir, "--max_length", 16, "--noembed",
        "--per_device_train_batch_size", 8, "--learning_rate", 3e-3, "--num_train_epochs", 3,
        "--mixed_precision", "no", "--output_dir", output_dir, *more,
    ]  # fmt: skip
    assert Glue_prune_oneshot.main([str(word) for word in options]) == 0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, data_dir: Path) -> Path:
    """Saved models of two tasks with dense and two sparse transfers; of one task dense with another seed too."""
    root = tmp_path_factory.mktemp("models")
    template = root / "{task_name}" / "{transfer}" / "{strength}" / "{seed}"
    common = ("--save_model", "--max_train_samples", 60)
    strengths = ("--sparsity", 0.37, "--nm_ratio", "6:8")
    fine_tune(tiny_encoder, data_dir, template, *common, "--task_name", "rte", "stsb", "--seed", 41,
              "--sparse_method", "dense_transfer", "sparse_transfer", *strengths)  # fmt: skip
    fine_tune(tiny_encoder, data_dir, template, *common, "--task_name", "rte", "--seed", 42)
    return root


def interpolate(*argv: object) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Glue_interpolate.main([str(word) for word in argv])


LINE = Path("{task_name}") / "{pair}" / "{strength}" / "{seed}"


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """All pairs of one task and a kind of pair of the other, at five points."""
    root = tmp_path_factory.mktemp("lines")
    common = ("--results_dir", models, "--num_points", 5, "--output_dir", root / LINE)
    assert interpolate(*common, "--task_name", "rte") == 0
    assert interpolate(*common, "--task_name", "stsb", "--pairs", "dense-sparse") == 0
    return root


def result(folder: Path) -> dict:
    assert_keys_are_told(folder)
    return json.loads((folder / run_folder.RESULT_FILE).read_text())


@pytest.mark.slow
def test_the_tree_gives_every_pair(lines: Path):
    rows = run_folder.read_runs(lines)
    found = {(row["task"], row["pair"], row["strength"], row["seed"], row["end_seed"]) for row in rows}
    of_task = {
        ("dense-sparse", 0.37, 41, 41), ("dense-sparse", "6:8", 41, 41), ("dense-dense", None, 41, 42),
        *(("dense-pruned", strength, seed, seed) for strength in (0.37, "6:8") for seed in (41, 42)),
    }  # fmt: skip
    of_other = {("dense-sparse", 0.37, 41, 41), ("dense-sparse", "6:8", 41, 41)}
    assert found == {*(("rte", *pair) for pair in of_task), *(("stsb", *pair) for pair in of_other)}
    assert {row["level"] for row in rows} == {"0", "0.25", "0.5", "0.75", "1"}
    assert {row["setting"] for row in rows} == {"interpolation"} and len(rows) == (7 + 2) * 5
    assert all("transfer" not in row for row in rows)  # what tables of fine-tuning pass over
    (control,) = (row for row in rows if (row["task"], row["pair"], row["level"]) == ("rte", "dense-dense", "0"))
    assert (control["compression"], control["measured_sparsity"]) == ("dense", 0)
    sparse = next(row for row in rows if (row["pair"], row["strength"]) == ("dense-sparse", "6:8"))
    pruned = next(row for row in rows if (row["pair"], row["strength"]) == ("dense-pruned", "6:8"))
    assert sparse["measured_sparsity"] == pruned["measured_sparsity"] == sparse["requested_sparsity"] == 0.25


@pytest.mark.parametrize("task", ["rte", "stsb"])
def test_the_ends_reproduce_the_two_models_own_scores_exactly(lines: Path, models: Path, task: str):
    """Of the runs that fine-tuned them: same rows, float32, the same items one by one."""
    pairs = [
        ("dense-sparse", "0.37", "41", "sparse_transfer/0.37/41"),
        ("dense-sparse", "6of8", "41", "sparse_transfer/6of8/41"),
        ("dense-dense", "dense", "41-42", "dense_transfer/dense/42"),
    ]
    for pair, strength, seed, end in pairs if task == "rte" else pairs[:2]:
        line = result(lines / task / pair / strength / seed)
        items = run_folder.read_items(lines / task / pair / strength / seed)
        for place, model in ((0, models / task / "dense_transfer/dense/41"), (-1, models / task / end)):
            assert line["levels"][place]["score"] == result(model)["levels"][0]["score"]
            # a bootstrap's standard error of 1,000 draws, and the binomial one or that of 200 draws
            assert line["levels"][place]["stderr"] == pytest.approx(result(model)["levels"][0]["stderr"], rel=0.25)
            own = run_folder.read_items(model)
            np.testing.assert_array_equal(items["prediction"][:, place], own["prediction"])
            np.testing.assert_array_equal(items["label"], own["label"])


def test_items_add_up_to_the_levels(lines: Path):
    for task in ("rte", "stsb"):
        folder = lines / task / "dense-sparse" / "0.37" / "41"
        items, levels = run_folder.read_items(folder), result(folder)["levels"]
        assert items["loss"].shape == items["prediction"].shape == (37, 5)
        for place, level in enumerate(levels):
            assert level["validation_loss"] == pytest.approx(float(items["loss"][:, place].mean()), rel=1e-6)
            assert level["train_loss"] == pytest.approx(float(items["train_loss"][:, place].mean()), rel=1e-6)
        errors = items["prediction"] != items["label"][:, None]
        if task == "rte":
            assert [level["score"] for level in levels] == (1 - errors.mean(axis=0)).tolist()
        else:
            squares = (items["prediction"] - items["label"][:, None]) ** 2
            np.testing.assert_allclose(items["loss"], squares, rtol=1e-5)
            assert {level["metric"] for level in levels} == {"pearson"}


def test_a_point_between_is_the_mean_of_the_saved_weights(lines: Path, models: Path, sentence_files):
    """A brute-force twin of the middle: weights averaged from the two files, loss by transformers itself."""
    ends = [models / "rte" / name / "41/model" for name in ("dense_transfer/dense", "sparse_transfer/0.37")]
    weights = [load_file(end / "model.safetensors") for end in ends]
    model = AutoModelForSequenceClassification.from_pretrained(ends[0]).eval()
    model.load_state_dict({name: (tensor + weights[1][name]) / 2 for name, tensor in weights[0].items()})
    tokenizer = AutoTokenizer.from_pretrained(ends[0])
    losses = []
    for row in map(json.loads, sentence_files[1].read_text().splitlines()):
        encoded = tokenizer(row["sentence"], "film", truncation=True, max_length=16, return_tensors="pt")
        losses.append(float(model(**encoded, labels=torch.tensor([row["label"]])).loss.detach()))
    measured = run_folder.read_items(lines / "rte/dense-sparse/0.37/41")["loss"][:, 2]
    np.testing.assert_allclose(measured, losses, rtol=1e-4)


def test_barriers_are_those_of_the_levels(lines: Path):
    run = result(lines / "rte" / "dense-sparse" / "0.37" / "41")
    curves = {
        ("train", "loss"): [level["train_loss"] for level in run["levels"]],
        ("train", "error"): [1 - level["train_score"] for level in run["levels"]],
        ("validation", "loss"): [level["validation_loss"] for level in run["levels"]],
        ("validation", "error"): [1 - level["score"] for level in run["levels"]],
    }
    alphas = [level["alpha"] for level in run["levels"]]
    assert len(run["barriers"]) == 8
    for row in run["barriers"]:
        expected = estimators.barrier(curves[row["split"], row["quantity"]], alphas, row["definition"])
        assert (row["barrier"], row["alpha"]) == pytest.approx(expected)
        assert 0 <= row["low"] <= row["high"]


def test_the_pruned_copy_is_the_start_without_its_smallest_weights(models: Path, tiny_encoder: Path):
    start = model_pairs.saved_model(models / "rte/dense_transfer/dense/41")
    pair = model_pairs.Pair("dense-pruned", start, None, Strength(0.37))
    accelerator = training.start_accelerator("no")
    model, end, sparsity = interpolation.load_ends(pair, 2, False, accelerator)
    own = interpolation.line_tensors(model)
    changed = {name for name in own if not torch.equal(own[name], end[name])}
    assert changed and not any("classifier" in name or "embeddings" in name or "bias" in name for name in changed)
    kept = torch.cat([own[name][end[name] != 0].abs() for name in changed])
    dropped = torch.cat([own[name][end[name] == 0].abs() for name in changed])
    assert dropped.max() <= kept.min() and len(dropped) == round(0.37 * (len(kept) + len(dropped)))
    assert sparsity == len(dropped) / (len(kept) + len(dropped))
    assert all(torch.equal(own[name][end[name] != 0], end[name][end[name] != 0]) for name in changed)


def test_a_model_and_itself_have_no_barrier(models: Path, tmp_path: Path):
    one = models / "rte" / "dense_transfer" / "dense" / "41"
    assert interpolate("--start", one, "--end", one / "model", "--num_points", 4, "--output_dir", tmp_path) == 0
    run = result(tmp_path)
    assert {(row["barrier"], row["low"] or 0) for row in run["barriers"]} == {(0, 0)}
    assert len({level["score"] for level in run["levels"]}) == 1


def test_a_task_from_files_and_a_start_that_is_not_dense(
    tiny_encoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path
):
    AcceleratorState._reset_state(reset_partial_state=True)
    train, validation = map(str, sentence_files)
    Glue_prune_oneshot.main([
        "--model_name_or_path", str(tiny_encoder), "--train_file", train, "--validation_file", validation,
        "--max_length", "16", "--num_train_epochs", "1", "--noembed", "--mixed_precision", "no", "--save_model",
        "--sparse_method", "sparse_transfer", "--sparsity", "0.2", "--output_dir", str(tmp_path / "model"),
    ])  # fmt: skip
    line = tmp_path / "line"
    assert interpolate("--start", tmp_path / "model", "--sparsity", 0.6, "--num_points", 3, "--output_dir", line) == 0
    run = result(line)
    assert (run["task"], run["pair"], run["strength"]) == ("toy", "sparse-pruned", 0.6)
    assert run["measured_sparsity"] == pytest.approx(0.6, abs=1e-4)  # of a whole number of weights
    assert run["levels"][0]["score"] == result(tmp_path / "model")["levels"][0]["score"]


def test_the_rows_of_a_line_are_those_that_its_start_was_evaluated_on(models: Path):
    start = model_pairs.saved_model(models / "rte/dense_transfer/dense/41")
    limited = start._replace(arguments={**start.arguments, "max_eval_samples": 10})
    for measured_on, model, given in ((None, start, None), (10, limited, None), (4, limited, 4)):
        measurement = interpolation.Measurement(5, 60, 8, 0, max_eval_samples=given)
        assert measurement.evaluated_rows(model_pairs.pruned_pair(model, Strength(0.5))) == measured_on


def test_lines_share_rows_of_the_same_length_and_number_alone(models: Path):
    start = model_pairs.saved_model(models / "rte/dense_transfer/dense/41")
    shorter, fewer = (
        start._replace(arguments={**start.arguments, name: value})
        for name, value in (("max_length", 6), ("max_eval_samples", 3))
    )
    inputs = interpolation.shared_inputs(interpolation.Measurement(5, 60, 8, 0))
    first, short, few, again = (
        inputs(model_pairs.pruned_pair(model, Strength(0.5))) for model in (start, shorter, fewer, start)
    )
    assert first is again and max(short.train["length"][:]) == 6 < max(first.train["length"][:])
    assert [len(own.validation[""]) for own in (first, short, few)] == [37, 37, 3]


def test_a_pruned_end_is_ranked_by_the_options_of_its_start(models: Path):
    start = model_pairs.saved_model(models / "rte/dense_transfer/dense/41")
    other = {**start.arguments, "magnitude_scope": "layer", "noembed": False, "prune_new_head": True}
    strength = Strength(0.5)
    made = [model_pairs.pruning_of(model_pairs.pruned_pair(start._replace(arguments=arguments), strength))
            for arguments in (start.arguments, other)]  # fmt: skip
    assert made == [Pruning((strength,), "global", False, False), Pruning((strength,), "layer", True, True)]


def test_of_two_sparse_ends_the_end_gives_the_strength(models: Path):
    names = ("dense_transfer/dense", "sparse_transfer/0.37", "sparse_transfer/6of8")
    dense, sparse, other = (model_pairs.saved_model(models / "rte" / name / "41") for name in names)
    for start, end, strength in ((dense, sparse, 0.37), (sparse, dense, 0.37), (sparse, other, "6:8")):
        pair = model_pairs.named_pair(start, end)
        assert model_pairs.describe(pair)["strength"] == strength
        sparsity = interpolation.load_ends(pair, 2, False, training.start_accelerator("no"))[2]
        assert sparsity == (sparse if strength == 0.37 else other).result["measured_sparsity"]


def test_the_hashes_of_a_line_are_those_of_its_two_ends(models: Path):
    names = ("dense_transfer/dense", "sparse_transfer/0.37")
    ends = [model_pairs.saved_model(models / "rte" / name / "41") for name in names]
    made = interpolation.identity(interpolation.Measurement(5, 60, 8, 0), model_pairs.named_pair(*ends))
    assert [made[f"{end}_sha256"] for end in ("start", "end")] == [
        sha256([end.files / "model.safetensors"]) for end in ends
    ]


def test_levels_by_hand():
    """30 of 40 validation rows and 10 of 20 training rows are of class 1; half and none are right first, then all."""
    lines = {}
    for split, ones, count in (("train", 10, 20), ("validation", 30, 40)):
        label = (np.arange(count) < ones).astype(int)
        right = np.stack(
            [np.where(np.arange(count) % 2 if split == "validation" else False, label, 1 - label), label], axis=1
        )
        lines[split] = {"label": label, "prediction": right, "loss": (right != label[:, None]).astype(float)}
    first, last = interpolation.levels("accuracy", np.array([0.0, 1.0]), lines, seed=0)
    assert (first["score"], first["train_score"], first["validation_loss"], first["train_loss"]) == (0.5, 0.0, 0.5, 1.0)
    assert (last["score"], last["train_score"], last["alpha"]) == (1.0, 1.0, 1.0)
    assert first["chance"] == last["chance"] == 0.75 and first["num_examples"] == 40
    assert first["stderr"] == pytest.approx((0.5 * 0.5 / 40) ** 0.5, rel=0.1)  # 1,000 resamples are good to 2 %
    assert last["stderr"] < 0.5 * first["stderr"]


def test_training_rows_are_those_that_both_ends_saw(lines: Path, models: Path):
    """60 of 90 rows each; the two seeds drew different ones."""
    seen = {seed: set(np.random.default_rng(seed).permutation(90)[:60].tolist()) for seed in (41, 42)}
    alone = run_folder.read_items(lines / "rte/dense-sparse/0.37/41")["train_row"]
    assert set(alone.tolist()) == seen[41]
    common = run_folder.read_items(lines / "rte/dense-dense/dense/41-42")["train_row"]
    assert set(common.tolist()) == seen[41] & seen[42] and len(common) < 60
    pair = model_pairs.named_pair(*(model_pairs.saved_model(models / f"rte/dense_transfer/dense/{s}") for s in seen))
    some = interpolation.common_rows(pair, 90, 10, seed=1)
    assert len(some) == 10 and set(some) < seen[41] & seen[42]
    assert some == interpolation.common_rows(pair, 90, 10, seed=1)
    assert some != interpolation.common_rows(pair, 90, 10, seed=2)


def test_no_training_row_in_common(models: Path):
    ends = [model_pairs.saved_model(models / f"rte/dense_transfer/dense/{seed}") for seed in (41, 42)]
    ends = [end._replace(arguments={**end.arguments, "max_train_samples": 1}) for end in ends]
    with pytest.raises(ValueError, match="were trained on no row in common"):
        interpolation.common_rows(model_pairs.named_pair(*ends), 90, 10, seed=1)


def test_a_second_call_computes_nothing(lines: Path, models: Path, monkeypatch: pytest.MonkeyPatch):
    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(pretrained, "load_pretrained", load)
    argv = ["--results_dir", models, "--task_name", "rte", "--num_points", 5, "--output_dir", lines / LINE]
    assert interpolate(*argv) == 0


def test_listed_commands_are_the_same_lines(lines: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    argv = ["--results_dir", models, "--task_name", "rte", "--num_points", 5]
    assert interpolate(*argv, "--output_dir", tmp_path / LINE, "--list_cells") == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 7 and not any(tmp_path.iterdir())
    for command in (commands[0], *(line for line in commands if "--nm_ratio" in line)):
        assert interpolate(*shlex.split(command)[2:]) == 0
    for row in run_folder.read_runs(tmp_path):
        twin = lines / Path(row["folder"]).relative_to(tmp_path)
        assert run_folder.recorded_arguments(Path(row["folder"])) == run_folder.recorded_arguments(twin)
        assert row["validation_loss"] == result(twin)["levels"][row["level_index"]]["validation_loss"]


def identity(folder: Path, trust_remote_code: bool = False, **options: bool) -> dict:
    """The identity of the line from RTE's dense model to its pruned copy, with other options of the start's run."""
    start = model_pairs.saved_model(folder / "dense_transfer/dense/41")
    start = start._replace(arguments={**start.arguments, **options})
    pair = model_pairs.pruned_pair(start, Strength(sparsity=0.37))
    return interpolation.identity(
        interpolation.Measurement(5, 60, 128, 42, trust_remote_code=trust_remote_code), pair
    )  # fmt: skip


def test_another_choice_of_the_weights_to_prune_is_another_line(models: Path):
    line = identity(models / "rte")
    assert line["pruning"] == {"noembed": True, "prune_new_head": False}
    for option, value in (("noembed", False), ("prune_new_head", True)):
        (changed,) = records.differences(line, identity(models / "rte", **{option: value}))
        assert changed.startswith("pruning: ")
    saved = [model_pairs.saved_model(models / "rte/dense_transfer/dense" / seed) for seed in ("41", "42")]
    assert model_pairs.pruning_options(model_pairs.named_pair(*saved)) is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", {"hidden_act": "relu"}, "start_config_sha256"),
        ("tokenizer_config.json", {"do_lower_case": True}, "start_tokenizer_sha256"),
        ("modeling_own.py", None, "start_code_sha256"),
    ],
)
def test_an_end_whose_files_were_edited_is_another(copied: Path, name: str, content: dict | None, said: str):
    before, file = identity(copied, trust_remote_code=True), copied / "dense_transfer/dense/41/model" / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **content} if content else {}))
    (changed,) = records.differences(before, identity(copied, trust_remote_code=True))
    assert changed.startswith(f"{said}: ")
    older = {name: value for name, value in before.items() if name not in (*records.END_FILES, "pruning")}
    assert not records.differences(older, before) and not records.differences(older, identity(copied))
    assert len({records.recipe(line, records.COORDINATES["line"]) for line in (older, before)}) == 1


@pytest.fixture
def error(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Call the script with a mistake; the last line that it prints before any model is loaded."""

    def load(*_):
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr(pretrained, "load_pretrained", load)

    def call(*words: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            interpolate(*words, "--output_dir", tmp_path / "out" / LINE)
        assert stopped.value.code == 2 and not (tmp_path / "out").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    return call


@pytest.fixture
def copied(models: Path, tmp_path: Path) -> Path:
    """A tree of RTE's models that a test may spoil."""
    return Path(shutil.copytree(models / "rte", tmp_path / "copied"))


def test_two_points(error, models: Path):
    assert "--num_points: 2 is outside [3, 10001]" in error("--results_dir", models, "--num_points", 2)


def test_options_that_do_not_go_together(error, models: Path):
    one = models / "rte/dense_transfer/dense/41"
    assert "give either --results_dir or --start" in error()
    assert "give either --results_dir or --start" in error("--results_dir", models, "--start", one)
    assert "--start takes either --end, or --sparsity or --nm_ratio" in error("--start", one)
    assert "--start takes either --end, or" in error("--start", one, "--end", one, "--sparsity", 0.5)
    assert "--end goes with --start" in error("--results_dir", models, "--end", one)
    assert "--pairs goes with --results_dir" in error("--start", one, "--end", one, "--pairs", "dense-dense")
    message = error("--results_dir", models, "--pairs", "dense-dense", "--sparsity", 0.5)
    assert "--sparsity and --nm_ratio are of dense-pruned, which --pairs leaves out" in message


def test_folders_that_are_not_there(error, models: Path, tmp_path: Path):
    nowhere = tmp_path / "nowhere"
    assert f"--results_dir {nowhere}: no such folder" in error("--results_dir", nowhere)
    assert f"{nowhere}: no such folder" in error("--start", nowhere, "--sparsity", 0.5)
    assert f"--data_dir {nowhere} is no folder" in error("--results_dir", models, "--data_dir", nowhere)
    assert f"{tmp_path} holds no complete run of Glue_prune_oneshot.py" in error("--start", tmp_path, "--sparsity", 0.5)


def test_runs_without_their_models(error, copied: Path):
    one = copied / "dense_transfer/dense/41"
    shutil.rmtree(one / "model")
    message = error("--start", one, "--sparsity", 0.5)
    assert f"{one} has no model/*.safetensors: the run was made without --save_model" in message
    for folder in copied.rglob("model"):
        shutil.rmtree(folder)
    assert "none of its 4 runs of Glue_prune_oneshot.py left a model; make them with --save_model" in error(
        "--results_dir", copied
    )


def test_a_model_that_an_overwritten_run_left_is_no_end(error, copied: Path):
    """As trees of earlier versions have it: the run that is there now saved none."""
    one = copied / "dense_transfer/dense/41"
    record = json.loads((one / run_folder.ARGUMENTS_FILE).read_text())
    record["arguments"]["save_model"] = False
    (one / run_folder.ARGUMENTS_FILE).write_text(json.dumps(record))
    message = error("--start", one, "--sparsity", 0.5)
    assert f"{one} has no model/*.safetensors: the run was made without --save_model" in message


def test_a_task_that_was_not_saved(error, models: Path):
    message = error("--results_dir", models, "--task_name", "QQP")
    assert "--task_name qqp: no saved model of that task; there are rte, stsb" in message
    one = models / "rte/dense_transfer/dense/41"
    message = error("--start", one, "--sparsity", 0.5, "--task_name", "stsb")
    assert f"--task_name stsb: {one} learned rte" in message


def test_one_seed_has_no_control(error, copied: Path):
    shutil.rmtree(copied / "dense_transfer/dense/42")
    message = error("--results_dir", copied)
    assert "--pairs dense-dense: rte, 1 of the data: dense_transfer was saved with --seed 41 alone" in message
    assert "leave dense-dense out of --pairs" in message


def test_ends_that_lack(error, copied: Path):
    shutil.rmtree(copied / "dense_transfer/dense/41")
    message = error("--results_dir", copied, "--pairs", "dense-sparse")
    assert "no saved model of dense_transfer with --seed 41, as sparse has" in message
    shutil.rmtree(copied / "sparse_transfer")
    message = error("--results_dir", copied, "--pairs", "dense-sparse")
    assert "--pairs dense-sparse: rte, 1 of the data: no saved model of sparse_transfer" in message
    message = error("--results_dir", copied, "--pairs", "dense-pruned")
    assert "no sparse_transfer whose strengths could be taken; give --sparsity or --nm_ratio" in message


def test_no_dense_model_at_all(error, copied: Path):
    shutil.rmtree(copied / "dense_transfer")
    assert "rte, 1 of the data: no saved model of dense_transfer, where lines start" in error("--results_dir", copied)


def test_models_of_two_tasks(error, models: Path):
    ends = [models / task / "dense_transfer/dense/41" for task in ("rte", "stsb")]
    message = error("--start", ends[0], "--end", ends[1])
    assert f"{ends[0]} and {ends[1]} were fine-tuned on different tasks: rte and stsb" in message


def rewrite(path: Path, **changed: object) -> None:
    content = json.loads(path.read_text())
    content["arguments"].update(changed)
    path.write_text(json.dumps(content))


def test_another_head_or_shape_names_the_parameter(error, copied: Path):
    ends = copied / "dense_transfer/dense/41", copied / "sparse_transfer/0.37/41"
    path = ends[1] / "model/model.safetensors"
    weights = load_file(path)
    save_file({**weights, "classifier.weight": torch.zeros(3, 32)}, path, {"format": "pt"})
    message = error("--start", ends[0], "--end", ends[1])
    assert "the parameter classifier.weight is [2, 32] at the start and [3, 32] at the end" in message
    assert "different shapes or heads have no line" in message
    save_file({name: weights[name] for name in weights if name != "classifier.bias"}, path, {"format": "pt"})
    message = error("--results_dir", copied)
    assert "the start has a parameter classifier.bias, which the end lacks" in message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_sha256": "other", "model_name_or_path": "b"}, "were fine-tuned from different pretrained models"),
        ({"data_content_sha256": "other"}, "were fine-tuned on different data"),
        ({"max_length": 8}, "differ in --max_length: 16 and 8"),
    ],
)
def test_ends_of_different_origin(error, copied: Path, changed: dict, message: str):
    ends = copied / "dense_transfer/dense/41", copied / "sparse_transfer/0.37/41"
    rewrite(ends[1] / "args.json", **changed)
    assert message in error("--start", ends[0], "--end", ends[1])


def test_data_other_than_those_of_the_training(error, models: Path, data_dir: Path, tmp_path: Path):
    other = Path(shutil.copytree(data_dir, tmp_path / "data"))
    with (other / "glue/rte/train.jsonl").open("a") as stream:
        stream.write(json.dumps({"sentence1": "good", "sentence2": "film", "label": 1}) + "\n")
    message = error("--start", models / "rte/dense_transfer/dense/41", "--sparsity", 0.5, "--data_dir", other)
    assert "was fine-tuned on other data than" in message and "give its --data_dir" in message


def test_a_file_that_is_cut_off(error, copied: Path):
    path = copied / "sparse_transfer/0.37/41/model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{path} cannot be read as safetensors" in error("--results_dir", copied)


def test_a_head_of_another_kind(error, copied: Path):
    one = copied / "dense_transfer/dense/41"
    config = json.loads((one / "model/config.json").read_text())
    config["architectures"] = ["BertForMultipleChoice"]
    (one / "model/config.json").write_text(json.dumps(config))
    assert "model is no ForSequenceClassification" in error("--start", one, "--sparsity", 0.5)


def test_groups_that_do_not_divide_a_layer(error, models: Path):
    message = error("--start", models / "rte/dense_transfer/dense/41", "--nm_ratio", "3:5")
    assert "--nm_ratio 3:5" in message and "no multiple of 5" in message


def test_output_dir_without_the_placeholders(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        interpolate("--results_dir", models, "--task_name", "rte", "--output_dir", tmp_path / "{pair}")
    assert "gives several runs the folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--list_cells"], ["--overwrite", "--trust_remote_code"]])
def test_lmc_trains_then_draws_the_lines(words: list[str], tmp_path: Path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/lmc.sh"), *words], capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path), "OUT": "runs/x", "POINTS": "31"},
    )  # fmt: skip
    training, *rest = done.stdout.splitlines()
    assert training.startswith("GLUE_tasks/Glue_prune_oneshot.py") and "--save_model" in training
    assert "--task_name qqp stsb qnli rte" in training and "--seed 41 42" in training
    assert "runs/x/models/{task_name}/{transfer}/{strength}" in training
    lines = [shlex.split(line) for line in rest if line.startswith("GLUE_tasks/Glue_interpolate.py")]
    if "--list_cells" in words:
        assert not rest
        return
    args = Glue_interpolate.parse(Glue_interpolate.make_parser(), lines[0][1:])
    assert args.overwrite == args.trust_remote_code == bool(words)
    assert args.results_dir == Path("runs/x/models") and args.num_points == 31 and len(lines) == 1
    assert tuple(args.pairs) == model_pairs.KINDS and args.task_name == ["qqp", "stsb", "qnli", "rte"]
    assert rest[-1] == "scripts/plot_results.py --results_dir runs/x --output_dir runs/x/figures"


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_resampled_losses_are_means_of_the_items_drawn_at_all_points_alike():
    """Items lose 0 or 1, and 0.25 more halfway: so does every mean of them; one item's bow is higher, one's lower."""
    losses = np.array([0.0, 0, 0, 1, 1, 1])[:, None] + np.array([0, 0.25, 0])
    losses[[0, 5], 1] += [0.5, -0.5]
    found = interpolation.resampled_losses({"loss": losses}, np.array([0, 0.5, 1]), seed=0)
    assert found.curves.shape == (interpolation.RESAMPLES, 3) and found.items == 6
    assert (found.tall.tolist(), found.flat.tolist()) == ([0, 0.75, 0], [1, 0.75, 1])
    np.testing.assert_allclose(found.curves[:, 2], found.curves[:, 0], atol=1e-12)
    assert found.curves.mean(axis=0) == pytest.approx([0.5, 0.75, 0.5], abs=0.03)
