"""What people do on Make through its API: change, delete and run scenarios, change blueprints, and those frozen in dead
letters.

A dead letter keeps the blueprint of the moment it was stored. Here that costs nothing until somebody edits the
scenario: only then is the old blueprint written into what is open. A blueprint's modules have to be numbered from 1
without a gap, as all of this world's are; Make itself asks less. A patched blueprint and the failer say from which
module a retry runs and how far; whether it works out is as chance, or the test, has it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import orjson
from aiohttp import web

from exporter.simulator.make import rows
from exporter.simulator.make.gate import Gate, Refused, json_object
from exporter.simulator.make.model import DeadLetter, Execution, Module, Scenario
from exporter.simulator.make.rows import Row
from exporter.simulator.make.world import MakeWorld
from exporter.simulator.repairs import RepairPlans, fate

BUSY = "The incomplete execution is resolved or being processed."
SETTINGS = {"dlq": "store", "sequential": "sequential", "dataloss": "dataloss", "confidential": "confidential"}


def freeze(scenario: Scenario) -> None:
    """Write today's blueprint into the dead letters that have none of their own, because it is about to change."""
    for item in scenario.dead_letters:
        if item.frozen is None:
            item.frozen = rows.blueprint(scenario)


@dataclass(frozen=True, slots=True)
class Edits:
    gate: Gate
    world: MakeWorld
    find: Callable[[str], Scenario]
    item: Callable[[web.Request], DeadLetter]
    scenario_row: Callable[[Scenario], Row]
    repairs: RepairPlans

    def routes(self) -> list[tuple[str, str, str, Callable[[web.Request], Awaitable[Row | web.Response]]]]:
        scenario = r"/scenarios/{id:\d+}"
        return [
            ("PATCH", scenario, "scenarios:write", self._update_scenario),
            ("DELETE", scenario, "scenarios:write", self._delete_scenario),
            ("POST", f"{scenario}/run", "scenarios:run", self._run),
            ("GET", f"{scenario}/blueprints", "scenarios:read", self._versions),
            ("PATCH", "/dlqs/{id}", "dlqs:write", self.repairs.around(self._update_item)),
            ("DELETE", "/dlqs/{id}", "dlqs:write", self._delete_item),
        ]

    async def _update_scenario(self, request: web.Request) -> Row:
        scenario, body = self.find(request.match_info["id"]), await json_object(request)
        blueprint = None if body.get("blueprint") is None else _blueprint(body["blueprint"])
        changes = {} if blueprint is None else _changes(blueprint)
        schedule = _decoded(body["scheduling"], "scheduling") if body.get("scheduling") is not None else None
        name = body.get("name", scenario.name)
        if not isinstance(name, str) or not name:
            raise Refused(400, "Validation failed for 'name'.")
        interval = None if schedule is None else _interval(schedule, scenario)
        freeze(scenario)
        for setting, value in changes.items():
            setattr(scenario, setting, value)
        scenario.name, scenario.edited_at = name, self.world.now
        self.world.note(scenario, self.world.now, "modify", {}, "API")
        if schedule is not None:
            self.world.reschedule(scenario, interval)
        return {"scenario": self.gate.one(request, self.scenario_row(scenario))}

    async def _delete_scenario(self, request: web.Request) -> Row:
        scenario = self.find(request.match_info["id"])
        self.world.remove(scenario)
        return {"scenario": scenario.id}

    async def _run(self, request: web.Request) -> Row:
        """A run that works out, by hand. Who waits for its result is answered as one that takes longer than 40 s is."""
        scenario, body = self.find(request.match_info["id"]), await json_object(request)
        if not scenario.active:
            raise Refused(422, "Scenario is not activated")
        now = self.world.now
        rng = self.gate.engine.stream("asked for", scenario.id, len(scenario.executions))
        ended_at = round(now + scenario.duration * rng.lognormvariate(0.0, 0.5) + 0.05, 3)
        steps = len(scenario.modules)
        execution = Execution(scenario, f"{rng.getrandbits(128):032x}", now, ended_at, 1, None, steps, 200 * steps)
        execution.kind, execution.callback = "manual", body.get("callbackUrl") is not None
        self.world.place(execution)
        self.world.advance(now)
        return {"executionId": execution.id}

    async def _versions(self, request: web.Request) -> Row:
        """The newest first. Each edit makes one."""
        scenario = self.find(request.match_info["id"])
        made = [scenario.created_at, *(event.at for event in scenario.timeline if event.type == "modify")]
        versions = [
            {"version": number, "created": rows.iso(at), "scenarioId": scenario.id, "draft": False}
            for number, at in enumerate(made, start=1)
        ]
        return {"scenariosBlueprints": versions[::-1]}

    async def _update_item(self, request: web.Request) -> Row:
        item, body = self.item(request), await json_object(request)
        if item.state != "stored":
            raise Refused(400, BUSY)
        frozen = item.frozen if item.frozen is not None else rows.blueprint(item.scenario)
        if body.get("blueprint") is not None:
            frozen = _blueprint(body["blueprint"])
        failer = body.get("failer", item.error.module.id)
        failed = next((module for module in _modules(frozen) if module.id == failer), None)
        if failed is None or type(failer) is not int:
            raise Refused(400, f"There is no module {failer} in the blueprint.")
        if fate(request) != "lost":
            item.frozen, item.error = frozen, replace(item.error, module=failed)
        return {"dlq": {"failer": failed.id, "blueprint": frozen}}

    async def _delete_item(self, request: web.Request) -> Row:
        item = self.item(request)
        if item.state == "running":
            raise Refused(
                400, "Some of the executions could not be deleted because they are being processed right now."
            )
        if item.resolved_at is None:
            self.world.close(item, self.world.now, "deleted")
        return {"dlq": item.id}


