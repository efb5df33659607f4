"""From Qlik's words to ours. Pure: decoded JSON in, observations out.

Source: Automations API reference ('Automations', 'List runs', 'Retrieves a specific run', 'Usage'), and for events
the AsyncAPI description of ``com.qlik.v1.automation.run.ended``. Times there are RFC 3339 in UTC with six fraction
digits, durations seconds as numbers or as text, sizes bytes.

| Qlik | here |
| --- | --- |
| automation | workflow; ``runMode``: manual, scheduled, triggered, webhook -> trigger manual, schedule, api, webhook |
| state: available; disabled; unavailable | enabled; not enabled; enabled, but blocked: unavailable |
| schedules[].nextRunAt, of one read alone | next run: the first that lies ahead |
| spaceId | workspace; empty: private, none |
| status: not started, queued | pending |
| starting, running, paused, must stop | running; "must stop" that has stopped: cancelled |
| finished; finished with warnings | success; warning |
| failed; stopped; exceeded limit | failure; cancelled; quota |
| any other status | finished with result unknown if it has stopped, else running |
| createdAt, or scheduledStartTime if later | queued |
| stopTime, or startTime + duration | ended |
| context: webhook; api_sync, api_async, api | trigger webhook; api |
| context: test_run, editor, detail, lookup, or ``testRun`` | trigger test: somebody is building, ``testRun`` or not |
| context: interactive (events only) | trigger manual: which of those, or none, the run read alone tells |
| metrics.network.rxBytes, txBytes | bytes in, out |
| metrics.blocks[] | steps without times, one for each kind of block, connector, endpoint or snippet used, with the
seconds they took together; they are far from the whole of a run, and in no order |
| error[] | see ``errors`` |
| a run that failed or exceeded a limit, unless its trigger is test | is a dead letter under its own id as well |

Qlik's retry makes a new run that does not name the old one, so every run is attempt 1, and a dead letter is closed by
a later success of its automation. ``updatedAt`` moves long after the end, so it is neither an end nor a sign of
anything new. Never read: owners, inputs, users, titles (often a business key), what somebody called a block and its
parameters, the workspace and the execution token.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from exporter.model import (
    FAILED,
    SUCCEEDED,
    TEST,
    Blocked,
    DeadLetter,
    Error,
    ErrorClass,
    Result,
    Run,
    State,
    Step,
    Unit,
    Usage,
    Workflow,
    times,
)
from exporter.platform import BadItem
from exporter.platform.cloudevents import parse_time
from exporter.platform.retrying import Effort, Standing
from exporter.platforms.qlik.errors import read_error
from exporter.wire.decode import DAMAGED

ID_CHARS_MAX = 200
NAME_CHARS_MAX = 200

STATUSES: dict[str, tuple[State, Result | None]] = {
    "not started": (State.PENDING, None),
    "queued": (State.PENDING, None),
    "starting": (State.RUNNING, None),
    "running": (State.RUNNING, None),
    "paused": (State.RUNNING, None),
    "must stop": (State.RUNNING, None),
    "finished": (State.FINISHED, Result.SUCCESS),
    "finished with warnings": (State.FINISHED, Result.WARNING),
    "failed": (State.FINISHED, Result.FAILURE),
    "stopped": (State.FINISHED, Result.CANCELLED),
    "exceeded limit": (State.FINISHED, Result.QUOTA),
}
STATES = {"available": True, "unavailable": True, "disabled": False}
RUN_MODES = {"manual": "manual", "scheduled": "schedule", "triggered": "api", "webhook": "webhook"}
CONTEXTS = {
    "webhook": "webhook",
    "api": "api",
    "api_sync": "api",
    "api_async": "api",
    "test_run": TEST,
    "editor": TEST,
    "detail": TEST,
    "lookup": TEST,
    "interactive": "manual",
}
#: Contexts that a retry of ours is never given, whatever else Qlik may call it.
NEVER_OURS = frozenset({"test_run", "editor", "lookup"})
#: What usage is asked for, the kind it is shown as, and the unit.
USAGE_KINDS = {
    "runs": ("runs", Unit.RUNS),
    "duration": ("duration", Unit.SECONDS),
    "bandwidthIn": ("bandwidth_in", Unit.BYTES),
    "bandwidthOut": ("bandwidth_out", Unit.BYTES),
}

BLOCK_TYPES = ("endpointBlock", "snippetBlock", "baseBlock")
#: No schedule plans further ahead than this (seconds).
AHEAD_SECONDS_MAX = 2 * 366 * 86_400.0
#: Different blocks kept of one run.
BLOCKS_MAX = 50
_GUID = re.compile(r"[A-Za-z0-9-]{1,64}")
#: What Qlik calls one of its own blocks; anything else somebody may have written.
_BLOCK_NAME = re.compile(r"[A-Z][A-Za-z0-9]{1,40}Block")

#: What is told of one run: the run itself and, where it failed, its dead letter.
Claims = tuple[Run] | tuple[Run, DeadLetter]
#: Last run, how far it is, when a run of the automation last ended: changes whenever something happened to it.
Signature = list[Any]


def workflow(item: object, *, at: float) -> Workflow:
    """An automation as listed at ``at``. Raises ``BadItem`` if it has no id."""
    fields = _object(item, "an automation")
    state = fields.get("state")
    return Workflow(
        id=_id(fields.get("id"), "an automation"),
        at=at,
        name=_text(fields.get("name")),
        workspace=_text(fields.get("spaceId")),
        trigger=_word(fields.get("runMode"), RUN_MODES),
        enabled=STATES.get(state) if isinstance(state, str) else None,
        blocked=Blocked.UNAVAILABLE if state == "unavailable" else None,
    )


def next_run_at(item: object, *, at: float) -> float | None:
    """The next planned run of an automation read alone at ``at``: the first of its schedules that lies ahead."""
    schedules = item.get("schedules") if isinstance(item, Mapping) else None
    found = [s.get("nextRunAt") for s in schedules if isinstance(s, Mapping)] if isinstance(schedules, list) else []
    ahead = (moment for moment in map(parse_time, found) if moment is not None)
    return min((moment for moment in ahead if at < moment < at + AHEAD_SECONDS_MAX), default=None)


def last_run(item: object) -> Mapping[str, Any] | None:
    """The run embedded in a listed automation: the whole run, with its errors and metrics but without its duration."""
    embedded = _object(item, "an automation").get("lastRun")
    return embedded if isinstance(embedded, Mapping) and embedded.get("id") is not None else None


def signature(item: object) -> Signature:
    """What tells, from the automation as listed, whether anything has happened to its runs: id and state of its last
    run, and when a run of it last ended (seconds, as far as known).
    """
    fields, embedded = _object(item, "an automation"), last_run(item) or {}
    stopped_at = parse_time(embedded.get("stopTime"))
    ends = [end for end in (stopped_at, parse_time(fields.get("lastRunAt"))) if end is not None]
    state, _ = _outcome(embedded.get("status"), stopped_at) if embedded else (None, None)
    run_id = embedded.get("id")
    return [run_id if isinstance(run_id, str) else None, state, max(ends, default=None)]


def claims(item: object, *, workflow_id: str, latest: float = times.MOMENT_MAX) -> Claims:
    """A run as listed, read alone, embedded or in an event; then its dead letter, if it is one. Raises ``BadItem``,
    also where a time is later than ``latest``.
    """
    fields = _object(item, f"a run of automation {workflow_id}")
    run = _run(fields, workflow_id)
    if (what := times.implausible(run, latest)) is not None:
        raise BadItem(f"run {run.id} of automation {workflow_id}: its {what} is at no time that can be")
    opened_at = run.finished_at
    if run.result not in FAILED or run.is_test or opened_at is None:
        return (run,)
    return run, DeadLetter(id=run.id, workflow_id=workflow_id, run_id=run.id, opened_at=opened_at, error=run.error)


def with_error(told: Claims, error: Error) -> Claims:
    """The same claims, with the cause of the failure."""
    run = replace(told[0], error=error)
    return (run,) if len(told) == 1 else (run, replace(told[1], error=error))


def vanished(run: Run) -> Run:
    """The claim that an open run the platform no longer has is over; how it ended, and when, nobody can say."""
    return Run(workflow_id=run.workflow_id, id=run.id, state=State.FINISHED, result=Result.UNKNOWN)


# What a retry looks at.

#: A run made this long (seconds) before a call was read is made by it still: clocks differ.
SKEW_SECONDS = 5.0
#: A run that a call makes is made within so many seconds; one made later may be anybody's.
PROMPT_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A run as listed: what is claimed of it, when it was made, and whether something else explains it."""

    claims: Claims
    planned: bool  # a schedule started it
    built: bool  # a person did, in the editor

    @property
    def id(self) -> str:
        return self.claims[0].id

    @property
    def run(self) -> Run:
        return self.claims[0]


