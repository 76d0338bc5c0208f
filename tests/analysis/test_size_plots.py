import numpy as np
import pytest
from of_runs import by_size
from synthetic_runs import level_run, run, write_tree

from analysis import compression_plots, level_sections, style, verdicts
from analysis.curves import SIZE_COLUMNS, size_curves, size_spearman, size_table
from analysis.intervals import with_intervals
from analysis.kinds import describe
from analysis.table import level_table
from harness import run_folder

EASY, HARD = "2 options", "4 options"
GROUPS = {"group_size": 128, "symmetric": False}


def levels(easy, hard):
    """Twenty items each, of every ten of which so many are answered rightly."""
    return {name: ([1] * right + [0] * (10 - right)) * 2 for name, right in ((EASY, easy), (HARD, hard))}


@pytest.fixture
def read(tmp_path):
    return lambda *runs: run_folder.read_runs(write_tree(tmp_path, *runs, **GROUPS))


def compared():
    return [
        level_run(levels=levels(10, 8)),
        level_run("magnitude", 0.3, levels(9, 6)), level_run("magnitude", 0.5, levels(7, 6)),
        level_run("magnitude", 0.7, levels(5, 2)),
        level_run("gptq", ("bits", 8), levels(10, 8)), level_run("gptq", ("bits", 4), levels(10, 8)),
        level_run("gptq", ("bits", 2), levels(10, 8)),
        level_run("low_rank", ("rank", 8), levels(4, 2), parameter_ratio=0.5),
    ]  # fmt: skip


def curve(axes, name):
    return next(line for line in axes.get_lines() if line.get_label().startswith(name))


def test_a_band_of_few_seeds_does_not_stretch_the_axis(read):
    """Two seeds from nothing to all: their interval reaches many times the dense score."""
    wide = [level_run("magnitude", 0.3, levels(*([right] * 2)), seed=seed) for seed, right in ((0, 10), (1, 1))]
    table, figure = drawn_with_intervals(read(*compared()[:1], *compared()[2:], *wide))
    assert max(row["drop_high"] for row in table if row["drop_high"] is not None) > 1
    # the highest point is 100, or of 80 % the 55 %
    assert all(axes.get_ylim()[1] < 175 for axes in figure.axes)


def test_the_plain_axis_has_points_whose_bytes_are_not_known(tmp_path):
    runs = [*compared()[:5], level_run("rtn", ("bits", 4), levels(9, 7))]
    rows = run_folder.read_runs(write_tree(tmp_path, *runs))  # the group size is not recorded
    (part,) = [part for part in describe(rows, [], 100, "plain").parts if part.title.startswith("Setting 2")]
    assert any("with at most half of the dense size" in plot.finding for plot in part.plots)


def test_all_compressions_stand_on_one_axis(read):
    figure = by_size(read(*compared()))
    easy, hard = figure.axes
    assert (easy.get_title(), hard.get_title()) == (EASY, HARD)
    # what is kept and a bit per weight of 16
    np.testing.assert_allclose(curve(easy, "Magnitude").get_xdata(), [76.25, 56.25, 36.25])
    np.testing.assert_allclose(curve(easy, "Magnitude").get_ydata(), [90, 70, 50])
    # bits, and in 128 weights a scale of 16 bits and a zero point
    np.testing.assert_allclose(curve(easy, "GPTQ").get_xdata(), [100 * (b + (16 + b) / 128) / 16 for b in (8, 4, 2)])
    np.testing.assert_allclose(curve(easy, "Low rank").get_xdata(), [50])
    np.testing.assert_allclose(curve(hard, "Magnitude").get_ydata(), [75, 75, 25])
    assert easy.get_xlim()[0] > 100 and easy.get_xlim()[1] < 0  # larger models on the left
    assert easy.get_ylim() == hard.get_ylim() and easy.get_ylabel() == "Accuracy (% of dense)"
    assert curve(easy, "Dense").get_ydata() == [100, 100]


