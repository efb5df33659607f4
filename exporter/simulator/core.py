"""What the five simulators share: a seeded world that moves with a clock, faults on demand, and the truth.

A simulator stands in for one platform. It keeps a *world* (workflows, runs, dead letters) that ``advance`` moves up to
a given moment, a deterministic function of its seed and of what was asked of it; it serves that world through the
platform's own API (``app``); it queues the webhooks the platform would send (``take_deliveries``); and it can tell the
*truth*, so that a test can compare what was counted with what really happened. The demo and the tests use the same
simulators.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields
from email.utils import formatdate
from typing import Protocol

import orjson
from aiohttp import web

from exporter.clock import Clock

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True, kw_only=True)
class Faults:
    """What goes wrong, as probabilities per request (0 to 1) unless said otherwise. All off by default.

    A test may also queue exact faults with ``Simulator.fail_next``: they are used up first, one per request.
    """

    rate_limited: float = 0.0  # 429 in the platform's own JSON form
    rate_limited_text: float = 0.0  # 429 as plain text
    unavailable: float = 0.0  # 503 with the platform's error body
    server_error_html: float = 0.0  # 502 with an HTML page of a gateway
    ok_html: float = 0.0  # 200 with HTML where JSON belongs
    truncated: float = 0.0  # 200 whose body ends in the middle
    slow: float = 0.0  # answers after slow_seconds of real time
    slow_seconds: float = 0.2
    retry_after: int | None = 2  # seconds in Retry-After on 429; None: no header
    shifting_pages: float = 0.0  # something is inserted between two pages of a listing
    missing_fields: float = 0.0  # optional fields of an item left out, per item
    duplicates: float = 0.0  # an item listed twice, per item
    null_numbers: float = 0.0  # a null where a number belongs, per item
    unknown_status: float = 0.0  # a status the documents do not list, per item
    no_date: float = 0.0  # no Date header: nothing tells the platform's clock
    webhook_lost: float = 0.0
    webhook_duplicated: float = 0.0
    webhook_shuffled: float = 0.0  # a delivery swaps places with the one before it


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueRun:
    """One finished attempt of one run, as it really was. Times are seconds since the epoch."""

    workflow_id: str
    run_id: str
    attempt: int  # 1 upwards in the simulated world
    result: str  # a value of exporter.model.Result
    started_at: float
    ended_at: float
    error_class: str | None = None  # a value of exporter.model.ErrorClass, for failures


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueDeadLetter:
    """One dead letter the platform holds or held."""

    workflow_id: str
    dead_letter_id: str
    opened_at: float
    resolved_at: float | None = None
    error_class: str | None = None


@dataclass(slots=True, kw_only=True)
class Truth:
    """What really happened, for comparison with what was counted."""

    runs: list[TrueRun] = field(default_factory=list)
    dead_letters: list[TrueDeadLetter] = field(default_factory=list)

    def counts(self, *, since: float = 0.0, until: float = float("inf")) -> Counter[tuple[str, str]]:
        """(workflow_id, result) -> finished attempts that ended in [since, until]."""
        return Counter((r.workflow_id, r.result) for r in self.runs if since <= r.ended_at <= until)

    def open_dead_letters(self) -> Counter[str]:
        """workflow_id -> dead letters still open."""
        return Counter(d.workflow_id for d in self.dead_letters if d.resolved_at is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One webhook the platform would send: append ``suffix`` to the receiver's URL."""

    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    suffix: str = ""


class Simulator(Protocol):
    """What the demo, the command ``simulate`` and the tests rely on."""

    name: str
    faults: Faults
    requests: Counter[str]  # endpoint template, as "GET /scenarios/{id}/logs" -> answered requests

    def app(self) -> web.Application: ...

    def advance(self, now: float) -> None: ...

    def truth(self) -> Truth: ...

    def take_deliveries(self) -> list[Delivery]: ...


