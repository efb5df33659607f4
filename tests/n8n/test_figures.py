"""What polling a real n8n costs, and after how many seconds a run counts: by interval, with webhooks and without.

Four exporters at once beside the same workflows, each allowed 60 requests a minute. Printed in the end.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession, web

from tests.e2e.freshness import percentile
from tests.n8n.processes import Exporter, exporting
from tests.n8n.scenario import Json
from tests.n8n.world import SECRET, World, imported, world
from tests.servers import eventually

pytestmark = [pytest.mark.n8n, pytest.mark.bench]

HEADING = "n8n: requests a minute, and seconds until a run counts (p95)"
PER_MINUTE = 60
#: How long it is measured, and how often a workflow is started (seconds). Every fourth run fails.
SECONDS, EVERY = 300.0, 2.0
CONFIG = """
server: {listen: "127.0.0.1:$port"}
store: {url: "sqlite:///$folder/exporter.db"}
sources:
  n8n:
    platform: n8n
    url: $url
    token: $key
    poll: {interval: $interval, budget_share: 1.0, requests_per_minute: 60}
    $webhook
retries: {mode: "off"}
"""
WEBHOOK = "webhook: {scheme: header, header: X-Webhook-Token, secret: $secret}"


@contextlib.asynccontextmanager
async def handing_on(ports: Sequence[int]) -> AsyncIterator[str]:
    """What workflows report to: everything goes to each exporter that takes webhooks."""

    async def hand_on(request: web.Request) -> web.Response:
        body = await request.read()
        headers = {"Content-Type": "application/json", "X-Webhook-Token": SECRET}
        for port in ports:
            with contextlib.suppress(ClientError):
                async with session.post(f"http://127.0.0.1:{port}/webhooks/n8n", data=body, headers=headers) as answer:
                    assert answer.status == 202
        return web.Response(status=202)

    app = web.Application()
    app.router.add_post("/", hand_on)
    runner = web.AppRunner(app)
    await runner.setup()
    async with ClientSession() as session:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


def configured(interval: int, *, webhooks: bool) -> str:
    return CONFIG.replace("$interval", f"{interval}s").replace("$webhook", WEBHOOK if webhooks else "")


async def live(made: World) -> int:
    """Have workflows run for the time; returns how many runs that were."""
    paths = itertools.cycle(["ok", "call", "reports", "fails"])
    loop = asyncio.get_running_loop()
    began, runs = loop.time(), 0
    while loop.time() < began + SECONDS:
        path = next(paths)
        await made.fire("call" if path == "fails" else path, made.partner.plan(500 if path == "fails" else 200))
        runs += 1
        await asyncio.sleep(max(0.0, began + runs * EVERY - loop.time()))
    return runs


async def requests(exporter: Exporter) -> float:
    return sum((await exporter.samples("automation_exporter_api_requests_total", "endpoint", "code")).values())


async def all_counted(exporter: Exporter, runs: int) -> None:
    async def counted() -> bool:
        return sum((await exporter.samples("automation_runs_total", "workflow_id", "result")).values()) >= runs

    await eventually(counted)


def delays(exporter: Exporter, condition: str) -> list[float]:
    """Seconds from the end of a run, as n8n has it, to its being counted."""
    sql = "SELECT counted_at - finished_at FROM runs WHERE state = 'finished' AND counted_at > 0 AND "
    return [delay for (delay,) in exporter.query(sql + condition)]


async def test_requests_and_delays(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    ports: list[int] = []
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(handing_on(ports))
        made = await stack.enter_async_context(world(tmp_path, config=configured(5, webhooks=True), webhook=url))
        exporters = {(5, True): made.exporter}
        for interval, webhooks in ((5, False), (30, True), (30, False)):
            config = made.configured(configured(interval, webhooks=webhooks))
            folder = tmp_path / f"{interval}-{webhooks}"
            exporters[interval, webhooks] = await stack.enter_async_context(exporting(folder, config))
        ports += [exporter.port for (_, webhooks), exporter in exporters.items() if webhooks]
        reports: Json = imported("report-success", url)
        reports["nodes"][0]["webhookId"] = reports["nodes"][0]["parameters"]["path"] = "reports"
        reports.update(name="reports", settings={"executionOrder": "v1"})
        await made.build(reports)
        before = {key: await requests(exporter) for key, exporter in exporters.items()}
        runs = await live(made)
        asked = {key: await requests(exporter) - before[key] for key, exporter in exporters.items()}
        for (interval, webhooks), exporter in sorted(exporters.items()):
            await all_counted(exporter, runs)
            told = f"workflow_id = '{made.ids['reports']}'"
            found = {
                "failures": delays(exporter, "result = 'failure'"),
                "successes that are reported": delays(exporter, told),
                "other successes": delays(exporter, f"result = 'success' AND NOT {told}"),
            }
            assert sum(map(len, found.values())) == runs
            p95 = {what: percentile(each, 0.95) for what, each in found.items()}
            a_minute = asked[interval, webhooks] / SECONDS * 60
            record_property(HEADING, {
                "interval": f"{interval} s", "webhooks": "on" if webhooks else "off", "runs": runs,
                "requests a minute": f"{a_minute:.1f}",
                **{what: f"{max(0.0, seconds):.1f} s" for what, seconds in p95.items()},
            })  # fmt: skip
            assert a_minute <= 1.05 * PER_MINUTE
            assert p95["other successes"] <= 1.1 * interval + 10
            if webhooks:
                assert max(p95["failures"], p95["successes that are reported"]) < 5
