"""What a scrape of 100,000 lines costs, beside prometheus-client with the same content in the same run.

Prints ns per line and the ratio; asserts only that both sides did the same. A client in a process of its own measures
HTTP; then, in further scrapes, a heartbeat records the longest time the server's event loop kept others waiting.
"""

import asyncio
import gc
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import chain

import prometheus_client
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client.aiohttp import make_aiohttp_handler

from exporter.model.catalogue import Metric
from exporter.view.exposition import EOF, Counter, Gauge, Histogram, Registry
from exporter.web.formats import respond

pytestmark = pytest.mark.bench

LINES = 100_000
LABELS = ("platform", "source", "workflow_id", "workflow", "result")
BUCKETS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0)
HISTOGRAMS = LINES // (len(BUCKETS) + 3)
ROUNDS = 5
HELP = "What the benchmark renders."

CLIENT = """
import json, socket, sys, time
port, path, encoding, rounds = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
head = [f"GET {path} HTTP/1.1", "Host: bench", f"Accept-Encoding: {encoding}", "Connection: close", "", ""]
request = "\\r\\n".join(head).encode()
buffer, times = bytearray(1 << 20), []
for _ in range(rounds):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        started, size = time.perf_counter(), 0
        connection.sendall(request)
        while received := connection.recv_into(buffer):
            size += received
        times.append(time.perf_counter() - started)
print(json.dumps([sorted(times)[rounds // 2], size]))
"""


def labels_of(number: int) -> tuple[str, ...]:
    return ("make", "make-eu", f"{number:06d}", f"Invoices of customer {number}", "success")


def gauges() -> tuple[Registry, prometheus_client.CollectorRegistry]:
    values = random.Random(1)
    ours = Gauge(Metric(name="bench_gauge", help=HELP, type="gauge", labels=LABELS))
    reference = prometheus_client.CollectorRegistry()
    theirs = prometheus_client.Gauge("bench_gauge", HELP, LABELS, registry=reference)
    for number in range(LINES):
        value = values.choice((float(values.randrange(1000)), values.random() * 1e6, 1.7e9 + values.random()))
        ours.set(labels_of(number), value)
        theirs.labels(*labels_of(number)).set(value)
    return Registry([ours]), reference


def histograms() -> tuple[Registry, prometheus_client.CollectorRegistry]:
    values = random.Random(2)
    ours = Histogram(Metric(name="bench_seconds", help=HELP, type="histogram", labels=LABELS, buckets=BUCKETS))
    reference = prometheus_client.CollectorRegistry()
    theirs = prometheus_client.Histogram("bench_seconds", HELP, LABELS, buckets=BUCKETS, registry=reference)
    for number in range(HISTOGRAMS):
        for _ in range(3):
            value = values.expovariate(1 / 300)
            ours.observe(labels_of(number), value)
            theirs.labels(*labels_of(number)).observe(value)
    return Registry([ours]), reference


