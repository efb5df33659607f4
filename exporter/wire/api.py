"""Everything between a platform's client and the wire: what waits, tries again, measures, names failures.

A client asks for ``/scenarios/{id}/logs`` and gets decoded JSON or an ``ApiError`` of one of a few kinds. On the way
every attempt waits for the credential's budget, is counted under its template (never under its real path), is limited
in time and in size, and is repeated where that is safe. Nothing secret leaves through an error: no query, no header,
nothing of the body but the platform's own words, redacted. Redirects are not followed: they would carry the credential
to another place.
"""

import asyncio
import random
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Literal, Protocol
from urllib.parse import quote, urlencode

import aiohttp
import orjson
from multidict import CIMultiDictProxy
from yarl import URL

from exporter.clock import Clock
from exporter.wire.budget import Budget, Lane
from exporter.wire.decode import Undecodable, decode
from exporter.wire.errors import ApiError, ErrorKind, kind_of
from exporter.wire.platform_clock import PlatformClock, http_date
from exporter.wire.unreachable import why

ATTEMPTS_MAX = 3
CONNECTIONS_MAX = 4
CONNECT_SECONDS_MAX = 10.0
BODY_BYTES_MAX = 32 * 1024 * 1024
BIG_BODY_BYTES = 1024 * 1024
ERROR_BODY_BYTES_MAX = 16 * 1024
RETRY_AFTER_SECONDS_MIN = 1.0
RETRY_AFTER_SECONDS_MAX = 300.0

Params = Mapping[str, str | int | float] | Sequence[tuple[str, str | int | float]]
Ids = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A successful answer: the decoded body (None if empty) and when it came, on the platform's clock."""

    data: Any
    headers: CIMultiDictProxy[str]
    status: int
    at: float


class Auth(Protocol):
    """How a source proves who it is.

    Both methods may call the platform, with ``anonymous=True``. An ``Api`` calls one of them at a time, so that many
    calls at once cause one login.
    """

    async def headers(self, api: "Api") -> dict[str, str]: ...

    async def renew(self, api: "Api") -> bool:
        """After a 401: get a new credential, True if there is one to try again with."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    method: str
    endpoint: str  # with the method: "GET /scenarios/{id}/logs"
    url: URL
    lane: Lane
    repeatable: bool
    counted: bool = True
    anonymous: bool = False
    body: bytes | None = None
    content_type: str = "application/json"
    once: bool = False  # never a second request, not even after a 401
    send_by: float | None = None  # our clock: not written after it
    timeout: float | None = None  # seconds for the answer, where it takes longer than others


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    status: int
    reason: str
    headers: CIMultiDictProxy[str]
    content_type: str
    body: bytes
    cut: bool  # there was more than may be read


def _uncounted(endpoint: str, code: str) -> None:
    """Where nobody counts requests."""


def _limits(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT_SECONDS_MAX))


#: Raised before the first byte of a request is written.
_NEVER_SENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    aiohttp.InvalidURL,
)


class _ConnectionLost(aiohttp.ClientConnectionError):
    """The connection ended before the answer."""

    @property
    def errno(self) -> int | None:
        number = self.args[0]
        return number if isinstance(number, int) else None


async def _tell_lost_connections(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a get again by itself: every attempt is ours to pace and to count."""
    try:
        return await handler(request)
    except _NEVER_SENT:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _ConnectionLost(getattr(error, "errno", None), "the connection was lost") from error


