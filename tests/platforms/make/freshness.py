"""A thousand scenarios in real time: the service polls a zone of Make in its own rhythm, with few requests a minute.

How long after its end a run is counted is measured on the service as it is, poller, budget and ledger, in virtual time;
beside it stands round robin, which reads one log after the other with the same number of requests.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.model import RunFinished
from exporter.model.ledger import Committed
from exporter.simulator.fleet import Fleet, demo_config
from tests.e2e.deployment import Deployment, WatchedClock

MINUTE = 60.0
START = 1_700_000_000.0
#: So long the scenarios have run before anybody looks (seconds).
PAST = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """When runs ended, and how many seconds later each was counted."""

    delays: Sequence[tuple[float, float]]

    def percentile(self, share: float, *, since: float, until: float) -> float:
        found = sorted(delay for ended_at, delay in self.delays if since <= ended_at < until)
        return found[min(len(found) - 1, int(share * len(found)))]


@dataclass(slots=True, kw_only=True)
class Zone:
    """A zone of Make and the service that reads it. Make one with ``zone``."""

    made: Deployment
    ids: list[str]
    delays: list[tuple[float, float]] = field(default_factory=list)

    @property
    def simulator(self) -> Any:
        return self.made.fleet.simulators["make"]

    @property
    def asked(self) -> Counter[str]:
        """Requests so far, by template."""
        return Counter({key.replace("/api/v2", ""): count for key, count in self.simulator.requests.items()})

    def ended(self, *, since: float, until: float) -> list[tuple[str, float]]:
        """Scenario and end of each run that really ended then."""
        return [(r.workflow_id, r.ended_at) for r in self.simulator.truth().runs if since <= r.ended_at < until]

    async def live(self, minutes: float) -> None:
        """Let the service poll for so long, as it does by itself."""
        until = self.made.clock.now() + minutes * MINUTE
        while self.made.clock.now() < until:
            if await self.made._at_rest():
                await self.made.clock.advance(1.0)


def take_turns(ids: Sequence[str], ended: Sequence[tuple[str, float]], *, per_minute: float) -> Seen:
    """What round robin comes to, which spends every request on the next log and reads all of it."""
    cycle = len(ids) / per_minute * MINUTE
    turn = {workflow_id: number / per_minute * MINUTE for number, workflow_id in enumerate(ids)}
    return Seen(delays=[(at, (turn[workflow_id] - (at - START)) % cycle) for workflow_id, at in ended])


@asynccontextmanager
async def zone(
    folder: Path, kinds: Mapping[float, int], *, feed: bool, per_minute: int, seed: int = 1, **settings: Any
) -> AsyncIterator[Zone]:
    """``kinds``: how many scenarios run every so many minutes. A fifth of each are started by webhooks, by chance."""
    clock, rng = WatchedClock(START - PAST), random.Random(seed)
    options = {"make": {"feed": feed, "enforce_limit": True, "api_limit": per_minute}}
    async with Fleet.open(clock=clock, seed=seed, platforms=["make"], workflows=0, options=options) as fleet:
        made = Deployment(clock=clock, fleet=fleet, folder=folder, changes={})
        made.config = demo_config(fleet, listen="127.0.0.1:0", database=folder / "fresh.db", interval="60s")
        simulator: Any = fleet.simulators["make"]
        ids = list[str]()
        for minutes, count in kinds.items():
            for number in range(count):
                instant = number % 5 == 0
                workflow_id = simulator.add_workflow(
                    interval=minutes * MINUTE,
                    instant=instant,
                    duration=rng.lognormvariate(2.0, 0.8),
                    store=False,
                    first_in=rng.uniform(0.0, minutes * MINUTE),
                    **settings,
                )
                ids.append(workflow_id)
        rng.shuffle(ids)
        await clock.advance(PAST)
        simulator.advance(START)
        await made.start()
        found = Zone(made=made, ids=ids)
        publish = made.service.ledger.on_commit

        def note(committed: Committed) -> None:
            now = clock.now()
            found.delays += [
                (c.run.finished_at or now, now - (c.run.finished_at or now))
                for outcome in committed.outcomes
                for c in outcome.changes
                if isinstance(c, RunFinished)
            ]
            publish(committed)

        made.service.ledger.on_commit = note
        poller = made.service.pollers["make"]
        poller._jitter = rng.random
        polling = asyncio.create_task(poller.run())
        try:
            yield found
        finally:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)
            await made.stop()
