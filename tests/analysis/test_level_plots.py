import numpy as np
import pytest
from of_runs import levels
from synthetic_runs import level_run, run, write_tree

from analysis import style, verdicts
from analysis.names import set_title
from harness import run_folder


@pytest.fixture
def draw(tmp_path):
    return lambda *runs: levels(run_folder.read_runs(write_tree(tmp_path, *runs)))


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.axison}


def line(axes, label):
    """The line of a panel whose legend text begins so."""
    return next(line for line in axes.get_lines() if line.get_label().startswith(label))


def note(figure):
    return figure.get_supxlabel().replace("\n", " ")


def test_levels_are_drawn_in_percent_of_their_dense_score(draw):
    easy, hard = "2 options", "4 options"

    def levels(one, other):
        return {easy: one * 10, hard: other * 10}

    figure = draw(
        level_run(levels=levels((1, 1, 1, 1), (1, 1, 0, 0))),
        level_run("wanda", 0.2, levels((1, 1, 1, 0), (1, 0, 0, 0))),
        level_run("wanda", 0.6, levels((1, 1, 0, 0), (0, 0, 0, 0))),
        level_run("wanda", "2:4", levels((1, 1, 0, 0), (0, 0, 0, 0))),
        level_run("magnitude", 0.2, levels((1, 1, 1, 1), (1, 1, 0, 0))),
        level_run("magnitude", 0.2, levels((1, 1, 1, 1), (1, 1, 0, 0)), magnitude_scope="global"),
    )
    assert [axes.get_title() for axes in figure.axes if axes.axison] == [
        "Magnitude", "Magnitude (threshold: global)", "Wanda", "Wanda",
    ]  # fmt: skip
    assert [part.get_suptitle() for part in figure.subfigs] == [
        "(a) Unstructured sparsity", "(b) N:M sparsity (N of M kept)",
    ]  # fmt: skip
    wanda = figure.axes[2]
    np.testing.assert_allclose(line(wanda, easy).get_xdata(), [20, 60])
    np.testing.assert_allclose(line(wanda, easy).get_ydata(), [75, 50])
    np.testing.assert_allclose(line(wanda, hard).get_ydata(), [50, 0])
    # Drops of .25 and .5 of the dense score in .4 of the weights.
    assert line(wanda, easy).get_label() == "2 options: -0.62 (difference of 2)"
    assert line(wanda, hard).get_label() == "4 options: -1.25 (difference of 2)"
    assert line(wanda, "Dense").get_ydata() == [100, 100] and wanda.get_xlabel() == "Sparsity (%)"
    floors = [found.get_ydata()[0] for found in wanda.get_lines() if found.get_linestyle() == ":"]
    np.testing.assert_allclose(floors, [25, 50])
    assert figure.get_suptitle().replace("\n", " ") == "Setting 2: number of options to choose from (mmlu)"
    assert figure.axes[0].get_ylabel() == "Accuracy (% of dense)"
    assert len({axes.get_ylim() for axes in figure.axes if axes.axison}) == 1
    assert note(figure).startswith(
        "lab/model-a. 40 items per level, read by letter. 1 seed. Band: 95 % interval over groups of items, "
    )


def test_the_band_is_the_interval_of_the_drop(tmp_path):
    runs = [level_run(levels={"easy": (1,) * 40})]
    for bits, right in ((4, 30), (3, 28)):
        # The same items are lost by both seeds, or others: 10 of 40, and 2 more.
        scores = [(1,) * right + (0,) * (40 - right), (0,) * (40 - right) + (1,) * right]
        runs += [level_run("gptq", ("bits", bits), {"easy": own}, seed) for seed, own in enumerate(scores)]
    rows = run_folder.read_runs(write_tree(tmp_path, *runs))
    figure = levels(rows)
    (axes,) = panels(figure).values()
    (found,) = axes.collections
    corners = {(round(x, 6), round(y, 3)) for x, y in found.get_paths()[0].vertices}
    points = {point["strength"]: point for point in verdicts.measure(rows).points}
    expected = {
        (place, round(100 + 100 * points[bits][name], 3)) for place, bits in enumerate((4, 3))
        for name in ("drop_low", "drop_high")
    }  # fmt: skip
    assert corners == expected and len(corners) == 4
    assert axes.get_ylim()[0] < min(y for _, y in corners) and axes.get_ylim()[1] > max(y for _, y in corners)
    assert "2 seeds" in note(figure) and "widened to the range of the seeds" in note(figure)
    assert "interval over groups of items and seeds, each item" in note(figure) and "(bits: 1 - bits/16)" in note(
        figure
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.2, 0.1, (75, 110)), (-0.3, -0.15, (70, 90)), (None, None, (75, 90)), (-0.3, None, (75, 90))],
)
def test_the_band_is_widened_to_the_seeds(low, high, expected):
    """Seeds from .6 to .72 of a dense .8 are 75 and 90 %; half an interval is none."""
    point = {"lowest_score": 0.6, "highest_score": 0.72, "dense_mean_score": 0.8, "drop_low": low, "drop_high": high}
    assert style.band(point) == pytest.approx(expected)


