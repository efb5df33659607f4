"""Etlworks' words in ours: flows, schedules and executions as observations. Pure.

| Etlworks | here |
| --- | --- |
| flow | workflow; its schedules say whether it is enabled and when it runs next |
| execution (``auditId``) | run, attempt 1; a repetition by the scheduler is another run |
| ``parentAuditId`` | parent of the run: the first of the chain of repetitions |
| status ``queued`` | pending; no start is believed yet |
| status ``running``, or an unknown one without ``ended`` | running |
| status ``success``, ``warning``, ``error`` | finished: success, warning, failure |
| status ``canceled`` with ``ended`` | finished: cancelled; without ``ended`` it is still going down: running |
| status ``error`` or ``success`` after ``canceled`` | the same run, really down by now: still cancelled |
| an unknown status with ``ended`` | finished: unknown |
| ``started``, ``ended`` (milliseconds) | start and end; ``duration`` is prose and ``records`` is not used |
| ``exception`` of a failed or warned run | error: class by ``errors``, the exception's name, its line redacted |
| ``metrics`` where it is a number (rows processed) | operations of the run |
| ``warnings`` of a warned run that names no exception | error message |
| ``triggerType`` … ``.scheduler`` / ``.on.demand`` / null | trigger schedule / manual / webhook with a ``messageId`` |
| failed run the scheduler will not repeat by itself | dead letter under the run's id |

Never read: ``code`` (SQL), ``startedBy`` (a person's login) beyond "scheduler", definitions of flows, mail addresses.

Sources: Etlworks Integrator documentation, "Get flow status API"; "Flows management API"; "Schedules API"; "Stop flow"
(a stopped execution is first Canceled and then Error, or Success if the flow streams).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from exporter.model import SUCCEEDED, DeadLetter, Error, Result, Run, State, Workflow, times
from exporter.model.redact import redact
from exporter.platform import BadItem
from exporter.platform.retrying import Effort, Standing
from exporter.platforms.etlworks import errors
from exporter.platforms.etlworks.schedule import Schedule, next_run_at, parse_timing

#: What is called canceled may be called an error or a success for so long (seconds), once it is really down.
CANCEL_GRACE_SECONDS = 600.0
MILLISECONDS_MAX = 1e14  # the year 5138: what is above is no time
#: From 2001 as seconds on, and up to 1973 as milliseconds.
SECONDS_MIN, MILLISECONDS_MIN = 1e9, 1e11
DELAY_MINUTES_MAX = 60 * 24 * 30
RETRIES_MAX = 10_000
ROWS_MAX = 1e15  # what is above is no number of rows
NOT_EXECUTED = 3  # the status of a start that started nothing

_RESULTS = {
    "success": Result.SUCCESS,
    "warning": Result.WARNING,
    "error": Result.FAILURE,
    "canceled": Result.CANCELLED,
    "cancelled": Result.CANCELLED,
}
_TRIGGERS = {"flow.execution.scheduler": "schedule", "flow.execution.on.demand": "manual"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One reading of an execution: the run, and what else decides about repetitions and flips."""

    run: Run
    scheduled: bool  # started by the scheduler, which may repeat it
    schedule_id: str | None = None
    tries: int = 0  # repetitions so far
    canceled: bool = False  # called canceled right now: not the last word
    flow_name: str | None = None

    @property
    def number(self) -> int:
        """Audit ids rise: a higher one began later."""
        return int(self.run.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One flow of the listing."""

    id: str
    name: str | None = None


def execution(record: Any, *, flow_id: str, latest: float = times.MOMENT_MAX) -> Execution:
    """One status record of ``GET /rest/v1/executions/{flowId}`` or of a webhook's ``entity``.

    ``flow_id`` is the flow that was asked for. Raises ``BadItem``, also where a time is later than ``latest``.
    """
    if not isinstance(record, dict):
        raise BadItem("an execution must be a JSON object")
    audit_id = identity(record.get("auditId"))
    if audit_id is None:
        raise BadItem("an execution without auditId")
    if identity(record.get("flowId")) not in (None, flow_id):
        raise BadItem(f"execution {audit_id} belongs to another flow")
    word = record.get("status")
    word = word.strip().lower() if isinstance(word, str) else ""
    started_at, ended_at = moment(record.get("started")), moment(record.get("ended"))
    result = _RESULTS.get(word)
    canceled = result is Result.CANCELLED
    if word == "queued":
        state, started_at, ended_at = State.PENDING, None, None
    elif word == "running" or (ended_at is None and (result is None or canceled)):
        state, result, ended_at = State.RUNNING, None, None
    else:
        state, result = State.FINISHED, result or Result.UNKNOWN
    parent = identity(record.get("parentAuditId"))
    run = Run(
        workflow_id=flow_id,
        id=audit_id,
        state=state,
        result=result,
        started_at=started_at,
        ended_at=ended_at,
        error=_error(record, result),
        trigger=_trigger(record),
        parent_id=parent if parent != audit_id else None,
        operations=_rows(record.get("metrics")) if state is State.FINISHED else None,
    )
    if (what := times.implausible(run, latest)) is not None:
        raise BadItem(f"execution {audit_id}: its {what} is at no time that can be")
    return Execution(
        run=run,
        scheduled=run.trigger == "schedule",
        schedule_id=identity(record.get("eventId")),
        tries=_count(record.get("retries"), RETRIES_MAX) or 0,
        canceled=canceled,
        flow_name=_name(record.get("flowName")),
    )


def flow(record: Any) -> Flow:
    """One item of ``GET /rest/v1/flows``. Raises ``BadItem``."""
    flow_id = identity(record.get("id")) if isinstance(record, dict) else None
    if flow_id is None:
        raise BadItem("a flow without id")
    return Flow(id=flow_id, name=_name(record.get("name")))


def schedule(record: Any) -> tuple[str, Schedule]:
    """One item of ``GET /rest/v1/schedules``: the id of its flow, and the schedule.

    ``delayBetweenRetries`` is in minutes; a schedule without ``retries`` has none. Raises ``BadItem``.
    """
    record = record if isinstance(record, dict) else {}
    schedule_id, flow_id = identity(record.get("id")), identity(record.get("flowId"))
    if schedule_id is None or flow_id is None:
        raise BadItem("a schedule without id or flowId")
    timing = parse_timing(record.get("schedule"))
    return flow_id, Schedule(
        id=schedule_id,
        enabled=record.get("enabled") is not False,
        retries=_count(record.get("retries"), RETRIES_MAX) or 0,
        delay=60.0 * (_count(record.get("delayBetweenRetries"), DELAY_MINUTES_MAX) or 0),
        period=timing.period if timing else None,
        offset=timing.offset if timing else None,
        exact=timing is not None and timing.exact,
        place=timing.place if timing else None,
    )


def workflow(item: Flow, *, schedules: Sequence[Schedule] | None, at: float) -> Workflow:
    """A flow with what its schedules say (None: not known). A flow without a schedule is neither enabled nor not."""
    return Workflow(
        id=item.id,
        at=at,
        name=item.name,
        trigger="schedule" if schedules else None,
        enabled=any(s.enabled for s in schedules) if schedules else None,
        next_run_at=next_run_at(schedules, at) if schedules else None,
    )


def repeats_itself(item: Execution, schedules: Sequence[Schedule] | None, *, read_at: float | None) -> bool | None:
    """Whether the scheduler will start this failed run again; None while that cannot be said.

    ``schedules`` are the flow's, as read at ``read_at`` (None: never).
    """
    if not item.scheduled:
        return False
    own = schedule_of(item, schedules or ())
    if own is not None:
        return item.tries < own.retries
    ended_at = item.run.finished_at
    if schedules is not None and read_at is not None and ended_at is not None and read_at > ended_at:
        return False  # its schedule is gone, and repeats nothing any more
    return None


def schedule_of(item: Execution, schedules: Sequence[Schedule]) -> Schedule | None:
    """The schedule that started a run. Where the record does not say, the one with the most repetitions: a dead letter
    missed for now is found later, one opened by mistake stays counted.
    """
    if item.schedule_id is not None:
        return next((s for s in schedules if s.id == item.schedule_id), None)
    return max(schedules, key=lambda s: s.retries, default=None)


def dead_letter(item: Execution) -> DeadLetter | None:
    """The dead letter a failed run is, if the scheduler will not repeat it (see ``repeats_itself``)."""
    run = item.run
    opened_at = run.finished_at
    if run.result is not Result.FAILURE or opened_at is None:
        return None
    return DeadLetter(
        id=run.id,
        workflow_id=run.workflow_id,
        run_id=run.id,
        opened_at=opened_at,
        error=run.error,
        tries=item.tries,
        native_retry=(opened_at, False),
    )


def as_cancelled(item: Execution, *, stopped_at: float | None) -> Execution:
    """A run that was called canceled before: what it is called once it is down is no failure, and no success.

    It ended when it was stopped (``stopped_at``, if that was told), not when it was down.
    """
    if item.run.state is not State.FINISHED or item.run.result is Result.CANCELLED:
        return item
    ended_at = item.run.ended_at if stopped_at is None else stopped_at
    return replace(item, run=structs.replace(item.run, result=Result.CANCELLED, ended_at=ended_at, error=None))


def vanished(run: Run) -> Run:
    """An open run the platform does not know any more: its audit row was dropped, or its flow. How it ended, nobody
    can say.
    """
    return structs.replace(run, state=State.FINISHED, result=Result.UNKNOWN)


# What a retry looks at.


def efforts(found: Sequence[Execution], mark: int, *, handle: str | None, at: float) -> list[Effort]:
    """The executions that began after the one with the audit id ``mark``, oldest first.

    What the scheduler started is not ours, whatever our call named; the one it named is; of others nobody can tell.
    """
    made: list[Effort] = []
    for item in sorted({item.run.id: item for item in found if item.number > mark}.values(), key=lambda i: i.number):
        run = item.run
        ours = False if item.scheduled else True if run.id == handle else None
        over = run.state is State.FINISHED and not is_going_down(item, at)
        made.append(
            Effort(
                id=run.id,
                began_at=run.started_at,
                ended_at=run.ended_at if over else None,
                result=run.result if over else None,
                ours=ours,
                run_id=run.id,
            )
        )
    return made


def is_going_down(item: Execution, at: float) -> bool:
    """Whether it was stopped so lately that what it is called is not the last word."""
    return item.canceled and (item.run.ended_at is None or at - item.run.ended_at < CANCEL_GRACE_SECONDS)


def standing(newest: Execution, letter: DeadLetter, *, at: float) -> Standing:
    """How a dead letter stands, by the newest execution of its flow."""
    run = newest.run
    if run.state is not State.FINISHED or is_going_down(newest, at):
        return Standing.BUSY
    later = run.id != letter.run_id and (run.finished_at or 0.0) > letter.opened_at
    return Standing.RESOLVED if later and run.result in SUCCEEDED else Standing.DEAD


def refusal(newest: Execution, letter: DeadLetter) -> str | None:
    """Why the flow must not be started: somebody stopped its last run, and may have had a reason."""
    stopped = newest.run.result is Result.CANCELLED and newest.run.id != letter.run_id
    return "somebody stopped a later run of the flow" if stopped else None


def started(data: Any, *, mark: int) -> tuple[str | None, bool]:
    """The answer to a start, ``{"auditId", "status", …}``: the execution it made, and whether it says there is none.

    An audit id above ``mark``, the greatest one that the flow had before, names the new execution whatever the status
    says: 0 (started) and 1 (running) are both ordinary, and only the execution itself tells how it went. Without one,
    only a status 3 (not executed) says that nothing was started.
    """
    fields = data if isinstance(data, dict) else {}
    audit_id = identity(fields.get("auditId"))
    if audit_id is not None and int(audit_id) > mark:
        return audit_id, False
    status = fields.get("status")
    return None, isinstance(status, int) and status == NOT_EXECUTED


def error_detail(body: Any) -> str | None:
    """The words of an error body, ``{"status": …, "error": "Bad Request", "message": "…", "path": …}``."""
    if not isinstance(body, dict):
        return None
    words = (body.get("message"), body.get("error"))
    return next((word for word in words if isinstance(word, str) and word), None)


def _error(record: dict[str, Any], result: Result | None) -> Error | None:
    exception, warnings = record.get("exception"), record.get("warnings")
    if result is Result.FAILURE:
        return errors.error_of(exception)
    if result is not Result.WARNING:
        return None
    if errors.has_error(exception):
        return errors.error_of(exception)
    return Error(message=redact(warnings)) if isinstance(warnings, str) and warnings.strip() else None


def _trigger(record: dict[str, Any]) -> str | None:
    word = record.get("triggerType")
    if isinstance(word, str) and word.lower() in _TRIGGERS:
        return _TRIGGERS[word.lower()]
    if record.get("startedBy") == "scheduler" or identity(record.get("eventId")) is not None:
        return "schedule"
    return "webhook" if record.get("messageId") else None


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def identity(value: Any) -> str | None:
    """A number as text: audit, flow and schedule ids are longs."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 63:
        return str(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19 and int(value) > 0:
        return str(int(value))
    return None


def moment(value: Any) -> float | None:
    """Milliseconds since the epoch, in seconds."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    if SECONDS_MIN <= value < MILLISECONDS_MIN:
        return float(value)  # seconds: in milliseconds it would be long before there was such a platform
    return value / 1000.0 if 0 < value < MILLISECONDS_MAX else None


def _rows(value: Any) -> float | None:
    """Rows processed. The shape of ``metrics`` is not published: only a number is understood."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 15:
        return float(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) and 0 <= value < ROWS_MAX else None


def _count(value: Any, most: int) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= most else None
