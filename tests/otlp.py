"""Real OTLP receivers for tests, over HTTP and over gRPC: they decode what a collector would be sent, and can be as
difficult as one.

``async with otlp_receiver() as receiver`` listens on loopback; ``receiver.spans`` are the spans it took, in order. Set
``status`` to have every request refused, ``hanging`` to have none answered, ``refuses`` to have those refused that hold
a certain span, ``bytes_max`` to have large ones refused, ``rejects`` to have some spans of a request rejected though it
is answered with success. ``grpc_receiver`` is the same over gRPC, with a ``code`` instead of a status.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

#: How many spans of a request are rejected, and why
Rejects = Callable[[list["Span"]], tuple[int, str] | None]
BODY_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A span as it came over the wire. Ids in hex, times in nanoseconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    start: int
    end: int
    attributes: dict[str, Any]
    status: str
    message: str
    links: list[tuple[str, str, dict[str, Any]]]
    events: list[tuple[str, int, dict[str, Any]]]
    resource: dict[str, Any]
    scope: str


@dataclass(slots=True, kw_only=True)
class OtlpReceiver:
    """A running receiver."""

    url: str = ""
    status: int = 200
    hanging: bool = False
    refuses: Callable[[Span], bool] = lambda span: False
    refused_status: int = 400
    bytes_max: int = BODY_BYTES_MAX
    rejects: Rejects = lambda spans: None
    headers_out: dict[str, str] = field(default_factory=dict)
    answer_body: bytes | None = None
    """Sent with success instead of the response there should be"""
    sizes: list[int] = field(default_factory=list)
    """Bytes of each request"""
    requests: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    """Of the last request, names in lower case"""
    path: str = ""
    batches: list[list[Span]] = field(default_factory=list)
    """What was taken, request by request"""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first request"""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def spans(self) -> list[Span]:
        return [span for batch in self.batches for span in batch]

    @property
    def run_ids(self) -> list[str]:
        """The run of each root span taken."""
        return [span.attributes["cicd.pipeline.run.id"] for span in self.spans if not span.parent_id]

    async def answer(self, request: web.Request) -> web.Response:
        self.requests += 1
        self.asked.set()
        self.headers = {name.lower(): value for name, value in request.headers.items()}
        self.path = request.path
        body = await request.read()
        self.sizes.append(len(body))
        if len(body) > self.bytes_max:
            return web.Response(status=413)
        spans = _decoded(body)
        if self.hanging:
            await self.stopping.wait()
        if self.status != 200:
            return web.Response(status=self.status, headers=self.headers_out)
        if any(self.refuses(span) for span in spans):
            if self.refused_status == 0:
                assert request.transport is not None
                request.transport.close()
            return web.Response(status=self.refused_status or 200)
        self.batches.append(spans)
        body = _response(self.rejects(spans)).SerializeToString()
        headers = {"Content-Type": "application/x-protobuf"} | self.headers_out
        return web.Response(body=body if self.answer_body is None else self.answer_body, headers=headers)


@contextlib.asynccontextmanager
async def otlp_receiver() -> AsyncIterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    # aiohttp decompresses what Content-Encoding says is gzip or deflate.
    application = web.Application(client_max_size=BODY_BYTES_MAX)
    application.router.add_post("/{path:.*}", receiver.answer)
    server = TestServer(application)
    await server.start_server()
    receiver.url = str(server.make_url("")).rstrip("/")
    try:
        yield receiver
    finally:
        receiver.stopping.set()
        await server.close()


@dataclass(slots=True, kw_only=True)
class GrpcReceiver(TraceServiceServicer):
    """A running gRPC receiver. Its calls arrive in threads of its own."""

    url: str = ""
    code: grpc.StatusCode | None = None
    details: str = "not now"
    trailing: tuple[tuple[str, bytes], ...] = ()
    refuses: Callable[[Span], bool] = lambda span: False
    rejects: Rejects = lambda spans: None
    requests: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    """Of the last request"""
    batches: list[list[Span]] = field(default_factory=list)

    @property
    def spans(self) -> list[Span]:
        return [span for batch in self.batches for span in batch]

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        self.requests += 1
        self.metadata = {item.key: str(item.value) for item in context.invocation_metadata()}
        if self.code is not None:
            context.set_trailing_metadata(self.trailing)
            context.abort(self.code, self.details)
        spans = _spans(request)
        if any(self.refuses(span) for span in spans):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad span")
        self.batches.append(spans)
        return _response(self.rejects(spans))


@contextlib.contextmanager
def grpc_receiver(port: str = "0", *, bytes_max: int = 4 * 1024 * 1024) -> Iterator[GrpcReceiver]:
    receiver = GrpcReceiver()
    options = [("grpc.max_receive_message_length", bytes_max)]
    server = grpc.server(ThreadPoolExecutor(max_workers=4), options=options)
    add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]  # generated
    receiver.url = f"http://127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(grace=None).wait()


def _response(rejected: tuple[int, str] | None) -> ExportTraceServiceResponse:
    if rejected is None:
        return ExportTraceServiceResponse()
    spans, message = rejected
    partial = ExportTracePartialSuccess(rejected_spans=spans, error_message=message)
    return ExportTraceServiceResponse(partial_success=partial)


def _decoded(body: bytes) -> list[Span]:
    return _spans(ExportTraceServiceRequest.FromString(body))


def _spans(request: ExportTraceServiceRequest) -> list[Span]:
    return [
        _span(span, _values(resource_spans.resource.attributes), scope_spans.scope.name)
        for resource_spans in request.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def _span(span: trace_pb2.Span, resource: dict[str, Any], scope: str) -> Span:
    return Span(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        message=span.status.message,
        links=[(link.trace_id.hex(), link.span_id.hex(), _values(link.attributes)) for link in span.links],
        events=[(event.name, event.time_unix_nano, _values(event.attributes)) for event in span.events],
        resource=resource,
        scope=scope,
    )


def _values(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return None if kind is None else getattr(value, kind)
