"""Sending traces: a loop over counted runs whose trace the collector does not have yet.

The ledger is the outbox. A run leaves it only when the exporter reported success, so an outage of the collector costs
nothing but time, and a crash between export and mark sends the same ids once more. The SDK's batch processor would not
do: it ignores what becomes of an export. So the OTLP exporter is called directly, in a thread because it blocks; its
own timeout (``OTEL_EXPORTER_OTLP_TIMEOUT``, 10 s) bounds the call and the retries it makes inside.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import format_span_id, format_trace_id

from exporter.clock import Clock
from exporter.log import get_logger
from exporter.metrics.own import OwnMetrics
from exporter.model import Run, Workflow
from exporter.redact import redact
from exporter.retries.model import Retry
from exporter.store.maintenance import PendingTrace
from exporter.store.script import StoreError
from exporter.traces.spans import keep, spans_of, spans_of_retry

if TYPE_CHECKING:
    from exporter.config import TracesConfig

log = get_logger(__name__)

TRACES_PER_BATCH_MAX = 512
#: Collectors refuse large requests (gRPC ones by default beyond 4 MiB); a trace is never divided.
SPANS_PER_BATCH_MAX = 2048
#: A run of which more is expected, its error or its steps, is withheld for this long (seconds) after it was counted: a
#: few sweeps, since what a webhook told first is completed by one.
SETTLING = 300.0
#: Seconds between two rounds: usually, while there is more to send, and at most while the collector is down.
INTERVAL, INTERVAL_BACKLOG, INTERVAL_FAILING_MAX = 5.0, 0.1, 60.0
#: From this many failed rounds in a row on, a single trace is tried on its own.
FAILED_ROUNDS_BEFORE_PROBE = 5


class Outcome(StrEnum):
    """What became of spans."""

    EXPORTED = "exported"
    FAILED = "failed"  # not taken by the collector this time; they stay in the outbox
    SAMPLED_OUT = "sampled_out"
    INVALID = "invalid"  # nobody can make or take this trace; it is given up


class Outbox(Protocol):
    """Counted runs whose trace is still to be exported. The ledger is one."""

    async def pending_traces(self, *, limit: int, settled_before: float) -> list[PendingTrace]:
        """The oldest first; a run of which more is expected only if it was counted before ``settled_before``."""
        ...

    async def mark_traced(self, keys: list[tuple[str, str, int]]) -> None:
        """These attempts (source, run id, attempt) need no export any more."""
        ...

    async def count_pending_traces(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedSource:
    """What a trace says of a source beyond its runs."""

    platform: str
    workflow: Callable[[str], Workflow | None]  # by id, as known now
    run_url: Callable[[Run], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A run or a retry whose trace the collector has: an exemplar may point to it. Ids in hex."""

    source: str
    of: Run | Retry
    dead_letter: bool
    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What one round did, in traces."""

    exported: int = 0
    failed: int = 0
    invalid: int = 0
    dropped_by_sampling: int = 0
    pending: int = 0
    backlog: bool = False  # there was more to send than one round takes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trace:
    """A pending trace and its spans; none if they cannot be made."""

    pending: PendingTrace
    spans: list[ReadableSpan]
    kept: bool = True

    @property
    def exported(self) -> Exported:
        context = self.spans[0].context
        return Exported(
            source=self.pending.source,
            of=self.pending.of,
            dead_letter=self.pending.dead_letter_id is not None,
            trace_id=format_trace_id(context.trace_id),
            span_id=format_span_id(context.span_id),
        )


def is_enabled(config: "TracesConfig", environ: Mapping[str, str] = os.environ) -> bool:
    """Whether runs are traced at all; ``OTEL_SDK_DISABLED`` has the last word."""
    return config.enabled and environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"


class ExporterUnavailable(Exception):
    """The config asks for an exporter that cannot be had: one line that says what to do."""


def make_exporter(config: "TracesConfig", environ: Mapping[str, str] = os.environ) -> SpanExporter:
    """The OTLP exporter the config and the ``OTEL_EXPORTER_OTLP_*`` variables ask for.

    What the config leaves out, the exporter itself takes from the process's environment. Raises
    ``ExporterUnavailable``.
    """
    headers = {name: value.get_secret_value() for name, value in config.headers.items()}
    protocol = (
        config.protocol
        or environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    )
    if config.endpoint is not None and not config.endpoint.startswith(("http://", "https://")):
        raise ExporterUnavailable("traces.endpoint: must be a URL such as http://127.0.0.1:4318")
    if protocol == "grpc":
        return _grpc_exporter(config.endpoint, headers)
    if protocol != "http/protobuf":
        raise ExporterUnavailable(f"traces.protocol: {protocol!r} is not supported; use http/protobuf or grpc")
    session = requests.Session()
    session.hooks["response"].append(_refuse_redirect)
    return OTLPSpanExporter(endpoint=_traces_url(config.endpoint), headers=headers, session=session)


def _grpc_exporter(endpoint: str | None, headers: dict[str, str]) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc
    except ImportError:
        raise ExporterUnavailable(
            "traces.protocol: grpc needs an extra: pip install 'automation-exporter[grpc]'"
        ) from None
    metadata = tuple((name.lower(), value) for name, value in headers.items())
    made: SpanExporter = grpc.OTLPSpanExporter(endpoint=endpoint, headers=metadata or None)
    return made


def _traces_url(base: str | None) -> str | None:
    """The exporter's argument is the whole URL, ours is the base, as in ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
    if base is None:
        return None
    base = base.rstrip("/")
    return base if base.endswith("/v1/traces") else f"{base}/v1/traces"


