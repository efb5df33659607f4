"""From Make's words to ours. Pure: decoded JSON in, observations out.

Sources: Make API documentation ('Scenarios', 'Logs', 'Consumptions', 'Hooks', 'Organizations', 'Pagination, sorting and
filtering'), and live answers where they differ. Times are ISO 8601 in UTC with milliseconds, durations milliseconds,
transfer bytes. What stopped a run is in ``errors``, dead letters are in ``letters``.

| Make | here |
| --- | --- |
| scenario | workflow; its team: workspace |
| scheduling: immediately; on-demand; any other type | trigger webhook; manual; schedule |
| isActive | enabled |
| isinvalid; isPaused; sequential and dlqCount > 0 | blocked: invalid; paused; dead letters |
| nextExec | next run |
| execution (a log row with a status or an EXECUTION_END) | run, always attempt 1: a rerun has an id of its own |
| log row without either: a timeline event | not read |
| status 1, 2, 3 | finished: success, warning, failure |
| status 0 | running |
| any other status | finished with result unknown if it has ended, else running |
| timestamp, in a log; timestamp + duration, or endedAt | started; ended |
| timestamp, in the feed across scenarios; minus duration | ended; started: the feed goes by completion |
| type manual; instant; type auto and not instant | trigger manual; webhook; schedule |
| transfer | bytes in: Make does not tell directions apart |
| webhook of a scenario: queueCount, queueLimit | queue |
| organization: operations, transfer (as text), the license's | usage and limit of operations, transfer_bytes |
| consumptions: centicredits of all scenarios | usage of credits |

Never read: authors, descriptions, addresses and ids of webhooks, outputs and bundles.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from exporter.model import FAILED, Blocked, Error, Queue, Result, Run, State, Usage, Workflow, times
from exporter.platform import BadItem as BadItem
from exporter.platform.cloudevents import parse_time
from exporter.platforms.make.errors import read_error

ID_CHARS_MAX = 64
NAME_CHARS_MAX = 200
TEAMS_MAX = 1000
#: License key executionTime: minutes, as documented for private zones; beyond this it can only be seconds.
RUN_MINUTES_MAX = 300.0

RESULTS = {1: Result.SUCCESS, 2: Result.WARNING, 3: Result.FAILURE}

#: Operations, transfer and centicredits since the last reset; None where the answer has no number.
Used = tuple[float | None, float | None, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario as listed, and what of the listing decides what else is asked for."""

    workflow: Workflow
    team_id: str | None
    hook_id: str | None
    dead_letters: int | None
    edited: str | None  # changes with every edit


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    """What of an organization matters here."""

    requests_per_minute: float | None
    run_seconds: float | None  # how long a run may take
    teams: dict[str, str]  # id -> name
    usage: tuple[Usage, ...]


# Scenarios


def scenario(row: object, *, at: float, teams: Mapping[str, str]) -> Scenario:
    """A row of GET /scenarios as read at ``at``; ``teams`` are the names known. Raises ``BadItem`` without an id."""
    fields = as_object(row, "a scenario")
    team_id, hook_id = plain_id(fields.get("teamId")), plain_id(fields.get("hookId"))
    blocked = None
    if fields.get("isinvalid") is True:
        blocked = Blocked.INVALID
    elif fields.get("isPaused") is True:
        blocked = Blocked.PAUSED
    active = fields.get("isActive", fields.get("islinked"))
    edited = fields.get("lastEdit")
    return Scenario(
        workflow=Workflow(
            id=scenario_id(fields.get("id"), "a scenario"),
            at=at,
            name=text(fields.get("name")),
            workspace=None if team_id is None else teams.get(team_id, team_id),
            trigger=_scheduling(fields.get("scheduling"), hook_id),
            enabled=active if isinstance(active, bool) else None,
            blocked=blocked,
            next_run_at=seconds(milliseconds(fields.get("nextExec"))),
        ),
        team_id=team_id,
        hook_id=hook_id,
        dead_letters=whole(fields.get("dlqCount")),
        edited=edited if isinstance(edited, str) else None,
    )


def with_order(workflow: Workflow, *, ordered: bool, dead_letters: int | None) -> Workflow:
    """The scenario with what its blueprint says: a sequential one runs nothing while it has a dead letter."""
    stands = ordered and bool(dead_letters) and workflow.blocked is None
    return replace(workflow, ordered=ordered, blocked=Blocked.DEAD_LETTERS if stands else workflow.blocked)


