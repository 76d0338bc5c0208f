"""Texts of a figure that fit: letters as they are, in fonts that have them, and nothing over anything else.

Names of models, tasks and levels are the user's, of any length, script and number. `arrange` is called once, before a
figure is written.
"""

import functools
import logging
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ft2font import FT2Font
from matplotlib.legend import Legend
from matplotlib.text import Text

logger = logging.getLogger(__name__)

FONT = "DejaVu Sans"  # matplotlib's own
# Of what the machine has, these are taken first: sans serif fonts of many scripts.
PREFERRED_FONTS = (
    "Noto Sans", "Noto Sans CJK", "Source Han Sans", "WenQuanYi", "Droid Sans Fallback", "PingFang", "Hiragino Sans",
    "Microsoft YaHei", "SimHei", "Malgun Gothic", "Arial Unicode MS", "Unifont", "FreeSans",
)  # fmt: skip
NO_FONTS = ("Last Resort",)  # has a box for every letter
ROUNDS = 8
MIN_WIDTH, MIN_HEIGHT = 1.4, 1.0  # of a panel's axes, in inches
COLLAPSED_GROWTH = 1.25  # of width and height where the engine found no room for the axes at all
GAP = 0.15  # between the texts of neighbouring panels, in inches
TITLE_LINES = 4
TITLE_LETTERS = 70
MAX_PIXELS = 2**16 - 1  # of a side; the renderer draws no more
# A name in Hebrew or Arabic stands within a line that reads from the left, so that the numbers after it stay there.
RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]+(?:[ ,.;:]+[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]+)*"
)
_told: set[str] = set()  # letters of which a warning was given
LEFT_TO_RIGHT = "\N{LEFT-TO-RIGHT MARK}"


def arrange(figure: Figure) -> None:
    """Lay the figure out for good: titles wrapped, and the figure enlarged until legends and panels have room.

    Nothing is parsed as a formula but the numbers on logarithmic axes. Fonts are chosen letter by letter among those
    of this machine.
    """
    _draw_dollars_as_they_are(figure)
    _choose_fonts(figure)
    engine = figure.get_layout_engine()
    if engine is None:
        return
    figure.set_figwidth(figure.get_figwidth() * _legend_growth(figure))
    wholes = {text: text.get_text() for text, _, _ in _wrapped(figure)}
    grown = True
    for _ in range(ROUNDS):
        before = [text.get_text() for text in wholes]
        for text, pixels, lines in _wrapped(figure):
            wrap(text, wholes[text], pixels, lines)
        if not grown and before == [text.get_text() for text in wholes]:
            break
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            engine.execute(figure)
        collapsed = any("constrained_layout" in str(warning.message) for warning in warned)
        wide, high = (COLLAPSED_GROWTH, COLLAPSED_GROWTH) if collapsed else _growth(figure)
        grown = max(wide, high) > 1
        figure.set_size_inches(figure.get_figwidth() * wide, figure.get_figheight() * high)
    if grown:
        engine.execute(figure)
    figure.set_layout_engine(None)