def row(item: object, *, workflow_id: str, latest: float = times.MOMENT_MAX) -> Row:
    """A listed run. Raises ``BadItem``."""
    fields = _object(item, f"a run of automation {workflow_id}")
    planned = parse_time(fields.get("scheduledStartTime")) is not None
    context = fields.get("context")
    told = claims(item, workflow_id=workflow_id, latest=latest)
    return Row(claims=told, planned=planned, built=told[0].is_test and context in NEVER_OURS)


def mark(rows: Sequence[Row]) -> list[str]:
    """The runs there are: whichever is not among them later is new."""
    return sorted(row.id for row in rows)


def efforts(rows: Sequence[Row], before: Sequence[str], *, sent_at: float | None) -> list[Effort]:
    """The runs that are new since ``before`` and since the call at ``sent_at``, oldest first.

    Ours is the only one that nothing else explains, if it was made right after the call; of two nobody can tell. What
    somebody tries in the editor is nobody's retry.
    """
    known, since = set(before), (0.0 if sent_at is None else sent_at - SKEW_SECONDS)
    new = [
        row
        for row in rows
        if row.id not in known and not row.built and (row.run.queued_at is None or row.run.queued_at >= since)
    ]
    unexplained = [row for row in new if not row.planned]
    found = []
    for row in sorted(new, key=lambda row: (row.run.queued_at or 0.0, row.id)):
        ours: bool | None = False if row.planned else None
        made_at = row.run.queued_at
        if unexplained == [row] and sent_at is not None and made_at is not None:
            ours = True if made_at <= sent_at + PROMPT_SECONDS else None
        found.append(
            Effort(
                id=row.id,
                began_at=made_at,
                ended_at=row.run.ended_at,
                result=row.run.result if row.run.state is State.FINISHED else None,
                ours=ours,
                run_id=row.id,
            )
        )
    return found


