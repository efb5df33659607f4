"""How the Qlik simulator's world looks from outside: automations, runs and events as JSON, and what faults do to it.

Fields, values and their order are those of a recorded answer: times in whole seconds though written with six digits, a
light listing, blocks that took a while but say not when, and ``updatedAt``, which may move long after the end. A listed
run has a duration and no metrics, a run read alone the reverse; ``lastRunStatus`` knows no "queued". Faults damage only
what is shown.
"""

import math
import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import orjson

from exporter.simulator.core import Engine
from exporter.simulator.qlik.failures import elements
from exporter.simulator.qlik.requests import Value
from exporter.simulator.qlik.world import Run, Workflow

Json = dict[str, object]
RUN_ENDED = "com.qlik.v1.automation.run.ended"
EVENT_SOURCE = "com.qlik/automations"
TENANT_ID = "tnt-demo"
#: Seconds from the end of some runs to the moment their ``updatedAt`` moves once more.
TOUCHED_AFTER = 804
ENVELOPES = ("cloudevents", "hybrid", "legacy")
UNKNOWN_STATUS = "hibernating"
OPTIONAL_OF_RUN = (
    "title",
    "error",
    "duration",
    "metrics",
    "executedById",
    "scheduledStartTime",
    "updatedAt",
    "spaceId",
)
OPTIONAL_OF_AUTOMATION = ("lastRun", "lastRunAt", "duration", "maxConcurrentRuns", "spaceId", "workspace", "updatedAt")


#: What filters and sorts compare, by field; times in seconds since the epoch.
RUN_VALUES: dict[str, Callable[[Run, float], Value]] = {
    "id": lambda run, now: run.id,
    "status": lambda run, now: run.status(now),
    "context": lambda run, now: run.context,
    "startTime": lambda run, now: run.start_time(now),
    "createdAt": lambda run, now: run.created_at,
    "title": lambda run, now: run.workflow.name,
    "spaceId": lambda run, now: run.workflow.space_id,
    "ownerId": lambda run, now: run.workflow.owner_id,
    "executedById": lambda run, now: run.executed_by,
    "billable": lambda run, now: True,
}
AUTOMATION_VALUES: dict[str, Callable[[Workflow, float], Value]] = {
    "id": lambda workflow, now: workflow.id,
    "name": lambda workflow, now: workflow.name,
    "runMode": lambda workflow, now: workflow.run_mode,
    "state": lambda workflow, now: _state(workflow),
    "createdAt": lambda workflow, now: workflow.created_at,
    "updatedAt": lambda workflow, now: workflow.updated_at,
    "lastRunAt": lambda workflow, now: workflow.last_ended_at,
    "lastRunStatus": lambda workflow, now: _last_run_status(workflow, now),
    "maxConcurrentRuns": lambda workflow, now: workflow.max_concurrent_runs,
    "ownerId": lambda workflow, now: workflow.owner_id,
    "spaceId": lambda workflow, now: workflow.space_id,
}


