"""Who works for which source: its loops, begun when this process holds the source and ended when it does no longer.

With a database of its own a process holds everything from the beginning. Where several share one, each is a replica and
holds what the others do not (``exporter.replicas``).
"""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from exporter.clock import Clock, SharedClock
from exporter.config import Config
from exporter.log import get_logger
from exporter.memory import Memory
from exporter.model.leases import UPKEEP, Replica, Seen
from exporter.polling.poller import Poller
from exporter.replicas import Replicas, Wish, Work
from exporter.retries.book import RetryBook
from exporter.retries.control import Control
from exporter.retries.deciding import Decider
from exporter.retries.operations import Operations
from exporter.retries.repairer import Repairer
from exporter.retries.retrier import Retrier
from exporter.source import Source
from exporter.store.journal import LeaseLost, under
from exporter.store.ledger import Ledger, open_beats
from exporter.store.script import StoreError
from exporter.traces.export import TraceExporter
from exporter.view.known import World
from exporter.view.own import OwnMetrics
from exporter.view.projection import Projection
from exporter.web import status
from exporter.webhooks.receiver import Receiver
from exporter.webhooks.reliability import Reliability

log = get_logger(__name__)

#: Runs a loop in the background.
Start = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]

#: Seconds between two looks at how far operations are.
OPERATIONS_INTERVAL = 5.0


@dataclass(slots=True, kw_only=True)
class Service:
    """A running service, for whoever started it."""

    port: int = 0
    webhooks_port: int = 0
    memory: Memory
    projection: Projection
    own: OwnMetrics
    held: dict[str, Source] = field(default_factory=dict)  # what this replica polls, retries and exposes
    replicas: Replicas | None = None  # where others share the database
    pollers: dict[str, Poller] = field(default_factory=dict)
    receivers: dict[str, Receiver] = field(default_factory=dict)
    retriers: dict[str, Retrier] = field(default_factory=dict)
    repairers: dict[str, Repairer] = field(default_factory=dict)
    reliability: dict[str, Reliability] = field(default_factory=dict)
    traces: TraceExporter | None = None

    @property
    def ledger(self) -> Ledger:
        return self.memory.ledger

    @property
    def world(self) -> World:
        return self.memory.world

    @property
    def sources(self) -> dict[str, Source]:
        return self.memory.sources

    @property
    def book(self) -> RetryBook:
        return self.memory.book

    @property
    def control(self) -> Control:
        return self.memory.control

    @property
    def operations(self) -> Operations:
        return self.memory.operations


def arm(running: Service, source: Source, clock: Clock) -> None:
    """What works for a source, made anew: it remembers nothing of a time when others did."""
    name, ledger, book = source.name, running.ledger, running.book
    decider = running.memory.deciders[name] = Decider(book, source)
    running.pollers[name] = Poller(source, ledger, clock, on_up=lambda up: running.projection.set_up(name, up))
    if source.adapter is not None:
        running.retriers[name] = Retrier(source, ledger, clock, book=book, decider=decider)
    if source.platform.repairing is not None:
        running.repairers[name] = Repairer(source, ledger, clock, book=book, decider=decider)