class Engine:
    """The part every simulator is built on: clock, seeded randomness, request counting and faults.

    A simulator makes one, passes ``middleware`` to its application and calls ``stream`` for each independent random
    sequence, so that one more request never changes what happens elsewhere in the world.
    """

    def __init__(
        self,
        *,
        name: str,
        clock: Clock,
        seed: int,
        faults: Faults,
        advance: Callable[[float], None],
        error_body: Callable[[int, str], tuple[bytes, str]],
    ) -> None:
        """``error_body(status, text)`` gives the platform's own error body and its content type."""
        self.name = name
        self.clock = clock
        self.seed = seed
        self.faults = faults
        self.requests: Counter[str] = Counter()
        self.queued_faults: list[str] = []
        self._advance = advance
        self._error_body = error_body
        self._rng = self.stream("faults")

    def stream(self, *parts: object) -> random.Random:
        """A random sequence of its own, fixed by the seed, the platform and ``parts``."""
        return random.Random(":".join(map(str, (self.seed, self.name, *parts))))

    def fail_next(self, *kinds: str) -> None:
        """Queue exact faults (names of ``Faults`` fields), one per coming request."""
        known = {f.name for f in fields(Faults)}
        for kind in kinds:
            if kind not in known:
                raise ValueError(f"no such fault: {kind}")
        self.queued_faults.extend(kinds)

    def strikes(self, probability: float) -> bool:
        return probability > 0 and self._rng.random() < probability

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Move the world to now, then answer: honestly, or with the fault that is due.

        The Date header is the world's time.
        """
        now = self.clock.now()
        self._advance(now)
        resource = request.match_info.route.resource
        template = resource.canonical if resource is not None else "(no route)"
        if not template.startswith("/_sim"):
            self.requests[f"{request.method} {template}"] += 1
            faulty = await self._faulty(request, handler)
        else:
            faulty = None
        response = faulty if faulty is not None else await handler(request)
        # An empty one keeps the server from adding the machine's.
        response.headers["Date"] = "" if self.strikes(self.faults.no_date) else formatdate(now, usegmt=True)
        return response

    async def _faulty(self, request: web.Request, handler: Handler) -> web.StreamResponse | None:
        kind = self.queued_faults.pop(0) if self.queued_faults else self._draw()
        headers = {} if self.faults.retry_after is None else {"Retry-After": str(self.faults.retry_after)}
        if kind == "rate_limited":
            return self.error(429, "too many requests", headers=headers)
        if kind == "rate_limited_text":
            text = "Requests limit for organization exceeded, please try again later."
            return web.Response(status=429, text=text, headers=headers)
        if kind == "unavailable":
            return self.error(503, "service unavailable")
        if kind == "server_error_html":
            return web.Response(
                status=502, text="<html><body><h1>502 Bad Gateway</h1></body></html>", content_type="text/html"
            )
        if kind == "ok_html":
            return web.Response(text="<!doctype html><html><body>Sign in</body></html>", content_type="text/html")
        if kind == "truncated":
            whole = await handler(request)
            if isinstance(whole, web.Response) and isinstance(whole.body, bytes):
                return web.Response(body=whole.body[: len(whole.body) // 2], content_type="application/json")
            return whole
        if kind == "slow":
            await asyncio.sleep(self.faults.slow_seconds)
        return None

    def _draw(self) -> str | None:
        for kind in (
            "rate_limited",
            "rate_limited_text",
            "unavailable",
            "server_error_html",
            "ok_html",
            "truncated",
            "slow",
        ):
            if self.strikes(getattr(self.faults, kind)):
                return kind
        return None

    def error(self, status: int, text: str, *, headers: dict[str, str] | None = None) -> web.Response:
        body, content_type = self._error_body(status, text)
        return web.Response(status=status, body=body, content_type=content_type, headers=headers)

    def disturb(self, deliveries: list[Delivery], *, lose: bool = True) -> list[Delivery]:
        """Lose, double and swap webhooks as the faults say. ``lose`` False: those that get lost are gone already."""
        out: list[Delivery] = []
        for delivery in deliveries:
            if lose and self.strikes(self.faults.webhook_lost):
                continue
            out.append(delivery)
            if self.strikes(self.faults.webhook_duplicated):
                out.append(delivery)
            if len(out) > 1 and self.strikes(self.faults.webhook_shuffled):
                out[-1], out[-2] = out[-2], out[-1]
        return out


def json_response(data: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(data), status=status, content_type="application/json", headers=headers)
