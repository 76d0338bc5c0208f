import math

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from of_runs import data_adequacy, four_transfers, perplexity
from synthetic_runs import dense, perplexity_run, run, write_tree

from analysis import style
from analysis.names import COMPRESSIONS
from analysis.table import compression_rank
from harness import run_folder
from llm_tasks import methods


@pytest.fixture
def read(tmp_path):
    return lambda *runs: run_folder.read_runs(write_tree(tmp_path, *runs))


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.axison}


def line(axes, label):
    """The line of a panel whose legend text begins so."""
    return next(line for line in axes.get_lines() if line.get_label().startswith(label))


def box_texts(axes):
    return [text.get_text() for text in axes.texts]


def test_data_adequacy_draws_percent_of_the_dense_mean(read):
    rows = read(
        dense(0.8), dense(0.6, fraction=0.25),
        run(strength=0.5, score=0.7, seed=41), run(strength=0.5, score=0.9, seed=42),
        run(strength=0.75, score=0.4), run(strength=0.5, score=0.45, fraction=0.25),
    )  # fmt: skip
    (axes,) = panels(data_adequacy(rows)).values()
    assert axes.get_title() == "QNLI (Accuracy)" and axes.get_xlabel() == "Sparsity (%)"
    full, quarter = line(axes, "100 %"), line(axes, "25 %")
    np.testing.assert_allclose(full.get_xdata(), [50, 75])
    np.testing.assert_allclose(full.get_ydata(), [100, 50])  # mean of .7 and .9, then .4, of .8
    np.testing.assert_allclose(quarter.get_ydata(), [75])
    # A drop of .5 in a quarter; a single strength has none.
    assert full.get_label() == "100 %: -2.00 (difference of 2)" and quarter.get_label() == "25 %: no slope"
    assert line(axes, "Dense Transfer").get_ydata() == [100, 100]
    assert axes.get_ylim()[0] < 50 and axes.get_ylim()[1] > 112.5


def test_slopes_say_over_how_many_strengths_they_are(read):
    rows = read(dense(0.8), *[run(strength=strength, score=0.8 - 0.4 * strength) for strength in (0.2, 0.4, 0.6)])
    (axes,) = panels(data_adequacy(rows)).values()
    assert line(axes, "100 %").get_label() == "100 %: -0.50 (3)"


