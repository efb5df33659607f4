"""Scenarios and their organization: workflows, queues, usage. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from exporter.model import Blocked, ErrorClass, Queue, Unit, Usage, Workflow, times
from exporter.model.redact import redact
from exporter.platforms.make.mapping import (
    as_object,
    milliseconds,
    number,
    plain_id,
    scenario_id,
    seconds,
    text,
    unwrapped,
    whole,
)
from exporter.platforms.make.mapping.errors import NAME_CHARS_MAX, classify

TEAMS_MAX = 1000
#: Blueprints nest; no more modules than this are looked at.
MODULES_MAX = 2000
#: License key executionTime: minutes, as documented for private zones; beyond this it can only be seconds.
RUN_MINUTES_MAX = 300.0

#: Operations, transfer and centicredits since the last reset; None where the answer has no number.
Used = tuple[float | None, float | None, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario as listed, and what of the listing decides what else is asked for."""

    workflow: Workflow
    team_id: str | None
    hook_id: str | None
    dead_letters: int | None
    expired: int | None  # dead letters that nobody treated in time, as far as the row tells
    edited: str | None  # changes with every edit


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    """What of an organization matters here."""

    requests_per_minute: float | None
    run_seconds: float | None  # how long a run may take
    kept_seconds: float | None  # how long logs and untreated dead letters are kept
    teams: dict[str, str]  # id -> name
    usage: tuple[Usage, ...]


def scenario(row: object, *, at: float, teams: Mapping[str, str]) -> Scenario:
    """A row of GET /scenarios as read at ``at``; ``teams`` are the names known. Raises ``BadItem`` without an id."""
    fields = as_object(row, "a scenario")
    team_id, hook_id = plain_id(fields.get("teamId")), plain_id(fields.get("hookId"))
    blocked = None
    if fields.get("isinvalid") is True:
        blocked = Blocked.INVALID
    elif fields.get("isPaused") is True or fields.get("iswaiting") is True:
        blocked = Blocked.PAUSED
    active = fields.get("isActive", fields.get("islinked"))
    edited = fields.get("lastEdit")
    count, everything = whole(fields.get("dlqCount")), whole(fields.get("allDlqCount"))
    return Scenario(
        workflow=Workflow(
            id=scenario_id(fields.get("id"), "a scenario"),
            at=at,
            name=text(fields.get("name")),
            workspace=None if team_id is None else teams.get(team_id, team_id),
            workspace_id=team_id,
            trigger=_scheduling(fields.get("scheduling"), hook_id),
            enabled=active if isinstance(active, bool) else None,
            blocked=blocked,
            next_run_at=seconds(milliseconds(fields.get("nextExec"))),
        ),
        team_id=team_id,
        hook_id=hook_id,
        dead_letters=count,
        expired=None if count is None or everything is None else max(0, everything - count),
        edited=edited if isinstance(edited, str) else None,
    )


