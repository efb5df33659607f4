"""How long it takes until somebody is told, measured: real exporters as they are deployed, simulated platforms, a real
Prometheus with the rules as they are shipped, a real Alertmanager with the example, and a pager. In real time.

Everything is as it is by default: sweeps once a minute, a scrape every 30 seconds (as in deploy/), no waiting time of a
rule or of a group is shortened. Only the week before, which the rules want to know of a workflow that runs at night,
was written into Prometheus beforehand. What was measured stands in docs/alerts.md; `--update` writes it there.
"""

import asyncio
import contextlib
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from exporter.alerting import rules
from exporter.clock import SystemClock
from exporter.config import parse
from exporter.simulator import SIMULATORS
from exporter.simulator.fleet import Fleet
from tests.alerts.test_alertmanager import EXAMPLE
from tests.alerts.test_rules import promtool
from tests.servers import PATIENCE_SECONDS, alertmanager, eventually, free_port, real, running
from tests.test_docs import DOCS, rows

PAGE = DOCS / "alerts.md"
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
SCRAPE = "30s"
NIGHTS = 8
SUCCESS_WITHIN = 3 * MINUTE
#: After the last one was told: whoever would be told twice, or of something else, has been by then.
AFTERWARDS = 6 * MINUTE

JOBS = ("automation-exporter", "stored", "killed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """What happens, which alert somebody is told of, and within which time (seconds) the page says so."""

    what: str
    job: str = JOBS[0]
    source: str | None = None
    alert: str
    within: float
    due: float = 0.0
    """From its beginning until anything can be wrong: an objective"""
    says: str


INCIDENTS = (
    Incident(
        what="a nightly run fails",
        source="make",
        alert="AutomationWorkflowFailing",
        within=15 * MINUTE,
        says="The last run of Nightly export",
    ),
    Incident(
        what="a workflow has not succeeded for its `success_within`",
        source="make",
        alert="AutomationWorkflowNoSuccess",
        within=15 * MINUTE,
        due=SUCCESS_WITHIN,
        says="Orders",
    ),
    Incident(
        what="the database is gone",
        job="stored",
        alert="AutomationStoreDown",
        within=5 * MINUTE,
        says="can store nothing",
    ),
    Incident(
        what="a platform answers 503",
        source="etlworks",
        alert="AutomationSourceDown",
        within=10 * MINUTE,
        says="mostly 503",
    ),
    Incident(
        what="a platform answers 429 for ever",
        source="cognaize",
        alert="AutomationSourceDown",
        within=10 * MINUTE,
        says="mostly 429",
    ),
    Incident(
        what="a credential is revoked",
        source="revoked",
        alert="AutomationCredentialFailing",
        within=3 * MINUTE,
        says="(401)",
    ),
    Incident(
        what="the exporter is killed",
        job="killed",
        alert="AutomationExporterDown",
        within=7 * MINUTE,
        says="nothing is known of any workflow",
    ),
)


@dataclass(slots=True)
class Pager:
    """Who was told what, and when."""

    messages: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)

    async def receive(self, request: web.Request) -> web.Response:
        self.messages.append((time.time(), request.match_info["who"], await request.json()))
        return web.Response()

    def told(self, job: str, source: str | None) -> list[tuple[float, str, dict[str, Any]]]:
        return [
            one
            for one in self.messages
            if (labels := one[2]["groupLabels"])["job"] == job and labels.get("source") == source
        ]


@asynccontextmanager
async def exporter(folder: Path, name: str, sources: Mapping[str, Any], slo: Mapping[str, Any]) -> AsyncIterator[Any]:
    """A service as it is deployed, from a config file: its port, its process and its database."""
    port, home = free_port(), folder / name
    home.mkdir()
    config = {
        "server": {"listen": f"127.0.0.1:{port}"},
        "store": {"url": f"sqlite:///{home / 'database' / 'exporter.db'}"},
        "sources": sources,
        "slo": {"job": name, **slo},
    }
    (home / "database").mkdir()
    (home / "config.yaml").write_text(json.dumps(config))
    slo_made = parse(json.dumps(config), {}).slo
    (home / "rules.yaml").write_text(rules.as_yaml(rules.recording_rules(slo_made) + rules.alert_rules(slo_made)))
    with (home / "log").open("wb") as log:
        command = [sys.executable, "-m", "exporter", "run", "--config", str(home / "config.yaml")]
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        yield port, process, home
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def prometheus(folder: Path, targets: Mapping[str, int], history: str, alerts: str) -> AsyncIterator[str]:
    (folder / "history").write_text(history)
    home = folder / "prometheus"
    home.mkdir()
    done = promtool("tsdb", "create-blocks-from", "openmetrics", folder / "history", home / "data")
    assert done.returncode == 0, done.stdout + done.stderr
    config = {
        "global": {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE},
        "rule_files": [str(folder / job / "rules.yaml") for job in targets],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alerts.removeprefix("http://")]}]}]},
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in targets.items()
        ],
    }
    (home / "prometheus.yaml").write_text(json.dumps(config))
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={home / 'prometheus.yaml'}",
        f"--storage.tsdb.path={home / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
        "--log.level=warn",
    ]
    async with running(command, log=home / "log", ready_url=f"{url}/-/ready"):
        yield url


def nightly(workflow: str, ends: list[float], until: float) -> str:
    """What Prometheus would have recorded of it within the last days."""
    of = f'job="{JOBS[0]}",platform="make",source="make",workflow_id="{workflow}"'
    lines = []
    for name, value in (
        ("workflow:automation_runs:total", lambda at: sum(end <= at for end in ends)),
        ("workflow:automation_runs:per_hour", lambda at: len(ends) / 168),
    ):
        lines.append(f"# TYPE {name} gauge")
        at = ends[0] - HOUR
        while at < until:
            lines.append(f"{name}{{{of}}} {value(at)} {at:.0f}")
            at += 5 * MINUTE
    return "\n".join([*lines, "# EOF", ""])


@pytest.mark.slow
@real("prometheus-alertmanager")
@real("prometheus")
async def test_each_incident_is_told_in_time_and_once(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pager = Pager()
    pages = web.Application()
    pages.router.add_post("/{who}", pager.receive)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(TestServer(pages))
        clock = SystemClock()
        fleet, other = [
            await stack.enter_async_context(Fleet.open(clock=clock, platforms=platforms, workflows=0, options=options))
            for platforms, options in (
                (["make", "etlworks", "cognaize"], {"make": {"history": 10 * DAY, "api_limit": 6000}}),
                (["make"], {"make": {"api_limit": 6000}}),
            )
        ]
        make: Any = fleet.simulators["make"]
        began = clock.now()
        night, orders = make.add_workflow(name="Nightly export"), make.add_workflow(name="Orders")
        ends = [began - 2 * HOUR - (NIGHTS - number) * DAY for number in range(NIGHTS)]
        for end in ends:
            make.add_run(night, started_at=end - 30, ended_at=end, result="success")
        make.add_run(orders, started_at=began - 30, ended_at=began - 20, result="success")

        def section(name: str, url: str) -> dict[str, Any]:
            return {**SIMULATORS[name].section, "url": url}

        everything = {name: section(name, url) for name, url in fleet.urls.items()}
        everything["make"] |= {"backfill": "9d", "include": ["Nightly export", "Orders"]}
        everything["revoked"] = section("make", other.urls["make"])
        objectives = {"overrides": [{"match": "Orders", "success_within": f"{SUCCESS_WITHIN / MINUTE:g}m"}]}
        made = {
            job: await stack.enter_async_context(exporter(tmp_path, job, sources, slo))
            for job, sources, slo in (
                (JOBS[0], everything, objectives),
                *(
                    (job, {"make": section("make", fleet.urls["make"]) | {"include": ["Orders"]}}, {})
                    for job in JOBS[1:]
                ),
            )
        }
        config = tmp_path / "alertmanager.yaml"
        config.write_text(EXAMPLE.read_text().replace("http://127.0.0.1:9095", str(server.make_url("/")).rstrip("/")))
        alerts = await stack.enter_async_context(alertmanager(tmp_path, config))
        history = nightly(night, ends, began - 10 * MINUTE)
        targets = {job: port for job, (port, _, _) in made.items()}
        metrics = await stack.enter_async_context(prometheus(tmp_path, targets, history, alerts))
        session = await stack.enter_async_context(ClientSession())

        async def query(expr: str) -> list[Any]:
            async with session.get(f"{metrics}/api/v1/query", params={"query": expr}) as response:
                found: list[Any] = (await response.json())["data"]["result"]
                return found

        async def all_is_well() -> bool:
            last = time.time()
            make.add_run(orders, started_at=last - 2, ended_at=last - 1, result="success")
            known = await query("count(count_over_time(automation_source_up[5m]) >= 3 and automation_source_up == 1)")
            return bool(known) and float(known[0]["value"][1]) == len(everything) + 2

        await eventually(all_is_well, every=5.0)
        assert pager.messages == []

        # Everything at once: each is of another source, or of another exporter.
        struck = time.time()
        make.add_run(night, started_at=struck - 2, ended_at=struck - 1, result="failure")
        make.add_run(orders, started_at=struck - 2, ended_at=struck - 1, result="success")  # the last one
        fleet.simulators["etlworks"].faults.unavailable = 1.0
        fleet.simulators["cognaize"].faults.rate_limited = 1.0
        fleet.simulators["cognaize"].faults.retry_after = 60
        _, _, stored = made["stored"]
        (stored / "database").rename(stored / "elsewhere")
        made["killed"][1].kill()
        revoked: Any = other.simulators["make"]
        object.__setattr__(revoked.options, "token", "another-token")

        def first(one: Incident) -> float | None:
            moments = [at for at, _, m in pager.told(one.job, one.source) if m["groupLabels"]["alertname"] == one.alert]
            return moments[0] - struck - one.due if moments else None

        async def all_told() -> bool:
            return all(first(one) is not None for one in INCIDENTS) or time.time() - struck > 20 * MINUTE

        await eventually(all_told, every=1.0, seconds=PATIENCE_SECONDS * 4)
        await asyncio.sleep(AFTERWARDS)
        took = {one.what: first(one) for one in INCIDENTS}
        print(json.dumps({what: seconds and round(seconds) for what, seconds in took.items()}, indent=1))
        check_once(pager)
        for one in INCIDENTS:
            seconds = took[one.what]
            assert seconds is not None, f"nobody was told that {one.what}"
            assert seconds <= one.within, f"{one.what}: {seconds:.0f} s"
            [text] = {
                alert["annotations"]["description"]
                for _, _, m in pager.told(one.job, one.source)
                for alert in m["alerts"]
                if alert["labels"]["alertname"] == one.alert
            }
            assert one.says in text
        if request.config.getoption("--update"):
            write({what: seconds for what, seconds in took.items() if seconds is not None})


def check_once(pager: Pager) -> None:
    """Nobody is told twice of one thing, nor of anything that follows from it; who is told goes by the severity."""
    told: dict[tuple[str, str | None], list[str]] = {}
    for _, who, message in pager.messages:
        labels = message["groupLabels"]
        told.setdefault((labels["job"], labels.get("source")), []).append(f"{labels['alertname']} {message['status']}")
        assert {"critical": "pager", "warning": "tickets"}[message["commonLabels"]["severity"]] == who
        assert len(message["alerts"]) == 1
    expected: dict[tuple[str, str | None], list[str]] = {}
    for one in INCIDENTS:
        expected.setdefault((one.job, one.source), []).append(f"{one.alert} firing")
    assert {of: sorted(names) for of, names in told.items()} == {of: sorted(names) for of, names in expected.items()}


# The table


def spoken(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def write(took: Mapping[str, float]) -> None:
    text = PAGE.read_text()
    for one in INCIDENTS:
        begin = re.escape(f"| {one.what} |")
        text, found = re.subn(rf"^({begin}.*\|) [^|]* \|$", rf"\1 {spoken(took[one.what])} |", text, flags=re.M)
        assert found == 1, one.what
    PAGE.write_text(text)


def test_the_page_promises_what_is_measured() -> None:
    listed = {row[0]: row[1:] for row in rows(PAGE, "|".join(re.escape(one.what) for one in INCIDENTS))}
    for one in INCIDENTS:
        alert, within, measured = listed[one.what]
        assert alert == one.alert
        promised = f"{one.within / MINUTE:g} min"
        assert within == (f"`success_within` + {promised}" if one.due else promised)
        found = re.fullmatch(r"(?:(\d+) min )?(\d+) s", measured)
        assert found, "measured by test_each_incident_is_told_in_time_and_once --update"
        assert int(found[1] or 0) * MINUTE + int(found[2]) <= one.within
