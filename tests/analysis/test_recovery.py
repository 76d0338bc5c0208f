"""What comes back: curves beside their control, levels before and after, by hand; what is refused; the script."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import recovery, recovery_plots
from analysis.flips import flip_table
from analysis.kinds import describe
from analysis.names import with_bounds
from analysis.recovery import AT_CHANCE, BACK, BELOW_CONTROL, IN_PART, LIKE_CONTROL, NOT_BACK, NOT_LOST, OPEN
from analysis.summary import cautions
from analysis.table import level_table
from harness import run_folder

SHARED = {
    "model": "m/tiny", "magnitude_scope": None, "requested_sparsity": 0.0, "measured_sparsity": 0.0, "seed": 0,
    "seconds": 1.0, "peak_memory_bytes": 1, "recipe": "r",
}  # fmt: skip
DENSE = {"compression": "dense", "strength_kind": None, "strength": None}
WANDA = {"compression": "wanda", "strength_kind": "sparsity", "strength": 0.5}
LOSSES = {  # windows by steps 0, 10, 20
    "dense_transfer": [[2.0, 1.9, 1.8], [4.0, 3.9, 3.8]],
    "sparse_transfer": [[3.0, 2.5, 2.3], [5.0, 4.5, 4.3]],
    "dense_transfer_freezing": [[2.0, 1.9, 1.9], [4.0, 4.0, 3.9]],
}


def write(folder: Path, result: dict[str, Any], items: dict[str, np.ndarray]) -> None:
    run_folder.start_run(folder, {"train_text": "t"} if result["setting"] == "recovery" else {}, {})
    run_folder.write_run(folder, {**SHARED, **result}, items)


def level(name: str, scores: list[float], chance: float = 0.5) -> dict[str, Any]:
    return {
        "level": name, "difficulty": 1.0, "metric": "accuracy", "score": float(np.mean(scores)), "chance": chance,
        "stderr": float(np.std(scores, ddof=1) / len(scores) ** 0.5), "num_examples": len(scores), "dataset": "d",
        "reader": "cloze", "human": None, "metrics": {}, "facts": {},
    }  # fmt: skip


def train(folder: Path, transfer: str, losses: list[list[float]], **facts: Any) -> None:
    curve = [{"step": step, "perplexity": 1.0, "stderr": None} for step in (0, 10, 20)]
    result = {
        "setting": "recovery", "task": "wiki", "transfer": transfer, "num_steps": 20, "num_train_tokens": 2000,
        "train_windows_sha256": "w", "curve": curve, "levels": [level("wiki", [1.0, 2.0])],
        **(DENSE if transfer == "dense_transfer" else WANDA), **facts,
    }  # fmt: skip
    write(folder, result, {"curve_loss": np.array(losses)})


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    for transfer, losses in LOSSES.items():
        train(tmp_path / transfer, transfer, losses)
    return tmp_path


def test_curves_by_hand(trained: Path):
    table = recovery.curve_table(run_folder.read_runs(trained))
    found = {(row["transfer"], row["step"]): row for row in table}
    assert len(table) == 9 and table[0]["transfer"] == "dense_transfer"
    first, last = found["sparse_transfer", 0], found["sparse_transfer", 20]
    assert first["perplexity"] == pytest.approx(math.exp(4)) and last["perplexity"] == pytest.approx(math.exp(3.3))
    assert last["control_perplexity"] == pytest.approx(math.exp(2.8)) and last["tokens"] == 2000
    assert first["loss_above_control"] == pytest.approx(1) and last["loss_above_control"] == pytest.approx(0.5)
    assert first["gap_closed"] is None and last["gap_closed"] == pytest.approx(0.5)
    assert found["sparse_transfer", 10]["gap_closed"] == pytest.approx(0.4)
    assert [found["sparse_transfer", step]["tokens"] for step in (0, 10)] == [0, 1000]
    frozen = found["dense_transfer_freezing", 20]
    assert frozen["loss_above_control"] == pytest.approx(0.1) and frozen["gap_closed"] is None
    assert found["dense_transfer", 20]["loss_above_control"] is None
    # Student's interval of two windows: 12.706 standard errors, which are half their distance
    assert last["high"] == pytest.approx(math.exp(3.3 + 12.7062), rel=1e-3)
    assert last["above_low"] == pytest.approx(0.5) == last["above_high"]


def test_a_training_without_its_control_is_left_out_and_named(trained: Path):
    train(trained / "other", "sparse_to_dense", LOSSES["sparse_transfer"], train_windows_sha256="others")
    rows = run_folder.read_runs(trained)
    (told,) = recovery.uncontrolled(rows)
    assert "other has no control: no run of dense_transfer on the same windows" in told
    assert {row["transfer"] for row in recovery.curve_table(rows)} == set(LOSSES)


def test_other_steps_or_windows_than_the_control_are_left_out_and_named(trained: Path):
    train(trained / "other", "sparse_to_dense", LOSSES["sparse_transfer"], curve=[{"step": 0}, {"step": 20}])
    (told,) = recovery.uncontrolled(run_folder.read_runs(trained))
    assert "measured at different steps" in told
    train(trained / "other", "sparse_to_dense", LOSSES["sparse_transfer"][:1])
    rows = run_folder.read_runs(trained)
    assert "measured on different windows" in recovery.uncontrolled(rows)[0] and len(recovery.curve_table(rows)) == 9


ITEMS = 40


def answers(right: int) -> list[float]:
    return [1.0] * right + [0.0] * (ITEMS - right)


def measure(folder: Path, scores: list[float], seed: int = 0, **facts: Any) -> None:
    names = np.array([f"i{number}" for number in range(ITEMS)])
    items = {"level": np.zeros(ITEMS, int), "item": names, "group": names, "score": np.array(scores)}
    write(folder, {"setting": 2, "task": "options", "seed": seed, **facts, "levels": [level("3", scores)]}, items)


def from_training(transfer: str) -> dict[str, Any]:
    origin = {
        **(DENSE if transfer == "dense_transfer" else WANDA), "magnitude_scope": None, "transfer": transfer, "seed": 0,
        "num_steps": 20, "requested_sparsity": 0.5, "train_windows_sha256": "w",
    }  # fmt: skip
    return {
        "compression": f"checkpoint:{transfer}",
        "strength_kind": "bytes",
        "strength": 1.0,
        "recovered_from": origin,
    }


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    for name, facts, right in (
        ("dense", DENSE, 36), ("wanda", WANDA, 22), ("control", from_training("dense_transfer"), 38),
        ("sparse", from_training("sparse_transfer"), 26), ("frozen", from_training("dense_transfer_freezing"), 37),
    ):  # fmt: skip
        measure(tmp_path / "levels" / name, answers(right), **facts)
    return tmp_path


def test_levels_by_hand(measured: Path):
    rows = run_folder.read_runs(measured)
    table = recovery.recovery_level_table(rows, 500)
    sparse, frozen = sorted(table, key=lambda row: row["transfer"], reverse=True)
    assert [sparse[name] for name in ("dense", "pruned", "control", "recovered")] == [0.9, 0.55, 0.95, 0.65]
    assert [sparse[name] for name in ("lost", "left")] == pytest.approx([-0.35, -0.3])
    # of 40 items 14 were lost (0.9 to 0.55); 12 are left, items 26 to 37; those back: 22 to 25, less 36 and 37
    assert sparse["back"] == pytest.approx((4 - 2) / 40)
    # flips say the same of the pruned model, whose outcomes are compared with the dense ones alone
    flipped = {row["compression"]: row for row in flip_table(rows, level_table(rows), 500)}["wanda"]
    assert [sparse["lost"], sparse["lost_low"], sparse["lost_high"]] == pytest.approx(
        [flipped["score_change"], flipped["score_change_low"], flipped["score_change_high"]]
    )
    # wider than Student's: the sample cannot show what it holds no case of
    values = np.array([0.0] * 22 + [1.0] * 4 + [0.0] * 10 + [-1.0] * 2 + [0.0] * 2)
    assert sparse["back_high"] - sparse["back"] > 2.0227 * values.std(ddof=1) / 40**0.5
    assert sparse["verdict"] == NOT_BACK and sparse["left_holm_p"] < 0.05
    assert frozen["lost"] is None and frozen["back"] is None and frozen["left"] == pytest.approx(-1 / 40)
    assert frozen["verdict"] == LIKE_CONTROL


def test_another_model_in_the_tree_changes_no_p_value(measured: Path):
    """p-values are corrected over one figure, and each model has its own."""
    alone = {row["transfer"]: row["left_holm_p"] for row in
             recovery.recovery_level_table(run_folder.read_runs(measured), 200)}  # fmt: skip
    for name, facts, right in (
        ("dense", DENSE, 36), ("wanda", WANDA, 22), ("control", from_training("dense_transfer"), 38),
        ("sparse", from_training("sparse_transfer"), 26),
    ):  # fmt: skip
        measure(measured / "other" / name, answers(right), **facts, model="another-model")
    table = recovery.recovery_level_table(run_folder.read_runs(measured), 200)
    assert len(table) == 3
    of_first = [row for row in table if row["model"] != "another-model"]
    assert {row["transfer"]: row["left_holm_p"] for row in of_first} == alone


def test_what_was_not_measured_beside_is_named(measured: Path):
    without = {"control": ("its control", 0), "wanda": ("the pruned model before training", 1),
               "dense": ("the dense model", 0)}  # fmt: skip
    for name, (what, left) in without.items():
        rows = [row for row in run_folder.read_runs(measured) if Path(row["folder"]).name != name]
        assert any(f"level 3: {what} were not measured beside it" in told for told in recovery.incomparable(rows)), name
        assert len(recovery.recovery_level_table(rows, 100)) == left


def test_a_model_pruned_on_another_text_or_of_another_seed_is_not_beside_it(measured: Path):
    origin = from_training("sparse_transfer")
    origin["recovered_from"] |= {"compression_recipe": "one", "seed": 3}
    measure(measured / "levels" / "sparse", answers(26), **origin)
    control = from_training("dense_transfer")
    control["recovered_from"] |= {"seed": 3}
    measure(measured / "levels" / "control", answers(38), **control)
    for facts, fits in (({"compression_recipe": "other"}, False), ({"compression_recipe": "one"}, True)):
        measure(measured / "levels" / "wanda", answers(22), **WANDA, **facts)
        table = recovery.recovery_level_table(run_folder.read_runs(measured), 100)
        assert [row["transfer"] for row in table].count("sparse_transfer") == fits
    # of several seeds it is the one that the training began with, and without that none
    measure(measured / "levels" / "another", answers(30), seed=1, **WANDA, compression_recipe="one")
    assert not recovery.recovery_level_table(run_folder.read_runs(measured), 100)
    measure(measured / "levels" / "third", answers(10), seed=3, **WANDA, compression_recipe="one")
    (row,) = recovery.recovery_level_table(run_folder.read_runs(measured), 100)
    assert row["pruned"] == 0.25


def test_a_control_trained_otherwise_is_not_beside_it(measured: Path):
    """With another learning rate on the same windows the control may win more, or less."""
    transfers = {"control": "dense_transfer", "sparse": "sparse_transfer", "frozen": "dense_transfer_freezing"}
    for name, right in (("control", 38), ("sparse", 26), ("frozen", 37)):
        origin = from_training(transfers[name])
        # The control was measured before recipes were recorded, or after.
        origin["recovered_from"] |= {} if name == "control" else {"recipe": "slow"}
        measure(measured / "levels" / name, answers(right), **origin)
    assert len(recovery.recovery_level_table(run_folder.read_runs(measured), 100)) == 2
    control = from_training("dense_transfer")
    control["recovered_from"] |= {"recipe": "slow"}
    measure(measured / "levels" / "control", answers(38), **control)
    other = from_training("dense_transfer")
    other["recovered_from"] |= {"recipe": "faster"}
    measure(measured / "levels" / "another", answers(31), **other)
    table = recovery.recovery_level_table(run_folder.read_runs(measured), 100)
    assert [row["control"] for row in table] == [0.95, 0.95]
    # Runs of before did not record it: of two controls that may fit, none is taken.
    other["recovered_from"] |= {"recipe": None}
    measure(measured / "levels" / "another", answers(31), **other)
    rows = run_folder.read_runs(measured)
    assert recovery.recovery_level_table(rows, 100) == []
    assert "its control were not measured beside it, or more than once" in recovery.incomparable(rows)[0]


def test_without_a_standard_error_nothing_is_told(measured: Path):
    """All items are about one document, so that runs recorded none; or another metric is drawn, which has its own."""
    for name, facts, right in (
        ("dense", DENSE, 36), ("wanda", WANDA, 22), ("control", from_training("dense_transfer"), 38),
        ("sparse", from_training("sparse_transfer"), 26), ("frozen", from_training("dense_transfer_freezing"), 37),
    ):  # fmt: skip
        scores = np.array(answers(right))
        names = np.array([f"i{number}" for number in range(ITEMS)])
        items = {"level": np.zeros(ITEMS, int), "item": names, "group": np.zeros(ITEMS, int), "score": scores}
        result = {
            "setting": 2,
            "task": "options",
            "seed": 0,
            **facts,
            "levels": [{**level("3", scores), "stderr": None}],
        }
        write(measured / "levels" / name, result, items)
    table = recovery.recovery_level_table(run_folder.read_runs(measured), 100)
    assert [(row["dense_above_chance"], row["verdict"]) for row in table] == [(None, OPEN)] * 2


def test_too_few_groups_cannot_be_told(measured: Path):
    names = np.array([f"i{number}" for number in range(ITEMS)])
    for name, facts, right in (
        ("dense", DENSE, 36), ("wanda", WANDA, 22), ("control", from_training("dense_transfer"), 38),
        ("sparse", from_training("sparse_transfer"), 26), ("frozen", from_training("dense_transfer_freezing"), 37),
    ):  # fmt: skip
        scores = np.array(answers(right))
        items = {"level": np.zeros(ITEMS, int), "item": names, "group": np.arange(ITEMS) // 8, "score": scores}
        result = {"setting": 2, "task": "options", "seed": 0, **facts, "levels": [level("3", scores)]}
        write(measured / "levels" / name, result, items)
    table = recovery.recovery_level_table(run_folder.read_runs(measured), 100)
    assert {row["verdict"] for row in table} == {OPEN} and {row["left_low"] for row in table} == {None}


@pytest.mark.parametrize(
    ("lost_high", "left", "left_p", "back", "back_p", "found"),
    [
        (-0.1, -0.2, 0.01, 0.0, 0.9, NOT_BACK),
        (-0.1, -0.2, 0.01, 0.2, 0.01, IN_PART),
        (-0.1, -0.02, 0.6, 0.2, 0.01, BACK),
        (-0.1, -0.1, 0.06, 0.1, 0.06, OPEN),
        (0.01, -0.2, 0.01, 0.0, 0.9, NOT_LOST),
        (-0.1, 0.2, 0.01, 0.4, 0.01, BACK),
    ],
)
def test_verdicts(lost_high, left, left_p, back, back_p, found):
    row = {"dense_above_chance": True, "control_above_chance": True, "transfer": "sparse_transfer", "left": left,
           "left_high": left, "lost_high": lost_high, "left_holm_p": left_p, "back": back,
           "back_holm_p": back_p}  # fmt: skip
    assert recovery.verdict(row) == found
    assert recovery.verdict({**row, "control_above_chance": False}) == AT_CHANCE
    frozen = {**row, "transfer": "dense_transfer_freezing"}
    is_below = left < 0 and left_p is not None and left_p <= 0.05
    assert recovery.verdict(frozen) == (BELOW_CONTROL if is_below else LIKE_CONTROL)


def test_curves_and_levels_are_parts_of_a_tree(trained: Path, measured: Path):
    train(trained / "other", "sparse_to_dense", LOSSES["sparse_transfer"], train_windows_sha256="others")
    tree = describe(run_folder.read_runs(trained), resamples=200)
    parts = {part.title: part for part in tree.parts if "training brings back" in part.title}
    assert list(parts) == ["What training brings back, tiny on wiki", "Levels that training brings back, tiny, seed 0"]
    curves, levels = parts.values()
    assert [part.plots[0].stem for part in (curves, levels)] == ["recovery_wiki_tiny", "recovery_levels_tiny"]
    assert all(part.plots[0].draw().axes for part in (curves, levels))
    told = "\n".join([*curves.lines, *levels.lines])
    assert "| Wanda, 50 % | Sparse Transfer | 0 | 0 % | 54.60 | 27.11 | 0.500 [0.500, 0.500] | 50 % |" in told
    assert "Verdicts: no worse seen than the control: 1; not back: 1." in told
    (sparse,) = [row for row in levels.plots[0].table if row["transfer"] == "sparse_transfer"]
    cells = [with_bounds(*(sparse[f"{name}{end}"] for end in ("", "_low", "_high")))
             for name in ("lost", "left", "back")]  # fmt: skip
    assert f"| 0.900 | 0.550 | 0.950 | 0.650 | {' | '.join(cells)} | not back |" in told
    assert "Wanda, 50 %, Sparse Transfer, seed 0: 50 %" in curves.plots[0].finding
    assert "Wanda, 50 %, Sparse Transfer: not back" in levels.plots[0].finding
    assert any("has no control" in caution for caution in cautions(tree))
    assert not any("No figure is made" in caution for caution in cautions(tree))


def test_models_and_texts_that_share_a_name_are_not_mixed(tmp_path: Path):
    for place, (model, text) in enumerate((("a/lm", "en/test.txt"), ("b/lm", "en/test.txt"), ("a/lm", "de/test.txt"))):
        for transfer in ("dense_transfer", "sparse_transfer"):
            losses = (np.array(LOSSES[transfer]) + place).tolist()
            train(tmp_path / str(place) / transfer, transfer, losses, model=model, task=text)
    plots = [part.plots[0] for part in describe(run_folder.read_runs(tmp_path), resamples=100).parts]
    assert len({plot.stem for plot in plots}) == 3
    ends = sorted([round(math.log(row["perplexity"]), 9) for row in plot.table if row["step"] == 20] for plot in plots)
    assert ends == [[2.8, 3.3], [3.8, 4.3], [4.8, 5.3]]  # the control's mean loss, then the pruned model's


def test_levels_of_two_models_of_one_name_are_two_families(measured: Path, tmp_path: Path):
    rows = run_folder.read_runs(measured)
    alone = recovery.recovery_level_table(rows, 200)
    both = recovery.recovery_level_table([*rows, *({**row, "model": "other/tiny"} for row in rows)], 200)
    assert [row["left_holm_p"] for row in both if row["model"] != "other/tiny"] == [row["left_holm_p"] for row in alone]


def test_curves_of_a_panel_are_means_over_the_same_seeds(tmp_path: Path):
    """The control has seed 1 too, in which everything is harder: beside a pruned model of seed 0 it does not count."""
    for seed, transfer in ((0, "dense_transfer"), (0, "sparse_transfer"), (1, "dense_transfer")):
        train(tmp_path / f"{transfer}{seed}", transfer, (np.array(LOSSES[transfer]) + seed).tolist(), seed=seed)
    figure = recovery_plots.perplexity_curves(recovery.curve_table(run_folder.read_runs(tmp_path)))
    ends = {line.get_label(): math.log(line.get_ydata()[-1]) for line in figure.axes[0].get_lines()}
    assert ends == pytest.approx({"Dense Transfer, the control": 2.8, "Sparse Transfer": 3.3})
    assert "One seed." in figure.get_supxlabel()
    frozen = (np.array(LOSSES["dense_transfer_freezing"]) + 1).tolist()
    train(tmp_path / "frozen", "dense_transfer_freezing", frozen, seed=1)
    figure = recovery_plots.perplexity_curves(recovery.curve_table(run_folder.read_runs(tmp_path)))
    assert sorted(axes.get_title() for axes in figure.axes) == ["Wanda, 50 %\nseed 0", "Wanda, 50 %\nseed 1"]


def test_a_control_alone_is_a_table_without_a_figure(tmp_path: Path):
    train(tmp_path / "control", "dense_transfer", LOSSES["dense_transfer"])
    (part,) = describe(run_folder.read_runs(tmp_path), resamples=100).parts
    assert part.plots[0].draw is None and part.plots[0].finding == "" and len(part.plots[0].table) == 3


def test_trainings_without_any_control_are_named(tmp_path: Path):
    train(tmp_path / "alone", "sparse_transfer", LOSSES["sparse_transfer"])
    (part,) = describe(run_folder.read_runs(tmp_path), resamples=100).parts
    assert part.plots == [] and "alone has no control" in part.cautions[0]


def test_curves_are_geometric_means_over_the_seeds(trained: Path):
    """The second seed has one nat more everywhere: half a nat more on average, with the mean of the bounds."""
    for transfer, losses in LOSSES.items():
        train(trained / f"{transfer} again", transfer, (np.array(losses) + 1).tolist(), seed=1)
    table = recovery.curve_table(run_folder.read_runs(trained))
    (axes,) = recovery_plots.perplexity_curves(table).axes
    (line,) = [line for line in axes.get_lines() if line.get_label() == "Sparse Transfer"]
    np.testing.assert_allclose(line.get_ydata(), np.exp([4.5, 4.0, 3.8]))


def test_levels_are_drawn_in_points_with_their_own_intervals(measured: Path):
    """Lost 14 of 40 before training; 12 are left after it, and freezing is 1 below the control."""
    table = recovery.recovery_level_table(run_folder.read_runs(measured), 200)
    (axes,) = recovery_plots.levels_before_and_after(table).axes
    bars = [tuple(part[:, 1]) for bar in axes.collections for part in bar.get_segments()]
    drawn = dict(zip([line.get_ydata()[0] for line in axes.get_lines() if line.get_marker() != "None"], bars,
                     strict=True))  # fmt: skip
    sparse, frozen = sorted(table, key=lambda row: row["transfer"], reverse=True)
    expected = {-35: (sparse, "lost"), -30: (sparse, "left"), -2.5: (frozen, "left")}
    assert sorted(drawn) == pytest.approx(sorted(expected))
    for height, bar in drawn.items():
        row, name = next(found for place, found in expected.items() if place == pytest.approx(height))
        assert bar == pytest.approx((100 * row[f"{name}_low"], 100 * row[f"{name}_high"]))