def queue(row: object, *, at: float, workflow_id: str) -> Queue | None:
    """A row of GET /hooks: the items waiting in front of a scenario; None if the row has no number."""
    fields = as_object(row, "a webhook")
    items = number(fields.get("queueCount"))
    if items is None:
        return None
    return Queue(workflow_id=workflow_id, at=at, items=items, limit=number(fields.get("queueLimit")))


def consumption(row: object) -> tuple[str, Used]:
    """A row of GET /scenarios/consumptions: the scenario and what it has used. Raises ``BadItem`` without an id."""
    fields = as_object(row, "a consumption")
    used = (number(fields.get(key)) for key in ("operations", "transfer", "centicredits"))
    operations, transfer, centicredits = used
    return scenario_id(fields.get("scenarioId"), "a consumption"), (operations, transfer, centicredits)


def credits(consumptions: Iterable[Used], *, at: float) -> Usage | None:
    """The credits of all scenarios since the last reset; None if one of them has no number: the sum would be wrong."""
    amounts = [used[2] for used in consumptions]
    known = [amount for amount in amounts if amount is not None]
    return Usage(kind="credits", at=at, used=sum(known) / 100.0) if len(known) == len(amounts) else None


def organization(data: object, *, at: float) -> Organization:
    """The answer of GET /organizations/{id}: ``{"organization": {…, "license": {…}}}``. Raises ``BadItem``."""
    fields = as_object(as_object(data, "the answer").get("organization"), "the organization")
    found = fields.get("license")
    licensed: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    allowed = number(licensed.get("executionTime"))
    teams = fields.get("teams")
    named = [t for t in teams[:TEAMS_MAX] if isinstance(t, Mapping)] if isinstance(teams, list) else []
    return Organization(
        requests_per_minute=number(licensed.get("apiLimit")),
        run_seconds=None if not allowed else allowed * (60.0 if allowed <= RUN_MINUTES_MAX else 1.0),
        teams={i: n for t in named if (i := plain_id(t.get("id"))) and (n := text(t.get("name")))},
        usage=tuple(
            Usage(
                kind=kind,
                at=at,
                used=number(fields.get(key)),
                limit=_limit(licensed.get(key), fields.get(f"{key}Ext")),
            )
            for key, kind in (("operations", "operations"), ("transfer", "transfer_bytes"))
        ),
    )


# Runs


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


# Fields


def as_object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadItem(f"{what} is not an object")
    return value


def plain_id(value: object) -> str | None:
    """A numeric id, as text."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    digits = str(value)
    return digits if digits.isascii() and digits.isdigit() and len(digits) <= ID_CHARS_MAX else None


def scenario_id(value: object, what: str) -> str:
    found = plain_id(value)
    if found is None:
        raise BadItem(f"{what} has no usable scenario id")
    return found


def execution_id(value: object) -> str | None:
    """An id of an execution or a dead letter: 32 hex digits, at places written as a UUID."""
    if not isinstance(value, str):
        return None
    found = value.replace("-", "").lower()
    return found if found.isascii() and found.isalnum() and len(found) <= ID_CHARS_MAX else None


def number(value: object) -> float | None:
    """A number, or one written as text; never negative, never a truth value."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def whole(value: object) -> int | None:
    found = number(value)
    return None if found is None else round(found)


def milliseconds(value: object) -> int | None:
    """Milliseconds since the epoch of an ISO 8601 text. In whole numbers, so that sums and differences are exact."""
    at = parse_time(value)
    return None if at is None else round(at * 1000)


def seconds(at: int | None) -> float | None:
    return None if at is None else at / 1000


def text(value: object) -> str | None:
    return (value.strip()[:NAME_CHARS_MAX] or None) if isinstance(value, str) else None


def _scheduling(value: object, hook_id: str | None) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or not kind:
        return None if hook_id is None else "webhook"
    return {"immediately": "webhook", "on-demand": "manual"}.get(kind, "schedule")


def _limit(plan: object, extra: object) -> float | None:
    """What the license grants, and what was bought beyond it."""
    granted = number(plan)
    return None if granted is None else granted + (number(extra) or 0.0)
