"""The simulated Make behind a real server, and the few words its tests share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from aiohttp.test_utils import TestClient, TestServer

from exporter.clock import ManualClock
from exporter.simulator.make import MakeSimulator

T0 = 1_700_000_000.0
MINUTE = 60.0
Json = Any


@dataclass
class Answer:
    status: int
    kind: str
    text: str
    date: str

    @property
    def json(self) -> Json:
        return orjson.loads(self.text)


@dataclass
class Api:
    """The simulator over HTTP, and its clock."""

    sim: MakeSimulator
    clock: ManualClock
    client: TestClient[Any, Any]
    authorization: str | None = "Token demo-token"

    async def call(self, method: str, path: str, body: Json = None, *, prefix: str = "/api/v2", **query: str) -> Answer:
        headers = {"Authorization": self.authorization} if self.authorization else {}
        data = None if body is None else orjson.dumps(body)
        async with self.client.request(method, prefix + path, params=query, headers=headers, data=data) as response:
            return Answer(response.status, response.content_type, await response.text(), response.headers["Date"])

    async def get(self, path: str, query: dict[str, str] | None = None, **more: str) -> Json:
        answer = await self.call("GET", path, **(query or {}), **more)
        assert answer.status == 200, answer
        return answer.json

    async def scenario(self, workflow_id: str) -> Json:
        return (await self.get(f"/scenarios/{workflow_id}"))["scenario"]

    async def dead_letter(self, dead_letter_id: str) -> Json:
        return (await self.get(f"/dlqs/{dead_letter_id}"))["dlq"]


@asynccontextmanager
async def serving(*, workflows: int = 0, **options: Any) -> AsyncIterator[Api]:
    clock = ManualClock(T0)
    sim = MakeSimulator(clock=clock, workflows=workflows, **{"enforce_limit": False, **options})
    async with TestClient(TestServer(sim.app())) as client:
        yield Api(sim, clock, client)


def ms(at: float) -> int:
    return round(at * 1000)


def epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def executions(rows: list[Json]) -> list[Json]:
    return [row for row in rows if "status" in row]
