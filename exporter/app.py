"""The whole story, in order: the store, the picture in memory, the metrics, the sources, the receivers, the loops, the
web.

``service`` builds everything in one straight line and closes it in reverse. ``run`` keeps a service running: it stops
on a signal and, when asked to reload, takes a new config whole or keeps the old one.
"""

import asyncio
import secrets
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

from exporter import __version__
from exporter.clock import Clock, SystemClock, stopwatch
from exporter.config import Config, ConfigError
from exporter.config.cautions import cautions
from exporter.log import configure, get_logger, register_secrets
from exporter.platform import Platform, selected
from exporter.platform.section import SourceConfig
from exporter.platforms import PLATFORMS
from exporter.polling.poller import Poller
from exporter.polling.wire import make_api
from exporter.retries.book import RetryBook
from exporter.retries.control import Control
from exporter.retries.retrier import Retrier
from exporter.store.ingest import Committed, Key, SourceRules
from exporter.store.ledger import Ledger, open_engine
from exporter.store.script import StoreError
from exporter.traces.exemplars import attach
from exporter.traces.export import TracedSource, TraceExporter, is_enabled
from exporter.traces.otlp import make_exporter
from exporter.traces.own import OwnTracer
from exporter.traces.spans import trace_ids
from exporter.view.known import SourceWorld, World
from exporter.view.own import OwnMetrics
from exporter.view.projection import Projection
from exporter.web import local
from exporter.web.certificate import Certificate
from exporter.web.control import ControlRoutes
from exporter.web.doors import Doors
from exporter.web.server import Site
from exporter.web.status import Links
from exporter.webhooks.receiver import Receiver
from exporter.webhooks.reliability import Reliability
from exporter.webhooks.rotation import Rotation

log = get_logger(__name__)

#: Seconds between two rounds of expiring, pruning and counting rows.
HOUSEKEEPING_INTERVAL = 60.0
#: The spans of our own work have this long (seconds) to be sent in the end.
OWN_SPANS_SECONDS_MAX = 2.0


