"""A Make source in a test: the simulated platform on a real server, the real client, and what it has told so far."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Middleware

from exporter.clock import ManualClock
from exporter.platform import Fault, RunKey
from exporter.platforms.make import PLATFORM
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.reading import MakeClient
from exporter.simulator.core import TrueRun
from exporter.simulator.make import MakeSimulator
from exporter.source import make_api
from exporter.wire.api import Api
from tests.platforms.known import MemoryKnown

T0 = 1_700_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
LOG, FEED, CAUSE = "GET /scenarios/{id}/logs", "GET /scenarios/logs", "GET /scenarios/{id}/executions/{executionId}"
EVENTS = "GET /scenarios/{id}/logs/{executionId}/p"
BY_FEED_AND_BY_LOGS = pytest.mark.parametrize("by_feed", [True, False], ids=["feed", "logs"])
STREAMS = ("quota", "workflows", "runs", "dead_letters")
ROOT = "/api/v2"


class SkippingClock(ManualClock):
    """Whoever waits on it moves it: nothing here is worth waiting for."""

    async def sleep(self, seconds: float) -> None:
        await self.advance(seconds)


@dataclass(kw_only=True)
class Source:
    sim: MakeSimulator
    clock: SkippingClock
    config: MakeConfig
    api: Api
    client: MakeClient
    known: MemoryKnown = field(default_factory=MemoryKnown)

    async def sweep(self, *streams: str) -> list[Fault]:
        """Sweep these streams, by default all, and store what they tell."""
        faults: list[Fault] = []
        for stream in streams or STREAMS:
            faults += await self.known.sweep(self.client, stream, self.api.platform_now())
        return faults

    async def complete(self, *keys: RunKey) -> list[Fault]:
        return await self.known.complete(self.client, keys, self.api.platform_now())

    async def rounds(self, count: int, *, every: float = 60.0) -> list[Fault]:
        """So many polls of all streams."""
        faults: list[Fault] = []
        for _ in range(count):
            await self.clock.advance(every)
            faults += await self.sweep()
        return faults

    def restart(self, **changed: Any) -> None:
        """Forget all but what is durable, and take a changed config."""
        self.config = self.config.model_copy(update=changed)
        self.client = MakeClient(self.config, self.api)
        self.known = self.known.copy()

    def set_option(self, name: str, value: object) -> None:
        """Have the platform behave otherwise from now on."""
        object.__setattr__(self.sim.options, name, value)

    def asked(self) -> Counter[str]:
        """Calls since this was last called, by template."""
        asked = Counter({key.replace(ROOT, ""): count for key, count in self.sim.requests.items()})
        self.sim.requests.clear()
        return asked

    def add_run(
        self, workflow_id: str, *, ended: float = -1.0, took: float = 5.0, result: str = "success", **more: Any
    ) -> str:
        """A run that ends so many seconds from now."""
        ended_at = round(self.clock.now() + ended, 3)
        return self.sim.add_run(workflow_id, started_at=ended_at - took, ended_at=ended_at, result=result, **more)

    @property
    def first_sweep_at(self) -> float:
        assert self.known.first_sweep_at is not None
        return self.known.first_sweep_at

    def true_counts(self, *, since: float | None = None) -> Counter[tuple[str, str]]:
        return self.sim.truth().counts(since=self.first_sweep_at if since is None else since)

    def true_failures(self) -> list[TrueRun]:
        return [r for r in self.sim.truth().runs if r.result == "failure" and r.ended_at >= self.first_sweep_at]

    def true_errors(self) -> Counter[tuple[str, str]]:
        return Counter((r.workflow_id, str(r.error_class)) for r in self.true_failures())


@asynccontextmanager
async def source(
    *,
    workflows: int = 0,
    seed: int = 1,
    start: float = T0,
    config: dict[str, Any] | None = None,
    before: Middleware | None = None,
    **options: Any,
) -> AsyncIterator[Source]:
    """``options`` are the simulator's; ``config`` adds to, or replaces, what is needed at least.

    ``before`` stands between the client and the platform: a platform that answers otherwise.
    """
    clock = SkippingClock(start)
    options = {"enforce_limit": False, "api_limit": 1_000_000, **options}
    sim = MakeSimulator(clock=clock, workflows=workflows, seed=seed, **options)
    app = sim.app()
    if before is not None:
        app.middlewares.append(before)
    async with TestServer(app) as server:
        scope = {} if config and "team_ids" in config else {"organization_id": 9}
        section = MakeConfig.model_validate(
            {
                "platform": "make",
                "url": str(server.make_url("")),
                "token": "demo-token",
                "poll": {"budget_share": 1.0, "requests_per_minute": 1_000_000},
                **scope,
                **(config or {}),
            }
        )
        api = make_api(section, PLATFORM, clock)
        try:
            known = MemoryKnown(backfill=section.backfill_seconds)
            yield Source(sim=sim, clock=clock, config=section, api=api, client=MakeClient(section, api), known=known)
        finally:
            await api.close()
