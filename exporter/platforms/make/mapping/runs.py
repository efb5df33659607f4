"""Executions: rows of a scenario's log, of the feed across scenarios, and what an execution says of itself. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from exporter.model import FAILED, Error, Result, Run, State, times
from exporter.platforms.make.mapping import (
    BadItem,
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
    """A row of a scenario's log, GET /scenarios/{id}/logs; None for a timeline event. Raises ``BadItem``, also where a
    time is later than ``latest``.
    """
    fields = as_object(row, f"a log row of scenario {workflow_id}")
    if not _is_execution(fields):
        return None
    took, ended = whole(fields.get("duration")), milliseconds(fields.get("endedAt"))
    started = stamp(fields)
    if ended is not None and took is not None:
        started = ended - took
    elif ended is None and started is not None and took is not None:
        ended = started + took
    return _run(fields, workflow_id, started, ended, latest)


def feed_run(row: object, *, latest: float = times.MOMENT_MAX) -> Run | None:
    """A row of the feed across scenarios, GET /scenarios/logs; None for what has not ended. Raises ``BadItem``."""
    fields = as_object(row, "a row of the feed")
    if not _is_execution(fields):
        return None
    workflow_id = scenario_id(fields.get("scenarioId"), "a row of the feed")
    took, ended = whole(fields.get("duration")), milliseconds(fields.get("timestamp"))
    started = None if ended is None or took is None else ended - took
    found = _run(fields, workflow_id, started, ended, latest)
    return found if found.state is State.FINISHED else None


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
    if at is None and isinstance(row.get("imtId"), str):
        digits = row["imtId"].partition("_")[0]
        at = int(digits) if digits.isascii() and digits.isdigit() and 12 <= len(digits) <= 14 else None
    return at


def cause(data: object) -> Error | None:
    """Why a run failed, by GET /scenarios/{id}/executions/{executionId}; None where it does not say, or not yet."""
    fields = as_object(data, "an execution")
    return None if fields.get("status") == "RUNNING" else read_error(fields.get("error"))


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
    )
    if (what := times.implausible(found, latest)) is not None:
        raise BadItem(f"execution {run_id} of scenario {workflow_id}: its {what} is at no time that can be")
    return found


def _run_trigger(fields: Mapping[str, Any]) -> str | None:
    match fields.get("type"), fields.get("instant"):
        case "manual", _:
            return "manual"
        case _, True:
            return "webhook"
        case "auto", False:
            return "schedule"
    return None