def drawn_with_intervals(rows):
    table = with_intervals(level_table(rows), verdicts.measure(rows, resamples=200))
    return table, compression_plots.by_size(size_table(table))


def test_bands_are_the_intervals_of_the_drops(read):
    table, figure = drawn_with_intervals(read(*compared()))
    easy = {
        point["strength"]: point for point in table if (point["level"], point["compression"]) == (EASY, "magnitude")
    }
    band = next(found for found in figure.axes[0].collections if len(found.get_paths()[0].vertices) > 6)
    corners = {(round(x, 6), round(y, 3)) for x, y in band.get_paths()[0].vertices}
    expected = {
        (size, round(100 + 100 * easy[strength][name], 3))
        for size, strength in ((76.25, 0.3), (56.25, 0.5), (36.25, 0.7)) for name in ("drop_low", "drop_high")
    }  # fmt: skip
    assert corners == expected and len(corners) == 6


def test_the_plain_ratio_counts_no_overhead(read):
    rows = read(*compared(), level_run("magnitude", "2:4", levels(8, 8)))
    easy, _ = by_size(rows, "plain").axes
    np.testing.assert_allclose(curve(easy, "Magnitude:").get_xdata(), [70, 50, 30])
    np.testing.assert_allclose(curve(easy, "Magnitude, N:M").get_xdata(), [50])
    np.testing.assert_allclose(curve(easy, "GPTQ").get_xdata(), [50, 25, 12.5])
    np.testing.assert_allclose(curve(easy, "Low rank").get_xdata(), [50])
    assert easy.get_xlabel() == "Size (% of dense: 1 - sparsity, N/M, bits/16, parameters)"
    points = size_table(level_table(rows))
    both = {(point["compression"], point["strength"]): point for point in points if point["level"] == EASY}
    assert (both["gptq", 4]["plain_fraction"], both["gptq", 4]["bytes_fraction"]) == (0.25, (4 + 20 / 128) / 16)
    assert "plain_fraction" in SIZE_COLUMNS


def test_the_option_of_plot_results_reaches_the_figure(read, load_script, tmp_path):
    rows = read(*compared())
    words = ["--results_dir", str(tmp_path)]
    parse = load_script("plot_results").parse_args
    for size, axis in (
        ("bytes", "Size (% of the dense weights' bytes)"),
        ("plain", compression_plots.SIZE_AXIS["plain"]),
    ):
        args = parse([*words, *(["--size", size] if size == "plain" else [])])
        plots = [plot for part in describe(rows, [], 100, args.size).parts for plot in part.plots]
        (plot,) = [plot for plot in plots if plot.stem.endswith("_by_size")]
        assert plot.draw().axes[0].get_xlabel() == axis and "plain_fraction" in plot.columns


def test_the_plain_ratio_is_known_where_the_bytes_are_not(tmp_path):
    tree = write_tree(tmp_path, *compared(), group_size=-1, symmetric=False)
    points = size_table(level_table(run_folder.read_runs(tree)), "plain")
    assert {point["compression"] for point in points} == {"magnitude", "low_rank", "gptq"}


def test_bands_of_one_seed_are_not_said_to_be_of_several(read):
    note = drawn_with_intervals(read(*compared()))[1].get_supxlabel().replace("\n", " ")
    assert "95 % interval over groups of items, each item compared" in note
    assert "compared with the dense model's outcome on it. Dotted grey" in note


def test_bands_of_several_seeds_hold_their_range(read):
    second = level_run("magnitude", 0.3, levels(8, 6), seed=1)
    note = drawn_with_intervals(read(*compared(), second))[1].get_supxlabel().replace("\n", " ")
    assert "95 % interval over groups of items and seeds, each item compared" in note
    assert "outcome on it, widened to the range of the seeds. Dotted grey" in note


