"""Ledger entries to rows and back. What is looked up by has a column; the rest is one JSON text. Pure."""

from typing import Any

import orjson

from exporter.fold import DeadLetterEntry, RunEntry, WorkflowEntry
from exporter.model import (
    Blocked,
    DeadLetter,
    Error,
    ErrorClass,
    Heard,
    ResolvedBy,
    Result,
    Run,
    State,
    Step,
    Workflow,
)
from exporter.store.script import Row

RUN_COLUMNS = "source, run_id, workflow_id, state, result, finished_at, counted_at, heard, data"
DEAD_LETTER_COLUMNS = "source, dead_letter_id, workflow_id, run_id, opened_at, resolved_at, data"
TRACE_COLUMNS = "source, run_id, attempt, counted_at, settled, data"
WORKFLOW_COLUMNS = "source, workflow_id, gone_at, data"


def to_json(value: object) -> str:
    return orjson.dumps(value).decode()


def run_row(source: str, entry: RunEntry) -> Row:
    run = entry.run
    data = to_json(
        (
            run.attempt,
            (run.started_at, run.ended_at),
            _error_data(run.error),
            (run.operations, run.bytes_in, run.bytes_out),
            run.queued_at,
            run.trigger,
            run.parent_id,
            None if run.steps is None else [(s.id, s.type, s.started_at, s.ended_at, s.result) for s in run.steps],
            run.previous,
            (entry.counted_attempt, entry.counted_as, entry.counted_end),
            (entry.timed, entry.queue_timed, entry.error_counted),
        )
    )
    state, result = run.state.value, None if run.result is None else run.result.value
    finished_at = run.finished_at if run.state is State.FINISHED else None
    return (
        source, run.id, run.workflow_id, state, result, finished_at, entry.counted_at, int(entry.heard), data,
    )  # fmt: skip


def run_entry(row: Row) -> tuple[str, RunEntry]:
    """Source and entry of a row with ``RUN_COLUMNS``."""
    source, run_id, workflow_id, state, result, _, counted_at, heard, data = row
    attempt, (started_at, ended_at), error, used, queued_at, trigger, parent_id, steps, previous, counted, marks = (
        orjson.loads(data)
    )
    run = Run(
        workflow_id=workflow_id,
        id=run_id,
        attempt=attempt,
        state=State(state),
        result=None if result is None else Result(result),
        started_at=started_at,
        ended_at=ended_at,
        error=_error(error),
        operations=used[0],
        bytes_in=used[1],
        bytes_out=used[2],
        queued_at=queued_at,
        trigger=trigger,
        parent_id=parent_id,
        steps=None
        if steps is None
        else tuple(
            Step(id=i, type=t, started_at=s, ended_at=e, result=None if r is None else Result(r))
            for i, t, s, e, r in steps
        ),
        previous=None if previous is None else (previous[0], previous[1]),
    )
    entry = RunEntry(
        run=run,
        heard=Heard(heard),
        counted_attempt=counted[0],
        counted_as=None if counted[1] is None else Result(counted[1]),
        counted_end=counted[2],
        counted_at=counted_at,
        timed=marks[0],
        queue_timed=marks[1],
        error_counted=marks[2],
    )
    return source, entry


def trace_row(source: str, entry: RunEntry, *, settled: bool) -> Row:
    """The row of a trace still to be exported: the run as it is now, settled once nothing more is expected of it."""
    run = entry.run
    return (source, run.id, run.attempt, entry.counted_at, int(settled), to_json(run_row(source, entry)))


def dead_letter_row(source: str, entry: DeadLetterEntry) -> Row:
    letter = entry.dead_letter
    data = to_json(
        (
            letter.attempt,
            _error_data(letter.error),
            letter.resolved_by,
            letter.tries,
            letter.native_retry,
            entry.open_counted,
        )
    )
    return (source, letter.id, letter.workflow_id, letter.run_id, letter.opened_at, letter.resolved_at, data)


def dead_letter_entry(row: Row) -> tuple[str, DeadLetterEntry]:
    """Source and entry of a row with ``DEAD_LETTER_COLUMNS``."""
    source, dead_letter_id, workflow_id, run_id, opened_at, resolved_at, data = row
    attempt, error, resolved_by, tries, native_retry, open_counted = orjson.loads(data)
    letter = DeadLetter(
        id=dead_letter_id,
        workflow_id=workflow_id,
        run_id=run_id,
        attempt=attempt,
        opened_at=opened_at,
        error=_error(error),
        resolved_at=resolved_at,
        resolved_by=None if resolved_by is None else ResolvedBy(resolved_by),
        tries=tries,
        native_retry=None if native_retry is None else (native_retry[0], native_retry[1]),
    )
    return source, DeadLetterEntry(dead_letter=letter, open_counted=open_counted)


def workflow_row(source: str, entry: WorkflowEntry) -> Row:
    w = entry.workflow
    data = to_json(
        (
            (w.at, w.name, w.workspace, w.trigger, w.enabled, w.blocked, w.next_run_at, w.ordered),
            entry.found_at,
            entry.last_ended,
            entry.failures,
            (entry.missed, entry.missed_at),
            entry.folded,
        )
    )
    return (source, w.id, entry.gone_at, data)


def workflow_entry(row: Row) -> tuple[str, WorkflowEntry]:
    """Source and entry of a row with ``WORKFLOW_COLUMNS``."""
    source, workflow_id, gone_at, data = row
    reading, found_at, last_ended, failures, missed, folded = orjson.loads(data)
    at, name, workspace, trigger, enabled, blocked, next_run_at, ordered = reading
    workflow = Workflow(
        id=workflow_id,
        at=at,
        name=name,
        workspace=workspace,
        trigger=trigger,
        enabled=enabled,
        blocked=None if blocked is None else Blocked(blocked),
        next_run_at=next_run_at,
        ordered=ordered,
    )
    entry = WorkflowEntry(
        workflow=workflow,
        found_at=found_at,
        last_ended=tuple((Result(result), ended_at) for result, ended_at in last_ended),
        failures=failures,
        missed=missed[0],
        missed_at=missed[1],
        gone_at=gone_at,
        folded=folded,
    )
    return source, entry


def _error_data(error: Error | None) -> Any:
    return None if error is None else (error.error_class, error.type, error.message, error.step_type)


def _error(data: Any) -> Error | None:
    if data is None:
        return None
    return Error(error_class=ErrorClass(data[0]), type=data[1], message=data[2], step_type=data[3])
