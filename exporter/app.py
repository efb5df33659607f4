"""The whole story, in order: the ledger, what is known in memory, the metrics, the sources, the loops, the web.

``service`` builds everything in one straight line and closes it in reverse. ``run`` keeps a service running: it stops
on a signal and, when asked to reload, takes a new config whole or keeps the old one.
"""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from exporter import __version__
from exporter.clock import Clock, SystemClock
from exporter.config import Config, ConfigError
from exporter.config.cautions import cautions
from exporter.log import configure, get_logger, register_secrets
from exporter.model import DeadLetter
from exporter.model.ledger import Committed, FoldRules, Key
from exporter.model.policy import Rules
from exporter.platform import Platform, selected
from exporter.platform.section import SourceConfig
from exporter.platforms import PLATFORMS
from exporter.polling.poller import Poller
from exporter.retries.book import RetryBook
from exporter.retries.control import Control
from exporter.retries.deciding import Decider
from exporter.retries.operations import Operations
from exporter.retries.repair_operations import RepairOperations
from exporter.retries.repairer import Repairer
from exporter.retries.retrier import Retrier
from exporter.source import Source, read_at_scrape
from exporter.store.ledger import Ledger, open_engine
from exporter.store.script import StoreError
from exporter.traces.exemplars import attach
from exporter.traces.export import TraceExporter, is_enabled
from exporter.traces.otlp import make_exporter
from exporter.traces.own import OwnTracer
from exporter.traces.spans import trace_ids
from exporter.view.costs import counted
from exporter.view.known import SourceWorld, World
from exporter.view.own import OwnMetrics
from exporter.view.projection import Projection
from exporter.web import local
from exporter.web.certificate import Certificate
from exporter.web.doors import Doors
from exporter.web.retry_routes import ControlRoutes
from exporter.web.server import Site
from exporter.web.status import TraceUrl
from exporter.webhooks.receiver import Receiver
from exporter.webhooks.reliability import Reliability
from exporter.webhooks.rotation import Rotation

log = get_logger(__name__)

#: Seconds between two rounds of expiring, pruning and counting rows.
HOUSEKEEPING_INTERVAL = 60.0
#: Seconds between two looks at how far operations are.
OPERATIONS_INTERVAL = 5.0


@dataclass(slots=True, kw_only=True)
class Memory:
    """What the ledger knows, in memory: the first half of a service, and all that a command needs."""

    ledger: Ledger
    world: World
    sources: dict[str, Source]
    book: RetryBook
    deciders: dict[str, Decider]
    control: Control
    operations: Operations


@dataclass(slots=True, kw_only=True)
class Service:
    """A running service, for whoever started it."""

    port: int = 0
    webhooks_port: int = 0
    memory: Memory
    projection: Projection
    own: OwnMetrics
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


async def remember(
    ledger: Ledger,
    clock: Clock,
    *,
    names: Iterable[str],
    source: Callable[[str, SourceWorld], Source | None],
    rules: Callable[[], Rules],
    projection: Projection | None = None,
    served: bool = False,
) -> Memory:
    """Load what the ledger knows, and have it follow the ledger's commits from now on. Raises ``StoreError``.

    ``names`` are the sources wanted; without any, those the ledger knows. ``source`` makes one of them, or None where
    nothing is known about its platform: then it can be named, and no more. Where it is ``served``, retriers decide and
    others see what they decided.
    """
    loaded = await ledger.load()
    world = World(list(names) or list(loaded.first_sweeps))
    world.load(loaded)
    made = {name: one for name, known in world.sources.items() if (one := source(name, known)) is not None}
    book = RetryBook(ledger, made, rules(), projection=projection)
    if projection is not None:
        projection.load(world, loaded.tallies)
    ledger.on_commit = _follow(world, book, projection)
    await book.load(clock.now())
    deciders = {name: Decider(book, one) for name, one in made.items()}
    control = Control(book, made, clock, names=world.sources, deciders=deciders if served else None)
    return Memory(
        ledger=ledger,
        world=world,
        sources=made,
        book=book,
        deciders=deciders,
        control=control,
        operations=Operations(book, control, ledger, clock),
    )


