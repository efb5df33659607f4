"""Executions: rows of a scenario's log, of the feed across scenarios, and what an execution says of itself. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from exporter.model import FAILED, Error, Result, Run, State, times
from exporter.platform import BadItem
from exporter.platforms.make.mapping import (
    as_object,
    execution_id,
    milliseconds,
    number,
    plain_id,
    scenario_id,
    seconds,
    whole,
)
from exporter.platforms.make.mapping.errors import read_error

RESULTS = {1: Result.SUCCESS, 2: Result.WARNING, 3: Result.FAILURE}


def run(row: object, *, workflow_id: str, latest: float = times.MOMENT_MAX) -> Run | None:
    """A row of a scenario's log, GET /scenarios/{id}/logs; None for a timeline event.

    Raises ``BadItem``, also where it is another scenario's, and where a time is later than ``latest``.
    """
    fields = as_object(row, f"a log row of scenario {workflow_id}")
    if not _is_execution(fields):
        return None
    if plain_id(fields.get("scenarioId")) not in (None, workflow_id):
        raise BadItem(f"a log row of scenario {workflow_id} is another scenario's")
    return _run(fields, workflow_id, *_times(fields), latest)


def feed_run(row: object, *, latest: float = times.MOMENT_MAX) -> Run | None:
    """A row of the feed across scenarios, GET /scenarios/logs; None for what has not ended. Raises ``BadItem``."""
    fields = as_object(row, "a row of the feed")
    if not _is_execution(fields):
        return None
    workflow_id = scenario_id(fields.get("scenarioId"), "a row of the feed")
    found = _run(fields, workflow_id, *_feed_times(fields), latest)
    return found if found.state is State.FINISHED else None


def feed_span(row: object) -> tuple[int, int] | None:
    """Start and end of a row of the feed, in milliseconds; None if it has no end. The start is at most the end."""
    if not isinstance(row, Mapping):
        return None
    started, ended = _feed_times(row)
    return None if ended is None else (ended if started is None else min(started, ended), ended)


def in_scope(row: object, *, organization_id: int | None, team_ids: Iterable[int]) -> bool:
    """Whether a row of the feed, which covers all a token may see, is of what is watched."""
    fields = as_object(row, "a row of the feed")
    if organization_id is not None:
        return plain_id(fields.get("organizationId")) in (None, str(organization_id))
    return plain_id(fields.get("teamId")) in (None, *map(str, team_ids))


def stamp(row: object) -> int | None:
    """The time a log row is sorted by, in milliseconds: its timestamp, or the first part of its imtId."""
    if not isinstance(row, Mapping):
        return None
    at = milliseconds(row.get("timestamp"))
    return _key_stamp(row) if at is None else at


def cause(data: object) -> Error | None:
    """Why a run failed, by GET /scenarios/{id}/executions/{executionId}; None where it does not say, or not yet."""
    fields = as_object(data, "an execution")
    return None if fields.get("status") == "RUNNING" else read_error(fields.get("error"))


def row_error(row: object) -> Error | None:
    """Why a run failed, by its log row; None where that does not say."""
    return read_error(row.get("error")) if isinstance(row, Mapping) else None


def _key_stamp(row: Mapping[str, Any]) -> int | None:
    """The first part of an imtId: when a run began, in milliseconds."""
    digits = str(row.get("imtId")).partition("_")[0]
    return int(digits) if digits.isascii() and digits.isdigit() and 12 <= len(digits) <= 14 else None


def _times(fields: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Start and end, in milliseconds: a row is dated by its start, and the duration is some milliseconds short."""
    at, ended, took = stamp(fields), milliseconds(fields.get("endedAt")), whole(fields.get("duration"))
    if ended is None:
        return at, None if at is None or took is None else at + took
    if at is None or at >= ended:  # it is dated by its end
        return (at if took is None else ended - took), ended
    return at, ended


def _feed_times(fields: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The same of a row of the feed: without ``endedAt`` it is dated by its start only if its key says so, too."""
    at, took = stamp(fields), whole(fields.get("duration"))
    if fields.get("endedAt") is not None or at is None or at == _key_stamp(fields):
        return _times(fields)
    return None if took is None else at - took, at


def _is_execution(fields: Mapping[str, Any]) -> bool:
    marks = (fields.get("status"), fields.get("duration"))
    return fields.get("eventType") == "EXECUTION_END" or any(mark is not None for mark in marks)


def _run(fields: Mapping[str, Any], workflow_id: str, started: int | None, ended: int | None, latest: float) -> Run:
    place = f"an execution of scenario {workflow_id}"
    run_id = execution_id(fields.get("id"))
    if run_id is None:
        raise BadItem(f"{place} has no usable id")
    if started is None and ended is None:
        raise BadItem(f"{place} has no time")
    status = whole(fields.get("status"))
    result = RESULTS.get(-1 if status is None else status)
    over = fields.get("eventType") == "EXECUTION_END" or (status != 0 and ended is not None)
    if result is None and over:
        result = Result.UNKNOWN
    finished = result is not None
    found = Run(
        workflow_id=workflow_id,
        id=run_id,
        state=State.FINISHED if finished else State.RUNNING,
        result=result,
        started_at=seconds(started),
        ended_at=seconds(ended) if finished else None,
        error=read_error(fields.get("error")) if result in FAILED or result is Result.WARNING else None,
        operations=number(fields.get("operations")),
        bytes_in=number(fields.get("transfer")),
        trigger=_run_trigger(fields),
        parent_id=_parent_id(fields),
    )
    if (what := times.implausible(found, latest)) is not None:
        raise BadItem(f"execution {run_id} of scenario {workflow_id}: its {what} is at no time that can be")
    return found


def _parent_id(fields: Mapping[str, Any]) -> str | None:
    """The run that this one repeats, or else the run of another scenario that called it."""
    parent = fields.get("parent")
    called_by = parent.get("executionId") if isinstance(parent, Mapping) else None
    found = execution_id(fields.get("replayOfExecutionId")) or execution_id(called_by)
    return None if found == execution_id(fields.get("id")) else found


def _run_trigger(fields: Mapping[str, Any]) -> str | None:
    if execution_id(fields.get("replayOfExecutionId")) is not None:
        return "retry"
    match fields.get("type"), fields.get("instant"):
        case "manual", _:
            return "manual"
        case _, True:
            return "webhook"
        case "auto", False:
            return "schedule"
    return None
