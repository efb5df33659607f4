"""The Alertmanager example: what it routes and silences, by Alertmanager's own tool and by a real Alertmanager."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from exporter.alerting import rules
from exporter.alerting.alerts import ALERTS
from exporter.config.objectives import SloConfig
from exporter.platforms import PLATFORMS
from tests.servers import PATIENCE_SECONDS, alertmanager, eventually, prometheus, real
from tests.test_docs import DOCS, fences

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "alerts" / "alertmanager.example.yaml"
RECEIVERS = {"critical": "pager", "warning": "tickets", "info": "nobody"}
#: What an exporter says while `up` can be read and `down` cannot. Invoices fail in both.
EXPOSITION = "\n".join(
    [
        *(f"# TYPE automation_{name} gauge" for name in ("workflow_info", "workflow_consecutive_failures")),
        *(
            line
            for source in ("up", "down")
            for line in (
                f'automation_workflow_info{{platform="p",source="{source}",workflow_id="1",workflow="Invoices"}} 1',
                f'automation_workflow_consecutive_failures{{platform="p",source="{source}",workflow_id="1"}} 4',
                f'automation_exporter_data_complete{{platform="p",source="{source}",stream="runs"}} {source == "up":d}',
            )
        ),
        "",
    ]
)


def amtool(*arguments: str) -> str:
    done = subprocess.run(
        ["amtool", *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@real("amtool")
def test_alertmanager_takes_the_example() -> None:
    [line] = [line for code in fences(DOCS / "alerts.md", "sh") for line in code.splitlines() if "amtool" in line]
    assert "SUCCESS" in amtool(*line.partition("#")[0].split()[1:])


@real("amtool")
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_goes_to_whom_its_severity_says(alert: Any) -> None:
    labels = [f"alertname={alert.name}", f"severity={alert.severity}", "job=automation-exporter", "source=make-eu"]
    told = amtool("config", "routes", "test", f"--config.file={EXAMPLE}", *labels)
    assert told.split() == [RECEIVERS[alert.severity]]


# What silences what


def matches(matchers: list[str], labels: dict[str, str]) -> bool:
    for text in matchers:
        found = re.fullmatch(r'(\w+) *(=~|!=|=) *"?(.*?)"?', text)
        assert found, text
        name, sign, value = found.groups()
        has = labels.get(name, "")
        if {"=": has == value, "!=": has != value, "=~": bool(re.fullmatch(value, has))}[sign] is False:
            return False
    return True


def silenced_by(*, of: dict[str, str] | None = None, **labels: str) -> set[str]:
    """Names of the alerts that an alert with these labels keeps back; ``of`` are all that there are."""
    there = [{"alertname": alert.name} for alert in ALERTS] if of is None else [of]
    out = set()
    for rule in yaml.safe_load(EXAMPLE.read_text())["inhibit_rules"]:
        if matches(rule["source_matchers"], labels):
            assert "job" in rule["equal"]
            out |= {each["alertname"] for each in there if matches(rule["target_matchers"], each)}
    return out


def test_data_that_cannot_be_read_keep_back_what_cannot_be_judged_and_nothing_else() -> None:
    judged = {alert.name for alert in ALERTS if alert.needs_data}
    letters = {name for name in judged if re.match("AutomationDeadLetters|AutomationRetr", name)}
    for stream in ("workflows", "runs"):
        assert silenced_by(alertname="AutomationDataIncomplete", stream=stream) == judged
    assert silenced_by(alertname="AutomationDataIncomplete", stream="dead_letters") == letters
    assert silenced_by(alertname="AutomationDataIncomplete", stream="quota") == set()
    assert silenced_by(alertname="AutomationDataFaulty", stream="runs") == set()
    assert {"workflows", "runs", "dead_letters"} <= {s.name for p in PLATFORMS.values() for s in p.streams}


def test_a_cause_keeps_back_what_would_blame_a_platform_or_a_workflow() -> None:
    follows = {a.name for a in ALERTS if a.needs_data} | {
        f"Automation{what}" for what in ("DataIncomplete", "DataFaulty", "ReadingIncomplete", "ApiQuotaLow")
    }
    assert silenced_by(alertname="AutomationSourceDown") == follows
    assert silenced_by(alertname="AutomationCredentialFailing") == follows | {"AutomationSourceDown"}
    assert silenced_by(alertname="AutomationStoreDown") == follows | {
        "AutomationSourceDown",
        "AutomationCredentialFailing",
    }


def test_an_exporter_that_is_down_keeps_back_everything_else() -> None:
    assert silenced_by(alertname="AutomationExporterDown") == {a.name for a in ALERTS} - {"AutomationExporterDown"}


def test_a_cause_keeps_back_what_follows_from_it_and_nothing_else() -> None:
    rest = {"AutomationRetryGateShut", "AutomationRetryBudgetEmpty", "AutomationRetriesIneffective"}
    assert silenced_by(alertname="AutomationRetryStorm") == rest
    assert silenced_by(alertname="AutomationRetryGateShut") == {"AutomationRetriesIneffective"}
    held = {"alertname": "AutomationDeadLettersEscalated", "reason": "held"}
    assert silenced_by(alertname="AutomationRetryHeld", of=held) == {held["alertname"]}
    assert silenced_by(alertname="AutomationRetryHeld", of={**held, "reason": "exhausted"}) == set()


# A real Prometheus and a real Alertmanager


def test_the_check_of_silences_reads_matchers_as_alertmanager_does() -> None:
    assert matches(['a =~ "x.+"', "b != y"], {"a": "xy"})
    assert not matches(['a =~ "x.+"'], {"a": "axy"})
    assert not matches(["b != y"], {"b": "y"})


#: What keeps back others, with the labels that say what of; and whether only of its own source.
CAUSES: dict[str, tuple[dict[str, str], bool]] = {
    "AutomationExporterDown": ({}, False),
    "AutomationStoreDown": ({"instance": "a:1"}, False),
    "AutomationSourceDown": ({"source": "make-eu"}, True),
    "AutomationCredentialFailing": ({"source": "make-eu"}, True),
    "AutomationDataIncomplete": ({"source": "make-eu", "stream": "runs"}, True),
    "AutomationRetryStorm": ({"source": "make-eu"}, True),
}


@real("prometheus-alertmanager")
async def test_a_real_alertmanager_keeps_back_what_follows_from_a_cause_and_nothing_else(tmp_path: Path) -> None:
    """Each cause beside each other alert, of the same source and of another one, in a job of their own."""
    posted = []
    for cause, (labels, _) in CAUSES.items():
        for alert in ALERTS:
            job = f"{cause} {alert.name}"
            if alert.name == cause:
                continue
            posted.append({"labels": {"alertname": cause, "job": job, "severity": "critical", **labels}})
            for source in ("make-eu", "other"):
                about = {"alertname": alert.name, "job": job, "severity": alert.severity, "source": source}
                more = {
                    "workflow_id": "5004",
                    "stream": "runs",
                    "policy": "p",
                    "reason": "exhausted",
                    "instance": "a:1",
                }
                posted.append({"labels": {**more, **about}})
    async with alertmanager(tmp_path, EXAMPLE) as url, ClientSession() as session:
        async with session.post(f"{url}/api/v2/alerts", json=posted) as response:
            assert response.status == 200, await response.text()

        async def states() -> dict[tuple[str, ...], str]:
            async with session.get(f"{url}/api/v2/alerts") as response:
                return {
                    tuple(a["labels"].get(name, "") for name in ("job", "alertname", "source")): a["status"]["state"]
                    for a in await response.json()
                }

        async def settled() -> dict[tuple[str, ...], str] | None:
            found = await states()
            return found if len(found) == len(posted) and "unprocessed" not in found.values() else None

        found = await eventually(settled)
        assert found is not None
        for cause, (labels, of_source) in CAUSES.items():
            expected = silenced_by(of=None, alertname=cause, **labels)
            for source in ("make-eu", "other"):
                kept = {
                    name
                    for (job, name, of), state in found.items()
                    if job.startswith(f"{cause} ") and name != cause and of == source and state == "suppressed"
                }
                assert kept == (expected - {cause} if source == "make-eu" or not of_source else set()), (cause, source)
            weaker = [f"{cause} {alert.name}" for alert in ALERTS if alert.name not in CAUSES]
            assert {found[job, cause, labels.get("source", "")] for job in weaker} == {"active"}


@real("prometheus-alertmanager")
@real("prometheus")
async def test_a_firing_rule_reaches_a_receiver_unless_the_source_cannot_be_read(tmp_path: Path) -> None:
    messages: list[dict[str, Any]] = []

    async def receive(request: web.Request) -> web.Response:
        messages.append(await request.json())
        return web.Response()

    async def expose(request: web.Request) -> web.Response:
        return web.Response(text=EXPOSITION, headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.router.add_post("/tickets", receive)
    app.router.add_get("/metrics", expose)
    server = TestServer(app)
    async with server:
        config = tmp_path / "alertmanager.yaml"
        example = EXAMPLE.read_text().replace("http://127.0.0.1:9095", str(server.make_url("/")).rstrip("/"))
        config.write_text(example.replace("group_wait: 30s", "group_wait: 2s"))
        file = tmp_path / "rules.yaml"
        at_once = rules.alert_rules(SloConfig(job="test"))
        for group in at_once:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule["for"] = "0s"
        file.write_text(rules.as_yaml(at_once))
        target = f"127.0.0.1:{server.port}"
        async with (
            alertmanager(tmp_path, config) as url,
            prometheus(tmp_path, [target], rules=[file], alertmanager=url),
            ClientSession() as session,
        ):

            async def failing() -> dict[str, str] | None:
                async with session.get(f"{url}/api/v2/alerts") as response:
                    alerts = await response.json()
                states = {
                    a["labels"]["source"]: a["status"]["state"]
                    for a in alerts
                    if a["labels"]["alertname"] == "AutomationWorkflowFailing"
                }
                return states if states == {"up": "active", "down": "suppressed"} else None

            assert await eventually(failing)

            async def told() -> list[dict[str, Any]]:
                return [
                    a for m in messages for a in m["alerts"] if a["labels"]["alertname"] == "AutomationWorkflowFailing"
                ]

            first = (await eventually(told))[0]
            assert first["status"] == "firing"
            assert first["labels"]["workflow"] == "Invoices"
            assert first["annotations"]["description"] == "The last 4 runs of Invoices (1) of up failed."
            assert first["annotations"]["runbook_url"].endswith("/docs/runbooks/AutomationWorkflowFailing.md")
            assert {a["labels"]["source"] for a in await told()} == {"up"}