def test_the_band_is_the_range_of_the_seeds(read):
    rows = read(
        dense(0.8), run(strength=0.5, score=0.7, seed=41), run(strength=0.5, score=0.9, seed=42),
        run(strength=0.6, score=0.4, seed=41), run(strength=0.6, score=0.6, seed=42),
    )  # fmt: skip
    figure = data_adequacy(rows)
    (axes,) = panels(figure).values()
    (band,) = axes.collections
    corners = {(round(x, 6), round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(50, 87.5), (50, 112.5), (60, 50), (60, 75)}
    assert "Mean of 1 to 2 seeds; band: lowest to highest seed" in figure.get_supxlabel().replace("\n", " ")


def test_one_seed_has_no_band_and_says_so(read):
    figure = data_adequacy(read(dense(), run()))
    (axes,) = panels(figure).values()
    assert not axes.collections and "One seed, no band" in figure.get_supxlabel()


def test_nm_ratios_stand_evenly_from_weak_to_strong(read):
    rows = read(dense(0.8), *[run(strength=f"{kept}:8", score=0.1 * kept) for kept in (1, 7, 4)])
    (axes,) = panels(data_adequacy(rows)).values()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["7:8", "4:8", "1:8"]
    np.testing.assert_allclose(line(axes, "100 %").get_xdata(), [0, 1, 2])
    np.testing.assert_allclose(line(axes, "100 %").get_ydata(), [87.5, 50, 12.5])


def test_only_kinds_and_tasks_with_data_get_panels(read):
    rows = read(dense(), run(), dense(task="sst2"), run(task="sst2"), run(task="sst2", strength="2:4"))
    figure = data_adequacy(rows)
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert titles == ["QNLI (Accuracy)", "SST-2 (Accuracy)", "SST-2 (Accuracy)"]
    assert [part.get_suptitle()[:3] for part in figure.subfigs] == ["(a)", "(b)"]


def test_dotted_lines_stand_at_chance(read):
    rows = read(dense(0.8), run(), dense(0.625, fraction=0.1), run(fraction=0.1))
    (axes,) = panels(data_adequacy(rows)).values()
    floors = [found.get_ydata()[0] for found in axes.get_lines() if found.get_linestyle() == ":"]
    np.testing.assert_allclose(floors, [62.5, 80])


def test_dense_at_chance_is_said_loudly_and_does_not_stretch_the_panel(read):
    rows = read(dense(0.8), run(score=0.6), dense(0.505, fraction=0.1), run(score=0.9, fraction=0.1))
    (axes,) = panels(data_adequacy(rows)).values()
    assert box_texts(axes) == ["DENSE NOT ABOVE CHANCE\nat 10 % data:\nits drops mean nothing"]
    faint = line(axes, "10 %")
    assert faint.get_label() == "10 %: at chance" and faint.get_linestyle() == "None" and faint.get_alpha() < 1
    assert axes.get_ylim()[1] < 110  # not 178, which .9 of .505 is


def test_a_warning_has_room_below_the_curves(read):
    learned = [dense(0.8), run(strength=0.3, score=0.7), run(strength=0.5, score=0.4)]
    (axes,) = panels(data_adequacy(read(*learned))).values()
    low, high = axes.get_ylim()
    (warned,) = panels(data_adequacy(read(dense(0.51, fraction=0.1), run(fraction=0.1)))).values()
    lower, same = warned.get_ylim()
    assert same == high and low < 50 and 0.25 < (low - lower) / (high - low) < 0.35


def test_a_missing_or_worthless_reference_is_not_drawn(read):
    rows = read(
        run(score=0.6), dense(-0.1, chance=0.0, task="cola"), run(score=0.3, chance=0.0, task="cola"),
        run(score=0.5, fraction=0.5), dense(0.7, fraction=0.5),
    )  # fmt: skip
    qnli, cola = (panels(data_adequacy(rows))[name] for name in ("QNLI (Accuracy)", "CoLA (Accuracy)"))
    assert box_texts(qnli) == ["NO DENSE TRANSFER\nat 100 % data:\nno reference, not drawn"]
    assert line(qnli, "100 %").get_label() == "100 %: no dense" and len(line(qnli, "100 %").get_xdata()) == 0
    assert len(line(qnli, "50 %").get_xdata()) == 1
    assert box_texts(cola) == ["DENSE NOT ABOVE CHANCE:\nits drops mean nothing"]
    assert len(line(cola, "100 %").get_xdata()) == 0


def test_many_strengths_keep_their_labels_apart(read):
    rows = read(dense(), *[run(strength=step / 20) for step in range(20)])
    (axes,) = panels(data_adequacy(rows)).values()
    assert len(line(axes, "100 %").get_xdata()) == 20 and len(axes.get_xticks()) == 10


def test_four_transfers_draws_a_curve_per_transfer_in_its_colour(read):
    scores = {"sparse_transfer": 0.4, "sparse_to_dense": 0.5, "dense_transfer_freezing": 0.75}
    rows = read(dense(0.8), *[run(transfer, 0.5, score) for transfer, score in scores.items()])
    figure = four_transfers(rows)
    (axes,) = panels(figure).values()
    assert axes.get_title() == "QNLI, 100 % data"
    expected = {
        "Sparse Transfer": (50, "#e69f00"), "Sparse to Dense Transfer": (62.5, "#009e73"),
        "Dense Transfer with Freezing": (93.75, "#0072b2"),
    }  # fmt: skip
    for name, (height, color) in expected.items():
        found = next(line for line in axes.get_lines() if line.get_label() == name)
        np.testing.assert_allclose(found.get_ydata(), [height])
        assert to_hex(found.get_color()) == color
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {*expected, "Dense Transfer"}


def test_multiple_choice_stands_beside_glue_with_its_own_floor(read):
    choice = {"task": "commonsense_qa", "chance": 0.2}
    rows = read(
        dense(0.8), run("sparse_to_dense", 0.5, 0.7), dense(0.5, **choice), run("sparse_to_dense", 0.5, 0.3, **choice),
        dense(0.6, task="cola", metric="matthews_correlation", chance=0.0),
        run("sparse_to_dense", task="cola", chance=0.0),
    )  # fmt: skip
    figure = four_transfers(rows)
    found = panels(figure)
    floors = {
        title: [line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == ":"]
        for title, axes in found.items()
    }
    assert floors == {
        "CoLA, 100 % data": [0], "CommonsenseQA, 100 % data": [pytest.approx(40)],
        "QNLI, 100 % data": [pytest.approx(62.5)],
    }  # fmt: skip
    assert "Matthews correlation: CoLA. Accuracy: CommonsenseQA, QNLI." in figure.get_supxlabel().replace("\n", " ")


def test_panels_of_one_task_share_their_range(read):
    rows = read(
        dense(0.8), run("sparse_to_dense", 0.5, 0.7), dense(0.8, fraction=0.1),
        run("sparse_to_dense", 0.5, 0.45, fraction=0.1), dense(task="sst2"), run("sparse_to_dense", 0.5, task="sst2"),
    )  # fmt: skip
    found = panels(four_transfers(rows))
    assert list(found) == ["QNLI, 100 % data", "QNLI, 10 % data", "SST-2, 100 % data"]
    assert found["QNLI, 100 % data"].get_ylim() == found["QNLI, 10 % data"].get_ylim()
    assert found["QNLI, 100 % data"].get_ylim() != found["SST-2, 100 % data"].get_ylim()


@pytest.mark.parametrize(
    ("num_tasks", "num_fractions", "lines", "columns"),
    [(1, 5, 1, 5), (2, 2, 1, 4), (2, 3, 2, 3), (6, 1, 2, 3), (1, 6, 2, 3)],
)
def test_many_panels_are_broken_into_lines(read, num_tasks, num_fractions, lines, columns):
    runs = []
    for task in "abcdef"[:num_tasks]:
        for step in range(num_fractions):
            runs.append(run("sparse_to_dense", fraction=1 / (1 + step), task=task))
    places = [axes.get_subplotspec() for axes in four_transfers(read(*runs)).axes]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [
        (line, column) for line in range(lines) for column in range(columns)
    ]


def test_figures_without_data_are_refused(read):
    rows = read(dense())
    with pytest.raises(ValueError, match="no sparse_transfer"):
        data_adequacy(rows)
    with pytest.raises(ValueError, match="neither dense_transfer_freezing nor sparse_to_dense"):
        four_transfers(rows)


def test_less_data_is_darker():
    shares = [sum(style.fraction_color(fraction)[:3]) for fraction in (0.05, 0.1, 0.25, 0.5, 0.7, 1.0)]
    assert shares == sorted(shares) and len(set(shares)) == 6


def test_matplotlibs_settings_are_left_as_they_were(read):
    before = dict(matplotlib.rcParams)
    data_adequacy(read(dense(), run()))
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("file_format", "beginning"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_figures_are_encoded_in_the_format_asked_for(read, file_format, beginning):
    figure = data_adequacy(read(dense(), run()))
    assert style.encode(figure, file_format, dpi=30).startswith(beginning)


def test_perplexity_draws_a_panel_per_kind_on_one_logarithmic_axis(read):
    rows = read(
        perplexity_run(losses=(3.0,)), perplexity_run("magnitude", 0.5, (4.0,)), perplexity_run("wanda", 0.1, (3.1,)),
        perplexity_run("wanda", 0.5, (3.5,)), perplexity_run("rtn", ("bits", 3), (5.0,)),
        perplexity_run("rtn", ("bits", 8), (3.0,)),
        perplexity_run("low_rank", ("rank", 64), (4.5,), parameter_ratio=0.5),
        *[perplexity_run("wanda", ratio, (4.0,)) for ratio in ("2:4", "6:8", "4:8")],
    )  # fmt: skip
    figure = perplexity(rows)
    found = panels(figure)
    assert list(found) == ["Unstructured sparsity", "N:M sparsity (N of M kept)", "Quantization", "Low rank"]
    for axes in found.values():
        assert axes.get_yscale() == "log" and axes.get_ylim() == figure.axes[0].get_ylim()
        assert line(axes, "Dense").get_ydata() == pytest.approx([math.exp(3)] * 2)
    wanda = line(found["Unstructured sparsity"], "Wanda")
    np.testing.assert_allclose(wanda.get_xdata(), [10, 50])
    np.testing.assert_allclose(wanda.get_ydata(), np.exp([3.1, 3.5]))
    labels = {title: [label.get_text() for label in axes.get_xticklabels()] for title, axes in found.items()}
    assert labels["N:M sparsity (N of M kept)"] == ["6:8", "4:8", "2:4"]
    assert labels["Quantization"] == ["8", "3"] and labels["Low rank"] == ["64\n50 %"]
    np.testing.assert_allclose(line(found["Quantization"], "Round").get_xdata(), [0, 1])
    low, high = figure.axes[0].get_ylim()
    assert low < math.exp(3) and math.exp(5) < high < 1000
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["Dense: 20.1", "Magnitude", "Wanda", "Round to nearest", "Low rank"]
    assert figure.get_supxlabel() == "lab/model-a on 1 windows of texts/wiki.test.txt.gz. One seed, no band."


def test_the_seeds_of_a_perplexity_are_a_band_and_of_a_single_point_a_bar(read):
    rows = read(
        perplexity_run(), *[perplexity_run("wanda", 0.5, (level,), seed) for seed, level in enumerate((3.0, 4.0))],
        *[perplexity_run("gptq", ("bits", bits), (3.5,), seed) for bits in (4, 3) for seed in (0, 1)],
    )  # fmt: skip
    figure = perplexity(rows)
    (bar,), (band,) = (axes.collections for axes in figure.axes)
    np.testing.assert_allclose(bar.get_segments(), [[[50, math.exp(3)], [50, math.exp(4)]]])
    np.testing.assert_allclose(sorted(set(band.get_paths()[0].vertices[:, 0])), [0, 1])
    assert "Mean of 1 to 2 seeds; band: lowest to highest seed." in figure.get_supxlabel().replace("\n", " ")


def test_a_perplexity_above_the_vocabulary_shows_where_knowing_nothing_lies(read):
    figure = perplexity(read(perplexity_run(), perplexity_run("rtn", ("bits", 2), (8.0,))))
    (axes,) = panels(figure).values()
    assert list(line(axes, "Knows nothing: 1000").get_ydata()) == [1000, 1000]
    assert axes.get_ylim()[1] > math.exp(8)


def test_a_missing_dense_perplexity_is_said(read):
    figure = perplexity(read(perplexity_run("rtn", ("bits", 2))))
    assert "NO DENSE RUN" in figure.get_supxlabel()
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["Round to nearest"]


def test_a_global_threshold_has_magnitudes_colour_and_its_own_line(read):
    rows = read(perplexity_run("magnitude", 0.5), perplexity_run("magnitude", 0.5, magnitude_scope="global"))
    one, other = perplexity(rows).axes[0].get_lines()
    assert (one.get_label(), other.get_label()) == ("Magnitude", "Magnitude, global threshold")
    assert one.get_color() == other.get_color() and one.get_linestyle() != other.get_linestyle()


def test_perplexities_without_a_figure_are_refused(read):
    rows = read(dense(), perplexity_run())
    with pytest.raises(ValueError, match="no perplexity of a compressed model"):
        perplexity(rows)
    with pytest.raises(ValueError, match="belong in 2 figures"):
        perplexity([*rows, {**rows[1], "task": "c4", "level": "c4"}])


def test_every_compression_of_the_project_has_a_place_and_a_look_of_its_own():
    named = {"dense", "magnitude", "wanda", "ria", "sparsegpt", "rtn", "gptq", "low_rank"}
    assert named <= set(COMPRESSIONS) and named <= {"dense", *methods.METHODS}
    assert list(style.COMPRESSION_STYLE) == list(COMPRESSIONS)
    for trait in ("color", "label"):
        assert len({look[trait] for look in style.COMPRESSION_STYLE.values()}) == len(COMPRESSIONS)


def test_a_method_without_an_entry_is_drawn_too_in_no_colour_of_another():
    """A method is one line of METHODS: its name in figures and its look are optional."""
    for name in {"my_method", *methods.METHODS} - set(COMPRESSIONS):
        look = style.compression_style(name)
        assert look["label"] == name and look["marker"]
        assert look["color"] not in {style["color"] for style in style.COMPRESSION_STYLE.values()}
        assert sorted([name, "wanda", "dense"], key=compression_rank) == ["dense", "wanda", name]


def test_dollars_in_names_are_drawn_as_they_are_and_numbers_of_a_logarithmic_axis_as_powers():
    figure = Figure()
    linear, logarithmic = figure.subplots(1, 2)
    linear.set_title("cost_$5_to_$9")
    linear.set_xticks([0, 1], ["$a_1$ $b$", "c"])
    linear.plot([0, 1], [1, 2], label="$x^$ y$")
    linear.legend(title="$\\nothing{$")
    logarithmic.plot([0, 1], [1, 1000])
    logarithmic.set_yscale("log")
    figure.suptitle("a $ and a $")
    assert style.encode(figure, "png", 50)
    texts = {text.get_text(): text.get_parse_math() for text in figure.findobj(Text) if text.get_visible()}
    assert not any(texts[name] for name in ("cost_$5_to_$9", "$a_1$ $b$", "$x^$ y$", "$\\nothing{$", "a $ and a $"))
    assert texts["$\\mathdefault{10^{3}}$"]


def test_the_range_of_the_dense_seeds_is_shaded(read):
    rows = read(dense(0.7), dense(0.9, seed=42), run("sparse_to_dense", 0.5, 0.7))
    (axes,) = panels(four_transfers(rows)).values()
    (shade,) = axes.patches
    low, high = shade.get_extents().transformed(axes.transData.inverted()).intervaly
    assert (low, high) == pytest.approx((87.5, 112.5))