def _follow(world: World, book: RetryBook, projection: Projection | None) -> Callable[[Committed], None]:
    """Who follows the ledger's commits, in this order: what is known, what is retried, what a scrape shows of both."""

    def follow(committed: Committed) -> None:
        touched = world.apply(committed)
        book.apply(committed)
        if projection is not None:
            projection.follow(committed, touched, world)

    return follow


async def _no_reload() -> str | None:
    return "this service cannot reload its config"


@asynccontextmanager
async def service(
    config: Config,
    *,
    clock: Clock | None = None,
    own: OwnMetrics | None = None,
    reload: Callable[[], Awaitable[str | None]] = _no_reload,
    loops: bool = True,
    doors: Doors | None = None,
) -> AsyncIterator[Service]:
    """Everything, running. Without ``loops`` nothing moves by itself: a test calls the ``…_once`` it wants.

    ``doors`` are open already, or will be needed again; otherwise there are some for this service alone.

    Raises ``StoreError`` or ``OSError`` when the store or an address cannot be had.
    """
    clock, own = clock or SystemClock(), own or OwnMetrics()
    register_secrets(config.secrets())
    platforms = {source: PLATFORMS[section.platform] for source, section in config.sources.items()}
    own.forget_sources(
        {(platform.name, source) for source, platform in platforms.items()},
        receiving={source for source, section in config.sources.items() if section.webhook is not None},
    )

    async with AsyncExitStack() as stack:
        if doors is None:
            doors = Doors()
            stack.push_async_callback(doors.close)

        # What was counted, durable; what is so now, in memory; and what a scrape shows of both.
        ledger = Ledger(
            await open_engine(config.store.url),
            {source: _fold_rules(config, section, platforms[source]) for source, section in config.sources.items()},
            on_error=lambda operation: own.store_errors.labels(operation).inc(),
            on_up=lambda up: own.store_up.set(float(up)),
            timer=own.commit_timer,
        )
        stack.push_async_callback(ledger.close)
        folded: list[Key] = []
        projection = Projection(
            {
                source: counted(
                    platforms[source],
                    events=section.webhook is not None,
                    error_classes=config.limits.error_classes,
                )
                for source, section in config.sources.items()
            },
            series_max=config.limits.series_max,
            on_folded=folded.append,
            selects=lambda source, known: selected(config.sources[source], known.id, known.name),
            labels={source: section.labelled for source, section in config.sources.items()},
        )
        own.series_limit.set(config.limits.series_max)
        memory = await remember(
            ledger,
            clock,
            names=config.sources,
            source=lambda name, known: Source(name, platforms[name], known, section=config.sources[name]),
            rules=config.rules,
            projection=projection,
            served=True,
        )
        running = Service(memory=memory, projection=projection, own=own)

        # Who is asked, who is listened to, and what is retried.
        tracer = OwnTracer(make_exporter(config.traces) if is_enabled(config.traces) and config.traces.own else None)
        stack.push_async_callback(tracer.aclose)
        for source in memory.sources.values():
            await _open_source(running, stack, config, source, clock, tracer)
        memory.operations.begin_repair = RepairOperations(
            memory.operations,
            memory.book,
            ledger,
            clock,
            sources=memory.sources,
            repairers=running.repairers,
        ).begin
        ledger.ahead = lambda: {
            name: -offset for name, source in memory.sources.items() if (offset := source.api.clock_offset())
        }
        for unregister in read_at_scrape(own, memory.sources):
            stack.callback(unregister)
        if is_enabled(config.traces):
            running.traces = TraceExporter(
                outbox=ledger,
                exporter=make_exporter(config.traces),
                sources=memory.sources,
                clock=clock,
                own=own,
                share=config.traces.sample,
                on_exported=lambda exported: attach(projection, exported),
            )
            stack.push_async_callback(running.traces.close)

        # The loops, and the doors last: nobody is let in before there is something to tell. In the end people are
        # still answered while the loops come to rest.
        stack.push_async_callback(doors.leave)
        tasks = await stack.enter_async_context(_background()) if loops else None
        if tasks is not None:
            for poller in running.pollers.values():
                tasks(poller.run())
            for retrier in running.retriers.values():
                tasks(retrier.run())
            for repairer in running.repairers.values():
                tasks(repairer.run())
            tasks(_operations_loop(running, clock))
            tasks(_housekeeping_loop(running, config, clock, folded))
            tasks(ledger.recover(clock.sleep))
            if running.traces is not None:
                tasks(running.traces.run())
        local_token = secrets.token_urlsafe(32)
        site = Site(
            config=config,
            clock=clock,
            sources=memory.sources,
            projection=projection,
            own=own,
            receivers=running.receivers,
            trace_url=_trace_url(config),
            control=ControlRoutes(
                memory.control, memory.operations, memory.book, config.server.admin_token, local_token
            ),
            store_error=ledger.check,
            reload=reload,
        )
        tls, apart = config.server.tls, config.server.webhooks_listen
        certificate = None if tls is None else Certificate(tls.cert_file, tls.key_file)
        running.port = await doors.open(config.server.listen, site.application(webhooks=apart is None), certificate)
        running.webhooks_port = running.port
        if apart is not None:
            running.webhooks_port = await doors.open(
                apart, site.webhook_application(), certificate, key="server.webhooks_listen"
            )
        doors.settle()
        stack.callback(local.announce(config, port=running.port, token=local_token))
        log.info("running", version=__version__, port=running.port, sources=len(config.sources))
        yield running
        log.info("stopping")


