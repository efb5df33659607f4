"""One configured connection to a platform: what the loops, the web and the commands are about.

A source is made from what a user wrote and what the ledger knows of it. While a service runs it is ``opened``: then it
has a wire, a client to read with, an adapter to retry with, metrics and spans of its own. The loops meet here: a
webhook or a person wakes a loop by setting its event, and no loop holds another.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from exporter import __version__
from exporter.clock import Clock, steady
from exporter.model import Result, Run
from exporter.model.labels import NO_LABELS, Labels
from exporter.platform import Client, Fault, Platform, RunKey, Stream, StreamName, selected
from exporter.platform.retrying import Adapter
from exporter.platform.section import SourceConfig
from exporter.view.known import SourceWorld, Unread
from exporter.view.own import OwnMetrics, SourceMetrics
from exporter.wire.api import Api
from exporter.wire.budget import Budget
from exporter.wire.errors import ErrorKind

#: Runs that webhooks may ask to be completed at one time; beyond that the sweeps find them.
WAKES_MAX = 5000
#: Less than this (seconds) is no step of our clock: it is read twice, one reading after the other.
CLOCK_STEP_MIN = 0.5

#: Takes runs to be completed and streams to be swept.
PassOn = Callable[[list[RunKey], list[StreamName]], None]
#: Enters a span of our own work, by its name.
Span = Callable[[str], AbstractContextManager[object]]


@dataclass(slots=True, kw_only=True)
class StreamStatus:
    """How a stream is doing, for metrics, readiness and the status page."""

    stream: Stream
    interval: float
    failures: int = 0  # failed sweeps in a row
    error: str | None = None
    kind: ErrorKind | None = None
    faults: int = 0  # of the last sweep
    refusal: str | None = None  # why the last sweep does not count though it went to its end
    last_fault: Fault | None = None
    fault_at: float | None = None  # when that was met, on our clock
    kinds: frozenset[str] = frozenset()  # of faults that are being met, each logged once
    swept_at: float | None = None  # end of the last sweep, on our clock
    success_at: float | None = None  # end of the last sweep that read everything it meant to
    covered_until: float | None = None  # start of that sweep, on the platform's clock


class Source:
    """What was configured under one name, and what is known of it.

    ``section`` is None where only the ledger is read: such a source is never opened.
    """

    api: Api
    client: Client
    adapter: Adapter | None
    metrics: SourceMetrics
    span: Span

    def __init__(
        self,
        name: str,
        platform: Platform,
        known: SourceWorld,
        *,
        section: SourceConfig | None = None,
        labels: Labels = NO_LABELS,
    ) -> None:
        self.name = name
        self.platform = platform
        self.known = known
        self.labels = labels if section is None else section.labelled
        self.slowdown = 1.0  # factor by which reliable webhooks stretch the poll interval
        self.wakes: dict[RunKey, int] = {}  # runs to be completed, and how often that was tried
        self.pass_on: PassOn = lambda keys, streams: None  # a wish to whoever reads it, while another replica does
        self.completion_due = asyncio.Event()
        self.stream_due: dict[str, asyncio.Event] = {stream.name: asyncio.Event() for stream in platform.streams}
        self.retries_due = asyncio.Event()
        self.holder: str | None = None  # the replica that reads it, where several share the work; "" while none does
        self.told: Sequence[Mapping[str, Any]] | None = None  # how another replica reads it, in its words; None: we do
        self._section = section
        self._clock: Clock
        self._wall = 0.0
        self._status: dict[str, StreamStatus] = {}

    @property
    def section(self) -> SourceConfig:
        assert self._section is not None, "a source of which only the ledger is read has no section"  # noqa: S101
        return self._section

    # While a service runs

    @asynccontextmanager
    async def opened(self, *, clock: Clock, own: OwnMetrics, span: Span = nullcontext) -> AsyncIterator["Source"]:
        """Connect to the platform, and let go of it in the end. Raises ``OSError`` for certificates of no use."""
        metrics = SourceMetrics(own, self.platform.name, self.name)
        api = make_api(
            self.section,
            self.platform,
            clock,
            on_wait=lambda cause, seconds: metrics.api_throttled(cause).inc(seconds),
            on_request=lambda endpoint, code: metrics.api_requests(endpoint, code).inc(),
            span=span,
        )
        try:
            retrying = self.platform.retrying
            self.connect(
                api=api,
                client=self.platform.connect(self.section, api),
                adapter=None if retrying is None else retrying.connect(self.section, api),
                clock=clock,
                metrics=metrics,
                span=span,
            )
            yield self
        finally:
            await api.close()

    def connect(
        self,
        *,
        api: Api,
        client: Client,
        adapter: Adapter | None = None,
        clock: Clock,
        metrics: SourceMetrics,
        span: Span = nullcontext,
    ) -> None:
        """Read by ``client`` and retry by ``adapter``, both over ``api``, from now on."""
        self.api, self.client, self.adapter = api, client, adapter
        self.metrics, self.span = metrics, span
        self._clock = clock
        self.begin()

    def renew(self) -> None:
        """Read by a new client, and retry by a new adapter: what these remember is of a time before others did."""
        retrying = self.platform.retrying
        self.client = self.platform.connect(self.section, self.api)
        self.adapter = None if retrying is None else retrying.connect(self.section, self.api)

    def begin(self) -> None:
        """Begin to read it: nothing was swept so far."""
        self._wall = self._clock.now() - steady(self._clock)
        interval = self.section.poll.interval
        self._status = {s.name: StreamStatus(stream=s, interval=interval * s.every) for s in self.platform.streams}
        for stream in self._status:
            self.metrics.data_complete(stream).set(0)

    # What is asked of it

    def selects(self, workflow_id: str) -> bool:
        """Whether the source watches a workflow."""
        workflow = self.known.workflows.get(workflow_id)
        return selected(self.section, workflow_id, None if workflow is None else workflow.name)

    def run_url(self, run: Run) -> str | None:
        """The page of a run that a person would open."""
        return self.platform.run_url(self.section, run, self.known.workflows.get(run.workflow_id))

    def workflow_url(self, workflow_id: str) -> str | None:
        """The page of a workflow on its platform, for a person; None where it is not known."""
        workflow = self.known.workflows.get(workflow_id)
        return None if workflow is None else self.platform.workflow_url(self.section, workflow)

    @property
    def streams(self) -> dict[str, StreamStatus]:
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

    def unread(self, stream: str) -> dict[str, Unread]:
        """The workflows of which this stream could not be read, the longest unread first."""
        return self.known.unread(stream)

    def covered_until(self, stream: str) -> float | None:
        """Up to when every workflow was read, on the platform's clock; None before the first sweep."""
        covered = self.streams[stream].covered_until
        oldest = min((unread.since for unread in self.unread(stream).values()), default=covered)
        return oldest if covered is None or oldest is None else min(covered, oldest)

    @property
    def ahead(self) -> float:
        """Seconds our clock is ahead of the platform's, as far as that is known."""
        api: Api | None = getattr(self, "api", None)
        return 0.0 if api is None else api.clock_offset() or 0.0

    def last_ended(self, workflow_id: str, results: frozenset[Result]) -> float | None:
        """When a run of a workflow last ended with one of these results, on our clock."""
        entry = self.known.entries.get(workflow_id)
        at = None if entry is None else entry.last(results)
        return None if at is None else at + self.ahead

    def wake(self, keys: list[RunKey], streams: list[StreamName]) -> None:
        """Have these runs completed and these streams swept soon, by whoever reads the source."""
        if self.told is not None:
            return self.pass_on(keys, streams)
        for key in keys[: max(0, WAKES_MAX - len(self.wakes))]:
            self.wakes.setdefault(key, 0)
        if self.wakes:
            self.completion_due.set()
        for stream in streams:
            self.stream_due[self.platform.reads(stream)].set()


