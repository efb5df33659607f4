"""Several simulators served on loopback at once, and the config that reads them: the demo, and end-to-end tests."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, hdrs, web

from exporter.clock import Clock
from exporter.config import Config, validate
from exporter.log import get_logger
from exporter.simulator import SIMULATORS
from exporter.simulator.core import Delivery, Faults, Handler, Simulator

log = get_logger(__name__)

#: Simulated platforms send what is due this often (seconds).
DELIVERY_INTERVAL = 0.5


@dataclass(slots=True, kw_only=True)
class Fleet:
    """Running simulators by platform, and where they answer."""

    clock: Clock
    simulators: dict[str, Simulator]
    urls: dict[str, str]

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        clock: Clock,
        seed: int = 1,
        platforms: Sequence[str] | None = None,
        workflows: int = 6,
        faults: Mapping[str, Any] | None = None,
        port: int = 0,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> AsyncIterator["Fleet"]:
        """Serve these platforms (default: all) from ``port`` on, 0: any free ports.

        ``options`` per platform go to its simulator. Raises ``OSError`` with the address that cannot be had as its
        ``filename``.
        """
        fleet = cls(clock=clock, simulators={}, urls={})
        async with AsyncExitStack() as stack:
            for number, name in enumerate(platforms or SIMULATORS):
                stand = SIMULATORS[name]
                given = {**stand.options, **(options or {}).get(name, {})}
                simulator = stand.make(
                    clock=clock, seed=seed, workflows=workflows, faults=Faults(**(faults or {})), **given
                )
                served = simulator.app()
                served.middlewares.insert(0, _for_people)
                runner = web.AppRunner(served, access_log=None)
                await runner.setup()
                stack.push_async_callback(runner.cleanup)
                wanted = port + number if port else 0
                try:
                    await web.TCPSite(runner, "127.0.0.1", wanted).start()
                except OSError as exc:
                    raise OSError(exc.errno, os.strerror(exc.errno or 0), f"127.0.0.1:{wanted}") from None
                fleet.simulators[name] = simulator
                fleet.urls[name] = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield fleet

    async def deliver_once(self, session: ClientSession, receiver: str) -> int:
        """Send every webhook that is due to ``{receiver}/{platform}``; returns how many were accepted."""
        accepted = 0
        for platform, simulator in self.simulators.items():
            simulator.advance(self.clock.now())
            for delivery in simulator.take_deliveries():
                accepted += await _send(session, f"{receiver}/{platform}", delivery)
        return accepted

    async def deliver(self, receiver: str, stop: asyncio.Event) -> None:
        """Send webhooks as they fall due, until stopped."""
        async with ClientSession(timeout=ClientTimeout(total=10)) as session:
            while not stop.is_set():
                await self.deliver_once(session, receiver)
                await self.clock.sleep(DELIVERY_INTERVAL)


@web.middleware
async def _for_people(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Where a platform would show people a page of its own, say what is here instead. Programs ask for no HTML."""
    if request.method != hdrs.METH_GET or "text/html" not in request.headers.get(hdrs.ACCEPT, ""):
        return await handler(request)
    if request.path.startswith("/_sim/"):
        return await handler(request)
    return web.Response(text=_PAGE, content_type="text/html")


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A simulated platform</title>
<h1>A simulated platform</h1>
<p>On the real platform, this link opens its own page. Here a simulator of automation-exporter answers instead:
it has the platform's API and no pages.</p>
<p><a href="/_sim/truth">What really happened here</a> (JSON), to compare with what the exporter counted.</p>
</html>
"""


async def _send(session: ClientSession, url: str, delivery: Delivery) -> bool:
    try:
        async with session.request(
            delivery.method, url + delivery.suffix, headers=delivery.headers, data=delivery.body, allow_redirects=False
        ) as response:
            return response.status == 202
    except (ClientError, TimeoutError) as exc:
        log.debug("webhook not delivered", url=url, error=exc)
        return False


#: A failing retry keeps the others of its group waiting for so long.
_DEMO_GATE = {"ramp": [1, 2, 5, 10], "cool": {"first": "30s", "factor": 2, "cap": "1m"}}
#: What the demo retries: by itself of Make, with approval of the others; and what it never would. Times are short: a
#: demo is watched for minutes.
DEMO_RETRIES: Mapping[str, Any] = {
    "mode": "enforce",
    "sources": {
        "make": {"pace": {"rate": "30/1m", "burst": 5}},
        **{name: {"mode": "approve"} for name in ("qlik", "etlworks", "cognaize", "n8n")},
    },
    "policies": [
        {
            "name": "never-by-itself",
            "match": {"error.class": ["validation", "auth", "permission", "quota", "not_found", "conflict"]},
            "action": "escalate",
        },
        {
            "name": "ask-first",
            "match": {"source": "make", "workflow.name": "Invoice export", "error.class": ["network", "timeout"]},
            "action": "retry",
            "approve": "each",
            "gate": _DEMO_GATE,
            "retry": {"retries": 3, "backoff": {"first": "10s", "factor": 3, "cap": "5m"}, "give_up_after": "30d"},
            "verify": {"deadline": "30m", "settle": "1m"},
        },
        {
            "name": "by-itself",
            "match": {"source": "make", "error.class": ["network", "timeout", "throttled", "platform"]},
            "action": "retry",
            "gate": _DEMO_GATE,
            "retry": {"retries": 3, "backoff": {"first": "10s", "factor": 3, "cap": "5m"}, "give_up_after": "30d"},
            "verify": {"deadline": "30m", "settle": "1m"},
        },
        {
            "name": "transient",
            "match": {"error.class": ["network", "timeout", "throttled", "platform"]},
            "action": "retry",
            "approve": "first_of_group",
            "group_by": ["source", "error.class"],
            "gate": _DEMO_GATE,
            "retry": {"retries": 3, "backoff": {"first": "10s", "factor": 3, "cap": "5m"}, "give_up_after": "30d"},
            "verify": {"deadline": "30m", "settle": "1m"},
        },
        {
            "name": "cause-not-told",
            "match": {"error.class": "unknown"},
            "action": "retry",
            "approve": "each",
            "gate": _DEMO_GATE,
            "retry": {"retries": 2, "backoff": {"first": "10s"}, "give_up_after": "30d"},
        },
    ],
}


def demo_config(
    fleet: Fleet, *, listen: str, database: Path, interval: str = "5s", changes: Mapping[str, Any] | None = None
) -> Config:
    """The config that reads a fleet. ``changes`` replace top-level sections."""
    return validate(demo_sections(fleet, listen=listen, database=database, interval=interval, changes=changes))


def demo_sections(
    fleet: Fleet, *, listen: str, database: Path, interval: str = "5s", changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The same as it would be written: one source per platform, named like it."""
    sources = {
        name: {**SIMULATORS[name].section, "url": url, "poll": {"interval": interval, "budget_share": 1.0}}
        for name, url in fleet.urls.items()
    }
    return {
        "server": {"listen": listen},
        "store": {"url": f"sqlite:///{database}"},
        "sources": sources,
        **(changes or {}),
    }
