"""How far an instance has been read: what one sweep of runs leaves to the next, as a cursor. Pure."""

from dataclasses import dataclass, field
from typing import Any

from exporter.model import Result, Run, State
from exporter.platforms.n8n.mapping import STATES, Numbering, Row

#: Executions about which something is still to be asked; beyond it the rest stays as it was listed.
WANTED_MAX = 1000


@dataclass(slots=True, kw_only=True)
class Gap:
    """A part of the list that a sweep could not read any more: where to go on, and down to which number."""

    cursor: str
    floor: int
    since: float | None = None  # or down to what started before this


@dataclass(slots=True, kw_only=True)
class Wanted:
    """An execution to be read alone: since when, and how it was listed."""

    since: float
    row: Row


@dataclass(slots=True, kw_only=True)
class Position:
    """What is remembered. Times are the platform's."""

    top: int = -1  # the highest number seen
    top_at: float = 0.0  # when it was first seen
    floor: int = -1  # the next sweep reads down to this number; what is open below it is followed one by one
    gap: Gap | None = None
    wanted: dict[int, Wanted] = field(default_factory=dict)
    resets: list[tuple[int, float]] = field(default_factory=list)
    traced: bool | None = None  # whether n8n sends traces of its own
    traced_at: float = 0.0
    crashes_at: float = 0.0
    letters_at: float = 0.0
    letters_after: str = ""  # the last dead letter that was looked at
    lost: int = -1  # the highest number of a failed execution of an error workflow that was reported

    @property
    def numbering(self) -> Numbering:
        return Numbering(resets=tuple(self.resets))

    def want(self, row: Row, now: float) -> bool:
        """Note that an execution is to be read alone; False if too many are noted."""
        if row.number not in self.wanted and len(self.wanted) >= WANTED_MAX:
            return False
        self.wanted.setdefault(row.number, Wanted(since=now, row=row))
        return True

    def dump(self) -> dict[str, Any]:
        return {
            "top": [self.top, self.top_at],
            "floor": self.floor,
            "gap": None if self.gap is None else [self.gap.cursor, self.gap.floor, self.gap.since],
            "wanted": [[each.since, *_dump_row(each.row)] for each in self.wanted.values()],
            "resets": [list(reset) for reset in self.resets],
            "traced": [self.traced, self.traced_at],
            "looked": [self.crashes_at, self.letters_at, self.letters_after],
            "lost": self.lost,
        }

    @classmethod
    def load(cls, cursor: Any) -> "Position":
        if cursor is None:
            return cls()
        resets = [(int(mark), float(at)) for mark, at in cursor["resets"]]
        rows = [(since, _load_row(rest)) for since, *rest in cursor["wanted"]]
        gap = cursor["gap"]
        return cls(
            top=cursor["top"][0],
            top_at=cursor["top"][1],
            floor=cursor["floor"],
            gap=None if gap is None else Gap(cursor=gap[0], floor=gap[1], since=gap[2]),
            wanted={row.number: Wanted(since=since, row=row) for since, row in rows},
            resets=resets,
            traced=cursor["traced"][0],
            traced_at=cursor["traced"][1],
            crashes_at=cursor["looked"][0],
            letters_at=cursor["looked"][1],
            letters_after=cursor["looked"][2],
            lost=cursor["lost"],
        )


def _dump_row(row: Row) -> list[Any]:
    run = row.run
    times = [run.started_at, run.ended_at, run.queued_at]
    return [row.number, row.workflow_id, row.status, row.mode, row.retry_of, row.success, run.id, *times,
            run.trigger, run.parent_id]  # fmt: skip


def _load_row(dumped: list[Any]) -> Row:
    number, workflow_id, status, mode, retry_of, success, run_id, started, ended, queued, trigger, parent = dumped
    state, result = STATES.get(status, (State.FINISHED, Result.UNKNOWN))
    run = Run(
        workflow_id=workflow_id,
        id=run_id,
        state=state,
        result=result,
        started_at=started,
        ended_at=ended,
        queued_at=queued,
        trigger=trigger,
        parent_id=parent,
    )
    return Row(
        number=number,
        workflow_id=workflow_id,
        status=status,
        mode=mode,
        retry_of=retry_of,
        success=success,
        run=run,
    )