def test_slopes_say_over_how_many_strengths_they_are(draw):
    levels = {"easy": (1, 1, 1, 1) * 10}
    worse = [level_run("wanda", strength, {"easy": (1, 1, 1, 0) * 10}) for strength in (0.4, 0.6)]
    (axes,) = panels(draw(level_run(levels=levels), level_run("wanda", 0.2, levels), *worse)).values()
    # Drops 0, -.25, -.25: slopes -1.25, -.625 and 0.
    assert line(axes, "easy").get_label() == "easy: -0.62 (3)"


def test_without_items_the_band_is_the_range_of_the_seeds(tmp_path):
    runs = [level_run(), level_run("wanda", 0.5), level_run("wanda", 0.5, {"2 options": (1, 0, 0, 0)}, 1)]
    tree = write_tree(tmp_path, *runs)
    for file in tree.rglob(run_folder.ITEMS_FILE):
        file.unlink()
    rows = run_folder.read_runs(tree)
    assert "Band: lowest to highest seed." in note(levels(rows))
    assert "Band: none" in note(levels([row for row in rows if row["seed"] == 0]))


def test_dense_at_chance_is_said_loudly_and_its_curve_is_faint(draw):
    levels = {"0 shots": (1, 0, 0, 0) * 10, "5 shots": (1, 1, 0, 0) * 10}
    strong = {"0 shots": (1, 1, 1, 1) * 10, "5 shots": (1, 0, 0, 0) * 10}
    figure = draw(level_run(levels=levels), level_run("wanda", 0.5, strong), level_run("wanda", 0.6, strong))
    (axes,) = panels(figure).values()
    (text,) = axes.texts
    assert text.get_text() == "DENSE NOT ABOVE CHANCE\nat 0 shots:\nits drops mean nothing"
    faint = line(axes, "0 shots")
    assert faint.get_label() == "0 shots: at chance" and faint.get_linestyle() == "None" and faint.get_alpha() < 1
    assert line(axes, "5 shots").get_alpha() is None
    assert axes.get_ylim()[1] < 300 and axes.get_ylim()[0] < 50 - 0.2 * (150 - 50)  # room for the warning


def test_where_all_is_at_chance_the_marks_are_in_sight(draw):
    levels, strong = {"0 shots": (1, 0, 0, 0)}, {"0 shots": (1, 1, 0, 0)}
    (axes,) = panels(draw(level_run(levels=levels), level_run("wanda", 0.5, strong))).values()
    assert axes.texts[0].get_text() == "DENSE NOT ABOVE CHANCE:\nits drops mean nothing"
    assert axes.get_ylim()[1] > 200


def test_many_names_in_a_warning_are_broken_into_lines(draw):
    levels = {f"level number {number}": (1, 0, 0, 0) for number in range(5)} | {"last": (1, 1, 1, 1)}
    (axes,) = panels(draw(level_run(levels=levels), level_run("wanda", 0.5, levels))).values()
    lines = axes.texts[0].get_text().splitlines()
    assert max(map(len, lines)) <= 34
    assert lines[1:3] == [
        "at level number 0, level number 1,",
        "level number 2, level number 3,",
    ]


def test_a_warning_lists_few_of_many_names(draw):
    levels = {f"{number} {'long' * 60}": (1, 0, 0, 0) for number in range(40)} | {"last": (1, 1, 1, 1)}
    (axes,) = panels(draw(level_run(levels=levels), level_run("wanda", 0.5, levels))).values()
    lines = axes.texts[0].get_text().splitlines()
    assert max(map(len, lines)) <= 34 and len(lines) < 9 and " and 35 more:" in " ".join(lines)


def test_a_missing_dense_run_is_said_and_nothing_drawn(draw):
    (axes,) = panels(draw(level_run("wanda", 0.5))).values()
    assert axes.texts[0].get_text() == "NO DENSE RUN:\nno reference, not drawn"
    assert len(line(axes, "2 options: no dense").get_xdata()) == 0