def _refuse_redirect(response: requests.Response, *_: Any, **__: Any) -> None:
    """The exporter neither follows a redirect nor takes it for a failure: the spans would count as exported."""
    if 300 <= response.status_code < 400:
        response.close()
        raise requests.HTTPError(f"{response.status_code}: the collector has moved, name its new address")


def source_resource(source: str, platform: str) -> Resource:
    """The resource of a source's traces: the source is the service; ``OTEL_RESOURCE_ATTRIBUTES`` add to it."""
    known = dict(Resource.create({SERVICE_NAME: source, "automation.platform": platform}).attributes)
    if SERVICE_INSTANCE_ID not in OTELResourceDetector().detect().attributes:
        known.pop(SERVICE_INSTANCE_ID, None)  # made up anew by every process: a trace sent twice would differ
    return Resource(known)


def wait_after(report: ExportReport, *, failed_rounds: int) -> float:
    """Seconds until the next round."""
    if failed_rounds:
        return min(INTERVAL_FAILING_MAX, INTERVAL * 2.0 ** min(failed_rounds - 1, 10))
    return INTERVAL_BACKLOG if report.backlog else INTERVAL


class TraceExporter:
    """Empties the outbox. ``export_once`` is one round; ``run`` is the loop around it."""

    def __init__(
        self,
        *,
        outbox: Outbox,
        exporter: SpanExporter,
        sources: Mapping[str, TracedSource],
        clock: Clock,
        own: OwnMetrics,
        share: float = 1.0,
        on_exported: Callable[[list[Exported]], None] = lambda exported: None,
    ) -> None:
        """``share`` is the share of plain successes that is traced. The exporter is closed with this object."""
        self._outbox = outbox
        self._exporter = exporter
        self._sources = sources
        self._resources = {name: source_resource(name, source.platform) for name, source in sources.items()}
        self._clock = clock
        self._own = own
        self._share = share
        self._on_exported = on_exported
        self.failed_rounds = 0  # in a row
        self._library = _LibraryLog()
        for outcome in Outcome:
            own.spans.labels(outcome.value)

    async def run(self) -> None:
        """Export until cancelled."""
        while True:
            try:
                report = await self.export_once(self._clock.now())
            except StoreError:  # counted and shown by the ledger
                report = ExportReport()
            await self._clock.sleep(wait_after(report, failed_rounds=self.failed_rounds))

    async def close(self) -> None:
        """Ends an export under way, too. Nothing is lost: what was not exported stays in the outbox."""
        await asyncio.to_thread(self._exporter.shutdown)
        self._library.close()

    async def export_once(self, now: float) -> ExportReport:
        """Take the oldest pending traces, send them, and mark those the collector took."""
        taken = await self._outbox.pending_traces(limit=TRACES_PER_BATCH_MAX, settled_before=now - SETTLING)
        kept: list[_Trace] = []
        sampled_out: list[_Trace] = []
        invalid: list[_Trace] = []
        spans, backlog = 0, len(taken) >= TRACES_PER_BATCH_MAX
        for pending in taken:
            trace = self._trace(pending)
            if not trace.spans:
                invalid.append(trace)
            elif not trace.kept:
                sampled_out.append(trace)
            elif kept and spans + len(trace.spans) > SPANS_PER_BATCH_MAX:
                backlog = True
                break
            else:
                kept.append(trace)
                spans += len(trace.spans)
        await self._mark(sampled_out, Outcome.SAMPLED_OUT)
        exported, refused = await self._send_all(kept) if kept else (0, [])
        await self._mark(invalid + refused, Outcome.INVALID)
        pending_now = await self._outbox.count_pending_traces()
        self._own.traces_pending.set(pending_now)
        return ExportReport(
            exported=exported,
            failed=len(kept) - exported - len(refused),
            invalid=len(invalid) + len(refused),
            dropped_by_sampling=len(sampled_out),
            pending=pending_now,
            backlog=backlog,
        )

    def _trace(self, pending: PendingTrace) -> _Trace:
        """The spans of a run or a retry; one that cannot be mapped must not keep the others waiting."""
        try:
            spans = self._spans(pending)
            if not spans:
                raise LookupError("nothing tells when it was")
        except Exception as exc:
            _, run_id, attempt = pending.key
            log.warning("run cannot be traced", source=pending.source, run_id=run_id, attempt=attempt, error=exc)
            return _Trace(pending=pending, spans=[])
        if isinstance(pending.of, Retry):
            return _Trace(pending=pending, spans=spans)
        kept = keep(pending.of, pending.dead_letter_id is not None, spans[0].context.trace_id, self._share)
        return _Trace(pending=pending, spans=spans, kept=kept)

    def _spans(self, pending: PendingTrace) -> list[ReadableSpan]:
        source = self._sources.get(pending.source)
        if source is None:
            raise LookupError("its source is not configured any more")
        known: dict[str, Any] = {
            "platform": source.platform,
            "source": pending.source,
            "workflow": source.workflow(pending.of.workflow_id),
            "resource": self._resources[pending.source],
        }
        if isinstance(pending.of, Retry):
            return spans_of_retry(pending.of, **known)
        return spans_of(
            pending.of,
            url=source.run_url(pending.of),
            dead_letter_id=pending.dead_letter_id,
            made_by=pending.made_by,
            **known,
        )

    async def _send_all(self, traces: list[_Trace]) -> tuple[int, list[_Trace]]:
        """Send a batch; how many traces of it are exported, and which of them the collector will never take."""
        failing = self.failed_rounds > 0
        if await self._send(traces):
            exported, refused = len(traces), list[_Trace]()
        elif self.failed_rounds + 1 < FAILED_ROUNDS_BEFORE_PROBE:
            exported, refused = 0, []
        else:
            exported, refused = await self._send_one_by_one(traces)
        if exported + len(refused) == len(traces):
            self.failed_rounds = 0
            if failing:
                log.info("traces are exported again", exported=exported)
        else:
            self.failed_rounds += 1
            if not failing:
                log.warning("traces cannot be exported, they wait", traces=len(traces), reason=self._library.reason())
        return exported, refused

    async def _send_one_by_one(self, traces: list[_Trace]) -> tuple[int, list[_Trace]]:
        """The collector keeps refusing this batch: because of itself, or because of some of the traces?

        If it takes one of them alone, it lives. Then whatever it refuses twice, while it takes that one again in
        between, is refused for what it holds. Whenever it does not take that one either, the rest waits.
        """
        if len(traces) < 2:
            return 0, []
        witness = traces[self.failed_rounds % len(traces)]  # another one each time: this one may be the cause
        if not await self._send([witness]):
            return 0, []
        exported, refused = 1, list[_Trace]()
        for trace in traces:
            if trace is witness:
                continue
            if await self._send([trace]):
                exported += 1
            elif not await self._export([witness]):
                break
            elif await self._send([trace]):
                exported += 1
            else:
                refused.append(trace)
                told = dict(zip(("source", "run_id", "attempt"), trace.pending.key, strict=True))
                log.warning("the collector refuses a trace", **told, reason=self._library.reason())
        return exported, refused

    async def _send(self, traces: list[_Trace]) -> bool:
        """Export and mark. A trace is marked on success only."""
        if not await self._export(traces):
            self._count(traces, Outcome.FAILED)
            return False
        await self._mark(traces, Outcome.EXPORTED)
        self._on_exported([trace.exported for trace in traces])
        return True

    async def _export(self, traces: Sequence[_Trace]) -> bool:
        spans = [span for trace in traces for span in trace.spans]
        self._library.forget()
        try:
            return await asyncio.to_thread(self._exporter.export, spans) is SpanExportResult.SUCCESS
        except Exception as exc:
            log.debug("the exporter broke", error=exc)
            return False

    async def _mark(self, traces: list[_Trace], outcome: Outcome) -> None:
        if traces:
            await self._outbox.mark_traced([trace.pending.key for trace in traces])
            self._count(traces, outcome)

    def _count(self, traces: list[_Trace], outcome: Outcome) -> None:
        self._own.spans.labels(outcome.value).inc(sum(len(trace.spans) or 1 for trace in traces))


class _LibraryLog(logging.Handler):
    """Keeps what OpenTelemetry's exporters log, which is the only place where they tell a cause, out of our log.

    They write a line for every failed call, and some with a traceback; we write one when it starts.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._first: str | None = None
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        self._logger = logging.getLogger("opentelemetry.exporter")
        self._logger.setLevel(logging.WARNING)
        self._logger.propagate = False
        self._logger.addHandler(self)
        # Over gRPC it keeps back what repeats the kind of the line before, and with it the next cause.
        logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").filters.clear()

    def emit(self, record: logging.LogRecord) -> None:
        if self._first is None:
            self._first = record.getMessage()

    def forget(self) -> None:
        self._first = None

    def reason(self) -> str:
        """The first thing said since ``forget``; later lines are about giving up."""
        return redact(self._first or "the exporter gave no reason")

    def close(self) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = True
        super().close()
