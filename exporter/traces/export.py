"""Sending traces: a loop over counted runs whose trace the collector does not have yet.

The ledger is the outbox. A run leaves it only when the collector took its trace, so an outage of the collector costs
nothing but time, and a crash between sending and marking sends the same ids once more. The SDK's batch processor would
not do: it ignores what becomes of an export.

A collector may take a request and reject some of its spans, without saying which (``partial_success``); the protocol
forbids to send them again. All of them: nothing of the request was exported. Some: that many are counted as rejected,
the rest as exported, and no exemplar points to any trace of that request, for it might be one of the rejected.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import format_span_id, format_trace_id

from exporter.clock import Clock
from exporter.log import get_logger
from exporter.model import Run
from exporter.model.retries import Retry
from exporter.source import Source
from exporter.store.maintenance import PendingTrace
from exporter.store.script import StoreError
from exporter.traces.answers import Answer
from exporter.traces.delivery import SUSPECTS_PER_ROUND_MAX, Delivery, Key, Parcel, Round
from exporter.traces.otlp import Sender
from exporter.traces.spans import keep, spans_of, spans_of_retry
from exporter.view.own import OwnMetrics

if TYPE_CHECKING:
    from exporter.config import TracesConfig

log = get_logger(__name__)

TRACES_PER_BATCH_MAX = 512
#: Collectors refuse large requests (gRPC ones by default beyond 4 MiB); a trace is never divided.
SPANS_PER_BATCH_MAX = 2048
#: A run of which more is expected, its error or its steps, is withheld for this long (seconds) after it was counted: a
#: few sweeps, since what a webhook reported first is completed by one.
SETTLING = 300.0
#: Seconds between two rounds: usually, while there is more to send, and at most while the collector is down.
INTERVAL, INTERVAL_BACKLOG, INTERVAL_FAILING_MAX = 5.0, 0.1, 60.0
#: What a collector rejects or remarks again and again is logged once in this time (seconds).
REMINDER = 3600.0
#: After making so many traces the event loop gets its turn.
TRACES_AT_ONCE = 16


class Outcome(StrEnum):
    """What became of spans."""

    EXPORTED = "exported"
    REJECTED = "rejected"  # the collector took the request and rejected them; they are not sent again
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
    rejected: int = 0  # as many as spans were rejected, at most: which traces they belong to is not said
    failed: int = 0
    invalid: int = 0
    dropped_by_sampling: int = 0
    pending: int = 0
    backlog: bool = False  # there was more to send than one round takes
    retry_after: float | None = None  # seconds the collector wants to be left alone for


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trace:
    """A pending trace and its spans; none if they cannot be made."""

    pending: PendingTrace
    spans: list[ReadableSpan]
    body: bytes = b""
    kept: bool = True

    @property
    def parcel(self) -> Parcel:
        return Parcel(key=self.pending.key, body=self.body, spans=len(self.spans))

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


def source_resource(source: str, platform: str) -> Resource:
    """The resource of a source's traces: the source is the service; ``OTEL_RESOURCE_ATTRIBUTES`` add to it."""
    known = dict(Resource.create({SERVICE_NAME: source, "automation.platform": platform}).attributes)
    if SERVICE_INSTANCE_ID not in OTELResourceDetector().detect().attributes:
        known.pop(SERVICE_INSTANCE_ID, None)  # made up anew by every process: a trace sent twice would differ
    return Resource(known)


def wait_after(report: ExportReport, *, failed_rounds: int) -> float:
    """Seconds until the next round: what the collector asks for, or else what experience says."""
    if report.retry_after is not None:
        return report.retry_after
    if failed_rounds:
        return min(INTERVAL_FAILING_MAX, INTERVAL * 2.0 ** min(failed_rounds - 1, 10))
    return INTERVAL_BACKLOG if report.backlog else INTERVAL


