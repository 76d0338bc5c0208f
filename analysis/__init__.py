"""What a tree of runs says: tables, statistics, figures, reports; without torch."""

import os

# Nothing here needs a display, and the name of a backend that matplotlib does not know would end its import.
os.environ.pop("MPLBACKEND", None)