class Api:
    """One source's connection to its platform. To be made inside a running loop, and closed.

    ``on_request`` is given the endpoint and the code of every attempt: the status, ``timeout`` or ``error``.
    ``error_detail`` finds the platform's own words in a decoded error body. ``retry_after_default`` is how long to
    pause after a 429 that does not say. ``jitter`` returns numbers from 0 to 1. ``span`` is entered around every
    attempt, with its endpoint.
    """

    def __init__(
        self,
        *,
        base_url: str,
        clock: Clock,
        budget: Budget,
        auth: Auth,
        user_agent: str,
        timeout: float = 30.0,
        body_bytes_max: int = BODY_BYTES_MAX,
        proxy: str | None = None,
        ssl: SSLContext | None = None,
        on_request: Callable[[str, str], None] = _uncounted,
        error_detail: Callable[[Any], str | None] | None = None,
        span: Callable[[str], AbstractContextManager[object]] = nullcontext,
        retry_after_default: float = 60.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.budget = budget
        self._base = URL(base_url)
        self._clock = clock
        self._theirs = PlatformClock(clock)
        self._auth = auth
        self._auth_lock = asyncio.Lock()
        self._renewals = 0
        self._timeout = timeout
        self._body_bytes_max = body_bytes_max
        self._proxy = proxy
        self._on_request = on_request
        self._error_detail = error_detail
        self._span = span
        self._retry_after_default = retry_after_default
        self._jitter = jitter
        # In the connector's own queue, waiting for a free connection would count as waiting for the answer.
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit_per_host=CONNECTIONS_MAX, ssl=True if ssl is None else ssl),
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=(_tell_lost_connections,),
            headers={"Accept": "application/json", "User-Agent": user_agent},
        )

    async def close(self) -> None:
        await self._session.close()

    def platform_now(self) -> float:
        """The time on the platform's clock, by its last answers; ours while none has."""
        return self._theirs.now()

    @property
    def answered(self) -> bool:
        """Whether the platform has answered: before that, nobody can say how right our clock is."""
        return self._theirs.answered

    def clock_offset(self) -> float | None:
        """Seconds our clock is ahead of the platform's; None while no answer had the time."""
        return self._theirs.offset()

    def hear_clock(self, theirs: float) -> None:
        """What the platform's clock shows now, as another replica has it, which asks the platform."""
        self._theirs.hear(theirs)

    def latest(self) -> float:
        """The latest time to be believed of the platform's items."""
        return self._theirs.latest()

    async def get(
        self, endpoint: str, *, lane: Lane, params: Params = (), ids: Ids | None = None, counted: bool = True
    ) -> Answer:
        """Read ``endpoint``, a path template whose ``{placeholders}`` are filled from ``ids``.

        ``counted=False`` is for calls the platform exempts from its limit: they do not wait for the budget.
        """
        url = self._url("GET", endpoint, params, ids or {})
        return await self._send(
            _Call(method="GET", endpoint=f"GET {endpoint}", url=url, lane=lane, repeatable=True, counted=counted)
        )

    async def post(
        self,
        endpoint: str,
        *,
        lane: Lane,
        json: object = None,
        form: Mapping[str, str] | None = None,
        params: Params = (),
        ids: Ids | None = None,
        idempotent: bool = False,
        counted: bool = True,
        anonymous: bool = False,
        send_by: float | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Post ``json``, a ``form`` or nothing. One that only reads (``idempotent``) is repeated like a get, others
        after a 401.

        ``anonymous`` sends no credential: for the calls that fetch one. ``send_by``, on our clock, makes it a call that
        must not happen twice: it is sent once whatever comes of it, and not at all after that moment (then ``sent`` of
        the error is False). ``timeout`` is for a call whose answer takes longer than others.
        """
        return await self._send(
            _Call(
                method="POST",
                endpoint=f"POST {endpoint}",
                url=self._url("POST", endpoint, params, ids or {}),
                lane=lane,
                repeatable=idempotent,
                counted=counted,
                anonymous=anonymous,
                body=urlencode(form).encode() if form is not None else None if json is None else orjson.dumps(json),
                content_type="application/json" if form is None else "application/x-www-form-urlencoded",
                once=send_by is not None,
                send_by=send_by,
                timeout=timeout,
            )
        )

    async def change(
        self,
        method: Literal["PATCH", "DELETE"],
        endpoint: str,
        *,
        lane: Lane,
        json: object,
        params: Params = (),
        ids: Ids | None = None,
        send_by: float,
    ) -> Answer:
        """Change or delete something: sent once whatever comes of it, and not at all after ``send_by`` (our clock)."""
        return await self._send(
            _Call(
                method=method,
                endpoint=f"{method} {endpoint}",
                url=self._url(method, endpoint, params, ids or {}),
                lane=lane,
                repeatable=False,
                body=orjson.dumps(json),
                once=True,
                send_by=send_by,
            )
        )

    async def get_url(self, url: str, *, endpoint: str, lane: Lane) -> Answer:
        """Follow a link the platform gave, as it is, if it stays with the platform. ``endpoint`` is its template."""
        name = f"GET {endpoint}"
        return await self._send(
            _Call(method="GET", endpoint=name, url=self._own_link(url, name), lane=lane, repeatable=True)
        )

    # Addresses.

    def _url(self, method: str, endpoint: str, params: Params, ids: Ids) -> URL:
        def fill(placeholder: re.Match[str]) -> str:
            value = str(ids[placeholder[1]])
            if value in ("", ".", ".."):  # would name another endpoint; quoting does not help
                detail = f"{placeholder[0]} is {value!r}, which is no id"
                raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=f"{method} {endpoint}", detail=detail, sent=False)
            return quote(value, safe="")

        path = re.sub(r"\{(\w+)\}", fill, endpoint)
        url = URL(str(self._base).rstrip("/") + path, encoded=True)
        return url.with_query(params) if params else url

    def _own_link(self, link: str, endpoint: str) -> URL:
        try:
            url = URL(link, encoded=True)
            if link.startswith("/") and not url.absolute:
                url = self._base.origin().join(url)
            # Encoded addresses are visible ASCII; anything else could write into the request's head.
            if not re.fullmatch(r"[!-~]+", link) or url.user is not None or url.password is not None:
                raise ValueError
            here = (self._base.scheme, self._base.host, self._base.port)
            if (url.scheme, (url.host or "").lower(), url.port) != here:
                raise ValueError
        except ValueError:
            detail = "the next link leads to another place"
            raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=endpoint, detail=detail, sent=False) from None
        return url.with_fragment(None)

    # Attempts.

    async def _send(self, call: _Call) -> Answer:
        attempts, renewed, counted = 0, False, call.counted
        while True:
            attempts += 1
            if counted:
                await self.budget.take(call.lane)
            headers, renewals = await self._credential(call)
            try:
                with self._span(call.endpoint):
                    return await self._attempt(call, headers)
            except ApiError as error:
                if error.retry_after is not None:
                    self.budget.pause(error.retry_after, "retry_after")
                if call.once or attempts == ATTEMPTS_MAX:
                    raise
                if error.status == 401 and not (renewed or call.anonymous):
                    renewed = True
                    if not await self._renew(renewals):
                        raise
                elif not call.repeatable:
                    raise
                elif error.status == 429:
                    counted = True  # the pause is over when the budget says so, and the call was counted after all
                elif error.status in (None, 502, 503, 504):
                    await self._clock.sleep(2.0 ** (attempts - 1) * (0.5 + self._jitter()))
                else:
                    raise

    async def _credential(self, call: _Call) -> tuple[dict[str, str], int]:
        """The headers to send, and which renewal they are from."""
        if call.anonymous:
            return {}, 0
        async with self._auth_lock:
            return await self._auth.headers(self), self._renewals

    async def _renew(self, renewals: int) -> bool:
        async with self._auth_lock:
            if self._renewals != renewals:  # another call, refused at the same time, has done it
                return True
            if not await self._auth.renew(self):
                return False
            self._renewals += 1
            return True

    async def _attempt(self, call: _Call, headers: dict[str, str]) -> Answer:
        try:
            reply = await self._exchange(call, headers)
        except TimeoutError as error:
            self._on_request(call.endpoint, "timeout")
            seconds = self._timeout if call.timeout is None else call.timeout
            detail, sent = f"no answer within {seconds:g} s", not isinstance(error, _NEVER_SENT)
            raise ApiError(ErrorKind.TIMEOUT, endpoint=call.endpoint, detail=detail, sent=sent) from None
        except (aiohttp.ClientError, OSError) as error:
            self._on_request(call.endpoint, "error")
            detail = why(error, call.url, self._proxy)
            sent = not isinstance(error, _NEVER_SENT)
            raise ApiError(ErrorKind.UNAVAILABLE, endpoint=call.endpoint, detail=detail, sent=sent) from None
        self._on_request(call.endpoint, str(reply.status))
        if 200 <= reply.status < 300:
            data = await self._decoded(call, reply)
            self._theirs.learn(reply.headers)
            return Answer(data=data, headers=reply.headers, status=reply.status, at=self.platform_now())
        raise ApiError(
            kind_of(reply.status),
            endpoint=call.endpoint,
            detail="redirected to another place" if reply.status < 400 else self._wording(reply),
            status=reply.status,
            retry_after=self._retry_after(reply) if reply.status in (429, 503) else None,
        )

    async def _exchange(self, call: _Call, headers: dict[str, str]) -> _Reply:
        if call.body is not None:
            headers = {**headers, "Content-Type": call.content_type}
        async with self._slots:
            if call.send_by is not None and self._clock.now() > call.send_by:
                detail = "its time to be sent had passed"
                raise ApiError(ErrorKind.TIMEOUT, endpoint=call.endpoint, detail=detail, sent=False)
            return await self._request(call, headers)

    async def _request(self, call: _Call, headers: dict[str, str]) -> _Reply:
        limits = _limits(self._timeout if call.timeout is None else call.timeout)
        async with self._session.request(
            call.method,
            call.url,
            data=call.body,
            headers=headers,
            allow_redirects=False,
            proxy=self._proxy,
            timeout=limits,
        ) as response:
            bytes_max = self._body_bytes_max if response.status < 300 else ERROR_BODY_BYTES_MAX
            body, cut = bytearray(), False
            async for chunk in response.content.iter_any():
                body += chunk
                if cut := len(body) > bytes_max:
                    break
            return _Reply(
                status=response.status,
                reason=response.reason or "",
                headers=response.headers,
                content_type=response.content_type,
                body=bytes(body[:bytes_max]),
                cut=cut,
            )

    # Answers.

    async def _decoded(self, call: _Call, reply: _Reply) -> Any:
        if reply.cut:
            detail = f"more than {self._body_bytes_max} bytes"
        elif not reply.body and (reply.status in (202, 204, 205) or call.method != "GET"):
            return None  # accepted without a word
        else:
            try:
                if len(reply.body) > BIG_BODY_BYTES:  # so that a repair of it does not hold up everything else
                    return await asyncio.to_thread(decode, reply.body)
                return decode(reply.body)
            except Undecodable as problem:
                detail = f"not JSON but {len(reply.body)} bytes said to be {reply.content_type}: {problem}"
        raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=call.endpoint, detail=detail, status=reply.status)

    def _wording(self, reply: _Reply) -> str:
        """What the platform says is wrong."""
        text = reply.body.decode("utf-8", "replace").strip()
        try:
            data = decode(reply.body)
        except Undecodable:
            # A gateway's HTML page says no more than its status.
            return reply.reason if not text or text.startswith("<") else text
        try:
            said = self._error_detail(data) if self._error_detail else None
        except (LookupError, TypeError, ValueError, AttributeError):  # not the shape the platform documents
            said = None
        return said or text

    def _retry_after(self, reply: _Reply) -> float | None:
        """How long (seconds) to wait after a 429, or after a 503 that says so."""
        headers = reply.headers
        text = headers.get("Retry-After", "").strip()
        if reply.status != 429 and not text:
            return None
        seconds: float | None = None
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
            seconds = float(text)
        elif (moment := http_date(text)) is not None:
            seconds = moment - (http_date(headers.get("Date", "")) or self.platform_now())
        if seconds is None:
            seconds = self._retry_after_default
        return min(max(seconds, RETRY_AFTER_SECONDS_MIN), RETRY_AFTER_SECONDS_MAX)
