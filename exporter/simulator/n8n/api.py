"""What the simulated n8n answers: its public API under ``/api/v1``, its health, its webhooks.

Everything as observed on a server of version 2.41.1. What other versions do differently are switches of ``Version``.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

import orjson
from aiohttp import web

from exporter.simulator.core import Engine, Handler, json_response
from exporter.simulator.n8n import wire
from exporter.simulator.n8n.changes import edit_routes
from exporter.simulator.n8n.model import SECOND, Execution, Json, Plan
from exporter.simulator.n8n.requests import Refusal, body_of, cursor_of, encode, flag, limit_of
from exporter.simulator.n8n.world import World
from exporter.simulator.retries import RetryPlan, cut

STATUSES = ("canceled", "crashed", "error", "new", "running", "success", "unknown", "waiting")
#: Before 2.x, these were not to be asked for.
NEW_STATUSES = ("canceled", "crashed", "new", "running")
FILTERS = (
    "status", "workflowId", "projectId", "startedAfter", "startedBefore", "includeData", "ignoreDataSizeLimit",
    "redactExecutionData",
)  # fmt: skip
OPTIONAL = ("retryOf", "retrySuccessId", "waitTill", "startedAt")
SCOPES = (
    "workflow:list", "workflow:read", "workflow:create", "workflow:update", "workflow:delete", "workflow:activate",
    "workflow:deactivate", "execution:list", "execution:read", "execution:retry", "execution:stop", "execution:delete",
    "insights:read", "tag:list", "project:list",
)  # fmt: skip
BROKEN = '<!DOCTYPE html>\n<html lang="en">\n<body>\n<pre>Internal Server Error</pre>\n</body>\n</html>\n'
NO_ROUTE = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Error</title>\n</head>\n<body>\n'
    "<pre>Cannot {} {}</pre>\n</body>\n</html>\n"
)
#: How often a retry that goes on until told looks whether it was (seconds).
LOOK_EVERY = 1.0


def _not_yet(request: web.Request) -> web.Response:
    """While it starts: it is not ready, and has no routes."""
    if request.path.endswith("/readiness"):
        return json_response({"status": "error"}, status=503)
    return web.Response(status=404, text=NO_ROUTE.format(request.method, request.path), content_type="text/html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What this version of n8n knows. The default is 2.41."""

    ignores_unknown: bool = True  # query parameters; else they are a 400, as in 2.35
    started_after: bool = True
    retry: bool = True
    stop: bool = True
    new_statuses: bool = True
    discover: bool = True
    sizes: bool = True  # of the data of an execution; before the summer of 2026 it did not tell


