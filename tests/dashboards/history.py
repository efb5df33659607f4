"""A few hours in the life of a deployment, as a Prometheus that scraped it all along would know them."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter import app
from exporter.simulator.retries import RetryPlan
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_retries import POLICY
from tests.e2e.test_truth import ROOMY
from tests.otlp import otlp_receiver
from tests.servers import PrometheusServer, eventually, prometheus

STEP = 60.0
#: On each source, with a policy that gives to a person what it does not retry.
RAILS: Mapping[str, Any] = {"budget": {"cap": 20}, "storm": {"failing": 0.9}}
FOR_PEOPLE: Mapping[str, Any] = {
    "name": "for people",
    "match": {"error.class": ["auth", "validation"]},
    "action": "escalate",
}
RETRYING: Mapping[str, Any] = {
    "retries": {
        "mode": "enforce",
        "sources": dict.fromkeys(("make", "qlik", "etlworks", "cognaize"), RAILS),
        "policies": [POLICY, FOR_PEOPLE],
    }
}


@dataclass(slots=True, kw_only=True)
class History:
    made: Deployment
    server: PrometheusServer
    start: float
    """When it began; it ends about now."""

    @property
    def end(self) -> float:
        return time.time()


@asynccontextmanager
async def history(
    folder: Path,
    *,
    hours: float = 2.0,
    workflows: int = 4,
    changes: Mapping[str, Any] = RETRYING,
    rules: Sequence[Path] = (),
) -> AsyncIterator[History]:
    """All platforms, with webhooks, traces and retries; some things went wrong, and some still are."""
    start = time.time() - hours * 3600
    async with otlp_receiver() as receiver:
        traces = {"traces": {"enabled": True, "endpoint": receiver.url}}
        async with deployment(
            folder, workflows=workflows, options=ROOMY, changes={**changes, **traces}, start=start
        ) as made:
            made.service.own.reload_successful.set(1)  # as the command does that loads the config
            target = made.url.removeprefix("http://")
            file = folder / "history.openmetrics"
            with file.open("w") as out:
                await _live(made, out, f'job="test",instance="{target}"')
                out.write("# EOF\n")
            async with prometheus(folder, [target], history=file, rules=rules) as server:
                yield History(made=made, server=server, start=start)


async def scraped_anew(server: PrometheusServer) -> None:
    """A scrape has ended that began after now."""
    [(_, now)] = await server.query("time()")

    async def since() -> bool:
        return bool(await server.query(f"up == 1 and timestamp(up) > {now}"))

    await eventually(since)


async def _live(made: Deployment, out: Any, labels: str) -> None:
    """Until about now, and never beyond: a Prometheus takes nothing from before what it has."""
    make: Any = made.fleet.simulators["make"]
    make.plan_retries("success", "failure", RetryPlan(outcome="success", fate="cut", delay=300.0))
    traces, steps = made.service.traces, 0
    assert traces is not None
    while made.clock.now() + 2 * STEP < time.time():
        steps += 1
        make.faults.unavailable = 1.0 if 20 <= steps < 25 else 0.0
        make.faults.rate_limited = 0.1 if 50 <= steps < 60 else 0.0
        await made.live(STEP, step=STEP, deliver=True, retry=True)
        await traces.export_once(made.clock.now())
        await app.housekeeping_once(made.service, made.config, made.clock.now(), [])
        scraped = await made.scrape(Accept="application/openmetrics-text;version=1.0.0")
        out.writelines(stamped(line, labels, made.clock.now()) for line in scraped.splitlines() if line[0] != "#")


def stamped(line: str, labels: str, at: float) -> str:
    """A line of a scrape with the labels a Prometheus adds and the time of the scrape, without its exemplar."""
    series, value = line.partition(" # {")[0].rsplit(" ", 1)
    name, brace, rest = series.partition("{")
    more = f"{labels},{rest}" if brace and rest != "}" else labels + "}"
    return f"{name}{{{more} {value} {at:.3f}\n"
