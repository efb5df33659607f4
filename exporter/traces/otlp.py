"""Sending spans to a collector by OTLP, over HTTP or gRPC: one request, and what its answer means for what was sent.

OpenTelemetry's own exporters are not used. They answer yes or no after repeating by themselves, and keep back what
decides here: the status, how long to wait, how many spans were rejected. Their encoder is.

Nothing is taken from the machine's surroundings that would change who we are or where we go: no ``.netrc``, no
``HTTP_PROXY``. What counts is the config, then the standard ``OTEL_EXPORTER_OTLP_*`` variables.
"""

import asyncio
import gzip
import os
import ssl
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import aiohttp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.util.re import parse_env_headers

from exporter import __version__
from exporter.model.redact import redact
from exporter.traces.answers import PROTOBUF, Answer, Verdict, grpc_answer, http_answer, taken

if TYPE_CHECKING:
    from exporter.config import TracesConfig

TIMEOUT_SECONDS = 10.0
ANSWER_BYTES_MAX = 64 * 1024
COMPRESSIONS = ("none", "gzip", "deflate")


class Sender(Protocol):
    """A connection to a collector."""

    timeout: float
    """Seconds ``send`` may take"""

    async def send(self, body: bytes, *, now: float) -> Answer:
        """Send one encoded ``ExportTraceServiceRequest``, once. Never raises, unless it is cancelled."""
        ...

    async def close(self) -> None: ...


class ExporterUnavailable(Exception):
    """The config asks for something that cannot be had: one line that says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where traces go, and how."""

    url: str
    grpc: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = TIMEOUT_SECONDS
    compression: str = "none"
    insecure: bool = False  # gRPC only: of an address without a scheme
    proxy: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None


def destination(config: "TracesConfig", environ: Mapping[str, str] = os.environ) -> Destination:
    """Where the config and the ``OTEL_EXPORTER_OTLP_*`` variables want traces to go.

    Raises ``ExporterUnavailable`` with the reason why they would go nowhere. Nothing is opened or read.
    """

    def variable(name: str) -> str | None:
        both = (environ.get(f"OTEL_EXPORTER_OTLP_{signal}{name}", "").strip() for signal in ("TRACES_", ""))
        return next(filter(None, both), None)

    protocol = config.protocol or variable("PROTOCOL") or "http/protobuf"
    if protocol not in ("grpc", "http/protobuf"):
        raise ExporterUnavailable(f"traces.protocol: {protocol!r} is not supported; use http/protobuf or grpc")
    if config.endpoint is not None and not config.endpoint.startswith(("http://", "https://")):
        raise ExporterUnavailable("traces.endpoint: must be a URL such as http://127.0.0.1:4318")
    over_grpc = protocol == "grpc"
    if over_grpc:
        _grpc_of_the_extra()
    url = config.endpoint or variable("ENDPOINT")
    if url is None:
        raise ExporterUnavailable(
            "traces.endpoint: missing; name the collector, for example http://127.0.0.1:4318,"
            " or set OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    if not over_grpc:
        if not url.startswith(("http://", "https://")):
            raise ExporterUnavailable("OTEL_EXPORTER_OTLP_ENDPOINT: must be a URL such as http://127.0.0.1:4318")
        whole = config.endpoint is None and environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip() != ""
        url = url if whole else _traces_url(url)
    headers = dict(parse_env_headers(variable("HEADERS") or "", liberal=True)) | {
        name.lower(): value.get_secret_value() for name, value in config.headers.items()
    }
    compression = (variable("COMPRESSION") or "none").lower()
    if compression not in COMPRESSIONS or (over_grpc and compression == "deflate"):
        raise ExporterUnavailable(f"OTEL_EXPORTER_OTLP_COMPRESSION: {compression!r} is not supported; use gzip or none")
    return Destination(
        url=url,
        grpc=over_grpc,
        headers=headers,
        timeout=_seconds(variable("TIMEOUT")),
        compression=compression,
        insecure=(variable("INSECURE") or "").lower() == "true",
        proxy=config.proxy,
        ca_file=config.tls_ca_file or variable("CERTIFICATE"),
        certificate_file=variable("CLIENT_CERTIFICATE"),
        key_file=variable("CLIENT_KEY"),
    )


def make_exporter(config: "TracesConfig", environ: Mapping[str, str] = os.environ) -> Sender:
    """The connection to where traces go. Raises ``ExporterUnavailable``."""
    to = destination(config, environ)
    try:
        return _OverGrpc(to) if to.grpc else _OverHttp(to)
    except OSError as exc:  # ssl.SSLError is one
        raise ExporterUnavailable(
            "traces.tls_ca_file, or OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE and _CLIENT_KEY:"
            f" a file cannot be used: {exc.strerror or exc}"
        ) from None


def _traces_url(base: str) -> str:
    base = base.rstrip("/")
    return base if base.endswith("/v1/traces") else f"{base}/v1/traces"


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or TIMEOUT_SECONDS)
    except ValueError:
        return TIMEOUT_SECONDS
    return seconds if 0 < seconds < 3600 else TIMEOUT_SECONDS


# Over HTTP


