"""Which of our figures has which name in the first README of the original repository (Images_png).

Task_1.png      setting 1: training data become scarce             data_adequacy
Task_2.png      majority against minority                          translation, else multi_domain
Task_3.png      with and without a text (open and closed book)     setting 3
Task_4.png      an easy and a hard task of each category           human_gap, of fine-tuned models
TRUE_GEM.png    the four transfers                                 four_transfers
"""

from collections.abc import Iterable

from analysis.human_gap import FIGURE_COLUMNS
from analysis.kinds import Plot
from analysis.table import DOMAIN_COLUMNS, LEVEL_COLUMNS, MULTI_DOMAIN, POINT_COLUMNS, TRANSLATION

# By name of the original: columns of our table and words of our file name. The first rule that some figure obeys
# counts.
RULES: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "Task_1": ((POINT_COLUMNS, "_setting1_data_adequacy_"),),
    "Task_2": ((DOMAIN_COLUMNS, f"_{TRANSLATION}_"), (DOMAIN_COLUMNS, f"_{MULTI_DOMAIN}_")),
    "Task_3": ((LEVEL_COLUMNS, "_setting3_"),),
    "Task_4": ((FIGURE_COLUMNS, "_human_gap_"),),
    "TRUE_GEM": ((POINT_COLUMNS, "_four_transfers_"),),
}


def originals(plots: Iterable[Plot]) -> dict[str, Plot]:
    """Our figure for each name of the original; of several models' figures, the first with the most points."""
    drawn = [plot for plot in plots if plot.draw]
    found = {}
    for name, rules in RULES.items():
        for columns, words in rules:
            # File names of different kinds may be alike, and so may columns.
            if fitting := [plot for plot in drawn if plot.columns == columns and words in f"_{plot.stem}"]:
                found[name] = max(fitting, key=lambda plot: len(plot.table))
                break
    return found
