"""A simulated Etlworks account on a real server, a client and what is known: what the tests of the client share."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp.test_utils import TestServer

from exporter.clock import ManualClock
from exporter.model import Via
from exporter.platform import Client, Fault, Page, WebhookRequest
from exporter.platforms.etlworks import PLATFORM
from exporter.platforms.etlworks.config import EtlworksConfig
from exporter.simulator.core import Delivery, TrueDeadLetter
from exporter.simulator.etlworks import EtlworksSimulator
from exporter.wire.api import Api
from exporter.wire.budget import Budget
from exporter.wire.errors import ApiError
from tests.platforms.known import MemoryKnown

NOW = 1_700_000_100.0  # a multiple of 15 minutes
ISSUE = "POST /rest/v1/token-auth/issue"


class HastyClock(ManualClock):
    """Whoever sleeps moves the time on: pauses and backoffs take no real time."""

    async def sleep(self, seconds: float) -> None:
        await self.advance(seconds)


class Account:
    """A simulator, and a client that reads it through the real wire."""

    def __init__(self, sim: EtlworksSimulator, clock: HastyClock, config: EtlworksConfig, per_minute: float) -> None:
        self.per_minute = per_minute
        self.sim, self.clock, self.config = sim, clock, config
        self.known = MemoryKnown(superseded_by_success=PLATFORM.superseded_by_success)
        self.codes: Counter[str] = Counter()
        self.api: Api
        self.client: Client
        self.connect()

    def connect(self) -> None:
        """A new wire and a new client, which remember nothing."""
        self.api = Api(
            base_url=self.config.url,
            clock=self.clock,
            budget=Budget(self.clock, share=1.0, default_per_minute=self.per_minute),
            auth=PLATFORM.auth(self.config),
            user_agent="test",
            error_detail=PLATFORM.error_detail,
            on_request=lambda endpoint, code: self.codes.update([code]),
            jitter=lambda: 0.5,
        )
        self.client = PLATFORM.connect(self.config, self.api)

    async def restart(self) -> None:
        await self.api.close()
        self.known = self.known.copy()
        self.connect()

    async def sweep(self, stream: str = "runs") -> list[Fault]:
        """Read one stream once; returns the faults, raises what the client raises."""
        return await self.known.sweep(self.client, stream, self.api.platform_now())

    async def live(self, sweeps: int, *, every: float = 60.0, restarts: bool = False) -> list[Fault]:
        """Let time pass and sweep, so often, the flows each tenth time; what fails is left to the next sweep."""
        faults: list[Fault] = []
        due = self.clock.now()
        for number in range(sweeps):
            due += every
            await self.clock.advance(max(0.0, due - self.clock.now()))
            for stream in ("workflows", "runs") if number % 10 == 0 else ("runs",):
                try:
                    faults += await self.sweep(stream)
                except ApiError as error:
                    faults.append(Fault(kind=error.kind, detail=str(error)))
            if restarts and number % 20 == 0:
                await self.restart()
        return faults

    async def deliver(self) -> None:
        """Take the webhooks that are due, and complete the runs they name."""
        for delivery in self.sim.take_deliveries():
            told = PLATFORM.receive(as_request(delivery, self.clock.now()))
            page = Page(observations=told.observations)
            self.known.apply(page, stream="webhook", now=self.clock.now(), via=Via.WEBHOOK)
            await self.known.complete(self.client, told.wake, self.api.platform_now())

    def asked(self) -> int:
        """Requests since the last call."""
        requests = sum(self.sim.requests.values())
        self.sim.requests.clear()
        return requests

    def run_counts(self) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
        """What was counted since the baseline, and what really ended since then."""
        return self.known.counts(), self.sim.truth().counts(since=self.known.first_sweep_at or 0.0)

    def true_letters(self) -> list[TrueDeadLetter]:
        """The dead letters that really opened since the baseline."""
        since = self.known.first_sweep_at or 0.0
        return [letter for letter in self.sim.truth().dead_letters if letter.opened_at >= since]


def as_request(delivery: Delivery, now: float) -> WebhookRequest:
    return WebhookRequest(
        method=delivery.method,
        headers={name.lower(): value for name, value in delivery.headers.items()},
        query={},
        body=delivery.body,
        received_at=now,
        base_url="https://app.etlworks.com",
    )


@asynccontextmanager
async def account(
    *, workflows: int = 0, config: dict[str, Any] | None = None, per_minute: float = 1e6, **options: Any
) -> AsyncIterator[Account]:
    """``config`` replaces fields of the source's section, ``options`` go to the simulator."""
    clock = HastyClock(NOW)
    sim = EtlworksSimulator(clock=clock, workflows=workflows, **options)
    async with TestServer(sim.app()) as server:
        section = {"platform": "etlworks", "url": str(server.make_url("/")), "token": "demo-token"}
        made = Account(sim, clock, EtlworksConfig.model_validate({**section, **(config or {})}), per_minute)
        try:
            yield made
        finally:
            await made.api.close()


def letter_ids(letters: Sequence[TrueDeadLetter]) -> list[str]:
    return sorted(letter.dead_letter_id for letter in letters)
