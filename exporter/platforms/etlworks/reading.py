"""What one reading of a flow comes to, and what is remembered of it for the next. Pure; the client only fetches.

What has to be remembered between sweeps is one cursor per flow (``FlowState``). Losing it costs requests, and the
knowledge that a run was cancelled before it was called an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from msgspec.structs import replace

from exporter.model import Observation, Result, Run, State, Workflow
from exporter.platforms.etlworks import mapping
from exporter.platforms.etlworks.mapping import CANCEL_GRACE_SECONDS, Execution
from exporter.platforms.etlworks.schedule import Schedule, next_run_at

#: Unannounced starts remembered of each flow.
STARTS_KEPT = 6
#: An open run that cannot be found for this long (seconds) is gone.
LOST_SECONDS = 600.0
#: Runs of one flow read by their id in one sweep.
FOLLOWED_PER_FLOW_MAX = 20


class Stop(NamedTuple):
    """What is remembered of a run that was called canceled."""

    until: float  # re-read it until then
    at: float | None  # its end, as it was told then


def stops_to_cursor(stops: Mapping[str, Stop]) -> dict[str, list[float | None]]:
    return {run: [stop.until, stop.at] for run, stop in stops.items()}


def stops_from_cursor(value: Any) -> dict[str, Stop]:
    """Run -> stop, as a cursor remembers them."""
    if not isinstance(value, Mapping):
        return {}
    return {run: Stop(*stop) for run, stop in value.items() if isinstance(stop, list | tuple) and len(stop) == 2}


@dataclass(slots=True, kw_only=True)
class FlowState:
    """What is remembered of one flow. Times are on the platform's clock."""

    read: float = 0.0  # when its newest run was last read
    tried: float = 0.0  # when that was last attempted
    run: str | None = None  # the newest run seen
    again: float | None = None  # when the scheduler repeats the newest run
    undecided: bool = False  # whether it repeats it was not known yet
    began: dict[str, float] = field(default_factory=dict)  # schedule -> its last start seen
    cancelled: dict[str, Stop] = field(default_factory=dict)  # by run
    lost: dict[str, float] = field(default_factory=dict)  # open run -> not to be found since
    since: float = 0.0  # when it was first read
    starts: list[float] = field(default_factory=list)  # the last that no schedule had announced, oldest first

    def to_cursor(self) -> dict[str, Any]:
        """Only what is set, so that a thousand quiet flows stay small."""
        whole = {**asdict(self), "cancelled": stops_to_cursor(self.cancelled)}
        return {name: value for name, value in whole.items() if value}

    @classmethod
    def from_cursor(cls, value: Any) -> "FlowState":
        """What a cursor remembers; nothing, if it is in a form of another version."""
        if not isinstance(value, Mapping):
            return cls()
        known = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        for name in ("began", "lost"):
            known[name] = dict(known[name]) if isinstance(known.get(name), Mapping) else {}
        starts = known.get("starts")
        known["starts"] = list(starts) if isinstance(starts, list | tuple) else []
        known["cancelled"] = stops_from_cursor(known.get("cancelled"))
        return cls(**known)