def standing(rows: Sequence[Row], letter: DeadLetter) -> Standing:
    """How a failed run stands: while another of its automation is under way, who starts what cannot be told apart."""
    if any(row.run.state is not State.FINISHED for row in rows):
        return Standing.BUSY
    ends = [row.run.finished_at for row in rows if row.run.result in SUCCEEDED and not row.run.is_test]
    if any(end is not None and end > letter.opened_at for end in ends):
        return Standing.RESOLVED
    return Standing.DEAD


def refusal(item: object, letter: DeadLetter) -> str | None:
    """Why a failed run must not be started again: what its automation is, or what stopped it."""
    fields = _object(item, "an automation")
    if letter.error is not None and letter.error.error_class is ErrorClass.QUOTA:
        return "a limit of the plan stopped it"
    state = fields.get("state")
    return f"the automation is {state}" if state in ("disabled", "unavailable") else None


def usage(items: Sequence[object], *, name: str, at: float) -> Usage:
    """What the tenant has used of one metric: the sum over the days listed. Raises ``BadItem`` if one has no number,
    since the sum would be wrong.

    Items are ``{"date": "2026-01-02", "name": …, "value": 12}``; names come back spelt differently (Automations API
    reference, 'Usage'), so what was asked for is believed.
    """
    used = 0.0
    for item in items:
        value = _number(_object(item, f"usage of {name}").get("value"))
        if value is None:
            raise BadItem(f"usage of {name}: a day without a number")
        used += value
    kind, unit = USAGE_KINDS[name]
    return Usage(kind=kind, unit=unit, at=at, used=used)


def settings(data: object, *, at: float) -> Usage:
    """How many runs of one automation may run at the same time."""
    limit = _number(_object(data, "the settings").get("maxConcurrentRunsPerAutomation"))
    if limit is None:
        raise BadItem("the settings say no maxConcurrentRunsPerAutomation")
    return Usage(kind="concurrent_runs_per_automation", unit=Unit.RUNS, at=at, limit=limit)