@dataclass(slots=True, kw_only=True)
class Service:
    """A running service, for whoever started it."""

    port: int
    webhooks_port: int
    world: World
    ledger: Ledger
    projection: Projection
    own: OwnMetrics
    book: RetryBook
    control: Control
    pollers: dict[str, Poller] = field(default_factory=dict)
    retriers: dict[str, Retrier] = field(default_factory=dict)
    reliability: dict[str, Reliability] = field(default_factory=dict)
    traces: TraceExporter | None = None


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

        # What was counted, durable.
        ledger = Ledger(
            await open_engine(config.store.url),
            {source: _rules(config, section, platforms[source]) for source, section in config.sources.items()},
            on_error=lambda operation: own.store_errors.labels(operation).inc(),
            on_up=lambda up: own.store_up.set(float(up)),
            timer=_commit_timer(own),
        )
        stack.push_async_callback(ledger.close)
        loaded = await ledger.load()

        # What is so now, in memory; and what a scrape shows of both.
        world = World(list(config.sources))
        world.load(loaded)
        folded: list[Key] = []
        projection = Projection(
            platforms,
            series_max=config.limits.series_max,
            on_folded=folded.append,
            selects=lambda source, known: selected(config.sources[source], known.id, known.name),
        )
        projection.load(world, loaded.tallies)
        own.series_limit.set(config.limits.series_max)

        def follow(committed: Committed) -> None:
            projection.apply(world.apply(committed), committed.tallies, world)
            for source in {outcome.batch.source for outcome in committed.outcomes}:
                projection.refresh_usage(world.sources[source])

        ledger.on_commit = follow

        # What is being retried, by which rules, and what people say about it.
        book = RetryBook(ledger, world, platforms, config.rules(), projection=projection)
        await book.load(clock.now())
        labels = {source: section.labels for source, section in config.sources.items()}
        retriers: dict[str, Retrier] = {}
        control = Control(book, world, platforms, labels, clock, wake=lambda source: _wake(retriers, source))

        # Who is asked, and who is listened to.
        running = Service(
            port=0,
            webhooks_port=0,
            world=world,
            ledger=ledger,
            projection=projection,
            own=own,
            book=book,
            control=control,
            retriers=retriers,
        )
        tracer = OwnTracer(make_exporter(config.traces) if is_enabled(config.traces) and config.traces.own else None)
        stack.push_async_callback(_for_a_moment, tracer.close)
        receivers: dict[str, Receiver] = {}
        for source, section in config.sources.items():
            await _open_source(running, receivers, stack, config, source, section, platforms[source], clock, tracer)
        ledger.ahead = lambda: {
            source: -offset for source, poller in running.pollers.items() if (offset := poller.api.clock_offset())
        }
        for unregister in _read_at_scrape(running, clock):
            stack.callback(unregister)
        if is_enabled(config.traces):
            running.traces = _traces(running, config, platforms, clock)
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
            tasks(_housekeeping_loop(running, config, clock, folded))
            tasks(ledger.recover(clock.sleep))
            if running.traces is not None:
                tasks(running.traces.run())
        local_token = secrets.token_urlsafe(32)
        site = Site(
            config=config,
            clock=clock,
            world=world,
            projection=projection,
            own=own,
            pollers=running.pollers,
            receivers=receivers,
            links=_links(config, platforms),
            control=ControlRoutes(control, book, config.server.admin_token, local_token),
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


def _wake(retriers: dict[str, Retrier], source: str) -> None:
    if source in retriers:
        retriers[source].wake()


def _rules(config: Config, section: SourceConfig, platform: Platform) -> SourceRules:
    return SourceRules(
        backfill=section.backfill_seconds,
        superseded_by_success=platform.superseded_by_success,
        traced=is_enabled(config.traces),
        retention=config.store.retention,
        holds_dead_letters=platform.holds_dead_letters,
        steps_later=platform.steps_later(section),
    )


async def _open_source(
    running: Service,
    receivers: dict[str, Receiver],
    stack: AsyncExitStack,
    config: Config,
    source: str,
    section: SourceConfig,
    platform: Platform,
    clock: Clock,
    tracer: OwnTracer,
) -> None:
    """One source: its budget, its wire, its client, its poller, and its receiver if it takes webhooks."""
    own, labels = running.own, (platform.name, source)
    api = make_api(
        section,
        platform,
        clock,
        on_wait=lambda cause, seconds: own.api_throttled.labels(*labels, cause).inc(seconds),
        on_request=lambda endpoint, code: own.api_requests.labels(*labels, endpoint, code).inc(),
        span=lambda name: tracer.span(name, source=source),
    )
    stack.push_async_callback(api.close)
    slowdown = None
    if section.webhook is not None:
        judge = Reliability(source=source, platform=platform.name, ledger=running.ledger, own=own)
        running.reliability[source] = judge
        slowdown = judge.slowdown
    poller = Poller(
        source=source,
        platform=platform,
        client=platform.connect(section, api),
        api=api,
        interval=section.poll.interval,
        world=running.world.sources[source],
        ledger=running.ledger,
        clock=clock,
        own=own,
        on_up=lambda up: running.projection.set_up(source, up),
        slowdown=slowdown or (lambda: 1.0),
        span=lambda name: tracer.span(name, source=source),
        clock_offset=api.clock_offset,
    )
    running.pollers[source] = poller
    if platform.retrying is not None:
        running.retriers[source] = Retrier(
            source=source,
            platform=platform,
            adapter=platform.retrying.connect(section, api),
            traits=platform.retrying.traits,
            platform_now=api.platform_now,
            book=running.book,
            world=running.world.sources[source],
            ledger=running.ledger,
            clock=clock,
            labels=section.labels,
            span=lambda name: tracer.span(name, source=source),
        )
    if section.webhook is not None:
        receivers[source] = Receiver(
            source=source,
            platform=platform,
            scheme=section.webhook.build(),
            refreshed=Rotation(section.webhook).refreshed,
            base_url=section.url,
            ledger=running.ledger,
            poller=poller,
            clock=clock,
            own=own,
            requests_max=config.limits.webhook_requests_max,
            span=lambda name: tracer.span(name, source=source),
            platform_now=lambda: api.platform_now() if api.answered else None,
            read_until=lambda: running.world.sources[source].read_until,
            selects=lambda workflow_id: _selects(section, running.world.sources[source], workflow_id),
        )


def _selects(section: SourceConfig, world: SourceWorld, workflow_id: str) -> bool:
    known = world.workflows.get(workflow_id)
    return selected(section, workflow_id, None if known is None else known.name)


def _links(config: Config, platforms: dict[str, Platform]) -> Links:
    """Where the status page leads: to the platforms' own pages, and to traces if it is told where they are."""

    def trace_url(source: str, run_id: str, attempt: int) -> str | None:
        if config.traces.url_template is None or not is_enabled(config.traces):
            return None
        trace_id, _ = trace_ids(platforms[source].name, source, run_id, attempt)
        return config.traces.url_template.replace("{trace_id}", f"{trace_id:032x}")

    return Links(
        run_url=lambda source, run: platforms[source].run_url(config.sources[source], run), trace_url=trace_url
    )


def _traces(running: Service, config: Config, platforms: dict[str, Platform], clock: Clock) -> TraceExporter:
    """What empties the outbox of traces, and links the metrics to those that were exported."""

    def traced(source: str, section: SourceConfig) -> TracedSource:
        return TracedSource(
            platform=platforms[source].name,
            workflow=running.world.sources[source].workflows.get,
            run_url=lambda run: platforms[source].run_url(section, run),
        )

    return TraceExporter(
        outbox=running.ledger,
        exporter=make_exporter(config.traces),
        sources={source: traced(source, section) for source, section in config.sources.items()},
        clock=clock,
        own=running.own,
        share=config.traces.sample,
        on_exported=lambda exported: attach(running.projection, exported),
    )


def _read_at_scrape(running: Service, clock: Clock) -> Iterable[Callable[[], None]]:
    """Gauges that change as time passes."""

    def lag() -> Iterable[tuple[tuple[str, ...], float]]:
        for poller in running.pollers.values():
            for name, status in poller.status.items():
                covered_until = None if status.covered_until is None else poller.covered_until(name)
                if covered_until is not None:
                    age = max(0.0, poller.api.platform_now() - covered_until)
                    yield (poller.platform.name, poller.source, name), age

    def limits() -> Iterable[tuple[tuple[str, ...], float]]:
        for poller in running.pollers.values():
            if poller.api.budget.limit is not None:
                yield (poller.platform.name, poller.source), poller.api.budget.limit

    def remaining() -> Iterable[tuple[tuple[str, ...], float]]:
        for poller in running.pollers.values():
            yield (poller.platform.name, poller.source), poller.api.budget.remaining

    def offsets() -> Iterable[tuple[tuple[str, ...], float]]:
        for poller in running.pollers.values():
            if (offset := poller.api.clock_offset()) is not None:
                yield (poller.platform.name, poller.source), offset

    own, source = running.own, ("platform", "source")
    help = "Age of the newest moment up to which the stream was read completely, for the workflow that is worst off."
    yield own.at_scrape("cursor_lag_seconds", help, (*source, "stream"), lag)
    help = "How far our clock is ahead of the platform's; absent while no answer has told the time there."
    yield own.at_scrape("clock_offset_seconds", help, source, offsets)
    help = "Requests a minute the platform allows, as far as it says so."
    yield own.at_scrape("api_quota_limit", help, source, limits)
    yield own.at_scrape("api_quota_remaining", "Requests that could be sent at once now.", source, remaining)


async def housekeeping_once(running: Service, config: Config, now: float, folded: list[Key]) -> None:
    """Expire, prune, count rows, judge webhooks; remember which workflows are shown together.

    First of all see whether the store still takes what needs room, however little comes in.
    """
    await running.ledger.probe()
    theirs = {source: poller.api.platform_now() for source, poller in running.pollers.items() if poller.api.answered}
    clocks: dict[str, float | None] = {source: theirs.get(source) for source in running.pollers}
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


def _commit_timer(own: OwnMetrics) -> Callable[[str], AbstractContextManager[None]]:
    @contextmanager
    def timed(operation: str) -> Iterator[None]:
        with stopwatch() as elapsed:
            yield
        own.commit_duration.labels(operation).observe(elapsed())

    return timed


async def _for_a_moment(work: Callable[[], None]) -> None:
    """Do what blocks in a thread that nobody waits for when it takes too long, not even the end of the process."""
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def working() -> None:
        work()
        with suppress(RuntimeError):  # the loop is closed: it took too long
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=working, daemon=True).start()
    with suppress(TimeoutError):
        async with asyncio.timeout(OWN_SPANS_SECONDS_MAX):
            await done.wait()


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
                for caution in cautions(config):
                    log.warning("config warning", problem=caution)
                async with service(config, clock=clock, own=own, reload=take, doors=doors) as running:
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


async def _either(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
