"""The whole service against the simulators, moved by a manual clock: what end-to-end tests are made of.

Nothing runs by itself: a test moves time, has every stream swept and webhooks delivered, and compares what is exposed
with what the simulators know to be true. Requests that wait for their budget are let through by moving time on.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from exporter import app
from exporter.clock import Clock, ManualClock
from exporter.simulator.fleet import Fleet, demo_config
from exporter.store.script import StoreError

T = TypeVar("T")
#: Turns of the loop in which nobody asks or is answered before all are taken to be at rest. A request takes fewer.
QUIET_TURNS = 20


class WatchedClock(ManualClock):
    """A manual clock that knows how many wait for it."""

    waiting = 0

    async def sleep(self, seconds: float) -> None:
        self.waiting += 1
        try:
            await super().sleep(seconds)
        finally:
            self.waiting -= 1


class Deployment:
    """A fleet of simulators, a clock, and the service reading them. Make one with ``deployment``."""

    def __init__(self, *, clock: WatchedClock, fleet: Fleet, folder: Path, changes: Mapping[str, Any]) -> None:
        self.clock = clock
        self.ours: Clock = clock  # the service's own: a test may have it wrong
        self.fleet = fleet
        self.config = demo_config(fleet, listen="127.0.0.1:0", database=folder / "e2e.db", changes=changes)
        self._stack = AsyncExitStack()
        self.service: app.Service

    async def start(self) -> None:
        self.service = await self._stack.enter_async_context(app.service(self.config, clock=self.ours, loops=False))
        self.session = await self._stack.enter_async_context(ClientSession())

    async def stop(self) -> None:
        await self._stack.aclose()
        self._stack = AsyncExitStack()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.service.port}"

    async def drive(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work that may wait for time to pass: whenever it does, and all else is at rest, a second passes."""
        task = asyncio.ensure_future(work)
        while not task.done():
            if not await self._at_rest():
                continue
            if self.clock.waiting:
                await self.clock.advance(1.0)
            else:  # a simulator that is told to be slow, for example
                await asyncio.wait({task}, timeout=0.01)
        return task.result()

    async def _at_rest(self) -> bool:
        """Whether no request was made or answered in a few turns of the loop, and the store's thread has nothing to do.

        Everything lives in this process, so that a turn takes whatever there is one step further, however slow it is.
        """
        before = self._traffic()
        with suppress(StoreError):  # in trouble: it refuses at once
            await self.service.ledger.ping()
        for _ in range(QUIET_TURNS):
            await asyncio.sleep(0)
        return self._traffic() == before

    def _traffic(self) -> float:
        asked = sum(sum(simulator.requests.values()) for simulator in self.fleet.simulators.values())
        return asked + sum(source.api.budget.remaining for source in self.service.sources.values())

    async def sweep(self, *streams: str) -> None:
        """Sweep every stream of every source once (or only these), and complete what webhooks asked for."""
        for poller in self.service.pollers.values():
            for stream in poller.source.platform.streams:
                if not streams or stream.name in streams:
                    await self.drive(poller.sweep_once(stream.name))
            await self.drive(poller.complete_once())

    async def retry(self, *sources: str) -> None:
        """Let the retriers of these sources, or of all, take a turn."""
        for source, retrier in self.service.retriers.items():
            if not sources or source in sources:
                await self.drive(retrier.turn_once())

    async def repair(self, seconds: float = 0.0, *, step: float = 15.0) -> None:
        """Let the repairers take a turn, and operations follow: now, or so long."""
        for _ in range(max(1, round(seconds / step))):
            if seconds:
                await self.clock.advance(step)
            for repairer in self.service.repairers.values():
                await self.drive(repairer.repair_once())
            await self.service.operations.settle_once()

    async def deliver(self) -> int:
        """Deliver the webhooks that are due; returns how many were accepted."""
        return await self.fleet.deliver_once(self.session, f"{self.url}/webhooks")

    async def live(self, seconds: float, *, step: float, deliver: bool = False, retry: bool = False) -> None:
        """Let time pass, sweeping (and delivering, and retrying) at every step."""
        until = self.clock.now() + seconds
        while self.clock.now() < until:
            await self.clock.advance(step)
            if deliver:
                await self.deliver()
            await self.sweep()
            if retry:
                await self.retry()

    async def settle(self) -> None:
        """Sweep until nothing happens meanwhile, so that everything that ended up to now has been seen."""
        for _ in range(20):
            began = self.clock.now()
            await self.sweep()
            if self.clock.now() == began:
                return
            await self.clock.advance(10.0)  # for the budget to recover
        raise AssertionError("sweeps never came to rest: requests wait for their budget all the time")

    # What is shown, and what is so.

    async def scrape(self, path: str = "/metrics", **headers: str) -> str:
        async with self.session.get(self.url + path, headers=headers) as response:
            return await response.text()

    async def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """Label values (the source first, its platform left out) to value of every sample of one name."""
        found = {}
        for family in text_string_to_metric_families(await self.scrape()):
            for sample in family.samples:
                if sample.name == name:
                    source = sample.labels.pop("source", "")
                    sample.labels.pop("platform", None)
                    found[source, *sample.labels.values()] = sample.value
        return found

    async def counted(self, source: str) -> Counter[tuple[str, str]]:
        """(workflow, result) to finished runs counted of one source, where any were."""
        runs = await self.samples("automation_runs_total")
        return Counter({(key[1], key[2]): int(value) for key, value in runs.items() if key[0] == source and value})

    def truth(self, source: str) -> Counter[tuple[str, str]]:
        """The same, as it really was: what ended from the baseline to the last complete sweep of the runs."""
        since = self.service.world.sources[source].first_sweep_at or 0.0
        return self.fleet.simulators[source].truth().counts(since=since, until=self.clock.now())


@asynccontextmanager
async def deployment(
    folder: Path,
    *,
    platforms: list[str] | None = None,
    seed: int = 1,
    workflows: int = 4,
    faults: Mapping[str, Any] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    changes: Mapping[str, Any] | None = None,
    start: float = 1_700_000_000.0,
) -> AsyncIterator[Deployment]:
    """A running deployment; closed in the end."""
    clock = WatchedClock(start)
    async with Fleet.open(
        clock=clock, seed=seed, platforms=platforms, workflows=workflows, faults=faults, options=options
    ) as fleet:
        made = Deployment(clock=clock, fleet=fleet, folder=folder, changes=changes or {})
        await made.start()
        try:
            yield made
        finally:
            await made.stop()
