import itertools
import logging
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from conftest import slow_cases
from matplotlib.figure import Figure
from matplotlib.text import Text
from of_runs import by_size, data_adequacy, four_transfers, levels, perplexity
from synthetic_runs import dense, level_run, line_run, perplexity_run, run, write_tree

from analysis import kinds, layout, style
from harness import run_folder

ODD = "$x_1^2$ %5 <script>alert(1)</script> | & "
LONG = "abcdefghij" * 24
CURLY = "\N{MATHEMATICAL SCRIPT CAPITAL A}"
ARABIC = "سؤال صعب"
SCRIPT = Path(__file__).parents[2] / "scripts" / "plot_results.py"


def tuning_rows(folder, names):
    runs = []
    for name in names:
        runs += [dense(task=name), run(task=name), run(strength=0.3, task=name), run("sparse_to_dense", task=name)]
    return run_folder.read_runs(write_tree(folder, *runs))


def level_rows(folder, names):
    scores = dict.fromkeys(names, (1, 1, 1, 0))
    runs = [level_run(*how, levels=scores) for how in [(), ("wanda", 0.3), ("wanda", 0.5), ("gptq", ("bits", 4))]]
    return run_folder.read_runs(write_tree(folder, *runs, group_size=128, symmetric=False))


def boxes(figure):
    """What must not overlap: titles, captions, labels of axes and legends, with their extents."""
    parts = [figure, *figure.subfigs, *(part for own in figure.subfigs for part in own.subfigs)]
    found = [text for part in parts for text in (part._suptitle, part._supxlabel) if text is not None]
    found += [legend for part in parts for legend in part.legends]
    for axes in figure.axes:
        if axes.axison:
            found += [axes.title, axes.xaxis.label, axes.yaxis.label, axes.get_legend()]
    named = []
    for artist in found:
        if artist is not None and not (isinstance(artist, Text) and not artist.get_text()):
            named.append((artist.get_text() if isinstance(artist, Text) else "legend", artist.get_window_extent()))
    return named


def check_room(figure):
    style.encode(figure, "png", 50)
    found = boxes(figure)
    for name, box in found:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert inside, f"{name!r} runs out of the figure: {box} in {figure.bbox}"
    for (one, first), (other, second) in itertools.combinations(found, 2):
        wide = min(first.x1, second.x1) - max(first.x0, second.x0)
        high = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert wide <= 1 or high <= 1, f"{one!r} lies over {other!r}"
    for axes in figure.axes:
        if axes.axison:
            box = axes.get_window_extent()
            assert box.width > 50 and box.height > 40, f"panel {axes.get_title()!r} has no room: {box}"


NAMES = {
    "one": ["task"],
    "odd": [f"{ODD}a", "问题 难度", ARABIC],
    "long": [f"{LONG}{number}" for number in range(3)],
    "many": [f"task number {number}" for number in range(40)],
}
EACH = ["one", "odd", *slow_cases("long", "many")]


@pytest.mark.parametrize("kind", EACH)
def test_titles_and_legends_of_levels_have_room(tmp_path, kind):
    rows = level_rows(tmp_path, NAMES[kind])
    check_room(levels(rows))
    check_room(by_size(rows))


@pytest.mark.parametrize("kind", EACH)
def test_titles_and_legends_of_fine_tuned_tasks_have_room(tmp_path, kind):
    rows = tuning_rows(tmp_path, NAMES[kind])
    check_room(data_adequacy(rows))
    check_room(four_transfers(rows))


def test_titles_and_legends_of_long_models_and_many_methods_have_room(tmp_path):
    model = f"lab/{LONG}"
    many = [perplexity_run(f"method {ODD}{number}", 0.5, model=model) for number in range(12)]
    check_room(perplexity(run_folder.read_runs(write_tree(tmp_path, perplexity_run(model=model), *many))))


@pytest.mark.parametrize(
    ("edge", "kinds_of_strength", "title"),
    [
        pytest.param("upper center", ("sparsity",), "Title", marks=pytest.mark.slow),
        ("upper center", ("sparsity", "nm", "bits"), LONG),
        pytest.param("upper right", ("sparsity", "nm"), "two\nlines", marks=pytest.mark.slow),
        pytest.param("lower center", ("sparsity",), "Title", marks=pytest.mark.slow),
        pytest.param("lower left", ("sparsity", "nm"), LONG, marks=pytest.mark.slow),
    ],
)
def test_a_title_and_a_caption_stand_beside_a_legend_of_the_figure(edge, kinds_of_strength, title):
    with style.style():
        keys = {kind: [1, 2, 3] for kind in kinds_of_strength}
        figure, panels = style.make_panels(keys, 2, size=(2.6, 2.2))
        for (kind, key), axes in panels.items():
            axes.set_title(f"panel {key}")
            axes.set_xlabel(style.KIND_AXIS[kind])
            axes.plot([0, 1], [0, key], label=f"{key}")
        figure.suptitle(title)
        handles = axes.get_lines() * 9
        figure.legend(handles=handles, loc=f"outside {edge}", ncols=3, frameon=False)
        style.caption(figure, f"Of {LONG}.")
    check_room(figure)
    (legend,) = figure.legends
    box, heights = legend.get_window_extent(), [axes.get_tightbbox() for axes in panels.values()]
    assert all(box.y0 >= own.y1 - 1 or box.y1 <= own.y0 + 1 for own in heights)
    below, above = sorted(
        [("legend", box), ("text", (figure._suptitle if "upper" in edge else figure._supxlabel).get_window_extent())],
        key=lambda entry: entry[1].y0,
    )
    assert below[0] == ("legend" if "upper" in edge else "text") and below[1].y1 <= above[1].y0


