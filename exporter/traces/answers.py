"""What a collector's answer means for the traces it was sent, over HTTP or gRPC. Pure.

The statuses are those of the OTLP specification, read in favour of the traces: what may not be their fault costs none.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from exporter.model.redact import redact

RETRY_AFTER_SECONDS_MIN, RETRY_AFTER_SECONDS_MAX = 1.0, 300.0
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


# Over HTTP


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
        return taken(_success(content_type, body))
    said = _said(content_type, body)
    line = redact(": ".join(filter(None, (f"{status} {reason}".strip(), said, _remedy(status, path)))))
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


def taken(response: ExportTraceServiceResponse) -> Answer:
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
