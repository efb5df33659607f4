"""Joining two claims about one thing. Pure.

``join_run``, ``join_dead_letter`` and ``join_workflow`` are joins: commutative, associative and idempotent, field by
field the highest state, the earliest start, the latest end, the newest name. So order and repetition cannot matter, and
a poll after a webhook, a redelivered webhook, an overlapping page, a restart and a rewound cursor are one case.
"""

from typing import TypeVar

from exporter.model import (
    DeadLetter,
    Error,
    ErrorClass,
    ResolvedBy,
    Result,
    Run,
    State,
    Step,
    Workflow,
)

#: Two sources that disagree about a finished attempt converge on the later word of this list: the more specific failure
#: wins over the plain one, and a deliberate cancellation over the error a platform reports once the cancelled work is
#: really down.
SEVERITY = (
    Result.UNKNOWN,
    Result.SUCCESS,
    Result.WARNING,
    Result.FAILURE,
    Result.TIMEOUT,
    Result.QUOTA,
    Result.CANCELLED,
)


_SEVERITY = {result: rank for rank, result in enumerate(SEVERITY)}


_STATE = {State.PENDING: 0, State.RUNNING: 1, State.FINISHED: 2}


#: Sources that disagree about who closed a dead letter converge on the later word of this list: what platforms tell of
#: our own retry is that somebody did it, and only we know better.
_RESOLVED_BY = {
    by: rank
    for rank, by in enumerate(
        (
            ResolvedBy.UNKNOWN,
            ResolvedBy.PLATFORM,
            ResolvedBy.MANUAL,
            ResolvedBy.SUPERSEDED,
            ResolvedBy.EXPIRED,
            ResolvedBy.RETRY,
        )
    )
}


T = TypeVar("T", float, str)


def _highest(a: T | None, b: T | None) -> T | None:
    return b if a is None else a if b is None else max(a, b)


def _lowest(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


def _worse(a: Result | None, b: Result | None) -> Result | None:
    return b if a is None else a if b is None or _SEVERITY[a] >= _SEVERITY[b] else b


def join_error(a: Error | None, b: Error | None) -> Error | None:
    """The richer of two claims about one error; ties break on the values."""
    if a is None or a == b:
        return b
    return a if b is None else max(a, b, key=_richness)


def _richness(error: Error) -> tuple[bool, bool, bool, bool, bool, str, str, str, str, int]:
    return (
        error.error_class is not ErrorClass.UNKNOWN,
        error.type is not None,
        error.message is not None,
        error.step_type is not None,
        error.status is not None,
        error.error_class,
        error.type or "",
        error.message or "",
        error.step_type or "",
        error.status or 0,
    )


def join_step(a: Step, b: Step) -> Step:
    """The latest start and the latest end, with the result of that end."""
    if a == b:
        return a
    last = max(
        a, b, key=lambda s: (s.ended_at is not None, s.ended_at or 0.0, -1 if s.result is None else _SEVERITY[s.result])
    )
    return Step(
        id=a.id,
        type=max(a.type, b.type),
        started_at=_highest(a.started_at, b.started_at),
        ended_at=last.ended_at,
        result=last.result,
        seconds=_highest(a.seconds, b.seconds),
    )


def _join_steps(a: tuple[Step, ...] | None, b: tuple[Step, ...] | None) -> tuple[Step, ...] | None:
    if a is None or b is None or a == b:
        return b if a is None else a
    steps = {s.id: s for s in a}
    for step in b:
        steps[step.id] = join_step(steps[step.id], step) if step.id in steps else step
    return tuple(steps[key] for key in sorted(steps))


def join_run(a: Run, b: Run) -> Run:
    """The join of two claims about the same run (same source, same id)."""
    if a == b:
        return a
    previous = max(a.previous or (0, 0.0), b.previous or (0, 0.0))
    if a.attempt != b.attempt:
        low, high = (a, b) if a.attempt < b.attempt else (b, a)
        if low.ended_at is not None:
            previous = max(previous, (low.attempt, low.ended_at))
        state, result, error = high.state, high.result, high.error
        started_at, ended_at = high.started_at, high.ended_at
        operations, bytes_in, bytes_out = high.operations, high.bytes_in, high.bytes_out
    else:
        state = a.state if _STATE[a.state] >= _STATE[b.state] else b.state
        result = _worse(a.result, b.result)
        error = join_error(a.error, b.error)
        started_at, ended_at = _lowest(a.started_at, b.started_at), _highest(a.ended_at, b.ended_at)
        operations = _highest(a.operations, b.operations)
        bytes_in, bytes_out = _highest(a.bytes_in, b.bytes_in), _highest(a.bytes_out, b.bytes_out)
    return Run(
        workflow_id=max(a.workflow_id, b.workflow_id),
        id=a.id,
        attempt=max(a.attempt, b.attempt),
        state=state,
        result=result,
        started_at=started_at,
        ended_at=ended_at,
        error=error,
        operations=operations,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        queued_at=_lowest(a.queued_at, b.queued_at),
        trigger=_highest(a.trigger, b.trigger),
        parent_id=_highest(a.parent_id, b.parent_id),
        steps=_join_steps(a.steps, b.steps),
        previous=previous if previous > (0, 0.0) else None,
        trace=_highest(a.trace, b.trace),
    )


def join_dead_letter(a: DeadLetter, b: DeadLetter) -> DeadLetter:
    """The join of two claims about the same dead letter (same source, same id)."""
    if a == b:
        return a
    by = max((x for x in (a.resolved_by, b.resolved_by) if x is not None), key=_RESOLVED_BY.__getitem__, default=None)
    return DeadLetter(
        id=a.id,
        workflow_id=max(a.workflow_id, b.workflow_id),
        run_id=_highest(a.run_id, b.run_id),
        attempt=max(a.attempt, b.attempt),
        opened_at=min(a.opened_at, b.opened_at),
        error=join_error(a.error, b.error),
        resolved_at=_lowest(a.resolved_at, b.resolved_at),
        resolved_by=by,
        tries=max(a.tries, b.tries),
        native_retry=max(a.native_retry or (0.0, False), b.native_retry or (0.0, False))
        if a.native_retry or b.native_retry
        else None,
        reruns=a.reruns or b.reruns,
    )


def join_workflow(a: Workflow, b: Workflow) -> Workflow:
    """The newer of two readings; at the same moment the values decide."""
    return max(a, b, key=lambda w: (w.at, repr(w)))
