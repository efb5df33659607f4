"""One source's loops: sweep each stream when it is due, complete what webhooks left open.

``sweep_once`` and ``complete_once`` do the work and say what they did; the loops around them only wait. A failed sweep
keeps yesterday's numbers and says so; one line is logged when a source turns bad and one when it recovers.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field

from exporter.clock import Clock, steady
from exporter.http import Api, ApiError, ErrorKind
from exporter.log import get_logger
from exporter.metrics.own import OwnMetrics
from exporter.model import Via
from exporter.platform import Client, Fault, Page, Platform, RunKey, Stream
from exporter.polling.planner import next_delay
from exporter.store.ingest import Batch, Outcome
from exporter.store.ledger import Ledger
from exporter.store.script import StoreError
from exporter.world import SourceWorld

log = get_logger(__name__)

#: Runs that webhooks may ask to be completed at one time; beyond that the sweeps find them.
WAKES_MAX = 5000
#: A stream that webhooks ask for is swept at most this often (seconds).
WOKEN_GAP = 10.0
#: Our clock is wrong from so many seconds between it and the platform's on, and right again below half of that.
CLOCK_OFFSET_MAX = 60.0
#: Less than this (seconds) is no step of our clock: it is read twice, one reading after the other.
CLOCK_STEP_MIN = 0.5
#: A run that could not be completed is asked for this often before it is left to the sweeps.
COMPLETE_TRIES_MAX = 3
#: Seconds between two looks at whether the store works again.
STORE_INTERVAL = 30.0


@dataclass(slots=True, kw_only=True)
class StreamStatus:
    """How a stream is doing, for metrics, readiness and the status page."""

    stream: Stream
    interval: float
    failures: int = 0  # failed sweeps in a row
    error: str | None = None
    kind: ErrorKind | None = None
    faults: int = 0  # of the last sweep
    swept_at: float | None = None  # end of the last sweep, on our clock
    success_at: float | None = None  # end of the last sweep that read everything it meant to
    covered_until: float | None = None  # start of that sweep, on the platform's clock


@dataclass(slots=True, kw_only=True)
class SweepReport:
    """What one sweep did."""

    stream: str
    observations: int = 0
    news: int = 0
    faults: list[Fault] = field(default_factory=list)
    error: ApiError | None = None


class Poller:
    """Sweeps one source."""

    def __init__(
        self,
        *,
        source: str,
        platform: Platform,
        client: Client,
        api: Api,
        interval: float,
        world: SourceWorld,
        ledger: Ledger,
        clock: Clock,
        own: OwnMetrics,
        on_up: Callable[[bool], None] = lambda up: None,
        slowdown: Callable[[], float] = lambda: 1.0,
        span: Callable[[str], AbstractContextManager[object]] = nullcontext,
        jitter: Callable[[], float] = random.random,
        clock_offset: Callable[[], float | None] = lambda: None,
    ) -> None:
        """``clock_offset``: how far our clock is ahead of the platform's, None while nobody knows."""
        self.source = source
        self.platform = platform
        self.client = client
        self.api = api
        self._world = world
        self._ledger = ledger
        self._clock = clock
        self._own = own
        self._on_up = on_up
        self._slowdown = slowdown
        self._span = span
        self._jitter = jitter
        self._clock_offset = clock_offset
        self._clock_is_off = False
        self._labels = (platform.name, source)
        self._status = {s.name: StreamStatus(stream=s, interval=interval * s.every) for s in platform.streams}
        self._due = {s.name: asyncio.Event() for s in platform.streams}
        self._wakes: dict[RunKey, int] = {}
        self._woken = asyncio.Event()
        self._wall = clock.now() - steady(clock)
        for status in self._status.values():
            self._own.data_complete.labels(*self._labels, status.stream.name).set(0)

    @property
    def status(self) -> dict[str, StreamStatus]:
        """How each stream is doing. Times of ours follow the clock when somebody sets it: what was read a minute ago
        stays a minute old.
        """
        wall = self._clock.now() - steady(self._clock)
        step = wall - self._wall
        if abs(step) > CLOCK_STEP_MIN:
            self._wall = wall
            for status in self._status.values():
                status.swept_at = None if status.swept_at is None else status.swept_at + step
                status.success_at = None if status.success_at is None else status.success_at + step
        return self._status

    # The work

    async def sweep_once(self, stream: str) -> SweepReport:
        """Read one stream and store what it says. Never raises for what a platform does."""
        status, report = self.status[stream], SweepReport(stream=stream)
        began = steady(self._clock)
        try:
            if self._ledger.is_down:  # the platform need not be asked for what cannot be stored
                raise StoreError(self._ledger.error)
            with self._span(f"sweep {stream}"):
                await self._sweep(report, began, stream)
        except ApiError as error:
            report.error = error
        except StoreError as error:
            report.faults.append(Fault(kind="store", detail=str(error)))
            self._own.sweep_errors.labels(*self._labels, stream, "store").inc()
        except Exception as bug:  # in a mapping, say: costs this sweep, never the service
            log.error("sweep broke", source=self.source, stream=stream, error=bug)
            report.error = ApiError(kind=ErrorKind.BAD_PAYLOAD, status=None, endpoint=stream, detail=type(bug).__name__)
        self._own.sweep_duration.labels(*self._labels, stream).observe(max(0.0, steady(self._clock) - began))
        self._note(status, report, self._on_their_clock(began), self._clock.now())
        self._compare_clocks()
        return report

    async def _sweep(self, report: SweepReport, began: float, stream: str) -> None:
        """Read a stream with the platform's time. Where its first answer shows that we did not know it, once more: what
        a sweep asks for, and remembers, goes by that time.
        """
        assumed = self._ahead()
        pages = self.client.sweep(stream, self._world, self.api.platform_now())
        if await self._store(pages, report, began, stream, ahead=assumed):
            return
        await self._store(self.client.sweep(stream, self._world, self.api.platform_now()), report, began, stream)

    def _ahead(self) -> float:
        """How far the platform's clock is ahead of our steady one."""
        return self.api.platform_now() - steady(self._clock)

    async def complete_once(self) -> SweepReport:
        """Read the runs webhooks said too little about."""
        report, began = SweepReport(stream="complete"), steady(self._clock)
        if self._ledger.is_down:
            report.faults.append(Fault(kind="store", detail=self._ledger.error or ""))
            return report
        wanted, self._wakes = self._wakes, {}
        try:
            pages = self.client.complete(list(wanted), self._world, self.api.platform_now())
            await self._store(pages, report, began, "complete")
        except ApiError as error:
            report.error = error
            self._own.sweep_errors.labels(*self._labels, "complete", error.kind).inc()
            self._wake_again(wanted)
        except StoreError as error:
            report.faults.append(Fault(kind="store", detail=str(error)))
            self._own.sweep_errors.labels(*self._labels, "complete", "store").inc()
            self._wake_again(wanted)
        except Exception as bug:
            log.error("completing runs broke", source=self.source, error=bug)
        return report

    def _wake_again(self, wanted: dict[RunKey, int]) -> None:
        for key, tries in wanted.items():
            if tries + 1 < COMPLETE_TRIES_MAX:
                self._wakes.setdefault(key, tries + 1)

    async def _store(
        self, pages: AsyncIterator[Page], report: SweepReport, began: float, stream: str, *, ahead: float | None = None
    ) -> bool:
        """Store what is read. False, and not to the end, if the platform's clock is not ``ahead`` as was assumed."""
        async with aclosing(pages) as stream_of_pages:  # type: ignore[type-var]
            async for page in stream_of_pages:
                if ahead is not None and abs(self._ahead() - ahead) > CLOCK_OFFSET_MAX:
                    return False
                report.faults.extend(page.faults)
                for fault in page.faults:
                    self._own.sweep_errors.labels(*self._labels, stream, fault.kind).inc()
                    log.debug("unusable", source=self.source, stream=stream, kind=fault.kind, detail=fault.detail)
                if page.observations or page.cursors:
                    outcome = await self._ingest(page, began, stream)
                    report.observations += len(page.observations)
                    report.news += outcome.news
        if self._world.first_sweep_at is None:  # a source that is empty has been swept as well
            await self._ingest(Page(), began, stream)
        return True

    async def _ingest(self, page: Page, began: float, stream: str) -> Outcome:
        batch = Batch(
            source=self.source,
            observations=page.observations,
            via=Via.POLL,
            now=self.api.platform_now(),
            started_at=self._on_their_clock(began),
            clock_known=self._clock_offset() is not None,
            stream=stream,
            cursors=page.cursors,
        )
        return await self._ledger.ingest(batch)

    def _on_their_clock(self, moment: float) -> float:
        """A moment of our steady clock on the platform's: how far that is off is known from its first answer on."""
        return moment + self._ahead()

    def _compare_clocks(self) -> None:
        """Say once that our clock is wrong, and once that it is right again."""
        offset = self._clock_offset()
        if offset is None or self._clock_is_off == (abs(offset) > CLOCK_OFFSET_MAX / (2 if self._clock_is_off else 1)):
            return
        self._clock_is_off = not self._clock_is_off
        if self._clock_is_off:
            log.warning(
                "our clock and the platform's differ: set the wrong one right",
                source=self.source,
                ahead_seconds=round(offset),
            )
        else:
            log.info("our clock agrees with the platform's again", source=self.source)

    def _note(self, status: StreamStatus, report: SweepReport, started_at: float, ended: float) -> None:
        labels = (*self._labels, status.stream.name)
        status.swept_at, status.faults = ended, len(report.faults)
        stored = all(fault.kind != "store" for fault in report.faults)
        self._own.data_complete.labels(*labels).set(float(report.error is None and not report.faults))
        if not stored:  # the platform did nothing wrong: it is neither down nor asked more rarely
            status.error = report.faults[-1].detail
            return
        if report.error is not None:
            kind, detail = report.error.kind, str(report.error)
            self._own.sweep_errors.labels(*labels, kind).inc()
            if status.failures == 0 or status.kind is not kind:
                log.warning("sweep failing", source=self.source, stream=status.stream.name, kind=kind, error=detail)
            status.failures, status.error, status.kind = status.failures + 1, detail, kind
        else:
            if status.failures:
                log.info("sweep recovered", source=self.source, stream=status.stream.name, failures=status.failures)
            status.failures, status.error, status.kind = 0, None, None
            status.success_at, status.covered_until = ended, started_at
            # Alerts compare it with the time of Prometheus: a clock that is ahead must not make old data look young.
            self._own.sweep_success.labels(*labels).set(min(ended, self.api.platform_now()))
        if status.stream.name == self._main_stream:
            self._on_up(report.error is None)

    @property
    def _main_stream(self) -> str:
        return next((s.name for s in self.platform.streams if s.name == "workflows"), self.platform.streams[0].name)

    # The loops around it

    def wake(self, keys: list[RunKey], streams: list[str]) -> None:
        """Have these runs completed and these streams swept soon."""
        for key in keys[: max(0, WAKES_MAX - len(self._wakes))]:
            self._wakes.setdefault(key, 0)
        if self._wakes:
            self._woken.set()
        for stream in streams:
            if stream in self._due:
                self._due[stream].set()

    async def run(self) -> None:
        """Sweep until cancelled: the opening streams once, in order, then each stream in its own rhythm."""
        for stream in self.platform.streams:
            if stream.opening:
                await self.sweep_once(stream.name)
        async with asyncio.TaskGroup() as tasks:
            for stream in self.platform.streams:
                tasks.create_task(self._sweep_loop(stream), name=f"sweep-{self.source}-{stream.name}")
            tasks.create_task(self._complete_loop(), name=f"complete-{self.source}")

    async def _sweep_loop(self, stream: Stream) -> None:
        status = self.status[stream.name]
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
                slowdown=self._slowdown(),
                jitter=self._jitter(),
            )
            await self._clock.sleep(min(WOKEN_GAP, delay))
            await self._wait(self._due[stream.name], max(0.0, delay - WOKEN_GAP))

    async def _complete_loop(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            report = await self.complete_once()
            if self._wakes:
                self._woken.set()
                await self._clock.sleep(next_delay(interval=2.0, failures=1 if report.error else 0))

    async def _wait(self, due: asyncio.Event, delay: float) -> None:
        """Wait for the time to pass or for the event, whichever is first."""
        waiting = {asyncio.ensure_future(due.wait()), asyncio.ensure_future(self._clock.sleep(delay))}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        due.clear()
