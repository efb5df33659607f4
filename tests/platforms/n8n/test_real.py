"""The folder against a real n8n: what is counted is what n8n lists, and the workflows of the docs do their work."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from exporter.clock import SystemClock
from exporter.model import DeadLetter, ResolvedBy, Via
from exporter.platform import Page, RunKey, WebhookRequest
from exporter.platform.retrying import Standing, Target
from exporter.platforms.n8n import PLATFORM
from exporter.platforms.n8n.config import N8nConfig
from exporter.platforms.n8n.reading import N8nClient
from exporter.platforms.n8n.retrying import N8nRetries
from exporter.wire.api import Api
from exporter.wire.budget import Budget
from tests.n8n.testbed import N8n, n8n
from tests.platforms.known import MemoryKnown
from tests.servers import eventually, free_port

DOCS = Path(__file__).parents[3] / "docs" / "n8n"
Json = dict[str, Any]
NAMES = {"success": "success", "error": "failure", "crashed": "failure", "canceled": "cancelled"}


class Reader:
    """The client of a real instance, what it knows, and where its workflows report to."""

    def __init__(self, server: N8n) -> None:
        self.server = server
        self.config = N8nConfig.model_validate({"platform": "n8n", "url": server.url, "token": server.key})
        clock = SystemClock()
        self.api = Api(
            base_url=server.url,
            clock=clock,
            budget=Budget(clock, share=1.0, default_per_minute=1e6),
            auth=PLATFORM.auth(self.config),
            user_agent="test",
            error_detail=PLATFORM.error_detail,
        )
        self.client = N8nClient(self.config, self.api)
        self.known = MemoryKnown()
        self.wakes: list[RunKey] = []
        self.reported: list[Json] = []

    async def take(self, request: web.Request) -> web.Response:
        assert request.headers["X-Webhook-Token"] == "0123456789abcdef0123456789abcdef"
        body = await request.read()
        self.reported.append(json.loads(body))
        now = self.api.platform_now()
        events = PLATFORM.receive(
            WebhookRequest(method="POST", headers={}, query={}, body=body, received_at=now, base_url=self.config.url)
        )
        self.known.apply(Page(observations=events.observations), stream="webhook", now=now, via=Via.WEBHOOK)
        self.wakes += events.wake
        return web.json_response({}, status=202)

    async def sweep(self) -> None:
        keys, self.wakes = self.wakes, []
        faults = await self.known.complete(self.client, keys, self.api.platform_now())
        for stream in ("workflows", "runs"):
            faults += await self.known.sweep(self.client, stream, self.api.platform_now())
        assert not faults

    async def add(self, definition: Json) -> str:
        """Import a workflow and publish it."""
        status, made = await self.server.call("POST", "/api/v1/workflows", definition)
        assert status == 200, made
        status, answer = await self.server.call("POST", f"/api/v1/workflows/{made['id']}/activate", {})
        assert status == 200, answer
        return str(made["id"])

    async def fire(self, path: str) -> None:
        async def fired() -> bool:
            status, _ = await self.server.call("POST", f"/webhook/{path}", {}, key=False)
            return status == 200

        await eventually(fired)


def imported(name: str, url: str) -> Json:
    """A workflow of the docs, whose address is changed as a person would."""
    text = (DOCS / f"{name}.json").read_text()
    definition: Json = json.loads(text.replace("https://exporter.example.com/webhooks/n8n", url))
    return definition


def chain(name: str, path: str, node: Json, **settings: Any) -> Json:
    hook = {
        "id": "hook",
        "name": "Hook",
        "type": "n8n-nodes-base.webhook",
        "typeVersion": 2,
        "position": [0, 0],
        "webhookId": path,
        "parameters": {"httpMethod": "POST", "path": path, "responseMode": "onReceived"},
    }
    node = {"id": "node", "name": "Node", "position": [220, 0], **node}
    links = {"Hook": {"main": [[{"node": "Node", "type": "main", "index": 0}]]}}
    settings = {"executionOrder": "v1", **settings}
    return {"name": name, "nodes": [hook, node], "connections": links, "settings": settings}


def http(url: str) -> Json:
    parameters = {"method": "GET", "url": url, "options": {"timeout": 3000}}
    return {"type": "n8n-nodes-base.httpRequest", "typeVersion": 4.2, "parameters": parameters}


STOP = {"type": "n8n-nodes-base.stopAndError", "typeVersion": 1, "parameters": {"errorMessage": "on purpose"}}
NOTHING = {"type": "n8n-nodes-base.noOp", "typeVersion": 1, "parameters": {}}


async def listed(server: N8n) -> list[Json]:
    status, answer = await server.call("GET", "/api/v1/executions?limit=250")
    assert status == 200
    return [row for row in answer["data"] if row["mode"] != "error"]


@pytest.mark.n8n
async def test_what_is_counted_is_what_n8n_lists_and_a_retry_heals_what_failed(tmp_path: Path) -> None:
    async with n8n(tmp_path / "n8n") as server:
        reader = Reader(server)
        app = web.Application()
        app.router.add_post("/webhooks/n8n", reader.take)
        port = free_port()
        async with TestServer(app) as sink:
            url = str(sink.make_url("/webhooks/n8n"))
            handler = await reader.add(imported("error-workflow", url))
            ok = await reader.add(chain("ok", "ok", NOTHING, errorWorkflow=handler))
            stops = await reader.add(chain("stops", "stops", STOP, errorWorkflow=handler))
            called = http(f"http://127.0.0.1:{port}/")
            calls = await reader.add(chain("calls", "calls", called, errorWorkflow=handler))
            unsaved = await reader.add(imported("report-success", url))
            lines = [str(line) async for line in reader.client.check()]
            assert not [line for line in lines if line.startswith("problem")], lines
            await reader.sweep()
            for path in ("ok", "ok", "stops", "calls", "reports-its-successes"):
                await reader.fire(path)

            async def over() -> bool:
                ended = [row for row in await listed(server) if row["stoppedAt"] is not None]
                return len(ended) >= 4 and len(reader.reported) >= 3

            await eventually(over)
            await reader.sweep()
            await reader.sweep()
            theirs = Counter((row["workflowId"], NAMES[row["status"]]) for row in await listed(server))
            assert reader.known.counts() == theirs + Counter({(unsaved, "success"): 1})
            assert theirs == {(ok, "success"): 2, (stops, "failure"): 1, (calls, "failure"): 1}
            assert reader.known.errors() == {(stops, "unknown"): 1, (calls, "network"): 1}
            assert {event["event"] for event in reader.reported} == {"run.finished"}
            assert Counter(letter.workflow_id for letter in reader.known.dead_letters.values()) == {stops: 1, calls: 1}

            letter = next(each for each in reader.known.dead_letters.values() if each.workflow_id == calls)
            healed = await healing(reader, letter, port)
            assert healed.resolved_by is ResolvedBy.MANUAL
        await reader.api.close()


async def healing(reader: Reader, letter: DeadLetter, port: int) -> DeadLetter:
    """What was not there answers by now: retry the execution that called it, as the engine does."""
    made = await reader.add(chain("calls well", "calls-well", NOTHING))
    assert made
    reader.config = reader.config.model_copy(update={"save_successes": "all"})
    adapter = N8nRetries(reader.config, reader.api)
    before = await adapter.look(Target(letter=letter))
    assert (before.standing, before.refusal) == (Standing.DEAD, None)

    async def fine(_request: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    app = web.Application()
    app.router.add_get("/", fine)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        sent_at = reader.api.platform_now()
        accepted = await adapter.send([letter], send_by=SystemClock().now() + 60)
    finally:
        await runner.cleanup()
    target = Target(letter=letter, mark=before.mark, sent_at=sent_at, handle=accepted.handles[letter.id])
    look = await adapter.look(target)
    assert look.standing is Standing.RESOLVED
    assert [effort.ours for effort in look.efforts] == [True]
    with_lost_answer = await adapter.look(Target(letter=letter, mark=before.mark, sent_at=sent_at))
    assert [effort.ours for effort in with_lost_answer.efforts] == [True]
    await reader.sweep()
    assert letter.id not in reader.known.dead_letters
    return reader.known.letters[letter.id].dead_letter
