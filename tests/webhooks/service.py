"""The receiver on a port of its own: a real ledger on a file, a real picture of it, a platform that takes the
documented event, and a poller that only remembers what it was asked for.

Tests use ``receiving``; the crash test runs ``serve`` in a process of its own and kills it.
"""

import asyncio
import base64
import hmac
import os
import signal
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from aiohttp import web

from exporter.clock import Clock, SystemClock
from exporter.model import ErrorClass, ResolvedBy, Result
from exporter.model.ledger import Committed, FoldRules
from exporter.platform import Platform, RunKey, Stream, StreamName, WebhookEvents, WebhookRequest
from exporter.platform.events import receive_generic
from exporter.platform.section import SourceConfig
from exporter.store.ledger import Ledger, open_engine
from exporter.store.script import Engine, Script, T
from exporter.view.known import World
from exporter.view.own import OwnMetrics
from exporter.view.projection import Projection
from exporter.web.doors import Doors
from exporter.webhooks.receiver import Receiver
from exporter.wire import schemes
from exporter.wire.budget import Lane
from tests.sources import connected

SOURCE = "hooks"
SECRET = "correct-horse-battery-staple"
BODY_BYTES_MAX = 65_536
SCHEME = schemes.HmacSha256(header="X-Signature", secrets=(SECRET,))

Receive = Callable[[WebhookRequest], WebhookEvents]


class Asked:
    """In the place of a loop: the runs and streams it was asked for."""

    def __init__(self) -> None:
        self.runs: list[RunKey] = []
        self.streams: list[str] = []

    def wake(self, keys: list[RunKey], streams: list[StreamName]) -> None:
        self.runs += keys
        self.streams += streams


def classify(kind: str | None, message: str | None) -> ErrorClass:
    return ErrorClass.NETWORK if kind == "ConnectionError" else ErrorClass.UNKNOWN


def receive_documented(request: WebhookRequest) -> WebhookEvents:
    return receive_generic(request, classify=classify)


def platform(receive: Receive = receive_documented) -> Platform:
    return Platform(
        name="generic",
        title="Generic",
        config=SourceConfig,
        streams=(Stream(name=StreamName.RUNS, lane=Lane.SWEEPS),),
        connect=_not_here,
        auth=_not_here,
        error_detail=_not_here,
        requests_per_minute=60.0,
        results=(Result.SUCCESS, Result.FAILURE),
        error_classes=(ErrorClass.NETWORK, ErrorClass.UNKNOWN),
        resolved_by=(ResolvedBy.MANUAL,),
        receive=receive,
    )


def _not_here(*anything: object) -> NoReturn:
    raise AssertionError("nothing is polled here")


def sign(scheme: schemes.Scheme, body: bytes, now: float) -> dict[str, str]:
    """The headers that make a request authentic: every scheme here has ``SECRET``."""
    match scheme:
        case schemes.Header(header=header):
            return {header: SECRET}
        case schemes.Basic(username=username):
            return {"Authorization": f"Basic {base64.b64encode(f'{username}:{SECRET}'.encode()).decode()}"}
        case schemes.Bearer():
            return {"Authorization": f"Bearer {SECRET}"}
        case schemes.HmacSha256(header=header, encoding=encoding, prefix=prefix):
            digest = hmac.digest(SECRET.encode(), body, "sha256")
            return {header: prefix + (digest.hex() if encoding == "hex" else base64.b64encode(digest).decode())}
        case schemes.Qlik():
            return {"Qlik-Signature": hmac.digest(SECRET.encode(), body, "sha256").hex()}
        case schemes.StandardWebhooks():
            mac = hmac.digest(SECRET.encode(), b"m1.%d." % now + body, "sha256")
            signature = f"v1,{base64.b64encode(mac).decode()}"
            return {"webhook-id": "m1", "webhook-timestamp": str(int(now)), "webhook-signature": signature}


@dataclass(slots=True, kw_only=True)
class Receiving:
    """What ``receiving`` runs."""

    port: int
    ledger: Ledger
    receiver: Receiver
    projection: Projection
    own: OwnMetrics
    asked: Asked

    def outcomes(self) -> dict[str, float]:
        """Webhooks counted so far, by outcome; those that never occurred are left out."""
        samples = [s for family in self.own.webhook_events.collect() for s in family.samples]
        return {s.labels["outcome"]: s.value for s in samples if s.value and s.name.endswith("_total")}


@asynccontextmanager
async def receiving(
    database: Path,
    *,
    scheme: schemes.Scheme = SCHEME,
    receive: Receive = receive_documented,
    clock: Clock | None = None,
    requests_max: int = 256,
    engine: Callable[[Engine], Engine] = lambda engine: engine,
    port: int = 0,
    **more: Any,
) -> AsyncIterator[Receiving]:
    """``engine`` may put something in front of the store, to see it fail or wait."""
    ledger = Ledger(engine(await open_engine(f"sqlite:///{database}")), {SOURCE: FoldRules(backfill=1e10)})
    loaded = await ledger.load()
    world, projection = World([SOURCE]), Projection({SOURCE: platform()}, series_max=200_000)
    world.load(loaded)
    projection.load(world, loaded.tallies)

    def follow(committed: Committed) -> None:
        projection.apply(world.apply(committed), committed.tallies, world)

    ledger.on_commit = follow
    own, asked = OwnMetrics(), Asked()
    clock = clock or SystemClock()
    source = connected(SOURCE, platform(receive), world.sources[SOURCE], clock, own=own)
    source.wake = asked.wake  # type: ignore[method-assign]
    receiver = Receiver(source, ledger, clock, scheme=scheme, requests_max=requests_max, **more)
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.router.add_route("*", f"/webhooks/{SOURCE}", receiver.receive)
    doors = Doors()
    port = await doors.open(f"127.0.0.1:{port}", app)
    try:
        yield Receiving(
            port=port,
            ledger=ledger,
            receiver=receiver,
            projection=projection,
            own=own,
            asked=asked,
        )
    finally:
        await doors.close()
        await ledger.close()


class Fronted:
    """An engine with something in front of its scripts."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def where(self) -> str:
        return self.engine.where

    @property
    def is_shared(self) -> bool:
        return self.engine.is_shared

    @property
    def trouble(self) -> str | None:
        return self.engine.trouble

    async def run(self, script: Script[T], *, sources: Collection[str] | None = None) -> T:
        return await self.engine.run(script, sources=sources)

    async def check(self) -> None:
        await self.engine.check()

    async def probe(self) -> None:
        await self.engine.probe()

    async def close(self) -> None:
        await self.engine.close()


class Mortal(Fronted):
    """An engine whose process is killed right after a commit, before anybody can be told of it."""

    def __init__(self, engine: Engine, *, commits: int) -> None:
        super().__init__(engine)
        self.commits = commits

    async def run(self, script: Script[T], *, sources: Collection[str] | None = None) -> T:
        result = await self.engine.run(script, sources=sources)
        self.commits -= 1
        if self.commits == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def serve(database: Path, port: int, commits: int) -> None:
    """Take webhooks until killed: from outside, or after that many commits."""

    async def forever() -> None:
        async with receiving(database, port=port, engine=lambda engine: Mortal(engine, commits=commits)):
            await asyncio.Event().wait()

    asyncio.run(forever())
