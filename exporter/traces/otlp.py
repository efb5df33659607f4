"""Sending spans to a collector by OTLP, over HTTP or gRPC: one request, and what its answer means for what was sent.

OpenTelemetry's own exporters are not used. They answer yes or no after repeating by themselves, and keep back what
decides here: the status, how long to wait, how many spans were rejected. Their encoder is.

Nothing is taken from the machine's surroundings that would change who we are or where we go: no ``.netrc``, no
``HTTP_PROXY``. What counts is the config, then the standard ``OTEL_EXPORTER_OTLP_*`` variables.
"""

import asyncio
import gzip
import os
import re
import ssl
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import aiohttp
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.util.re import parse_env_headers

from exporter import __version__
from exporter.redact import redact

if TYPE_CHECKING:
    from exporter.config import TracesConfig

TIMEOUT_SECONDS = 10.0
RETRY_AFTER_SECONDS_MIN, RETRY_AFTER_SECONDS_MAX = 1.0, 300.0
ANSWER_BYTES_MAX = 64 * 1024
COMPRESSIONS = ("none", "gzip", "deflate")
PROTOBUF = "application/x-protobuf"
#: What the collector says of itself is cut to this many characters.
MESSAGE_CHARS_MAX = 200


class Verdict(StrEnum):
    """What the answer to a request says of the traces in it."""

    TAKEN = "taken"
    TOO_LARGE = "too_large"  # all of them together, or the one
    REFUSED = "refused"  # for what is in them: sent again, they are refused again
    BROKEN = "broken"  # the collector failed, perhaps because of what is in them
    DOWN = "down"  # it does not work now; seldom because of what is in them
    LATER = "later"  # nothing to do with them: it wants to be left alone, or a person must put something right


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of one request. ``reason`` is one line, without secrets; with TAKEN it is the collector's remark."""

    verdict: Verdict
    reason: str = ""
    rejected: int = 0
    """Spans of a request that was taken which the collector rejected all the same; it does not say which"""
    retry_after: float | None = None
    """Seconds the collector wants to be left alone for"""


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
            told = b""
            with suppress(aiohttp.ClientError):  # the status is known: the rest is a courtesy
                while len(told) < ANSWER_BYTES_MAX and (more := await response.content.read(ANSWER_BYTES_MAX)):
                    told += more
            return http_answer(
                response.status,
                reason=response.reason or "",
                headers=response.headers,
                content_type=response.content_type,
                body=told,
                now=now,
                path=urlsplit(self._to.url).path,
            )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def http_answer(
    status: int,
    *,
    reason: str = "",
    headers: Mapping[str, str],
    content_type: str = "",
    body: bytes = b"",
    now: float,
    path: str = "/v1/traces",
) -> Answer:
    """What an HTTP answer means for the traces sent."""
    if 200 <= status < 300:
        if "html" in content_type:
            return Answer(
                verdict=Verdict.LATER,
                reason=f"{status}, but with a web page: traces.endpoint is not the address of a collector",
            )
        return _taken(_success(content_type, body))
    told = _said(content_type, body)
    line = redact(": ".join(filter(None, (f"{status} {reason}".strip(), told, _remedy(status, path)))))
    wait = _retry_after(headers, now) if status in (429, 503) or status >= 500 else None
    return Answer(verdict=_verdict(status, wait), reason=line, retry_after=wait)


def _verdict(status: int, wait: float | None) -> Verdict:
    if wait is not None:
        return Verdict.LATER
    match status:
        case 413:
            return Verdict.TOO_LARGE
        case 400 | 422:
            return Verdict.REFUSED
        case 408 | 502 | 503 | 504:
            return Verdict.DOWN
    return Verdict.BROKEN if status >= 500 else Verdict.LATER


def _remedy(status: int, path: str) -> str:
    """What a person can do about a status, if anything."""
    match status:
        case 401 | 403:
            return "the collector wants another credential, see traces.headers"
        case 404 | 405 | 410 | 501:
            return f"nothing takes traces at {path}; traces.endpoint is the collector's base URL, /v1/traces is added"
        case 407:
            return "the proxy wants a credential, see traces.proxy"
        case 415:
            return "the collector does not take protobuf, or not this compression"
    return "the collector has moved, name its new address" if 300 <= status < 400 else ""


