"""How long after its end a run is counted by the service as it is, which polls in its own rhythm: in virtual time.

Beside it stands round robin, which spends the same number of requests a minute on the runs of one workflow after the
other and on nothing else.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from exporter.model import RunFinished
from exporter.model.ledger import Committed
from exporter.polling.poller import SweepReport
from exporter.simulator.fleet import Fleet, demo_config
from tests.e2e.deployment import Deployment, WatchedClock

MINUTE = 60.0
START = 1_700_000_000.0
#: A sweep that does nothing for so long in real time waits for something else, such as the end of a refusal.
STUCK_SECONDS = 2.0
#: So long the workflows have run before anybody looks (seconds).
PAST = 86_400.0
#: How many workflows run every so many minutes, of a thousand: 31 runs a minute.
USUAL: Mapping[int, int] = {1: 10, 5: 40, 15: 100, 60: 350, 1440: 500}


@dataclass(slots=True, kw_only=True)
class Polled:
    """A service and the platform that it polls. Make one with ``polled``."""

    made: Deployment
    platform: str
    ids: Sequence[str]
    per_minute: float
    sweeping: int = 0  # sweeps under way
    delays: list[tuple[float, float]] = field(default_factory=list)  # when a run ended, and how much later it counted

    async def live(self, minutes: float) -> None:
        """Let the service poll for so long, as it does by itself."""
        until = self.made.clock.now() + minutes * MINUTE
        while self.made.clock.now() < until:
            with suppress(TimeoutError):
                async with asyncio.timeout(STUCK_SECONDS):
                    await self._all_wait()
            await self.made.clock.advance(1.0)

    async def _all_wait(self) -> None:
        """Return once every sweep under way waits for the budget: each makes one request after the other."""
        queues = self.made.service.sources[self.platform].api.budget._queues
        while True:
            for _ in range(10):
                await asyncio.sleep(0)
            if self.sweeping <= sum(map(len, queues.values())):
                return
            await asyncio.sleep(0.0005)

    def asked(self) -> Counter[str]:
        """Requests so far, by template."""
        return Counter(self.made.fleet.simulators[self.platform].requests)

    def compare(self, since: float, until: float) -> tuple[list[float], list[float]]:
        """Of the runs that ended in these minutes: after how many seconds each counted, and would by round robin.

        One that has not counted yet never does, as far as anybody knows.
        """
        since, until = START + since * MINUTE, START + until * MINUTE
        cycle = len(self.ids) / self.per_minute * MINUTE
        turn = {workflow_id: number / self.per_minute * MINUTE for number, workflow_id in enumerate(self.ids)}
        truth = [r for r in self.made.fleet.simulators[self.platform].truth().runs if since <= r.ended_at < until]
        ours = [delay for ended_at, delay in self.delays if since <= ended_at < until]
        assert len(ours) <= len(truth), f"{len(truth)} runs ended, {len(ours)} were counted"
        ours += [inf] * (len(truth) - len(ours))
        return ours, [(turn[run.workflow_id] - (run.ended_at - START)) % cycle for run in truth]


def percentile(delays: Sequence[float], share: float) -> float:
    found = sorted(delays)
    return found[min(len(found) - 1, int(share * len(found)))]


def make_scenarios(simulator: Any, kinds: Mapping[int, int], rng: random.Random) -> list[str]:
    """Scenarios of Make; a fifth of each kind is started by webhooks, by chance as often."""
    ids = [
        simulator.add_workflow(
            interval=minutes * MINUTE,
            instant=number % 5 == 0,
            duration=rng.lognormvariate(2.0, 0.8),
            store=False,
            first_in=rng.uniform(0.0, minutes * MINUTE),
        )
        for minutes, count in kinds.items()
        for number in range(count)
    ]
    rng.shuffle(ids)
    return ids


def qlik_automations(simulator: Any, kinds: Mapping[int, int], rng: random.Random, *, until: float) -> list[str]:
    """Automations of Qlik, whose runs of the last hour and up to ``until`` are placed by hand."""
    ids = list[str]()
    for minutes, count in kinds.items():
        for _ in range(count):
            ids.append(simulator.add_workflow())
            at = START - 60 * MINUTE + rng.uniform(0.0, minutes * MINUTE)
            while at < until:
                took = min(rng.lognormvariate(2.0, 0.8), 0.9 * minutes * MINUTE)
                simulator.add_run(ids[-1], started_at=round(at, 3), ended_at=round(at + took, 3))
                at += minutes * MINUTE
    rng.shuffle(ids)
    return ids


@asynccontextmanager
async def polled(
    folder: Path,
    platform: str,
    kinds: Mapping[int, int],
    *,
    per_minute: int,
    options: Mapping[str, Any],
    minutes: float,
    seed: int = 1,
) -> AsyncIterator[Polled]:
    """A first start with ``per_minute`` requests; ``options`` are the simulator's; it will live so many ``minutes``."""
    clock, rng = WatchedClock(START - PAST if platform == "make" else START), random.Random(seed)
    async with Fleet.open(
        clock=clock, seed=seed, platforms=[platform], workflows=0, options={platform: options}
    ) as fleet:
        made = Deployment(clock=clock, fleet=fleet, folder=folder, changes={})
        config = demo_config(fleet, listen="127.0.0.1:0", database=folder / "fresh.db", interval="60s")
        section = config.sources[platform]
        poll = section.poll.model_copy(update={"requests_per_minute": per_minute})
        made.config = config.model_copy(update={"sources": {platform: section.model_copy(update={"poll": poll})}})
        simulator: Any = fleet.simulators[platform]
        if platform == "make":
            ids = make_scenarios(simulator, kinds, rng)
            await clock.advance(PAST)
            simulator.advance(START)
        else:
            ids = qlik_automations(simulator, kinds, rng, until=START + minutes * MINUTE)
        await made.start()
        found = Polled(made=made, platform=platform, ids=ids, per_minute=per_minute)
        publish, poller = made.service.ledger.on_commit, made.service.pollers[platform]

        def note(committed: Committed) -> None:
            ended = [
                change.run.finished_at or clock.now()
                for outcome in committed.outcomes
                for change in outcome.changes
                if isinstance(change, RunFinished)
            ]
            found.delays += [(at, clock.now() - at) for at in ended]
            publish(committed)

        made.service.ledger.on_commit = note
        sweep_once = poller.sweep_once

        async def counted(stream: str) -> SweepReport:
            found.sweeping += 1
            try:
                return await sweep_once(stream)
            finally:
                found.sweeping -= 1

        poller.sweep_once = counted  # type: ignore[method-assign]
        polling = asyncio.create_task(poller.run())
        try:
            yield found
        finally:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)
            await made.stop()
