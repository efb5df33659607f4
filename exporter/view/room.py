"""How many lines the metrics of the ledger may have, and for whom the rest of them is kept. Pure.

``series_max`` is never exceeded: every series asks here before it is created. A part is set aside for what must not be
crowded out by many workflows: the series of the sources themselves, and those of ``__other__``. A workflow gets a
place of its own only if there is room for all it shows at once and for some growth, since it will show more with its
first results. What it would show beyond that is refused once all room is taken.
"""

#: Lines promised to a workflow beyond those it shows when it is found: durations of two results.
GROWTH_LINES = 30


class Room:
    """Counts lines against the limit."""

    def __init__(self, lines_max: int, *, aside: int) -> None:
        """``aside`` are the lines set aside, a quarter of all at most."""
        self._max = lines_max
        self._aside = min(aside, lines_max // 4)
        self._aside_used = 0
        self._used = 0
        self._promised: dict[object, int] = {}
        self._promises = 0

    @property
    def left(self) -> int:
        """Lines that everyone may have."""
        return self._max - max(self._aside, self._aside_used) - self._used

    def promise(self, workflow: object, lines: int) -> bool:
        """Keep room for a workflow, for these lines and some growth; False if there is none."""
        lines += GROWTH_LINES
        if lines > self.left - self._promises:
            return False
        self._promised[workflow] = lines
        self._promises += lines
        return True

    def take(self, lines: int, *, workflow: object = None, aside: bool = False) -> bool:
        """Ask for the lines of one new series; False if there is no room for it."""
        if aside:
            if self._aside_used + lines > self._max - self._used:
                return False
            self._aside_used += lines
            return True
        own = min(lines, self._promised.get(workflow, 0))
        if lines > self.left - (self._promises - own):
            return False
        self._used += lines
        self._spend(workflow, own)
        return True

    def give_back(self, lines: int, *, aside: bool = False) -> None:
        """Lines that are no longer shown."""
        if aside:
            self._aside_used -= lines
        else:
            self._used -= lines

    def forget(self, workflow: object) -> None:
        """A workflow is gone, and what was promised to it is free."""
        self._spend(workflow, self._promised.get(workflow, 0))

    def _spend(self, workflow: object, lines: int) -> None:
        left = self._promised.get(workflow, 0) - lines
        self._promises -= lines
        if left > 0:
            self._promised[workflow] = left
        else:
            self._promised.pop(workflow, None)
