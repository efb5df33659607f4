"""How many events a second one PostgreSQL takes from one, two and four replicas, and how soon holders show them."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_replicas import World, until_held, world
from tests.postgres import Postgres
from tests.servers import real

pytestmark = [real("postgres"), pytest.mark.bench]
#: Senders that each wait for their answer before they send the next event, and how long they do (seconds).
SENDERS, SECONDS = 64, 20.0


@pytest.mark.parametrize("replicas", [1, 2, 4])
async def test_events_a_second(
    replicas: int, tmp_path: Path, server: Postgres, record_property: Callable[[str, object], None]
) -> None:
    async with world(tmp_path, server, replicas=replicas) as made:
        await until_held(made, *made.replicas, even=True)
        await asyncio.sleep(3)  # an event says that it ended a second ago: that has to be after the first sweep
        answered: list[float] = []
        shown: list[float] = []
        ends = time.monotonic() + SECONDS

        async def send(number: int) -> None:
            while time.monotonic() < ends:
                began = time.monotonic()
                await made.send()
                answered.append(time.monotonic() - began)

        async with asyncio.TaskGroup() as tasks:
            for number in range(SENDERS):
                tasks.create_task(send(number))
        took = sum(map(len, made.acknowledged.values()))
        for _ in range(20):
            shown.append(await _until_shown(made))
        truth = {source: float(len(taken)) for source, taken in made.acknowledged.items()}
        assert await made.counted(*made.replicas) == truth
        answered.sort()
        commits = server.sql(
            made.store, "SELECT sum(xact_commit) FROM pg_stat_database WHERE datname = current_database()"
        )
        record_property(
            "events through replicas on one PostgreSQL, everything on one machine",
            {
                "replicas": replicas,
                "events/s": f"{took / SECONDS:.0f}",
                "p50 ms": f"{1000 * answered[len(answered) // 2]:.0f}",
                "p95 ms": f"{1000 * answered[int(len(answered) * 0.95)]:.0f}",
                "transactions/s": f"{float(commits) / SECONDS:.0f}",
                "shown by the holder after, p50 ms": f"{1000 * sorted(shown)[len(shown) // 2]:.0f}",
                "max ms": f"{1000 * max(shown):.0f}",
            },
        )


async def _until_shown(made: World) -> float:
    """Send one event when all is quiet; how long it takes from its acknowledgement until its holder shows it."""
    before = await made.counted(*made.replicas)
    await made.send()
    began = time.monotonic()
    while sum((await made.counted(*made.replicas)).values()) == sum(before.values()):
        assert time.monotonic() - began < 30
        await asyncio.sleep(0.01)
    return time.monotonic() - began