class _OverHttp:
    def __init__(self, to: Destination) -> None:
        self.timeout = to.timeout
        self._to = to
        self._ssl: ssl.SSLContext | None = None
        if to.url.startswith("https://"):
            self._ssl = ssl.create_default_context(cafile=to.ca_file)
            if to.certificate_file:
                self._ssl.load_cert_chain(to.certificate_file, to.key_file)
        self._headers = {"Content-Type": PROTOBUF, "User-Agent": f"automation-exporter/{__version__}", **to.headers}
        if to.compression != "none":
            self._headers["Content-Encoding"] = to.compression
        self._session: aiohttp.ClientSession | None = None

    async def send(self, body: bytes, *, now: float) -> Answer:
        if self._to.compression == "gzip":
            body = await asyncio.to_thread(gzip.compress, body, 1)
        elif self._to.compression == "deflate":
            body = await asyncio.to_thread(zlib.compress, body)
        try:
            async with asyncio.timeout(self.timeout):
                try:
                    return await self._post(body, now)
                except aiohttp.ServerDisconnectedError:  # most often a kept connection that was closed meanwhile
                    if self._session is None or self._session.closed:
                        raise
                    return await self._post(body, now)
        except TimeoutError:
            return Answer(verdict=Verdict.DOWN, reason=f"no answer within {self.timeout:g} seconds")
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as exc:
            return Answer(verdict=Verdict.LATER, reason=redact(f"no connection: {exc}"))
        except aiohttp.ClientHttpProxyError as exc:
            return Answer(verdict=Verdict.LATER, reason=redact(f"{exc.status} from the proxy, see traces.proxy"))
        except (aiohttp.ClientError, OSError) as exc:
            detail = str(exc) or type(exc).__name__
            return Answer(verdict=Verdict.BROKEN, reason=redact(f"the connection broke before the answer: {detail}"))
        except ValueError as exc:  # a header that cannot be sent
            return Answer(verdict=Verdict.LATER, reason=redact(f"cannot be sent, see traces.headers: {exc}"))

    async def _post(self, body: bytes, now: float) -> Answer:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=True if self._ssl is None else self._ssl),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                trust_env=False,
            )
        async with self._session.post(
            self._to.url, data=body, headers=self._headers, allow_redirects=False, proxy=self._to.proxy
        ) as response:
            answer = b""
            with suppress(aiohttp.ClientError):  # the status is known: the rest is a courtesy
                while len(answer) < ANSWER_BYTES_MAX and (more := await response.content.read(ANSWER_BYTES_MAX)):
                    answer += more
            return http_answer(
                response.status,
                reason=response.reason or "",
                headers=response.headers,
                content_type=response.content_type,
                body=answer,
                now=now,
                path=urlsplit(self._to.url).path,
            )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


# Over gRPC


def _grpc_of_the_extra() -> Any:
    try:
        import grpc
    except ImportError:
        raise ExporterUnavailable(
            "traces.protocol: grpc needs the extra grpc: pip install 'automation-exporter[grpc]'"
        ) from None
    return grpc


class _OverGrpc:
    def __init__(self, to: Destination) -> None:
        self.timeout = to.timeout
        self._grpc: Any = _grpc_of_the_extra()
        self._to = to
        parts = urlsplit(to.url)
        self._target = parts.netloc or to.url
        self._credentials: Any = None
        if parts.scheme == "https" or (parts.scheme != "http" and not to.insecure):
            files = [None if path is None else _read(path) for path in (to.ca_file, to.key_file, to.certificate_file)]
            self._credentials = self._grpc.ssl_channel_credentials(*files)
        self._metadata = tuple(to.headers.items())
        self._open()

    def _open(self) -> None:
        options: list[tuple[str, str | int]] = [("grpc.primary_user_agent", f"automation-exporter/{__version__}")]
        # Otherwise gRPC looks at variables of its own.
        options.append(("grpc.enable_http_proxy", 0) if self._to.proxy is None else ("grpc.http_proxy", self._to.proxy))
        compression = self._grpc.Compression.Gzip if self._to.compression == "gzip" else None
        how: dict[str, Any] = {"options": options, "compression": compression}
        self._channel: Any = (
            self._grpc.insecure_channel(self._target, **how)
            if self._credentials is None
            else self._grpc.secure_channel(self._target, self._credentials, **how)
        )
        self._export = self._channel.unary_unary(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            request_serializer=None,
            response_deserializer=ExportTraceServiceResponse.FromString,
        )

    async def send(self, body: bytes, *, now: float) -> Answer:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def finished(_: object) -> None:
            with suppress(RuntimeError):  # nobody waits any more, and the loop is gone
                loop.call_soon_threadsafe(done.set)

        try:
            call = self._export.future(body, timeout=self.timeout, metadata=self._metadata)
        except ValueError as exc:  # the channel is closed, or a header cannot be sent
            return Answer(verdict=Verdict.LATER, reason=redact(f"cannot be sent: {exc}"))
        call.add_done_callback(finished)
        try:
            await done.wait()
        except asyncio.CancelledError:
            call.cancel()
            raise
        try:
            return taken(call.result())
        except self._grpc.RpcError as exc:
            code = exc.code().name
            if code == "UNAVAILABLE":  # a channel that lost its collector waits long before it looks for it again
                self._channel.close()
                self._open()
            return grpc_answer(code, exc.details() or "", dict(exc.trailing_metadata() or ()))
        except self._grpc.FutureCancelledError:
            return Answer(verdict=Verdict.LATER, reason="the connection was closed")

    async def close(self) -> None:
        self._channel.close()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