class Holder:
    """The sources that this process works for, and its loops for each."""

    def __init__(self, running: Service, clock: Clock, tasks: Start | None) -> None:
        """Without ``tasks`` no loop runs."""
        self._running = running
        self._clock = clock
        self._tasks = tasks
        self._loops: dict[str, list[asyncio.Task[None]]] = {}
        for name in running.sources:
            self._hide(name)

    def begin(self, name: str, epoch: int | None = None) -> None:
        """Work for a source from now on, under this epoch of its lease, if others could as well."""
        if name != UPKEEP:
            self._show(name)
            if epoch is not None:
                self._running.sources[name].renew()
                arm(self._running, self._running.sources[name], self._clock)
        if self._tasks is not None:
            with nullcontext() if epoch is None else under(name, epoch):
                self._loops[name] = [self._tasks(loop) for loop in self._loops_of(name, taken=epoch is not None)]

    async def end(self, name: str) -> None:
        """Work for it no longer; returns when nothing is done for it any more."""
        loops = self._loops.pop(name, [])
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        if name != UPKEEP:
            self._hide(name)

    def tell(self) -> dict[str, Any]:
        """What others need to know of the sources that this process works for: how they are read, and their clocks."""
        return {
            name: {"ahead": source.api.clock_offset(), "streams": status.streams(source, self._clock.now())}
            for name, source in self._running.held.items()
        }

    def hear(self, seen: Seen) -> None:
        """Who holds what, and what they say of it."""
        for name, source in self._running.sources.items():
            holder, told = seen.holder(name), seen.told.get(name)
            source.holder = "" if holder is None else holder.name
            if name not in self._running.held:
                source.told = [] if holder is None or told is None else told["streams"]
                if told is not None and told["ahead"] is not None:
                    source.api.hear_clock(self._clock.now() - told["ahead"])

    def wake(self, wish: Wish) -> None:
        """Do what a webhook asks for that another replica took."""
        if wish.source in self._running.held:
            self._running.held[wish.source].wake(wish.keys, wish.streams)

    def _loops_of(self, name: str, *, taken: bool) -> Iterator[Coroutine[Any, Any, None]]:
        running = self._running
        if name == UPKEEP:
            yield _operations_loop(running, self._clock)
            return
        yield running.pollers[name].run()
        if name in running.retriers:
            retrier = running.retriers[name]
            yield self._taken_over(retrier) if taken else retrier.run()
        if name in running.repairers:
            yield running.repairers[name].run()

    async def _taken_over(self, retrier: Retrier) -> None:
        """Go on where another has left off."""
        while True:
            try:
                await self._running.book.take_over(retrier.source.name, self._clock.now())
                break
            except LeaseLost:
                return
            except StoreError:  # counted and shown by the ledger
                await self._clock.sleep(OPERATIONS_INTERVAL)
        await retrier.run()

    def _show(self, name: str) -> None:
        running, source = self._running, self._running.sources[name]
        running.held[name], source.told = source, None
        running.projection.hidden.discard(name)
        running.own.leader.labels(source.platform.name, name).set(1)
        source.begin()

    def _hide(self, name: str) -> None:
        self._running.held.pop(name, None)
        self._running.sources[name].told = []
        self._running.projection.hidden.add(name)
        self._running.own.leader.labels(self._running.sources[name].platform.name, name).set(0)
        self._running.own.forget_states(name)


@asynccontextmanager
async def joined(
    running: Service,
    config: Config,
    clock: SharedClock,
    holder: Holder,
    tasks: Start | None,
    *,
    reload: Callable[[], Awaitable[str | None]],
) -> AsyncIterator[Replicas]:
    """One of several replicas, from now on."""
    me = Replica(
        id=secrets.token_hex(8),
        name=f"{socket.gethostname()}:{running.port}",
        sources=frozenset(running.sources),
    )
    replicas: Replicas
    beats = open_beats(config.store.url, lambda said: replicas.heard(said), password=config.store.password_now)
    replicas = Replicas(
        me,
        running.sources,
        beats=beats,
        ledger=running.ledger,
        clock=clock,
        work=Work(begin=holder.begin, end=holder.end, tell=holder.tell, hear=holder.hear, wake=holder.wake),
        anew=reload,
    )
    for name, source in running.sources.items():
        source.pass_on = partial(replicas.pass_on, name)
    try:
        with suppress(StoreError):  # said by the ledger; it is tried again
            await replicas.come()
        if tasks is not None:
            tasks(replicas.run_beats())
            tasks(replicas.run_news())
            tasks(_watch_others(running, clock))
        yield replicas
    finally:
        await replicas.leave()
        await beats.close()


async def _watch_others(running: Service, clock: Clock) -> None:
    """Decide about the dead letters of sources that others retry as well, to show it, and to go on at once."""
    while True:
        for name, decider in list(running.memory.deciders.items()):
            if name not in running.held:
                try:
                    await decider.turn(clock.now())
                except Exception as bug:  # costs this turn, never the service
                    log.error("deciding broke", source=name, error=bug)
        await clock.sleep(OPERATIONS_INTERVAL)


async def _operations_loop(running: Service, clock: Clock) -> None:
    while True:
        with suppress(StoreError):  # counted and shown by the ledger
            await running.operations.settle_once()
        await clock.sleep(OPERATIONS_INTERVAL)
