"""What is left of a sweep, in time: from how long finished runs took."""

import json
import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from harness import run_folder

logger = logging.getLogger(__name__)

SAMPLE = 100  # complete runs, spread over the sweep, tell how long one takes


def run_seconds(folder: Path) -> float | None:
    """How long a finished run took; None where it is being replaced just now, or is no run of this project."""
    path = folder / run_folder.RESULT_FILE
    try:
        seconds = float(json.loads(path.read_bytes())["seconds"])
        return seconds if math.isfinite(seconds) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s is counted as done, but was not written by this project: %r", path, error)
        return None


def duration(seconds: float) -> str:
    """In words, by the two largest units."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def plan_line(complete: Sequence[Path], cells: int, overwrite: bool = False) -> str:
    """What a sweep is about to compute, in one line, with a rough time where complete runs of it tell one.

    Args:
        complete: folders of the sweep's complete runs.
        cells: of the sweep, complete or not.
        overwrite: complete runs are computed again.
    """
    left = cells if overwrite else cells - len(complete)
    told = f"{cells} cells: {len(complete)} complete, {left} to compute"
    if not left:
        return told
    sample = complete[:: max(1, len(complete) // SAMPLE)]
    seconds = [taken for folder in sample if (taken := run_seconds(folder)) is not None]
    if not seconds:
        return f"{told}; the time is told after the first"
    typical = statistics.median(seconds)
    return (
        f"{told}; complete ones took {duration(typical)} each (median), so about {duration(typical * left)} one after "
        "the other where this machine is as fast"
    )


def left_text(seconds: Sequence[float], left: int) -> str:
    """What is left after some cells were computed: "; 8 left, about 2 h 4 min at this pace"; empty after the last.

    Args:
        seconds: that the cells computed here took.
        left: cells that are not done yet.
    """
    return f"; {left} left, about {duration(statistics.fmean(seconds) * left)} at this pace" if left else ""
