"""The exporter's own work as spans of its own service, off by default: sweeps, webhooks, calls to platforms.

Named ``sweep {stream}``, ``webhook {source}`` and ``GET {endpoint template}``; what is done inside a span is its child.
These are for whoever wonders where the time goes; losing some in an outage is fine, so the SDK's batch processor sends
them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode

from exporter import __version__


class OwnTracer:
    """Makes spans of our own work, or none at all without an exporter."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        """The exporter is closed with this object."""
        self._provider: TracerProvider | None = None
        if exporter is not None:
            resource = Resource.create({SERVICE_NAME: "automation-exporter", SERVICE_VERSION: __version__})
            self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._provider.add_span_processor(BatchSpanProcessor(exporter))

    @contextmanager
    def span(
        self, name: str, *, kind: SpanKind = SpanKind.INTERNAL, **attributes: str | int | float | bool
    ) -> Iterator[None]:
        """A span around a block. Attributes without a dot in their name get ours, ``automation.``, in front.

        An exception is told by its type only: messages may quote what is nobody's business.
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

    def close(self) -> None:
        """Send what is left; blocks for as long as the exporter's timeout."""
        if self._provider is not None:
            self._provider.shutdown()


def _told(value: str) -> str:
    """A text without the query of a URL: that is where tokens are."""
    return value.partition("?")[0]