def test_references_are_not_drawn(draw):
    levels = {"2 options": (1, 1), "untouched": (1, 0)}
    of_level = {"untouched": {"facts": {"reference_only": 1}, "metric": "f1", "dataset": "other"}}
    figure = draw(level_run(levels=levels, of_level=of_level), level_run("wanda", 0.5, levels, of_level=of_level))
    (axes,) = panels(figure).values()
    assert not [found for found in axes.get_lines() if found.get_label().startswith("untouched")]
    assert axes.get_ylabel() == "Accuracy (% of dense)" and figure.get_suptitle().endswith("(mmlu)")


def test_settings_are_named_in_words_and_levels_by_what_they_hold(draw):
    of_level = {"MMLU": {"dataset": "mmlu"}, "FreebaseQA": {"dataset": "freebase", "metric": "f1", "reader": "answer"}}
    levels = {"MMLU": (1, 1), "FreebaseQA": (1, 1, 0)}
    task = {"setting": 6, "task": "factoid_vs_mcq"}
    figure = draw(
        level_run(levels=levels, of_level=of_level, **task), level_run("wanda", 0.5, levels, of_level=of_level, **task)
    )
    title = figure.get_suptitle().replace("\n", " ")
    assert title == "Setting 6: factoid questions against multiple choice"
    assert figure.axes[0].get_ylabel() == "Score (% of dense)"
    assert note(figure).startswith("lab/model-a. 2 to 3 items per level, read by letter, answer. 1 seed.")
    assert set_title("own_task", "my tickets") == "Own task: my tickets"


def test_levels_at_a_single_strength_stand_side_by_side(draw):
    levels = {"easy": (1, 1), "medium": (1, 1), "hard": (1, 1)}
    (axes,) = panels(draw(level_run(levels=levels), level_run("wanda", 0.5, levels))).values()
    places = [line(axes, level).get_xdata()[0] for level in levels]
    assert places[1] == 50 and axes.get_xlim()[0] < places[0] < 49.9 and 50.1 < places[2] < axes.get_xlim()[1]


def test_long_names_get_a_legend_of_one_column(draw):
    levels = {"questions that customers put to the support": (1, 1) * 20, "short": (1, 0) * 20}
    (axes,) = panels(draw(level_run(levels=levels), level_run("wanda", 0.5, levels))).values()
    legend = axes.get_legend()
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["Dense", "questions that c…support: no slope", "short: no slope"] and legend._ncols == 1


def test_harder_is_darker_and_every_level_has_its_marker():
    looks = style.level_looks([str(number) for number in range(6)])
    shares = [sum(look["color"][:3]) for look in looks.values()]
    assert shares == sorted(shares, reverse=True) and len({look["marker"] for look in looks.values()}) == 6
    assert list(style.level_looks(["all"])) == ["all"]


def test_levels_of_unknown_difficulty_are_grey_and_leave_the_others_their_colours():
    looks = style.level_looks(["easy", "hard"], ["new", "newer"])
    assert {name: looks[name]["color"] for name in ("easy", "hard")} == {
        name: look["color"] for name, look in style.level_looks(["easy", "hard"]).items()
    }
    assert {looks[name]["color"] for name in ("new", "newer")} == {"0.45", "0.65"}  # matplotlib's greys
    assert len({look["marker"] for look in looks.values()}) == 4
    assert list(style.level_looks([], ["new"])) == ["new"]


def test_a_figure_draws_the_level_without_human_score_in_grey_and_says_so(draw):
    levels = {"new": (1, 1, 1, 0) * 10, "hard": (1, 1, 1, 0) * 10, "easy": (1, 1, 1, 1) * 10}
    of_level = {name: {"difficulty": None, "human": human}
                for name, human in {"new": None, "hard": 0.95, "easy": 0.95}.items()}  # fmt: skip
    same = {"of_level": of_level, "setting": 5, "task": "human_gap"}
    figure = draw(level_run(levels=levels, **same), level_run("wanda", 0.5, levels, **same))
    (axes,) = panels(figure).values()
    colors = {name: line(axes, name).get_color() for name in levels}
    assert colors == {
        "new": "0.45",
        **{name: look["color"] for name, look in style.level_looks(["easy", "hard"]).items()},
    }
    assert [text.get_text().partition(":")[0] for text in axes.get_legend().get_texts()] == [
        "Dense", "easy", "hard", "new",
    ]  # fmt: skip
    assert note(figure).endswith("Grey: difficulty not known.")


def test_what_has_no_figure_is_refused(draw, tmp_path):
    with pytest.raises(ValueError, match="no compressed model"):
        draw(level_run(), run())
    with pytest.raises(ValueError, match="belong in 2 figures"):
        levels(run_folder.read_runs(write_tree(tmp_path / "two", level_run(), level_run(model="other"))))