def _success(content_type: str, body: bytes) -> ExportTraceServiceResponse:
    """The answer to a request that was taken. One that cannot be read rejects nothing."""
    response = ExportTraceServiceResponse()
    with suppress(DecodeError, json_format.ParseError, UnicodeDecodeError):
        if "json" in content_type:
            json_format.Parse(body or b"{}", response, ignore_unknown_fields=True)
        elif content_type == PROTOBUF:
            response = ExportTraceServiceResponse.FromString(body)
    return response


def _taken(response: ExportTraceServiceResponse) -> Answer:
    partial_success = response.partial_success
    return Answer(
        verdict=Verdict.TAKEN,
        rejected=max(0, partial_success.rejected_spans),
        reason=redact(partial_success.error_message, limit=MESSAGE_CHARS_MAX),
    )


def _said(content_type: str, body: bytes) -> str:
    """The collector's own words in an error: OTLP puts them into a ``google.rpc.Status``. Of a web page, nothing."""
    text = ""
    with suppress(DecodeError, json_format.ParseError, UnicodeDecodeError):
        if content_type == PROTOBUF:
            text = Status.FromString(body).message
        elif "json" in content_type:
            text = json_format.Parse(body, Status(), ignore_unknown_fields=True).message
    if not text and content_type.startswith("text/plain"):
        text = body.decode(errors="replace")
    return redact(text, limit=MESSAGE_CHARS_MAX)


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds; a date is read against the collector's own clock, if it says what that is."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        return _clamped(float(text))
    moment, theirs = _http_date(text), _http_date(headers.get("Date", ""))
    return None if moment is None else _clamped(moment - (now if theirs is None else theirs))


def _clamped(seconds: float) -> float:
    return min(max(seconds, RETRY_AFTER_SECONDS_MIN), RETRY_AFTER_SECONDS_MAX)


def _http_date(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


# Over gRPC


class _OverGrpc:
    def __init__(self, to: Destination) -> None:
        try:
            import grpc
        except ImportError:
            raise ExporterUnavailable(
                "traces.protocol: grpc needs an extra: pip install 'automation-exporter[grpc]'"
            ) from None
        self.timeout = to.timeout
        self._grpc: Any = grpc
        self._to = to
        parts = urlsplit(to.url)
        self._target = parts.netloc or to.url
        self._credentials: Any = None
        if parts.scheme == "https" or (parts.scheme != "http" and not to.insecure):
            files = [None if path is None else _read(path) for path in (to.ca_file, to.key_file, to.certificate_file)]
            self._credentials = grpc.ssl_channel_credentials(*files)
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
            return _taken(call.result())
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


def grpc_answer(code: str, details: str, trailing: Mapping[str, Any]) -> Answer:
    """What the status of a gRPC call means for the traces sent."""
    wait = _retry_delay(trailing)
    verdict, remedy = Verdict.BROKEN, ""
    if wait is not None:
        verdict = Verdict.LATER
    elif code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        verdict, remedy = Verdict.LATER, "the collector wants another credential, see traces.headers"
    elif code in ("UNIMPLEMENTED", "NOT_FOUND"):
        verdict, remedy = Verdict.LATER, "nothing takes traces at this address, see traces.endpoint"
    elif code == "INVALID_ARGUMENT":
        verdict = Verdict.REFUSED
    elif code == "RESOURCE_EXHAUSTED" and _TOO_LARGE.search(details):
        verdict = Verdict.TOO_LARGE
    elif code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED"):
        verdict = Verdict.DOWN
    reason = ": ".join(filter(None, (code, redact(details, limit=MESSAGE_CHARS_MAX), remedy)))
    return Answer(verdict=verdict, reason=redact(reason), retry_after=wait)


#: How servers in C, Go, Java and Rust say that a message is too large: gRPC has no status of its own for it.
_TOO_LARGE = re.compile(r"larger than|exceeds|too large|too big|message length|message size", re.I)


def _retry_delay(trailing: Mapping[str, Any]) -> float | None:
    """Seconds a ``RetryInfo`` asks for, on its own or among the details of a status."""
    info = RetryInfo()
    try:
        if "google.rpc.retryinfo-bin" in trailing:
            info.ParseFromString(trailing["google.rpc.retryinfo-bin"])
        elif not any(d.Unpack(info) for d in Status.FromString(trailing.get("grpc-status-details-bin", b"")).details):
            return None
    except (DecodeError, TypeError):
        return None
    return _clamped(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