def _fold_rules(config: Config, section: SourceConfig, platform: Platform) -> FoldRules:
    return FoldRules(
        backfill=section.backfill_seconds,
        superseded_by_success=platform.superseded_by_success,
        counts_tests=section.test_runs == "count",
        traced=is_enabled(config.traces),
        retention=config.store.retention,
        holds_dead_letters=platform.holds_dead_letters,
        steps_later=platform.steps_later(section),
    )


async def _open_source(
    running: Service, stack: AsyncExitStack, config: Config, source: Source, clock: Clock, tracer: OwnTracer
) -> None:
    """Connect to one source: its poller, its retrier if its platform knows retries, its receiver if it has webhooks."""
    name, ledger = source.name, running.ledger
    span = partial(tracer.span, source=name)
    await stack.enter_async_context(source.opened(clock=clock, own=running.own, span=span))
    webhook = source.section.webhook
    if webhook is not None:
        running.reliability[name] = Reliability(source, ledger)
        running.receivers[name] = Receiver(
            source,
            ledger,
            clock,
            scheme=webhook.build(),
            requests_max=config.limits.webhook_requests_max,
            refreshed=Rotation(webhook).refreshed,
        )
    running.pollers[name] = Poller(source, ledger, clock, on_up=lambda up: running.projection.set_up(name, up))
    if source.adapter is not None:
        running.retriers[name] = Retrier(
            source, ledger, clock, book=running.book, decider=running.memory.deciders[name]
        )
    if source.platform.repairing is not None:
        running.repairers[name] = Repairer(
            source, ledger, clock, book=running.book, decider=running.memory.deciders[name]
        )


def _trace_url(config: Config) -> TraceUrl:
    """Where the status page finds the trace of a failed run, if the config says where traces are."""

    def trace_url(source: Source, letter: DeadLetter) -> str | None:
        if config.traces.url_template is None or not is_enabled(config.traces) or letter.run_id is None:
            return None
        trace_id, _ = trace_ids(source.platform.name, source.name, letter.run_id, letter.attempt)
        return config.traces.url_template.replace("{trace_id}", f"{trace_id:032x}")

    return trace_url


async def housekeeping_once(running: Service, config: Config, now: float, folded: list[Key]) -> None:
    """Expire, prune, count rows, judge webhooks; remember which workflows are shown together.

    First of all see whether the store still takes what needs room, however little comes in.
    """
    await running.ledger.probe()
    theirs = {name: source.api.platform_now() for name, source in running.sources.items() if source.api.answered}
    clocks: dict[str, float | None] = {name: theirs.get(name) for name in running.sources}
    done = await running.ledger.maintain(now=now, retention=config.store.retention, clocks=clocks)
    for table, rows in done.rows.items():
        running.own.ledger_rows.labels(table).set(rows)
    if done.pruned_runs or done.pruned_dead_letters or done.expired:
        counts = {"runs": done.pruned_runs, "dead_letters": done.pruned_dead_letters, "expired": done.expired}
        log.info("pruned", **counts)
    if done.forgotten_until is not None and theirs:  # what is ours to forget goes by our clock, within the same bounds
        before = min(now - config.store.retention, done.forgotten_until)
        await running.book.prune(now=min(now, max(theirs.values())), before=before)
    for source, judge in running.reliability.items():
        if source in theirs:
            await judge.judge_once(theirs[source])
    if folded:
        taken = list(folded)  # more may be folded while these are written
        await running.ledger.mark_folded(taken)
        del folded[: len(taken)]
        running.own.series_folded.inc(len(taken))
        log.warning("series_max reached: new workflows are shown as __other__", workflows=len(taken))


