"""The exporter's own work as spans of its own service, off by default: sweeps, webhooks, calls to platforms.

Named ``sweep {stream}``, ``webhook {source}`` and ``GET {endpoint template}``; what is done inside a span is its child.
These are for whoever wonders where the time goes; losing some in an outage is fine, so the SDK's batch processor hands
them over, from a thread of its own.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode

from exporter import __version__, signals
from exporter.traces.answers import Answer, Verdict
from exporter.traces.otlp import Sender

#: Seconds one request may take once the service is to end.
CLOSING_SECONDS = 2.0


class _Handover(SpanExporter):
    """Gives what the SDK's thread has collected to the sender, which lives on the event loop."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._loop = asyncio.get_running_loop()
        self._sending: Future[Answer] | None = None
        self._closing = self._given_up = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._given_up or self._loop.is_closed():
            return SpanExportResult.FAILURE
        body = encode_spans(spans).SerializeToString()
        # What the time is would only matter to the answer, and nobody acts on that.
        self._sending = asyncio.run_coroutine_threadsafe(self._sender.send(body, now=0.0), self._loop)
        try:
            answer = self._sending.result(CLOSING_SECONDS if self._closing else self._sender.timeout + 1)
            taken = answer.verdict is Verdict.TAKEN
        except (TimeoutError, CancelledError):
            self._sending.cancel()
            taken = False
        self._given_up = self._closing and not taken
        return SpanExportResult.SUCCESS if taken else SpanExportResult.FAILURE

    def close_soon(self) -> None:
        """From now on the collector gets one chance, and a short one."""
        self._closing = True
        if self._sending is not None:
            self._sending.cancel()

    def shutdown(self) -> None:
        asyncio.run_coroutine_threadsafe(self._sender.close(), self._loop).result(CLOSING_SECONDS)


class OwnTracer:
    """Makes spans of our own work, or none at all without an exporter."""

    def __init__(self, exporter: Sender | None = None) -> None:
        """To be made on the event loop. The exporter is closed with this object."""
        self._provider: TracerProvider | None = None
        self._handover: _Handover | None = None
        if exporter is not None:
            resource = Resource.create({SERVICE_NAME: "automation-exporter", SERVICE_VERSION: __version__})
            self._handover = _Handover(exporter)
            self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._provider.add_span_processor(BatchSpanProcessor(self._handover))

    @contextmanager
    def span(
        self, name: str, *, kind: SpanKind = SpanKind.INTERNAL, **attributes: str | int | float | bool
    ) -> Iterator[None]:
        """A span around a block. Attributes without a dot in their name get ours, ``automation.``, in front.

        Of an exception only the type is kept: messages may quote what is nobody's business.
        """
        if self._provider is None:
            yield
            return
        named = {
            key if "." in key else f"automation.{key}": _told(value) if isinstance(value, str) else value
            for key, value in attributes.items()
        }
        tracer = self._provider.get_tracer("automation-exporter", __version__)
        with tracer.start_as_current_span(
            _told(name), kind=kind, attributes=named, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except Exception as exc:
                span.set_status(Status(StatusCode.ERROR))
                span.set_attribute("error.type", type(exc).__name__)
                raise

    async def aclose(self) -> None:
        """``close`` in a thread that nobody waits for when it takes too long, not even the end of the process."""
        done, loop = asyncio.Event(), asyncio.get_running_loop()

        def closing() -> None:
            self.close()
            with suppress(RuntimeError):  # the loop is closed: it took too long
                loop.call_soon_threadsafe(done.set)

        with signals.blocked():
            threading.Thread(target=closing, daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                await done.wait()

    def close(self) -> None:
        """Send what is left, if the collector takes it within seconds. Blocks: not to be called on the event loop."""
        if self._provider is not None and self._handover is not None:
            self._handover.close_soon()
            self._provider.shutdown()


def _told(value: str) -> str:
    """A text without the query of a URL: that is where tokens are."""
    return value.partition("?")[0]
