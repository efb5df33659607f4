"""A simulated instance behind a real server, its client, and a ledger in memory that knows what the client has said."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiohttp.test_utils import BaseTestServer, TestServer

from exporter.clock import ManualClock
from exporter.model import Via
from exporter.platform import Fault, Page, RunKey, WebhookRequest
from exporter.platforms.n8n import PLATFORM
from exporter.platforms.n8n.config import N8nConfig
from exporter.platforms.n8n.reading import N8nClient
from exporter.platforms.n8n.reading.runs import PAGES_MAX, RunReader
from exporter.simulator.n8n import N8nSimulator
from exporter.wire.api import Api
from exporter.wire.budget import Budget
from tests.platforms.known import MemoryKnown

START = 1_700_000_000.0
LIST = "GET /api/v1/executions"
ONE = "GET /api/v1/executions/{id}"


class JumpingClock(ManualClock):
    """Whoever sleeps has slept: retries and budgets wait without anybody waiting."""

    async def sleep(self, seconds: float) -> None:
        await self.advance(max(0.0, seconds))


class Source:
    """One source under test."""

    def __init__(self, clock: JumpingClock, simulator: N8nSimulator, server: BaseTestServer) -> None:
        self.clock = clock
        self.simulator = simulator
        self.server = server
        self.faults: list[Fault] = []
        self.apis: list[Api] = []
        self.reconfigure()

    async def sweep(self, *streams: str) -> None:
        """Sweep these streams, or workflows and then runs."""
        for stream in streams or ("workflows", "runs"):
            self.faults += await self.known.sweep(self.client, stream, self.api.platform_now())

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        self.simulator.advance(self.clock.now())

    def reconfigure(self, **settings: Any) -> None:
        """A new process with another config; what is known so far is forgotten."""
        url = str(self.server.make_url("")).rstrip("/")
        self.config = N8nConfig.model_validate({"platform": "n8n", "url": url, "token": "demo-token", **settings})
        self.known = MemoryKnown(backfill=self.config.backfill_seconds, counts_tests=self.config.test_runs == "count")
        self.restart()

    def restart(self, *, pages_max: int = PAGES_MAX) -> None:
        """A new process: nothing is left but the ledger."""
        self.api = Api(
            base_url=self.config.url,
            clock=self.clock,
            budget=Budget(self.clock, share=1.0, default_per_minute=1e6),
            auth=PLATFORM.auth(self.config),
            user_agent="test",
            error_detail=PLATFORM.error_detail,
            jitter=lambda: 0.5,
        )
        self.apis.append(self.api)
        self.client = N8nClient(self.config, self.api)
        if pages_max != PAGES_MAX:
            self.client._runs = RunReader(self.config, self.client._calls, self.client._customs, pages_max=pages_max)

    async def deliver(self) -> list[RunKey]:
        """Take the webhooks that are due; returns the runs they ask for."""
        wake: list[RunKey] = []
        for delivery in self.simulator.take_deliveries():
            wake += self.receive(delivery.body)
        return wake

    def receive(self, body: bytes) -> list[RunKey]:
        now = self.api.platform_now()
        events = PLATFORM.receive(
            WebhookRequest(method="POST", headers={}, query={}, body=body, received_at=now, base_url=self.config.url)
        )
        self.known.apply(Page(observations=events.observations), stream="webhook", now=now, via=Via.WEBHOOK)
        return list(events.wake)

    async def complete(self, keys: list[RunKey]) -> None:
        self.faults += await self.known.complete(self.client, keys, self.api.platform_now())

    async def check(self) -> list[str]:
        return [str(line) async for line in self.client.check()]

    def new_faults(self) -> list[Fault]:
        """The faults since they were last asked for."""
        faults, self.faults = self.faults, []
        return faults

    @property
    def baseline(self) -> float:
        assert self.known.first_sweep_at is not None
        return self.known.first_sweep_at - self.config.backfill_seconds

    def really(self) -> Counter[tuple[str, str]]:
        """(workflow, result) -> runs that really ended since the baseline."""
        return self.simulator.truth().counts(since=self.baseline)


@asynccontextmanager
async def instance(*, middlewares: Sequence[Any] = (), **simulated: Any) -> AsyncIterator[Source]:
    """An instance at START with what the simulator makes of these options, not swept yet."""
    clock = JumpingClock(START)
    simulator = N8nSimulator(clock=clock, **simulated)
    app = simulator.app()
    app.middlewares.extend(middlewares)
    async with TestServer(app) as server:
        made = Source(clock, simulator, server)
        try:
            yield made
        finally:
            for api in made.apis:
                await api.close()


@contextmanager
def counting(made: Source) -> Iterator[Counter[str]]:
    """The requests made inside, by endpoint; to be read after the block."""
    before = Counter(made.simulator.requests)
    spent: Counter[str] = Counter()
    yield spent
    spent.update(Counter(made.simulator.requests) - before)
