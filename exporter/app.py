"""The whole story, in order: the ledger, what is known in memory, the metrics, the sources, the loops, the web.

``service`` builds everything in one straight line and closes it in reverse; ``exporter.reloading`` keeps it running.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

from exporter import __version__
from exporter.clock import Clock, SharedClock, SystemClock
from exporter.config import Config
from exporter.holding import Holder, Service, Start, arm, joined
from exporter.log import get_logger, register_secrets
from exporter.memory import fold_rules, remember
from exporter.model import DeadLetter
from exporter.model.leases import UPKEEP
from exporter.model.ledger import Key
from exporter.platform import selected
from exporter.platforms import PLATFORMS
from exporter.source import Source, read_at_scrape
from exporter.store.ledger import Ledger, open_engine
from exporter.store.script import StoreError
from exporter.traces.exemplars import attach
from exporter.traces.export import TraceExporter, is_enabled
from exporter.traces.otlp import make_exporter
from exporter.traces.own import OwnTracer
from exporter.traces.spans import trace_ids
from exporter.view.costs import counted
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
    clock, own, shared = clock or SystemClock(), own or OwnMetrics(), None
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
        engine = await open_engine(config.store.url, password=config.store.password_now)
        if engine.is_shared:
            clock = shared = SharedClock(clock, follows=isinstance(clock, SystemClock))
        ledger = Ledger(
            engine,
            fold_rules(config),
            on_error=lambda operation: own.store_errors.labels(operation).inc(),
            on_up=lambda up: own.store_up.set(float(up)),
            timer=own.commit_timer,
        )
        stack.push_async_callback(ledger.close)
        folded: list[Key] = []
        projection = _projection(config, folded.append)
        own.series_limit.set(config.limits.series_max)
        memory = await remember(
            ledger,
            clock,
            names=config.sources,
            source=lambda name, known: Source(name, platforms[name], known, section=config.sources[name]),
            rules=config.rules,
            projection=projection,
            served=True,
            decides=not engine.is_shared,
        )
        running = Service(memory=memory, projection=projection, own=own)

        # Who is asked, who is listened to, and what is retried.
        tracer = OwnTracer(make_exporter(config.traces) if is_enabled(config.traces) and config.traces.own else None)
        stack.push_async_callback(tracer.aclose)
        for source in memory.sources.values():
            await _open_source(running, stack, config, source, clock, tracer)
        memory.connect(running.repairers, clock)
        ledger.exports = lambda: running.held if engine.is_shared else None
        ledger.ahead = lambda: {
            name: -offset for name, source in memory.sources.items() if (offset := source.api.clock_offset())
        }
        for unregister in read_at_scrape(own, running.held):
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
        holder = Holder(running, clock, tasks)
        if not engine.is_shared:
            for name in (UPKEEP, *memory.sources):
                holder.begin(name)
        if tasks is not None:
            tasks(_housekeeping_loop(running, config, clock, folded))
            tasks(ledger.recover(clock.sleep))
            if running.traces is not None:
                tasks(running.traces.run())
        local_token = secrets.token_urlsafe(32)
        site = Site(
            config=config,
            clock=clock,
            sources=memory.sources,
            held=running.held,
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
        if shared is not None:
            running.replicas = await stack.enter_async_context(
                joined(running, config, shared, holder, tasks, reload=reload)
            )
        stack.callback(local.announce(config, port=running.port, token=local_token))
        log.info("running", version=__version__, port=running.port, sources=len(config.sources))
        yield running
        log.info("stopping")


def _projection(config: Config, on_folded: Callable[[Key], None]) -> Projection:
    """What a scrape shows: of each source the metrics that its platform can have, with the labels of its section."""
    return Projection(
        {
            source: counted(
                PLATFORMS[section.platform],
                events=section.webhook is not None,
                error_classes=config.limits.error_classes,
            )
            for source, section in config.sources.items()
        },
        series_max=config.limits.series_max,
        on_folded=on_folded,
        selects=lambda source, known: selected(config.sources[source], known.id, known.name),
        labels={source: section.labelled for source, section in config.sources.items()},
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
    arm(running, source, clock)


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
        if source in theirs and source in running.held:
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
async def _background() -> AsyncIterator[Start]:
    """Loops that end with the block; one that breaks ends the service. What the block itself raises stays as it is."""
    raised: Exception | None = None
    async with asyncio.TaskGroup() as group:
        started: list[asyncio.Task[None]] = []

        def start(loop: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            started.append(group.create_task(loop))
            return started[-1]

        try:
            yield start
        except Exception as exc:  # the group would wrap it together with what the loops raise
            raised = exc
        for task in started:
            task.cancel()
    if raised is not None:
        raise raised


__all__ = ["Service", "housekeeping_once", "service"]
