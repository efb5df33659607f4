"""Replicas on a real PostgreSQL, beat by beat, with clocks of their own that are days apart and pass as a test says."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest

from exporter.clock import ManualClock, SharedClock
from exporter.model.leases import UPKEEP, Replica, Seen
from exporter.model.ledger import FoldRules
from exporter.platform import RunKey, StreamName
from exporter.replicas import OVERDUE, WISHED_MAX, Replicas, Wish, Work
from exporter.store import leases
from exporter.store.journal import KEPT_SECONDS
from exporter.store.leases import TTL
from exporter.store.ledger import Ledger, open_beats, open_engine
from exporter.store.script import StoreError
from tests.postgres import Postgres
from tests.servers import real

pytestmark = real("postgres")
SOURCES = ("a", "b", "c")
DAY = 86_400.0


class Process:
    """A replica, what it works for, and what others said to it."""

    def __init__(self, name: str, ledger: Ledger, beats: Any, clock: ManualClock, sources: tuple[str, ...]) -> None:
        self.clock, self.works, self.seen = clock, dict[str, int](), Seen()
        self.shared = SharedClock(clock)
        self.begun_anew = 0
        self.wishes: asyncio.Queue[Wish] = asyncio.Queue()
        self.told: Mapping[str, Any] = {}
        self.replicas = Replicas(
            Replica(id=f"{name}-id", name=name, sources=frozenset(sources)),
            sources,
            beats=beats,
            ledger=ledger,
            clock=self.shared,
            work=Work(
                begin=self.begin, end=self.end, tell=lambda: self.told, hear=self.hear, wake=self.wishes.put_nowait
            ),
            anew=self.anew,
        )

    def begin(self, source: str, epoch: int) -> None:
        self.works[source] = epoch

    async def end(self, source: str) -> None:
        del self.works[source]

    def hear(self, seen: Seen) -> None:
        self.seen = seen

    async def anew(self) -> str | None:
        self.begun_anew += 1
        return None


class Town:
    """Processes that share a database."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url, self.stack = url, stack
        self.processes: list[Process] = []

    async def join(self, name: str, *, clock_off: float = 0.0, sources: tuple[str, ...] = SOURCES) -> Process:
        ledger = Ledger(await open_engine(self.url), {source: FoldRules() for source in sources})
        self.stack.push_async_callback(ledger.close)
        await ledger.load()
        made: Process
        beats = open_beats(self.url, lambda said: made.replicas.heard(said))
        self.stack.push_async_callback(beats.close)
        made = Process(name, ledger, beats, ManualClock(time.time() + clock_off), sources)
        self.processes.append(made)
        await made.replicas.come()
        return made

    async def beat(self, times: int = 6) -> None:
        for _ in range(times):
            for process in self.processes:
                await process.replicas.beat_once()

    def held(self) -> list[list[str]]:
        return [sorted(process.works.keys() - {UPKEEP}) for process in self.processes]


@pytest.fixture
async def town(server: Postgres) -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        yield Town(server.make(), stack)


async def test_clocks_that_are_days_apart_agree_on_the_database_s(town: Town) -> None:
    early, late = await town.join("early", clock_off=-3 * DAY), await town.join("late", clock_off=5 * DAY)
    await town.beat()
    assert sorted(map(len, town.held())) == [1, 2]
    for process in (early, late):
        assert abs(process.shared.now() - time.time()) < 5
    late.clock.set_ahead(-20 * DAY)  # somebody sets it
    await town.beat(1)
    assert abs(late.shared.now() - time.time()) < 5
    assert sorted(sum(town.held(), [])) == list(SOURCES)  # noqa: RUF017


async def test_each_is_told_what_the_holder_says_of_a_source(town: Town) -> None:
    one, other = await town.join("one"), await town.join("other")
    await town.beat()
    mine = sorted(one.works.keys() - {UPKEEP})
    one.told = {source: {"streams": [{"stream": "runs"}]} for source in mine}
    await town.beat(1)
    for source in mine:
        holder = other.seen.holder(source)
        assert holder is not None
        assert (holder.name, other.seen.told[source]["streams"]) == ("one", [{"stream": "runs"}])