def stamp(at: float | None) -> str | None:
    """A time as the platform writes it: six digits of a second that are always zero."""
    if at is None:
        return None
    return datetime.fromtimestamp(math.floor(at), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def stamp_date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def run_json(run: Run, now: float, *, listed: bool) -> Json:
    tested = run.context == "test_run"  # one from the editor is not marked
    shown: Json = {
        "id": run.id,
        "spaceId": run.workflow.space_id,
        "ownerId": run.workflow.owner_id,
        "executedById": run.executed_by,
        "context": run.context,
        "status": run.status(now),
        "title": None if run.ordinal % 3 else f"{run.workflow.name} #{run.ordinal}",
        "testRun": tested,
        "isTestRun": tested,
        "archived": True,
        "isArchived": True,
        "error": _error(run),
        "startTime": stamp(run.start_time(now)),
        "stopTime": stamp(run.ended_at),
        "scheduledStartTime": None,
        "createdAt": stamp(run.created_at),
        "updatedAt": stamp(_run_updated_at(run, now)),
        "expectedInputs": None,
        "inputs": {"Customer file": f"customer-{run.ordinal}.csv"},
        "billable": True,
    }
    if listed:
        shown["duration"] = _seconds(run)
    else:
        shown["metrics"] = metrics_json(run)
    return shown


def _error(run: Run) -> list[Json] | None:
    if run.ended_at is None or run.error_class is None:
        return None
    return elements(run.error_class, run.error, ordinal=run.ordinal)


def metrics_json(run: Run) -> Json | None:
    """What the run used: blocks that called something, with how long each took (ms), which is far from the whole."""
    if run.ended_at is None:
        return None
    snippet_rx, snippet_tx = run.rx_bytes // 4, run.tx_bytes // 4
    return {
        "blocks": [
            {
                "type": "baseBlock",
                "rxBytes": 0,
                "txBytes": 0,
                "duration": 540,
                "blockName": "CallURLBlock",
                "params": [],
            },
            {
                "type": "endpointBlock",
                "rxBytes": run.rx_bytes - snippet_rx,
                "txBytes": run.tx_bytes - snippet_tx,
                "duration": 260 + run.api_calls,
                "connectorId": run.workflow.id,
                "endpointId": run.workflow.id,
                "apiCalls": run.api_calls,
            },
            {
                "type": "snippetBlock",
                "rxBytes": snippet_rx,
                "txBytes": snippet_tx,
                "duration": 12,
                "snippetId": run.workflow.id,
            },
        ],
        "network": {"rxBytes": run.rx_bytes, "txBytes": run.tx_bytes},
        "totalApiCalls": run.api_calls,
    }


def automation_json(workflow: Workflow, now: float, *, listed: bool, caller_id: str) -> Json:
    """An automation; its token is shown to its owner only. One that never ran has nulls."""
    newest = workflow.newest
    shown: Json = {
        "id": workflow.id,
        "ownerId": workflow.owner_id,
        "name": workflow.name,
        "spaceId": workflow.space_id,
        "state": _state(workflow),
        "duration": None if newest is None else _seconds(newest),
        "description": workflow.description,
        "snippetIds": [workflow.id],
        "endpointIds": [workflow.id],
        "connectorIds": [workflow.id],
        "workspace": None if listed else {"blocks": []},
        "lastRunStatus": _last_run_status(workflow, now),
        "runMode": workflow.run_mode,
        "createdAt": stamp(workflow.created_at),
        "updatedAt": stamp(_updated_at(workflow, now)),
        "lastRunAt": stamp(workflow.last_ended_at),
        "containsBillable": True,
        "maxConcurrentRuns": workflow.max_concurrent_runs,
        "timeout": None,
        "lastRun": None if newest is None else run_json(newest, now, listed=False),
    }
    if caller_id == workflow.owner_id:
        shown["executionToken"] = f"execution-token-of-{workflow.id}"
    if not listed:
        shown["schedules"] = _schedules(workflow)
    return shown


def event_id(run: Run) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{RUN_ENDED}/{run.id}"))


def event_data(run: Run, now: float) -> Json:
    """A run as its event tells it: without the error and the duration, with the metrics twice."""
    data = run_json(run, now, listed=False)
    for name in ("error", "inputs", "expectedInputs"):
        del data[name]
    metrics = metrics_json(run) or {}
    return {**data, "billable": True, **metrics, "automation": {"id": run.workflow.id, "name": run.workflow.name}}


def event_time(run: Run) -> str:
    return f"{(stamp(run.ended_at) or '')[:-4]}Z"  # milliseconds, unlike the times inside


def event_body(run: Run, now: float, *, envelope: str) -> bytes:
    workflow = run.workflow
    modern: Json = {
        "id": event_id(run),
        "time": event_time(run),
        "type": RUN_ENDED,
        "specversion": "1.0.2",
        "datacontenttype": "application/json",
        "tenantid": TENANT_ID,
        "userid": run.executed_by,
        "ownerid": workflow.owner_id,
        "spaceid": workflow.space_id,
        "toplevelresourceid": workflow.id,
    }
    legacy: Json = {
        "cloudEventsVersion": "0.1",
        "eventId": event_id(run),
        "eventTime": event_time(run),
        "eventType": RUN_ENDED,
        "eventTypeVersion": "1.0.0",
        "contentType": "application/json",
        "extensions": {
            "tenantId": TENANT_ID,
            "userId": run.executed_by,
            "ownerId": workflow.owner_id,
            "spaceId": workflow.space_id,
            "topLevelResourceId": workflow.id,
        },
    }
    attributes = {"cloudevents": modern, "legacy": legacy, "hybrid": modern | legacy}[envelope]
    return orjson.dumps({**attributes, "source": EVENT_SOURCE, "data": event_data(run, now)})


def audit_json(run: Run, now: float) -> Json:
    """The same event as the audits API keeps it, in the older names."""
    return {
        "id": event_id(run),
        "eventId": event_id(run),
        "eventTime": event_time(run),
        "eventType": RUN_ENDED,
        "eventTypeVersion": "1.0.0",
        "source": EVENT_SOURCE,
        "contentType": "application/json",
        "tenantId": TENANT_ID,
        "userId": run.executed_by,
        "extensions": {
            "actor": {"sub": run.executed_by, "subType": "user"},
            "ownerId": run.workflow.owner_id,
            "spaceId": run.workflow.space_id,
            "topLevelResourceId": run.workflow.id,
        },
        "data": event_data(run, now),
        "links": {"self": {"href": f"/api/v1/audits/{event_id(run)}"}},
    }


def _schedules(workflow: Workflow) -> list[Json]:
    schedule = workflow.schedule
    if schedule is None or workflow.run_mode != "scheduled":
        return []
    wall_time = datetime.fromtimestamp(workflow.created_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    last_started_at = None if workflow.newest is None else stamp(workflow.newest.created_at)
    return [
        {
            "id": workflow.id,
            "startAt": wall_time,
            "stopAt": None,
            "interval": int(schedule.seconds),
            "timezone": "UTC",
            "lastStartedAt": last_started_at,
            "nextRunAt": stamp(workflow.next_start_at if workflow.enabled else None),
        }
    ]


def _state(workflow: Workflow) -> str:
    return "available" if workflow.enabled else "disabled"


def _run_updated_at(run: Run, now: float) -> float:
    """Of some runs it moves once more, long after the end."""
    touched = None if run.ended_at is None or run.ordinal % 7 else run.ended_at + TOUCHED_AFTER
    if touched is not None and touched <= now:
        return touched
    return run.ended_at or run.start_time(now) or run.created_at


def _updated_at(workflow: Workflow, now: float) -> float:
    newest = workflow.newest
    return max(workflow.updated_at, 0.0 if newest is None else _run_updated_at(newest, now))


def _seconds(run: Run) -> int | None:
    if run.ended_at is None:
        return None
    return 0 if run.started_at is None else int(run.ended_at - run.started_at)


def _last_run_status(workflow: Workflow, now: float) -> str | None:
    if workflow.newest is None:
        return None
    status = workflow.newest.status(now)
    return "not started" if status == "queued" else status


class Damage:
    """The faults that strike single items."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rng: random.Random = engine.stream("damage")

    def run(self, item: Json) -> Json:
        return self._item(item, OPTIONAL_OF_RUN)

    def automation(self, item: Json) -> Json:
        item = self._item(item, OPTIONAL_OF_AUTOMATION)
        last_run = item.get("lastRun")
        if isinstance(last_run, dict):
            item["lastRun"] = self.run(last_run)
        return item

    def listing(self, items: list[Json]) -> list[Json]:
        """Some items twice."""
        return [copy for item in items for copy in ([item, item] if self._strikes("duplicates") else [item])]

    def number(self, value: int) -> int | None:
        return None if self._strikes("null_numbers") else value

    def _item(self, item: Json, optional: tuple[str, ...]) -> Json:
        if self._strikes("missing_fields"):
            for name in self._rng.sample([name for name in optional if name in item], 3):
                del item[name]
        if self._strikes("null_numbers"):
            for name in ("duration", "maxConcurrentRuns"):
                if name in item:
                    item[name] = None
            metrics = item.get("metrics")
            if isinstance(metrics, dict):
                item["metrics"] = {**metrics, "totalApiCalls": None, "network": {"rxBytes": None, "txBytes": None}}
        if self._strikes("unknown_status"):
            item["status" if "status" in item else "lastRunStatus"] = UNKNOWN_STATUS
        return item

    def _strikes(self, fault: str) -> bool:
        return self._engine.strikes(getattr(self._engine.faults, fault))