def shortened(name: str, letters: int) -> str:
    """The name's beginning and end where it is wider than so many letters, so that names stay distinct."""
    if width(name) <= letters:
        return name
    head, tail = _within(name, (letters - 1) * 2 // 3), _within(name[::-1], (letters - 1) // 3)[::-1]
    return f"{head.rstrip()}…{tail.lstrip()}"


def title(name: str) -> str:
    """The name, cut to what a panel's title has room for."""
    return shortened(name, TITLE_LETTERS)


def width(text: str) -> int:
    """Columns that a text takes; Chinese, Japanese and Korean letters take two."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def _within(name: str, letters: int) -> str:
    """As much of the beginning as so many letters hold."""
    count = len(name)
    while width(name[:count]) > letters:
        count -= 1
    return name[:count]


def wrap(text: Text, whole: str, pixels: float, lines: int | None) -> None:
    """Break `whole` into lines that are no wider; what does not fit in `lines` lines ends in "…"."""
    text.set_text(whole)
    needed = text.get_window_extent().width
    if needed <= pixels:
        return
    letters = int(max(map(len, whole.split("\n"))) * pixels / needed) + 2
    while letters > 3:
        found = [part for line in whole.split("\n") for part in textwrap.wrap(line, letters)]
        if lines and len(found) > lines:
            found = [*found[: lines - 1], f"{found[lines - 1][: letters - 1]}…"]
        text.set_text("\n".join(found))
        if text.get_window_extent().width <= pixels:
            return
        letters -= 1


def _wrapped(figure: Figure) -> Iterable[tuple[Text, float, int | None]]:
    """Texts that are wrapped, with the width that they have in pixels, and the lines that they may take."""
    for part in _parts(figure):
        margin = 2 * GAP * figure.dpi
        if part._suptitle is not None:
            yield part._suptitle, part.bbox.width - margin, TITLE_LINES
        if part._supxlabel is not None:
            yield part._supxlabel, part.bbox.width - margin, None
    for axes in _panels(figure):
        yield axes.title, _room(axes), TITLE_LINES
        yield axes.xaxis.label, _room(axes), TITLE_LINES


def _parts(figure: FigureBase) -> list[FigureBase]:
    return [figure, *(part for own in figure.subfigs for part in _parts(own))]


def _panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.axison and axes.get_subplotspec() is not None]


def _cell(axes: Axes) -> tuple[float, float]:
    """Width and height in pixels of what a panel has for itself: axes, labels, title and legend."""
    rows, columns = axes.get_gridspec().get_geometry()
    part = axes.get_figure(root=False)
    return part.bbox.width / columns, part.bbox.height / rows


def _room(axes: Axes) -> float:
    """Width in pixels of a text that is centred on the panel's axes and meets neither a neighbour nor the edge."""
    part, box = axes.get_figure(root=False).bbox, axes.get_window_extent()
    center = (box.x0 + box.x1) / 2
    return min(_cell(axes)[0], 2 * (center - part.x0), 2 * (part.x1 - center)) - GAP * axes.get_figure(root=True).dpi


def _growth(figure: Figure) -> tuple[float, float]:
    """By how much the figure must grow, in width and height, for panels and legends to have room; 1 is enough."""
    wide, high = _legend_growth(figure), 1.0
    for axes in _panels(figure):
        box = axes.get_window_extent()
        around = axes.get_tightbbox(for_layout_only=True)
        if box.width < MIN_WIDTH * figure.dpi:
            wide = max(wide, 1 + (MIN_WIDTH * figure.dpi - box.width) / _cell(axes)[0])
        if box.height < MIN_HEIGHT * figure.dpi:
            high = max(high, (MIN_HEIGHT * figure.dpi + around.height - box.height) / _cell(axes)[1], 1.05)
    return wide, high


def _legend_growth(figure: Figure) -> float:
    """By how much wider the figure must be for its widest legend, which takes no less room where it has less."""
    growth = 1.0
    for legend in _legends(figure):
        room = _cell(legend.axes)[0] if legend.axes else figure.bbox.width
        growth = max(growth, (legend.get_window_extent().width + GAP * figure.dpi) / room)
    return growth


def _legends(figure: Figure) -> list[Legend]:
    own = [axes.get_legend() for axes in _panels(figure)]
    return [*filter(None, own), *(legend for part in _parts(figure) for legend in part.legends)]


def _draw_dollars_as_they_are(figure: Figure) -> None:
    """A name such as "cost_$5_to_$9" is no formula; only the numbers on a logarithmic axis are."""
    formulas = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            ticks = axis.get_ticklabels(which="both")
            formulas |= {id(label) for label in ticks if axis.get_scale() == "log"}
    for text in figure.findobj(Text):
        text.set_parse_math(id(text) in formulas)


def _choose_fonts(figure: Figure) -> None:
    """Give every text the fonts that have its letters, matplotlib's own first."""
    texts = figure.findobj(Text)
    for text in texts:
        if RIGHT_TO_LEFT.search(text.get_text()):
            text.set_text(RIGHT_TO_LEFT.sub(f"{LEFT_TO_RIGHT}\\g<0>{LEFT_TO_RIGHT}", text.get_text()))
    families, missing = fallback_fonts("".join(sorted({letter for text in texts for letter in text.get_text()})))
    if families:
        for text in texts:
            text.set_fontfamily([FONT, *families])
    _warn_of_missing(missing)


@functools.cache
def fallback_fonts(letters: str) -> tuple[list[str], str]:
    """Fonts of this machine for what matplotlib's own lacks, and the letters that none has."""
    missing = {letter for letter in letters if ord(letter) not in _letters_of(font_manager.findfont(FONT))}
    missing = {letter for letter in missing if letter.isprintable() and not unicodedata.combining(letter)}
    families: list[str] = []
    if missing:
        entries = font_manager.fontManager.ttflist
        for entry in sorted(entries, key=lambda entry: (_preference(entry.name), entry.name, abs(entry.weight - 400))):
            new = (
                set() if entry.name.startswith(NO_FONTS) else {x for x in missing if ord(x) in _letters_of(entry.fname)}
            )
            if new:
                families.append(entry.name)
                missing -= new
    return families, "".join(sorted(missing))


def _preference(name: str) -> int:
    places = [place for place, preferred in enumerate(PREFERRED_FONTS) if name.startswith(preferred)]
    return places[-1] if places else len(PREFERRED_FONTS)


@functools.cache
def _letters_of(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # gone since the list of fonts was made, or of a format without letters
        return frozenset()


def _warn_of_missing(letters: str) -> None:
    """Say once what boxes in figures are."""
    if letters and not _told:
        _told.add(letters)
        logger.warning(
            "no font on this machine has some letters of these runs' names, such as %s: figures show boxes in their "
            "place. Install a font that has them, such as Debian's fonts-noto-cjk, and have matplotlib look for fonts "
            "again: rm %s/fontlist*",
            letters[:20], matplotlib.get_cachedir(),
        )  # fmt: skip