def median_seconds(work: Callable[[], object], *, rounds: int = ROUNDS) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return sorted(times)[rounds // 2]


def report(title: str, lines: int, ours: float, theirs: float, note: str = "") -> None:
    print(
        f"\n{title:<34} ours {ours / lines * 1e9:>8,.0f} ns/line ({ours * 1e3:,.1f} ms)"
        f"   prometheus-client {theirs / lines * 1e9:>8,.0f} ns/line   ratio {ours / theirs:.4f}{note}",
        end="",
    )


@pytest.fixture(autouse=True)
def quick_created() -> None:
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("build", [gauges, histograms])
def test_rendering_beside_prometheus_client(
    build: Callable[[], tuple[Registry, prometheus_client.CollectorRegistry]],
) -> None:
    registry, reference = build()
    lines = registry.series()
    text = b"".join(registry.render(openmetrics=False))
    assert text.count(b"\n") == prometheus_client.generate_latest(reference).count(b"\n") == lines + 2

    def render(openmetrics: bool) -> None:
        for _ in registry.render(openmetrics=openmetrics):
            pass

    theirs = median_seconds(lambda: prometheus_client.generate_latest(reference), rounds=3)
    report(f"{build.__name__}, text", lines, median_seconds(lambda: render(False), rounds=15), theirs)
    report(f"{build.__name__}, OpenMetrics", lines, median_seconds(lambda: render(True), rounds=15), theirs)
    snapshot = median_seconds(lambda: registry.render(openmetrics=False), rounds=15)
    print(f"\n{'':<34} of which the copy of one moment {snapshot / lines * 1e9:.1f} ns/line", end="")


@pytest.mark.parametrize("build", [gauges, histograms])
async def test_scraping_over_http_beside_prometheus_client(
    build: Callable[[], tuple[Registry, prometheus_client.CollectorRegistry]],
) -> None:
    registry, reference = build()

    async def ours(request: web.Request) -> web.StreamResponse:
        return await respond(request, chain(registry.render(openmetrics=False), [EOF]), openmetrics=False)

    app = web.Application()
    app.router.add_get("/ours", ours)
    app.router.add_get("/theirs", make_aiohttp_handler(reference))
    async with TestServer(app) as server:
        for encoding in ("identity", "gzip"):

            async def scrape(path: str, rounds: int, encoding: str = encoding) -> tuple[float, int]:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", CLIENT, str(server.port), path, encoding, str(rounds)),
                    stdout=asyncio.subprocess.PIPE,
                )
                output, _ = await process.communicate()
                seconds, size = json.loads(output)
                return seconds, size

            seconds, size = await scrape("/ours", 15)
            their_seconds, _ = await scrape("/theirs", 3)
            pause = await longest_pause(scrape("/ours", 15))
            their_pause = await longest_pause(scrape("/theirs", 1))
            note = f"   {size / 1e6:.1f} MB   longest pause {pause * 1e3:.1f} ms, theirs {their_pause * 1e3:,.0f} ms"
            report(f"{build.__name__}, HTTP {encoding}", registry.series(), seconds, their_seconds, note)
            assert size > 0


async def longest_pause(work: Awaitable[object]) -> float:
    """The longest the event loop kept somebody waiting while this work went on."""
    longest = 0.0

    async def heartbeat() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    task = asyncio.create_task(heartbeat())
    try:
        await work
    finally:
        task.cancel()
    return longest


def test_updating_beside_prometheus_client() -> None:
    rounds = 100_000
    labels = labels_of(7)
    counter = Counter(Metric(name="bench_total", help=HELP, type="counter", labels=LABELS))
    histogram = Histogram(Metric(name="bench_seconds", help=HELP, type="histogram", labels=LABELS, buckets=BUCKETS))
    reference = prometheus_client.CollectorRegistry()
    their_counter = prometheus_client.Counter("bench", HELP, LABELS, registry=reference)
    their_histogram = prometheus_client.Histogram("bench_seconds", HELP, LABELS, buckets=BUCKETS, registry=reference)

    def repeat(update: Callable[[], None]) -> float:
        def loop() -> None:
            for _ in range(rounds):
                update()

        return median_seconds(loop, rounds=3)

    ours = repeat(lambda: counter.add(labels, 1))
    report("counter, one more (per call)", rounds, ours, repeat(lambda: their_counter.labels(*labels).inc()))
    ours = repeat(lambda: histogram.observe(labels, 42.0))
    report("histogram, observe (per call)", rounds, ours, repeat(lambda: their_histogram.labels(*labels).observe(42.0)))
    assert counter.get(labels) == 3 * rounds


def test_dropping_workflows_one_by_one() -> None:
    registry, reference = gauges()
    del reference
    gc.collect()
    started = time.perf_counter()
    for number in range(0, LINES, 2):
        registry.remove_matching(platform="make", source="make-eu", workflow_id=f"{number:06d}")
    seconds = time.perf_counter() - started
    print(f"\n{'dropping a workflow of 100,000':<34} {seconds / (LINES // 2) * 1e9:,.0f} ns each", end="")
    assert registry.series() == LINES // 2
