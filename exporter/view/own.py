"""The exporter measures itself like its subjects: metrics of sweeps, API calls, webhooks, store and traces.

These are few, so prometheus-client keeps them, together with the process and interpreter metrics it brings. They live
as long as the process; what must survive a restart is a tally in the ledger.
"""

import platform as interpreter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    exposition,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from exporter import __version__
from exporter.clock import stopwatch
from exporter.model.catalogue import unit_of

disable_created_metrics()  # type: ignore[no-untyped-call]

_P = "automation_exporter_"
_SOURCE = ("platform", "source")
_STREAM = (*_SOURCE, "stream")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_COMMIT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_DELAY = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0)

#: Label values and value of each line of a gauge that is computed when it is read.
Read = Callable[[], Iterable[tuple[tuple[str, ...], float]]]
#: Lines appended after everything else in OpenMetrics.
EOF = b"# EOF\n"


class OwnMetrics:
    """Counters, gauges and histograms of one service, and the registry they are in."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        self._states: list[Gauge] = []  # of sources
        self._totals: list[Counter | Histogram] = []  # of sources

        def counter(name: str, help: str, labels: Iterable[str] = ()) -> Counter:
            made = Counter(_P + name, help, labels, registry=registry)
            if "source" in labels:
                self._totals.append(made)
            return made

        def gauge(name: str, help: str, labels: Iterable[str] = ()) -> Gauge:
            made = Gauge(_P + name, help, labels, registry=registry)
            if "source" in labels:
                self._states.append(made)
            return made

        def histogram(name: str, help: str, labels: Iterable[str], buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(_P + name, help, labels, buckets=buckets, registry=registry)
            if "source" in labels:
                self._totals.append(made)
            return made

        self.build_info = gauge("build_info", "1, labelled by version.", ("version", "python"))
        self.build_info.labels(__version__, interpreter.python_version()).set(1)
        self.reload_successful = gauge(
            "config_last_reload_successful", "1 if the last (re)load of the config worked, else 0."
        )
        self.reload_timestamp = gauge(
            "config_last_reload_success_timestamp_seconds", "When a config was last loaded successfully."
        )
        self.sweep_duration = histogram(
            "sweep_duration_seconds", "Duration of one poll cycle (sweep) of a stream.", _STREAM, _SECONDS
        )
        self.sweep_success = gauge(
            "sweep_last_success_timestamp_seconds",
            "When a poll cycle of the stream last read everything.",
            _STREAM,
        )
        self.data_complete = gauge(
            "data_complete", "1 if the last poll cycle of the stream read everything without a fault, else 0.", _STREAM
        )
        self.sweep_errors = counter(
            "sweep_errors_total", "Failed poll cycles, and parts of them that could not be used.", (*_STREAM, "kind")
        )
        self.api_requests = counter(
            "api_requests_total", "Requests sent to the platform.", (*_SOURCE, "endpoint", "code")
        )
        self.api_throttled = counter(
            "api_throttled_seconds_total", "Time that requests waited, by cause.", (*_SOURCE, "cause")
        )
        self.webhook_events = counter("webhook_events_total", "Webhooks received.", (*_SOURCE, "outcome"))
        self.webhook_delay = histogram(
            "webhook_delay_seconds", "Time from an event on the platform to its webhook being stored.", _SOURCE, _DELAY
        )
        self.webhook_reliability = gauge(
            "webhook_reliability_ratio",
            "Share of recently finished runs that a webhook reported, of those of which one was to be expected.",
            _SOURCE,
        )
        self.poll_slowdown = gauge(
            "poll_slowdown_ratio",
            "Factor by which reliable webhooks stretch the poll interval; 1: not at all.",
            _SOURCE,
        )
        self.leader = gauge("leader", "1 on the replica that polls, retries and exposes the source, else 0.", _SOURCE)
        self.ledger_rows = gauge("ledger_rows", "Rows in the database.", ("table",))
        self.store_errors = counter("store_errors_total", "Operations that the database could not do.", ("operation",))
        for operation in ("ingest", "probe"):  # there before the first error, so that it is seen as a rise
            self.store_errors.labels(operation)
        self.store_up = gauge(
            "store_up",
            "1 while the last write was stored and the database at the configured place is the one that is open.",
        )
        self.commit_duration = histogram(
            "commit_duration_seconds",
            "Duration of one transaction, including the wait for its turn.",
            ("operation",),
            _COMMIT,
        )
        self.series = gauge(
            "series", "Lines of workflow and retry metrics, also of sources that another replica exposes."
        )
        self.series_limit = gauge(
            "series_limit", "Most such lines there may be; workflows without room are shown as __other__."
        )
        self.series_folded = counter("series_folded_total", "Workflows shown as __other__ for lack of room.")
        self.render_duration = histogram(
            "render_duration_seconds", "Duration of writing one scrape.", ("format",), _COMMIT
        )
        self.spans = counter("spans_total", "Spans handed to the collector, by outcome.", ("outcome",))
        self.traces_pending = gauge("traces_pending", "Finished runs whose trace is still to be exported.")

    def forget_sources(self, kept: Collection[tuple[str, str]], *, receiving: Collection[str]) -> None:
        """Forget how the sources were, for a new config.

        What is so of a source that stays is said again by whoever keeps it. Totals go on for the ``kept`` ones,
        (platform, source), those of webhooks only for the sources that are still ``receiving`` any. All other series
        of sources go.
        """
        for gauge in self._states:
            gauge.clear()
        for metric in self._totals:
            of_webhooks = metric in (self.webhook_events, self.webhook_delay)
            samples = [sample.labels for family in metric.collect() for sample in family.samples]
            for platform, source in {(labels["platform"], labels["source"]) for labels in samples}:
                if (platform, source) not in kept or (of_webhooks and source not in receiving):
                    metric.remove_by_labels({"platform": platform, "source": source})

    def forget_states(self, source: str) -> None:
        """Forget how a source is, which another replica says from now on."""
        for gauge in self._states:
            if gauge is not self.leader:
                gauge.remove_by_labels({"source": source})

    @contextmanager
    def commit_timer(self, operation: str) -> Iterator[None]:
        """Measure one transaction."""
        with stopwatch() as elapsed:
            yield
        self.commit_duration.labels(operation).observe(elapsed())

    def at_scrape(self, name: str, help: str, labels: tuple[str, ...], read: Read) -> Callable[[], None]:
        """A gauge computed from memory when it is read, for what changes as time passes; returns how to end it."""
        collector = _AtScrape(_P + name, help, labels, read)
        self.registry.register(collector)
        return lambda: self.registry.unregister(collector)

    def render(self, *, openmetrics: bool) -> bytes:
        """The text of all of them, without the end mark."""
        if openmetrics:
            write = openmetrics_exposition.generate_latest
            text: bytes = write(_WithUnits(self.registry))  # type: ignore[no-untyped-call]
            return text.removesuffix(EOF)
        return bytes(exposition.generate_latest(self.registry))


class SourceMetrics:
    """The metrics of one source: those of ``OwnMetrics``, their first two labels given."""

    def __init__(self, own: OwnMetrics, platform: str, source: str) -> None:
        of = (platform, source)
        self.sweep_duration = partial(own.sweep_duration.labels, *of)
        self.sweep_success = partial(own.sweep_success.labels, *of)
        self.sweep_errors = partial(own.sweep_errors.labels, *of)
        self.data_complete = partial(own.data_complete.labels, *of)
        self.api_requests = partial(own.api_requests.labels, *of)
        self.api_throttled = partial(own.api_throttled.labels, *of)
        self.webhook_events = partial(own.webhook_events.labels, *of)
        self.webhook_delay = partial(own.webhook_delay.labels, *of)
        self.webhook_reliability = partial(own.webhook_reliability.labels, *of)
        self.forget_webhook_reliability = partial(
            own.webhook_reliability.remove_by_labels, {"platform": platform, "source": source}
        )
        self.poll_slowdown = partial(own.poll_slowdown.labels, *of)


class _WithUnits(Collector):
    """The same families, each with the unit its name ends in: the official client leaves it out of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.unit = unit_of(family.name) or ""
            yield family


class _AtScrape(Collector):
    def __init__(
        self,
        name: str,
        help: str,
        labels: tuple[str, ...],
        read: Read,
    ) -> None:
        self._name, self._help, self._labels, self._read = name, help, labels, read

    def describe(self) -> Iterable[Metric]:
        return [GaugeMetricFamily(self._name, self._help, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self._name, self._help, labels=self._labels)
        for labels, value in self._read():
            family.add_metric(labels, value)
        return [family]
