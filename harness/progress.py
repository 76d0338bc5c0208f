"""Progress of long work: a bar on a terminal, elsewhere a line in the log once a minute."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

from tqdm import tqdm

logger = logging.getLogger(__name__)

LINE_SECONDS = 60.0  # between lines of the log
BAR_SECONDS = 1.0  # between looks at the detail, for a bar


class Progress:
    """How far some work is, to iterate over or to `update`; used as a context or closed, a bar goes away.

    Args:
        items: what is iterated over; None where `update` is called instead.
        name: of the work, in bar and log.
        total: how many steps there are; by default as many as `items` has.
        initial: steps done by an earlier attempt.
        detail: what else is told, such as the loss; called once a minute (for a bar, once a second).
        bar: whether a terminal shows a bar; a part of work that has one goes without.
        quiet: nothing is shown or told.
    """

    def __init__(
        self, items: Iterable | None = None, name: str = "", total: int | None = None, initial: int = 0,
        detail: Callable[[], str] | None = None, bar: bool = True, quiet: bool = False,
    ) -> None:  # fmt: skip
        self._items, self._name, self._detail = items, name, detail
        self._total = len(items) if total is None and hasattr(items, "__len__") else total
        self._initial = self._done = initial
        terminal = sys.stderr.isatty()
        shown = bar and terminal and not quiet
        self._bar = tqdm(total=self._total, initial=initial, desc=name, leave=False) if shown else None
        self._tells = not quiet and not terminal
        self._start = self._told = time.monotonic()
        self._lock = threading.Lock()  # workers update from threads of their own

    def update(self, steps: int = 1) -> None:
        """So many more steps are done."""
        with self._lock:
            self._done += steps
            if self._bar is not None:
                self._bar.update(steps)
                if self._detail and self._is_due(BAR_SECONDS):
                    self._bar.set_postfix_str(self._detail())
            elif self._tells and self._is_due(LINE_SECONDS):
                logger.info("%s", self._line())

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __iter__(self) -> Iterator:
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_due(self, seconds: float) -> bool:
        now = time.monotonic()
        if now - self._told < seconds:
            return False
        self._told = now
        return True

    def _line(self) -> str:
        """ "train: 120 of 1000, loss 0.5132, about 12:34 left"."""
        parts = [f"{self._name}: {self._done}" + ("" if self._total is None else f" of {self._total}")]
        if self._detail:
            parts.append(self._detail())
        new = self._done - self._initial
        if self._total is not None and new:
            left = (self._told - self._start) / new * (self._total - self._done)
            parts.append(f"about {tqdm.format_interval(left)} left")
        return ", ".join(parts)