def month_start(now: float) -> str:
    """The first day of the month of ``now``, as usage filters want it: usage is shown since then."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-01")


def started_at(item: object) -> float | None:
    """When a listed run started; None while it has not."""
    return parse_time(item.get("startTime")) if isinstance(item, Mapping) else None


def _run(fields: Mapping[str, Any], workflow_id: str) -> Run:
    run_id = _id(fields.get("id"), f"a run of automation {workflow_id}")
    began, stopped = parse_time(fields.get("startTime")), parse_time(fields.get("stopTime"))
    state, result = _outcome(fields.get("status"), stopped)
    seconds = _number(fields.get("duration"))
    ended = stopped
    if ended is None and began is not None and seconds is not None:
        ended = began + seconds
    waiting = [at for name in ("createdAt", "scheduledStartTime") if (at := parse_time(fields.get(name))) is not None]
    bytes_in, bytes_out = _transfer(fields)
    return Run(
        workflow_id=workflow_id,
        id=run_id,
        state=state,
        result=result,
        started_at=began,
        ended_at=ended if state is State.FINISHED else None,
        error=_cause(fields, result),
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        queued_at=max(waiting, default=None),
        trigger=_trigger(fields),
        steps=_blocks(fields),
    )


def _trigger(fields: Mapping[str, Any]) -> str | None:
    marked = any(fields.get(name) is True for name in ("testRun", "isTestRun"))
    return TEST if marked else _word(fields.get("context"), CONTEXTS)


def _outcome(status: object, stopped_at: float | None) -> tuple[State, Result | None]:
    word = status.strip().lower().replace("_", " ") if isinstance(status, str) else ""
    if word == "must stop" and stopped_at is not None:
        return State.FINISHED, Result.CANCELLED
    unlisted = (State.RUNNING, None) if stopped_at is None else (State.FINISHED, Result.UNKNOWN)
    return STATUSES.get(word, unlisted)


def _cause(fields: Mapping[str, Any], result: Result | None) -> Error | None:
    if result not in FAILED:
        return None
    found = read_error(fields.get("error"))
    if result is Result.QUOTA:
        return replace(found or Error(), error_class=ErrorClass.QUOTA)
    return found


def _transfer(fields: Mapping[str, Any]) -> tuple[float | None, float | None]:
    metrics = fields.get("metrics")
    network = metrics.get("network") if isinstance(metrics, Mapping) else fields.get("network")
    if not isinstance(network, Mapping):
        return None, None
    return _number(network.get("rxBytes")), _number(network.get("txBytes"))


def _blocks(fields: Mapping[str, Any]) -> tuple[Step, ...] | None:
    """What a run used: ``{"type": "endpointBlock", "connectorId", "endpointId", "duration": 260}`` (milliseconds),
    ``{"type": "snippetBlock", "snippetId", …}``, ``{"type": "baseBlock", "blockName": "CallURLBlock", …}``. An event
    has the same at its top as well.
    """
    metrics = fields.get("metrics")
    found = metrics.get("blocks") if isinstance(metrics, Mapping) else fields.get("blocks")
    if not isinstance(found, list):
        return None
    used: dict[str, Step] = {}
    for block in found:
        if isinstance(block, Mapping):
            step = _block(block)
            before = used.get(step.id)
            used[step.id] = step if before is None else replace(step, seconds=_sum(before.seconds, step.seconds))
    return tuple(used[step_id] for step_id in sorted(used)[:BLOCKS_MAX])


def _block(block: Mapping[str, Any]) -> Step:
    kind = next((word for word in BLOCK_TYPES if word == block.get("type")), "block")
    name = block.get("blockName")
    named = name if kind == "baseBlock" and isinstance(name, str) and _BLOCK_NAME.fullmatch(name) else None
    ids = [block.get(field) for field in ("connectorId", "endpointId", "snippetId")]
    known = [value for value in ids if isinstance(value, str) and _GUID.fullmatch(value)]
    milliseconds = _number(block.get("duration"))
    seconds = None if milliseconds is None else milliseconds / 1000.0
    return Step(id=":".join([kind, *([named] if named else []), *known]), type=named or kind, seconds=seconds)


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _object(item: object, what: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise BadItem(f"{what} is not an object")
    return item


def _id(value: object, what: str) -> str:
    if (
        not isinstance(value, str)
        or not value.strip()
        or len(value) > ID_CHARS_MAX
        or not value.isprintable()
        or DAMAGED in value
    ):
        raise BadItem(f"{what} has no usable id")
    return value


def _text(value: object) -> str | None:
    text = value.strip()[:NAME_CHARS_MAX] if isinstance(value, str) else ""
    return text or None


def _word(value: object, words: Mapping[str, str]) -> str | None:
    return words.get(value.strip().lower()) if isinstance(value, str) else None


def _number(value: object) -> float | None:
    """A number, or one written as text; never negative, never a truth value."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(value)
