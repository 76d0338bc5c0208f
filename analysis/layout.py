"""Layout that measures texts: every letter in a font that has it, and no text over another.

The names of models, tasks and levels come from users: they may have any length and script. `arrange` is called once,
before a figure is written.
"""

import functools
import logging
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Mapping

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import LayoutEngine
from matplotlib.legend import Legend
from matplotlib.text import Text

logger = logging.getLogger(__name__)

FONT = "DejaVu Sans"  # matplotlib's own
# Preferred among the fonts of a machine: sans serif fonts with many scripts.
PREFERRED_FONTS = (
    "Noto Sans", "Noto Sans CJK", "Source Han Sans", "WenQuanYi", "Droid Sans Fallback", "PingFang", "Hiragino Sans",
    "Microsoft YaHei", "SimHei", "Malgun Gothic", "Arial Unicode MS", "Unifont", "FreeSans",
)  # fmt: skip
NO_FONTS = ("Last Resort",)  # has a box for every letter
ROUNDS = 8
MIN_WIDTH, MIN_HEIGHT = 1.4, 1.0  # of a panel's axes, in inches
COLLAPSED_GROWTH = 1.25  # factor where the layout engine found no room for the axes at all
GAP = 0.15  # between the texts of neighbouring panels, in inches
TITLE_LINES = 4
TITLE_LETTERS = 70
MAX_PIXELS = 2**16 - 1  # of a side; the renderer draws no more
# Names in Hebrew or Arabic, which marks keep from reordering the numbers after them in a line that reads from the left.
RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]+(?:[ ,.;:]+[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]+)*"
)
_told: set[str] = set()  # letters that a warning named
LEFT_TO_RIGHT = "\N{LEFT-TO-RIGHT MARK}"


def arrange(figure: Figure) -> None:
    """Fix the layout of a figure: titles are wrapped, and the figure is enlarged until legends and panels have room.

    A legend of the figure (loc "outside upper …" or "outside lower …") stands below its title, or above its caption.
    Only the numbers on logarithmic axes are parsed as formulas. Each letter gets a font of this machine that has it.
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
            _execute(engine, figure)
        collapsed = any("constrained_layout" in str(warning.message) for warning in warned)
        wide, high = (COLLAPSED_GROWTH, COLLAPSED_GROWTH) if collapsed else _growth(figure)
        grown = max(wide, high) > 1
        figure.set_size_inches(figure.get_figwidth() * wide, figure.get_figheight() * high)
    if grown:
        _execute(engine, figure)
    figure.set_layout_engine(None)


def _execute(engine: LayoutEngine, figure: Figure) -> None:
    """Run the layout engine, with room for both a title (or caption) and a legend at the same edge of the figure.

    matplotlib's engine reserves the larger height of the two and draws one over the other.
    """
    gap, whole = 0.5 * GAP * figure.dpi, figure.bbox.height
    text_ends, panels_end = {"upper": whole, "lower": 0.0}, {"upper": whole, "lower": 0.0}  # pixels from below
    for edge, text, inward in (("upper", figure._suptitle, -1), ("lower", figure._supxlabel, 1)):
        legends = [legend for legend in figure.legends if legend._outside_loc == edge]
        if text is not None and text.get_text() and legends:
            text.set_in_layout(False)  # and out of the engine's hands
            text.set_y((text_ends[edge] + inward * gap) / whole)
            text.set_verticalalignment("top" if edge == "upper" else "bottom")
            text_ends[edge] += inward * (text.get_window_extent().height + gap)
            highest = max(legend.get_window_extent().height for legend in legends)
            panels_end[edge] = text_ends[edge] + inward * (highest + 2 * gap)
            for legend in legends:
                legend.set_bbox_to_anchor(_strip(figure, text_ends))
    if panels_end != {"upper": whole, "lower": 0.0}:
        engine.set(rect=_strip(figure, panels_end))
    engine.execute(figure)


def _strip(figure: Figure, ends: Mapping[str, float]) -> tuple[float, float, float, float]:
    """The part of the figure between a lower and an upper height in pixels: left, bottom, width, height as shares."""
    whole = figure.bbox.height
    return 0.0, ends["lower"] / whole, 1.0, (ends["upper"] - ends["lower"]) / whole


def shortened(name: str, letters: int) -> str:
    """The name, or its beginning and end (so that names stay distinct) where it is wider than `letters`."""
    if width(name) <= letters:
        return name
    head, tail = _within(name, (letters - 1) * 2 // 3), _within(name[::-1], (letters - 1) // 3)[::-1]
    return f"{head.rstrip()}…{tail.lstrip()}"


def title(name: str) -> str:
    """The name, shortened to fit the title of a panel."""
    return shortened(name, TITLE_LETTERS)


def width(text: str) -> int:
    """Width of a text in letters; Chinese, Japanese and Korean letters count twice."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def _within(name: str, letters: int) -> str:
    """The longest prefix of a name that is at most as wide as so many letters."""
    count = len(name)
    while width(name[:count]) > letters:
        count -= 1
    return name[:count]


def wrap(text: Text, whole: str, pixels: float, lines: int | None) -> None:
    """Set the text to `whole`, broken into lines of at most `pixels`; beyond `lines` lines it is cut with "…"."""
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
    """The texts to be wrapped, each with its greatest width in pixels and number of lines."""
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
    """Width and height in pixels of a panel with its axes, labels, title and legend."""
    rows, columns = axes.get_gridspec().get_geometry()
    part = axes.get_figure(root=False)
    return part.bbox.width / columns, part.bbox.height / rows


def _room(axes: Axes) -> float:
    """Greatest width in pixels of a text centred on the panel's axes that reaches neither a neighbour nor the edge."""
    part, box = axes.get_figure(root=False).bbox, axes.get_window_extent()
    center = (box.x0 + box.x1) / 2
    return min(_cell(axes)[0], 2 * (center - part.x0), 2 * (part.x1 - center)) - GAP * axes.get_figure(root=True).dpi


def _growth(figure: Figure) -> tuple[float, float]:
    """Factors by which width and height of the figure must grow for panels and legends to have room, at least 1."""
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
    """Factor by which the width of the figure must grow for its widest legend, at least 1."""
    growth = 1.0
    for legend in _legends(figure):
        room = _cell(legend.axes)[0] if legend.axes else figure.bbox.width
        growth = max(growth, (legend.get_window_extent().width + GAP * figure.dpi) / room)
    return growth


def _legends(figure: Figure) -> list[Legend]:
    own = [axes.get_legend() for axes in _panels(figure)]
    return [*filter(None, own), *(legend for part in _parts(figure) for legend in part.legends)]


def _draw_dollars_as_they_are(figure: Figure) -> None:
    """Parse no text as a formula, such as the name "cost_$5_to_$9", but the numbers on logarithmic axes."""
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
    """The fonts of this machine that have the letters which matplotlib's own lacks, and the letters that none has."""
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
    """Log once why figures show boxes instead of letters."""
    if letters and not _told:
        _told.add(letters)
        logger.warning(
            "no font on this machine has some letters of these runs' names, such as %s: figures show boxes in their "
            "place. Install a font that has them, such as Debian's fonts-noto-cjk, and have matplotlib look for fonts "
            "again: rm %s/fontlist*",
            letters[:20], matplotlib.get_cachedir(),
        )  # fmt: skip