def test_the_legend_has_spearman_of_strength_and_loss(read):
    easy, hard = by_size(read(*compared())).axes
    assert curve(easy, "Magnitude").get_label() == "Magnitude: +1.00"
    # Losses 2, 2, 6 have ranks 1.5, 1.5, 3: the correlation is 1.5 / sqrt(2 * 1.5).
    assert curve(hard, "Magnitude").get_label() == "Magnitude: +0.87"
    assert curve(easy, "GPTQ").get_label() == "GPTQ: none" and curve(easy, "Low").get_label() == "Low rank: none"


def test_ranks_that_save_nothing_are_ordered_by_rank(read):
    runs = [level_run(levels=levels(10, 8)), level_run("rtn", ("bits", 4), levels(9, 8))]
    runs += [
        level_run("low_rank", ("rank", rank), levels(right, right), parameter_ratio=1.0)
        for rank, right in ((30, 9), (20, 7), (10, 5))
    ]
    points = size_table(level_table(read(*runs)))
    ranks = size_curves(points)[EASY]["low_rank", "rank", None]
    assert [point["strength"] for point in ranks] == [30, 20, 10] and size_spearman(ranks) == 1


def test_the_table_says_why_there_is_no_spearman(read):
    lines = level_sections.size_section(size_table(level_table(read(*compared()))))
    assert "| level | Magnitude | GPTQ | Low rank |" in lines
    assert "| 2 options | 1.000 | undefined: the same score everywhere | undefined: 1 point |" in lines


def test_n_m_and_global_thresholds_are_curves_of_their_own(read):
    runs = [*compared(), level_run("magnitude", "2:4", levels(8, 8))]
    runs.append(level_run("magnitude", 0.5, levels(8, 8), magnitude_scope="global"))
    easy, _ = by_size(read(*runs)).axes
    # Half of the values, and 2 bits for the place of each.
    np.testing.assert_allclose(curve(easy, "Magnitude, N:M").get_xdata(), [100 * (0.5 + 0.5 * 2 / 16)])
    assert curve(easy, "Magnitude (global)").get_linestyle() == "-."


def test_a_missing_dense_run_is_said(read):
    easy, _ = by_size(read(*compared()[1:])).axes
    assert easy.texts[0].get_text() == "NO DENSE RUN:\nno reference, not drawn"


def test_what_cannot_be_compared_is_refused(tmp_path):
    alone = write_tree(tmp_path / "alone", level_run(), level_run("magnitude", 0.5), level_run("wanda", "2:4"))
    assert size_table(level_table(run_folder.read_runs(alone))) == []
    with pytest.raises(ValueError, match="fewer than two of pruning, quantization and low rank"):
        by_size(run_folder.read_runs(alone))
    with pytest.raises(ValueError, match="fewer than two"):
        by_size(run_folder.read_runs(write_tree(tmp_path / "tuned", run())))
    with pytest.raises(ValueError, match="belong in 2 figures"):
        by_size(run_folder.read_runs(write_tree(tmp_path / "two", *compared(), level_run(model="other"))))


def test_runs_whose_size_is_not_known_are_left_out(tmp_path):
    """A scale per row: how long rows are is not recorded."""
    tree = write_tree(tmp_path, *compared(), group_size=-1, symmetric=False)
    points = size_table(level_table(run_folder.read_runs(tree)))
    assert {point["compression"] for point in points} == {"magnitude", "low_rank"}


def test_without_a_band_the_caption_says_why(read):
    """No interval is made where the dense model is at chance, nor without its outcomes."""
    low = levels(3, 2)
    at_chance = read(level_run(levels=low), level_run("magnitude", 0.5, low), level_run("gptq", ("bits", 4), low))
    table, figure = drawn_with_intervals(at_chance)
    assert all(point["drop_low"] is None for point in table)
    assert "Band: none, the dense model is not above chance." in figure.get_supxlabel()
    alone = [{**point, "paired_items": None} for point in table]
    assert style.band_note(alone) == "none, no item is paired with the dense run"
