"""Checkpoints in tables, figures and answers: methods of one strength, by their own names."""

import csv
from pathlib import Path

import pytest
from synthetic_runs import level_run, perplexity_run, write_tree

from analysis import kinds, style
from analysis.missing import missing_runs
from analysis.names import compression_name, strength_text
from analysis.sizes import amount, bytes_fraction, plain_fraction
from analysis.table import compression_order, compression_rank
from harness import run_folder

BEFORE = {"parent_quantized": "to 4 bits or fewer (…)"}


def answers(lost: int) -> list[float]:
    """150 right answers of 300 by the dense model, of which some are lost."""
    return [0.0] * lost + [1.0] * (150 - lost) + [0.0] * 150


def sweep() -> list[dict]:
    levels = [("easy", 1), ("hard", 4)]

    def made(compression: str, strength: object, step: int, **more: object) -> dict:
        own = {name: answers(count * step) for name, count in levels}
        return level_run(compression, strength, own, chance=0.0, **BEFORE, **more)

    checkpoint = {"requested_sparsity": None, "measured_sparsity": 0.1, "checkpoint_differences": {}}
    return [
        made("dense", None, 0),
        *(made("magnitude", strength, step) for strength, step in ((0.2, 1), (0.4, 5), (0.6, 9))),
        made("checkpoint:W4A16", ("bytes", 0.29), 0, decoder_bytes_fraction=0.266, **checkpoint),
        made("checkpoint:small", ("bytes", 0.5), 9, decoder_bytes_fraction=None,
             **{**checkpoint, "checkpoint_differences": {"num_hidden_layers": "2, the parent's 3"}}),
    ]  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path) -> list[dict]:
    write_tree(tmp_path / "runs", *sweep())
    return run_folder.read_runs(tmp_path / "runs")


def test_words_and_sizes_by_hand() -> None:
    row = {"compression": "checkpoint:W4A16", "magnitude_scope": None, "strength_kind": "bytes", "strength": 0.2857,
           "requested_sparsity": None, "measured_sparsity": 0.1, "decoder_bytes_fraction": 0.25}  # fmt: skip
    assert compression_name(row) == "W4A16" and strength_text(row) == "28.6 % of the bytes"
    assert amount(row) == 1 - 0.2857
    assert bytes_fraction(row) == 0.25 and plain_fraction(row) is None
    assert bytes_fraction({**row, "decoder_bytes_fraction": None}) is None
    weaker = {**row, "strength": 0.5}
    assert compression_order(weaker) < compression_order(row)
    assert compression_rank("low_rank") < compression_rank("checkpoint:W4A16")
    look = style.compression_look("checkpoint:wanda", None)
    assert look["label"] == "wanda" and look != style.compression_look("wanda", None)


def test_each_checkpoint_is_a_curve_without_a_slope(rows: list[dict]) -> None:
    (part,) = kinds.level_parts(rows, 200, "bytes")
    points = [row for row in part.tables["levels"] if row["strength_kind"] == "bytes"]
    assert {(row["compression"], row["strength"]) for row in points} == {
        ("checkpoint:W4A16", 0.29), ("checkpoint:small", 0.5),
    }  # fmt: skip
    assert all(row["drop_low"] is not None for row in points)
    own = {row["compression"] for rows in (part.trends.orders, part.trends.levels) for row in rows}
    assert own == {"magnitude"}
    assert any("W4A16" in line for line in part.lines)
    told = " ".join(part.cautions)
    assert "THE DENSE MODEL WAS ONCE QUANTIZED to 4 bits" in told
    assert "small: its config is not its parent's: num_hidden_layers is 2, the parent's 3." in told
    by_size = next(plot for plot in part.plots if plot.stem.endswith("_by_size"))
    assert {row["bytes_fraction"] for row in by_size.table if row["compression"] == "checkpoint:W4A16"} == {0.266}
    assert not [row for row in by_size.table if row["compression"] == "checkpoint:small"]


