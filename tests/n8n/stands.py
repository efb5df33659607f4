"""Where the story is told: a real n8n with services of its own to call, and our simulator with a clock."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from exporter.clock import ManualClock
from exporter.simulator.n8n import N8nSimulator
from exporter.simulator.n8n.model import CALLS, SECOND, Instance
from tests.n8n.scenario import Json
from tests.n8n.testbed import N8n, n8n
from tests.servers import free_port

KEY = "demo-token"


class RealStand:
    """An n8n, a service that answers what it is asked for, one that can be mended, and a sink."""

    def __init__(self, server: N8n) -> None:
        self.server = server
        self._reports: list[Json] = []
        self._app = web.Application()
        self._app.router.add_route("*", "/status/{status}", self._answer)
        self._app.router.add_post("/sink", self._take)
        self._runners: list[web.AppRunner] = []
        self._mended: web.AppRunner | None = None
        self._mended_port = free_port()

    async def open(self) -> None:
        runner = web.AppRunner(self._app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._runners.append(runner)
        self._url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def close(self) -> None:
        await self.wreck()
        for runner in self._runners:
            await runner.cleanup()

    @property
    def sink(self) -> str:
        return f"{self._url}/sink"

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return await self.server.call(method, path, body)

    async def call_without_key(self, method: str, path: str) -> tuple[int, Any]:
        return await self.server.call(method, path, key=False)

    async def passes(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self._mended_port}/" if service == "mended" else f"{self._url}/{service}"

    async def mend(self) -> None:
        self._mended = web.AppRunner(self._app_of_the_mended())
        await self._mended.setup()
        await web.TCPSite(self._mended, "127.0.0.1", self._mended_port).start()

    async def wreck(self) -> None:
        if self._mended is not None:
            await self._mended.cleanup()
            self._mended = None

    def reports(self) -> list[Json]:
        found, self._reports = self._reports, []
        return found

    async def set_up(self, **settings: Any) -> None:
        await self.server.stop()
        told = {}
        if "concurrency" in settings:
            told["N8N_CONCURRENCY_PRODUCTION_LIMIT"] = str(settings["concurrency"])
        if not settings.get("save_success", True):
            told["EXECUTIONS_DATA_SAVE_ON_SUCCESS"] = "none"
        if "prune_max_count" in settings:
            told["EXECUTIONS_DATA_PRUNE_MAX_COUNT"] = str(settings["prune_max_count"])
            told["EXECUTIONS_DATA_PRUNE_SOFT_DELETE_INTERVAL"] = "1"
        await self.server.start(**told)

    async def kill(self) -> None:
        await self.server.kill()

    async def start(self) -> None:
        await self.server.start(**self.server.settings)

    def _app_of_the_mended(self) -> web.Application:
        async def fine(_request: web.Request) -> web.Response:
            return web.json_response({"ok": True})

        app = web.Application()
        app.router.add_route("*", "/", fine)
        return app

    async def _answer(self, request: web.Request) -> web.Response:
        return web.json_response(text='{"ok":false}', status=int(request.match_info["status"]))

    async def _take(self, request: web.Request) -> web.Response:
        self._reports.append(await request.json())
        return web.Response(status=202)


class SimulatedStand:
    """The simulator, and a clock that moves whenever somebody waits."""

    sink = "http://sink.example/"

    def __init__(self, clock: ManualClock, simulator: N8nSimulator, client: TestClient[Any, Any]) -> None:
        self.clock, self.simulator, self.client = clock, simulator, client

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return await self._ask(method, path, body, {"X-N8N-API-KEY": KEY})

    async def call_without_key(self, method: str, path: str) -> tuple[int, Any]:
        return await self._ask(method, path, None, {})

    async def _ask(self, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        async def ask() -> tuple[int, Any]:
            async with self.client.request(method, path, json=body, headers=headers) as answer:
                raw = await answer.read()
                return answer.status, orjson.loads(raw) if "json" in answer.content_type else raw.decode()

        task = asyncio.create_task(ask())
        while not task.done():
            await asyncio.wait({task}, timeout=0.01)
            if not task.done() and path.endswith("/retry"):
                await self.clock.advance(0.5)
        return task.result()

    async def passes(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        await asyncio.sleep(0)

    def url(self, service: str) -> str:
        return f"http://services.example/{service}"

    async def mend(self) -> None:
        self.simulator.unreachable.pop(self.url("mended"), None)

    async def wreck(self) -> None:
        self.simulator.unreachable[self.url("mended")] = "ECONNREFUSED"

    def reports(self) -> list[Json]:
        return [orjson.loads(delivery.body) for delivery in self.simulator.take_deliveries()]

    async def set_up(self, **settings: Any) -> None:
        told = {"prune_every": 60 * SECOND, "save_success": True, "concurrency": None, **settings}
        self.simulator.set_up(Instance(**told))

    async def kill(self) -> None:
        self.simulator.kill()

    async def start(self) -> None:
        self.simulator.restart(after=0)


@asynccontextmanager
async def real_stand(home: Path) -> AsyncIterator[RealStand]:
    async with n8n(home) as server:
        stand = RealStand(server)
        await stand.open()
        try:
            yield stand
        finally:
            await stand.close()


@asynccontextmanager
async def simulated_stand() -> AsyncIterator[SimulatedStand]:
    clock = ManualClock(1_768_456_800.0)
    simulator = N8nSimulator(clock=clock, workflows=0)
    simulator.unreachable |= {f"http://services.example/status/{answer}": answer for answer in CALLS}
    async with TestClient(TestServer(simulator.app())) as client:
        stand = SimulatedStand(clock, simulator, client)
        await stand.wreck()
        yield stand
