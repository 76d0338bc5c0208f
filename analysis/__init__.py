"""What a tree of runs says: tables, statistics, figures, reports; without torch.

In the order in which the runs go through them:

    table outcomes rescored          rows of runs to points: means over seeds beside the dense model; single items; runs
                                     scored by another metric
    curves human_gap lines           curves and their slopes; difficulty by the gap to people; lines between models
    estimators resampling metrics    pure statistics on arrays, which the runs themselves use too
    sizes                            bytes of compressed weights, what a strength removes
    replicates flips                 runs on resampled items and seeds; answers that change, KL divergence
    verdicts intervals               whether harder levels fall faster; the intervals of drops, for the figures
    tolerance contrasts              how far one may compress; transfers, minorities
    sensitivity                      layers compressed one at a time; sparsity allocated against uniform
    plots compression_plots          figures of curves by strength; by size, of flips, of perplexity;
    tuned_plots style layout         of minorities and lines between models; what they are built of
    methods_compared                 every method at equal bytes, by drop, flips, KL and Junk DNA score
    kinds                            what belongs together, with its figures and all that is said of it
    findings cautions missing        a sentence for each figure, and for everything to beware of; what was not run
    level_sections tuned_sections    tables and explanations of summary.md
    paper                            the paper's numbers beside ours
    summary report                   summary.md and report.html
    names terminal                   how things are written; how a script prints
"""

import os

# Nothing here needs a display, and the name of a backend that matplotlib does not know would end its import.
os.environ.pop("MPLBACKEND", None)