def make_api(
    section: SourceConfig,
    platform: Platform,
    clock: Clock,
    *,
    on_wait: Callable[[str, float], None] = lambda cause, seconds: None,
    on_request: Callable[[str, str], None] = lambda endpoint, code: None,
    span: Span = nullcontext,
) -> Api:
    """The wire to one source, under its budget. Raises ``OSError`` for certificates of no use."""
    budget = Budget(
        clock,
        share=section.poll.budget_share,
        default_per_minute=platform.requests_per_minute,
        fixed_per_minute=section.poll.requests_per_minute,
        on_wait=on_wait,
    )
    try:
        trust = None if section.tls_ca_file is None else ssl.create_default_context(cafile=section.tls_ca_file)
    except OSError as exc:
        words = "is no PEM file" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise OSError(f"tls_ca_file of {section.url} cannot be used: {words}") from None
    return Api(
        base_url=section.url,
        clock=clock,
        budget=budget,
        auth=platform.auth(section),
        user_agent=f"automation-exporter/{__version__}",
        timeout=section.timeout,
        proxy=section.proxy,
        ssl=trust,
        on_request=on_request,
        error_detail=platform.error_detail,
        span=span,
    )


def read_at_scrape(own: OwnMetrics, sources: Mapping[str, Source]) -> Iterable[Callable[[], None]]:
    """Register the gauges of sources that change as time passes; yields how to end each."""
    Lines = Iterable[tuple[tuple[str, ...], float]]

    def lag() -> Lines:
        for name, source in sources.items():
            for stream, status in source.streams.items():
                covered_until = None if status.covered_until is None else source.covered_until(stream)
                if covered_until is not None:
                    age = max(0.0, source.api.platform_now() - covered_until)
                    yield (source.platform.name, name, stream), age

    def each(value: Callable[[Api], float | None]) -> Callable[[], Lines]:
        def lines() -> Lines:
            for name, source in sources.items():
                if (found := value(source.api)) is not None:
                    yield (source.platform.name, name), found

        return lines

    labels = ("platform", "source")
    help = "Age of the newest moment up to which the stream was read completely, for the workflow that is worst off."
    yield own.at_scrape("cursor_lag_seconds", help, (*labels, "stream"), lag)
    help = "How far our clock is ahead of the platform's; absent while no answer had the time."
    yield own.at_scrape("clock_offset_seconds", help, labels, each(lambda api: api.clock_offset()))
    help = "Requests a minute the platform allows, as far as it says so."
    yield own.at_scrape("api_quota_limit", help, labels, each(lambda api: api.budget.limit))
    help = "Requests that could be sent at once now."
    yield own.at_scrape("api_quota_remaining", help, labels, each(lambda api: api.budget.remaining))