class Api:
    """The endpoints, over a world."""

    def __init__(
        self,
        *,
        engine: Engine,
        world: World,
        keys: dict[str, frozenset[str]],
        version: Version,
        plans: deque[RetryPlan],
        planned: Callable[[RetryPlan, Execution], Plan | None],
    ) -> None:
        """``keys``: API key -> its scopes. ``plans`` are those of the coming retries, ``planned`` makes them exact."""
        self._engine = engine
        self._world = world
        self._keys = keys
        self._version = version
        self._plans = plans
        self._planned = planned
        self._damage = engine.stream("damage")
        self._shifted = 0  # rows inserted before the workflows since their first page was read

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._engine.middleware, self._guard])
        add, version = app.router.add_route, self._version
        add("GET", "/healthz", self._health)
        add("GET", "/healthz/readiness", self._health)
        add("GET", "/api/v1/openapi.yml", self._openapi)
        add("POST", "/webhook/{path}", self._webhook)
        add("GET", "/api/v1/executions", self._scoped("execution:list", self._list))
        add("GET", "/api/v1/executions/{id}", self._scoped("execution:read", self._get))
        add("DELETE", "/api/v1/executions/{id}", self._scoped("execution:delete", self._delete))
        if version.stop:
            add("POST", "/api/v1/executions/stop", self._scoped("execution:stop", self._stop_many))
            add("POST", "/api/v1/executions/{id}/stop", self._scoped("execution:stop", self._stop))
        if version.retry:
            add("POST", "/api/v1/executions/{id}/retry", self._scoped("execution:retry", self._retry))
        if version.discover:
            add("GET", "/api/v1/discover", self._scoped(None, self._discover))
        add("GET", "/api/v1/workflows", self._scoped("workflow:list", self._workflows))
        add("GET", "/api/v1/insights/summary", self._scoped("insights:read", self._insights))
        add("GET", "/api/v1/tags", self._scoped("tag:list", self._tags))
        add("GET", "/api/v1/projects", self._scoped("project:list", self._projects))
        for method, path, scope, handler in edit_routes(self._world, self._engine.stream("edits")):
            add(method, path, self._scoped(scope, handler))
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Nobody answers while it is down; whatever else goes wrong is a message and nothing more."""
        if request.path.startswith("/_sim/"):
            return await handler(request)
        if self._world.down:
            return _not_yet(request) if self._world.starting else cut(request)
        try:
            return await handler(request)
        except Refusal as refusal:
            if refusal.status == 500:
                return web.Response(status=500, text=BROKEN, content_type="text/html")
            return json_response({"message": str(refusal)}, status=refusal.status)
        except web.HTTPMethodNotAllowed:
            return json_response({"message": f"{request.method} method not allowed"}, status=405)
        except web.HTTPNotFound:
            return json_response({"message": "not found"}, status=404)

    def _scoped(self, scope: str | None, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            scopes = self._keys.get(request.headers.get("X-N8N-API-KEY", ""))
            if scopes is None:
                raise Refusal(401, "Unauthorized")
            if scope is not None and scope not in scopes:
                raise Refusal(403, "Forbidden")
            return await handler(request)

        return guarded

    # What the instance is.

    async def _health(self, _request: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def _discover(self, request: web.Request) -> web.Response:
        scopes = sorted(self._keys[request.headers["X-N8N-API-KEY"]])
        return json_response(
            {"data": {"scopes": scopes, "resources": {}, "filters": {}, "specUrl": "/api/v1/openapi.yml"}}
        )

    async def _openapi(self, _request: web.Request) -> web.Response:
        """As much of it as tells what this version knows."""
        version = self._version
        lines = ["openapi: 3.0.0", "info:", "  title: n8n Public API", "  version: 1.1.1", "paths:", "  /executions:"]
        names = ["includeData", "status", "workflowId", "projectId", "limit", "cursor"]
        names += ["startedAfter", "startedBefore"] * version.started_after
        lines += ["    get:", "      parameters:", *(f"        - name: {name}\n          in: query" for name in names)]
        lines += ["  /executions/{id}:", "    get: {}"]
        lines += ["  /executions/{id}/retry:", "    post: {}"] * version.retry
        lines += ["  /executions/{id}/stop:", "    post: {}"] * version.stop
        return web.Response(text="\n".join([*lines, "  /workflows:", "    get: {}", ""]), content_type="text/yaml")

    async def _insights(self, request: web.Request) -> web.Response:
        units = {"total": "count", "failed": "count", "failureRate": "ratio", "timeSaved": "minute",
                 "averageRunTime": "millisecond"}  # fmt: skip
        return json_response({name: {"value": 0, "deviation": None, "unit": unit} for name, unit in units.items()})

    async def _projects(self, _request: web.Request) -> web.Response:
        what = "feat:projectRole:admin"
        raise Refusal(
            403,
            f"Your license does not allow for {what}. To enable {what}, please upgrade to a license that supports this "
            "feature.",
        )

    async def _tags(self, _request: web.Request) -> web.Response:
        return json_response({"data": [], "nextCursor": None})

    async def _webhook(self, request: web.Request) -> web.Response:
        """What calls a workflow from outside. Its answer is held back while the execution has no place."""
        path, world = request.match_info["path"], self._world
        called = (w for w in world.workflows.values() if w.active and w.trigger.parameters.get("path") == path)
        workflow = next((w for w in called if w.mode == "webhook"), None)
        if workflow is None:
            text = f'The requested webhook "POST {path}" is not registered.'
            return json_response({"code": 404, "message": text}, status=404)
        try:
            body = orjson.loads(await request.read() or b"{}")
        except orjson.JSONDecodeError:
            body = {}
        execution = world.start(workflow, "webhook", body=body)
        while execution.status == "new":
            await self._engine.clock.sleep(LOOK_EVERY)
            world.advance(round(self._engine.clock.now() * SECOND))
        return json_response({"message": "Workflow was started"})

    # Reading.

    async def _list(self, request: web.Request) -> web.Response:
        query = self._query(request, *FILTERS)
        status, limit, below = self._status(request), limit_of(query), math.inf
        after, before = self._moment(query, "startedAfter"), self._moment(query, "startedBefore")
        cursor = cursor_of(query)
        if cursor is not None:
            if not str(cursor.get("lastId", "")).isdecimal():
                raise Refusal(400, "An invalid cursor was provided")
            limit, below = cursor["limit"], int(cursor["lastId"])
        found: list[Execution] = []
        more = False
        for execution in self._candidates(status):
            if execution.id >= below or (status is None and execution.status == "running"):
                continue
            if status is not None and execution.status != status:
                continue
            if query.get("workflowId") and execution.workflow.id != query["workflowId"]:
                continue
            if query.get("projectId") and execution.workflow.project_id != query["projectId"]:
                continue
            if after is not None and (execution.started is None or execution.started < after):
                continue
            if before is not None and (execution.started is None or execution.started > before):
                continue
            if len(found) == limit:
                more = True
                break
            found.append(execution)
        whole = flag(query, "includeData")
        rows: list[Json] = []
        for execution in found:
            shown = self._damaged(self._whole(execution) if whole else wire.row(execution))
            rows.extend([shown, shown] if self._engine.strikes(self._engine.faults.duplicates) else [shown])
        following = encode({"lastId": str(found[-1].id), "limit": limit}) if more else None
        return json_response({"data": rows, "nextCursor": following})

    def _candidates(self, status: str | None) -> Iterable[Execution]:
        """Rows, the newest first."""
        rows = self._world.open if status in ("new", "running", "waiting") else self._world.rows
        return sorted(rows.values(), key=lambda e: -e.id) if rows is self._world.open else reversed(rows.values())

    async def _get(self, request: web.Request) -> web.Response:
        query = self._query(request, "includeData", "redactExecutionData", "ignoreDataSizeLimit")
        execution = self._find(request, "Not Found")
        shown = self._whole(execution) if flag(query, "includeData") else wire.detail(execution)
        return json_response(self._damaged(shown))

    def _whole(self, execution: Execution) -> Json:
        origin = self._world.rows.get(execution.retry_of) if execution.retry_of is not None else None
        return wire.with_data(execution, self._world.now, origin)

    async def _workflows(self, request: web.Request) -> web.Response:
        query = self._query(request, "active", "name", "tags", "projectId", "excludePinnedData")
        limit, offset = limit_of(query), 0
        cursor = cursor_of(query)
        if cursor is not None:
            if not isinstance(cursor.get("offset"), int):
                raise Refusal(400, "An invalid cursor was provided")
            limit, offset = cursor["limit"], cursor["offset"]
            self._shifted += self._engine.strikes(self._engine.faults.shifting_pages)
        else:
            self._shifted = 0
        active = query.get("active")
        found = [
            w
            for w in self._world.workflows.values()
            if (active is None or w.active == (active == "true"))
            and query.get("name", w.name) == w.name
            and query.get("projectId", w.project_id) == w.project_id
            and set(filter(None, query.get("tags", "").split(","))) <= set(w.tags)
        ]
        start = max(0, offset - self._shifted)
        pinned = query.get("excludePinnedData") != "true"
        rows = [self._damaged_workflow(wire.workflow(w, pinned=pinned)) for w in found[start : start + limit]]
        more = start + limit < len(found)
        return json_response(
            {"data": rows, "nextCursor": encode({"limit": limit, "offset": offset + limit}) if more else None}
        )

    def _damaged(self, item: Json) -> Json:
        """The same execution, shown worse than it is."""
        faults, strikes = self._engine.faults, self._engine.strikes
        if not self._version.sizes:
            item.pop("jsonSizeBytes", None)
            item.pop("binaryDataSizeBytes", None)
        if strikes(faults.missing_fields):
            item.pop(self._damage.choice(OPTIONAL), None)
        if strikes(faults.null_numbers):
            item["jsonSizeBytes"] = None
        if strikes(faults.unknown_status):
            item["status"] = "paused"
        return item

    def _damaged_workflow(self, item: Json) -> Json:
        if self._engine.strikes(self._engine.faults.missing_fields):
            item.pop(self._damage.choice(("tags", "shared", "settings", "triggerCount", "activeVersion")), None)
        if self._engine.strikes(self._engine.faults.null_numbers):
            item["triggerCount"] = None
        return item

    # Changing.

    async def _delete(self, request: web.Request) -> web.Response:
        execution = self._find(request, "Not Found")
        if execution.status == "running":
            raise Refusal(400, "Cannot delete a running execution")
        shown = {**wire.detail(execution), "id": execution.id}
        self._world.delete(execution)
        return json_response(shown)

    async def _stop(self, request: web.Request) -> web.Response:
        execution = self._find(request, "Failed to find execution to stop")
        if execution.over:
            raise Refusal(
                409,
                f"Only running or waiting executions can be stopped and {execution.id} is currently {execution.status}",
            )
        self._world.stop(execution)
        return json_response(wire.summary(execution))

    async def _stop_many(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        statuses = body.get("status")
        if not isinstance(statuses, list) or not statuses:
            raise Refusal(400, "request/body must have required property 'status'")
        after, before = self._moment(body, "startedAfter"), self._moment(body, "startedBefore")
        chosen = [
            e
            for e in self._world.open.values()
            if e.status in statuses
            and body.get("workflowId") in (None, "", "all", e.workflow.id)
            and (after is None or (e.started or 0) >= after)
            and (before is None or (e.started or 0) <= before)
        ]
        for execution in chosen:
            if not execution.over:
                self._world.stop(execution)
        return json_response({"stopped": len(chosen)})

    async def _retry(self, request: web.Request) -> web.Response:
        """Answers when the new execution has ended or begun to wait. Nothing guards it."""
        await body_of(request)
        execution, world = self._find(request, 'The execution with the ID "{id}" does not exist.'), self._world
        root = world.root(execution)
        world.retry_calls[root.id] += 1
        if execution.status == "new":
            raise Refusal(409, "Execution is queued to run (not yet started) so it cannot be retried")
        if execution.finished:
            raise Refusal(409, "The execution succeeded, so it cannot be retried.")
        plan = self._plans.popleft() if self._plans else RetryPlan()
        if plan.fate == "lost":
            return cut(request)
        if plan.fate == "beaten":
            world.retry(execution, plan=self._planned(plan, execution), by_api=False)
        if plan.delay > 0:
            due = self._engine.clock.now() + plan.delay
            world.schedule(round(due * SECOND), self._retry_late, execution, plan)
            if plan.fate == "done":
                await self._engine.clock.sleep(plan.delay)
            return cut(request) if plan.fate != "error" else self._engine.error(500, "Internal Server Error")
        retry = world.retry(execution, plan=self._planned(plan, execution), by_api=True)
        if plan.fate == "cut":
            return cut(request)
        if plan.fate == "error":
            return self._engine.error(500, "Internal Server Error")
        return await self._ended(request, retry, execution)

    def _retry_late(self, when: int, execution: Execution, plan: RetryPlan) -> None:
        if not execution.gone and not self._world.down:
            self._world.retry(execution, at=when, plan=self._planned(plan, execution), by_api=True)

    async def _ended(self, request: web.Request, retry: Execution, origin: Execution) -> web.Response:
        world, clock = self._world, self._engine.clock
        while not retry.over and retry.status != "waiting":
            due = LOOK_EVERY if retry.due is None else max(0.001, retry.due / SECOND - clock.now())
            await clock.sleep(due)
            world.advance(round(clock.now() * SECOND))
            if world.down:
                return cut(request)
            await asyncio.sleep(0)
        return json_response(wire.retried(retry, world.now, origin))

    # What requests say.

    def _find(self, request: web.Request, text: str) -> Execution:
        asked = request.match_info["id"]
        if not asked.isdecimal():
            raise Refusal(400, "request/params/executionId must be a positive integer")
        execution = self._world.rows.get(int(asked))
        if execution is None:
            raise Refusal(404, text.replace("{id}", asked))
        return execution

    def _query(self, request: web.Request, *names: str) -> dict[str, str]:
        """The parameters this version knows; the others are as if they were not there, or a refusal."""
        known = {"limit", "cursor", *names}
        if not self._version.started_after:
            known -= {"startedAfter", "startedBefore"}
        for name in request.query:
            if name not in known and not self._version.ignores_unknown:
                raise Refusal(400, f"Unknown query parameter '{name}'")
        return {name: value for name, value in request.query.items() if name in known}

    def _status(self, request: web.Request) -> str | None:
        asked = request.query.getall("status", [])
        if not asked:
            return None
        known = [s for s in STATUSES if self._version.new_statuses or s not in NEW_STATUSES]
        choices = " | ".join(f"'{status}'" for status in known)
        if len(asked) > 1:
            raise Refusal(400, f"request/query/status Expected {choices}, received array")
        if asked[0] not in known:
            raise Refusal(400, f"request/query/status Invalid enum value. Expected {choices}, received '{asked[0]}'")
        return asked[0]

    def _moment(self, query: Json, name: str) -> int | None:
        text = query.get(name)
        if text is None:
            return None
        try:
            moment = datetime.fromisoformat(str(text))
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None or "T" not in str(text):
            raise Refusal(400, f"request/query/{name} Invalid datetime")
        return round(moment.timestamp() * SECOND)