def with_order(workflow: Workflow, *, ordered: bool, dead_letters: int | None) -> Workflow:
    """The scenario with what its blueprint says: a sequential one runs nothing while it has a dead letter."""
    stands = ordered and bool(dead_letters) and workflow.blocked is None
    return replace(workflow, ordered=ordered, blocked=Blocked.DEAD_LETTERS if stands else workflow.blocked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What the timeline says stops a scenario, or that nothing does any more."""

    at: float
    blocked: Blocked | None
    until: float | None = None  # None: until somebody switches it on


def notice(row: object, *, latest: float = times.MOMENT_MAX) -> Notice | None:
    """A timeline row of a scenario's log, None for one that says nothing of this. What Make does has no author.

    The kinds ``start``, ``schedule``, ``modify`` and ``warning`` were seen; that Make's switching off is a kind with
    "stop" or "deactivat" in it is a guess.
    """
    fields = row if isinstance(row, Mapping) else {}
    kind, at = fields.get("type"), seconds(milliseconds(fields.get("timestamp")))
    if any(fields.get(key) is not None for key in ("status", "duration", "eventType")) or not isinstance(kind, str):
        return None
    if at is None or not times.is_plausible(at, latest):
        return None
    found = fields.get("detail")
    detail: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    by_hand = fields.get("authorId") is not None or fields.get("authorName") is not None or bool(detail.get("author"))
    delay, reason = number(detail.get("delay")), detail.get("reason")
    if kind == "warning":
        return Notice(at=at, blocked=Blocked.PAUSED, until=at + 60.0 * delay) if delay else None
    if kind == "start":
        return Notice(at=at, blocked=None)
    if "stop" not in kind and "deactivat" not in kind:
        return None
    if by_hand:  # then it is not enabled, and nothing blocks it
        return Notice(at=at, blocked=None)
    quota = classify(None, reason if isinstance(reason, str) else None) is ErrorClass.QUOTA
    return Notice(at=at, blocked=Blocked.QUOTA if quota else Blocked.INVALID)


def with_notice(workflow: Workflow, said: Notice | None) -> Workflow:
    """The scenario with what its timeline says, where its row does not say why it stands or says no more than that."""
    if said is None or said.blocked is None or workflow.blocked not in (None, Blocked.INVALID):
        return workflow
    if said.until is not None:
        return replace(workflow, blocked=workflow.blocked or (said.blocked if workflow.at < said.until else None))
    return replace(workflow, blocked=said.blocked) if workflow.enabled is False else workflow


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
    if len(known) < len(amounts):
        return None
    return Usage(kind="credits", unit=Unit.CREDITS, at=at, used=sum(known) / 100.0)


def organization(data: object, *, at: float) -> Organization:
    """The answer of GET /organizations/{id}: ``{"organization": {…, "license": {…}}}``. Raises ``BadItem``."""
    fields = as_object(as_object(data, "the answer").get("organization"), "the organization")
    found = fields.get("license")
    licensed: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    allowed = number(licensed.get("executionTime"))
    kept = number(licensed.get("retention"))
    teams = fields.get("teams")
    named = [t for t in teams[:TEAMS_MAX] if isinstance(t, Mapping)] if isinstance(teams, list) else []
    return Organization(
        requests_per_minute=number(licensed.get("apiLimit")),
        run_seconds=None if not allowed else allowed * (60.0 if allowed <= RUN_MINUTES_MAX else 1.0),
        kept_seconds=kept * 86_400.0 if kept else None,
        teams={i: n for t in named if (i := plain_id(t.get("id"))) and (n := text(t.get("name")))},
        usage=tuple(
            Usage(
                kind=key,
                unit=unit,
                at=at,
                used=number(fields.get(key)),
                limit=_limit(licensed.get(key), fields.get(f"{key}Ext")),
            )
            for key, unit in (("operations", Unit.OPERATIONS), ("transfer", Unit.BYTES))
        ),
    )


def _scheduling(value: object, hook_id: str | None) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or not kind:
        return None if hook_id is None else "webhook"
    return {"immediately": "webhook", "on-demand": "manual"}.get(kind, "schedule")


def _limit(plan: object, extra: object) -> float | None:
    """What the license grants, and what was bought beyond it."""
    granted = number(plan)
    return None if granted is None else granted + (number(extra) or 0.0)


# Blueprints


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """What of a scenario's blueprint matters here."""

    ordered: bool = False  # "sequential": nothing new runs while a dead letter is open
    stores: bool | None = None  # "dlq": failed runs are kept as incomplete executions; None: it does not say
    modules: Mapping[str, str]  # id -> "http:MakeRequest"


def blueprint(data: object) -> Blueprint:
    """The answer of GET /scenarios/{id}/blueprint, bare or wrapped in ``{"code", "response"}``."""
    found = unwrapped(data).get("blueprint")
    fields: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    metadata = fields.get("metadata")
    settings = metadata.get("scenario") if isinstance(metadata, Mapping) else None
    said: Mapping[str, Any] = settings if isinstance(settings, Mapping) else {}
    stores = said.get("dlq")
    return Blueprint(
        ordered=said.get("sequential") is True,
        stores=stores if isinstance(stores, bool) else None,
        modules=_modules(fields.get("flow")),
    )


def _modules(flow: object) -> dict[str, str]:
    """The modules of a flow, of the routes of its routers and of its error handlers."""
    found: dict[str, str] = {}
    waiting = [flow]
    while waiting and len(found) < MODULES_MAX:
        part = waiting.pop()
        for module in part if isinstance(part, list) else []:
            if not isinstance(module, Mapping):
                continue
            name, module_id = module.get("module"), module.get("id")
            if isinstance(name, str) and isinstance(module_id, int):
                found[str(module_id)] = redact(name, limit=NAME_CHARS_MAX)
            routes = module.get("routes")
            waiting += [r.get("flow") for r in routes if isinstance(r, Mapping)] if isinstance(routes, list) else []
            waiting.append(module.get("onerror"))
    return found