async def _housekeeping_loop(running: Service, config: Config, clock: Clock, folded: list[Key]) -> None:
    while True:
        with suppress(StoreError):  # counted and shown by the ledger
            await housekeeping_once(running, config, clock.now(), folded)
        await clock.sleep(HOUSEKEEPING_INTERVAL)


async def _operations_loop(running: Service, clock: Clock) -> None:
    while True:
        with suppress(StoreError):  # counted and shown by the ledger
            await running.operations.settle_once()
        await clock.sleep(OPERATIONS_INTERVAL)


@asynccontextmanager
async def _background() -> AsyncIterator[Callable[..., None]]:
    """Loops that end with the block; one that breaks ends the service. What the block itself raises stays as it is."""
    raised: Exception | None = None
    async with asyncio.TaskGroup() as group:
        started: list[asyncio.Task[None]] = []
        try:
            yield lambda loop: started.append(group.create_task(loop))
        except Exception as exc:  # the group would wrap it together with what the loops raise
            raised = exc
        for task in started:
            task.cancel()
    if raised is not None:
        raise raised


async def run(
    config: Config,
    *,
    stop: asyncio.Event,
    reload: asyncio.Event,
    load: Callable[[], Config],
    clock: Clock | None = None,
    on_running: Callable[[Service], None] = lambda service: None,
) -> None:
    """Keep a service running until ``stop`` is set. When ``reload`` is set, take the config anew, all or nothing."""
    clock, own = clock or SystemClock(), OwnMetrics()
    own.reload_successful.set(1)
    own.reload_timestamp.set(clock.now())
    pending: list[Config] = []

    async def take() -> str | None:
        """Read and check the config; None when it will be used."""
        try:
            pending.append(load())
        except ConfigError as exc:
            own.reload_successful.set(0)
            for problem in exc.problems:
                log.error("config not taken", problem=problem)
            return exc.problems[0]
        reload.set()
        return None

    previous: Config | None = None
    doors = Doors()
    try:
        while not stop.is_set():
            configure(config.log.level, config.log.format, sys.stderr)
            try:
                for caution in cautions(config, clock.now()):
                    log.warning("config warning", problem=caution)
                async with (
                    _given_up_at(stop) as begun,
                    service(config, clock=clock, own=own, reload=take, doors=doors) as running,
                ):
                    begun()
                    if previous is not None:
                        own.reload_successful.set(1)
                        own.reload_timestamp.set(clock.now())
                    previous = None
                    on_running(running)
                    while not stop.is_set() and not pending:
                        await _either(stop, reload)
                        if reload.is_set() and not pending:
                            await take()
                        reload.clear()
                    if stop.is_set():
                        doors.shut()
            except Exception as exc:  # whatever keeps a new config from running, the old one did
                if previous is None:
                    raise
                own.reload_successful.set(0)
                log.error("config not taken", problem=str(exc))
                config, previous = previous, None
                continue
            if pending:
                previous, config = config, pending.pop()
                pending.clear()
    finally:
        await doors.close()


@asynccontextmanager
async def _given_up_at(stop: asyncio.Event) -> AsyncIterator[Callable[[], object]]:
    """What is begun in the block is given up when ``stop`` is set, wherever it waits, until it calls what it gets."""
    task, given_up = asyncio.current_task(), False

    async def watch() -> None:
        nonlocal given_up
        await stop.wait()
        if task is not None:
            given_up = True
            task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield watching.cancel
    except asyncio.CancelledError:
        if not given_up or task is None or task.uncancel() > 0:
            raise
    finally:
        watching.cancel()


async def _either(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
