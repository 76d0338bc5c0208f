"""Which of our figures is which of the original repository's, in Images_png under its first README's names.

Task_1.png      setting 1: training data become scarce             data_adequacy
Task_2.png      majority against minority                          translation, else multi_domain
Task_3.png      with and without a text (open and closed book)     setting 3
Task_4.png      an easy and a hard task of each category           human_gap, of fine-tuned models
TRUE_GEM.png    the four transfers                                 four_transfers
"""

from collections.abc import Callable, Iterable

from analysis import tables
from analysis.contents import Plot
from analysis.domains import domain_tables
from analysis.fine_tuning import human_gap
from analysis.levels import level_tables


def _is(columns: tuple[str, ...], words: str) -> Callable[[Plot], bool]:
    """Whether a plot has these columns and a file name with these words: those of different kinds may be alike."""
    return lambda plot: plot.columns == columns and words in f"_{plot.stem}"


# The first rule that some figure obeys.
RULES: dict[str, tuple[Callable[[Plot], bool], ...]] = {
    "Task_1": (_is(tables.POINT_COLUMNS, "_setting1_data_adequacy_"),),
    "Task_2": (
        _is(domain_tables.COLUMNS, f"_{domain_tables.TRANSLATION}_"),
        _is(domain_tables.COLUMNS, f"_{domain_tables.MULTI_DOMAIN}_"),
    ),
    "Task_3": (_is(level_tables.LEVEL_COLUMNS, "_setting3_"),),
    "Task_4": (_is(human_gap.FIGURE_COLUMNS, "_human_gap_"),),
    "TRUE_GEM": (_is(tables.POINT_COLUMNS, "_four_transfers_"),),
}


def originals(plots: Iterable[Plot]) -> dict[str, Plot]:
    """Our figure for each name of the original; of several models' figures, the first with the most points."""
    drawn = [plot for plot in plots if plot.draw]
    found = {}
    for name, rules in RULES.items():
        for rule in rules:
            if fitting := [plot for plot in drawn if rule(plot)]:
                found[name] = max(fitting, key=lambda plot: len(plot.table))
                break
    return found
