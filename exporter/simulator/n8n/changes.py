"""Building workflows through the API."""

from collections.abc import Iterator
from random import Random
from typing import Any

import orjson
from aiohttp import web

from exporter.simulator.core import Handler, json_response
from exporter.simulator.n8n import wire
from exporter.simulator.n8n.habits import version_id
from exporter.simulator.n8n.model import Json, Node, Workflow
from exporter.simulator.n8n.requests import Refusal
from exporter.simulator.n8n.world import World

Route = tuple[str, str, str, Handler]


def edit_routes(world: World, rng: Random) -> Iterator[Route]:
    """Method, path, scope and handler of each. A workflow built here does what its nodes say."""

    def find(request: web.Request) -> Workflow:
        workflow = world.workflows.get(request.match_info["id"])
        if workflow is None:
            raise Refusal(404, "Not Found")
        return workflow

    async def get(request: web.Request) -> web.Response:
        return json_response(wire.workflow(find(request)))

    async def create(request: web.Request) -> web.Response:
        body = await _object(request)
        workflow = Workflow(
            id=world.new_id(),
            name=str(body["name"]),
            nodes=_nodes(body),
            settings=dict(body.get("settings") or {}),
            created=world.now,
            updated=world.now,
            rng=rng,
            project_id=world.project_id,
            version_id=version_id(rng),
            active=False,
            interpreted=True,
        )
        _settle(world, workflow)
        world.workflows[workflow.id] = workflow
        return json_response(wire.workflow(workflow))

    async def replace(request: web.Request) -> web.Response:
        workflow, body = find(request), await _object(request)
        workflow.name, workflow.nodes = str(body["name"]), _nodes(body)
        workflow.settings, workflow.updated = dict(body.get("settings") or {}), world.now
        workflow.version_id = version_id(rng)
        _settle(world, workflow)
        return json_response(wire.workflow(workflow))

    async def delete(request: web.Request) -> web.Response:
        workflow = find(request)
        if workflow.active:
            raise Refusal(409, "Cannot delete a published workflow. Unpublish it before deleting.")
        world.delete_workflow(workflow)
        return json_response(wire.workflow(workflow))

    def setting(name: str, *, to: bool) -> Handler:
        async def set_it(request: web.Request) -> web.Response:
            workflow = find(request)
            setattr(workflow, name, to)
            if name == "archived" and to:
                workflow.active = False
            return json_response(wire.workflow(workflow))

        return set_it

    one = "/api/v1/workflows/{id}"
    yield "GET", one, "workflow:read", get
    yield "POST", "/api/v1/workflows", "workflow:create", create
    yield "PUT", one, "workflow:update", replace
    yield "DELETE", one, "workflow:delete", delete
    for word in ("activate", "publish"):
        yield "POST", f"{one}/{word}", "workflow:activate", setting("active", to=True)
    for word in ("deactivate", "unpublish"):
        yield "POST", f"{one}/{word}", "workflow:deactivate", setting("active", to=False)
    yield "POST", f"{one}/archive", "workflow:update", setting("archived", to=True)


def _settle(world: World, workflow: Workflow) -> None:
    """Which sub-workflow it calls, and how often it starts by itself."""
    index = workflow.find("executeWorkflow")
    if index is not None:
        workflow.child = dict(workflow.nodes[index].parameters.get("workflowId", {})).get("value")
    if workflow.interval is None and workflow.mode == "trigger":
        intervals: list[Json] = dict(workflow.trigger.parameters.get("rule", {})).get("interval", [])
        workflow.interval = float(intervals[0].get("secondsInterval", 60)) if intervals else 60.0
        world.people.schedule_starts(workflow)


async def _object(request: web.Request) -> Json:
    try:
        body: Any = orjson.loads(await request.read())
    except orjson.JSONDecodeError:
        raise Refusal(500, "") from None
    for key in ("name", "nodes", "connections", "settings"):
        if not isinstance(body, dict) or key not in body:
            raise Refusal(400, f"request/body must have required property '{key}'")
    result: Json = body
    return result


def _nodes(body: Json) -> tuple[Node, ...]:
    known = ("id", "name", "type", "typeVersion", "position", "parameters")
    return tuple(
        Node(
            name=given["name"],
            type=given["type"],
            version=given.get("typeVersion", 1),
            parameters=given.get("parameters", {}),
            more={key: value for key, value in given.items() if key not in known},
        )
        for given in body["nodes"]
    )