@pytest.mark.slow
def test_the_figures_draw_them_and_name_what_the_parent_was(rows: list[dict]) -> None:
    parts = kinds.level_parts(rows, 200, "bytes")
    for plot in [*parts[0].plots, *kinds.flip_parts(parts)[0].plots]:
        figure = plot.draw()
        texts = " ".join(
            " ".join(text.get_text().split()) for text in figure.findobj(lambda own: hasattr(own, "get_text"))
        )
        assert "once quantized to 4 bits or fewer" in texts and "W4A16" in texts
        assert style.encode(figure, "png", 50)[:4] == b"\x89PNG"


def test_perplexity_draws_them_too(tmp_path: Path) -> None:
    own = perplexity_run("checkpoint:W4A16", ("bytes", 0.29), (3.1, 3.7), **BEFORE)
    write_tree(tmp_path / "runs", perplexity_run(**BEFORE), perplexity_run("wanda", 0.5, (3.4, 3.9), **BEFORE), own)
    (part,) = kinds.perplexity_parts(run_folder.read_runs(tmp_path / "runs"))
    assert style.encode(part.plots[0].draw(), "png", 50)
    assert any("ONCE QUANTIZED" in line for line in part.cautions)


def test_no_checkpoint_is_missed_at_anothers_size(rows: list[dict]) -> None:
    assert missing_runs(rows) == []


def test_two_contents_under_one_name_are_no_curve(rows: list[dict]) -> None:
    one = next(row for row in rows if row["compression"] == "checkpoint:small")
    other = {**one, "strength": 0.4, "folder": "elsewhere", "method_recipe": "another"}
    with pytest.raises(ValueError, match=r"checkpoint:small were made with different recipes"):
        run_folder.check_runs([*rows, {**one, "folder": one["folder"]}, other])


def test_max_strength_says_of_each_whether_it_passes(
    load_script, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_tree(tmp_path / "runs", *sweep())
    words = ["--results_dir", str(tmp_path / "runs"), "--resamples", "500", "--tolerance", "0.1"]
    load_script("max_strength").main([*words, "--output", str(tmp_path / "found.csv")])
    lines = capsys.readouterr().out.splitlines()
    cells = {
        tuple(line.split(" | ")[:2]): line.split(" | ") for line in lines if line.startswith(("| W4A16", "| small"))
    }
    passes = cells["| W4A16", "hard"]
    assert passes[2] == "passes: 29 % of the bytes" and passes[4] == "27 %"
    assert "weakest" not in passes[-1] and "strongest" not in passes[-1]
    assert cells["| small", "hard"][2] == "**fails**" and cells["| small", "hard"][5].startswith(
        "50 % of the bytes: -24"
    )
    # 9 of 150 are lost, 6 %; as much as 10 % may be.
    assert cells["| small", "easy"][2] == "cannot tell" and "items would do" in cells["| small", "easy"][-1]
    written = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert {row["largest_strength"] for row in written if row["compression"] == "checkpoint:W4A16"} == {"0.29"}
    assert not [line for line in lines if "| raw |" in line and "W4A16" in line]  # no Junk DNA score


def test_curves_that_are_hollow_already_are_drawn_where_dense_is_at_chance(tmp_path: Path) -> None:
    """N:M by size, whose markers are hollow, at a level that the dense model does not know."""
    chance = {"easy": [1.0, 0.0] * 50}
    runs = [level_run(name, strength, chance, chance=0.5) for name, strength in (
        ("dense", None), ("wanda", "2:4"), ("checkpoint:W4A16", ("bytes", 0.3)))]  # fmt: skip
    write_tree(tmp_path / "runs", *runs[:2], {**runs[2], "decoder_bytes_fraction": 0.27})
    (part,) = kinds.level_parts(run_folder.read_runs(tmp_path / "runs"), 100, "bytes")
    by_size = next(plot for plot in part.plots if plot.stem.endswith("_by_size"))
    assert style.encode(by_size.draw(), "png", 50)[:4] == b"\x89PNG"
