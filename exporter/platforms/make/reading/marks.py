"""How far a scenario's log has been read, and whether something says that it ran since. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.model import Workflow
from exporter.platforms.make.mapping.workflows import Used

#: A run that starts so many seconds before it was planned is still that run.
STARTS_EARLY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A scenario's cursor."""

    used: Used | None
    reset: str | None
    seen: list[Any]
    since: float
    started: float | None = None
    resume: float | None = None
    began: float | None = None
    misses: int = 0
    met: bool = True

    @classmethod
    def load(cls, cursor: Any, now: float) -> "Mark | None":
        """The one that was kept. Nothing was read further than now, whatever a clock that was wrong has written."""
        if not isinstance(cursor, Mapping):
            return None
        used = cursor["used"]
        return cls(
            used=None if used is None else (used[0], used[1], used[2]),
            reset=cursor.get("reset"),
            seen=cursor["seen"],
            since=min(cursor["since"], now),
            started=cursor.get("started"),
            resume=cursor.get("from"),
            began=cursor.get("began"),
            misses=cursor.get("misses", 0),
            met=cursor.get("met", True),
        )

    def dump(self) -> dict[str, Any]:
        told = {
            "reset": self.reset,
            "started": self.started,
            "from": self.resume,
            "began": self.began,
            "misses": self.misses or None,
            "met": None if self.met else False,
        }
        kept = {key: value for key, value in told.items() if value is not None}
        return {"used": self.used, "seen": self.seen, "since": self.since, **kept}


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What all scenarios have used, and when that was so."""

    at: float
    reset: str | None
    used: Mapping[str, Used]

    def of(self, workflow_id: str) -> Used:
        return self.used.get(workflow_id, (None, None, None))


def standing(workflow: Workflow) -> list[Any]:
    """What of a scenario changes when it runs, or stops running."""
    return [workflow.enabled, workflow.blocked, workflow.next_run_at]


def ran(mark: Mark, totals: Totals, workflow_id: str) -> bool:
    """Whether its totals say that a scenario ran since its log was read. What has no number says nothing."""
    used = totals.of(workflow_id)
    if mark.used is None or any(new is not None and new != old for old, new in zip(mark.used, used, strict=True)):
        return True
    return any(used) and totals.reset is not None and totals.reset != mark.reset


def is_explained(mark: Mark, seen: list[Any]) -> bool:
    """Whether all that differs is when it runs next, and the run that was planned before has been read."""
    planned = mark.seen[2]
    if mark.seen[:2] != seen[:2] or mark.seen == seen or planned is None or mark.started is None:
        return False
    return bool(mark.started >= planned - STARTS_EARLY_SECONDS)
