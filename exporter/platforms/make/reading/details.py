"""What the rows of runs do not tell, as one sweep knows it: why a run failed, and which steps it had."""

from collections.abc import AsyncIterator
from typing import Any

from exporter.model import Run
from exporter.platform import Known, Page
from exporter.platforms.make.reading import causes, steps
from exporter.platforms.make.reading.causes import Causes
from exporter.platforms.make.reading.noted import Noted
from exporter.platforms.make.reading.steps import Steps


class Details:
    """What earlier sweeps left to be asked, and what this one adds."""

    def __init__(self, causes_: Causes, steps_: Steps, known: Known, *, counted_from: float, now: float) -> None:
        self._causes = causes_
        self._steps = steps_
        self._unexplained = Noted(causes.CURSOR, known.cursor("runs", causes.CURSOR), runs_max=causes.NOTED_MAX)
        self._stepless = Noted(steps.CURSOR, known.cursor("runs", steps.CURSOR), runs_max=steps.NOTED_MAX)
        self._counted_from = counted_from
        self._now = now

    def note(self, run: Run) -> Run:
        """The run as far as it is known by now; what is missing is noted, if the run counts."""
        if run.finished_at is not None and run.finished_at < self._counted_from:
            return run
        run = self._causes.note(run, self._unexplained, self._now)
        return self._steps.note(run, self._stepless, self._now)

    def cursor(self) -> dict[str, Any]:
        """To be stored with every page whose runs were passed to ``note``."""
        return self._unexplained.cursor() | self._stepless.cursor()

    async def ask(self) -> AsyncIterator[Page]:
        """Ask for what is noted: causes first."""
        async for page in self._causes.ask(self._unexplained, self._now):
            yield page
        async for page in self._steps.ask(self._stepless, self._now):
            yield page
