"""What can go wrong with a call of ours, classified once, at the edge. Pure."""

from enum import StrEnum

from exporter.model.redact import redact


class ErrorKind(StrEnum):
    """What kind of failure a call of ours met."""

    AUTH = "auth"
    RATE_LIMITED = "rate_limited"
    NOT_FOUND = "not_found"
    UNAVAILABLE = "unavailable"
    BAD_PAYLOAD = "bad_payload"
    TIMEOUT = "timeout"
    CONFLICT = "conflict"
    REQUEST = "request"


def kind_of(status: int) -> ErrorKind:
    """The kind of failure a status stands for, if it is one; of 1xx and 2xx: an answer of no use."""
    match status:
        case 401 | 403:
            return ErrorKind.AUTH
        case 404 | 410:
            return ErrorKind.NOT_FOUND
        case 408:
            return ErrorKind.TIMEOUT
        case 409 | 412 | 423:
            return ErrorKind.CONFLICT
        case 429:
            return ErrorKind.RATE_LIMITED
    if status < 300:
        return ErrorKind.BAD_PAYLOAD
    return ErrorKind.REQUEST if 400 <= status < 500 else ErrorKind.UNAVAILABLE


class ApiError(Exception):
    """A call that failed: ``GET /scenarios/{id}/logs: 401 auth: Access denied.``

    ``status`` is None where no answer came. ``sent`` is False only if the request certainly never left: that tells a
    retry that was not sent from one in doubt. ``retry_after`` is how many seconds to wait after
    a 429, or a 503 that says so.
    """

    def __init__(
        self,
        kind: ErrorKind,
        *,
        endpoint: str,
        detail: str,
        status: int | None = None,
        sent: bool = True,
        retry_after: float | None = None,
    ) -> None:
        self.kind = kind
        self.status = status
        self.endpoint = endpoint
        self.detail = redact(detail)
        self.sent = sent
        self.retry_after = retry_after
        answer = f"{kind}" if status is None else f"{status} {kind}"
        super().__init__(f"{endpoint}: {answer}: {self.detail}" if self.detail else f"{endpoint}: {answer}")

    def unsent(self) -> "ApiError":
        """The same of a read right before a call, which was therefore never made."""
        return ApiError(
            self.kind,
            endpoint=self.endpoint,
            detail=self.detail,
            status=self.status,
            sent=False,
            retry_after=self.retry_after,
        )
