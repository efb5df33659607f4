"""Finished runs about which one thing is still to be asked, run by run, and asked again until it is known.

Which runs these are is kept in a cursor of the stream ``runs``, stored with the page that tells of them: so neither a
restart nor an outage forgets a question.
"""

from collections.abc import Mapping
from typing import Any

from exporter.model import Result, Run, State

#: Asked so often, over at least so many seconds, an answer is given up.
TRIES_MAX = 3
PATIENCE_SECONDS = 60.0


class Noted:
    """The runs noted under one key: id -> scenario, result, start, end, when it was noted, tries. One sweep's copy."""

    def __init__(self, key: str, cursor: Mapping[str, Any] | None, *, runs_max: int) -> None:
        self._key = key
        self._entries = {run_id: list(entry) for run_id, entry in (cursor or {}).items()}
        self._runs_max = runs_max
        self._changed = False

    @property
    def ids(self) -> list[str]:
        return list(self._entries)

    @property
    def untried(self) -> int:
        return sum(1 for entry in self._entries.values() if entry[5] == 0)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._entries

    def cursor(self) -> dict[str, Any]:
        """To be stored with every page whose runs were added or dropped; nothing if nothing changed meanwhile."""
        changed, self._changed = self._changed, False
        return {self._key: {run_id: list(entry) for run_id, entry in self._entries.items()} or None} if changed else {}

    def add(self, run: Run, now: float) -> bool:
        """Note a run; False if there are too many."""
        if len(self._entries) >= self._runs_max:
            return False
        self._entries[run.id] = [run.workflow_id, run.result, run.started_at, run.ended_at, now, 0]
        self._changed = True
        return True

    def run(self, run_id: str) -> Run:
        """The run as it was noted."""
        workflow_id, result, started_at, ended_at, _, _ = self._entries[run_id]
        return Run(
            workflow_id=workflow_id,
            id=run_id,
            state=State.FINISHED,
            result=Result(result),
            started_at=started_at,
            ended_at=ended_at,
        )

    def age(self, run_id: str, now: float) -> float:
        """Seconds since it was noted."""
        noted_at: float = self._entries[run_id][4]
        return now - noted_at

    def missed(self, run_id: str, now: float) -> bool:
        """Count a try that led nowhere; True when it was the last."""
        entry = self._entries.pop(run_id)
        entry[5] += 1
        self._entries[run_id] = entry  # behind the others
        self._changed = True
        return entry[5] >= TRIES_MAX and self.age(run_id, now) >= PATIENCE_SECONDS

    def drop(self, run_id: str) -> None:
        self._changed |= self._entries.pop(run_id, None) is not None
