"""A simulated tenant behind a real server, its client, and a ledger in memory that knows what the client has told."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiohttp.test_utils import BaseTestServer, TestServer

from exporter.clock import ManualClock
from exporter.model import Via
from exporter.platform import Fault, Page, RunKey, WebhookRequest
from exporter.platforms.qlik import PLATFORM
from exporter.platforms.qlik.config import QlikConfig
from exporter.platforms.qlik.reading import QlikClient
from exporter.simulator.qlik import QlikSimulator
from exporter.wire.api import Api
from exporter.wire.budget import Budget
from exporter.wire.errors import ApiError
from tests.platforms.known import MemoryKnown

START = 1_700_000_000.0
API = "/api/workflows/automations"
LIST = f"GET {API}"
RUNS = f"GET {API}/{{id}}/runs"
RUN = f"GET {API}/{{id}}/runs/{{runId}}"


class JumpingClock(ManualClock):
    """Whoever sleeps has slept: retries and budgets wait without anybody waiting."""

    async def sleep(self, seconds: float) -> None:
        await self.advance(max(0.0, seconds))


class Tenant:
    """One source under test."""

    def __init__(self, clock: JumpingClock, simulator: QlikSimulator, server: BaseTestServer) -> None:
        self.clock = clock
        self.simulator = simulator
        self.server = server
        self.faults: list[Fault] = []
        self.endpoints: Counter[tuple[str, str]] = Counter()  # (endpoint, code) of every request
        self.apis: list[Api] = []
        self.reconfigure()

    async def sweep(self, *streams: str) -> None:
        """Sweep these streams, or workflows and then runs."""
        for stream in streams or ("workflows", "runs"):
            self.faults += await self.known.sweep(self.client, stream, self.api.platform_now())

    async def try_sweep(self) -> bool:
        """Sweep as the poller does: a failed sweep is over, and the next stream has its turn."""
        whole = True
        for stream in ("workflows", "runs"):
            try:
                await self.sweep(stream)
            except ApiError:
                whole = False
        return whole

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        self.simulator.advance(self.clock.now())

    def reconfigure(self, **settings: Any) -> None:
        """A new process with another config; a token is given unless ``settings`` name another credential.

        What is known so far is forgotten.
        """
        credential = {} if "oauth" in settings else {"token": "demo-token"}
        url = str(self.server.make_url(""))
        self.config = QlikConfig.model_validate({"platform": "qlik", "url": url, **credential, **settings})
        self.known = MemoryKnown(backfill=self.config.backfill_seconds, counts_tests=self.config.test_runs == "count")
        self.restart()

    def restart(self, **client_options: int) -> None:
        """A new process: nothing is left but the ledger."""

        def count(endpoint: str, code: str) -> None:
            self.endpoints[endpoint, code] += 1

        self.api = Api(
            base_url=self.config.url,
            clock=self.clock,
            budget=Budget(self.clock, share=1.0, default_per_minute=1e6),
            auth=PLATFORM.auth(self.config),
            user_agent="test",
            on_request=count,
            error_detail=PLATFORM.error_detail,
            jitter=lambda: 0.5,
        )
        self.apis.append(self.api)
        self.client = QlikClient(self.config, self.api, **client_options)

    async def deliver(self) -> list[RunKey]:
        """Take the webhooks that are due; returns the runs they ask for."""
        wake: list[RunKey] = []
        now = self.api.platform_now()
        for delivery in self.simulator.take_deliveries():
            events = PLATFORM.receive(
                WebhookRequest(
                    method=delivery.method,
                    headers={name.lower(): value for name, value in delivery.headers.items()},
                    query={},
                    body=delivery.body,
                    received_at=now,
                    base_url=self.config.url,
                )
            )
            self.known.apply(Page(observations=events.observations), stream="webhook", now=now, via=Via.WEBHOOK)
            wake += events.wake
        return wake

    async def complete(self, keys: list[RunKey]) -> None:
        self.faults += await self.known.complete(self.client, keys, self.api.platform_now())

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

    def real_causes(self) -> Counter[tuple[str, str]]:
        """(workflow, error class) -> runs that really failed since the baseline."""
        runs = self.simulator.truth().runs
        return Counter(
            (r.workflow_id, r.error_class) for r in runs if r.error_class is not None and r.ended_at >= self.baseline
        )


@asynccontextmanager
async def tenant(*, middlewares: Sequence[Any] = (), **simulated: Any) -> AsyncIterator[Tenant]:
    """A tenant at START with what the simulator makes of these options, not swept yet. Its open dead letters are the
    simulator's: those that only a retry closes.
    """
    clock = JumpingClock(START)
    simulator = QlikSimulator(clock=clock, tier1_per_minute=10**9, **simulated)
    app = simulator.app()
    app.middlewares.extend(middlewares)
    async with TestServer(app) as server:
        made = Tenant(clock, simulator, server)
        try:
            yield made
        finally:
            for api in made.apis:
                await api.close()


@contextmanager
def counting(made: Tenant) -> Iterator[Counter[str]]:
    """The requests made inside, by endpoint; to be read after the block."""
    before = Counter(made.simulator.requests)
    spent: Counter[str] = Counter()
    yield spent
    spent.update(Counter(made.simulator.requests) - before)
