"""How the Make simulator shows its world: one function for each JSON shape of the Make API, and nothing else.

The shapes follow recorded answers where there are any, field by field and in their order: log rows say their end, what
called them and what they replay, a failed one carries its error (or not, as documented), timeline rows look like log
rows without a status, and what the platform itself says there has no id. For the rest they follow the API
documentation: counters of an organization are text, the detail of a dead letter has no reason and its execution id is
dashed at times.
"""

import itertools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

from exporter.simulator.make.model import (
    DAY,
    HISTORY_DAYS,
    DeadLetter,
    Execution,
    MakeOptions,
    Module,
    Resolve,
    Scenario,
    TimelineEvent,
)

Row = dict[str, Any]

USER = {"id": 1, "name": "Operator", "email": "operator@example.test"}
USER_SETTINGS = {
    **{"language": "en", "timezoneId": 113, "localeId": 1, "countryId": 1, "features": {}},
    **{"avatar": "https://avatar.example.test/1", "timezone": "UTC", "locale": "en-US"},
}
DETAIL_STATUS = {1: "SUCCESS", 2: "WARNING", 3: "ERROR"}


def ms(at: float) -> int:
    return round(at * 1000)


def iso(at: float) -> str:
    return datetime.fromtimestamp(ms(at) / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def share(item_id: str) -> float:
    """A number from 0 to 1 fixed by an id: decides which items show what only some items show."""
    return crc32(item_id.encode()) / 2**32


def last_reset(now: float) -> float:
    """The first of the month: usage counts from there."""
    moment = datetime.fromtimestamp(now, UTC)
    return datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp()


def spent(scenario: Scenario, now: float) -> list[int]:
    """Operations, transfer and centicredits since the last reset."""
    first = int(last_reset(now) // DAY)
    days = [used for day, used in scenario.usage.items() if day >= first]
    return [sum(used[i] for used in days) for i in range(3)]


def scenario_row(s: Scenario, now: float, *, paused: bool, dlq_count: int) -> Row:
    operations, transfer, centicredits = spent(s, now)
    waiting = s.waiting_until > now
    unplanned = s.instant or s.interval is None or not s.active or paused or s.blocked
    next_at = None if unplanned else s.next_at
    if waiting and next_at is not None:
        next_at = s.waiting_until
    return {
        "id": s.id,
        "name": s.name,
        "teamId": s.team_id,
        "hookId": hook_id(s),
        "deviceId": None,
        "deviceScope": None,
        "concept": False,
        "description": "",
        "folderId": None,
        "isinvalid": s.invalid,
        "islinked": s.active,
        "isActive": s.active,
        "islocked": False,
        "isPaused": paused,
        "usedPackages": [m.app for m in s.modules],
        "usedModules": [{"packageName": m.app, "moduleName": m.name} for m in s.modules],
        "lastEdit": iso(edited_at(s)),
        "created": iso(s.created_at),
        "scheduling": scheduling(s),
        "iswaiting": waiting,
        "dlqCount": dlq_count,
        "allDlqCount": dlq_count + s.expired_items,
        "createdByUser": USER,
        "updatedByUser": USER,
        "nextExec": None if next_at is None else iso(next_at),
        "operations": operations,
        "transfer": transfer,
        "centicredits": centicredits,
        "chainingRole": None,
        "slots": None,
        "isShared": False,
        "labels": [],
        "type": "scenario",
    }


def edited_at(s: Scenario) -> float:
    return s.created_at if s.edited_at is None else s.edited_at


def hook_id(s: Scenario) -> int | None:
    return s.id + 100_000 if s.instant else None


def scheduling(s: Scenario) -> Row:
    if s.instant:
        return {"type": "immediately", "maximum_runs_per_minute": 100}
    if s.interval is None:
        return {"type": "on-demand"}
    return {"type": "indefinitely", "interval": int(s.interval)}


def imt_id(e: Execution, at: float, *, short: bool) -> str:
    return f"{ms(at)}_{e.id}" if short else f"{ms(at)}_scenario.{e.scenario.id}.{e.kind}.{e.id}"


def is_replayable(e: Execution, options: MakeOptions) -> bool:
    """What a row says of its run. One that failed in its trigger has nothing to replay."""
    return e.error is None or (options.replayable and e.error.module != e.scenario.modules[0])


def execution_row(e: Execution, now: float, *, imt: str, options: MakeOptions) -> Row:
    """A log row, dated by its start. Only a running one, where these are shown at all, has status 0."""
    failed, original = e.status == 3 and e.ended(now), e.replay_of
    row: Row = {"imtId": imt}
    if not failed:
        scenario_id, execution_id = e.parent or (None, None)
        row["parent"] = {"id": scenario_id, "executionId": execution_id}
    row |= {
        "scenarioName": e.scenario.name,
        "replayOfExecutionId": None if original is None else original.id,
        "eventType": "EXECUTION_END",
        "teamId": e.scenario.team_id,
        "type": e.kind,
    }
    if failed and e.error is not None and share(e.id[::-1]) < options.inline_errors:
        cause = {"appName": e.error.module.app, "name": e.error.module.name}
        row["error"] = {"name": e.error.name, "message": e.error.message, "causeModule": cause}
    by_hand = e.kind == "manual" or (not failed and share(e.id) < 0.1)  # people start what is scheduled, too
    row |= {
        "scenarioId": e.scenario.id,
        "instant": e.scenario.instant,
        "duration": took(e, now),
        "centicredits": e.operations * 100,
        "operations": e.operations,
        "transfer": e.transfer,
        "replayOfExecutionName": None,
        "organizationId": options.organization_id,
        "id": e.id,
        "authorId": None if not by_hand else USER["id"] if e.author_id is None else e.author_id,
        "replayOfExecutionTimestamp": None if original is None else iso(original.started_at),
        "endedAt": iso(e.ended_at or 0.0),
        "timestamp": iso(e.started_at),
        "status": e.status,
        "isReplayable": is_replayable(e, options),
        "authorName": USER["name"] if by_hand else None,
    }
    if not e.ended(now):
        missing = ("eventType", "duration", "centicredits", "operations", "transfer", "endedAt", "isReplayable")
        return {key: value for key, value in row.items() if key not in missing} | {"status": 0}
    return row


def took(e: Execution, now: float) -> int:
    """Milliseconds the modules of an execution took, some less than it did; 0 while it runs."""
    if e.ended_at is None or not e.ended(now):
        return 0
    return max(0, ms(e.ended_at) - ms(e.started_at) - 2 - int(share(e.id) * 3))


def feed_row(e: Execution, now: float, *, imt: str, options: MakeOptions) -> Row:
    """A row of the feed across scenarios: that of a log, or one dated by its end."""
    row = execution_row(e, now, imt=imt, options=options)
    if options.feed_brief:
        for key in ("isReplayable", "replayOfExecutionId", "replayOfExecutionTimestamp", "error"):
            row.pop(key, None)
    if options.feed_ends:
        row["timestamp"] = row.pop("endedAt")
        row["duration"] = ms(e.ended_at or 0.0) - ms(e.started_at)
    return row


def imt_id_of(event: TimelineEvent) -> str:
    return f"{ms(event.at)}_{event.id if event.author is not None else 'undefined'}"


def timeline_row(event: TimelineEvent) -> Row:
    row: Row = {"imtId": imt_id_of(event), "id": event.id, "detail": event.detail, "type": event.type}
    row |= {"authorId": USER["id"], "timestamp": iso(event.at), "authorName": event.author}
    if event.author is None:
        del row["id"], row["authorId"]
    return row


def execution_detail(e: Execution, now: float) -> Row:
    if not e.ended(now):
        return {"status": "RUNNING"}
    detail: Row = {"status": DETAIL_STATUS[e.status]}
    if e.status == 1:
        detail["outputs"] = {}
    elif e.error is not None:
        cause = {"name": e.error.module.name, "appName": e.error.module.app}
        detail["error"] = {"name": e.error.name, "message": e.error.message, "causeModule": cause}
    elif e.status == 2:
        detail["error"] = {"name": "DataError", "message": "A module ended with a warning."}
    return detail


def module_events(e: Execution, now: float) -> list[Row]:
    """Start and end of each module, spread evenly over the run; the failed one is the last and has an end or none.

    In some executions the last module has two bundles to work on, one after the other.
    """
    ended_at = now if e.ended_at is None else e.ended_at
    modules = list(e.scenario.modules if e.error is None else e.scenario.modules[: e.error.module.id])
    if e.error is None and share(e.id) < 0.3:
        modules.append(modules[-1])
    step = (ended_at - e.started_at) / len(modules)
    rows: list[Row] = [{"kind": "EXECUTION_START", "moduleId": None, "at": iso(e.started_at), "status": 0}]
    for i, module in enumerate(modules):
        last = i == len(modules) - 1
        status = 1 if not last else 3 if e.error is not None else e.status
        rows.append({"kind": "MODULE_START", "moduleId": module.id, "at": iso(e.started_at + i * step), "status": 0})
        if status != 3 or share(e.id) < 0.5:
            end = {"kind": "MODULE_END", "moduleId": module.id, "at": iso(e.started_at + (i + 1) * step)}
            rows.append(end | {"status": status})
    return [row for row in rows if row["at"] <= iso(now)]


def process(e: Execution, now: float, include: set[str]) -> Row:
    row: Row = {
        "id": e.id,
        "scenarioId": e.scenario.id,
        "timestamp": iso(e.started_at),
        "duration": ms(min(now, e.ended_at or now)) - ms(e.started_at),
        "status": e.status if e.ended(now) else 0,
        "operations": e.operations,
        "centicredits": e.operations * 100,
    }
    if "blueprint" in include:
        row["blueprint"] = {"modules": [module_row(m) for m in e.scenario.modules]}
    if "events" in include:
        row["events"] = module_events(e, now)
    if "bundles" in include:
        row["bundles"] = {}
    return row


def module_row(module: Module) -> Row:
    return {"id": module.id, "module": f"{module.app}:{module.name}", "version": 1, "metadata": {}}


def blueprint(s: Scenario) -> Row:
    flow = [module_row(m) for m in s.modules]
    if s.break_plan is not None:
        count, interval = s.break_plan
        mapper = {"retry": True, "count": str(count), "interval": str(interval)}
        flow[-1]["onerror"] = [{"id": len(flow) + 1, "module": "builtin:Break", "version": 1, "mapper": mapper}]
    settings = {
        "roundtrips": 1,
        "maxErrors": s.max_errors,
        "autoCommit": True,
        "sequential": s.sequential,
        "autoCommitTriggerLast": True,
        "confidential": s.confidential,
        "dataloss": s.dataloss,
        "dlq": s.store,
        "freshVariables": False,
        "slots": None,
    }
    return {"name": s.name, "flow": flow, "metadata": {"version": 1, "scenario": settings}}


def scenario_blueprint(s: Scenario) -> Row:
    response = {
        "blueprint": blueprint(s),
        "scheduling": scheduling(s),
        "idSequence": len(s.modules) + 1,
        "created": iso(s.created_at),
        "last_edit": iso(edited_at(s)),
    }
    return {"code": "OK", "response": response}


def consumption(s: Scenario, now: float) -> Row:
    operations, transfer, centicredits = spent(s, now)
    return {"scenarioId": s.id, "operations": operations, "transfer": transfer, "centicredits": centicredits}


def usage_days(scenarios: Iterable[Scenario], now: float) -> list[Row]:
    """The last 30 days, as far as anything ran."""
    today = int(now // DAY)
    days: dict[int, list[int]] = {}
    for s in scenarios:
        for day, used in s.usage.items():
            if day > today - 30:
                days[day] = [a + b for a, b in zip(days.get(day, [0, 0, 0]), used, strict=True)]
    return [
        {"date": iso(day * DAY)[:10], "operations": used[0], "dataTransfer": used[1], "centicredits": used[2]}
        for day, used in sorted(days.items())
    ]


def hook_row(s: Scenario) -> Row:
    udid = f"{s.id:032d}"
    return {
        "id": hook_id(s),
        "name": f"{s.name} webhook",
        "teamId": s.team_id,
        "udid": udid,
        "type": "web",
        "packageName": None,
        "theme": "#c73a63",
        "editable": True,
        "queueCount": s.queue,
        "queueLimit": s.queue_limit,
        "enabled": True,
        "gone": False,
        "typeName": "gateway-webhook",
        "data": {},
        "scenarioId": s.id,
        "scenarioName": s.name,
        "scenarioIsActive": s.active,
        "url": f"https://hook.example.test/{udid}",
    }


def dead_letter_row(d: DeadLetter) -> Row:
    return {
        "id": d.id,
        "reason": d.error.message,
        "created": iso(d.created_at),
        "size": d.size,
        "resolved": d.state == "resolved",
        "retry": d.retry,
        "attempts": d.attempts,
    }


def dead_letter_detail(d: DeadLetter, team_name: str, *, dashed_ids: bool) -> Row:
    row = dead_letter_row(d)
    del row["reason"]
    execution_id = d.execution_id
    if dashed_ids and len(execution_id) == 32 and share(d.id) < 0.5:
        cuts = (0, 8, 12, 16, 20, 32)
        execution_id = "-".join(execution_id[a:b] for a, b in itertools.pairwise(cuts))
    row |= {"scenarioId": d.scenario.id, "scenarioName": d.scenario.name}
    row |= {"companyId": d.scenario.team_id, "companyName": team_name}
    return row | {"deleted": d.state == "deleted", "index": d.index, "executionId": execution_id}


def dead_letter_bundle(d: DeadLetter) -> Row:
    """The only answer that names the error's type. A confidential scenario keeps no outputs of the modules before."""
    failed = d.error.module.id
    response: Row = {str(failed): {"error": {"type": d.error.name, "message": d.error.message}}}
    if not d.scenario.confidential:
        for module in d.scenario.modules[: failed - 1]:
            response[str(module.id)] = {"orderId": f"A-{d.index}", "email": "customer@example.test"}
    return {"code": "OK", "response": response}


def dead_letter_blueprint(d: DeadLetter) -> Row:
    frozen = d.frozen if d.frozen is not None else blueprint(d.scenario)
    response = {"blueprint": frozen, "company": d.scenario.team_id}
    return {"code": "OK", "response": response | {"idSequence": len(frozen["flow"]) + 1, "reason": d.error.message}}


def resolve_row(r: Resolve, organization_id: int, *, running: bool) -> Row:
    d = r.dead_letter
    row: Row = {
        "imtId": f"{ms(r.started_at)}_dlq.{d.id}.{r.kind}.{r.id}",
        "id": r.id,
        "type": r.kind,
        "authorId": r.author_id,
        "timestamp": iso(r.started_at),
        "duration": ms(r.ended_at) - ms(r.started_at),
        "operations": r.operations,
        "centicredits": r.operations * 100,
        "transfer": 100 * r.operations,
        "organizationId": organization_id,
        "teamId": d.scenario.team_id,
        "instant": False,
        "status": 0 if running else r.status,
    }
    return {key: value for key, value in row.items() if key != "duration"} if running else row


def organization(
    scenarios: Sequence[Scenario], now: float, options: MakeOptions, *, paused: bool, teams: dict[int, str]
) -> Row:
    used = [spent(s, now) for s in scenarios]
    operations, transfer = sum(u[0] for u in used), sum(u[1] for u in used)
    transfer_limit = options.operations_limit * 500_000
    reset = last_reset(now)
    return {
        "id": options.organization_id,
        "name": "Example organization",
        "timezoneId": 113,
        "zone": options.zone.removeprefix("https://"),
        "teams": [{"id": team_id, "name": team} for team_id, team in teams.items()],
        "isPaused": paused,
        "serviceName": "default",
        "productName": "core",
        "lastReset": iso(reset),
        "nextReset": iso(last_reset(reset + 40 * DAY)),
        "operations": str(operations),
        "transfer": str(transfer),
        "operationsExt": "0",
        "transferExt": "0",
        "unusedOperations": str(max(0, options.operations_limit - operations)),
        "unusedTransfer": str(max(0, transfer_limit - transfer)),
        "activeScenarios": sum(1 for s in scenarios if s.active),
        "scenarios": len(scenarios),
        "deleted": False,
        "features": {},
        "license": {
            "apiLimit": options.api_limit,
            "operations": options.operations_limit,
            "transfer": transfer_limit,
            "interval": 1,
            "executionTime": 40,
            "retention": HISTORY_DAYS,
            "dlqStorage": options.storage_bytes,
            "iolimit": 667,
            "restartPeriod": "1 month",
            "priority": "medium",
        },
    }