class TraceExporter:
    """Empties the outbox. ``export_once`` is one round; ``run`` is the loop around it."""

    def __init__(
        self,
        *,
        outbox: Outbox,
        exporter: Sender,
        sources: Mapping[str, Source],
        clock: Clock,
        own: OwnMetrics,
        share: float = 1.0,
        on_exported: Callable[[list[Exported]], None] = lambda exported: None,
    ) -> None:
        """``share`` is the share of plain successes that is traced. The exporter is closed with this object."""
        self._outbox = outbox
        self._exporter = exporter
        self._sources = sources
        self._resources = {name: source_resource(name, source.platform.name) for name, source in sources.items()}
        self._clock = clock
        self._own = own
        self._share = share
        self._on_exported = on_exported
        self._delivery = Delivery(exporter, self._taken)
        self._sending: dict[Key, _Trace] = {}  # of this round
        self._exported = self._rejected = 0  # traces of this round
        self._failing: str | None = None  # how, when it was last logged
        self._reminded: dict[str, float] = {}
        # OpenTelemetry's warnings are meant for whoever writes its spans, not for the reader of our log.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        for outcome in Outcome:
            own.spans.labels(outcome.value)

    @property
    def failed_rounds(self) -> int:
        """In a row."""
        return self._delivery.failed_rounds

    async def run(self) -> None:
        """Export until cancelled."""
        while True:
            try:
                report = await self.export_once(self._clock.now())
            except StoreError:  # counted and shown by the ledger
                report = ExportReport()
            await self._clock.sleep(wait_after(report, failed_rounds=self.failed_rounds))

    async def close(self) -> None:
        """Nothing is lost: what was not exported stays in the outbox."""
        await self._exporter.close()

    async def export_once(self, now: float) -> ExportReport:
        """Take the oldest pending traces, send them, and mark those the collector took."""
        suspects = self._delivery.suspects
        limit = TRACES_PER_BATCH_MAX + len(suspects)
        taken = await self._outbox.pending_traces(limit=limit, settled_before=now - SETTLING)
        self._delivery.keep_suspects({pending.key for pending in taken})
        waiting = set(suspects[SUSPECTS_PER_ROUND_MAX:])
        kept: dict[Key, _Trace] = {}
        sampled_out: list[_Trace] = []
        invalid: list[_Trace] = []
        elsewhere: list[PendingTrace] = []
        spans, backlog = 0, len(taken) >= limit
        for number, pending in enumerate(taken):
            if pending.key in waiting:
                continue
            if number % TRACES_AT_ONCE == 0:
                await asyncio.sleep(0)
            if isinstance(pending.of, Run) and pending.of.trace is not None:
                elsewhere.append(pending)
                continue
            trace = self._trace(pending)
            if not trace.spans:
                invalid.append(trace)
            elif not trace.kept:
                sampled_out.append(trace)
            elif kept and spans + len(trace.spans) > SPANS_PER_BATCH_MAX:
                backlog = True
                break
            else:
                kept[pending.key] = trace
                spans += len(trace.spans)
        await self._leave(elsewhere)
        await self._mark(sampled_out, Outcome.SAMPLED_OUT)
        await self._mark(invalid, Outcome.INVALID)
        done = await self._send(kept, now) if kept else Round()
        pending_now = await self._outbox.count_pending_traces()
        self._own.traces_pending.set(pending_now)
        return ExportReport(
            exported=self._exported if kept else 0,
            rejected=self._rejected if kept else 0,
            failed=len(done.tried - done.settled),
            invalid=len(invalid) + len(done.given_up),
            dropped_by_sampling=len(sampled_out),
            pending=pending_now,
            backlog=backlog or (done.spent and not done.failed),
            retry_after=done.answer.retry_after if done.answer and done.failed else None,
        )

    def _trace(self, pending: PendingTrace) -> _Trace:
        """The spans of a run or a retry; one that cannot be mapped must not keep the others waiting."""
        try:
            spans = self._spans(pending)
            if not spans:
                raise LookupError("nothing tells when it was")
            body = encode_spans(spans).SerializeToString()
        except Exception as exc:
            _, run_id, attempt = pending.key
            log.warning("run cannot be traced", source=pending.source, run_id=run_id, attempt=attempt, error=exc)
            return _Trace(pending=pending, spans=[])
        if isinstance(pending.of, Retry):
            return _Trace(pending=pending, spans=spans, body=body)
        kept = keep(pending.of, pending.dead_letter_id is not None, spans[0].context.trace_id, self._share)
        return _Trace(pending=pending, spans=spans, body=body, kept=kept)

    def _spans(self, pending: PendingTrace) -> list[ReadableSpan]:
        source = self._sources.get(pending.source)
        if source is None:
            raise LookupError("its source is not configured any more")
        known: dict[str, Any] = {
            "platform": source.platform.name,
            "source": pending.source,
            "workflow": source.known.workflows.get(pending.of.workflow_id),
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

    async def _send(self, traces: dict[Key, _Trace], now: float) -> Round:
        """Send a batch, mark what need not be sent again, and say in the log what has changed."""
        self._sending, self._exported, self._rejected = traces, 0, 0
        done = await self._delivery.deliver([trace.parcel for trace in traces.values()], now)
        self._sending = {}
        await self._mark([traces[key] for key, _ in done.given_up], Outcome.INVALID)
        self._count([traces[key] for key in done.tried - done.settled], Outcome.FAILED)
        if done.given_up:
            key, answer = done.given_up[0]
            first = dict(zip(("source", "run_id", "attempt"), key, strict=True))
            more = {"more": len(done.given_up) - 1} if len(done.given_up) > 1 else {}
            log.warning("the collector refuses a trace, it is given up", **first, **more, reason=answer.reason)
        if done.failed and done.answer is not None:
            how = done.answer.reason.partition(":")[0]
            if how != self._failing:
                left = len(done.tried - done.settled)
                log.warning("traces cannot be exported, they wait", traces=left, reason=done.answer.reason)
            self._failing = how
        elif self._failing is not None:
            self._failing = None
            log.info("traces are exported again", exported=self._exported)
        return done

    async def _taken(self, parcels: list[Parcel], answer: Answer) -> None:
        """The collector took a request, perhaps not all of it. A trace is marked now, and only now."""
        traces = [self._sending[parcel.key] for parcel in parcels]
        spans = sum(parcel.spans for parcel in parcels)
        rejected = min(answer.rejected, spans)
        await self._outbox.mark_traced([parcel.key for parcel in parcels])
        self._own.spans.labels(Outcome.EXPORTED).inc(spans - rejected)
        self._own.spans.labels(Outcome.REJECTED).inc(rejected)
        lost = len(traces) if rejected == spans else min(rejected, len(traces))
        self._rejected += lost
        self._exported += len(traces) - lost
        if rejected:
            if self._is_due("rejected"):
                log.warning("the collector rejects spans, they are lost", spans=rejected, reason=answer.reason)
            return
        if answer.reason and self._is_due("remark"):
            log.warning("the collector takes traces, with a warning", reason=answer.reason)
        self._on_exported([trace.exported for trace in traces])

    async def _leave(self, pending: list[PendingTrace]) -> None:
        """Runs that their platform traces itself are not sent a second time; exemplars point to its trace."""
        if not pending:
            return
        await self._outbox.mark_traced([each.key for each in pending])
        named = [(each, each.of.trace.split("-")) for each in pending if isinstance(each.of, Run) and each.of.trace]
        self._on_exported(
            [
                Exported(
                    source=each.source,
                    of=each.of,
                    dead_letter=each.dead_letter_id is not None,
                    trace_id=ids[0],
                    span_id=ids[-1],
                )
                for each, ids in named
            ]
        )

    def _is_due(self, what: str) -> bool:
        """Whether what a collector says again and again is to be logged once more."""
        now = self._clock.now()
        due = abs(now - self._reminded.get(what, float("-inf"))) >= REMINDER
        if due:
            self._reminded[what] = now
        return due

    async def _mark(self, traces: list[_Trace], outcome: Outcome) -> None:
        if traces:
            await self._outbox.mark_traced([trace.pending.key for trace in traces])
            self._count(traces, outcome)

    def _count(self, traces: list[_Trace], outcome: Outcome) -> None:
        self._own.spans.labels(outcome.value).inc(sum(len(trace.spans) or 1 for trace in traces))