class FlowReading:
    """One reading of one flow: executions go in, observations and the new state come out."""

    def __init__(
        self,
        *,
        state: FlowState,
        open_runs: Sequence[Run],
        schedules: Sequence[Schedule] | None,
        schedules_read_at: float | None,
        now: float,
    ) -> None:
        self.state = state
        self.observations: list[Observation] = []
        self.newest: Execution | None = None
        self._before = (state.run, state.read)
        self._open = {run.id: run for run in open_runs}
        self._schedules = schedules
        self._schedules_read_at = schedules_read_at
        self._now = now
        self._seen: set[str] = set()

    def take_newest(self, item: Execution) -> None:
        """The newest execution of the flow, as it reads now."""
        self.newest = item
        self.state.run, self.state.read = item.run.id, self._now
        self.state.since = self.state.since or self._now
        self.state.again, self.state.undecided = None, False
        self.take(item)

    def take_nothing(self) -> None:
        """The flow has no execution yet."""
        self.state.read = self._now
        self.state.since = self.state.since or self._now

    def take(self, item: Execution) -> None:
        """Any execution of the flow, as it reads now."""
        run_id, state = item.run.id, self.state
        self._seen.add(run_id)
        state.lost.pop(run_id, None)
        stop = state.cancelled.get(run_id)
        if item.canceled:
            until = self._now + CANCEL_GRACE_SECONDS if stop is None else stop.until
            state.cancelled[run_id] = Stop(until, item.run.ended_at if stop is None or stop.at is None else stop.at)
        elif stop is not None:
            item = mapping.as_cancelled(item, stopped_at=stop.at)
            if item.run.state is State.FINISHED:
                state.cancelled[run_id] = stop._replace(until=min(self._now, stop.until))  # down: no need to look again
        self.observations.append(item.run)
        self._note_start(item)
        letter = mapping.dead_letter(item)
        if letter is None:
            return
        repeats = mapping.repeats_itself(item, self._schedules, read_at=self._schedules_read_at)
        if repeats is False:
            self.observations.append(letter)
        elif run_id == state.run:
            own = mapping.schedule_of(item, self._schedules or ())
            state.undecided = repeats is None
            state.again = letter.opened_at + own.delay if repeats and own is not None else None

    def take_lost(self, run_id: str) -> None:
        """A run that was to be read by its id and cannot be found."""
        since = self.state.lost.setdefault(run_id, self._now)
        if self._now - since >= LOST_SECONDS:
            self.state.lost.pop(run_id, None)
            self.state.cancelled.pop(run_id, None)
            if run_id in self._open:
                self.observations.append(mapping.vanished(self._open[run_id]))

    def to_follow(self) -> list[str]:
        """Runs to be read by their id: open ones, stopped ones, the first of a chain of repetitions that was missed."""
        wanted = [*self._open, *(run for run, stop in self.state.cancelled.items() if stop.until > self._now)]
        seen, newest = self._before[0], self.newest
        if newest is not None and newest.run.parent_id is not None and seen is not None:
            if int(newest.run.parent_id) > int(seen):
                wanted.append(newest.run.parent_id)
        return [run for run in dict.fromkeys(wanted) if run not in self._seen][:FOLLOWED_PER_FLOW_MAX]

    def may_hide_failure(self) -> bool:
        """Whether a run that failed may have come and gone between the last reading and the newest run."""
        seen, read = self._before
        newest = self.newest
        if newest is None or seen is None or newest.run.id == seen or newest.run.result is Result.FAILURE:
            return False
        if newest.tries > 1 or not newest.scheduled:  # the repetition before it failed; nobody knows when this began
            return True
        periods = [s.period for s in self._schedules or () if s.enabled and s.period is not None]
        return not periods or self._now - read > 1.5 * min(periods)

    def take_failure(self, item: Execution) -> None:
        """The newest execution that failed; news only if it began after what the last reading saw."""
        seen = self._before[0]
        if item.run.id not in self._seen and seen is not None and item.number > int(seen):
            self.take(item)

    def rescheduled(self, known: Workflow | None, at: float) -> Workflow | None:
        """The workflow with its next start, if the one that is known has passed."""
        if known is None or known.next_run_at is None or known.next_run_at > at or self.newest is None:
            return None
        return replace(known, at=at, next_run_at=next_run_at(self._schedules or (), at))

    def cursor(self) -> dict[str, Any]:
        """The state to remember. Of runs called canceled, the newest stays known as long as it is the newest: it may
        be read again at any time, and be called an error by then.
        """
        state = self.state
        ids = {schedule.id for schedule in self._schedules or ()}
        state.began = {key: at for key, at in state.began.items() if key in ids}
        state.cancelled = {
            run: stop for run, stop in state.cancelled.items() if stop.until > self._now or run == state.run
        }
        state.lost = {run: since for run, since in state.lost.items() if run in self._open}
        return state.to_cursor()

    def _note_start(self, item: Execution) -> None:
        if item.run.parent_id is not None or item.run.started_at is None:
            return
        own = mapping.schedule_of(item, self._schedules or ()) if item.scheduled else None
        if own is not None:
            self.state.began[own.id] = max(item.run.started_at, self.state.began.get(own.id, 0.0))
        if own is None or own.period is None:
            self.state.starts = sorted({*self.state.starts, item.run.started_at})[-STARTS_KEPT:]
