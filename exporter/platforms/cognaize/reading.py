"""What one sweep of Cognaize wants to know, and what has been read of it so far. Pure; the client only fetches."""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

from exporter.model import DeadLetter, Observation, Workflow
from exporter.platform import BadItem, Fault, Known, Page, StreamName, selected
from exporter.platforms.cognaize import mapping
from exporter.platforms.cognaize.config import CognaizeConfig
from exporter.platforms.cognaize.listing import BASELINE_SECONDS

#: A process is believed to be gone once it has been missing for so long (seconds).
GONE_AFTER_SECONDS = 600.0


class Sweep:
    """What one sweep wants to know, and what it has read so far."""

    def __init__(self, config: CognaizeConfig, known: Known, now: float, latest: Callable[[], float]) -> None:
        self.now = now
        self._latest = latest  # the latest time to be believed, as far as answers have told by then
        self._config = config
        self._known = known
        self._letters: dict[str, list[DeadLetter]] = {}
        for letter in known.dead_letters.values():
            self._letters.setdefault(letter.run_id or "", []).append(letter)
        self._seen: set[str] = set()
        self._unreadable: dict[str, str] = {}  # id to what is wrong
        self._named: set[str] = set()
        self.gone: set[str] = set()
        self.bulk_pages = 0
        self.wanted: dict[str, str | None] = {run_id: run.workflow_id for run_id, run in known.open_runs.items()}
        for run_id, letters in self._letters.items():
            if run_id:
                self.wanted.setdefault(run_id, letters[0].workflow_id)
        self._horizon = (known.first_sweep_at or now) - config.backfill_seconds - BASELINE_SECONDS

    def page(
        self, items: Iterable[Any], *, cursor: Any = None, faults: Iterable[Fault] = (), deep: bool = False
    ) -> Page:
        """Observations of these processes. One that cannot be read is asked for by its id before it is a fault.

        Of a ``deep`` page, what ended too long ago to be counted is left out.
        """
        observations: list[Observation] = []
        all_faults, open_runs, count = list(faults), self._known.open_runs, 0
        found: set[str] = set()
        for count, item in enumerate(items, start=1):  # noqa: B007 (it is how many there were)
            names = mapping.identity(item)
            if names is None:
                all_faults.append(Fault(kind="bad_item", detail="a process without id or workflowId"))
                continue
            process_id, workflow_id = names
            if not self._selected(workflow_id):
                self._seen.add(process_id)
                continue
            found.add(workflow_id)
            letters = self._letters.get(process_id, ())
            try:
                before = open_runs.get(process_id)
                reading = mapping.read(item, before=before, dead_letters=letters, latest=self._latest())
            except BadItem as bad:
                self._unreadable[process_id] = str(bad)
                self.wanted.setdefault(process_id, workflow_id)
                observations.append(mapping.unread(item, latest=self._latest()))
                continue
            if reading.doubt is not None:
                all_faults.append(Fault(kind="bad_item", detail=reading.doubt, workflow_id=workflow_id))
            self._seen.add(process_id)
            ended_at = reading.run.ended_at
            if deep and ended_at is not None and ended_at < self._horizon and process_id not in self.wanted:
                continue
            observations += [reading.run, *reading.dead_letters]
        cursors = {} if cursor is None else {"": cursor}
        told = [*self._workflows(found), *observations]
        return Page(observations=told, cursors=cursors, faults=all_faults, items=count)

    def workflows(self, rows: mapping.Rows) -> Page:
        """Workflows by the names the config has for them now; ``rows`` may hold one more."""
        found = {names[1] for item in rows.items if (names := mapping.identity(item)) is not None}
        return Page(observations=self._workflows(found | set(self._known.workflows)))

    def _selected(self, workflow_id: str) -> bool:
        return selected(self._config, workflow_id, self._config.workflows.get(workflow_id))

    def _workflows(self, found: set[str]) -> list[Workflow]:
        """Workflows that are new, or that the config names otherwise by now."""
        out = []
        for workflow_id in sorted((found | set(self._config.workflows)) - self._named):
            self._named.add(workflow_id)
            name, known = self._config.workflows.get(workflow_id), self._known.workflows.get(workflow_id)
            if self._selected(workflow_id) and (known is None or known.at == 0 or known.name != name):
                out.append(Workflow(id=workflow_id, at=self.now, name=name))
        return out

    def missing(self) -> dict[str, str | None]:
        """What is wanted and was not read yet: id to workflow id."""
        return {
            run_id: workflow_id
            for run_id, workflow_id in self.wanted.items()
            if run_id not in self._seen and (workflow_id is None or self._selected(workflow_id))
        }

    def turn(self, room: int) -> tuple[list[str], dict[str, str] | None]:
        """Whose turn it is to be read, ``room`` at most, and the cursor that says where the next sweep goes on.

        First what could not be read, then what is open, then what has failed, for which half of the room is kept.
        """
        missing = set(self.missing())
        damaged = sorted(missing & set(self._unreadable))[:room]
        missing -= set(damaged)
        runs = missing & set(self._known.open_runs)
        failed = missing - runs
        last = self._known.cursor(StreamName.RUNS, "turn") or {}
        room -= len(damaged)
        first = _after(runs, last.get("open", ""), room - min(len(failed), room // 2))
        second = _after(failed, last.get("failed", ""), room - len(first))
        turn = {"open": first[-1] if first else "", "failed": second[-1] if second else ""}
        return [*damaged, *first, *second], turn if len(missing) > room else None

    def problems(self) -> list[Fault]:
        """Processes that stayed unreadable."""
        return [
            Fault(kind="bad_item", detail=problem, workflow_id=self.wanted.get(process_id))
            for process_id, problem in self._unreadable.items()
            if process_id not in self._seen | self.gone
        ]

    def rest(self, turn: dict[str, str] | None) -> Page:
        """What a sweep says at its end: what stayed unreadable, what is gone, and where to go on."""
        observations: list[Observation] = []
        since: dict[str, float] = self._known.cursor(StreamName.RUNS, "missing") or {}
        missing, open_runs = self.missing(), self._known.open_runs
        still = {key: at for key, at in since.items() if key in missing}
        for process_id in self.gone:
            if self.now - still.setdefault(process_id, self.now) >= GONE_AFTER_SECONDS:
                del still[process_id]
                if process_id in open_runs:
                    observations.append(mapping.gone(open_runs[process_id]))
                observations += [mapping.expired(d, at=self.now) for d in self._letters.get(process_id, ())]
        cursors = {"turn": turn, "missing": still or None}
        return Page(observations=observations, cursors=cursors, faults=self.problems())


def _after(ids: Iterable[str], last: str, limit: int) -> list[str]:
    """At most ``limit`` of these in their order, beginning after ``last`` and going round."""
    ordered = sorted(ids)
    start = bisect_right(ordered, last)
    return (ordered[start:] + ordered[:start])[:limit]
