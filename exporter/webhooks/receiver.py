"""``POST /webhooks/{source}``: verify, limit, map, commit, and only then answer 202.

Strangers pay first. A proof that lies in the headers is checked before the body is read. A body that is itself the
proof is waited for as one of few, costs no place among those that are handled, and is unpacked only if the signature
does not fit it as it was sent, and then not far.

Nothing is acknowledged before it is durable. What a sender gets wrong is its own 4xx and one counted outcome, never a
500; what the store cannot take now is a 503 with Retry-After, so that the sender keeps it.
"""

import asyncio
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web
from msgspec.structs import replace

from exporter.clock import Clock
from exporter.log import get_logger
from exporter.model import Observation, Run, Via
from exporter.model.ledger import Batch
from exporter.model.redact import redact
from exporter.platform import MalformedEvent, WebhookEvents, WebhookRequest, cloudevents
from exporter.source import Source
from exporter.store.ledger import Ledger
from exporter.store.script import StoreError
from exporter.wire import body as bodies
from exporter.wire import schemes
from exporter.wire.body import BodyError
from exporter.wire.peers import Waiting, peer_of

log = get_logger(__name__)

#: A sender has this long (seconds) to send the whole body.
READ_SECONDS_MAX = 15.0
#: Bodies that are waited for before anybody knows who sends them: of one peer, and of all.
WAITING_PER_PEER_MAX, WAITING_MAX = 128, 192
#: A body that proved nothing yet is unpacked up to this many times its size, or up to this many bytes.
UNPROVEN_RATIO_MAX, UNPROVEN_BYTES_MAX = 50, 65_536
#: Senders are asked to come back after this many seconds when the store is in trouble.
RETRY_AFTER = 5
#: CloudEvents senders that ask are allowed this many requests a minute.
ALLOWED_RATE = 6000
#: A webhook that reaches a source before its first sweep sets the baseline at most this far (seconds) before its
#: arrival.
BASELINE_REACH_MAX = 300.0
#: What a body that is of no use is counted as, where that is not ``malformed``.
_BODY_OUTCOMES = {413: "too_large"}
_OUTCOMES = (
    "accepted", "duplicate", "unauthenticated", "malformed", "unknown_type", "too_large", "unavailable",
)  # fmt: skip


async def _unchanged(now: float) -> None:
    """Where secrets stay as they are."""