async def test_what_a_webhook_asks_for_reaches_whoever_reads_the_source(town: Town) -> None:
    one, other = await town.join("one"), await town.join("other")
    keys = [RunKey(run_id=str(number), workflow_id="w") for number in range(100)]
    one.replicas.pass_on("a", keys, [StreamName.RUNS])
    for process in (one, other):  # each hears it, and who holds the source heeds it
        wish = await asyncio.wait_for(process.wishes.get(), 10)
        assert (wish.source, wish.keys, wish.streams) == ("a", keys[:WISHED_MAX], [StreamName.RUNS])
    one.replicas.heard('{"another": "version"}')
    assert one.wishes.empty()


async def test_who_leaves_is_followed_at_once_under_a_new_epoch(town: Town) -> None:
    one, other = await town.join("one"), await town.join("other")
    await town.beat()
    before = dict(one.works)
    await one.replicas.leave()
    assert not one.works
    await other.replicas.beat_once()
    assert set(other.works) == {*SOURCES, UPKEEP}
    assert all(other.works[source] > epoch for source, epoch in before.items())


async def test_at_one_address_there_is_one_process(town: Town) -> None:
    """What was killed and starts again does not wait until it counts as dead itself."""
    killed = await town.join("host:10870")
    assert set(killed.works) == {*SOURCES, UPKEEP}
    town.processes.clear()
    again = await town.join("host:10870")
    assert set(again.works) == {*SOURCES, UPKEEP}
    assert all(again.works[source] > epoch for source, epoch in killed.works.items())


async def test_who_cannot_ask_the_database_lets_go_once_others_may_hold_it_and_takes_it_again(
    town: Town, server: Postgres
) -> None:
    one = await town.join("one")
    before = dict(one.works)
    server.stop("immediate")
    try:
        with pytest.raises(StoreError):
            await one.replicas.beat_once()
        assert one.works == before  # nobody else can hold it yet
        await one.clock.advance(TTL + 1)
        with pytest.raises(StoreError):
            await one.replicas.beat_once()
        assert not one.works
    finally:
        server.start()
    await one.replicas._ledger.probe()
    await one.replicas.beat_once()
    assert one.works.keys() == before.keys()
    assert all(one.works[source] > epoch for source, epoch in before.items())


async def test_whose_lease_was_taken_ends_its_work_with_the_next_beat(town: Town) -> None:
    one = await town.join("one")
    engine = one.replicas._beats
    await engine.run(leases.leave("one-id"))  # as if it had been silent, and another had taken and left
    assert await engine.run(leases.take("a", "somebody")) == 2
    await one.replicas.beat_once()
    assert one.works["a"] == 3  # somebody is not alive, so it is free again: but what was begun before has ended


async def test_what_only_one_config_names_is_held_by_that_one(town: Town) -> None:
    old, new = await town.join("old", sources=("a",)), await town.join("new", sources=("a", "z"))
    await town.beat()
    assert town.held() == [["a"], ["z"]]
    assert (old.works.keys() & new.works.keys()) == set()


async def test_who_missed_too_much_begins_anew(town: Town) -> None:
    one = await town.join("one")
    await one.replicas.follow_once()
    assert one.begun_anew == 0
    await one.clock.advance(KEPT_SECONDS / 2 + 1)
    await one.replicas.follow_once()
    assert one.begun_anew == 1
    await one.replicas.follow_once()
    assert one.begun_anew == 1


async def test_what_nobody_takes_for_some_beats_is_taken_by_whoever_sees_it(town: Town, server: Postgres) -> None:
    """Whoever has the least may be alive, and unable to take anything."""
    able = await town.join("able", sources=("a", "b"))
    unable = Replica(id="unable", name="unable", sources=frozenset(SOURCES))
    beats = able.replicas._beats
    await beats.run(leases.beat(unable, {}))
    await able.replicas._ledger.transact_about("a", "lease", leases.give("a", "able-id"))
    await able.replicas.beat_once()
    assert "a" not in able.works  # the other has nothing, so it is the other's turn
    for _ in range(2):
        await able.clock.advance(OVERDUE)
        await beats.run(leases.beat(unable, {}))
        await able.replicas.beat_once()
    assert "a" in able.works
