"""A night's incident on the real thing: simulators, the exporter, Prometheus with the rules, Alertmanager with the
example, and somebody's pager. The right alerts are delivered, the others stay silent, and all of them resolve.

Waiting times of rules and groups are shortened; everything else is as it is shipped.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from exporter.alerting import rules
from exporter.config.objectives import SloConfig
from exporter.model.retries import Outcome
from exporter.simulator.retries import RetryPlan
from tests.alerts.test_alertmanager import EXAMPLE
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_retries import POLICY
from tests.servers import PrometheusServer, alertmanager, eventually, prometheus, real


@dataclass(slots=True)
class Pager:
    """Who is told: the last word about each alert, by receiver."""

    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def states(self) -> dict[str, str]:
        """Alert name to firing or resolved."""
        return {alert["labels"]["alertname"]: alert["status"] for _, alert in self.messages}

    def firing(self) -> set[str]:
        return {name for name, state in self.states().items() if state == "firing"}


@asynccontextmanager
async def watched(made: Deployment, folder: Path) -> AsyncIterator[tuple[PrometheusServer, Pager]]:
    pager = Pager()

    async def receive(request: web.Request) -> web.Response:
        for alert in (await request.json())["alerts"]:
            pager.messages.append((request.match_info["who"], alert))
        return web.Response()

    app = web.Application()
    app.router.add_post("/{who}", receive)
    async with TestServer(app) as server:
        config = folder / "alertmanager.yaml"
        example = EXAMPLE.read_text().replace("http://127.0.0.1:9095", str(server.make_url("/")).rstrip("/"))
        for slow, quick in (("group_wait: 30s", "group_wait: 1s"), ("group_interval: 5m", "group_interval: 1s")):
            assert slow in example
            example = example.replace(slow, quick)
        config.write_text(example)
        slo = SloConfig(job="test")
        alerts = rules.alert_rules(slo)
        for group in alerts:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule["for"], rule["keep_firing_for"] = "0s", "0s"
        file = folder / "rules.yaml"
        file.write_text(rules.as_yaml([*rules.recording_rules(slo), *alerts]))  # sums of recordings count on a minute
        target = made.url.removeprefix("http://")
        async with (
            alertmanager(folder, config) as url,
            prometheus(folder, [target], rules=[file], alertmanager=url) as metrics,
        ):
            yield metrics, pager


async def fires(pager: Pager, *names: str) -> None:
    async def seen() -> bool:
        return pager.firing() == set(names)

    try:
        await eventually(seen)
    except TimeoutError:
        raise AssertionError(f"firing: {sorted(pager.firing())}, expected {sorted(names)}") from None


@real("prometheus-alertmanager")
@real("prometheus")
async def test_an_incident_reaches_the_right_people_and_passes(tmp_path: Path) -> None:
    options = {"make": {"api_limit": 60_000}}
    changes = {"retries": {"mode": "enforce", "policies": [POLICY]}}
    async with deployment(
        tmp_path, platforms=["make", "qlik"], workflows=0, options=options, changes=changes, start=time.time()
    ) as made:
        make: Any = made.fleet.simulators["make"]
        qlik: Any = made.fleet.simulators["qlik"]
        orders, healthy = make.add_workflow(name="Order sync"), make.add_workflow(name="Invoices")
        qlik.add_workflow(name="Reload")
        await made.sweep()
        async with watched(made, tmp_path) as (metrics, pager):

            async def scraped() -> list[Any]:
                return await metrics.query("automation_workflow_info")

            assert len(await eventually(scraped)) == 3
            await fires(pager)

            # The orders fail three times in a row, while the invoices go well.
            for workflow, result in ((orders, "failure"), (healthy, "success")):
                for number in range(3):
                    began = made.clock.now() + 1 + number
                    make.add_run(workflow, started_at=began, ended_at=began + 0.5, result=result)
            await made.clock.advance(10)
            await made.sweep()
            await fires(pager, "AutomationWorkflowFailing")
            [(who, alert)] = {
                (who, alert["annotations"]["description"])
                for who, alert in pager.messages
                if alert["status"] == "firing"
            }
            assert who == "tickets"
            assert "Order sync" in alert

            # They go well again.
            make.add_run(orders, started_at=made.clock.now() + 1, ended_at=made.clock.now() + 2, result="success")
            await made.clock.advance(5)
            await made.sweep()
            await fires(pager)
            assert pager.states()["AutomationWorkflowFailing"] == "resolved"

            # A retry whose answer is lost, and whose effect is late, is in doubt until the effect is seen.
            make.plan_retries(RetryPlan(outcome="success", fate="cut", delay=300.0))
            letter = make.add_dead_letter(healthy)
            await made.live(120, step=15, retry=True)
            await fires(pager, "AutomationRetryInDoubt")
            await made.live(900, step=30, retry=True)
            [retry] = made.service.book.everything()
            assert retry.outcome is Outcome.SUCCEEDED, (retry.state, retry.detail)
            await fires(pager)
            assert pager.states() == dict.fromkeys(("AutomationWorkflowFailing", "AutomationRetryInDoubt"), "resolved")
            assert (make.retry_calls[letter], make.retry_executions[letter]) == (1, 1)
