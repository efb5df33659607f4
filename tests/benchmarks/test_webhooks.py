"""What a webhook costs: verified, durable and folded before its 202, beside a bare aiohttp handler and one that only
verifies, in the same run.

Each of the three is a process of its own, and so is the load: 64 kept-alive connections that send the next event as
soon as the last is answered, to one server after the other, round by round. On a machine that others use too only the
ratios of one round are worth keeping; their medians are printed. Then 500 events a second for ten seconds, whatever
the answers, for the latency. Asserted is only that everything was acknowledged and that what was acknowledged counts.
"""

import asyncio
import contextlib
import hmac
import json
import re
import resource
import selectors
import socket
import statistics
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from tests.webhooks.service import SECRET, SOURCE, receiving

pytestmark = pytest.mark.bench

CONNECTIONS = 64
ROUNDS = 5
ROUND_SECONDS = 1.5
RATE, RATE_SECONDS = 500, 10.0
KINDS = ("bare", "verifying", "durable")
WORKFLOWS = 50
RATE_MAX = 30_000  # events made in advance for each second

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


# The servers: `python -m tests.benchmarks.test_webhooks serve KIND DATABASE`


async def bare(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(status=202)


async def verifying(request: web.Request) -> web.Response:
    expected = hmac.digest(SECRET.encode(), await request.read(), "sha256")
    genuine = hmac.compare_digest(bytes.fromhex(request.headers["X-Signature"]), expected)
    return web.Response(status=202 if genuine else 401)


async def used(request: web.Request) -> web.Response:
    """CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return web.json_response(usage.ru_utime + usage.ru_stime)


async def serve(kind: str, database: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        handlers: dict[str, Handler] = {"bare": bare, "verifying": verifying}
        app = web.Application(client_max_size=1_048_576)
        if kind == "durable":
            running = await stack.enter_async_context(receiving(database))
            handlers["durable"] = running.receiver.receive

            async def counted(request: web.Request) -> web.Response:
                return web.json_response(running.projection.runs_counted())

            app.router.add_get("/counted", counted)
        app.router.add_post(f"/webhooks/{SOURCE}", handlers[kind])
        app.router.add_get("/used", used)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


# The load: `python -m tests.benchmarks.test_webhooks load PORT NAME SECONDS RATE`


def request(name: str, number: int) -> bytes:
    """A signed event of a run of its own: one in ten failed."""
    result = '"success"'
    if number % 10 == 0:
        result = '"failure", "error": {"type": "ConnectionError", "message": "connect ETIMEDOUT 10.0.0.1:443"}'
    body = (
        f'{{"event": "run.finished", "workflow_id": "{5000 + number % WORKFLOWS}", "run_id": "{name}-{number}",'
        f' "attempt": 1, "result": {result}, "started_at": "2026-03-02T08:15:30.125Z",'
        ' "ended_at": "2026-03-02T08:16:10.250Z", "occurred_at": "2026-03-02T08:16:10.250Z"}'
    ).encode()
    digest = hmac.digest(SECRET.encode(), body, "sha256").hex()
    head = (
        f"POST /webhooks/{SOURCE} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nX-Signature: {digest}\r\n\r\n"
    )
    return head.encode() + body


class Load:
    """Sends events over kept-alive connections: without a rate each as soon as the last one is answered, with a rate
    at fixed moments, and what has to wait for a free connection has waited. Plain sockets: the load must cost less
    than what it measures.
    """

    _HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) .*?\r\nContent-Length: (\d+)\r\n.*?\r\n\r\n", re.S)

    def __init__(self, port: int, name: str, seconds: float, rate: float) -> None:
        self.seconds, self.rate = seconds, rate
        count = round(seconds * (rate or RATE_MAX))
        self.requests = [request(name, number) for number in range(count)]
        self.requests.reverse()
        self.selector = selectors.DefaultSelector()
        self.idle = deque(socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS))
        self.since: dict[socket.socket, float] = {}
        self.received = dict.fromkeys(self.idle, b"")
        self.latencies: list[float] = []
        self.statuses: dict[bytes, int] = {}
        for connection in self.idle:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(connection, selectors.EVENT_READ)

    def run(self) -> dict[str, Any]:
        began = time.perf_counter()
        moments = deque(began + number / self.rate for number in range(len(self.requests)) if self.rate)
        while True:
            now = time.perf_counter()
            if moments:
                while moments and moments[0] <= now and self.idle:
                    self._send(moments.popleft())
            elif not self.rate and now < began + self.seconds:
                while self.idle and self.requests:
                    self._send(now)
            elif not self.since:
                break
            wait = max(0.0, moments[0] - now) if moments and self.idle else 1.0
            for key, _ in self.selector.select(wait):
                self._receive(cast(socket.socket, key.fileobj))
        took = time.perf_counter() - began
        ordered = sorted(self.latencies)
        return {
            "events": len(ordered),
            "rate": len(ordered) / took,
            "p50": ordered[len(ordered) // 2],
            "p99": ordered[len(ordered) * 99 // 100],
            "statuses": {status.decode(): count for status, count in self.statuses.items()},
        }

    def _send(self, since: float) -> None:
        connection = self.idle.popleft()
        self.since[connection] = since
        connection.sendall(self.requests.pop())

    def _receive(self, connection: socket.socket) -> None:
        data = self.received[connection] + connection.recv(65_536)
        head = self._HEAD.match(data)
        if head is None or len(data) < head.end() + int(head[2]):
            self.received[connection] = data
            return
        self.received[connection] = b""
        self.statuses[head[1]] = self.statuses.get(head[1], 0) + 1
        self.latencies.append(time.perf_counter() - self.since.pop(connection))
        self.idle.append(connection)


# The measurement


@contextlib.asynccontextmanager
async def server(kind: str, database: Path) -> AsyncIterator[int]:
    command = (sys.executable, "-m", __name__ if __name__ != "__main__" else "tests.benchmarks.test_webhooks")
    process = await asyncio.create_subprocess_exec(
        *command, "serve", kind, str(database), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.stdin.close()
        await process.wait()


async def load(port: int, name: str, seconds: float, rate: float = 0) -> dict[str, Any]:
    """Load one server from a process of its own; CPU microseconds an event, the server's, come on top."""
    before = await get(port, "used")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.test_webhooks", "load", str(port), name, str(seconds), str(rate)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    measured: dict[str, Any] = json.loads(output)
    measured["cpu"] = (await get(port, "used") - before) / measured["events"] * 1e6
    return measured


async def get(port: int, what: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/{what}") as response:
        value: float = await response.json()
        return value


async def test_durable_webhooks_beside_a_bare_handler(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        ports = {kind: await stack.enter_async_context(server(kind, tmp_path / "t.db")) for kind in KINDS}
        acknowledged = 0
        rounds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for kind in KINDS:
            acknowledged += (await load(ports[kind], "warm-up", 0.5))["events"] if kind == "durable" else 0
        for number in range(ROUNDS):
            for kind in KINDS:
                rounds[kind].append(await load(ports[kind], f"round-{number}", ROUND_SECONDS))
        paced = {kind: await load(ports[kind], "paced", RATE_SECONDS, RATE) for kind in ("bare", "durable")}
        acknowledged += sum(one["events"] for one in [*rounds["durable"], paced["durable"]])
        for measured in [one for kind in KINDS for one in rounds[kind]] + list(paced.values()):
            assert measured["statuses"] == {"202": measured["events"]}
        assert await get(ports["durable"], "counted") == acknowledged
    report(rounds, paced)


def report(rounds: dict[str, list[dict[str, Any]]], paced: dict[str, dict[str, Any]]) -> None:
    def median(kind: str, what: str) -> float:
        return float(statistics.median(one[what] for one in rounds[kind]))

    def ratio(kind: str) -> float:
        pairs = zip(rounds["durable"], rounds[kind], strict=True)
        return float(statistics.median(ours["rate"] / theirs["rate"] for ours, theirs in pairs))

    print(f"\n{CONNECTIONS} connections, medians of {ROUNDS} rounds of {ROUND_SECONDS:g} s")
    for kind in KINDS:
        print(
            f"{kind:<10} {median(kind, 'rate'):>8,.0f} events/s   {median(kind, 'cpu'):>5.0f} us CPU/event"
            f"   p50 {median(kind, 'p50') * 1e3:>5.1f} ms   p99 {median(kind, 'p99') * 1e3:>5.1f} ms"
        )
    print(f"durable to bare {ratio('bare'):.2f}, durable to verifying {ratio('verifying'):.2f}")
    for kind, measured in paced.items():
        print(
            f"{kind:<10} at {RATE}/s   p50 {measured['p50'] * 1e3:.1f} ms   p99 {measured['p99'] * 1e3:.1f} ms"
            f"   {measured['cpu']:.0f} us CPU/event"
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", kind, database]:
            asyncio.run(serve(kind, Path(database)))
        case ["load", port, name, seconds, rate]:
            print(json.dumps(Load(int(port), name, float(seconds), float(rate)).run()))
