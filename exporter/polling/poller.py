"""One source's loops: sweep each stream when it is due, complete what webhooks left open.

``sweep_once`` and ``complete_once`` do the work and say what they did; the loops around them only wait. A failed sweep
keeps yesterday's numbers and says so; one line is logged when a source turns bad and one when it recovers.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from exporter.clock import Clock, steady, until_due
from exporter.log import get_logger
from exporter.model import Via
from exporter.model.ledger import Batch, Folded
from exporter.platform import CHUNK, Fault, Page, RunKey, Stream, StreamName
from exporter.polling.planner import next_delay
from exporter.polling.reading import Reading, described
from exporter.source import Source, StreamStatus
from exporter.store.ledger import Ledger
from exporter.store.script import StoreError
from exporter.view.known import unread_stream
from exporter.wire.errors import ApiError, ErrorKind

log = get_logger(__name__)

#: A stream that webhooks ask for is swept at most this often (seconds).
WOKEN_GAP = 10.0
#: Our clock is wrong from so many seconds between it and the platform's on, and right again below half of that.
CLOCK_OFFSET_MAX = 60.0
#: A run that could not be completed is asked for this often before it is left to the sweeps.
COMPLETE_TRIES_MAX = 3
#: Seconds between two looks at whether the store works again.
STORE_INTERVAL = 30.0


@dataclass(slots=True, kw_only=True)
class SweepReport:
    """What one sweep did."""

    stream: str
    observations: int = 0
    news: int = 0
    reading: Reading = field(default_factory=Reading)
    error: ApiError | None = None
    store_error: str | None = None

    @property
    def faults(self) -> list[Fault]:
        return self.reading.kept


def _parts(page: Page) -> Iterator[Page]:
    """A page in parts that are quickly stored and shown; its cursors come with the last."""
    rest = page.observations
    while len(rest) > CHUNK:
        yield Page(observations=rest[:CHUNK])
        rest = rest[CHUNK:]
    if rest or page.cursors:
        yield Page(observations=rest, cursors=page.cursors)


class Poller:
    """Sweeps one source."""

    def __init__(
        self,
        source: Source,
        ledger: Ledger,
        clock: Clock,
        *,
        on_up: Callable[[bool], None] = lambda up: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """``on_up`` is called after each sweep of the main stream whether the platform could be reached."""
        self.source = source
        self._api = source.api
        self._known = source.known
        self._metrics = source.metrics
        self._ledger = ledger
        self._clock = clock
        self._on_up = on_up
        self._jitter = jitter
        self._clock_is_off = False

    # The work

    async def sweep_once(self, stream: str) -> SweepReport:
        """Read one stream and store what it says. Never raises for what a platform does."""
        status, report = self.source.streams[stream], SweepReport(stream=stream)
        began = steady(self._clock)
        try:
            if self._ledger.is_down:  # the platform need not be asked for what cannot be stored
                raise StoreError(self._ledger.error)
            with self.source.span(f"sweep {stream}"):
                await self._sweep(report, began, status.stream.name)
        except ApiError as error:
            report.error = error
        except StoreError as error:
            report.store_error = str(error)
            report.reading.take(Page(faults=[Fault(kind="store", detail=str(error))]))
            self._metrics.sweep_errors(stream, "store").inc()
        except Exception as bug:  # in a mapping, say: costs this sweep, never the service
            log.error("sweep broke", source=self.source.name, stream=stream, error=bug)
            report.error = ApiError(kind=ErrorKind.BAD_PAYLOAD, status=None, endpoint=stream, detail=type(bug).__name__)
        await self._keep_unread(status, report, began)
        self._metrics.sweep_duration(stream).observe(max(0.0, steady(self._clock) - began))
        self._note(status, report, self._on_their_clock(began), self._clock.now())
        self._compare_clocks()
        if report.reading.more and report.error is None:
            self.source.stream_due[status.stream.name].set()
        return report

    async def _sweep(self, report: SweepReport, began: float, stream: StreamName) -> None:
        """Read a stream with the platform's time. Where its first answer shows that we did not know it, once more: what
        a sweep asks for, and remembers, goes by that time.
        """
        assumed = self._ahead()
        pages = self.source.client.sweep(stream, self._known, self._api.platform_now())
        if await self._store(pages, report, began, stream, ahead=assumed):
            return
        await self._store(
            self.source.client.sweep(stream, self._known, self._api.platform_now()), report, began, stream
        )

    def _ahead(self) -> float:
        """How far the platform's clock is ahead of our steady one."""
        return self._api.platform_now() - steady(self._clock)

    async def complete_once(self) -> SweepReport:
        """Read the runs webhooks said too little about."""
        report, began = SweepReport(stream="complete"), steady(self._clock)
        if self._ledger.is_down:
            report.reading.take(Page(faults=[Fault(kind="store", detail=self._ledger.error or "")]))
            return report
        wanted, self.source.wakes = self.source.wakes, {}
        try:
            pages = self.source.client.complete(list(wanted), self._known, self._api.platform_now())
            await self._store(pages, report, began, "complete")
        except ApiError as error:
            report.error = error
            self._metrics.sweep_errors("complete", error.kind).inc()
            self._wake_again(wanted)
        except StoreError as error:
            report.store_error = str(error)
            report.reading.take(Page(faults=[Fault(kind="store", detail=str(error))]))
            self._metrics.sweep_errors("complete", "store").inc()
            self._wake_again(wanted)
        except Exception as bug:
            log.error("completing runs broke", source=self.source.name, error=bug)
        return report

    def _wake_again(self, wanted: dict[RunKey, int]) -> None:
        for key, tries in wanted.items():
            if tries + 1 < COMPLETE_TRIES_MAX:
                self.source.wakes.setdefault(key, tries + 1)

    async def _store(
        self, pages: AsyncIterator[Page], report: SweepReport, began: float, stream: str, *, ahead: float | None = None
    ) -> bool:
        """Store what is read. False, and not to the end, if the platform's clock is not ``ahead`` as was assumed."""
        async with aclosing(pages) as stream_of_pages:  # type: ignore[type-var]
            async for page in stream_of_pages:
                if ahead is not None and abs(self._ahead() - ahead) > CLOCK_OFFSET_MAX:
                    return False
                self._tell(stream, page.faults, report.reading.take(page))
                for part in _parts(page):
                    outcome = await self._ingest(part, began, stream)
                    report.observations += len(part.observations)
                    report.news += outcome.news
        if self._known.first_sweep_at is None:  # a source that is empty has been swept as well
            await self._ingest(Page(), began, stream)
        return True

    def _tell(self, stream: str, faults: Sequence[Fault], new: set[str]) -> None:
        """Count what could not be read; the first of its kind is worth a look, until there is none left."""
        if stream in self.source.streams:
            new -= self.source.streams[stream].kinds
        for fault in faults:
            self._metrics.sweep_errors(stream, fault.kind).inc()
            fields = {"source": self.source.name, "stream": stream, "kind": fault.kind, "detail": described(fault)}
            if fault.kind in new:
                log.warning("not all could be read", **fields)
            else:
                log.debug("not all could be read", **fields)
            new.discard(fault.kind)

    async def _keep_unread(self, status: StreamStatus, report: SweepReport, began: float) -> None:
        """Remember which workflows could not be read, so that neither sweeps nor restarts make them look fresh."""
        stream, started_at = status.stream.name, self._on_their_clock(began)
        changes = report.reading.changes(
            self._known.unread(stream),
            since=started_at if status.covered_until is None else status.covered_until,
            whole=report.error is None,
            workflows=self._known.workflows,
        )
        if not changes or report.store_error is not None:
            return
        cursors = {key: None if unread is None else unread.dump() for key, unread in changes.items()}
        try:
            await self._ingest(Page(cursors=cursors), began, unread_stream(stream))
        except StoreError as error:
            report.store_error = str(error)
            report.reading.take(Page(faults=[Fault(kind="store", detail=str(error))]))
            self._metrics.sweep_errors(stream, "store").inc()

    async def _ingest(self, page: Page, began: float, stream: str) -> Folded:
        batch = Batch(
            source=self.source.name,
            observations=page.observations,
            via=Via.POLL,
            now=self._api.platform_now(),
            started_at=self._on_their_clock(began),
            clock_known=self._api.clock_offset() is not None,
            stream=stream,
            cursors=page.cursors,
        )
        return await self._ledger.ingest(batch)

    def _on_their_clock(self, moment: float) -> float:
        """A moment of our steady clock on the platform's: how far that is off is known from its first answer on."""
        return moment + self._ahead()

    def _compare_clocks(self) -> None:
        """Say once that our clock is wrong, and once that it is right again."""
        offset = self._api.clock_offset()
        if offset is None or self._clock_is_off == (abs(offset) > CLOCK_OFFSET_MAX / (2 if self._clock_is_off else 1)):
            return
        self._clock_is_off = not self._clock_is_off
        if self._clock_is_off:
            log.warning(
                "our clock and the platform's differ: set the wrong one right",
                source=self.source.name,
                ahead_seconds=round(offset),
            )
        else:
            log.info("our clock agrees with the platform's again", source=self.source)

    def _note(self, status: StreamStatus, report: SweepReport, started_at: float, ended: float) -> None:
        stream, reading = status.stream.name, report.reading
        status.swept_at, status.faults, status.refusal = ended, reading.count, reading.refusal
        if reading.last is not None:
            status.last_fault, status.fault_at = reading.last, ended
        self._metrics.data_complete(stream).set(float(report.error is None and not reading.count))
        if report.store_error is not None:  # the platform did nothing wrong: it is neither down nor asked more rarely
            status.error = report.store_error
            return
        if report.error is not None:
            kind, detail = report.error.kind, str(report.error)
            self._metrics.sweep_errors(stream, kind).inc()
            if status.failures == 0 or status.kind is not kind:
                log.warning("sweep failing", source=self.source.name, stream=stream, kind=kind, error=detail)
            status.failures, status.error, status.kind = status.failures + 1, detail, kind
            status.kinds |= reading.kinds.keys()
        else:
            if status.failures:
                log.info("sweep recovered", source=self.source.name, stream=stream, failures=status.failures)
            for kind_ in sorted(status.kinds - reading.kinds.keys()):
                log.info("read again", source=self.source.name, stream=stream, kind=kind_)
            status.failures, status.error, status.kind = 0, None, None
            status.kinds = frozenset(reading.kinds)
            if reading.refusal is None:
                status.success_at, status.covered_until = ended, started_at
                # Alerts compare it with the time of Prometheus: a clock ahead must not make old data look young.
                self._metrics.sweep_success(stream).set(min(ended, self._api.platform_now()))
        if stream == self.source.platform.main:
            self._on_up(report.error is None)

    # The loops around it

    async def run(self) -> None:
        """Sweep until cancelled: the opening streams once, in order, then each stream in its own rhythm."""
        for stream in self.source.platform.streams:
            if stream.opening:
                await self.sweep_once(stream.name)
        async with asyncio.TaskGroup() as tasks:
            for stream in self.source.platform.streams:
                tasks.create_task(self._sweep_loop(stream), name=f"sweep-{self.source.name}-{stream.name}")
            tasks.create_task(self._complete_loop(), name=f"complete-{self.source}")

    async def _sweep_loop(self, stream: Stream) -> None:
        status = self.source.streams[stream.name]
        swept = stream.opening
        while True:
            if not swept:
                await self.sweep_once(stream.name)
            swept = False
            delay = next_delay(
                # While nothing can be stored a sweep asks nobody: so often that it goes on soon after.
                interval=min(status.interval, STORE_INTERVAL) if self._ledger.is_down else status.interval,
                failures=status.failures,
                kind=status.kind,
                slowdown=self.source.slowdown,
                jitter=self._jitter(),
            )
            await self._clock.sleep(min(WOKEN_GAP, delay))
            await until_due(self.source.stream_due[stream.name], self._clock, max(0.0, delay - WOKEN_GAP))

    async def _complete_loop(self) -> None:
        while True:
            await self.source.completion_due.wait()
            self.source.completion_due.clear()
            report = await self.complete_once()
            if self.source.wakes:
                self.source.completion_due.set()
                await self._clock.sleep(next_delay(interval=2.0, failures=1 if report.error else 0))