def _decoded(text: object, name: str) -> dict[str, Any]:
    """The object in a parameter that is JSON within JSON."""
    try:
        value = orjson.loads(text) if isinstance(text, str) else None
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise Refused(400, f"Validation failed for '{name}': it has to be the text of a JSON object.")
    return value


def _blueprint(text: object) -> dict[str, Any]:
    blueprint = _decoded(text, "blueprint")
    if [module.id for module in _modules(blueprint)] != list(range(1, len(blueprint["flow"]) + 1)):
        raise Refused(400, "Validation failed for 'blueprint': its modules are not numbered from 1.")
    return blueprint


def _modules(blueprint: dict[str, Any]) -> list[Module]:
    flow = blueprint.get("flow")
    modules: list[Module] = []
    for entry in flow if isinstance(flow, list) else []:
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("module"), str):
            raise Refused(400, "Validation failed for 'blueprint': a module has an id and a name.")
        app, _, name = entry["module"].partition(":")
        modules.append(Module(entry["id"], app, name))
    if not modules:
        raise Refused(400, "Validation failed for 'blueprint': it has no modules.")
    return modules


def _interval(schedule: dict[str, Any], scenario: Scenario) -> float | None:
    """Seconds between runs that a schedule of this world can have; None on demand."""
    if schedule.get("type") == "on-demand":
        return None
    seconds = schedule.get("interval")
    if schedule.get("type") == "immediately" and scenario.instant:
        return scenario.interval
    if schedule.get("type") != "indefinitely" or type(seconds) is not int or seconds < 60:
        raise Refused(400, "Validation failed for 'scheduling'.")
    return float(seconds)


def _changes(blueprint: dict[str, Any]) -> dict[str, Any]:
    """What a scenario with this blueprint is like, by field of ``Scenario``."""
    changes: dict[str, Any] = {"modules": tuple(_modules(blueprint)), "break_plan": None}
    try:
        settings = dict(blueprint.get("metadata", {}).get("scenario", {}).items())
        changes |= {ours: settings[theirs] is True for theirs, ours in SETTINGS.items() if theirs in settings}
        if "maxErrors" in settings:
            changes["max_errors"] = int(settings["maxErrors"])
        for handler in (handler for module in blueprint["flow"] for handler in module.get("onerror", [])):
            mapper = handler.get("mapper", {})
            if handler["module"] == "builtin:Break" and mapper.get("retry") is True:
                changes["break_plan"] = (int(mapper["count"]), int(mapper["interval"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Refused(400, "Validation failed for 'blueprint': its settings or its error handlers.") from None
    return changes
