"""What people change on Qlik through its API: automations are made, changed, moved, copied, switched off and deleted,
runs are started and their logs exported, the limit of the tenant is set.

Rights follow the reference of each call. Where it leaves open what is refused, the strictest reading holds: a run of a
disabled automation is refused as its retry is, and nobody allows an automation more runs at once than the tenant does.
What a PUT does not name stays. A copy is its maker's own, private and without a schedule.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from exporter.simulator.core import json_response
from exporter.simulator.qlik.requests import Caller, Refused, allow, json_of
from exporter.simulator.qlik.wire import automation_json, run_json, stamp
from exporter.simulator.qlik.world import Run, Workflow, World

Answer = Callable[[web.Request, Caller], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Edits:
    world: World
    find: Callable[[web.Request], Workflow]
    find_run: Callable[[web.Request, Caller], Run]

    def routes(self) -> list[tuple[str, str, str, Answer]]:
        """Method, path behind the prefix, tier, answer."""
        one, run = "/{id}", "/{id}/runs/{runId}"
        return [
            ("POST", "", "tier 2", self._create),
            ("PUT", "/settings", "tier 2", self._set_settings),
            ("PUT", one, "tier 2", self._update),
            ("DELETE", one, "tier 2", self._delete),
            ("POST", f"{one}/actions/enable", "tier 2", self._enable),
            ("POST", f"{one}/actions/disable", "tier 2", self._disable),
            ("POST", f"{one}/actions/copy", "tier 2", self._copy),
            ("POST", f"{one}/actions/move", "tier 2", self._change_owner),
            ("POST", f"{one}/actions/change-owner", "tier 2", self._change_owner),
            ("POST", f"{one}/actions/change-space", "tier 2", self._change_space),
            ("POST", f"{one}/runs", "tier 2", self._start),
            ("POST", f"{run}/actions/export", "tier 2", self._export),
            ("GET", f"{run}/debug", "tier 1", self._debug),
        ]

    async def _create(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        body = await self._definition(request)
        space_id = _text(body.get("spaceId", ""), "spaceId")
        allow(not space_id or space_id in caller.spaces)
        workflow = self._add(caller, body["name"], space_id=space_id)
        self._apply(workflow, body)
        return json_response(
            automation_json(workflow, self.world.now, listed=False, caller_id=caller.user_id), status=201
        )

    async def _update(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        workflow = self.find(request)
        allow(caller.operates(workflow))
        body = await self._definition(request)
        self.world.rename(workflow, body["name"])
        self._apply(workflow, body)
        return json_response(automation_json(workflow, self.world.now, listed=False, caller_id=caller.user_id))

    async def _copy(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        original = self.find(request)
        allow(caller.operates(original))
        name = _name(await _object(request))
        workflow = self._add(caller, name, max_concurrent_runs=original.max_concurrent_runs)
        workflow.description, workflow.typical_seconds = original.description, original.typical_seconds
        return json_response({"id": workflow.id}, status=201)

    async def _delete(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        workflow = self.find(request)
        allow(caller.admin or caller.operates(workflow))
        self.world.delete(workflow)
        return web.Response(status=204)

    async def _enable(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        return self._switch(request, caller, enabled=True)

    async def _disable(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        return self._switch(request, caller, enabled=False)

    def _switch(self, request: web.Request, caller: Caller, *, enabled: bool) -> web.StreamResponse:
        workflow = self.find(request)
        allow(caller.admin or caller.operates(workflow))
        self.world.set_enabled(workflow, enabled)
        return web.Response(status=204)

    async def _change_owner(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        workflow = self.find(request)
        allow(caller.admin or "admin.automations" in caller.scopes)
        user_id = _text((await _object(request)).get("userId"), "userId")
        if not user_id:
            raise Refused(400, "userId is missing")
        self.world.change_owner(workflow, user_id)
        return web.Response(status=204)

    async def _change_space(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        workflow = self.find(request)
        space_id = _text((await _object(request)).get("spaceId"), "spaceId")
        allow(caller.operates(workflow) and (not space_id or space_id in caller.spaces))
        workflow.space_id, workflow.updated_at = space_id, self.world.now
        return web.Response(status=204)

    async def _start(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        workflow = self.find(request)
        allow(caller.operates(workflow))
        if (await _object(request)).get("context") != "api":
            raise Refused(400, "context can only be api")
        if not workflow.enabled:
            raise Refused(403, "the automation is disabled")
        run = self.world.start(workflow, executed_by=caller.user_id)
        return json_response(run_json(run, self.world.now, listed=False), status=201)

    async def _export(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        self.find_run(request, caller)
        path = request.path.removesuffix("/actions/export")
        return json_response({"url": str(request.url.with_path(f"{path}/debug"))})

    async def _debug(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        run = self.find_run(request, caller)
        now = self.world.now
        lines = [f"{stamp(run.created_at)} run {run.id} created"]
        if run.start_time(now) is not None:
            lines.append(f"{stamp(run.started_at)} run {run.id} started")
        if run.ended_at is not None:
            lines.append(f"{stamp(run.ended_at)} run {run.id} ended: {run.status(now)}")
        return web.Response(text="\n".join(lines) + "\n")

    async def _set_settings(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        allow(caller.admin)
        self.world.max_concurrent_runs = _count((await _object(request)).get("maxConcurrentRunsPerAutomation"))
        return json_response({"maxConcurrentRunsPerAutomation": self.world.max_concurrent_runs})

    async def _definition(self, request: web.Request) -> dict[str, Any]:
        """What an automation is to be like, if all of it can be: refused as a whole otherwise."""
        body = await _object(request)
        _name(body)
        _text(body.get("description") or "", "description")
        if "maxConcurrentRuns" in body and _count(body["maxConcurrentRuns"]) > self.world.max_concurrent_runs:
            raise Refused(400, f"maxConcurrentRuns must not exceed {self.world.max_concurrent_runs}")
        schedules = body.get("schedules", [])
        if not isinstance(schedules, list) or not all(isinstance(schedule, dict) for schedule in schedules):
            raise Refused(400, "schedules must be an array of objects")
        for schedule in schedules:
            _count(schedule.get("interval"))
        return body

    def _add(self, caller: Caller, name: str, **fields: Any) -> Workflow:
        now = self.world.now
        workflow = Workflow(
            id=self.world.new_id(), name=name, owner_id=caller.user_id, created_at=now, updated_at=now, **fields
        )
        self.world.add_workflow(workflow)
        return workflow

    def _apply(self, workflow: Workflow, body: dict[str, Any]) -> None:
        workflow.updated_at = self.world.now
        workflow.description = body.get("description", workflow.description)
        workflow.max_concurrent_runs = body.get("maxConcurrentRuns", workflow.max_concurrent_runs)
        if "schedules" in body:
            # Whole minutes, as the platform rounds; of several the most frequent one.
            seconds = [max(60.0, 60.0 * round(schedule["interval"] / 60)) for schedule in body["schedules"]]
            self.world.reschedule(workflow, min(seconds, default=None))


async def _object(request: web.Request) -> dict[str, Any]:
    body = await json_of(request)
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    return body


def _name(body: dict[str, Any]) -> str:
    name = _text(body.get("name"), "name")
    if not name:
        raise Refused(400, "name is missing")
    return name


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise Refused(400, f"{name} must be text")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 1:
        raise Refused(400, f"a number from 1 belongs where {value} stands")
    return value