def test_nothing_of_a_name_is_a_formula_or_lost(tmp_path):
    figure = data_adequacy(tuning_rows(tmp_path, ["$x_1^2$ {%"]))
    style.encode(figure, "png", 30)
    (title,) = [axes.title for axes in figure.axes if axes.axison]
    assert title.get_text() == "$x_1^2$ {% (Accuracy)" and not title.get_parse_math()


def test_a_long_name_keeps_what_tells_it_apart():
    assert layout.shortened("abcdefghij0", 11) == "abcdefghij0"
    assert layout.shortened("abcdefghijk0", 10) == "abcdef…jk0"
    assert layout.shortened("问题难度问题难度", 9) == "问题…度"  # two columns a letter: 5 of 8 before, 2 after


def test_numbers_stay_behind_names_that_are_written_from_the_right():
    figure = Figure()
    text = figure.text(0, 0, f"{ARABIC}: +0.5 (3)")
    layout.arrange(figure)
    assert text.get_text() == f"\u200e{ARABIC}\u200e: +0.5 (3)"


def test_letters_come_from_a_font_that_has_them():
    assert layout.fallback_fonts(f"plain äöü {ARABIC}") == ([], "")
    families, missing = layout.fallback_fonts(f"a{CURLY}")  # of the fonts that come with matplotlib, STIX has it
    assert families and not missing
    figure = Figure()
    text = figure.text(0, 0, CURLY)
    layout.arrange(figure)
    assert text.get_fontfamily() == [layout.FONT, *families]


def test_letters_without_a_font_are_told_once(caplog, monkeypatch):
    manager = layout.font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", [font for font in manager.ttflist if font.name == layout.FONT])
    monkeypatch.setattr(layout, "_told", set())
    layout.fallback_fonts.cache_clear()
    with caplog.at_level(logging.WARNING):
        for name in (f"{CURLY}ab", f"{CURLY}\N{MATHEMATICAL SCRIPT CAPITAL C}"):
            figure = Figure()
            figure.text(0, 0, name)
            layout.arrange(figure)
    layout.fallback_fonts.cache_clear()
    ours = [record for record in caplog.records if record.name == layout.__name__]  # matplotlib looks for fonts, too
    assert len(ours) == 1 and "no font on this machine has some letters" in caplog.text
    assert f"such as {CURLY}: figures show boxes" in caplog.text


def test_the_users_matplotlibrc_changes_nothing(tmp_path):
    rows = tuning_rows(tmp_path, ["a_task"])
    plain = style.encode(data_adequacy(rows), "png", 30)
    with matplotlib.rc_context({"text.usetex": True, "axes.titlesize": 40, "savefig.bbox": "tight"}):
        assert style.encode(data_adequacy(rows), "png", 30) == plain
        assert matplotlib.rcParams["text.usetex"] is True


@pytest.mark.parametrize("script", ["plot_results.py", "max_strength.py"])
@pytest.mark.parametrize("backend", ["tkagg", "no-such-backend"])
@pytest.mark.slow
def test_any_backend_and_terminal_will_do(tmp_path, script, backend):
    scores = {"难": (1, 1, 1, 0) * 5}
    runs = [level_run(*how, levels=scores, model="lab/模型") for how in [(), ("wanda", 0.3), ("wanda", 0.5)]]
    write_tree(tmp_path / "runs", *runs)
    settings = {"MPLBACKEND": backend, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, SCRIPT.with_name(script), "--results_dir", tmp_path / "runs", "--resamples", "100"]
    command += ["--output_dir", tmp_path / "图"] if script == "plot_results.py" else []
    done = subprocess.run(list(map(str, command)), env={**os.environ, **settings}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert rb"\u" in done.stdout


@pytest.mark.slow
def test_titles_and_legends_of_domains_and_lines_have_room(tmp_path):
    def domains(make, mixture, share, **changes):
        place = {"setting": "multi_domain", "task": LONG, "mixture": mixture, "train_rows": 9, **changes}
        made = make(**place)
        levels = [{**made["levels"][0], "level": name, "share": share} for name in NAMES["long"]]
        return {**made, "levels": levels}

    runs = [domains(dense, "even", 0.5), domains(run, "even", 0.5), domains(run, "even", 0.5, strength=0.3)]
    runs += [domains(dense, LONG[:200], 0.1), domains(run, LONG[:200], 0.1)]
    lines = [line_run(task=name, model=f"lab/{LONG}") for name in (*NAMES["long"], *NAMES["many"][:12])]
    rows = run_folder.read_runs(write_tree(tmp_path, *runs, *lines))
    drawn = [plot for part in kinds.domain_parts(rows, 100) + kinds.line_parts(rows)
             for plot in part.plots if plot.draw]  # fmt: skip
    assert len(drawn) == 3
    for plot in drawn:
        check_room(plot.draw())