class Receiver:
    """The webhooks of one source."""

    def __init__(
        self,
        source: Source,
        ledger: Ledger,
        clock: Clock,
        *,
        scheme: schemes.Scheme,
        requests_max: int,
        refreshed: Callable[[float], Awaitable[schemes.Scheme | None]] = _unchanged,
    ) -> None:
        """``refreshed`` is asked for newer secrets when a proof fails."""
        self._source = source
        self._ledger = ledger
        self._clock = clock
        self._scheme = scheme
        self._requests_max = requests_max
        self._refreshed = refreshed
        self._requests = 0
        self._waiting = Waiting(per_peer_max=WAITING_PER_PEER_MAX, total_max=WAITING_MAX)
        self._outcomes = {outcome: source.metrics.webhook_events(outcome) for outcome in _OUTCOMES}
        self._delay = source.metrics.webhook_delay()

    async def receive(self, request: web.Request) -> web.Response:
        """Answer one webhook."""
        if request.method == "OPTIONS":
            return _handshake(request)
        with self._source.span(f"webhook {self._source.name}"):
            try:
                return await self._receive(request)
            except BodyError as exc:
                return self._answer(_BODY_OUTCOMES.get(exc.status, "malformed"), exc.status, str(exc))

    async def _receive(self, request: web.Request) -> web.Response:
        headers = _headers(request)
        refusal = schemes.verify_head(self._scheme, headers)
        if refusal is schemes.Refusal.MISMATCH and await self._renewed():
            refusal = schemes.verify_head(self._scheme, headers)
        if refusal is not None:
            return self._refuse(refusal)
        coding = bodies.coding(headers.get("content-encoding", ""))
        if coding is None:
            text = f"send the body as it is, or one Content-Encoding of: {bodies.ENCODINGS}"
            return self._answer("malformed", 415, text, {"Accept-Encoding": bodies.ENCODINGS})
        body = None
        if self._scheme.signs_body:
            proven = await self._prove(request, headers, coding)
            if isinstance(proven, schemes.Refusal):
                return self._refuse(proven)
            body = proven
        if self._requests >= self._requests_max or self._ledger.is_full:
            return self._answer("unavailable", 503, "too many webhooks at once")
        self._requests += 1
        try:
            if body is None:
                limit = request.client_max_size
                body = await bodies.unpack(await self._read(request), coding, limit=limit)
            return await self._handle(request, headers, body)
        finally:
            self._requests -= 1

    async def _prove(self, request: web.Request, headers: dict[str, str], coding: str) -> bytes | schemes.Refusal:
        """The unpacked body, if it is signed, or why it is not believed."""
        sent, limit = await self._read(request), request.client_max_size
        proven = await self._unpacked(sent, headers, coding, limit=limit)
        if proven is schemes.Refusal.MISMATCH and await self._renewed():
            proven = await self._unpacked(sent, headers, coding, limit=limit)
        return proven

    async def _renewed(self) -> bool:
        """Whether there are newer secrets to try."""
        scheme = await self._refreshed(self._clock.now())
        self._scheme = scheme or self._scheme
        return scheme is not None

    async def _unpacked(
        self, sent: bytes, headers: dict[str, str], coding: str, *, limit: int
    ) -> bytes | schemes.Refusal:
        """The unpacked body, if it is signed as it was sent, or before something packed it."""
        theirs = self._theirs()
        refusal = schemes.verify(self._scheme, headers, sent, theirs)
        if refusal is None:
            return await bodies.unpack(sent, coding, limit=limit)
        if refusal is not schemes.Refusal.MISMATCH or not coding:
            return refusal
        far = max(UNPROVEN_BYTES_MAX, UNPROVEN_RATIO_MAX * len(sent))
        try:
            body = await bodies.unpack(sent, coding, limit=min(limit, far))
        except BodyError as exc:
            if exc.status != 413 or limit <= far:
                raise
            return refusal
        refusal = schemes.verify(self._scheme, headers, body, theirs)
        return body if refusal is None else refusal

    async def _read(self, request: web.Request) -> bytes:
        """The whole body as it was sent, within its limits of size and time."""
        limit = request.client_max_size
        if request.content.is_eof():  # all of it came with the head: the usual case, and a timer is not cheap
            return await bodies.read(request, limit=limit)
        try:
            if not self._scheme.signs_body:
                async with asyncio.timeout(READ_SECONDS_MAX):
                    return await bodies.read(request, limit=limit)
            async with self._waiting.wait(peer_of(request.transport), seconds=READ_SECONDS_MAX):
                return await bodies.read(request, limit=limit)
        except TimeoutError:
            raise bodies.late() from None

    def _theirs(self) -> float | None:
        """Now on the platform's clock, None while nobody knows it."""
        api = self._source.api
        return api.platform_now() if api.answered else None

    def _refuse(self, refusal: schemes.Refusal) -> web.Response:
        log.debug("webhook refused", source=self._source.name, reason=refusal)
        return self._answer("unauthenticated", 401, "the webhook is not authenticated")

    async def _handle(self, request: web.Request, headers: dict[str, str], body: bytes) -> web.Response:
        theirs = self._theirs()
        now = self._clock.now() if theirs is None else theirs
        media = cloudevents.media_type(headers)
        has_attributes = cloudevents.has_attributes(headers)
        if body and not has_attributes and media not in ("", "application/json") and not media.endswith("+json"):
            return self._answer("malformed", 415, "send application/json")
        if has_attributes and self._scheme.signs_body and not media.startswith("application/cloudevents"):
            return self._answer("malformed", 400, "ce- headers are not signed: send the event in the body")
        hook = WebhookRequest(
            method=request.method,
            headers=headers,
            query=dict(request.query) if "?" in request.raw_path else {},
            body=body,
            received_at=now,
            clock_known=theirs is not None,
            read_until=self._source.known.read_until,
            base_url=self._source.section.url,
        )
        try:
            events = self._source.platform.receive(hook)
        except (MalformedEvent, cloudevents.Malformed) as exc:
            start = redact(body[:200].decode("utf-8", "replace"), limit=120)
            log.debug("malformed webhook", source=self._source.name, problem=str(exc), start=start)
            return self._answer("malformed", 400, str(exc))
        except Exception as bug:  # in a mapping: costs this webhook, and sending it again would not help
            log.error("reading a webhook broke", source=self._source.name, error=bug)
            return self._answer("malformed", 400, "the event cannot be read")
        return await self._take(self._watched(events), now, clock_known=theirs is not None)

    def _watched(self, events: WebhookEvents) -> WebhookEvents:
        """The events without what they say of workflows the source leaves out."""
        observations = [o for o in events.observations if self._source.selects(_workflow_id(o))]
        wake = [key for key in events.wake if key.workflow_id is None or self._source.selects(key.workflow_id)]
        if len(observations) == len(events.observations) and len(wake) == len(events.wake):
            return events
        return replace(events, observations=observations, wake=wake)

    async def _take(self, events: WebhookEvents, now: float, *, clock_known: bool) -> web.Response:
        if events.unknown_types:
            log.debug("webhook of unknown type", source=self._source.name, types=",".join(events.unknown_types))
        if self._ledger.is_down and not events.observations:
            return self._answer("unavailable", 503, "nothing can be stored now")
        if events.observations:
            batch = Batch(
                source=self._source.name,
                observations=events.observations,
                via=Via.WEBHOOK,
                now=now,
                started_at=_baseline(events, now) if clock_known else None,
                stream="webhook",
            )
            try:
                outcome = await self._ledger.ingest(batch)
            except StoreError:
                return self._answer("unavailable", 503, "the event could not be stored")
            if outcome.news == 0:
                return self._answer("duplicate", 202, "stored")
        if events.wake or events.wake_streams:
            self._source.wake(list(events.wake), list(events.wake_streams))
        elif not events.observations:
            return self._answer("unknown_type", 202, "ignored")
        if events.occurred_at is not None and clock_known:
            stored = self._theirs()
            self._delay.observe(max(0.0, (now if stored is None else stored) - events.occurred_at))
        return self._answer("accepted", 202, "stored")

    def _answer(self, outcome: str, status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
        self._outcomes[outcome].inc()
        if status == 503:
            headers = {"Retry-After": str(RETRY_AFTER)}
        key = "status" if status < 400 else "error"
        return web.Response(
            status=status, body=orjson.dumps({key: text}), content_type="application/json", headers=headers
        )


def _headers(request: web.Request) -> dict[str, str]:
    """The headers by their names in lower case; of a repeated one, the first."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        headers.setdefault(name.lower(), value)
    return headers


def _workflow_id(item: Observation) -> str:
    return getattr(item, "workflow_id", "")


def _baseline(events: WebhookEvents, now: float) -> float:
    """When the source began, if this is the first thing ever heard of it: as its own clock said, within reason."""
    earliest = now
    for item in events.observations:
        if isinstance(item, Run):
            earliest = min(earliest, item.finished_at or now)
    return max(earliest, now - BASELINE_REACH_MAX)


def _handshake(request: web.Request) -> web.Response:
    """The CloudEvents abuse protection: a sender asks whether it may, before it sends."""
    origin = request.headers.get("WebHook-Request-Origin", "")
    headers = {"Allow": "POST"}
    if origin and origin.isprintable():
        headers |= {"WebHook-Allowed-Origin": origin, "WebHook-Allowed-Rate": str(ALLOWED_RATE)}
    return web.Response(status=200, headers=headers)
